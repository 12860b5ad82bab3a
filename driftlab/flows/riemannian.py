"""Flows on manifolds: of Riemannian gradient descent, of shuffled epochs, of Riemannian Adam.

All are in the papers' time: iteration n at learning rate h is time `t = n h`. With `g = grad f` the
Riemannian gradient, `|.|_x` the metric and nabla its connection, the time-h flow of a field X is
`exp_x(h X + (h^2 / 2) nabla_X X + O(h^3))`, and `2 nabla_g g = grad |g|^2`. So a step along the
geodesic follows the gradient flow of `f + (h / 4) |g|_x^2`: the formula of flat space with the
Riemannian norm; curvature does not enter at this order. A retraction that leaves the geodesic, with
the covariant acceleration `A_x(v, v)` of `t -> R_x(t v)`, adds `(h / 2) A_x(g, g)`, which in
general is no gradient.

The state of every flow here is the points themselves; fields are evaluated at the nearest point of
the manifold, so that a solver's error does not grow away from it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.batch_order import BatchLoss
from driftlab.flows.momentum_notation import combine
from driftlab.flows.vector_field import Flow, Loss, gradient_function
from driftlab.hyperparameters import check_decay, check_positive
from driftlab.manifolds import Manifolds, assign, check_points
from driftlab.manifolds.vectors import root
from driftlab.objective import Batch, Objective, Params, batch_length

METHODS = ("retraction", "exp")


def riemannian_gradient_flow(
    loss: Loss | Objective, manifolds: Manifolds, batch_size: int | None = None
) -> Flow:
    """Riemannian gradient flow, `dx/dt = -grad f(x)`.

    The limit h -> 0 of `driftlab.transforms.riemannian_sgd`, whatever its retraction, up to `O(h)`
    at a fixed time.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow; its state is the points. Its init raises ValueError for params that are not on
      their manifolds.

    Raises:
      TypeError: if loss is neither a function nor an objective; as `gradient_flow`.
      ValueError: as `gradient_flow`.

    Cost: one gradient an evaluation.
    """
    gradient = gradient_function(loss, batch_size)

    def field(kinds: Params, x: Params) -> Params:
        return combine((-1, _raised(kinds, x, gradient(x))))

    return _flow(field, manifolds)


def riemannian_descent_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    manifolds: Manifolds,
    momentum: ArrayLike | None = None,
    method: str = "retraction",
    batch_size: int | None = None,
) -> Flow:
    """The modified flow of Riemannian gradient descent, and of heavy ball, to order h^2.

    `driftlab.transforms.riemannian_sgd` with the same arguments follows, after a fixed time up to
    `O(h^2)`,

        dx/dt = -b g - (h / 4) (1 + m) b^3 grad |g|^2 + (h / 2) b^2 A_x(g, g),    b = 1 / (1 - m),

    where m is the momentum and A is 0 for `method="exp"` and for retractions of second order. For m
    = 0 it is `-grad(f + (h / 4) |g|^2) + (h / 2) A_x(g, g)`. A trace that starts at 0 makes
    the iterates lag for good, so the flow starts where those after the first come from, `exp_x(h m
    b^2 g)`; with `m_k = m T(m_{k-1}) + (1 - m) g_k` pass `learning_rate * (1 - m)`.

    With momentum the transport must be parallel to first order in the step. All of
    `driftlab.manifolds` are but `stiefel("canonical")`, whose transport by projection is that of
    the other metric: there the error is `O(h)`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h; may be traced.
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.
      momentum: m, in [0, 1); None for none.
      method: "retraction" or "exp", as the optimiser's.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow; its state is the points. Its init raises ValueError for params that are not on
      their manifolds.

    Raises:
      TypeError: as `riemannian_gradient_flow`.
      ValueError: if the learning rate is not positive, the momentum out of range, or for another
        method.

    Source: Gess, Kassing, Rana (2024), "Stochastic modified flows for Riemannian stochastic
    gradient descent", for retractions of second order; the term of the others and momentum are
    driftlab's own. Cost: one gradient and one Hessian-vector product an evaluation.
    """
    check_positive("learning_rate", learning_rate)
    _check_method(method)
    if momentum is not None:
        check_decay("momentum", momentum)
    gradient = gradient_function(loss, batch_size)
    m: Any = 0.0 if momentum is None else momentum
    h: Any = learning_rate
    gain = 1 / (1 - m)

    def field(kinds: Params, x: Params) -> Params:
        slope = gradient(x)
        g = _raised(kinds, x, slope)
        penalty = _raised(kinds, x, _square_gradient(kinds, gradient, x, slope))
        found = combine((-gain, g), (-h * (1 + m) * gain**3 / 4, penalty))
        if method == "exp":
            return found
        return combine((1, found), (h * gain**2 / 2, _acceleration(kinds, x, g)))

    def start(kinds: Params, x: Params) -> Params:
        if momentum is None:
            return x
        shift = combine((h * m * gain**2, _raised(kinds, x, gradient(x))))
        return jax.tree.map(lambda kind, x, v: kind.exp(x, v), kinds, x, shift)

    return _flow(field, manifolds, start)


def riemannian_shuffled_epoch_flow(
    loss: BatchLoss,
    batches: Batch,
    learning_rate: ArrayLike,
    manifolds: Manifolds,
    method: str = "retraction",
) -> Flow:
    """What an epoch of Riemannian SGD follows in the mean over all orders of its batches.

    For m batches with losses f_i, Riemannian gradients g_i and `f = (1/m) sum_i f_i`,

        dx/dt = -grad(f + (h / (4 m)) sum_i |g_i|^2) + (h / (2 m)) sum_i A_x(g_i, g_i).

    After time m h it is the mean of the epoch's end over all m! orders up to `O(h^3)`: what the
    orders differ by, the brackets of pairs of batches, cancels.

    Args:
      loss: `loss(params, batch) -> scalar`.
      batches: the batches: a pytree whose leaves have a leading axis of length m
        (`split_batches`).
      learning_rate: h; may be traced.
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.
      method: "retraction" or "exp", as the optimiser's.

    Returns:
      The flow; its state is the points. Its init raises ValueError for params that are not on
      their manifolds.

    Raises:
      ValueError: if the leaves of batches share no leading axis, the learning rate is not
        positive, or for another method.

    Source: as `shuffled_epoch_loss`, in the Riemannian norm. Cost: m gradients and Hessian-vector
    products of a batch an evaluation.
    """
    check_positive("learning_rate", learning_rate)
    _check_method(method)
    if batch_length(batches, "batches") < 1:
        raise ValueError("batches hold no batch: give a pytree with one leading axis of batches.")
    h: Any = learning_rate

    def field(kinds: Params, x: Params) -> Params:
        def one(batch: Batch) -> Params:
            gradient = jax.grad(lambda x: loss(x, batch))
            slope = gradient(x)
            g = _raised(kinds, x, slope)
            penalty = _raised(kinds, x, _square_gradient(kinds, gradient, x, slope))
            found = combine((-1, g), (-h / 4, penalty))
            if method == "exp":
                return found
            return combine((1, found), (h / 2, _acceleration(kinds, x, g)))

        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.lax.map(one, batches))

    return _flow(field, manifolds)


def riemannian_adam_flow(
    loss: Loss | Objective,
    manifolds: Manifolds,
    eps: ArrayLike = 1e-8,
    batch_size: int | None = None,
) -> Flow:
    """The flow of Riemannian Adam at fixed decays, `dx^i/dt = -g^i / (|g^i|_x + eps)`.

    i counts factors: points of a curved leaf, numbers of a Euclidean one. At a fixed time the
    bias-corrected `driftlab.transforms.riemannian_adam` is there up to `O(h)`, whatever b1 and b2,
    exp or retraction. Every factor moves with speed 1, so that near a minimum, where the iterates
    jump to and fro by h, the flow is as stiff as `1 / eps`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.
      eps: as the optimiser's, positive.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow; its state is the points. Its init raises ValueError for params that are not on
      their manifolds.

    Raises:
      TypeError: as `riemannian_gradient_flow`.
      ValueError: if eps is not positive; as `riemannian_gradient_flow`.

    Source: the limit of Becigneul, Ganea (2019), figure 1a; driftlab's own. Cost: one gradient an
    evaluation.
    """
    check_positive("eps", eps)
    gradient = gradient_function(loss, batch_size)

    def field(kinds: Params, x: Params) -> Params:
        def normalized(kind: Any, x: Array, g: Array) -> Array:
            square = jnp.maximum(kind.factor_inner(x, g, g), 0)
            return -g / (root(square) + jnp.asarray(eps, g.dtype))

        return jax.tree.map(normalized, kinds, x, _raised(kinds, x, gradient(x)))

    return _flow(field, manifolds)


def _flow(
    field: Callable[[Params, Params], Params],
    manifolds: Manifolds,
    start: Callable[[Params, Params], Params] = lambda kinds, x: x,
) -> Flow:
    """The flow of `field(kinds, x)`, taken at the nearest point of the manifold."""

    def on(y: Params) -> tuple[Params, Params]:
        kinds = assign(manifolds, y)
        return kinds, jax.tree.map(lambda kind, leaf: kind.project(leaf), kinds, y)

    def of_state(t: Any, y: Params, args: Any) -> Params:
        del t, args
        return field(*on(y))

    def init(params: Params) -> Params:
        params = jax.tree.map(jnp.asarray, params)
        check_points(manifolds, params)
        return start(assign(manifolds, params), params)

    return Flow(of_state, init, lambda y: on(y)[1])


def _raised(kinds: Params, x: Params, slope: Params) -> Params:
    """The Riemannian gradient that belongs to partial derivatives."""
    return jax.tree.map(lambda kind, x, g: kind.gradient(x, g), kinds, x, slope)


def _acceleration(kinds: Params, x: Params, v: Params) -> Params:
    return jax.tree.map(lambda kind, x, v: kind.retraction_acceleration(x, v), kinds, x, v)


def _square_gradient(
    kinds: Params, gradient: Callable[[Params], Params], x: Params, slope: Params
) -> Params:
    """The partial derivatives of `|grad f|_x^2`.

    By the chain rule through the metric and through f's partial derivatives, whose Jacobian is
    symmetric: one Hessian-vector product, forward over reverse.
    """

    def square(x: Params, slope: Params) -> Float[Array, ""]:
        g = _raised(kinds, x, slope)
        parts = jax.tree.map(lambda kind, *uv: jnp.sum(kind.inner(*uv)), kinds, x, g, g)
        return jax.tree.reduce(jnp.add, parts)

    through_metric, direction = jax.grad(square, argnums=(0, 1))(x, slope)
    curved = jax.jvp(gradient, (x,), (direction,))[1]
    return combine((1, through_metric), (1, curved))


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}, as the optimiser's.")
