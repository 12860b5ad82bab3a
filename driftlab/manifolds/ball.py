"""The Poincare ball: hyperbolic space in a ball, stable at its rim in single precision.

Source: Ungar (2008), "A gyrovector space approach to hyperbolic geometry"; Ganea, Becigneul,
Hofmann (2018), "Hyperbolic neural networks", section 2. The forms without cancellation below are
driftlab's; tests hold them against the Moebius forms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from driftlab.manifolds.manifold import Manifold, Point, Tangent
from driftlab.manifolds.vectors import check_curvature, dot, length, over_argument, unit


def poincare_ball(curvature: ArrayLike = -1.0, margin: float | None = None) -> Manifold:
    """Points x with `c |x|^2 < 1` along the last axis, curvature -c, metric `lambda_x^2 I`.

    `lambda_x = 2 / (1 - c |x|^2)`. With `X = sqrt(c) x`, `u = v / |v|`, `w = 1 - |X|^2` and
    `E = exp(-2 sqrt(c) |v| / w)`, the exponential map moves by

        exp_x(v) - x = w (1 - E) [(1 - E) X + (1 + E) u] / (sqrt(c) (|X + u|^2 + 2 E w + E^2 |X -
        u|^2)),

    where every term of the denominator is positive: the Moebius form, rearranged, loses all digits
    near the rim in single precision. `d(x, y) = (2 / sqrt(c)) arsinh(sqrt(c) |x - y| / sqrt((1 - c
    |x|^2)(1 - c |y|^2)))`. The retraction is `x + v`, of first order.

    Args:
      curvature: -c, negative; may be a traced array.
      margin: points are kept within `|X| <= 1 - margin`; by default 1e-5 in single precision (12.2
        from the centre), 1e-10 in double (23.7), and 4 eps in half.

    Returns:
      The manifold.

    Raises:
      ValueError: for a curvature that is not negative, or a margin outside (0, 1).
    """
    check_curvature(curvature)
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"margin={margin!r} must lie between 0 and 1; leave it out for 1e-5.")

    def scaled(x: Array) -> tuple[Array, Array]:
        root = jnp.sqrt(-jnp.asarray(curvature, x.dtype))
        return root, root * x

    def width(x: Array) -> Float[Array, "... 1"]:
        """W = 1 - c |x|^2."""
        return 1 - dot(scaled(x)[1], scaled(x)[1])

    def largest(dtype: jnp.dtype) -> float:
        default = 1e-10 if dtype == jnp.float64 else max(1e-5, 4 * float(jnp.finfo(dtype).eps))
        return 1 - (default if margin is None else margin)

    def factor_inner(x: Point, u: Tangent, v: Tangent) -> Float[Array, "... 1"]:
        return 4 * dot(u, v) / width(x) ** 2

    def project(x: Array) -> Point:
        inside = scaled(x)[1]
        radius, limit = length(inside), largest(x.dtype)
        outside = radius > limit
        return jnp.where(outside, x * (limit / jnp.where(outside, radius, 1)), x)

    def within(x: Point, update: Array) -> Array:
        # Exactly the update for a step that stays inside.
        end = x + update
        return update + (project(end) - end)

    def exp_update(x: Point, v: Tangent) -> Array:
        root, at = scaled(x)
        u, w = unit(v), width(x)
        exponent = -2 * root * length(v) / w
        decay, gone = jnp.exp(exponent), -jnp.expm1(exponent)
        forth, back = at + u, at - u
        below = dot(forth, forth) + 2 * decay * w + decay**2 * dot(back, back)
        below = jnp.where(decay == 1, 4, below)  # as it is for every u but 0
        # (1 - E) u as a multiple of v, whose derivative at v = 0 is right: that of u has a kink.
        sideways = 2 * root / w * over_argument(jnp.expm1, exponent) * v
        return within(x, w * (gone**2 * at + (1 + decay) * sideways) / (root * below))

    def log(x: Point, y: Point) -> Tangent:
        root, at = scaled(x)
        step = root * (y - x)
        w, square = width(x), dot(step, step)
        both = w * width(y)
        ratio = length(step) / jnp.sqrt(both)
        direction = (w * step - square * at) / jnp.sqrt(square + both)
        return w * over_argument(jnp.arcsinh, ratio) / jnp.sqrt(both) * direction / root

    def distance(x: Point, y: Point) -> Float[Array, "..."]:
        root, _ = scaled(x)
        ratio = root * length(y - x) / jnp.sqrt(width(x) * width(y))
        return (2 / root * jnp.arcsinh(ratio))[..., 0]

    def transport(x: Point, y: Point, v: Tangent) -> Tangent:
        root, at = scaled(x)
        step = root * (y - x)
        before, after = width(x), width(y)
        square, along, across = dot(step, step), dot(step, v), dot(at, v)
        a = -before * across + 2 * dot(at, step) * across - dot(at, at) * along
        turned = a * step + (before * along - square * across) * at
        return after / before * (v + 2 * turned / (square + before * after))

    def acceleration(x: Point, v: Tangent) -> Tangent:
        c = -jnp.asarray(curvature, x.dtype)
        return c * 2 / width(x) * (2 * dot(x, v) * v - dot(v, v) * x)

    def random(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Point:
        """The exponential map at 0 of normal vectors, of variance 1 in each direction."""
        vectors = jax.random.normal(key, shape, dtype) / 2
        zero = jnp.zeros(shape, dtype)
        return zero + exp_update(zero, vectors)

    return Manifold(
        name="poincare_ball",
        point_ndim=1,
        inner=lambda x, u, v: factor_inner(x, u, v)[..., 0],
        factor_inner=factor_inner,
        gradient=lambda x, g: width(x) ** 2 / 4 * g,
        tangent=lambda x, u: u,
        exp_update=exp_update,
        retract_update=lambda x, v: within(x, v),
        log=log,
        distance=distance,
        parallel_transport=transport,
        vector_transport=transport,
        project=project,
        violation=lambda x: length(scaled(x)[1])[..., 0] * (1 + jnp.finfo(x.dtype).eps),
        random=random,
        retraction_acceleration=acceleration,
        retraction="x + v",
    )


def ball_proximity(curvature: ArrayLike = -1.0) -> Callable[[Array, Array], Float[Array, "..."]]:
    """What orders pairs of points as the ball's distance does, at a fraction of its cost.

    Args:
      curvature: of the ball.

    Returns:
      `(x, y) -> |x - y|^2 / ((1 - c |x|^2)(1 - c |y|^2))`, along the last axis.
    """
    check_curvature(curvature)

    def proximity(x: Point, y: Point) -> Float[Array, "..."]:
        c, step = -jnp.asarray(curvature, x.dtype), x - y
        widths = (1 - c * dot(x, x)) * (1 - c * dot(y, y))
        return (dot(step, step) / widths)[..., 0]

    return proximity
