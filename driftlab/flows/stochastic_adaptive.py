"""Stochastic differential equations of RMSProp and Adam, for gradients that are mostly noise.

In the papers' time: at learning rate h, iteration n is time `t = n h^2`, for the steps of a method
that divides by the size of its noise add up like a random walk's. Write `c_i = (1 - b_i) / h^2`,
`sigma = 1 / sqrt(B)` for batches of B, `sigma_0 = sigma h`, `eps_0 = eps h`, and `u = v / sigma^2`
for the running mean v of squared gradients. The equations are of weak order 1 in h^2 as h falls
with c_i, sigma_0 and eps_0 held fixed: the noise sigma then grows like 1 / h.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.solve import time_dtype
from driftlab.flows.stochastic import (
    ITO,
    StochasticFlow,
    covariance_factor,
    independent_batch_size,
    noise_operator,
)
from driftlab.hyperparameters import check_positive
from driftlab.objective import Objective, Params

if TYPE_CHECKING:
    import lineax


class AdaptiveState(NamedTuple):
    """The state of both equations.

    Attributes:
      params: X.
      mean: m, the running mean of gradients; `()` for RMSProp.
      squares: u, the running mean of squared gradients over sigma^2: that of one example's.
      age: the time since the optimiser began, which its bias correction needs; `()` for RMSProp.
    """

    params: Params
    mean: PyTree
    squares: Params
    age: Any


def rmsprop_sde(
    objective: Objective,
    learning_rate: ArrayLike,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    *,
    batch_size: int | None = None,
    mean_in_squares: bool = False,
    micro_batch_size: int | None = None,
) -> StochasticFlow:
    """The equation of `optax.rmsprop(learning_rate, decay, eps, eps_in_sqrt=False)`.

    `dX = -P^(-1) (grad f dt + sigma_0 Sigma^(1/2) dW)`, `du = c_2 (diag Sigma - u) dt`,
    `P = sigma_0 diag(u)^(1/2) + eps_0`, in Ito's sense, Sigma the covariance of one example's
    gradient.

    Args:
      objective: its loss is a mean over the batch's examples.
      learning_rate: h; may be traced, as decay and eps.
      decay: b_2, between 0 and 1.
      eps: added to the root; 0 or more.
      batch_size: B; None for that of the objective's own sampling with replacement.
      mean_in_squares: whether `(grad f)^2 / sigma^2` is added to `diag Sigma`, as it is to the
        mean of a squared gradient. The published equation leaves it out: it vanishes in the limit.
      micro_batch_size: per-example gradients held at once; None for 32.

    Returns:
      The equation. `init(params, opt_state)` takes the optimiser's state after an iteration or
      more: at its start v = 0, where the equation's P is eps_0 alone.

    Raises:
      ValueError: if a hyper-parameter is out of range, or the batch size is not known; from
        `init`, if the state is not RMSProp's.

    Source: Malladi, Lyu, Panigrahi & Arora, On the SDEs and scaling rules for adaptive gradient
    algorithms, 2022, definition 4.1. Cost of the drift: 2 gradients and n per-example ones. Of the
    diffusion: 1 gradient.
    """
    check_positive("learning_rate", learning_rate)
    _check_decays(decay=decay)
    _check_eps(eps)
    size = independent_batch_size(objective, batch_size)

    def init(params: Params, opt_state: Any) -> AdaptiveState:
        found = _memory(opt_state, ("nu",), "optax.rmsprop")
        return AdaptiveState(params, (), _scaled(found.nu, size), ())

    def divide(y: AdaptiveState, tree: Params) -> Params:
        h, scale, small = _like(y, learning_rate), _like(y, size) ** -0.5, _like(y, eps)
        return jax.tree.map(
            lambda top, u: -top / (h * scale * jnp.sqrt(u) + h * small), tree, y.squares
        )

    def drift(t: Any, y: AdaptiveState, args: Any) -> AdaptiveState:
        del t, args
        mean, second = _moments(objective, y.params, size, mean_in_squares, micro_batch_size)
        rate = (1 - _like(y, decay)) / _like(y, learning_rate) ** 2
        squares = jax.tree.map(lambda s, u: rate * (s - u), second, y.squares)
        return AdaptiveState(divide(y, mean), (), squares, ())

    def diffusion(t: Any, y: AdaptiveState, args: Any) -> "lineax.AbstractLinearOperator":
        del t, args

        def product(noise: Float[Array, " n"]) -> AdaptiveState:
            scale = _like(y, learning_rate) * _like(y, size) ** -0.5
            kicked = covariance_factor(objective, y.params, scale * noise)
            still = jax.tree.map(jnp.zeros_like, y)
            return still._replace(params=divide(y, kicked))

        return noise_operator(product, y, objective.size)

    return _flow(drift, diffusion, objective, learning_rate, init)


def adam_sde(
    objective: Objective,
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    batch_size: int | None = None,
    mean_in_squares: bool = False,
    micro_batch_size: int | None = None,
) -> StochasticFlow:
    """The equation of `optax.adam(learning_rate, b1, b2, eps)`.

    `dX = -(sqrt(gamma_2) / gamma_1) P^(-1) m dt`,
    `dm = c_1 (grad f - m) dt + sigma_0 c_1 Sigma^(1/2) dW`, `du = c_2 (diag Sigma - u) dt`,
    `P = sigma_0 diag(u)^(1/2) + eps_0 sqrt(gamma_2)`, `gamma_i = 1 - exp(-c_i t)` with t the time
    since Adam's start, which is the state's `age`; in Ito's sense.

    Args:
      objective: its loss is a mean over the batch's examples.
      learning_rate: h; may be traced, as b1, b2 and eps.
      b1: of the mean, between 0 and 1.
      b2: of the squares, between 0 and 1.
      eps: added to the root; 0 or more.
      batch_size: B; None for that of the objective's own sampling with replacement.
      mean_in_squares: as in `rmsprop_sde`.
      micro_batch_size: per-example gradients held at once; None for 32.

    Returns:
      The equation. `init(params, opt_state)` takes the optimiser's state after an iteration or
      more: at Adam's start the corrections are 0 / 0.

    Raises:
      ValueError: as in `rmsprop_sde`.

    Source: Malladi et al. 2022, definition 4.4; the factor of eps_0 follows from where Adam adds
    eps, to the corrected root. Cost: that of `rmsprop_sde`.
    """
    check_positive("learning_rate", learning_rate)
    _check_decays(b1=b1, b2=b2)
    _check_eps(eps)
    size = independent_batch_size(objective, batch_size)

    def init(params: Params, opt_state: Any) -> AdaptiveState:
        found = _memory(opt_state, ("mu", "nu", "count"), "optax.adam")
        if not isinstance(found.count, Tracer) and not (np.asarray(found.count) > 0).all():
            raise ValueError(
                "opt_state is Adam's at its start, where the bias correction of this equation is "
                "0 / 0. Take an iteration or more with the optimiser, and start there."
            )
        clock = time_dtype(params)
        age = jnp.asarray(found.count, clock) * jnp.asarray(learning_rate, clock) ** 2
        return AdaptiveState(params, found.mu, _scaled(found.nu, size), age)

    def rates(y: AdaptiveState) -> tuple[Array, Array]:
        h = _like(y, learning_rate)
        return (1 - _like(y, b1)) / h**2, (1 - _like(y, b2)) / h**2

    def drift(t: Any, y: AdaptiveState, args: Any) -> AdaptiveState:
        del t, args
        mean, second = _moments(objective, y.params, size, mean_in_squares, micro_batch_size)
        c1, c2 = rates(y)
        h, scale, small = _like(y, learning_rate), _like(y, size) ** -0.5, _like(y, eps)
        corrected1, corrected2 = -jnp.expm1(-c1 * y.age), jnp.sqrt(-jnp.expm1(-c2 * y.age))

        def step(m: Array, u: Array) -> Array:
            below = h * scale * jnp.sqrt(u) + h * small * corrected2
            return -corrected2 / corrected1 * m / below

        return AdaptiveState(
            jax.tree.map(step, y.mean, y.squares),
            jax.tree.map(lambda g, m: c1 * (g - m), mean, y.mean),
            jax.tree.map(lambda s, u: c2 * (s - u), second, y.squares),
            jnp.ones_like(y.age),
        )

    def diffusion(t: Any, y: AdaptiveState, args: Any) -> "lineax.AbstractLinearOperator":
        del t, args

        def product(noise: Float[Array, " n"]) -> AdaptiveState:
            scale = rates(y)[0] * _like(y, learning_rate) * _like(y, size) ** -0.5
            kicked = covariance_factor(objective, y.params, scale * noise)
            still = jax.tree.map(jnp.zeros_like, y)
            return still._replace(mean=kicked)

        return noise_operator(product, y, objective.size)

    return _flow(drift, diffusion, objective, learning_rate, init)


def square_root_scaling(
    factor: float, learning_rate: float, decays: Sequence[float], eps: float
) -> tuple[float, tuple[float, ...], float]:
    """The hyper-parameters that keep an adaptive method's law when the batch is scaled.

    `h -> sqrt(k) h`, `1 - b -> k (1 - b)`, `eps -> eps / sqrt(k)` for k times the batch: c_i,
    sigma_0 and eps_0 of the equations stay what they are, and so does the law at a time
    `n h^2`, that is, after k times fewer iterations.

    Args:
      factor: k, positive: the new batch size over the old one.
      learning_rate: h.
      decays: b_1 and b_2, or RMSProp's one; of RMSProp and Adam alike.
      eps: added to the root.

    Returns:
      `(learning_rate, decays, eps)`.

    Raises:
      ValueError: if the factor is not positive, or a decay would fall below 0.

    Source: Malladi et al. 2022, definitions 5.1 and 5.2.
    """
    check_positive("factor", factor)
    scaled = tuple(1 - factor * (1 - decay) for decay in decays)
    for before, after in zip(decays, scaled, strict=True):
        if after < 0:
            raise ValueError(
                f"factor={factor} takes the decay {before} to {after:.4g}, below 0: the rule goes "
                f"no further than a factor of {1 / (1 - before):.4g} here."
            )
    return factor**0.5 * learning_rate, scaled, eps / factor**0.5


def _flow(
    drift: Callable,
    diffusion: Callable,
    objective: Objective,
    learning_rate: ArrayLike,
    init: Callable,
) -> StochasticFlow:
    step_time = jnp.square(learning_rate) if isinstance(learning_rate, Tracer) else (
        learning_rate**2
    )  # fmt: skip
    return StochasticFlow(
        drift, diffusion, objective.size, step_time, ITO, init, lambda y: y.params
    )


def _moments(
    objective: Objective, params: Params, size: int, mean_in_squares: bool, micro: int | None
) -> tuple[Params, Params]:
    """The gradient, and what u tends to."""
    from driftlab.curvature.per_example import gradient_moments

    moments = gradient_moments(
        lambda p, batch: objective.value(p, batch)[0],
        params,
        objective.data,
        micro,
        per_coordinate=True,
    )
    variance = moments.variance
    if mean_in_squares:
        variance = jax.tree.map(lambda s, g: s + size * jnp.square(g), variance, moments.mean)
    return moments.mean, variance


def _scaled(nu: Params, size: int) -> Params:
    return jax.tree.map(lambda v: v * jnp.asarray(size, v.dtype), nu)


def _like(y: AdaptiveState, value: ArrayLike) -> Array:
    """A hyper-parameter in the state's precision, which it must not raise."""
    return jnp.asarray(value, time_dtype(y.params))


def _memory(opt_state: Any, names: Sequence[str], wanted: str) -> Any:
    def holds(node: Any) -> bool:
        return all(hasattr(node, name) for name in names)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=holds) if holds(node)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state must be the state of {wanted}, with one part that holds "
            f"{', '.join(names)}; found {len(found)}."
        )
    return found[0]


def _check_decays(**decays: Any) -> None:
    for name, decay in decays.items():
        if jnp.shape(decay) != ():
            raise ValueError(f"{name} must be a scalar; got shape {jnp.shape(decay)}.")
        if not isinstance(decay, Tracer) and not 0 <= float(decay) < 1:
            raise ValueError(f"{name}={float(decay)} must be at least 0 and below 1.")


def _check_eps(eps: Any) -> None:
    if not isinstance(eps, Tracer) and not float(eps) >= 0:
        raise ValueError(f"eps={float(eps)} must be 0 or more.")
