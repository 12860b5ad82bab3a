"""Whether an optax chain's updates jump while its gradient and memory move smoothly."""

from typing import Any

import jax
import jax.numpy as jnp

from driftlab.flows.optimizer_memory import Chain
from driftlab.flows.optimizer_probe import (
    STAND_INS,
    STEPS,
    first_steps,
    made_up_gradient,
    places,
    tried_out,
)
from driftlab.flows.solve import time_dtype
from driftlab.objective import Params

# Each line is cut into so many parts; those whose change is oddest beside its neighbours' are
# quartered so often, and the oddest quarter kept. What is left there, over a typical entry in the
# neighbourhood, is a jump.
_GRID, _NEAR, _CANDIDATES, _QUARTERINGS, _JUMP = 64, 3, 4, 9, 0.05


def probe_jumps(chain: Chain, params: Params) -> bool:
    """Whether the updates or memory jump while gradient and memory move along a line.

    Along two lines, from one made-up state to another and over six decades of its size, random
    combinations of what a step gives are followed, and the parts of a line in which they change
    most oddly are narrowed down. A clip or a maximum loses its change with the width; a mask keeps
    it.

    Args:
      chain: the optimiser.
      params: parameters.

    Returns:
      What was seen; with stand-ins for traced hyper-parameters. Cost: some 350 elementwise
      updates, compiled once.
    """
    with jax.ensure_compile_time_eval():
        place, initial = places(chain, params)
        jump = jax.jit(lambda p, m: _largest_jump(tried_out(chain, STAND_INS[0], m), p))
        return float(jump(place, initial)) > _JUMP


def _largest_jump(chain: Chain, params: Params) -> Any:
    """What is left of the largest change along two lines, over a typical entry."""
    clock = time_dtype(params)
    one = jnp.ones((), clock)
    clocks = {name: 1000 * one for name in chain.clocks}
    here = made_up_gradient(params)
    there = jax.tree.map(lambda g: 3 * g, made_up_gradient(params, 1))
    # Memory of other gradients, so that each sign of one is met with each sign of the other; and
    # as they leave it, so that variances stay positive in between.
    memories = []
    for seed in (2, 3):
        past = made_up_gradient(params, seed)
        history = first_steps(chain, params, past, past)[0]
        memories.append({name: leaf[STEPS - 1] for name, leaf in history.items()})
    weights = made_up_gradient((params, memories[0]), 4)

    def followed(s: Any) -> Any:
        """A random combination of the entries of each part of a step, and their size."""

        def between(a: Any, b: Any) -> Any:
            share = jnp.minimum(s, 1).astype(a.dtype)
            size = 10 ** (6 * jnp.maximum(s - 1, 0)).astype(a.dtype)
            return (a + share * (b - a)) * size

        gradient = jax.tree.map(between, here, there)
        memory = jax.tree.map(between, *memories)
        found = chain.step(gradient, one, params, memory, clocks)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(weights), strict=True)
        parts = [(x, w) for x, w in pairs if x.size]
        mixed = [jnp.sum(w * x).astype(clock) for x, w in parts]
        sizes = [jnp.sqrt(jnp.mean(x**2)).astype(clock) for x, _ in parts]
        return jnp.stack(mixed), jnp.stack(sizes)

    edges = jnp.linspace(0, 2, 2 * _GRID + 1, dtype=clock)
    mixed, sizes = jax.lax.map(followed, edges)
    # Of the neighbourhood: at a kink on one side of which there is nothing, the size is 0.
    near = jnp.stack([jnp.roll(sizes, shift, axis=0) for shift in range(-_NEAR, _NEAR + 1)])
    size = jnp.max(near, axis=0)[:-1]
    size = jnp.where(size > 0, size, 1)
    steps = jnp.diff(mixed, axis=0) / size
    odd = jnp.nan_to_num(abs(steps - jnp.median(_neighbours(steps), axis=0)))
    # The line of sizes goes further in a step than the other: each has its own candidates.
    first, second = (jax.lax.top_k(jnp.max(part, axis=1), _CANDIDATES)[1] for part in (
        odd[:_GRID], odd[_GRID:]
    ))  # fmt: skip

    def left_over(at: Any) -> Any:
        part = jnp.argmax(odd[at])

        def narrow(carry: Any, _: None) -> Any:
            low, width, below, above = carry
            inner = [followed(low + width * k / 4)[0][part] for k in (1, 2, 3)]
            values = jnp.stack([below, *inner, above])
            steps = jnp.diff(values)
            odd = jnp.argmax(abs(steps - jnp.median(steps)))
            return (low + width * odd / 4, width / 4, values[odd], values[odd + 1]), None

        start = (edges[at], edges[1] - edges[0], mixed[at, part], mixed[at + 1, part])
        _, _, below, above = jax.lax.scan(narrow, start, None, length=_QUARTERINGS)[0]
        return abs(above - below) / size[at, part]

    left = jax.lax.map(left_over, jnp.concatenate([first, second + _GRID]))
    return jnp.max(jnp.nan_to_num(left))


def _neighbours(steps: Any) -> Any:
    return jnp.stack([jnp.roll(steps, shift, axis=0) for shift in (-2, -1, 0, 1, 2)])
