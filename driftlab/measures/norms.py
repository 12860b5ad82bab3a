"""Sizes of the gradient, the update and the parameters: Euclidean norms over the whole tree.

Each costs O(number of parameters) a record and no gradient.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from driftlab.dynamics import Snapshot


def gradient_norm(snapshot: Snapshot) -> Float[Array, ""]:
    """`||g_k||`, the gradient of what is minimised, on the step's batch; loss / parameter units."""
    return optax.tree.norm(snapshot.gradient)


def update_norm(snapshot: Snapshot) -> Float[Array, ""]:
    """`||theta_{k+1} - theta_k||`, the distance the step moves; parameter units."""
    return optax.tree.norm(snapshot.updates)


def parameter_norm(snapshot: Snapshot) -> Float[Array, ""]:
    """`||theta_k||`; parameter units."""
    return optax.tree.norm(snapshot.params)


def distance_from_initialization(snapshot: Snapshot) -> Float[Array, ""]:
    """`||theta_k - theta_0||`; parameter units.

    Args:
      snapshot: what the step saw, with `initial_params` filled in (`sweep` does).

    Returns:
      Scalar.

    Raises:
      ValueError: if the snapshot does not carry theta_0.
    """
    if snapshot.initial_params is None:
        raise ValueError(
            "distance_from_initialization needs snapshot.initial_params; sweep fills it in, "
            "elsewhere use snapshot._replace(initial_params=...)."
        )
    return optax.tree.norm(jax.tree.map(jnp.subtract, snapshot.params, snapshot.initial_params))


def effective_learning_rate(snapshot: Snapshot) -> Float[Array, ""]:
    """`||theta_{k+1} - theta_k|| / ||g_k||`: the step length per unit of gradient.

    Equals the learning rate for plain SGD, and says what an adaptive or momentum method's step
    amounts to; 0 where the gradient is exactly 0.
    """
    gradient = gradient_norm(snapshot)
    zero = gradient == 0
    return jnp.where(zero, 0, update_norm(snapshot) / jnp.where(zero, 1, gradient))
