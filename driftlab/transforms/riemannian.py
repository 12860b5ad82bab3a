"""Riemannian SGD, Adagrad, Adam and AMSGrad.

Source: Becigneul, Ganea (2019), "Riemannian adaptive optimization methods", section 3 and figure
1a; Bonnabel (2013), "Stochastic gradient descent on Riemannian manifolds".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int

from driftlab.manifolds import Manifolds, assign
from driftlab.objective import Params
from driftlab.transforms.riemannian_steps import (
    retract,
    riemannian_gradient,
    riemannian_trace,
    transported,
)

AMSGRAD = ("paper", "torch", "optax")
Decay = ArrayLike | Callable[[Array], Array]


class ScaleByRiemannianAdamState(NamedTuple):
    """What `scale_by_riemannian_adam` remembers.

    Attributes:
      count: the iterations done.
      mu: the first moment, tangent at `params`.
      nu: the second moment, one number a factor.
      nu_max: its largest value so far; None without AMSGrad.
      params: where the last gradient was taken.
    """

    count: Int[Array, ""]
    mu: Params
    nu: Params
    nu_max: Any
    params: Params


class ScaleByRiemannianAdagradState(NamedTuple):
    """What `scale_by_riemannian_adagrad` remembers.

    Attributes:
      sum_of_squares: of the gradients' lengths, one number a factor.
    """

    sum_of_squares: Params


def scale_by_riemannian_adam(
    manifolds: Manifolds,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    bias_correction: bool = True,
    amsgrad: str | None = None,
) -> optax.GradientTransformation:
    """Divides the transported first moment by the root of the second, one number a factor.

    `m_t = b1 T(m_{t-1}) + (1 - b1) g_t`, `v_t = b2 v_{t-1} + (1 - b2) |g_t|^2` in the metric at
    x_t, update `m_t / (sqrt(v_t) + eps)`; T transports from x_{t-1} to x_t, v is a scalar and needs
    none. On Euclidean leaves it is `optax.scale_by_adam`.

    Args:
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.
      b1: decay of the first moment; a number, a traced array or a function of t = 1, 2, ...
      b2: decay of the second, likewise.
      eps: added to the root; 0 as published, 1e-8 as in optax.
      bias_correction: divides by `1 - b1^t` and `1 - b2^t`; the paper does not.
      amsgrad: None for Adam; "paper", the largest v, without any bias correction; "torch", the
        largest v, then corrected, as torch and geoopt have it; "optax", v corrected first.

    Returns:
      The transformation, between `riemannian_gradient` and `retract`; its update needs params.

    Raises:
      ValueError: for another amsgrad, or decays that vary in t with bias correction.
    """
    if amsgrad is not None and amsgrad not in AMSGRAD:
        raise ValueError(f"amsgrad={amsgrad!r} must be None or one of {AMSGRAD}.")
    corrected = bias_correction and amsgrad != "paper"
    if corrected and (callable(b1) or callable(b2)):
        raise ValueError(
            "bias_correction=True needs constant b1 and b2: 1 - b^t is the weight of the start for "
            "those only. Pass bias_correction=False; for AMSGrad take the convention 'paper'."
        )

    def init(params: Params) -> ScaleByRiemannianAdamState:
        kinds = assign(manifolds, params)
        nu = jax.tree.map(lambda m, x: 0 * m.factor_inner(x, 0 * x, 0 * x), kinds, params)
        return ScaleByRiemannianAdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            nu,
            None if amsgrad is None else jax.tree.map(jnp.array, nu),
            jax.tree.map(jnp.array, params),
        )

    def update(
        updates: Params, state: Any, params: Params | None = None
    ) -> tuple[Params, ScaleByRiemannianAdamState]:
        if params is None:
            raise ValueError("scale_by_riemannian_adam needs params: update(grads, state, params).")
        kinds = assign(manifolds, params)
        count = jnp.asarray(optax.safe_increment(state.count))

        def averaged(decay: Decay, old: Array, new: Array) -> Array:
            # A real t: 1 / t of an int32 would be in single precision under x64 as well. Half
            # precision rounds 0.999 to 1.
            precision = jnp.promote_types(old.dtype, jnp.float32)
            t = count.astype(precision)
            value = jnp.asarray(decay(t) if callable(decay) else decay, precision)
            return (value * old + (1 - value) * new).astype(old.dtype)

        def debiased(decay: Any, average: Array) -> Array:
            if not corrected:
                return average
            precision = jnp.promote_types(average.dtype, jnp.float32)
            power = jnp.asarray(decay, precision) ** count.astype(precision)
            return (average / (1 - power)).astype(average.dtype)

        squares = squared_lengths(kinds, params, updates)
        carried = transported(kinds, state.params, params, state.mu)
        mu = jax.tree.map(lambda old, new: averaged(b1, old, new), carried, updates)
        nu = jax.tree.map(lambda old, new: averaged(b2, old, new), state.nu, squares)
        nu_max = state.nu_max
        if amsgrad == "optax":
            nu_max = jax.tree.map(lambda old, v: jnp.maximum(old, debiased(b2, v)), nu_max, nu)
            second = nu_max
        elif amsgrad is not None:
            nu_max = jax.tree.map(jnp.maximum, nu_max, nu)
            second = jax.tree.map(lambda v: debiased(b2, v), nu_max)
        else:
            second = jax.tree.map(lambda v: debiased(b2, v), nu)
        first = jax.tree.map(lambda m: debiased(b1, m), mu)
        scaled = jax.tree.map(lambda m, v: divided(m, v, eps), first, second)
        return scaled, ScaleByRiemannianAdamState(count, mu, nu, nu_max, params)

    return optax.GradientTransformation(init, update)


def scale_by_riemannian_adagrad(
    manifolds: Manifolds, eps: ArrayLike = 0.0
) -> optax.GradientTransformation:
    """Divides the gradient by the root of the sum of squared lengths, one number a factor.

    Args:
      manifolds: as in `scale_by_riemannian_adam`.
      eps: added to the root; 0 as published.

    Returns:
      The transformation, between `riemannian_gradient` and `retract`; its update needs params.
    """

    def init(params: Params) -> ScaleByRiemannianAdagradState:
        kinds = assign(manifolds, params)
        return ScaleByRiemannianAdagradState(
            jax.tree.map(lambda m, x: 0 * m.factor_inner(x, 0 * x, 0 * x), kinds, params)
        )

    def update(
        updates: Params, state: Any, params: Params | None = None
    ) -> tuple[Params, ScaleByRiemannianAdagradState]:
        if params is None:
            raise ValueError("scale_by_riemannian_adagrad needs params: update(g, state, params).")
        squares = squared_lengths(assign(manifolds, params), params, updates)
        total = jax.tree.map(jnp.add, state.sum_of_squares, squares)
        scaled = jax.tree.map(lambda g, s: divided(g, s, eps), updates, total)
        return scaled, ScaleByRiemannianAdagradState(total)

    return optax.GradientTransformation(init, update)


def riemannian_sgd(
    learning_rate: ArrayLike | optax.Schedule,
    manifolds: Manifolds,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    method: str = "retraction",
) -> optax.GradientTransformation:
    """Riemannian gradient descent: `x_{k+1} = R_x(-learning_rate m_k)`.

    `m_k = momentum T(m_{k-1}) + g_k`; the start of m is 0.

    Args:
      learning_rate: a number, a traced array or a schedule.
      manifolds: one for all leaves, or path -> manifold; see `driftlab.manifolds.assign`.
      momentum: decay of the accumulated gradients; None for none.
      nesterov: whether momentum is Nesterov's.
      method: "retraction" or "exp".

    Returns:
      The optimiser; its update needs params.
    """
    trace = [] if momentum is None else [riemannian_trace(momentum, manifolds, nesterov)]
    return _optimizer(manifolds, learning_rate, method, *trace)


def riemannian_adagrad(
    learning_rate: ArrayLike | optax.Schedule,
    manifolds: Manifolds,
    eps: ArrayLike = 0.0,
    method: str = "retraction",
) -> optax.GradientTransformation:
    """Riemannian Adagrad, `x^i <- R(-learning_rate g^i / sqrt(sum |g^i|^2))` for each factor i.

    Args:
      learning_rate: a number, a traced array or a schedule.
      manifolds: as in `riemannian_sgd`.
      eps: added to the root; 0 as published.
      method: "retraction" or "exp".

    Returns:
      The optimiser; its update needs params.
    """
    return _optimizer(manifolds, learning_rate, method, scale_by_riemannian_adagrad(manifolds, eps))


def riemannian_adam(
    learning_rate: ArrayLike | optax.Schedule,
    manifolds: Manifolds,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    bias_correction: bool = True,
    method: str = "retraction",
) -> optax.GradientTransformation:
    """Riemannian Adam; with the defaults `optax.adam` on Euclidean leaves.

    As published with `bias_correction=False, eps=0`; the paper's RAdamNc besides with `b1=lambda
    t: 0.9 * decay ** (t - 1)`, `b2=lambda t: 1 - 1 / t` and a learning rate over sqrt(t).

    Args:
      learning_rate: a number, a traced array or a schedule.
      manifolds: as in `riemannian_sgd`.
      b1: decay of the first moment.
      b2: decay of the second.
      eps: added to the root of the second moment.
      bias_correction: see `scale_by_riemannian_adam`.
      method: "retraction" or "exp".

    Returns:
      The optimiser; its update needs params.
    """
    moments = scale_by_riemannian_adam(manifolds, b1, b2, eps, bias_correction=bias_correction)
    return _optimizer(manifolds, learning_rate, method, moments)


def riemannian_amsgrad(
    learning_rate: ArrayLike | optax.Schedule,
    manifolds: Manifolds,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    convention: str = "paper",
    method: str = "retraction",
) -> optax.GradientTransformation:
    """Riemannian AMSGrad, whose second moment never falls.

    Three conventions are in use, and differ visibly: see `scale_by_riemannian_adam`.

    Args:
      learning_rate: a number, a traced array or a schedule.
      manifolds: as in `riemannian_sgd`.
      b1: decay of the first moment.
      b2: decay of the second.
      eps: added to the root of the second moment.
      convention: "paper", "torch" or "optax".
      method: "retraction" or "exp".

    Returns:
      The optimiser; its update needs params.

    Raises:
      ValueError: for another convention; as `scale_by_riemannian_adam`.
    """
    if convention not in AMSGRAD:
        raise ValueError(f"convention={convention!r} must be one of {AMSGRAD}.")
    moments = scale_by_riemannian_adam(manifolds, b1, b2, eps, amsgrad=convention)
    return _optimizer(manifolds, learning_rate, method, moments)


def squared_lengths(kinds: Params, params: Params, vectors: Params) -> Params:
    """`|v|_x^2`, one number a factor, at least 0.

    Args:
      kinds: the manifold of each leaf.
      params: x.
      vectors: tangent vectors there.

    Returns:
      Arrays that broadcast against the leaves.
    """
    return jax.tree.map(
        lambda m, x, v: jnp.maximum(m.factor_inner(x, v, v), 0), kinds, params, vectors
    )


def divided(vector: Array, square: Array, eps: ArrayLike) -> Array:
    """`vector / (sqrt(square) + eps)`, 0 where both are 0.

    Args:
      vector: of the leaf's shape.
      square: that broadcasts against it.
      eps: in the vector's unit.

    Returns:
      The quotient.
    """
    below = jnp.sqrt(square) + jnp.asarray(eps, vector.dtype)
    return vector / jnp.where(below == 0, 1, below)


def _optimizer(
    manifolds: Manifolds,
    learning_rate: ArrayLike | optax.Schedule,
    method: str,
    *scales: optax.GradientTransformation,
) -> optax.GradientTransformation:
    return optax.chain(
        riemannian_gradient(manifolds),
        *scales,
        optax.scale_by_learning_rate(learning_rate),  # type: ignore[arg-type]
        retract(manifolds, method),
    )
