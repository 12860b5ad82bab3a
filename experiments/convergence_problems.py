"""The problems on which the convergence experiment compares flows with what they model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab import curvature, data, models
from driftlab.flows.batch_order import split_batches
from experiments import flags

BATCHES = 4


class Problem(NamedTuple):
    """A loss, where it starts, and the batches that it is the mean over.

    Attributes:
      name: what tables call it.
      loss: `params -> scalar`.
      batch_loss: `(params, batch) -> scalar`.
      batches: a pytree of batches along the leading axis, four of them.
      params: the start.
      sharpness: the largest eigenvalue of the Hessian at the start.
      tolerance: how far a measured order may be from the theory's.
    """

    name: str
    loss: Callable[[Any], Float[Array, ""]]
    batch_loss: Callable[[Any, Any], Float[Array, ""]]
    batches: Any
    params: Any
    sharpness: float
    tolerance: float


def toy_problem() -> Problem:
    """The banana-shaped valley of two parameters; its batches are tilted to either side."""
    problem = data.problems.perturbed_rosenbrock()
    tilts = jnp.array([[0.5, 0.2], [-0.3, 0.4], [-0.4, -0.1], [0.2, -0.5]], float)

    def batch_loss(params: Array, batch: Array) -> Float[Array, ""]:
        return problem.loss(params) + jnp.sum(jnp.sin(params) * batch)

    start = jnp.asarray(problem.initial_params, float)
    return Problem(
        "toy", problem.loss, batch_loss, tilts, start, _sharpness(problem.loss, start), 0.1
    )


def network_problem(config: Any) -> Problem:
    """A classifier of real images, cross-entropy over all of them.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/convergence_order.py.

    Returns:
      The problem.

    Raises:
      ValueError: if the config describes no model or data, or fewer than four examples.
    """
    loaded = data.load(
        config.data, train_size=config.train_size or None, data_dir=flags.DATA_DIR.value
    )
    inputs, targets = jnp.asarray(loaded.train.inputs, float), jnp.asarray(loaded.train.targets)
    model = models.create(
        config.model, loaded.num_classes, **flags.parse_arguments(config.model_args, "model_args")
    )
    batch_loss = models.cross_entropy(models.apply_function(model))
    params = jax.jit(lambda key: models.initialize(model, key, inputs))(jax.random.key(config.seed))
    # A mean over four batches that is the mean over all examples.
    batches = split_batches(data.Batch(inputs, targets), len(inputs) // BATCHES)
    used = BATCHES * (len(inputs) // BATCHES)
    examples = data.Batch(inputs[:used], targets[:used])

    def loss(params: Any) -> Float[Array, ""]:
        return batch_loss(params, examples)

    return Problem("network", loss, batch_loss, batches, params, _sharpness(loss, params), 0.2)


def _sharpness(loss: Callable[[Any], Any], params: Any) -> float:
    def top(params: Any) -> Array:
        operator = curvature.hessian(lambda p, _: loss(p), params)
        return curvature.eigenpairs(operator).values[0]

    return float(jax.jit(top)(params))
