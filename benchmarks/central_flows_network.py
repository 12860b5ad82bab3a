"""The work of the central-flow benchmark, for either environment: JAX and NumPy alone.

A network 8-16-16-1 with swish on 128 random examples, mean squared error, learning rate 0.3, five
eigenvectors: the work of the peer's own example, but for a larger learning rate, at which the edge
is reached sooner.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (8, 16, 16, 1)
EXAMPLES = 128
LEARNING_RATE = 0.3
EIGENVECTORS = 5
SUBSTEPS = 4
# Steps before the clock starts: several eigenvalues are at the edge by then.
WARM_UP = 400


class Work(NamedTuple):
    """What both get.

    Attributes:
        inputs: of the network.
        targets: of its one output.
        start: parameters as one vector, float32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    start: np.ndarray


def make() -> Work:
    """Draws it; the same everywhere."""
    random = np.random.default_rng(0)
    layers = []
    for fan_in, fan_out in itertools.pairwise(SIZES):
        layers += [random.normal(size=fan_in * fan_out) / np.sqrt(fan_in), np.zeros(fan_out)]
    inputs, targets = random.normal(size=(EXAMPLES, SIZES[0])), random.normal(size=EXAMPLES)
    return Work(*(x.astype(np.float32) for x in (inputs, targets, np.concatenate(layers))))


def loss(vector: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error of the network with these parameters.

    Args:
        vector: parameters.
        inputs: examples.
        targets: their values.

    Returns:
        The loss.
    """
    hidden, begin = inputs, 0
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES)):
        end = begin + fan_in * fan_out
        weights, bias = vector[begin:end].reshape(fan_in, fan_out), vector[end : end + fan_out]
        hidden = hidden @ weights + bias[None]
        hidden = jax.nn.swish(hidden) if index < len(SIZES) - 2 else hidden
        begin = end + fan_out
    return jnp.mean((hidden[:, 0] - targets) ** 2)
