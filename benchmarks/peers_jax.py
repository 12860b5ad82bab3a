"""Peers in JAX: driftlab itself, and programs written by hand without it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import driftlab as dl
from benchmarks.timing import Peer
from benchmarks.workload import Workload, build, initial_lanes, learning_rates

DRIFTLAB = "driftlab"
TRACED = "jitted loop"
BAKED = "loop, baked rates"
VMAP = "jax.vmap by hand"


def driftlab(
    workload: Workload,
    lanes: int,
    strategy: str = "auto",
    name: str = DRIFTLAB,
    measures: Sequence[dl.measures.Measure] = (),
    record_every: int | None = None,
) -> Peer:
    """`driftlab.sweep`, called as a user calls it.

    Args:
        workload: the work.
        lanes: how many learning rates.
        strategy: how many lanes advance together.
        name: the peer's name.
        measures: what is recorded.
        record_every: steps a record; by default only the first and the last step.

    Returns:
        The peer; its `run` returns the dataset.
    """
    grid = dl.Grid({"learning_rate": learning_rates(lanes)})
    built = build(workload)

    def run(steps: int) -> Any:
        dataset = dl.sweep(
            built, grid, steps, measures=measures, record_every=record_every or steps,
            lanes=strategy, progress=False,
        )  # fmt: skip
        verdicts = set(np.unique(dataset["verdict"]).tolist())
        if verdicts != {"ok"}:
            raise RuntimeError(f"lanes stopped early, timings would not count: {verdicts}")
        return dataset

    return Peer(name, run, compiles_inside=True)


def by_hand(name: str, workload: Workload, lanes: int) -> Peer:
    """A JAX program without driftlab.

    Args:
        name: `TRACED`: a Python loop over one jitted run with the rate as an argument; `BAKED`:
            a loop over runs with the rate as a constant, which compiles each; `VMAP`: all lanes
            at once under `jax.vmap`.
        workload: the work.
        lanes: how many learning rates.

    Returns:
        The peer; its `run` returns the lanes' final params.
    """
    rates = learning_rates(lanes)
    stacked = jax.tree.map(jnp.asarray, initial_lanes(workload, lanes))
    data = jnp.asarray(workload.inputs), jnp.asarray(workload.targets)
    key = jax.random.key(1)
    train = _training(workload.batch_size)
    if name == VMAP:
        program = jax.jit(jax.vmap(train, (0, 0, None, None, None)))
        return Peer(
            name, lambda steps: jax.block_until_ready(program(rates, stacked, data, key, steps))
        )
    starts = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(lanes)]
    jitted = jax.jit(train)
    calls = {
        TRACED: [partial(jitted, rate) for rate in rates],
        BAKED: [jax.jit(partial(train, float(rate))) for rate in rates],
    }[name]

    def run(steps: int) -> Any:
        results = [call(start, data, key, steps) for call, start in zip(calls, starts, strict=True)]
        return jax.block_until_ready(results)

    return Peer(name, run)


def loss(params: Any, inputs: jax.Array | np.ndarray, targets: jax.Array | np.ndarray) -> jax.Array:
    """The mean cross-entropy of a tanh network with one hidden layer.

    Args:
        params: `(W1, b1, W2, b2)`.
        inputs: `(batch, features)`.
        targets: class numbers `(batch,)`.

    Returns:
        A scalar.
    """
    first, first_bias, second, second_bias = params
    logits = jnp.tanh(inputs @ first + first_bias) @ second + second_bias
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)
    return -jnp.mean(chosen)


def _training(batch_size: int | None) -> Callable:
    def train(rate, params, data, key, steps):
        inputs, targets = data

        def step(index, params):
            if batch_size is None:
                batch = inputs, targets
            else:
                drawn = jax.random.fold_in(key, index)
                chosen = jax.random.randint(drawn, (batch_size,), 0, len(targets))
                batch = inputs[chosen], targets[chosen]
            gradient = jax.grad(loss)(params, *batch)
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient)

        return jax.lax.fori_loop(0, steps, step, params)

    return train
