"""The unit sphere, and matrices of unit columns.

Source: Absil, Mahony, Sepulchre (2008), "Optimization algorithms on matrix manifolds", 3.5, 4.1
and 8.1.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.manifolds.manifold import Manifold, Point, Tangent
from driftlab.manifolds.vectors import dot, length, over_argument, root, unit

# Points whose length differs from 1 by more than this many times the dtype's eps are off.
TOLERANCE = 1e3


def sphere() -> Manifold:
    """Unit vectors along the last axis, with the metric of the space around.

    `exp_x(v) = cos|v| x + sinc|v| v`, moved by `-2 sin^2(|v|/2) x + sinc|v| v`; `d = 2 atan2(|x -
    y|, |x + y|)`; the retraction is `(x + v) / |x + v|`, of second order. The logarithm and the
    transport between opposite points are NaN: there is no shortest geodesic.

    Returns:
      The manifold.
    """

    def onto(x: Point, update: Array) -> Array:
        end = x + update
        return update + (project(end) - end)

    def project(x: Array) -> Point:
        return x / jnp.sqrt(dot(x, x))

    def tangent(x: Point, u: Array) -> Tangent:
        return u - dot(x, u) * x

    def exp_update(x: Point, v: Tangent) -> Array:
        angle = length(v)
        return onto(x, -2 * jnp.sin(angle / 2) ** 2 * x + over_argument(jnp.sin, angle) * v)

    def retract_update(x: Point, v: Tangent) -> Array:
        square = dot(v, v)
        norm = jnp.sqrt(1 + square)
        return onto(x, (v - square / (1 + norm) * x) / norm)

    def angle_between(x: Point, y: Point) -> Float[Array, "... 1"]:
        return 2 * jnp.arctan2(length(x - y), length(x + y))

    def log(x: Point, y: Point) -> Tangent:
        direction = unit(tangent(x, y - x))
        angle = angle_between(x, y)
        opposite = (dot(direction, direction) == 0) & (angle > 1)
        return jnp.where(opposite, jnp.nan, angle * direction)

    def transport(x: Point, y: Point, v: Tangent) -> Tangent:
        middle = x + y
        return v - 2 * dot(y, v) / dot(middle, middle) * middle

    def factor_inner(x: Point, u: Tangent, v: Tangent) -> Float[Array, "... 1"]:
        return dot(u, v)

    def violation(x: Array) -> Float[Array, "..."]:
        return jnp.abs(length(x)[..., 0] - 1) / (TOLERANCE * jnp.finfo(x.dtype).eps)

    return Manifold(
        name="sphere",
        point_ndim=1,
        inner=lambda x, u, v: dot(u, v)[..., 0],
        factor_inner=factor_inner,
        gradient=tangent,
        tangent=tangent,
        exp_update=exp_update,
        retract_update=retract_update,
        log=log,
        distance=lambda x, y: angle_between(x, y)[..., 0],
        parallel_transport=transport,
        vector_transport=transport,
        project=project,
        violation=violation,
        random=lambda key, shape, dtype: project(jax.random.normal(key, shape, dtype)),
        retraction_acceleration=lambda x, v: jnp.zeros_like(v),
        retraction="normalize(x + v)",
    )


def oblique() -> Manifold:
    """Matrices of unit columns: a product of spheres, each column a factor.

    Returns:
      The manifold; a point is a matrix, its columns the second to last axis.
    """
    columns = sphere()

    def swapped(function: Callable[..., Array]) -> Callable[..., Array]:
        def on_columns(*arrays: Array) -> Array:
            return jnp.swapaxes(function(*(jnp.swapaxes(a, -1, -2) for a in arrays)), -1, -2)

        return on_columns

    def summed(function: Callable[..., Array]) -> Callable[..., Array]:
        def over_columns(*arrays: Array) -> Array:
            return jnp.sum(function(*(jnp.swapaxes(a, -1, -2) for a in arrays)), axis=-1)

        return over_columns

    def distance(x: Point, y: Point) -> Float[Array, "..."]:
        return root(summed(lambda a, b: columns.distance(a, b) ** 2)(x, y))

    def violation(x: Array) -> Float[Array, "..."]:
        return jnp.max(columns.violation(jnp.swapaxes(x, -1, -2)), axis=-1)

    def random(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Point:
        return swapped(columns.project)(jax.random.normal(key, shape, dtype))

    names = ["factor_inner", "gradient", "tangent", "exp_update", "retract_update", "log"]
    names += ["parallel_transport", "vector_transport", "project", "retraction_acceleration"]
    return dataclasses.replace(
        columns,
        name="oblique",
        point_ndim=2,
        inner=summed(columns.inner),
        distance=distance,
        violation=violation,
        random=random,
        **{name: swapped(getattr(columns, name)) for name in names},
    )
