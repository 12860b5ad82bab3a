"""Flat space, on which the Riemannian methods are the usual ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from driftlab.manifolds.manifold import Manifold, Point, Tangent
from driftlab.manifolds.vectors import root


def euclidean(point_ndim: int = 0) -> Manifold:
    """R^n with its usual inner product.

    Args:
      point_ndim: the last axes that make one factor. 0, each number by itself, is what makes
        Riemannian Adam optax's Adam; 1 shares one second moment a row.

    Returns:
      The manifold.

    Raises:
      ValueError: for a negative point_ndim.
    """
    if point_ndim < 0:
        raise ValueError(f"point_ndim={point_ndim} must be 0 or more: how many axes a point has.")
    axes = tuple(range(-point_ndim, 0))

    def inner(x: Point, u: Tangent, v: Tangent) -> Array:
        return jnp.sum(u * v, axis=axes)

    def same(x: Point, y: Point, v: Tangent) -> Tangent:
        return v

    return Manifold(
        name="euclidean",
        point_ndim=point_ndim,
        inner=inner,
        factor_inner=lambda x, u, v: jnp.sum(u * v, axis=axes, keepdims=True),
        gradient=lambda x, g: g,
        tangent=lambda x, u: u,
        exp_update=lambda x, v: v,
        retract_update=lambda x, v: v,
        log=lambda x, y: y - x,
        distance=lambda x, y: root(inner(x, y - x, y - x)),
        parallel_transport=same,
        vector_transport=same,
        project=lambda x: x,
        violation=lambda x: inner(x, 0 * x, 0 * x),
        random=lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
        retraction_acceleration=lambda x, v: jnp.zeros_like(v),
        retraction="x + v",
    )
