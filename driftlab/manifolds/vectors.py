"""Inner products and lengths along the last axis, which keep it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float


def dot(u: Array, v: Array) -> Float[Array, "... 1"]:
    """The Euclidean inner product along the last axis.

    Args:
      u: vectors.
      v: vectors.

    Returns:
      One number a vector, the axis kept.
    """
    return jnp.sum(u * v, axis=-1, keepdims=True)


def length(v: Array) -> Float[Array, "... 1"]:
    """The Euclidean length along the last axis; its derivative at 0 is 0.

    Args:
      v: vectors.

    Returns:
      One number a vector, the axis kept. NaN stays NaN.
    """
    return root(dot(v, v))


def root(square: Array) -> Array:
    """The square root, whose derivative at 0 is 0 instead of infinite: for lengths.

    Args:
      square: numbers, none negative. NaN stays NaN.

    Returns:
      Numbers.
    """
    zero = square == 0
    return jnp.where(zero, square, jnp.sqrt(jnp.where(zero, 1, square)))


def unit(v: Array) -> Array:
    """The direction of vectors along the last axis; 0 for 0.

    Args:
      v: vectors.

    Returns:
      Vectors of length 1 or 0.
    """
    square = dot(v, v)
    zero = square == 0
    return v / jnp.sqrt(jnp.where(zero, 1, square))


def over_argument(function: Callable[[Array], Array], t: Array) -> Array:
    """`function(t) / t` of a function with the slope 1 at 0, such as sinh; 1 at 0.

    Args:
      function: acts on each number.
      t: numbers.

    Returns:
      Numbers.
    """
    zero = t == 0
    return jnp.where(zero, 1, function(t) / jnp.where(zero, 1, t))


def check_curvature(curvature: Any) -> None:
    """Raises where a hyperbolic space is not given a negative number.

    Args:
      curvature: the argument; traced arrays pass.

    Raises:
      ValueError: naming the value.
    """
    if isinstance(curvature, Tracer):
        return
    if jnp.shape(curvature) != () or not -float("inf") < float(curvature) < 0:
        raise ValueError(
            f"curvature={curvature!r} must be negative, -1 for the usual hyperbolic space; the "
            "sphere is manifolds.sphere()."
        )
