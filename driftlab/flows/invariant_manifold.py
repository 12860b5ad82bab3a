"""The manifold that momentum settles on: where the velocity is a function of the parameters.

In the symbols of `driftlab.flows.momentum_notation`: after about 1 / (1 - m) iterations the
backward difference `v_n = (u_n - u_{n-1}) / h` of Kovachki & Stuart's scheme is that function of
u_n, whatever it was at the start, and momentum is from then on gradient descent on a modified loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact

from driftlab.flows.momentum import hessian_product
from driftlab.flows.momentum_notation import (
    combine,
    lookahead,
    modified_loss_coefficient,
    unified_points,
)
from driftlab.flows.vector_field import Loss, gradient_function
from driftlab.hyperparameters import check_decay, check_positive
from driftlab.objective import Objective, Params


def manifold_velocity(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
    order: int = 2,
    batch_size: int | None = None,
) -> Callable[[Params], Params]:
    """The velocity on the invariant manifold, `v = -(grad L + h k H grad L) / (1 - m)`.

    k is `modified_loss_coefficient(momentum, nesterov, of="velocity")`: the velocity is a multiple
    of the gradient of `modified_momentum_loss(..., of="velocity")`.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`.
      order: 2 for the formula, which is O(h^2) from the manifold; 1 for its first term, O(h).
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      `u -> v`, in loss / parameter; u is a point of the unified scheme (see `unified_points`).

    Raises:
      ValueError: if a number is out of range, or order is neither; as `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: Kovachki & Stuart (2021), third theorem.

    Cost: one gradient; at order 2 a Hessian-vector product as well.
    """
    check_positive("learning_rate", learning_rate)
    check_decay("momentum", momentum)
    if order not in (1, 2):
        raise ValueError(f"order={order!r} must be 1 or 2.")
    gradient = gradient_function(loss, batch_size)
    gain = 1 / (1 - momentum)
    coefficient = learning_rate * modified_loss_coefficient(momentum, nesterov, "velocity")

    def velocity(params: Params) -> Params:
        slope = gradient(params)
        if order == 1:
            return combine((-gain, slope))
        curved = hessian_product(gradient, params, slope)
        return combine((-gain, slope), (-gain * coefficient, curved))

    return velocity


def distance_to_manifold(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool = False,
    order: int = 2,
    batch_size: int | None = None,
) -> Callable[[Params, Params], Float[Array, ""]]:
    """How far an optimiser's state is from the invariant manifold, `|v_n - v(u_n)|`.

    It falls as `attraction(momentum)` per iteration, down to the error of the formula.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h.
      momentum: m, in [0, 1).
      nesterov: as in `optax.sgd`.
      order: of the manifold's formula, as in `manifold_velocity`.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      `(params, trace) -> distance`, for parameters and trace (`optax.TraceState.trace`) of
      `optax.sgd(learning_rate, momentum, nesterov)`; the Euclidean norm over all parameters, in
      loss / parameter.

    Raises:
      ValueError: as `manifold_velocity`.
      TypeError: as `manifold_velocity`.

    Cost: as `manifold_velocity`.
    """
    on_manifold = manifold_velocity(loss, learning_rate, momentum, nesterov, order, batch_size)

    def distance(params: Params, trace: Params) -> Float[Array, ""]:
        points, velocity = unified_points(params, trace, learning_rate, momentum, nesterov)
        off = combine((1.0, velocity), (-1.0, on_manifold(points)))
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(off)]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    return distance


def attraction_rate(learning_rate: ArrayLike, momentum: ArrayLike) -> Any:
    """The rate at which the distance to the manifold falls, `log(1 / m) / h`, per unit of `n h`.

    The distance is multiplied by `m + O(h)` an iteration, `exp(-rate h)`: a rate that grows without
    bound as h falls, at a fixed number of iterations.

    Args:
      learning_rate: h.
      momentum: m, in (0, 1); infinite at 0.

    Source: Kovachki & Stuart (2021), third theorem.
    """
    return -jnp.log(momentum) / learning_rate


class Multipliers(NamedTuple):
    """What an iteration multiplies the two modes of one eigendirection by.

    Attributes:
      slow: of the mode on the invariant manifold, near `1 - h lambda / (1 - m)`.
      fast: of the deviation from it, near m.
    """

    slow: Inexact[Array, "..."]
    fast: Inexact[Array, "..."]


def mode_multipliers(
    learning_rate: ArrayLike, momentum: ArrayLike, curvature: ArrayLike, nesterov: bool = False
) -> Multipliers:
    """Momentum on a quadratic, exactly: the roots of `r^2 - (1 + m - x - a x) r + m - a x = 0`.

    `x = h lambda`, and a is 0 for heavy ball, m for Nesterov. While both are real, the manifold is
    the slow eigenvector, `v = -(1 / r_slow - 1) u / h`, and attracts as fast as the ratio of the
    roots. Where they meet, at `x = (1 - sqrt(m))^2` for heavy ball, there is no manifold any more:
    both modes are oscillations that decay together.

    Args:
      learning_rate: h.
      momentum: m.
      curvature: lambda, in loss / parameter^2; of any shape that goes with the others'.
      nesterov: which method.

    Returns:
      The two, complex; slow is the one of larger modulus at small h.

    Source: Polyak (1964); the look-ahead form by driftlab.
    """
    x = jnp.asarray(learning_rate) * jnp.asarray(curvature)
    ahead = lookahead(momentum, nesterov)
    half = (1 + momentum - x - ahead * x) / 2
    product = momentum - ahead * x
    root = jnp.sqrt((half**2 - product).astype(jnp.result_type(x, 1j)))
    return Multipliers(half + root, half - root)
