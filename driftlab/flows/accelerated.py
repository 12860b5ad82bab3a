"""Flows of Nesterov's accelerated methods, in which the momentum tends to 1.

Another limit than that of `driftlab.flows.momentum`: the step size s goes to 0 with a momentum of
`1 - O(sqrt(s))`, and time goes with its root. All are in the papers' time `t = n sqrt(s)`: pass
`step_time = sqrt(s)` to have step n of the flow beside iteration n. Their state is (X, X'), but for
the Bregman family.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.momentum import hessian_product
from driftlab.flows.momentum_notation import combine
from driftlab.flows.vector_field import Flow, Loss, gradient_function
from driftlab.hyperparameters import check_positive
from driftlab.objective import Objective, Params

State = tuple[Params, Params]
Start = Literal["matched", "published"]


def su_boyd_candes_flow(
    loss: Loss | Objective, friction: ArrayLike = 3.0, batch_size: int | None = None
) -> Flow:
    """The limit of Nesterov's method for convex losses, `X'' + (r / t) X' + grad L(X) = 0`.

    The method: `x_k = y_{k-1} - s grad L(y_{k-1})`, `y_k = x_k + (k - 1) / (k + r - 1) (x_k -
    x_{k-1})`. On a convex loss `L(X) - L* <= (r - 1)^2 |X_0 - x*|^2 / (2 t^2)` for r >= 3.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      friction: r, 3 in Nesterov's method; positive.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow, `t = n sqrt(s)`, which must start at t = 0, at rest; there the field is its limit,
      `X'' = -grad L / (1 + r)`.

    Raises:
      ValueError: if friction is not positive; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Su, Boyd & Candes (2016), equation 3 and theorem 5.

    Cost: one gradient an evaluation.
    """
    check_positive("friction", friction)
    r: Any = friction
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: State, args: Any) -> State:
        del args
        position, velocity = y
        inverse, started = _inverse_time(t)
        force = jnp.where(started, 1, 1 / (1 + r))
        return velocity, combine((-force, gradient(position)), (-r * inverse, velocity))

    return Flow(field, _at_rest, _position)


def bregman_flow(
    loss: Loss | Objective,
    order: ArrayLike = 2.0,
    constant: ArrayLike = 0.25,
    metric_solve: Callable[[Params, Params], Params] | None = None,
    batch_size: int | None = None,
) -> Flow:
    """The polynomial family of the Bregman Lagrangian, which converges at the rate `t^-p`.

        X'' + ((p + 1) / t) X' + C p^2 t^{p-2} [hess w(X + (t / p) X')]^{-1} grad L(X) = 0

    On a convex loss `D_w(x*, X + (t / p) X') + C t^p (L(X) - L*)` never grows, D_w being the
    Bregman divergence of w, so that `L(X) - L* <= D_w(x*, X_0) / (C t^p)`. With p = 2, C = 1/4 and
    `w = |x|^2 / 2` it is `su_boyd_candes_flow`. One curve for all p: X_p(t) is X_2(t^{p/2}), with
    constants that match.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      order: p, greater than 1: up to it the force is too strong near t = 0.
      constant: C, positive.
      metric_solve: `(point, vector) -> [hess w(point)]^{-1} vector`; None for the Euclidean w.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow, which must start at t = 0. Its state is `(X, S)`, `X' = t^{p-1} S`, which starts at
      `S = -(C p / 2) [hess w]^{-1} grad L` and obeys `S' = -(2 p S + C p^2 [hess w]^{-1} grad L) /
      t`, 0 at t = 0: solvers resolve the start in S, not in X'. Discretisations of rate n^-p have
      iteration n at `t = n s^{1/p}`.

    Raises:
      ValueError: if order or constant is out of range; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Wibisono, Wilson & Jordan (2016), equations 9 to 11; the state is driftlab's own.

    Cost: one gradient and one solve with the metric an evaluation.
    """
    check_positive("order", order)
    check_positive("constant", constant)
    if not isinstance(order, Tracer) and not np.all(np.asarray(order) > 1):
        raise ValueError(f"order={order} must be greater than 1.")
    p: Any = order
    strength: Any = constant
    gradient = gradient_function(loss, batch_size)

    def force(position: Params, ahead: Params) -> Params:
        slope = gradient(position)
        return slope if metric_solve is None else metric_solve(ahead, slope)

    def field(t: Any, y: State, args: Any) -> State:
        del args
        position, speed = y
        t = jnp.asarray(t)
        velocity = combine((t ** (p - 1), speed))
        pull = force(position, combine((1.0, position), (t / p, velocity)))
        inverse, _ = _inverse_time(t)
        rate = combine((-2 * p * inverse, speed), (-strength * p**2 * inverse, pull))
        return velocity, rate

    def init(params: Params) -> State:
        params = jax.tree.map(jnp.asarray, params)
        return params, combine((-strength * p / 2, force(params, params)))

    return Flow(field, init, _position)


def high_resolution_heavy_ball_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    strong_convexity: ArrayLike,
    initial_velocity: Start = "matched",
    batch_size: int | None = None,
) -> Flow:
    """`X'' + 2 sqrt(mu) X' + (1 + sqrt(mu s)) grad L(X) = 0`, heavy ball's.

    The method: `optax.sgd(s, accelerated_momentum(s, mu))`. The source's first step is
    `2 / (1 + sqrt(mu s))` as long as optax's, and starts the ODE with the mean velocity of that
    step, `X'(0) = -2 sqrt(s) grad L / (1 + sqrt(mu s))`. That is the velocity half a step later,
    which costs an order: against the iterates the error is then O(sqrt(s)), as without the new
    terms. If iterates move by `-c s grad L` first, `X'(0) = -(c - 1/2) sqrt(s) grad L` is matched,
    and the error O(s).

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: s.
      strong_convexity: mu, a lower bound on the Hessian's eigenvalues; positive.
      initial_velocity: `matched` to optax, c = 1; or `published`.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow, `t = n sqrt(s)`.

    Raises:
      ValueError: if a number is not positive, or there is no such start; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Shi, Du, Jordan & Su (2022), equation 10; the matched start is driftlab's own.

    Cost: one gradient an evaluation.
    """
    check_positive("learning_rate", learning_rate)
    check_positive("strong_convexity", strong_convexity)
    steps = {"matched": 1 / 2, "published": 2 / (1 + _root(learning_rate * strong_convexity))}
    return _strongly_convex(
        loss, learning_rate, strong_convexity, _choose(steps, initial_velocity), batch_size, False
    )


def high_resolution_nesterov_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    strong_convexity: ArrayLike,
    initial_velocity: Start = "matched",
    batch_size: int | None = None,
) -> Flow:
    """`X'' + 2 sqrt(mu) X' + sqrt(s) H(X) X' + (1 + sqrt(mu s)) grad L(X) = 0`.

    Nesterov's method for strongly convex losses: `optax.sgd(s, accelerated_momentum(s, mu),
    nesterov=True)`, whose parameters are X. The term `H X'` is what tells it from heavy ball.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: s.
      strong_convexity: mu, a lower bound on the Hessian's eigenvalues; positive.
      initial_velocity: as in `high_resolution_heavy_ball_flow`, with `c = 2 / (1 + sqrt(mu s))`,
        which is also the source's.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow, `t = n sqrt(s)`.

    Raises:
      ValueError: if a number is not positive, or there is no such start; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Shi, Du, Jordan & Su (2022), equation 11; the matched start is driftlab's own.

    Cost: one gradient and one Hessian-vector product an evaluation.
    """
    check_positive("learning_rate", learning_rate)
    check_positive("strong_convexity", strong_convexity)
    first = 2 / (1 + _root(learning_rate * strong_convexity))
    steps = {"matched": first - 1 / 2, "published": first}
    return _strongly_convex(
        loss, learning_rate, strong_convexity, _choose(steps, initial_velocity), batch_size, True
    )


def high_resolution_convex_flow(
    loss: Loss | Objective, learning_rate: ArrayLike, batch_size: int | None = None
) -> Flow:
    """`X'' + (3 / t) X' + sqrt(s) H(X) X' + (1 + 3 sqrt(s) / (2 t)) grad L(X) = 0`.

    Nesterov's method for convex losses, as in `su_boyd_candes_flow` with r = 3. It follows the
    points y_n where gradients are taken to O(s); the x_n, `sqrt(s) X'` away, only to O(sqrt(s)).

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: s.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow, from `X' = -sqrt(s) grad L`. The source starts it at `t = 1.5 sqrt(s)`, where it is
      not singular; here that is time 0, so that iteration n is at `n sqrt(s)`.

    Raises:
      ValueError: if learning_rate is not positive; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Shi, Du, Jordan & Su (2022), equation 12.

    Cost: one gradient and one Hessian-vector product an evaluation.
    """
    check_positive("learning_rate", learning_rate)
    gradient = gradient_function(loss, batch_size)
    root = _root(learning_rate)

    def field(t: Any, y: State, args: Any) -> State:
        del args
        position, velocity = y
        inverse = 1 / (t + 1.5 * root)
        curved = hessian_product(gradient, position, velocity)
        return velocity, combine(
            (-(1 + 1.5 * root * inverse), gradient(position)),
            (-3 * inverse, velocity),
            (-root, curved),
        )

    def init(params: Params) -> State:
        params = jax.tree.map(jnp.asarray, params)
        return params, combine((-root, gradient(params)))

    return Flow(field, init, _position)


def accelerated_momentum(learning_rate: ArrayLike, strong_convexity: ArrayLike) -> Any:
    """The momentum `(1 - sqrt(mu s)) / (1 + sqrt(mu s))` of accelerated methods.

    Args:
      learning_rate: s.
      strong_convexity: mu.

    Source: Nesterov (1983); Shi, Du, Jordan & Su (2022), equations 4 and 5.
    """
    root = _root(learning_rate * strong_convexity)
    return (1 - root) / (1 + root)


def _strongly_convex(
    loss: Loss | Objective,
    learning_rate: Any,
    convexity: Any,
    first_step: Any,
    batch_size: Any,
    damping: bool,
) -> Flow:
    gradient = gradient_function(loss, batch_size)
    root, mixed = _root(learning_rate), _root(learning_rate * convexity)

    def field(t: Any, y: State, args: Any) -> State:
        del t, args
        position, velocity = y
        terms = [(-(1 + mixed), gradient(position)), (-2 * _root(convexity), velocity)]
        if damping:
            terms.append((-root, hessian_product(gradient, position, velocity)))
        return velocity, combine(*terms)

    def init(params: Params) -> State:
        params = jax.tree.map(jnp.asarray, params)
        return params, combine((-first_step * root, gradient(params)))

    return Flow(field, init, _position)


def _at_rest(params: Params) -> State:
    params = jax.tree.map(jnp.asarray, params)
    return params, jax.tree.map(jnp.zeros_like, params)


def _position(y: State) -> Params:
    return y[0]


def _inverse_time(t: Any) -> tuple[Float[Array, ""], Any]:
    """1 / t, or 0 at t = 0, where the velocity is 0 as well; and whether t > 0."""
    started = jnp.asarray(t) > 0
    return jnp.where(started, 1 / jnp.where(started, t, 1), 0), started


def _choose(steps: dict[str, Any], start: str) -> Any:
    if start not in steps:
        raise ValueError(f"initial_velocity={start!r} must be 'matched' or 'published'.")
    return steps[start]


def _root(value: Any) -> Any:
    return jnp.sqrt(value)
