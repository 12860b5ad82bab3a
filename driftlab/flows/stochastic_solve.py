"""Paths of stochastic flows: one solve, and a `Dynamics` of it.

Like `driftlab.flows.solve`, nothing here raises while it runs; the only other user of
`diffrax.diffeqsolve`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from driftlab.dynamics import Dynamics, State
from driftlab.flows.checks import check_field, check_numbers, check_state
from driftlab.flows.dynamics import check_step_time, follow
from driftlab.flows.solve import NONFINITE, SOLVED, Solved, all_finite, on_leaves, time_dtype
from driftlab.flows.stochastic import ITO, StochasticFlow, noise_operator
from driftlab.objective import Objective, Params

if TYPE_CHECKING:
    import diffrax

# Keeps a path's draws apart from the batches', which fold the same key by the same steps.
_STREAM = 0x5DE


def solve_sde(
    model: StochasticFlow,
    y0: PyTree,
    duration: ArrayLike,
    *,
    key: PRNGKeyArray,
    steps: int,
    t0: ArrayLike = 0.0,
    args: Any = None,
    solver: "diffrax.AbstractSolver | None" = None,
    path_tolerance: float | None = None,
) -> Solved:
    """The state at `t0 + duration` on one path of a stochastic flow, in equal steps.

    A pure function of (y0, key) that can be vmapped over either. Euler's method has strong order
    1/2 and weak order 1: its steps must be shorter than an iteration where the equation's own
    error is to show, for its error in one step of h is of the size of the order-1 equation's.

    Args:
      model: the equation.
      y0: where it starts; any pytree of floating-point arrays, solved in its own precision, or
        in float32 if that is more.
      duration: for how long; positive.
      key: of the path.
      steps: how many equal steps.
      t0: the start time.
      args: the third argument of drift and diffusion.
      solver: a diffrax solver of the model's calculus; None for `diffrax.Euler()` in Ito's and
        `diffrax.Heun()` in Stratonovich's.
      path_tolerance: None draws each step's increment by itself. A fraction of the duration
        gives a key the same path whatever the steps are, down to that fraction, for studies
        of convergence (`diffrax.VirtualBrownianTree`); it brings a callback to the host, which
        keeps the program out of JAX's persistent compilation cache.

    Returns:
      The state, and how it was reached: `SOLVED` or `NONFINITE`. `evaluations` are those of drift
      and diffusion alike; -1 for solvers that do not say.

    Raises:
      TypeError: if y0 holds anything but floating-point arrays, or the solver is not one.
      ValueError: if the solver is one of another calculus, or of additive noise only; if steps is
        not a positive integer; if the drift returns another structure, or shapes, than y0's.

    Sources: Kloeden & Platen, Numerical Solution of Stochastic Differential Equations, 1992,
    10.2 and 14.1 (Euler's orders). Cost: a drift and a diffusion a step with Euler's method.
    """
    import diffrax

    from driftlab.flows.stepping import Clocked, Equal, evaluations

    if solver is None:
        solver = diffrax.Euler() if model.calculus == ITO else diffrax.Heun()
    check_numbers({}, steps, 0.5, steps)
    _check_solver(solver, model.calculus)
    _check_tolerance(path_tolerance)
    check_state(y0)
    clock = time_dtype(y0)
    original = y0
    y0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, clock)), y0)
    start, duration = jnp.asarray(t0, clock), jnp.asarray(duration, clock)
    check_field(model.drift, start, y0, args)

    y0, structure = jax.tree.flatten(y0)
    unit = duration / steps

    def diffusion(s: Any, leaves: list[Array], args: Any) -> Any:
        operator = model.diffusion(start + s * unit, structure.unflatten(leaves), args)

        # In the solver's clock a step takes time 1, and so do the increments of its noise.
        def product(noise: Float[Array, " noise"]) -> list[Array]:
            return jax.tree.leaves(operator.mv(jnp.sqrt(unit) * noise))

        return noise_operator(product, leaves, model.noise_size)

    shape = jax.ShapeDtypeStruct((model.noise_size,), clock)
    area = _levy_area(solver)
    if path_tolerance is None:
        path = diffrax.UnsafeBrownianPath(shape, key, area)
    else:
        path = diffrax.VirtualBrownianTree(
            np.zeros((), clock), np.asarray(steps, clock), path_tolerance * steps, shape, key, area
        )
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(
            diffrax.ODETerm(Clocked(on_leaves(model.drift, structure), start, unit)),
            diffrax.ControlTerm(diffusion, path),
        ),
        solver,
        np.zeros((), clock),
        jnp.where(all_finite(y0), steps, 0).astype(clock),
        None,
        y0,
        args,
        stepsize_controller=Equal(),
        max_steps=steps,
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    assert solution.ys is not None
    assert solution.ts is not None
    y = jax.tree.map(lambda leaf: leaf[0], structure.unflatten(solution.ys))
    y = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), y, original)
    taken = jnp.asarray(solution.stats["num_steps"], jnp.int32)
    return Solved(
        y=y,
        time=start + solution.ts[0] * unit,
        result=jnp.where(all_finite(y), SOLVED, NONFINITE).astype(jnp.int8),
        steps=taken,
        evaluations=jnp.asarray(evaluations(solver, taken), jnp.int32),
        next_step=jnp.asarray(1 / steps, clock),
    )


def sde_flow(
    model: StochasticFlow,
    objective: Objective,
    *,
    steps: int,
    step_time: ArrayLike | None = None,
    to_state: Callable[[Params], PyTree] | None = None,
    solver: "diffrax.AbstractSolver | None" = None,
) -> Dynamics:
    """The dynamics that follows a path of a stochastic flow, one iteration's time a step.

    Step k draws with the state's key folded by k, so that it is a pure function of
    (params, inner, k, key), and runs of different lengths share their paths.

    Args:
      model: the equation.
      objective: what the loss and gradient of a snapshot refer to; not part of the flow.
      steps: of the solver in one step of the dynamics.
      step_time: the time of one step; None for the model's, that of one iteration.
      to_state: `to_state(params) -> y` at time 0; None for `model.init(params)`. For a method with
        memory `lambda params: model.init(params, opt_state)`.
      solver: as in `solve_sde`.

    Returns:
      The dynamics; its `State.inner` is a `driftlab.flows.FlowState`. A step that is not finite
      makes params NaN, as `driftlab.flows.flow` does.

    Raises:
      ValueError: if step_time is not a positive, finite scalar; as `solve_sde`, from `step`.
    """
    span = model.step_time if step_time is None else step_time
    check_step_time(span)

    def advance(state: State, y: PyTree, t0: Array, span: Array, first_step: Array) -> Solved:
        del first_step
        draws = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
        return solve_sde(model, y, span, key=draws, steps=steps, t0=t0, solver=solver)

    return follow(advance, span, objective, to_state or model.init, model.params)


def _levy_area(solver: Any) -> Any:
    """What the solver wants to know of the noise during a step."""
    import diffrax

    wanted = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    if issubclass(wanted, diffrax.AbstractSpaceTimeTimeLevyArea):
        return diffrax.SpaceTimeTimeLevyArea
    if issubclass(wanted, diffrax.AbstractSpaceTimeLevyArea):
        return diffrax.SpaceTimeLevyArea
    return diffrax.BrownianIncrement


def _check_solver(solver: Any, calculus: str) -> None:
    import diffrax

    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver must be a diffrax solver, such as diffrax.Euler(); got {solver}.")
    name = type(solver).__name__
    ito = isinstance(solver, diffrax.AbstractItoSolver | diffrax.Euler)
    stratonovich = isinstance(solver, diffrax.AbstractStratonovichSolver | diffrax.EulerHeun)
    if not (ito if calculus == ITO else stratonovich):
        fits = "diffrax.Euler()" if calculus == ITO else "diffrax.Heun() or diffrax.SPaRK()"
        other = "which is no solver of stochastic equations" if not (ito or stratonovich) else (
            "which converges to the equation of the other calculus, whose drift differs"
        )  # fmt: skip
        raise ValueError(
            f"solver={name}() for an equation in the calculus of {calculus!r}, {other}. Take "
            f"{fits}, or make the equation with the other `calculus`."
        )
    additive = (diffrax.SRA1, diffrax.SEA, diffrax.ShARK, diffrax.AbstractFosterLangevinSRK)
    if isinstance(solver, additive):
        raise ValueError(
            f"solver={name}() is for noise that does not depend on the state, and gradient noise "
            "does. Take diffrax.Heun() or diffrax.SPaRK()."
        )


def _check_tolerance(tolerance: Any) -> None:
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(
            f"path_tolerance is a fraction of the duration, between 0 and 1; got {tolerance!r}."
        )
