"""A vector field as a `Dynamics`: one step is one iteration's worth of flow time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Int8, PRNGKeyArray, PyTree

from driftlab.dynamics import Dynamics, State, from_step
from driftlab.flows.solve import SOLVED, Field, Solved, check_state, solve, time_dtype
from driftlab.flows.vector_field import Flow
from driftlab.objective import Objective, Params

if TYPE_CHECKING:
    import diffrax


class FlowState(NamedTuple):
    """The inner state of a flow.

    Attributes:
      y: the state of the ODE; `()` where that is params.
      step: k, the step that this state belongs to.
      time: t = k * step_time; of a flow that failed, where it did.
      result: which of `driftlab.flows.RESULTS` the first failed step came to, or 0.
      next_step: the fraction of a step that the solver tries first.
      steps: of the solver so far.
      evaluations: of the field so far; negative for an implicit solver, which does not say.
    """

    y: PyTree
    step: Int[Array, ""]
    time: Float[Array, ""]
    result: Int8[Array, ""]
    next_step: Float[Array, ""]
    steps: Int[Array, ""]
    evaluations: Int[Array, ""]


def flow(
    field: Field | Flow,
    step_time: ArrayLike,
    objective: Objective,
    *,
    to_state: Callable[[Params], PyTree] | None = None,
    to_params: Callable[[PyTree], Params] | None = None,
    args: Callable[[State], Any] | None = None,
    solver: "diffrax.AbstractSolver | None" = None,
    steps: int | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    smallest_step: float = 1e-6,
    max_steps: int = 4096,
    t0: ArrayLike = 0.0,
) -> Dynamics:
    """The dynamics that follows `dy/dt = field(t, y, args)` for `step_time` a step.

    `theta_k = y(k * step_time)`. With a field in the papers' time, `step_time = h` makes step k of
    the flow comparable to iteration k of an optimiser at learning rate h; with one in iteration
    time (derived from an optax chain) `step_time = 1` does.

    A step whose solve fails makes params NaN, which a sweep calls `nonfinite`, and says why in
    `FlowState.result`; every step after it costs nothing and changes nothing. A state is stepped at
    its own `State.step` only, for which `FlowState.step` stands: at another it becomes NaN.

    Args:
      field: `field(t, y, args) -> dy/dt`, or a `Flow`, which brings to_state and to_params.
      step_time: the time of one step; a number or a traced scalar, so that it can be a lane axis.
      objective: what the loss and gradient of a snapshot refer to; not part of the flow.
      to_state: `to_state(params) -> y` at time 0, for an ODE whose state is not params itself (a
        velocity beside them, real and imaginary parts); then `FlowState.y` carries it.
      to_params: `to_params(y) -> params`, with to_state.
      args: `args(state)`, the field's third argument during the step from that state, such as
        its batch: `lambda state: objective.batch(state.key, state.step)`. None passes None.
      solver: a diffrax solver; None for `diffrax.Tsit5()`.
      steps: None for adaptive steps, which carry on from step to step; or the number of equal
        ones: `solver=diffrax.Euler(), steps=1` on gradient flow is gradient descent.
      rtol: as in `driftlab.flows.solve`.
      atol: as in `driftlab.flows.solve`.
      smallest_step: likewise, a fraction of step_time.
      max_steps: the most steps of the solver in one step of the flow.
      t0: the time at step 0, for a field that depends on it: n for that of a chain with a schedule
        whose flow starts at iterate n.

    Returns:
      The dynamics; its `State.inner` is a `FlowState`.

    Raises:
      ValueError: if step_time is not a positive, finite scalar, or only one of to_state and
        to_params is given, or they come with a `Flow`; as `driftlab.flows.solve`, from `step`.
      TypeError: from `init`, if y is not made of floating-point or complex arrays.

    Cost: with Tsit5 at the default tolerance, 7 evaluations of the field a step as long as
    `step_time * sharpness` is below about 1 in float32 (0.1 in float64), 9 (20) at 2, and about
    2 * step_time * sharpness beyond 20; measured on gradient flow of a small network. A snapshot's
    gradient costs nothing unless it is read.
    """
    check_step_time(step_time)
    if isinstance(field, Flow):
        if to_state is not None or to_params is not None:
            raise ValueError(
                "to_state and to_params are those of the Flow that field is: leave them out, or "
                "pass its `field`."
            )
        to_state, to_params, field = field.init, field.params, field.field
    if (to_state is None) != (to_params is None):
        raise ValueError(
            "to_state and to_params are given together: one makes the ODE's state from params, "
            "the other params from it."
        )

    def advance(
        state: State, y: PyTree, t: Array, span: Array, first_step: Float[Array, ""]
    ) -> Solved:
        return solve(
            field,
            y,
            span,
            t0=jnp.asarray(t0, span.dtype) + t,
            args=None if args is None else args(state),
            solver=solver,
            steps=steps,
            rtol=rtol,
            atol=atol,
            first_step=None if steps is not None else first_step,
            smallest_step=smallest_step,
            max_steps=max_steps,
        )

    return follow(advance, step_time, objective, to_state, to_params)


def follow(
    advance: Callable[..., Solved],
    step_time: ArrayLike,
    objective: Objective,
    to_state: Callable[[Params], PyTree] | None,
    to_params: Callable[[PyTree], Params] | None,
) -> Dynamics:
    """The dynamics of whatever advances a state by a time; see `flow`.

    Args:
      advance: `advance(state, y, t0, span, first_step) -> Solved`: y at `t0 + span`, where
        `first_step` is the fraction of the span that the solve before it would try next.
      step_time: the time of one step.
      objective: what the loss and gradient of a snapshot refer to.
      to_state: `to_state(params) -> y`, or None where y is params.
      to_params: `to_params(y) -> params`, likewise.

    Returns:
      The dynamics; its `State.inner` is a `FlowState`.
    """

    def init(params: Params, key: PRNGKeyArray) -> State:
        params = jax.tree.map(jnp.asarray, params)
        check_state(params)
        y = params if to_state is None else jax.tree.map(jnp.asarray, to_state(params))
        check_state(y)
        clock = time_dtype(y)
        zero = jnp.zeros((), jnp.int32)
        inner = FlowState(
            y=() if to_state is None else y,
            step=zero,
            time=jnp.zeros((), clock),
            result=jnp.full((), SOLVED, jnp.int8),
            # The whole step: where that is too much, a rejection or two find out once.
            next_step=jnp.ones((), clock),
            steps=zero,
            evaluations=zero,
        )
        return State(params if to_params is None else to_params(y), inner, zero, key)

    def step(state: State) -> State:
        inner = state.inner
        y = state.params if to_params is None else inner.y
        # A sweep holds a lane whose run is over at its last good state, and steps it along with
        # the others: the same blow-up again and again, at a hundred times the cost of their steps.
        y = _nan_where(inner.step != state.step, y)
        clock = time_dtype(y)
        span = jnp.asarray(step_time, clock)
        # From k rather than from the last time, whose rounding errors would add up.
        solved = advance(state, y, state.step.astype(clock) * span, span, inner.next_step)
        failed_before = inner.result != SOLVED
        result = jnp.where(failed_before, inner.result, solved.result)
        failed = result != SOLVED
        y = _nan_where(failed, solved.y)
        return State(
            params=y if to_params is None else _nan_where(failed, to_params(y)),
            inner=FlowState(
                y=() if to_params is None else y,
                step=state.step + 1,
                time=jnp.where(failed_before, inner.time, solved.time),
                result=result,
                next_step=solved.next_step,
                steps=inner.steps + solved.steps,
                evaluations=inner.evaluations + solved.evaluations,
            ),
            step=state.step + 1,
            key=state.key,
        )

    return from_step(init, step, objective)


def _nan_where(condition: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.where(condition, jnp.nan, leaf), tree)


def check_step_time(step_time: Any) -> None:
    """Raises where a known time of one step is not a positive, finite scalar.

    Args:
      step_time: a number, an array, or a traced array, whose value is not looked at.

    Raises:
      ValueError: saying what was given.
    """
    if jnp.shape(step_time) != ():
        raise ValueError(
            f"step_time must be a scalar; got shape {jnp.shape(step_time)}. Several make a lane "
            "axis of a sweep."
        )
    if isinstance(step_time, Tracer):
        return
    if not np.isfinite(float(step_time)) or float(step_time) <= 0:
        raise ValueError(
            f"step_time={float(step_time)} must be positive and finite: the time of one step. For "
            "the flow backwards in time negate the field."
        )
