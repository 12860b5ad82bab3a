"""The flow that a one-step map samples: the logarithm of the map, from its own iterates."""

from collections.abc import Callable
from fractions import Fraction
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.vector_field import Field
from driftlab.hyperparameters import check_positive

_UNROLLED = 4  # up to here the step is compiled once an application; beyond, once in a scan


def log_map_flow(
    step: Callable[..., PyTree],
    order: int,
    step_time: ArrayLike = 1.0,
    *,
    increments: bool = False,
) -> Field:
    """The field whose flow passes through the iterates of `y -> step(y)`, to a given order.

    With the forward differences of the iterates `y_k = step(y_{k-1})`, `y_0 = y`,

        field(y) = log(1 + Delta) y_0 / step_time
                 = (Delta - Delta^2 / 2 + ... +- Delta^order / order) y_0 / step_time,

    so that one application of the step is `step_time` of flow. The step is any near-identity map,
    `step(y) = y + O(h)`, differentiable `order` times: gradient descent, a Runge-Kutta or mirror
    step, the update of two players, a whole epoch of minibatches in a fixed order
    (`step_sequence`). Nothing is differentiated. The error is `O(h^{order+1})` after one step and
    `O(h^order)` after a fixed time; the constants exceed those of the modified equation's own
    terms (`series_flow`), which agree with this field up to `O(h^order)`.

    Where the step multiplies a mode by mu, the series converges for `|1 - mu| < 1` only: for
    gradient descent up to `learning_rate * sharpness = 1`. A momentum's memory is no such mode
    unless it decays slowly (mu = decay, so the truncated term is `|1 - decay|^{order+1}`).

    The differences lose digits: rounding errors of y are amplified by about
    `2^order / (order * step_time)`. Use float64 from order 4 on, or `increments=True`.

    Args:
      step: `step(y) -> y`, or `step(y, args) -> y` with the field's third argument where that is
        not None. It must not draw random numbers: hand it a batch.
      order: how many differences, a positive integer.
      step_time: the time of one application: the learning rate for a field in the papers' time,
        1 for one in iteration time, n h for n steps in one map. May be traced.
      increments: whether the step returns `y_1 - y_0` rather than y_1. Then no digits are lost
        to that subtraction, which in float32 is what limits the order.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y; t is ignored.

    Raises:
      TypeError: if order is not an integer; from the field, if y has a leaf that is not
        floating-point or complex.
      ValueError: if order is less than 1 or step_time not positive; from the field, if the step
        returns another structure or shapes than y's, or the order is so high that in y's
        precision nothing but rounding would be left.

    Source: the modified equation as the logarithm of a map, Hairer, Lubich & Wanner, Geometric
    Numerical Integration, 2006, IX.1 and IX.9; here by the calculus of finite differences, in
    which the shift 1 + Delta is e^{h D}. Cost: `order` applications of the step an evaluation, and
    the memory of three copies of y beside the step's own.
    """
    check_order(order, f"it costs {order} applications of the step an evaluation")
    check_positive("step_time", step_time)
    weights = _weights(order)

    def field(t: Any, y: PyTree, args: Any) -> PyTree:
        del t
        _check_state(y, order, weights)

        def increment(y: PyTree) -> PyTree:
            result = step(y) if args is None else step(y, args)
            _check_result(result, y, "step")
            if increments:
                return jax.tree.map(lambda r, leaf: r.astype(leaf.dtype), result, y)
            return jax.tree.map(lambda r, leaf: r.astype(leaf.dtype) - leaf, result, y)

        total = _weighted_sum(increment, y, weights)
        return jax.tree.map(lambda leaf: leaf / _as_real(step_time, leaf), total)

    return field


def step_sequence(step: Callable[..., PyTree], inputs: PyTree[Array]) -> Callable[[PyTree], PyTree]:
    """Several steps as one map, `y -> step(... step(step(y, inputs[0]), inputs[1]) ...)`.

    Args:
      step: `step(y, input) -> y`, such as a gradient step on a batch.
      inputs: a pytree whose leaves have one leading axis, one entry a step: the batches in order.

    Returns:
      `y -> y`, a compiled loop. In `log_map_flow` its `step_time` is that of all the steps.
    """

    def sequence(y: PyTree) -> PyTree:
        def body(y: PyTree, entry: PyTree) -> tuple[PyTree, None]:
            moved = step(y, entry)
            _check_result(moved, y, "step")
            return jax.tree.map(lambda new, leaf: new.astype(leaf.dtype), moved, y), None

        return jax.lax.scan(body, jax.tree.map(jnp.asarray, y), inputs)[0]

    return sequence


