"""The hyperboloid of Lorentz: hyperbolic space in the space around it.

Source: Nickel, Kiela (2018), "Learning continuous hierarchies in the Lorentz model of hyperbolic
geometry", section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from driftlab.manifolds.manifold import Manifold, Point, Tangent
from driftlab.manifolds.vectors import check_curvature, dot, over_argument
from driftlab.manifolds.vectors import root as square_root


def hyperboloid(curvature: ArrayLike = -1.0) -> Manifold:
    """Points with `<x, x> = -1/c`, `x_0 > 0`, along the last axis; curvature -c.

    `<a, b> = -a_0 b_0 + sum_i a_i b_i`. `exp_x(v) = cosh(t) x + sinh(t)/t v` with `t = sqrt(c)
    |v|`; `d = (2/sqrt(c)) arsinh(sqrt(c) |x - y| / 2)`. After each step x_0 is computed anew from
    the others: rounding grows with x_0^2, so that `<x, x>` says nothing far from the centre. The
    retraction does only that: it adds v to the others, and is of first order.

    Args:
      curvature: -c, negative; may be a traced array.

    Returns:
      The manifold; a point of dimension n has n + 1 entries.

    Raises:
      ValueError: for a curvature that is not negative.
    """
    check_curvature(curvature)

    def positive(x: Array) -> Array:
        return -jnp.asarray(curvature, x.dtype)

    def lorentz(u: Array, v: Array) -> Float[Array, "... 1"]:
        return dot(u[..., 1:], v[..., 1:]) - u[..., :1] * v[..., :1]

    def height(rest: Array) -> Float[Array, "... 1"]:
        return jnp.sqrt(1 / positive(rest) + dot(rest, rest))

    def project(x: Array) -> Point:
        return jnp.concatenate([height(x[..., 1:]), x[..., 1:]], axis=-1)

    def onto(x: Point, rest: Array) -> Array:
        """The update whose entries but the first are `rest`."""
        first = height(x[..., 1:] + rest) - x[..., :1]
        return jnp.concatenate([first, rest], axis=-1)

    def factor_inner(x: Point, u: Tangent, v: Tangent) -> Float[Array, "... 1"]:
        # Of tangent vectors, without their first entry, where the digits cancel.
        at, first, second = x[..., 1:], u[..., 1:], v[..., 1:]
        return dot(first, second) - dot(at, first) * dot(at, second) / x[..., :1] ** 2

    def length(x: Point, v: Tangent) -> Float[Array, "... 1"]:
        return square_root(jnp.maximum(factor_inner(x, v, v), 0))

    def gap(x: Point, y: Point) -> Float[Array, "... 1"]:
        """`<y - x, y - x>`, at least 0."""
        rest = y[..., 1:] - x[..., 1:]
        rise = dot(rest, x[..., 1:] + y[..., 1:]) / (x[..., :1] + y[..., :1])
        return jnp.maximum(dot(rest, rest) - rise**2, 0)

    def tangent(x: Point, u: Array) -> Tangent:
        return u + positive(x) * lorentz(x, u) * x

    def gradient(x: Point, g: Array) -> Tangent:
        return tangent(x, jnp.concatenate([-g[..., :1], g[..., 1:]], axis=-1))

    def exp_update(x: Point, v: Tangent) -> Array:
        t = jnp.sqrt(positive(x)) * length(x, v)
        moved = 2 * jnp.sinh(t / 2) ** 2 * x + over_argument(jnp.sinh, t) * v
        return onto(x, moved[..., 1:])

    def distance(x: Point, y: Point) -> Float[Array, "... 1"]:
        root = jnp.sqrt(positive(x))
        return 2 / root * jnp.arcsinh(root / 2 * square_root(gap(x, y)))

    def log(x: Point, y: Point) -> Tangent:
        direction = tangent(x, (y - x) - positive(x) / 2 * gap(x, y) * x)
        size = length(x, direction)
        return distance(x, y) * direction / jnp.where(size == 0, 1, size)

    def transport(x: Point, y: Point, v: Tangent) -> Tangent:
        c = positive(x)
        moved = v + c * lorentz(y, v) / (2 + c / 2 * gap(x, y)) * (x + y)
        return tangent(y, moved)

    def acceleration(x: Point, v: Tangent) -> Tangent:
        # The first entry of x + t v on the hyperboloid has the second derivative |v|^2 / x_0.
        first = jnp.zeros_like(x).at[..., 0].set(1)
        return factor_inner(x, v, v) / x[..., :1] * (first - positive(x) * x[..., :1] * x)

    def violation(x: Array) -> Float[Array, "..."]:
        off = jnp.abs(x[..., :1] / height(x[..., 1:]) - 1)
        return (off / (1e3 * jnp.finfo(x.dtype).eps))[..., 0]

    def random(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Point:
        """The exponential map at the centre of normal vectors, of variance 1 in each direction."""
        centre = project(jnp.zeros(shape, dtype))
        vectors = jax.random.normal(key, shape, dtype).at[..., 0].set(0)
        return centre + exp_update(centre, vectors)

    return Manifold(
        name="hyperboloid",
        point_ndim=1,
        inner=lambda x, u, v: factor_inner(x, u, v)[..., 0],
        factor_inner=factor_inner,
        gradient=gradient,
        tangent=tangent,
        exp_update=exp_update,
        retract_update=lambda x, v: onto(x, v[..., 1:]),
        log=log,
        distance=lambda x, y: distance(x, y)[..., 0],
        parallel_transport=transport,
        vector_transport=transport,
        project=project,
        violation=violation,
        random=random,
        retraction_acceleration=acceleration,
        retraction="x + v, x_0 anew",
    )


def hyperboloid_to_ball(x: Point, curvature: ArrayLike = -1.0) -> Point:
    """The isometry `p = x_rest / (1 + sqrt(c) x_0)`.

    Args:
      x: points of the hyperboloid, `(..., n + 1)`.
      curvature: of both.

    Returns:
      Points of the Poincare ball, `(..., n)`.
    """
    check_curvature(curvature)
    root = jnp.sqrt(-jnp.asarray(curvature, x.dtype))
    return x[..., 1:] / (1 + root * x[..., :1])


def ball_to_hyperboloid(p: Point, curvature: ArrayLike = -1.0) -> Point:
    """The isometry `((1 + c |p|^2) / sqrt(c), 2 p) / (1 - c |p|^2)`.

    Args:
      p: points of the Poincare ball, `(..., n)`.
      curvature: of both.

    Returns:
      Points of the hyperboloid, `(..., n + 1)`.
    """
    check_curvature(curvature)
    c = -jnp.asarray(curvature, p.dtype)
    square = c * dot(p, p)
    return jnp.concatenate([(1 + square) / jnp.sqrt(c), 2 * p], axis=-1) / (1 - square)
