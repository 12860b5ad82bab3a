"""DAL, the drift-adjusted learning rate: long steps where gradient descent leaves its flow little.

Source: Rosca, Wu, Qin, Dherin (2023), "On a continuous time model of gradient descent dynamics and
instability in deep learning", section 6.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from driftlab.hyperparameters import check_range
from driftlab.objective import Params

METHODS = ("hvp", "finite_difference")


class ScaleByDalState(NamedTuple):
    """What `scale_by_dal` remembers, for measures to record.

    Attributes:
      count: the iterations done.
      learning_rate: what the last gradient was multiplied by; 0 before the first.
      curvature: v of the last iteration, in loss / parameter^2; 0 before the first.
    """

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]
    curvature: Float[Array, ""]


def scale_by_dal(
    power: ArrayLike = 1.0,
    constant: ArrayLike | optax.Schedule = 2.0,
    max_learning_rate: ArrayLike = 5.0,
    *,
    method: str = "hvp",
    displacement: ArrayLike = 1e-3,
    start: ArrayLike | None = None,
    stop: ArrayLike | None = None,
    inactive_learning_rate: ArrayLike = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the drift-adjusted learning rate.

    `u_k = h_k g_k` with `h_k = min(constant / v_k^power, max_learning_rate)` and
    `v_k = ||H_k g_k|| / ||g_k||`, H and g on the step's own batch. One step of gradient descent
    drifts from gradient flow by `(h^2 / 2) ||H g||` to second order, so that `h = 2 / v` is where
    the drift is as long as the step, `h ||g||`. v is at most the largest `|lambda|` of H, and about
    that where the gradient lies along its eigenvector: DAL(1) then sits at `2 / lambda`, the edge
    of stability, and cannot converge on a quadratic. A power below 1 gives longer steps where
    v > 1, shorter ones where v < 1. With `power=0` it is `optax.scale(constant)`, up to the cap.

    Put it first in a chain, so that momentum averages gradients that are scaled already:
    `optax.chain(scale_by_dal(), optax.trace(0.9), optax.scale(-1.0))` is `dal(momentum=0.9)`.
    Further on it takes the direction of the updates that reach it for that of g. All numbers may
    be traced arrays, so that they can be lane axes.

    Args:
      power: p, 0 or more; the paper trains with 1 and 0.5.
      constant: the numerator, positive: 2 as published, 1 for steps of which the drift is a half;
        in learning rate * curvature^power. Or a schedule of the iteration.
      max_learning_rate: the cap, positive; infinite for none.
      method: "hvp", exact; or "finite_difference" of two gradients, for losses that cannot be
        differentiated twice forward over reverse, such as those with a custom gradient.
      displacement: the distance of the two gradients of "finite_difference", in parameter units.
        The error of v is proportional to it, and to rounding over it. The released code has 0.01.
      start: from iteration `start + 1` on, counted from 0, the rate is adjusted; None from the
        first one on.
      stop: up to iteration `stop - 1`; None to the end. Before and after, the gradient is
        multiplied by inactive_learning_rate.
      inactive_learning_rate: the learning rate outside start and stop; 1 leaves it to the chain.

    Returns:
      The transformation. Its update needs params and `value_fn(params)`, the loss on the step's
      batch, as optax's line searches do; `driftlab.descent` passes it. A gradient of 0 gives an
      update of 0.

    Raises:
      ValueError: for an argument out of range; from update, without params or value_fn.

    Cost: one Hessian-vector product, about 2 gradients; with "finite_difference" one gradient (two
    where update is not given `grad=`, the gradient of value_fn). The window saves nothing.
    """
    check_range("power", power, "a number, 0 or more", lambda value: value >= 0)
    if not callable(constant):
        check_range("constant", constant, "positive", lambda value: value > 0)
    check_range("max_learning_rate", max_learning_rate, "positive", lambda v: v > 0, infinite=True)
    check_range("displacement", displacement, "positive", lambda value: value > 0)
    check_range("inactive_learning_rate", inactive_learning_rate, "0 or more", lambda v: v >= 0)
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}.")
    _check_window(start, stop)

    def init(params: Params) -> ScaleByDalState:
        zero = jnp.zeros((), _dtype(params))
        return ScaleByDalState(jnp.zeros((), jnp.int32), zero, zero)

    def update(
        updates: Params,
        state: Any,
        params: Params | None = None,
        *,
        value_fn: Callable[[Params], Array] | None = None,
        grad: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, ScaleByDalState]:
        del extra_args
        if params is None:
            raise ValueError("scale_by_dal needs params: call update(grads, state, params, ...).")
        if value_fn is None:
            raise ValueError(
                "scale_by_dal needs the loss as an extra argument: call update(grads, state, "
                "params, value_fn=lambda params: loss(params, batch)) with the step's own batch, "
                "as driftlab.descent does. A wrapper around it must pass extra arguments on "
                "(optax.with_extra_args_support)."
            )
        dtype = state.learning_rate.dtype
        norm = _norm(updates, dtype)
        zero = norm == 0
        length = jnp.where(zero, 1, norm)
        direction = jax.tree.map(
            lambda u, p: (u / length.astype(u.dtype)).astype(jnp.result_type(p)), updates, params
        )
        gradient = jax.grad(value_fn)
        if method == "hvp":
            image = jax.jvp(gradient, (params,), (direction,))[1]
            curvature = _norm(image, dtype)
        else:
            distance = jnp.asarray(displacement, dtype)
            moved = jax.tree.map(lambda p, d: p + distance.astype(d.dtype) * d, params, direction)
            here = gradient(params) if grad is None else grad
            difference = jax.tree.map(jnp.subtract, gradient(moved), here)
            curvature = _norm(difference, dtype) / distance
        numerator: Any = constant(state.count) if callable(constant) else constant
        adjusted = jnp.asarray(numerator, dtype) / curvature ** jnp.asarray(power, dtype)
        adjusted = jnp.minimum(adjusted, jnp.asarray(max_learning_rate, dtype))
        rate = jnp.where(
            _is_active(state.count, start, stop),
            adjusted,
            jnp.asarray(inactive_learning_rate, dtype),
        )
        # Without a cap the rate is infinite where the curvature is 0: 0 times that is not 0.
        factor = jnp.where(zero, 0, rate)
        scaled = jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return scaled, ScaleByDalState(count, rate, curvature)

    return optax.GradientTransformationExtraArgs(init, update)


