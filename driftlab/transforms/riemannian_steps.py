"""The parts of Riemannian optimisers: to the gradient, momentum, clipping, and onto the manifold.

A chain reads `riemannian_gradient`, whatever scales tangent vectors (momentum, second moments,
clipping, learning rates and their schedules), and last `retract`, whose update ends on the manifold
once `optax.apply_updates` has added it. What is linear in the parameters themselves, before or
after, has no meaning on a curved leaf: weight decay, averages of parameters, lookahead,
schedule-free. Averages of gradients at one point (`optax.MultiSteps`) have one.

Source: Bonnabel (2013), "Stochastic gradient descent on Riemannian manifolds"; Becigneul, Ganea
(2019), "Riemannian adaptive optimization methods", section 3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from driftlab.hyperparameters import check_positive
from driftlab.manifolds import Manifolds, assign, check_points, inner
from driftlab.objective import Params

METHODS = ("retraction", "exp")


class RiemannianTraceState(NamedTuple):
    """What `riemannian_trace` remembers.

    Attributes:
      trace: the accumulated gradients, tangent at `params`.
      params: where the last gradient was taken.
    """

    trace: Params
    params: Params


def riemannian_gradient(manifolds: Manifolds) -> optax.GradientTransformation:
    """The Riemannian gradient from partial derivatives: first in a chain.

    Args:
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.

    Returns:
      The transformation; its update needs params. Its init raises ValueError for params that are
      not on their manifolds.
    """

    def init(params: Params) -> optax.EmptyState:
        check_points(manifolds, params)
        return optax.EmptyState()

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        params = _given(params, "riemannian_gradient")
        kinds = assign(manifolds, params)
        return jax.tree.map(lambda m, x, g: m.gradient(x, g), kinds, params, updates), state

    return optax.GradientTransformation(init, update)


def riemannian_trace(
    decay: ArrayLike, manifolds: Manifolds, nesterov: bool = False
) -> optax.GradientTransformation:
    """Momentum that is carried along: `m_k = decay T(m_{k-1}) + g_k`, T from x_{k-1} to x_k.

    T is the manifold's vector transport, parallel where that is known in closed form. Between the
    points of two iterations it is the transport along the step, on a sphere for steps shorter than
    pi.

    Args:
      decay: of the momentum.
      manifolds: as in `riemannian_gradient`.
      nesterov: returns `decay m_k + g_k` instead, as `optax.trace` does.

    Returns:
      The transformation; its update needs params.
    """

    def init(params: Params) -> RiemannianTraceState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return RiemannianTraceState(zero, jax.tree.map(jnp.array, params))

    def update(
        updates: Params, state: Any, params: Params | None = None
    ) -> tuple[Params, RiemannianTraceState]:
        params = _given(params, "riemannian_trace")
        kinds = assign(manifolds, params)
        carried = transported(kinds, state.params, params, state.trace)
        trace = jax.tree.map(lambda m, g: _scaled(decay, m) + g, carried, updates)
        if nesterov:
            updates = jax.tree.map(lambda m, g: _scaled(decay, m) + g, trace, updates)
        else:
            updates = trace
        return updates, RiemannianTraceState(trace, params)

    return optax.GradientTransformation(init, update)


def clip_by_riemannian_norm(
    max_norm: ArrayLike, manifolds: Manifolds, per_factor: bool = False
) -> optax.GradientTransformation:
    """Shortens tangent vectors that are longer than `max_norm` in the metric at the parameters.

    Args:
      max_norm: the longest that passes, positive.
      manifolds: as in `riemannian_gradient`.
      per_factor: every factor (point) by itself; otherwise the whole tree.

    Returns:
      The transformation, to be placed before `retract`; its update needs params.

    Raises:
      ValueError: if max_norm is not positive.
    """
    check_positive("max_norm", max_norm)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        params = _given(params, "clip_by_riemannian_norm")
        kinds = assign(manifolds, params)
        if per_factor:
            squares = jax.tree.map(lambda m, x, u: m.factor_inner(x, u, u), kinds, params, updates)
        else:
            total = inner(manifolds, params, updates, updates)
            squares = jax.tree.map(lambda u: total, updates)
        return jax.tree.map(shortened, updates, squares), state

    def shortened(u: Array, square: Array) -> Array:
        norm = jnp.sqrt(jnp.maximum(square, 0)).astype(u.dtype)
        limit = jnp.asarray(max_norm, u.dtype)
        return u * (limit / jnp.maximum(norm, limit))

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def retract(manifolds: Manifolds, method: str = "retraction") -> optax.GradientTransformation:
    """From a tangent vector to the move it makes on the manifold: last in a chain.

    The update is `R_x(v) - x` itself, without the cancellation of that difference: sums end on the
    manifold up to the rounding of the addition.

    Args:
      manifolds: as in `riemannian_gradient`.
      method: "retraction", the manifold's; or "exp", along the geodesic.

    Returns:
      The transformation; its update needs params. Nothing may scale, average or clip after it.

    Raises:
      ValueError: for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}.")

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        params = _given(params, "retract")
        kinds = assign(manifolds, params)
        moves = jax.tree.map(
            lambda m, x, v: (m.exp_update if method == "exp" else m.retract_update)(
                # A learning rate in float64 makes float32 updates float64.
                x,
                jnp.asarray(v, x.dtype),
            ),
            kinds,
            params,
            updates,
        )
        return moves, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def transported(kinds: Params, start: Params, end: Params, vectors: Params) -> Params:
    """Tangent vectors of one iteration's point at the next one's.

    Args:
      kinds: the manifold of each leaf.
      start: where the vectors are tangent.
      end: where they are wanted.
      vectors: tangent vectors at start.

    Returns:
      Tangent vectors at end.
    """
    return jax.tree.map(lambda m, *arrays: m.vector_transport(*arrays), kinds, start, end, vectors)


def _scaled(factor: ArrayLike, leaf: Array) -> Float[Array, "..."]:
    return jnp.asarray(factor, leaf.dtype) * leaf


def _given(params: Params | None, name: str) -> Params:
    if params is None:
        raise ValueError(f"{name} needs params: call update(grads, state, params).")
    return params
