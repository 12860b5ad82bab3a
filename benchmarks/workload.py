"""The work that all peers of the sweep benchmark do: small networks trained at many rates."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

import driftlab as dl
from driftlab import data, models, sampling
from driftlab.sweep.lane import Build

Lanes = tuple[np.ndarray, ...]


class Workload(NamedTuple):
    """A tanh network, its data and its batches, trained by plain (stochastic) gradient descent.

    Attributes:
        name: how tables call it.
        widths: inputs, hidden units and outputs.
        batch_size: examples a step, drawn with replacement; None for all of them.
        inputs: training inputs `(n, widths[0])`, float32.
        targets: class numbers `(n,)`, int32.
    """

    name: str
    widths: tuple[int, int, int]
    batch_size: int | None
    inputs: np.ndarray
    targets: np.ndarray

    @property
    def flops(self) -> float:
        """Floating-point operations of a lane's step, counting the matrix products alone.

        The first layer takes two products (forward, weight gradient), the second one three.
        """
        inputs, hidden, outputs = self.widths
        examples = self.batch_size or len(self.inputs)
        return 2.0 * examples * (2 * inputs * hidden + 3 * hidden * outputs)


def load_workloads(cache: Path) -> tuple[dict[str, Workload], str]:
    """Loads the data, from the cache where it is there, and lists the workloads.

    Args:
        cache: a file for the arrays, so that child processes do not decompress data sets.

    Returns:
        Workloads by key, and the name of the set of images in use.
    """
    if not cache.exists():
        np.savez(cache, allow_pickle=False, **_arrays())
    with np.load(cache) as stored:
        arrays = {name: stored[name] for name in stored.files}
    images = arrays["image_inputs"], arrays["image_targets"]
    digits = arrays["digit_inputs"], arrays["digit_targets"]
    listed = {
        "full_batch": Workload("784-128-10, full batch", (784, 128, 10), None, *images),
        "mini_batch": Workload("784-128-10, batch 128", (784, 128, 10), 128, *images),
        "batch_32": Workload("784-128-10, batch 32", (784, 128, 10), 32, *images),
        "batch_512": Workload("784-128-10, batch 512", (784, 128, 10), 512, *images),
        "small": Workload("64-32-10, batch 32", (64, 32, 10), 32, *digits),
        "medium": Workload("64-128-10, batch 32", (64, 128, 10), 32, *digits),
    }
    return listed, str(arrays["image_name"])


def _arrays() -> dict[str, np.ndarray]:
    try:
        images = data.load("fashion_mnist", train_size=5000, flatten=True)
    except FileNotFoundError:
        images = data.load("mnist5k", flatten=True)
    digits = data.load("digits", flatten=True)
    return {
        "image_name": np.array(f"{images.name}, {len(images.train.inputs)} images"),
        "image_inputs": np.asarray(images.train.inputs),
        "image_targets": np.asarray(images.train.targets),
        "digit_inputs": np.asarray(digits.train.inputs),
        "digit_targets": np.asarray(digits.train.targets),
    }


def learning_rates(lanes: int) -> np.ndarray:
    """The lanes' rates, which all converge: `(lanes,)`, float32, from 1e-4 to 0.1."""
    return np.geomspace(1e-4, 0.1, lanes).astype(np.float32)


def initial_params(workload: Workload, rate: Float[Array, ""], key: Key[Array, ""]) -> PyTree:
    """A lane's own starting point (shared ones would let XLA do the first step for all at once).

    Args:
        workload: says the network.
        rate: the lane's rate, whose bits pick the starting point.
        key: shared by all lanes.

    Returns:
        The params of `models.MLP`.
    """
    key = jax.random.fold_in(key, jax.lax.bitcast_convert_type(jnp.float32(rate), jnp.uint32))
    return models.initialize(_model(workload), key, workload.inputs)


def initial_lanes(workload: Workload, lanes: int) -> Lanes:
    """The starting points that `driftlab.sweep` with seed 0 gives the lanes of `build`.

    Args:
        workload: says the network.
        lanes: how many.

    Returns:
        `(W1, b1, W2, b2)`, each with a leading axis of lanes.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    draw = jax.jit(jax.vmap(lambda rate: initial_params(workload, rate, key)))
    params = draw(learning_rates(lanes))
    return tuple(
        np.asarray(params[layer][part])
        for layer in ("layer_0", "layer_1")
        for part in ("kernel", "bias")
    )


def build(workload: Workload) -> Build:
    """What a user of `driftlab.sweep` writes for this workload.

    Args:
        workload: the work.

    Returns:
        `build(hparams, key) -> (Dynamics, params)`, of one axis `learning_rate`.
    """
    batch_size = workload.batch_size
    rule = sampling.with_replacement(batch_size) if batch_size else sampling.full_batch()
    loss = models.cross_entropy(models.apply_function(_model(workload)))
    objective = dl.Objective(loss, (workload.inputs, workload.targets), rule)

    def build(hparams, key):
        rate = hparams["learning_rate"]
        return dl.descent(optax.sgd(rate), objective), initial_params(workload, rate, key)

    return build


def _model(workload: Workload) -> models.MLP:
    return models.MLP(widths=workload.widths[1:-1], num_outputs=workload.widths[-1])
