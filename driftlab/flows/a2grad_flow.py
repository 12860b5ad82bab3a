"""The flow of A2Grad: accelerated, with a friction of the deviations from the mean gradient.

The limit of large `lipschitz = 1 / s` in which both terms of the method's step stay: time goes with
the root, `t = k sqrt(s)`, and beta with the fourth root. Pass `step_time = sqrt(s)` to have step k
of the flow beside iteration k of `driftlab.transforms.a2grad`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from driftlab.flows.vector_field import Flow, Loss, gradient_function
from driftlab.hyperparameters import check_range
from driftlab.objective import Objective, Params

EXPONENTS = {"uniform": 0.0, "incremental": 2.0}
VARIANTS = (*EXPONENTS, "exponential", "polynomial")
# The running maximum of "exponential" starts to follow a deviation this share below itself.
MAXIMUM_BAND = 1e-3


class A2GradFlowState(NamedTuple):
    """The state of `a2grad_flow`.

    Attributes:
      params: y, where gradients are taken.
      mirror: x, the limit of the sequence that takes the steps.
      gradient_mean: the mean of the gradient over time so far.
      accumulator: what H is made of: the integral of `tau^q delta^2`, or the largest `|delta|`.
    """

    params: Params
    mirror: Params
    gradient_mean: Params
    accumulator: PyTree[Array]


def a2grad_flow(
    loss: Loss | Objective,
    scaled_beta: ArrayLike,
    variant: str = "uniform",
    *,
    q: ArrayLike | None = None,
    per_coordinate: bool = True,
    batch_size: int | None = None,
) -> Flow:
    """The limit of A2Grad with `lipschitz = 1 / s` and `beta = scaled_beta s^(-1/4)`, s -> 0.

        y' = (2 / t) (x - y)
        x' = -grad L(y) / (2 / t + scaled_beta H)
        m' = (grad L(y) - m) / t,    delta = grad L(y) - m

        uniform      H = sqrt(int_0^t delta^2 dtau)
        incremental  H = sqrt(int_0^t tau^2 delta^2 dtau) / t
        polynomial   H = sqrt(int_0^t tau^q delta^2 dtau / t^q)
        exponential  H = sqrt(t) max_{tau <= t} |delta|, whatever the decay

    The gradient here is of the loss, without noise: the deviations from the mean, which the method
    takes for noise, do not vanish, since the mean lags behind. With scaled_beta 0 it is
    `su_boyd_candes_flow`, Nesterov's. A beta that does not grow as `s^(-1/4)` drops out of the
    limit. The iterates y_k approach y(k sqrt(s)) as O(sqrt(s)).

    Args:
      loss: what is minimised, as in `gradient_flow`.
      scaled_beta: `beta lipschitz^(-1/4)`, 0 or more; a number or a traced array.
      variant: as in `driftlab.transforms.a2grad`.
      q: the exponent of "polynomial", from 0 to 2.
      per_coordinate: False for one H a leaf, of the sum of its squares.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      The flow, `t = k sqrt(s)`, which must start at t = 0, at rest, where the field is its limit,
      0. Its state is an `A2GradFlowState`. The maximum of "exponential" may be a thousandth too
      large once a deviation has returned to it.

    Raises:
      ValueError: if scaled_beta or q is out of range, or the variant does not exist; as
        `gradient_flow`.
      TypeError: as `gradient_flow`.

    Source: the method, Deng, Cheng & Lan (2018), algorithms 2 to 6; the limit is driftlab's own,
      its order measured in tests/flows/test_a2grad_flow.py.

    Cost: one gradient an evaluation; of "exponential" a Hessian-vector product as well.
    """
    check_range("scaled_beta", scaled_beta, "0 or more, and finite", lambda value: value >= 0)
    exponent: Any = jnp.asarray(exponent_of(variant, q))
    strength: Any = scaled_beta
    gradient = gradient_function(loss, batch_size)

    def reduced(products: Array) -> Array:
        return products if per_coordinate else jnp.sum(products)

    def field(t: Any, y: A2GradFlowState, args: Any) -> A2GradFlowState:
        del args
        t = jnp.asarray(t)
        started = t > 0
        inverse = jnp.where(started, 1 / jnp.where(started, t, 1), 0)

        def cast(value: Array, leaf: Array) -> Array:
            return value.astype(leaf.dtype)

        velocity = jax.tree.map(lambda x, y: cast(2 * inverse, y) * (x - y), y.mirror, y.params)
        if variant == "exponential":
            slope, bend = jax.jvp(gradient, (y.params,), (velocity,))
        else:
            slope, bend = gradient(y.params), None
        deviation = jax.tree.map(jnp.subtract, slope, y.gradient_mean)
        drift = jax.tree.map(lambda d: cast(inverse, d) * d, deviation)
        if variant == "exponential":

            def growing(largest: Array, d: Array, g: Array, m: Array) -> tuple[Array, Array]:
                size = jnp.sqrt(reduced(jnp.square(d)))
                change = reduced(d * (g - m)) / jnp.where(size == 0, 1, size)
                rate = _maximum_rate(largest, size, change)
                return rate, jnp.sqrt(cast(t, d)) * jnp.maximum(largest, size)

            pairs = jax.tree.map(growing, y.accumulator, deviation, bend, drift)
        else:

            def integrated(a: Array, d: Array) -> tuple[Array, Array]:
                power, square = cast(exponent, d), reduced(jnp.square(d))
                # A solver's stages may leave a trial integral below 0.
                scale = jnp.sqrt(jnp.maximum(a, 0) * cast(inverse, d) ** power)
                return cast(t, d) ** power * square, scale

            pairs = jax.tree.map(integrated, y.accumulator, deviation)
        growth, scale = jax.tree.transpose(
            jax.tree.structure(deviation), jax.tree.structure((0, 0)), pairs
        )

        def pull(h: Array, g: Array) -> Array:
            """`g / (2 / t + b H)`, 0 at t = 0."""
            time = cast(t, g)
            return -time * g / (2 + time * jnp.asarray(strength, g.dtype) * h)

        return A2GradFlowState(velocity, jax.tree.map(pull, scale, slope), drift, growth)

    def init(params: Params) -> A2GradFlowState:
        params = jax.tree.map(jnp.asarray, params)
        zeros = jax.tree.map(lambda p: jnp.zeros_like(reduced(p)), params)
        return A2GradFlowState(params, params, gradient(params), zeros)

    return Flow(field, init, lambda y: y.params)


def _maximum_rate(maximum: Array, value: Array, change: Array) -> Array:
    """The rate of a running maximum: that of the value while it leads and grows, else 0.

    Of the deviation's size, not of its square: a Runge-Kutta step integrates the one exactly along
    with the other, and the two do not take turns to lead by its error. A value that comes back to
    the lead does so over a band: no solver's tolerance gets past a jump.
    """
    band = MAXIMUM_BAND * jnp.where(maximum == 0, 1, maximum)
    leads = jnp.clip(2 * ((value - maximum) / band + 1), 0, 1)
    return jnp.where(maximum == 0, 1, leads) * jnp.maximum(change, 0)


def exponent_of(variant: str, q: ArrayLike | None) -> ArrayLike:
    """The q of a variant; not looked at for "exponential".

    Args:
      variant: one of `VARIANTS`.
      q: from 0 to 2, for "polynomial" alone.

    Returns:
      q.

    Raises:
      ValueError: for another variant, or a q that is missing, out of range or has no effect.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} must be one of {VARIANTS}.")
    if (variant == "polynomial") != (q is not None):
        raise ValueError(
            f"variant={variant!r}, q={q!r}: give a q, from 0 to 2, with variant='polynomial' and "
            "with no other."
        )
    if q is None:
        return EXPONENTS.get(variant, 0.0)
    check_range("q", q, "from 0 (uniform) to 2 (incremental)", lambda value: 0 <= value <= 2)
    return q
