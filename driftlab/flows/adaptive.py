"""Modified flows of RMSProp and Adam without their memory, to second order.

In the papers' time: iteration n at learning rate h is time `t = n h`, so that `step_time` is h.
(In iteration time, t = n, the field is h times as large.) b is the decay of the first moment, r
that of the second, g the gradient, H the Hessian. With

    Q = sqrt(g^2 + eps_root),    R = Q + eps,    N = H (g / R),

all operations but `H` element by element, the memory adds to the sign-like leading term -g / R

    -h N [ B / R - P g^2 / (Q R^2) ]

with the lags of `memory_lag`, `B = b / (1 - b)` and `P = r / (1 - r)` in the long run, and Euler's
method -h/2 times the field's derivative along itself. For `eps = 0` the correction is that of a
perturbed one-norm, `N = grad sum_j sqrt(g_j^2 + eps_root)`: with r > b and a small eps_root, Adam
seeks *larger* gradients in that norm; with a large one it is like gradient descent with momentum b.

The formulas hold where `h |N| r / (1 - r)` is well below R in every parameter. With the default
b2 = 0.999 and eps = 1e-8 that is not so on a network: there the memory must stay in the state.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.momentum import hessian_product
from driftlab.flows.vector_field import Field, Loss, gradient_function
from driftlab.hyperparameters import check_decay, check_positive
from driftlab.objective import Objective, Params


def adam_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    stationary: bool = False,
    batch_size: int | None = None,
) -> Field:
    """The modified flow of Adam, `optax.adam(learning_rate, b1, b2, eps, eps_root)`.

        dy/dt = -g / R - h N [ B / R - P g^2 / (Q R^2) + (1 / R - g^2 / (Q R^2)) / 2 ]

    With eps = 0, eps inside the root, that is

        -[ g / R + (h / (2 R)) N ( (1+b)/(1-b) - (1+r)/(1-r) + (1+r)/(1-r) eps_root / R^2 ) ]

    and with eps_root = 0, outside, `-[ g / R + h N (B / R - P |g| / R^2) + (h / 2) N eps / R^2 ]`,
    in the long run. While the run is young the moments reach back less: B and P are then those
    after n iterations, the sources' piecewise constants at `n = t / h - 1/2`, the middle of
    iteration n. Bias correction makes the leading term right from the first iteration on, so the
    flow starts where the optimiser does. Papers' time, `t = n h`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, not negative.
      eps_root: added under the root, not negative.
      stationary: whether the lags are those of an infinitely long run from the start: no dependence
        on t. Also second order, with a larger constant at slow decays.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y; t counts from empty moments.
      Where a gradient is 0 and both eps are 0 too, its direction is taken as 0.

    Raises:
      ValueError: if a number is out of range; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Cattaneo, Klusowski & Shigida (2024), theorem on Adam, eps inside the root; outside,
      and both, by driftlab.

    Cost: one gradient and one Hessian-vector product an evaluation.
    """
    check_positive("learning_rate", learning_rate)
    check_decay("b1", b1)
    check_decay("b2", b2)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        if not _known_zero(value):
            check_positive(name, value)
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Params, args: Any) -> Params:
        del args
        iteration = None if stationary else t / learning_rate - 0.5
        lags = memory_lag(b1, iteration), memory_lag(b2, iteration)
        slope = gradient(y)
        direction = jax.tree.map(lambda g: _normalized(g, eps, eps_root)[0], slope)
        curved = hessian_product(gradient, y, direction)
        return jax.tree.map(lambda g, n: _velocity(g, n, lags), slope, curved)

    def _velocity(g: Array, curved: Array, lags: tuple[Any, Any]) -> Array:
        def cast(value: Any) -> Array:
            return jnp.asarray(value, g.dtype)

        first, second = lags
        direction, root, denominator = _normalized(g, eps, eps_root)
        # g^2 / (Q R^2), which is bounded wherever 1 / R is.
        ratio = jnp.where(root > 0, g / jnp.where(root > 0, root, 1), 0) * direction / denominator
        bracket = cast(first + 0.5) / denominator - cast(second + 0.5) * ratio
        return -direction - cast(learning_rate) * curved * bracket

    return field


def rmsprop_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    eps_in_sqrt: bool = True,
    stationary: bool = False,
    batch_size: int | None = None,
) -> Field:
    """The modified flow of RMSProp, `optax.rmsprop(..., bias_correction=True)`: Adam with b1 = 0.

    Without bias correction (optax's default) the first iterations take longer steps, by up to
    `1 / sqrt(1 - decay)`; the flow is then `stationary=True` from `rmsprop_start`. Papers' time,
    `t = n h`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      decay: of the second moment, r, in [0, 1).
      eps: not negative.
      eps_in_sqrt: whether eps is added under the root, optax's default, or to the root.
      stationary: as in `adam_flow`.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      As `adam_flow`.

    Raises:
      ValueError: as `adam_flow`.
      TypeError: as `adam_flow`.

    Source: Cattaneo, Klusowski & Shigida (2024), theorem on RMSProp.

    Cost: as `adam_flow`.
    """
    check_decay("decay", decay)
    inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)
    return adam_flow(loss, learning_rate, 0.0, decay, outside, inside, stationary, batch_size)


def rmsprop_start(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    eps_in_sqrt: bool = True,
    initial_scale: ArrayLike = 0.0,
    terms: int = 1000,
) -> Any:
    """Where the stationary flow of RMSProp without bias correction has to start.

    `theta_0 + h sum_n (g / R - g / R_n)`, `R_n` with the second moment of iteration n under a
    constant gradient, `r^{n+1} initial_scale + (1 - r^{n+1}) g^2`. Without it the error is O(h).

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      decay: r, in [0, 1).
      eps: as in `rmsprop_flow`.
      eps_in_sqrt: as in `rmsprop_flow`.
      initial_scale: of the second moment, as in `optax.rmsprop`.
      terms: iterations in the sum; `decay**terms` should be below rounding.

    Returns:
      `params -> params`, the point to start from.

    Raises:
      ValueError: if a number is out of range; as `gradient_flow`.

    Source: driftlab's own.

    Cost: one gradient.
    """
    check_positive("learning_rate", learning_rate)
    check_decay("decay", decay)
    gradient = gradient_function(loss)
    inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)

    def shifted(leaf: Array, g: Array) -> Array:
        r, scale, step = (jnp.asarray(x, g.dtype) for x in (decay, initial_scale, learning_rate))

        def add(n: Any, total: Array) -> Array:
            kept = r ** (n + 1)
            moment = kept * scale + (1 - kept) * jnp.square(g)
            return total + settled - _divided(g, jnp.sqrt(moment + inside) + outside)

        settled = _normalized(g, outside, inside)[0]
        lacking = jax.lax.fori_loop(0, terms, add, jnp.zeros_like(g))
        return leaf + step * lacking

    def start(params: Params) -> Params:
        params = jax.tree.map(jnp.asarray, params)
        return jax.tree.map(shifted, params, gradient(params))

    return start


def memory_lag(decay: ArrayLike, iteration: Any = None) -> Any:
    """How many iterations a bias-corrected average lags behind, `sum_k k b^k / sum_k b^k`.

    `b / (1 - b)` in the long run; at iteration n, with n + 1 gradients seen,
    `b / (1 - b) - (n + 1) b^{n+1} / (1 - b^{n+1})`.

    Args:
      decay: b, in [0, 1).
      iteration: n, from 0; any real number above -1. None for the long run.

    Source: Cattaneo, Klusowski & Shigida (2024).
    """
    lag = decay / (1 - decay)
    if iteration is None:
        return lag
    count = iteration + 1
    # 1 - b^count by expm1: for a b near 1 and few iterations the difference has no digits left.
    exponent = count * jnp.log(decay)
    return lag + count * jnp.exp(exponent) / jnp.expm1(exponent)


def perturbed_one_norm(gradient: Params, eps_root: ArrayLike) -> Float[Array, ""]:
    """`sum_j sqrt(g_j^2 + eps_root)`, what Adam's memory regularises, for better or worse.

    Args:
      gradient: g.
      eps_root: under the root, not negative.

    Source: Cattaneo, Klusowski & Shigida (2024).
    """
    norms = [
        jnp.sum(_normalized(jnp.asarray(leaf), 0.0, eps_root)[1])
        for leaf in jax.tree.leaves(gradient)
    ]
    return sum(norms[1:], norms[0])


def _normalized(g: Array, eps: Any, eps_root: Any) -> tuple[Array, Array, Array]:
    """The direction g / R, then Q and R."""
    # Not sqrt(g^2 + eps_root): the square of a small gradient is 0 in float32.
    root = jnp.hypot(g, jnp.sqrt(jnp.asarray(eps_root, g.dtype)))
    denominator = root + jnp.asarray(eps, g.dtype)
    return _divided(g, denominator), root, jnp.where(denominator == 0, jnp.inf, denominator)


def _divided(g: Array, denominator: Array) -> Array:
    return jnp.where(denominator == 0, 0, g / jnp.where(denominator == 0, 1, denominator))


def _known_zero(value: Any) -> bool:
    return not isinstance(value, Tracer) and jnp.ndim(value) == 0 and float(value) == 0
