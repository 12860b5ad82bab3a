"""Rod flow: gradient descent at the edge of stability as a centre and an oscillation about it.

The field is in the papers' time: at learning rate h, iteration n is time `t = n h`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.vector_field import Flow, Loss, gradient_function
from driftlab.objective import Objective, Params


class Rod(NamedTuple):
    """The state of rod flow: iteration n is near `centre + (-1)^n half`.

    Attributes:
      centre: c, the parameters between two iterates.
      half: delta, half the difference of the two, its sign that of even iterations.
    """

    centre: Params
    half: Params


def rod_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    *,
    terms: int = 1,
    floor: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Flow:
    """The flow of the pair `(c, delta)` with `x_n = c + (-1)^n delta`.

    Gradient descent on x is exactly the map `c -> c - h g_even`, `delta -> h g_odd - delta`, with
    `g_even = (g(c + delta) + g(c - delta)) / 2` and `g_odd = (g(c + delta) - g(c - delta)) / 2`:
    both ends of the rod descend, and swap. Near the edge a step changes little, and is followed by

        dc/dt = -g_even,    d delta/dt = g_odd - 2 delta / h,

    the map's first difference V over h. Its fixed points are the orbits of period two of gradient
    descent, at any h. A direction of curvature lambda has `delta` grow at the rate
    `lambda - 2 / h`, for `log(h lambda - 1) / h` of the map. With `terms=2` the field is
    `(V - V'V / 2) / h`, which is right to the next order in `h lambda - 2`, and in h where nothing
    oscillates (there it is the flow with gradient regularisation).

    The field is odd in delta, so an oscillation that has died out stays out; in gradient descent
    rounding keeps it alive. Below `floor` a shrinking delta keeps its length; so that it is seen
    there, gradients are taken at `c +- s delta`, with s delta at least `eps^(2/3) |c|` long.

    Args:
      loss: `loss(params) -> scalar`, or an objective over all its data.
      learning_rate: h; may be traced.
      terms: 1 or 2.
      floor: the length below which delta does not fall, in the units of params; None for the
        dtype's epsilon times the length of c; 0 for none.
      batch_size: with an objective, examples at once; None for all.

    Returns:
      The flow; its state is a `Rod`. `init(params)` takes two iterations ahead and splits off
      their alternating part, `delta = (x_0 - 2 x_1 + x_2) / 4`, of order h^2 where nothing
      oscillates. `params(y)` is the centre.

    Raises:
      ValueError: if the learning rate is not positive, floor negative, or terms neither 1 nor 2.
      TypeError: from the field, if a parameter is not a real floating-point array.

    Source: Regis, Chewi (2026), "Rod flow: a continuous-time model for gradient descent at the
    edge of stability", for the idea; the equations here are derived from the two-step map. Cost:
    two gradients an evaluation, with two terms as many Hessian-vector products as well.
    """
    check_learning_rate(learning_rate)
    check_floor(floor)
    if terms not in (1, 2):
        raise ValueError(f"terms={terms!r}: rod flow is derived with 1 or 2 terms.")
    gradient = gradient_function(loss, batch_size)

    def change(y: Rod) -> Rod:
        """V: what one iteration of gradient descent does to the pair."""
        share = learning_rate / 2
        stretch = _stretch(y)
        ahead, behind = (
            gradient(_moved(y.centre, y.half, stretch)),
            gradient(_moved(y.centre, y.half, -stretch)),
        )
        return Rod(
            jax.tree.map(lambda a, b: (-share * (a + b)).astype(a.dtype), ahead, behind),
            jax.tree.map(
                lambda a, b, d: (share / stretch * (a - b) - 2 * d).astype(d.dtype),
                ahead, behind, y.half,
            ),
        )  # fmt: skip

    def field(t: Any, y: Rod, args: Any) -> Rod:
        del t, args
        first = change(y)
        if terms == 2:
            _, second = jax.jvp(change, (y,), (first,))
            first = jax.tree.map(lambda v, bend: v - bend / 2, first, second)
        rate = jax.tree.map(lambda v: (v / learning_rate).astype(v.dtype), first)
        return rate._replace(half=_held(y.half, rate.half, floor_of(floor, y.centre)))

    def init(params: Params) -> Rod:
        params = jax.tree.map(jnp.asarray, params)
        return split(params, gradient, learning_rate)

    return Flow(field, init, lambda y: y.centre)


def split(params: Params, gradient: Any, learning_rate: ArrayLike) -> Rod:
    """The alternating part of gradient descent's iterates from here, and the rest.

    Args:
      params: x_0.
      gradient: of the loss.
      learning_rate: h.

    Returns:
      `delta = (x_0 - 2 x_1 + x_2) / 4` and `c = x_0 - delta`. Cost: two gradients.
    """
    here = gradient(params)
    ahead = gradient(
        jax.tree.map(lambda p, g: (p - learning_rate * g).astype(p.dtype), params, here)
    )
    half = jax.tree.map(
        lambda g, next_g: (learning_rate / 4 * (g - next_g)).astype(g.dtype), here, ahead
    )
    return Rod(jax.tree.map(jnp.subtract, params, half), half)


def floor_of(floor: ArrayLike | None, centre: Params) -> Float[Array, ""]:
    """The length that rounding gives an oscillation, where none is given.

    Args:
      floor: what the user gave.
      centre: c.

    Returns:
      The length.
    """
    size = optax.tree.norm(centre)
    if floor is None:
        return float(jnp.finfo(size.dtype).eps) * size
    return jnp.asarray(floor, size.dtype)


def check_learning_rate(learning_rate: Any) -> None:
    """Refuses a learning rate that is known and not positive.

    Args:
      learning_rate: h.

    Raises:
      ValueError: naming its value.
    """
    if callable(learning_rate):
        raise ValueError(f"learning_rate must be a number, not a schedule; got {learning_rate!r}.")
    if isinstance(learning_rate, Tracer):
        return
    value = np.asarray(learning_rate)
    if value.shape != () or not np.isfinite(value) or value <= 0:
        raise ValueError(
            f"learning_rate must be one positive, finite number; got {learning_rate!r}."
        )


def _held(half: Params, rate: Params, floor: Float[Array, ""]) -> Params:
    """The rate without its shrinking of a delta that is below the floor."""
    along = jnp.asarray(optax.tree.vdot(half, rate))
    squared = jnp.asarray(optax.tree.norm(half, squared=True))
    hold = (squared < floor**2) & (along < 0)
    share = jnp.where(hold, along / jnp.where(squared == 0, 1, squared), 0)
    return jax.tree.map(lambda d, r: (r - share * d).astype(r.dtype), half, rate)


def _stretch(y: Rod) -> Float[Array, ""]:
    """By how much delta is lengthened for the gradients, so that c + delta is not c to rounding.

    1 from a length of `eps^(2/3) |c|` on. Below it the gradients' odd part is linear in delta and
    the even part constant, up to eps^(4/3) of |c|^2 and the third derivatives; the difference of
    the two gradients then has a third of the digits, where at delta = eps |c| it had none.
    """
    y = jax.lax.stop_gradient(y)
    length, size = optax.tree.norm(y.half), optax.tree.norm(y.centre)
    least = float(jnp.finfo(size.dtype).eps) ** (2 / 3) * size
    return jnp.where(length > 0, jnp.maximum(1, least / jnp.where(length > 0, length, 1)), 1)


def _moved(centre: Params, half: Params, factor: Float[Array, ""]) -> Params:
    return jax.tree.map(lambda c, d: (c + factor * d).astype(c.dtype), centre, half)


def check_floor(floor: Any) -> None:
    """Refuses a floor that is known and negative.

    Args:
      floor: a length, or None.

    Raises:
      ValueError: naming its value.
    """
    if floor is None or isinstance(floor, Tracer):
        return
    if not np.asarray(floor) >= 0:
        raise ValueError(f"floor={floor!r} must be 0 or more: a length, in the units of params.")
