"""Flows of heavy ball and Nesterov momentum with a fixed coefficient, as `optax.sgd` has them.

All are in the papers' time: iteration n at learning rate h is time `t = n h`, so that `step_time`
is h (in iteration time the rates are h times as large). From the crudest to the finest, with
`b = 1 / (1 - m)` and errors after a fixed time:

| flow | state | error |
|---|---|---|
| `rescaled_gradient_flow` | parameters | O(h) |
| `modified_momentum_flow` | parameters, from a shifted start | O(h^2) |
| `transient_momentum_flow` | parameters; the field depends on t | O(h^2) |
| `inertial_flow` | parameters and velocity, matched at the start | O(h^2), and beyond small h |

The symbols and constants are those of `driftlab.flows.momentum_notation`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.momentum_notation import (
    Correction,
    combine,
    inertia,
    initial_shift,
    modified_loss_coefficient,
)
from driftlab.flows.vector_field import Field, Flow, Loss, gradient_function, loss_function
from driftlab.hyperparameters import check_decay, check_positive
from driftlab.objective import Objective, Params

Gradient = Callable[[Params], Params]


def rescaled_gradient_flow(
    loss: Loss | Objective, momentum: ArrayLike, batch_size: int | None = None
) -> Field:
    """Gradient flow at the effective learning rate, `dy/dt = -grad L(y) / (1 - m)`.

    The limit h -> 0 of heavy ball and of Nesterov, which it does not tell apart, nor from gradient
    descent at learning rate `h / (1 - m)`. Papers' time, `t = n h`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      momentum: m, in [0, 1).
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y.

    Raises:
      ValueError: if momentum is out of range; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Kovachki & Stuart (2021), first theorem: `|u_n - y(n h)| <= C h`.

    Cost: one gradient an evaluation.
    """
    check_decay("momentum", momentum)
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Params, args: Any) -> Params:
        del t, args
        return combine((-1 / (1 - momentum), gradient(y)))

    return field


def inertial_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
    initial_velocity: Literal["matched", "zero", "slow"] = "matched",
    batch_size: int | None = None,
) -> Flow:
    """The high-resolution equation, `h alpha u'' + (1 - m) u' = -grad L(u)`.

    `alpha` is `inertia(momentum, nesterov)`. The velocity that the ODE starts with costs an order
    if it is not the one for which the initial layers of both end in the same place. For a trace
    that starts at 0,

        u'(0) = -(1 - w m / alpha) grad L(u_0) / (1 - m),    w = 1 (heavy ball), m (Nesterov),

    for heavy ball `-grad L(u_0) / (1 + m)`. Papers' time, `t = n h`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`; the flow is then that of optax's parameters, which are
        Nesterov's look-ahead points.
      initial_velocity: `matched` as above, error O(h^2); `zero`, u'(0) = 0, or `slow`,
        `u'(0) = -grad L / (1 - m)`, error O(h).
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow; its state is `(u, u')`, u' in parameters per unit of `n h`.

    Raises:
      ValueError: if a number is out of range, there is no such initial velocity; as
        `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Kovachki & Stuart (2021), second theorem; the matched start is driftlab's own.

    Cost: one gradient an evaluation, at a stiffness of `(1 - m) / alpha <= 1` a step.
    """
    _check(learning_rate, momentum)
    gain = 1 / (1 - momentum)
    lag = momentum**2 if nesterov else momentum
    starts = {
        "matched": gain * (1 - lag / inertia(momentum, nesterov)),
        "zero": 0.0 * gain,
        "slow": gain,
    }
    if initial_velocity not in starts:
        raise ValueError(f"initial_velocity={initial_velocity!r} must be one of {list(starts)}.")
    gradient = gradient_function(loss, batch_size)
    mass = learning_rate * inertia(momentum, nesterov)

    def field(t: Any, y: tuple[Params, Params], args: Any) -> tuple[Params, Params]:
        del t, args
        position, velocity = y
        force = gradient(position)
        return velocity, combine((-1 / mass, force), (-(1 - momentum) / mass, velocity))

    def init(params: Params) -> tuple[Params, Params]:
        params = jax.tree.map(jnp.asarray, params)
        return params, combine((-starts[initial_velocity], gradient(params)))

    return Flow(field, init, lambda y: y[0])


def modified_momentum_loss(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
    of: Correction = "flow",
) -> Loss:
    """The loss that momentum descends, `L + (h / 2) k |grad L|^2`.

    k is `modified_loss_coefficient(momentum, nesterov, of)`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`.
      of: which object's: the ODE's, `du/dt = -grad L_h / (1 - m)`; that of the memoryless step; or
        that of the velocity on the invariant manifold.

    Returns:
      `params -> scalar`, which can be differentiated.

    Raises:
      ValueError: if a number is out of range, or there is no such object.
      TypeError: if loss is neither a function nor an objective.

    Source: as `modified_loss_coefficient`.

    Cost: one gradient.
    """
    _check(learning_rate, momentum)
    value, gradient = loss_function(loss), gradient_function(loss)
    coefficient = learning_rate * modified_loss_coefficient(momentum, nesterov, of) / 2

    def modified(params: Params) -> Float[Array, ""]:
        found = value(params)
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient(params))]
        penalty = sum(squares[1:], squares[0]).astype(found.dtype)
        return found + jnp.asarray(coefficient, found.dtype) * penalty

    return modified


def modified_momentum_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
    shadow_start: bool = True,
    batch_size: int | None = None,
) -> Flow:
    """The flow on the invariant manifold, `dy/dt = -(grad L + h k H grad L) / (1 - m)`.

    The gradient flow of `modified_momentum_loss`, k being `modified_loss_coefficient(momentum,
    nesterov)`. Papers' time, `t = n h`. It knows nothing of the first iterations, in which the
    trace fills up, so it starts where the iterates after them come from, `theta_0 + h s grad
    L(theta_0)` with s the `initial_shift`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h; `correction_limit` says up to which curvature the flow means anything.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`.
      shadow_start: whether to start at that point; from theta_0 itself the error is O(h).
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow; its state is the parameters, those at time 0 the shifted ones.

    Raises:
      ValueError: if a number is out of range; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Kovachki & Stuart (2021), third theorem; Ghosh, Lyu, Zhang & Wang (2023), the factor
      `(1 + m) / (1 - m)` of heavy ball.

    Cost: one gradient and one Hessian-vector product an evaluation.
    """
    _check(learning_rate, momentum)
    gradient = gradient_function(loss, batch_size)
    gain = 1 / (1 - momentum)
    coefficient = learning_rate * modified_loss_coefficient(momentum, nesterov)

    def field(t: Any, y: Params, args: Any) -> Params:
        del t, args
        slope = gradient(y)
        curved = hessian_product(gradient, y, slope)
        return combine((-gain, slope), (-gain * coefficient, curved))

    def init(params: Params) -> Params:
        params = jax.tree.map(jnp.asarray, params)
        if not shadow_start:
            return params
        shift = learning_rate * initial_shift(momentum, nesterov)
        return combine((1.0, params), (shift, gradient(params)))

    return Flow(field, init, lambda y: y)


def transient_momentum_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
    batch_size: int | None = None,
) -> Field:
    """The modified flow from the first iteration on, while the trace fills up.

    `dy/dt = -c grad L - h q H grad L` with coefficients of iteration n on `n h <= t <= (n + 1) h`:

        c_n = b (1 - w m^{n+1}),    q_n = w sum_{k=1}^n m^k sum_{j=n-k}^{n-1} c_j + c_n^2 / 2,

    `b = 1 / (1 - m)`, w = 1 for heavy ball and m for Nesterov. They tend to those of
    `modified_momentum_flow`, whose shift of the start they make unnecessary. The sources' ODE is
    piecewise in n; here c is the exponential in t with the same mean over each iteration, and q
    is q_n in its middle, so that the field is smooth. Papers' time, `t = n h`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y; t counts from a trace of 0.

    Raises:
      ValueError: if a number is out of range; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Ghosh, Lyu, Zhang & Wang (2023), for heavy ball; Cattaneo & Shigida (2025), the memory
      sum. The closed forms are driftlab's own.

    Cost: one gradient and one Hessian-vector product an evaluation.
    """
    _check(learning_rate, momentum)
    h: Any = learning_rate
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Params, args: Any) -> Params:
        del args
        leading, correction = _transient_coefficients(t / h, momentum, nesterov)
        slope = gradient(y)
        curved = hessian_product(gradient, y, slope)
        return combine((-leading, slope), (-h * correction, curved))

    return field


def hessian_product(gradient: Gradient, params: Params, vector: Params) -> Params:
    """`H(params) vector`, forward over reverse.

    Args:
      gradient: `params -> grad L(params)`.
      params: where.
      vector: in the structure and types of params.
    """
    return jax.jvp(gradient, (params,), (vector,))[1]


def _transient_coefficients(s: Any, momentum: Any, nesterov: bool) -> tuple[Any, Any]:
    """c(s) and q(s) of `transient_momentum_flow`, `s = t / h`.

    `sum_{j=n-k}^{n-1} c_j = b (k - w b (m^{n-k+1} - m^{n+1}))`; summed over k by the geometric
    series, at n = s - 1/2. Powers are of `n + 1` and more, so that m = 0 is fine.
    """
    m, n = momentum, s - 0.5
    weight = m if nesterov else 1.0
    gain = 1 / (1 - m)
    fresh, twice = m ** (n + 1), m ** (2 * n + 2)
    center = gain * (1 - weight * fresh)
    # Of mean m^{n+1} over the iteration.
    leading = gain * (1 - weight * gain * -jax.scipy.special.xlogy(m, m) * m**s)
    first = gain**2 * (m - (n + 1) * fresh + n * m * fresh)
    second = weight * gain * (n * fresh - gain * (m * fresh - twice))
    return leading, weight * gain * (first - second) + center**2 / 2


def _check(learning_rate: Any, momentum: Any) -> None:
    check_positive("learning_rate", learning_rate)
    check_decay("momentum", momentum)