def dal(
    learning_rate: ArrayLike | optax.Schedule = 2.0,
    power: ArrayLike = 1.0,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    max_learning_rate: ArrayLike = 5.0,
    *,
    method: str = "hvp",
    displacement: ArrayLike = 1e-3,
    start: ArrayLike | None = None,
    stop: ArrayLike | None = None,
    inactive_learning_rate: ArrayLike = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent, with or without momentum, at the drift-adjusted learning rate.

    `h_k = min(learning_rate / v_k^power, max_learning_rate)`, `m_k = momentum m_{k-1} + h_k g_k`,
    `theta_{k+1} = theta_k - m_k`; see `scale_by_dal`. With `power=0` it is
    `optax.sgd(learning_rate, momentum)`, up to the cap.

    Args:
      learning_rate: the rate where v = 1, the constant of `scale_by_dal`; 2 as published. A number,
        a traced array or a schedule.
      power: p, 0 or more; the paper trains with 1 and 0.5.
      momentum: the decay of the accumulated, scaled gradients; None for none.
      nesterov: whether momentum is Nesterov's.
      max_learning_rate: the cap on the rate.
      method: as in `scale_by_dal`.
      displacement: likewise.
      start: likewise.
      stop: likewise.
      inactive_learning_rate: likewise; the learning rate outside start and stop.

    Returns:
      The optimiser; its update needs `value_fn=`, which `driftlab.descent` passes.

    Raises:
      ValueError: as `scale_by_dal`.
    """
    scale = scale_by_dal(
        power,
        learning_rate,
        max_learning_rate,
        method=method,
        displacement=displacement,
        start=start,
        stop=stop,
        inactive_learning_rate=inactive_learning_rate,
    )
    trace = [] if momentum is None else [optax.trace(momentum, nesterov)]  # type: ignore[arg-type]
    return optax.chain(scale, *trace, optax.scale(-1.0))


def _norm(tree: Params, dtype: Any) -> Float[Array, ""]:
    """The norm in `dtype`, scaled so that no square over- or underflows."""
    leaves = [leaf.astype(dtype) for leaf in jax.tree.leaves(tree)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / scale)) for leaf in leaves))


def _dtype(params: Params) -> Any:
    """Of the rate: that of params, at least float32."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


def _is_active(
    count: Int[Array, ""], start: ArrayLike | None, stop: ArrayLike | None
) -> Bool[Array, ""]:
    active = jnp.ones((), bool)
    if start is not None:
        active &= count > start
    if stop is not None:
        active &= count < stop
    return active


def _check_window(start: Any, stop: Any) -> None:
    given = {"start": start, "stop": stop}
    known = {name: v for name, v in given.items() if v is not None and not isinstance(v, Tracer)}
    for name, value in known.items():
        if np.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(f"{name} must be an iteration, a whole number; got {value!r}.")
    if stop is None or isinstance(stop, Tracer) or isinstance(start, Tracer):
        return
    if int(stop) - (-1 if start is None else int(start)) < 2:
        raise ValueError(
            f"start={start}, stop={stop}: no iteration lies strictly between them. Give a stop "
            "that exceeds start by 2 or more, 1 or more without a start."
        )
