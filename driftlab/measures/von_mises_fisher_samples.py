"""Densities, entropies, samples and fits of von Mises-Fisher distributions of directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from driftlab.curvature.vectors import check_count
from driftlab.measures.von_mises_fisher import (
    check_concentration,
    concentration_from_resultant,
    log_partition,
    log_uniform,
    mean_resultant,
)


class DirectionFit(NamedTuple):
    """A von Mises-Fisher distribution fitted to directions.

    Attributes:
      mean_direction: mu, the direction of the sum; shape `(d,)`.
      concentration: kappa, that of greatest likelihood.
      resultant: R, the length of the mean of the directions.
      complement: `1 - R^2`, the mean squared distance of the directions from their mean.
    """

    mean_direction: Float[Array, " d"]
    concentration: Float[Array, ""]
    resultant: Float[Array, ""]
    complement: Float[Array, ""]


def log_density(
    directions: Float[Array, "*batch d"],
    mean_direction: Float[Array, " d"],
    concentration: Any,
    relative: bool = False,
) -> Float[Array, "*batch"]:
    """`log f(x) = kappa mu.x + log C_d(kappa)`.

    Args:
      directions: unit vectors x in the last axis.
      mean_direction: mu, a unit vector.
      concentration: kappa >= 0, a scalar.
      relative: whether to give `log(f(x) / C_d(0))`, the density over the uniform one; what
        float32 can tell in high dimension.

    Returns:
      One number a direction.

    Raises:
      ValueError: if d < 2, a known kappa is negative, or the dimensions differ.
    """
    dimension = jnp.shape(mean_direction)[-1]
    if jnp.shape(directions)[-1:] != (dimension,):
        raise ValueError(
            f"directions have shape {jnp.shape(directions)}, the mean direction "
            f"{jnp.shape(mean_direction)}: their last axes must agree."
        )
    kappa = check_concentration(concentration, dimension)
    cosines = jnp.matmul(directions, mean_direction, precision=jax.lax.Precision.HIGHEST)
    log_relative = kappa * cosines - log_partition(kappa, dimension)
    return log_relative if relative else log_relative + log_uniform(dimension)


def relative_entropy(concentration: Any, dimension: int) -> Float[Array, "..."]:
    """`E log(f(x) / C_d(0)) = kappa A_d(kappa) - log_partition`: how far from uniform, in nats.

    Args:
      concentration: kappa >= 0; any shape. For kappa much larger than d the two terms cancel, and
        leave an absolute error of rounding in kappa.
      dimension: d >= 2, static.

    Returns:
      Of kappa's shape; 0 for the uniform distribution.

    Raises:
      ValueError: if d < 2, or a known kappa is negative.
    """
    kappa = check_concentration(concentration, dimension)
    return kappa * mean_resultant(kappa, dimension) - log_partition(kappa, dimension)


def entropy(concentration: Any, dimension: int) -> Float[Array, "..."]:
    """`-E log f(x)`, the differential entropy in nats: `-log C_d(0) - relative_entropy`.

    Args:
      concentration: kappa >= 0; any shape.
      dimension: d >= 2, static.

    Returns:
      Of kappa's shape; the logarithm of the sphere's area at kappa = 0.

    Raises:
      ValueError: if d < 2, or a known kappa is negative.
    """
    return -log_uniform(dimension) - relative_entropy(concentration, dimension)


def sample(
    key: PRNGKeyArray, mean_direction: Float[Array, " d"], concentration: Any, count: int
) -> Float[Array, "count d"]:
    """Draws directions: their cosine with mu by rejection, the rest uniform around it.

    With z ~ Beta((d-1)/2, (d-1)/2), b the positive root of `b^2 + 4 kappa b / (d-1) = 1` and
    `D = 1 - (1-b) z`, the proposal is `w = (1 - (1+b) z) / D`, accepted with probability
    `exp((d-1) (y + log(1-y)))`, `y = (1-b) (1-2z) / (2D)`: Wood's test, whose large terms have been
    cancelled by hand. At least two thirds are accepted at every d and kappa.
    Cost: O(count d). Source: Wood (1994), algorithm VM*; Ulrich (1984).

    Args:
      key: what they are drawn with.
      mean_direction: mu, a unit vector; shape `(d,)`, d >= 2.
      concentration: kappa >= 0, a scalar; NaN gives NaN, infinity gives mu.
      count: how many, static.

    Returns:
      Unit vectors, one a row.

    Raises:
      ValueError: if d < 2, a known kappa is negative, or count is not a positive integer.
    """
    check_count("count", count)
    mean_direction = jnp.asarray(mean_direction)
    dimension = mean_direction.shape[-1]
    kappa = check_concentration(concentration, dimension).astype(mean_direction.dtype)
    rest = dimension - 1
    b = rest / (2 * kappa + jnp.hypot(2 * kappa, jnp.asarray(rest, kappa.dtype)))
    half = jnp.asarray(rest / 2, kappa.dtype)

    def propose(state: tuple) -> tuple:
        key, kept, done = state
        key, draw, accept = jax.random.split(key, 3)
        z = jax.random.beta(draw, half, half, (count,), kappa.dtype)
        y = (1 - b) * (1 - 2 * z) / (2 * (1 - (1 - b) * z))
        threshold = -jax.random.exponential(accept, (count,), kappa.dtype)
        # Not "log >= threshold": a NaN has to end the loop.
        accepted = ~(rest * (y + jnp.log1p(-y)) < threshold)
        return key, jnp.where(done, kept, z), done | accepted

    chosen, around = jax.random.split(key)
    start = (chosen, jnp.zeros((count,), kappa.dtype), jnp.zeros((count,), bool))
    z = jax.lax.while_loop(lambda state: ~state[2].all(), propose, start)[1]
    divisor = 1 - (1 - b) * z
    cosine = (1 - (1 + b) * z) / divisor
    sine = 2 * jnp.sqrt(b * z * (1 - z)) / divisor
    tangent = jax.random.normal(around, (count, dimension), kappa.dtype)
    # Twice: in few dimensions little may be left of a normal vector, and rounding of that.
    for _ in range(2):
        tangent = tangent - (tangent @ mean_direction)[:, None] * mean_direction[None]
        tangent = tangent / jnp.linalg.norm(tangent, axis=1, keepdims=True)
    return cosine[:, None] * mean_direction[None] + sine[:, None] * tangent


def fit(directions: Float[Array, "n d"]) -> DirectionFit:
    """The von Mises-Fisher distribution of greatest likelihood.

    n directions that are in truth uniform give `R^2` near 1/n, and so kappa / d near
    `sqrt(n) / (n - 1)`, not 0.

    Args:
      directions: n >= 2 vectors, of which only the directions count; a zero gives NaN.

    Returns:
      The fit.

    Raises:
      ValueError: if there are fewer than two directions, or d < 2.
    """
    count, dimension = jnp.shape(directions)
    if count < 2:
        raise ValueError(f"a fit needs 2 directions or more; got {count}.")
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    mean = directions.mean(0)
    length = jnp.linalg.norm(mean)
    resultant = jnp.minimum(length, 1)  # of equal directions rounding may make it more
    # Not 1 - R^2: near R = 1 it has no digits left.
    complement = jnp.square(directions - mean[None]).sum(1).mean()
    kappa = concentration_from_resultant(resultant, dimension, complement)
    return DirectionFit(mean / length, kappa, resultant, complement)
