"""One solve of one vector field: the only user of `diffrax.diffeqsolve`.

Nothing here raises while it runs: a solve that fails says so in its result, lane by lane.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Int, Int8, PyTree

from driftlab.flows.checks import check_field, check_numbers, check_solver, check_state

if TYPE_CHECKING:
    import diffrax

State = PyTree[Inexact[Array, "..."]]
Field = Callable[[Any, State, Any], State]

SOLVED = 0
NONFINITE = 1
STEP_LIMIT = 2
SMALLEST_STEP = 3
SOLVER_FAILED = 4
RESULTS = (
    "solved",
    "not finite",
    "step limit reached: too stiff for the solver, or max_steps too small",
    "smallest step reached: blew up in finite time, or too rough for the tolerance",
    "the implicit solver's equations were not solved",
)


class Solved(NamedTuple):
    """What a solve came to.

    Attributes:
      y: the state at `time`, in the types of y0; for a failed adaptive solve the last one accepted.
      time: where the solve ended: t0 + duration, or where it failed.
      result: which of `RESULTS` it is; 0 is solved.
      steps: of the solver, accepted or not.
      evaluations: of the field; -1 for an implicit solver, which does not say.
      next_step: the step that the controller would try next, as a fraction of the duration;
        hand it to the next solve as `first_step`.
    """

    y: State
    time: Float[Array, ""]
    result: Int8[Array, ""]
    steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    next_step: Float[Array, ""]

    @property
    def failed(self) -> Bool[Array, ""]:
        """Whether y is not the state at t0 + duration."""
        return self.result != SOLVED


def solve(
    field: Field,
    y0: State,
    duration: ArrayLike,
    *,
    t0: ArrayLike = 0.0,
    args: Any = None,
    solver: "diffrax.AbstractSolver | None" = None,
    steps: int | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    first_step: ArrayLike | None = None,
    smallest_step: float = 1e-6,
    max_steps: int = 4096,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
) -> Solved:
    """The state at `t0 + duration` of `dy/dt = field(t, y, args)`, `y(t0) = y0`.

    Times, tolerances and whatever the field closes over may be traced, so that solves can be
    vmapped; then each costs as many steps as the one that needs most, which `jax.lax.map` avoids.
    Under `jax.shard_map` pass `check_vma=False`.

    Nothing raises while it runs. A lane that blows up leaves the others as they are and costs the
    steps down to `smallest_step`: with Tsit5 at the default tolerances about 80 in float32, 190 in
    float64. A start that is not finite costs none.

    An explicit solver takes at least about `stiffness * duration / 3` steps of its stages each,
    however smooth the solution, the stiffness being the largest eigenvalue of the field's Jacobian:
    that of the sharpness for gradient flow, and `sharpness * (1 + h * sharpness / 2)` with the
    order-2 term. An implicit solver builds that Jacobian, which costs as many Jacobian-vector
    products a step as there are parameters. Measured on the order-2 flow of a network of 54
    parameters: Tsit5 took 0.005, 0.08 and 0.5 CPU-seconds at stiffness times duration 15, 600 and
    4800, `diffrax.Kvaerno3()` 0.4, 1.0 and 1.3. So the rule: Tsit5 below 10^4 whatever the field,
    and above it for more than about a hundred parameters; Kvaerno3 for the rest.

    Args:
      field: `field(t, y, args) -> dy/dt`, as diffrax has it.
      y0: where it starts; any pytree of floating-point or complex arrays. It is solved in its own
        precision, or in float32 if that is more.
      duration: for how long; negative for backwards in time. Not the end time, of which a
        short solve late in a run would keep few digits.
      t0: the start time, for fields that depend on it.
      args: what the field gets as its third argument.
      solver: a diffrax solver; None for `diffrax.Tsit5()`.
      steps: None for adaptive steps; or the number of equal steps, so that
        `solve(field, y0, n * h, solver=diffrax.Euler(), steps=n)` is n steps of gradient descent.
      rtol: relative tolerance of a step's error, in the root mean square over all entries; None
        for 1e-8 in float64 and 1e-5 in float32.
      atol: absolute tolerance; None for a hundredth of rtol.
      first_step: the fraction of the duration to try first; None finds one by two evaluations.
      smallest_step: the fraction of the duration below which a step counts as failed.
      max_steps: the most steps before the solve counts as failed.
      adjoint: how diffrax differentiates the solve; None for forward mode only, which keeps no
        memory for gradients.

    Returns:
      The state, and how it was reached.

    Raises:
      TypeError: if y0 has a leaf that is not floating-point or complex, or the solver is not one.
      ValueError: if the field returns another structure, or shapes, than y0's; if a solver
        without error estimate is given no `steps`, or both steps and tolerances are; if a
        number is out of range.

    Sources: step control and the first step, Hairer, Norsett & Wanner, Solving Ordinary
    Differential Equations I, 1993, II.4. Cost: `evaluations` of the field.
    """
    import diffrax

    from driftlab.flows.stepping import (
        Clocked,
        Continued,
        Equal,
        error_norm,
        evaluations,
        find_first_step,
    )

    solver = diffrax.Tsit5() if solver is None else solver
    tolerances = {"rtol": rtol, "atol": atol, "first_step": first_step}
    check_numbers(tolerances, steps, smallest_step, max_steps)
    check_solver(solver, steps)
    check_state(y0)

    clock = time_dtype(y0)
    original = y0
    y0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, clock)), y0)
    start, duration = jnp.asarray(t0, clock), jnp.asarray(duration, clock)
    check_field(field, start, y0, args)
    y0, structure = jax.tree.flatten(y0)
    field = on_leaves(field, structure)

    # The first step is the controller's own, never dt0: see Clocked.
    if steps is not None:
        ticks, search, limit = steps, 0, steps
        controller = Equal()
    else:
        ticks, search, limit = 1, 0, max_steps
        rtol = jnp.asarray(_default_rtol(clock) if rtol is None else rtol, clock)
        atol = rtol / 100 if atol is None else jnp.asarray(atol, clock)
        if first_step is None:
            order, search = solver.error_order(None), 2
            clocked = Clocked(field, start, duration)
            first_step = find_first_step(clocked, y0, args, order, rtol, atol)
        controller = Continued(  # pyright: ignore[reportCallIssue]
            diffrax.PIDController(
                rtol, atol, norm=error_norm, dtmin=smallest_step, force_dtmin=False
            ),
            jnp.maximum(jnp.asarray(first_step, clock), smallest_step),
        )
    # A start that is not finite would be marched down to the smallest step: no time, no step.
    end = jnp.where(all_finite(y0), ticks, 0).astype(clock)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(Clocked(field, start, duration / ticks)),
        solver,
        jnp.zeros_like(end),
        end,
        None,
        y0,
        args,
        stepsize_controller=controller,
        max_steps=limit,
        saveat=diffrax.SaveAt(t1=True, controller_state=True),
        adjoint=diffrax.ForwardMode() if adjoint is None else adjoint,
        throw=False,
    )
    assert solution.ys is not None
    assert solution.ts is not None
    assert solution.controller_state is not None
    y = jax.tree.map(lambda leaf: leaf[0], structure.unflatten(solution.ys))
    y = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), y, original)
    taken = jnp.asarray(solution.stats["num_steps"], jnp.int32)
    counted = evaluations(solver, taken)
    return Solved(
        y=y,
        time=start + solution.ts[0] / ticks * duration,
        result=_result(solution.result, all_finite(y)),
        steps=taken,
        evaluations=jnp.where(counted < 0, counted, counted + search).astype(jnp.int32),
        next_step=jnp.asarray(1 / ticks if steps else solution.controller_state[1], clock),
    )


def time_dtype(y: State) -> np.dtype:
    """The type of time for a state: that of its real parts, but float32 at least.

    A time in float64 would silently make a float32 state float64, and one in bfloat16 would not
    resolve a step.

    Args:
      y: a state.

    Returns:
      The type.
    """
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(y)]
    return np.dtype(jnp.result_type(jnp.float32, *dtypes))


def on_leaves(field: Field, structure: jax.tree_util.PyTreeDef) -> Field:
    """A field on the list of its state's leaves: diffrax fails on empty subtrees such as `()`.

    Args:
      field: `field(t, y, args) -> dy/dt`.
      structure: that of y.

    Returns:
      `field(t, leaves, args)`, the leaves of dy/dt.
    """
    return lambda t, leaves, args: jax.tree.leaves(field(t, structure.unflatten(leaves), args))


def all_finite(tree: State) -> Bool[Array, ""]:
    """Whether every entry is finite.

    Args:
      tree: a state.

    Returns:
      One boolean.
    """
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _default_rtol(clock: np.dtype) -> float:
    return 1e-8 if clock == np.float64 else 1e-5


def _result(result: Any, finite: Bool[Array, ""]) -> Int8[Array, ""]:
    import diffrax

    known = diffrax.RESULTS
    code = jnp.where(result == known.successful, SOLVED, SOLVER_FAILED)
    code = jnp.where(result == known.max_steps_reached, STEP_LIMIT, code)
    code = jnp.where(result == known.dt_min_reached, SMALLEST_STEP, code)
    # diffrax calls a solve with constant steps successful whatever comes out.
    return jnp.where(finite, code, NONFINITE).astype(jnp.int8)