def check_order(order: Any, cost: str) -> None:
    """Raises where an order is none.

    Args:
      order: how many terms.
      cost: what an evaluation costs, for the message.

    Raises:
      TypeError: if it is not an integer.
      ValueError: if it is less than 1.
    """
    if not isinstance(order, int | np.integer) or isinstance(order, bool):
        raise TypeError(
            f"order={order!r} must be a Python integer, the number of terms of the modified "
            "equation: it decides what is compiled, so it cannot be traced or a fraction."
        )
    if order < 1:
        raise ValueError(
            f"order={order} must be 1 or more: it counts the terms of the modified equation. "
            f"Order 1 is the leading flow, with an error O(h) after a fixed time; order P has "
            f"O(h^P), and {cost.replace(str(order), 'P')}."
        )


def _weights(order: int) -> list[float]:
    """c_j with `log(1 + Delta) y_0 = sum_j c_j (y_{j+1} - y_j)`; they add up to 1."""
    exact = [
        (-1) ** j * sum(Fraction(comb(k - 1, j), k) for k in range(j + 1, order + 1))
        for j in range(order)
    ]
    return [float(weight) for weight in exact]


def _weighted_sum(increment: Callable[[PyTree], PyTree], y: PyTree, weights: list[float]) -> PyTree:
    """`sum_j weights[j] * increment(y_j)` along `y_{j+1} = y_j + increment(y_j)`."""
    last = len(weights) - 1
    total = jax.tree.map(jnp.zeros_like, y)
    if last < _UNROLLED:
        for j, weight in enumerate(weights):
            moved = increment(y)
            total = jax.tree.map(lambda leaf, d, c=weight: leaf + c * d, total, moved)
            if j < last:
                y = jax.tree.map(jnp.add, y, moved)
        return total

    def body(
        carry: tuple[PyTree, PyTree], weight: Float[Array, ""]
    ) -> tuple[tuple[PyTree, PyTree], None]:
        y, total = carry
        moved = increment(y)
        total = jax.tree.map(lambda leaf, d: leaf + _as_real(weight, d) * d, total, moved)
        return (jax.tree.map(jnp.add, y, moved), total), None

    start = jax.tree.map(jnp.asarray, y), total
    return jax.lax.scan(body, start, jnp.asarray(weights, float))[0][1]


def _as_real(value: ArrayLike, like: Array) -> Array:
    """A real number that leaves the type of what it multiplies alone."""
    return jnp.asarray(value, jnp.finfo(jnp.result_type(like)).dtype)


def _check_state(y: PyTree, order: int, weights: list[float]) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(y)
    if not leaves:
        raise TypeError("y holds no array: there is nothing that moves.")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"y{jax.tree_util.keystr(path)} has dtype {dtype}; differences of iterates need "
                "floating-point (or complex) arrays. Keep integers and booleans (a counter, a "
                "key) out of the state: close over them, or hand them over as args."
            )
        lost = sum(map(abs, weights)) * float(jnp.finfo(dtype).eps)
        if lost >= 1:
            raise ValueError(
                f"order={order} amplifies the rounding errors of {dtype} by {lost:.1g} times y: "
                "nothing of the field would be left. Lower the order (about 5 is the most that "
                "pays), or compute in float64."
            )


def _check_result(result: PyTree, y: PyTree, name: str) -> None:
    expected, found = jax.tree.structure(y), jax.tree.structure(result)
    if expected != found:
        raise ValueError(f"{name} must return the structure of y, {expected}; got {found}.")
    for (path, leaf), new in zip(
        jax.tree_util.tree_leaves_with_path(y), jax.tree.leaves(result), strict=True
    ):
        to_complex = jnp.iscomplexobj(new) and not jnp.iscomplexobj(leaf)
        if jnp.shape(new) != jnp.shape(leaf) or to_complex:
            raise ValueError(
                f"{name} must return the shapes of y; for y{jax.tree_util.keystr(path)} of "
                f"{jnp.result_type(leaf)}{jnp.shape(leaf)} it returned "
                f"{jnp.result_type(new)}{jnp.shape(new)}."
            )
