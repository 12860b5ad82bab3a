"""Gradient descent's own flows: its modified equation to any order, its modified loss to order 2.

The fields are in the papers' time: at learning rate h, iteration n is time `t = n h`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from driftlab.flows.backward_error import add_powers, modified_equation_terms, series_flow
from driftlab.flows.one_step import check_order, log_map_flow
from driftlab.flows.vector_field import Field, Loss, gradient_function, loss_function
from driftlab.hyperparameters import check_positive
from driftlab.objective import Objective, Params
from driftlab.suggestions import nearest

ROUTES = ("log_map", "closed_form", "recurrence")
CLOSED_FORMS = 5


def gradient_descent_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    order: int = 2,
    *,
    route: str = "log_map",
    batch_size: int | None = None,
) -> Field:
    """The modified flow of gradient descent, `dy/dt = -g - (h/2) H g - ...`, to any order.

    Its solution after time h is `y - h g(y)` up to `O(h^{order+1})`, and at t = n h iterate n up
    to `O(h^order)`; g is the gradient, H the Hessian, h the learning rate. Order 1 is gradient
    flow. Order 2 is implicit gradient regularisation, the gradient flow of `L + (h/4) |g|^2`.
    From order 3 on the field is not the gradient of any loss (`modified_loss`).

    On a quadratic all routes are one, `-(1 + z/2 + z^2/3 + ...) g` with z = h lambda in each
    eigendirection: truncations of the principal flow's `log(1 - z) / z`, of use below z = 1.

    Args:
      loss: `loss(params) -> scalar`, or an `Objective`, taken over all its training data.
      learning_rate: h; may be traced.
      order: how many terms.
      route: how they are computed.
        "log_map": from the gradients at `order` iterates of gradient descent; for any order, of
        any loss. It differs from the other two at order h^order.
        "closed_form": the terms of `gradient_descent_terms`, to order 5.
        "recurrence": those of `modified_equation_terms`; for small problems.
      batch_size: with an objective, the examples of one gradient evaluation; None for all.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y; t and args are ignored.

    Raises:
      TypeError: if order is not an integer; from the field, if a parameter is not a real
        floating-point array.
      ValueError: if the learning rate is not positive, the order less than 1 or more than the
        route has, or there is no such route.

    Sources: order 2, Barrett & Dherin, 2021; order 3, Rosca, Wu, Qin & Dherin,
    2023; the rest, Hairer, Lubich & Wanner, Geometric Numerical Integration, 2006, IX.1. Cost an
    evaluation, in gradients: log_map `order`; closed_form 1, 2.6 (a gradient and a
    Hessian-vector product) and 7 for orders 1, 2 and 3.
    """
    check_order(order, f"by the log map it costs {order} gradients an evaluation")
    check_positive("learning_rate", learning_rate)
    if route == "closed_form":
        terms = gradient_descent_terms(loss, order, batch_size)

        def field(t: Any, y: Params, args: Any) -> Params:
            del t, args
            return add_powers(terms(y), learning_rate)

        return field

    gradient = gradient_function(loss, batch_size)

    def descent(y: Params) -> Params:
        return jax.tree.map(jnp.negative, gradient(y))

    if route == "recurrence":
        return series_flow(modified_equation_terms((descent,), order), learning_rate)
    if route == "log_map":

        def increment(y: Params) -> Params:
            return jax.tree.map(
                lambda leaf: jnp.asarray(learning_rate, leaf.dtype) * leaf, descent(y)
            )

        return log_map_flow(increment, order, learning_rate, increments=True)
    raise ValueError(f"there is no route={route!r} to the flow: {nearest(str(route), ROUTES)}")


def gradient_descent_terms(
    loss: Loss | Objective, order: int, batch_size: int | None = None
) -> Callable[[Params], tuple[Params, ...]]:
    """The terms f_j of gradient descent's modified equation in closed form, to the fifth.

    With the gradient g, the Hessian H, and T, D4, D5 the derivatives of H applied to vectors:

        f_1 = -g
        f_2 = -H g / 2
        f_3 = -(H^2 g / 3 + T[g,g] / 12)
        f_4 = -(H^3 g / 4 + H T[g,g] / 12 + T[g,Hg] / 12)
        f_5 = -(H^4 g / 5 + 3 H^2 T[g,g] / 40 + H T[g,Hg] / 10 + H D4[g,g,g] / 180
                + T[g,H^2 g] / 20 + T[g,T[g,g]] / 120 + T[Hg,Hg] / 60
                - D4[g,g,Hg] / 120 - D5[g,g,g,g] / 720).

    Args:
      loss: as in `gradient_descent_flow`.
      order: how many, from 1 to 5.
      batch_size: likewise.

    Returns:
      `params -> (f_1, ..., f_order)`, what they share computed once.

    Raises:
      TypeError: if order is not an integer.
      ValueError: if it is not from 1 to 5.

    Sources: f_2, Barrett & Dherin, 2021; f_3, Rosca, Wu, Qin & Dherin, 2023; f_4 and f_5 from the
    B-series of Euler's modified equation (Hairer, Lubich & Wanner, 2006, IX.9), against which a
    test holds all five. Cost: 1, 2.6 and 7 gradients for 1, 2 and 3 terms; the highest derivative
    of f_j doubles the program with every j.
    """
    check_order(order, f"by the log map it costs {order} gradients an evaluation")
    if order > CLOSED_FORMS:
        raise ValueError(
            f"order={order}: the closed forms end at {CLOSED_FORMS}. route='log_map' has any "
            f"order, for {order} gradients an evaluation; route='recurrence' its exact terms, "
            f"for {2 ** (order - 1) - 1} nested derivatives in the last."
        )
    gradient = gradient_function(loss, batch_size)

    def terms(y: Params) -> tuple[Params, ...]:
        g, hessian = jax.linearize(gradient, y)
        found = [_combine((-1, g))]
        if order >= 2:
            h1 = hessian(g)
            found.append(_combine((-1 / 2, h1)))
        if order >= 3:
            h2 = hessian(h1)
            # y -> H(y) v for the vector v = g(y) held fixed: its derivatives are T[g, .], D4[g, ...
            bent = _along(gradient, g)
            t1, third = jax.jvp(bent, (y,), (g,))[1], lambda v: jax.jvp(bent, (y,), (v,))[1]
            found.append(_combine((-1 / 3, h2), (-1 / 12, t1)))
        if order >= 4:
            h3, ht, th = hessian(h2), hessian(t1), third(h1)
            found.append(_combine((-1 / 4, h3), (-1 / 12, ht), (-1 / 12, th)))
        if order >= 5:
            fourth = _along(bent, g)
            d4, d4h = (jax.jvp(fourth, (y,), (v,))[1] for v in (g, h1))
            outer = hessian(_combine((-1 / 5, h3), (-3 / 40, ht), (-1 / 10, th), (-1 / 180, d4)))
            inner = third(_combine((-1 / 20, h2), (-1 / 120, t1)))
            squared = _along(_along(gradient, h1), h1)(y)
            d5 = _along(_along(fourth, g), g)(y)
            found.append(
                _combine((1, outer), (1, inner), (-1 / 60, squared), (1 / 120, d4h), (1 / 720, d5))
            )
        return tuple(found)

    return terms


def modified_loss(loss: Loss | Objective, learning_rate: ArrayLike, order: int = 2) -> Loss:
    """The loss that gradient descent follows by gradient flow: `L + (h/4) |grad L|^2`.

    Its gradient flow is `gradient_descent_flow(loss, learning_rate, 2)`. There is none for more
    terms: f_3 would have to hold H^2 g and T[g,g] as 2 to 1 to be a gradient, and holds them as
    4 to 1.

    Args:
      loss: as in `gradient_descent_flow`.
      learning_rate: h; may be traced.
      order: 1 for the loss itself, or 2.

    Returns:
      `params -> scalar`.

    Raises:
      TypeError: if order is not an integer, or loss neither a function nor an objective.
      ValueError: if order is neither 1 nor 2, or the learning rate is not positive.

    Source: Barrett & Dherin, 2021, Implicit Gradient Regularization, theorem 3.1. Cost: one
    gradient; its own gradient costs a gradient and a Hessian-vector product.
    """
    check_order(order, "there is a modified loss for 1 and 2 terms only")
    if order > 2:
        raise ValueError(
            f"order={order}: there is no modified loss beyond order 2, because from its third "
            "term on the modified field is not the gradient of any function. Its flow is "
            f"gradient_descent_flow(loss, learning_rate, order={order})."
        )
    check_positive("learning_rate", learning_rate)
    value = loss_function(loss)
    if order == 1:
        return value

    def modified(params: Params) -> Float[Array, ""]:
        here, gradient = jax.value_and_grad(value)(params)
        squares = jnp.stack([jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)]).sum()
        return here + jnp.asarray(learning_rate, here.dtype) / 4 * squares

    return modified


def _along(function: Callable[[Params], Params], direction: Params) -> Callable[[Params], Params]:
    """The derivative of a function along a fixed direction, as a function again."""
    return lambda y: jax.jvp(function, (y,), (direction,))[1]


def _combine(*parts: tuple[float, Params]) -> Params:
    factors = [factor for factor, _ in parts]
    return jax.tree.map(
        lambda *leaves: sum(c * leaf for c, leaf in zip(factors, leaves, strict=True)),
        *(tree for _, tree in parts),
    )
