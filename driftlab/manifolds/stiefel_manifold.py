"""The Stiefel manifold: matrices of orthonormal columns.

Source: Edelman, Arias, Smith (1998), "The geometry of algorithms with orthogonality constraints",
2.2 and 2.4; Absil, Mahony, Sepulchre (2008), 4.1; Wen, Yin (2013), "A feasible method for
optimization with orthogonality constraints", for the Cayley retraction.
"""

from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.manifolds.manifold import Manifold, Point, Tangent
from driftlab.manifolds.orthonormal import (
    exponential,
    identity_like,
    inverse_square_root,
    orthonormal_columns,
    solve_skew,
)

METRICS = ("embedded", "canonical")
RETRACTIONS = ("qf", "polar", "cayley")


def stiefel(metric: str = "embedded", retraction: str = "qf") -> Manifold:
    """Matrices X `(n, p)`, n >= p, with `X^T X = I`; the whole matrix is one factor.

    The embedded metric is `tr(u^T v)`, the canonical one `tr(u^T (I - X X^T / 2) v)`. Geodesics:
    with `A = X^T V`, `S = V^T V`, embedded `exp_X(V) = [X V] expm([[A, -S], [I, A]]) [I; 0]
    expm(-A)`; canonical `exp_X(V) = expm(W) X`, `W = P V X^T - X V^T P`, `P = I - X X^T / 2`, of
    rank 2p. Retractions: "qf", the Q of `X + V`, of first order; "polar", `(X + V)(I + V^T
    V)^(-1/2)`, of second order for the embedded metric; "cayley", `(I - W/2)^-1 (I + W/2) X`, of
    second order for the canonical one. There is no closed form for the logarithm, the distance and
    the parallel transport, which raise: vectors are transported by projection at the new point,
    which shortens them, and in the canonical metric is not parallel even to first order.

    Everything is matrix products and loops over columns, because LAPACK calls in lanes on a CPU can
    wait for each other (jaxlib 0.10.2).

    Args:
      metric: "embedded" or "canonical".
      retraction: "qf", "polar" or "cayley".

    Returns:
      The manifold.

    Raises:
      ValueError: for another metric or retraction.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} must be one of {METRICS}.")
    if retraction not in RETRACTIONS:
        raise ValueError(f"retraction={retraction!r} must be one of {RETRACTIONS}.")
    canonical = metric == "canonical"

    def inner_kept(x: Point, u: Tangent, v: Tangent) -> Float[Array, "... 1 1"]:
        whole = jnp.sum(u * v, axis=(-2, -1), keepdims=True)
        if not canonical:
            return whole
        return whole - jnp.sum((_t(x) @ u) * (_t(x) @ v), axis=(-2, -1), keepdims=True) / 2

    def tangent(x: Point, u: Array) -> Tangent:
        return u - x @ _symmetric(_t(x) @ u)

    def gradient(x: Point, g: Array) -> Tangent:
        return g - x @ (_t(g) @ x) if canonical else tangent(x, g)

    def exp_update(x: Point, v: Tangent) -> Array:
        return onto(x, (_canonical_exp if canonical else _embedded_exp)(x, v))

    def retract_update(x: Point, v: Tangent) -> Array:
        return onto(x, _RETRACTIONS[retraction](x, v))

    def acceleration(x: Point, v: Tangent) -> Tangent:
        # The second derivative of the retraction less that of the geodesic, both in the space
        # around: their difference is tangent, and the same for every connection. That of the
        # embedded geodesic is -X S, of the canonical one (I - X X^T) V A - X S: so Cayley's; of
        # the polar factor -X S; of Q, from R^T R = I + t^2 S, -2 X T, T + T^T = S.
        turned = _t(x) @ v
        gap = v @ turned - x @ (turned @ turned)
        if retraction == "qf":
            square = _t(v) @ v
            upper = jnp.triu(square, 1)
            return x @ (_t(upper) - upper) - (gap if canonical else 0)
        leaves = {"polar": 0, "cayley": 1}[retraction] - int(canonical)
        return leaves * gap

    def violation(x: Array) -> Float[Array, "..."]:
        gram = _t(x) @ x - identity_like(x)
        scale = 1e3 * x.shape[-1] * jnp.finfo(x.dtype).eps
        return jnp.max(jnp.abs(gram), axis=(-2, -1)) / scale

    def project(x: Array) -> Point:
        return x @ inverse_square_root(_t(x) @ x)

    def random(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Point:
        """Uniformly distributed: the Q of a normal matrix."""
        return orthonormal_columns(jax.random.normal(key, shape, dtype))

    def by_projection(x: Point, y: Point, v: Tangent) -> Tangent:
        return tangent(y, v)

    return Manifold(
        name=f"stiefel({metric})",
        point_ndim=2,
        inner=lambda x, u, v: inner_kept(x, u, v)[..., 0, 0],
        factor_inner=inner_kept,
        gradient=gradient,
        tangent=tangent,
        exp_update=exp_update,
        retract_update=retract_update,
        log=_no_closed_form("logarithm"),
        distance=_no_closed_form("distance"),
        parallel_transport=_no_closed_form("parallel transport"),
        vector_transport=by_projection,
        project=project,
        violation=violation,
        random=random,
        retraction_acceleration=acceleration,
        retraction=retraction,
    )


def onto(x: Point, update: Array) -> Array:
    """The update, with the columns at its end made orthonormal again, to first order in rounding.

    Args:
      x: points, matrices of orthonormal columns up to rounding.
      update: to others.

    Returns:
      The corrected update.
    """
    end = x + update
    gram = _t(end) @ end - identity_like(x)
    return update - end @ gram / 2


def _embedded_exp(x: Point, v: Tangent) -> Array:
    a, s = _t(x) @ v, _t(v) @ v
    p = x.shape[-1]
    one = identity_like(x)
    moved = exponential(jnp.block([[a, -s], [one, a]]))[..., :p]
    return jnp.concatenate([x, v], axis=-1) @ moved @ exponential(-a) - x


def _canonical_exp(x: Point, v: Tangent) -> Array:
    left, right = _generator(x, v)
    small = _t(right) @ left
    size, one = small.shape[-1], identity_like(small)
    # exp([[M, I], [0, 0]]) holds (e^M - I) / M beside e^M.
    whole = exponential(jnp.block([[small, one], [0 * small, 0 * small]]))
    return left @ whole[..., :size, size:] @ _t(right) @ x


def _generator(x: Point, v: Tangent) -> tuple[Array, Array]:
    """`(left, right)` with `W = left right^T`, the skew matrix whose flow leaves x along v."""
    turned = v - x @ (_t(x) @ v) / 2
    return jnp.concatenate([turned, x], axis=-1), jnp.concatenate([x, -turned], axis=-1)


def _qf(x: Point, v: Tangent) -> Array:
    return orthonormal_columns(x + v) - x


def _polar(x: Point, v: Tangent) -> Array:
    one = identity_like(x)
    root = inverse_square_root(one + _t(v) @ v)
    return v @ root + x @ (root - one)


def _cayley(x: Point, v: Tangent) -> Array:
    # (I - W/2)^-1 (I + W/2) X = X + left (I - right^T left / 2)^-1 right^T X.
    left, right = _generator(x, v)
    return left @ solve_skew(_t(right) @ left / 2, _t(right) @ x)


_RETRACTIONS: dict[str, Callable[[Point, Tangent], Array]] = {
    "qf": _qf,
    "polar": _polar,
    "cayley": _cayley,
}


def _no_closed_form(what: str) -> Callable[..., NoReturn]:
    def refuse(*arrays: Array) -> NoReturn:
        raise NotImplementedError(
            f"the Stiefel manifold's {what} has no closed form; use vector_transport, or a "
            "difference of points."
        )

    return refuse


def _t(matrix: Array) -> Array:
    return jnp.swapaxes(matrix, -1, -2)


def _symmetric(matrix: Array) -> Array:
    return (matrix + _t(matrix)) / 2
