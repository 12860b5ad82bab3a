"""What a solve passes through on its way: reductions of the state at given times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.checks import check_state
from driftlab.flows.solve import Field, Solved, State, solve, time_dtype


class Saved(NamedTuple):
    """Values along a solve, and how it ended.

    Attributes:
      values: what `save` gave, with a leading axis, one entry a time; NaN from where the solve
        failed.
      solved: the solve to the last time; its counts are those of all the way, its next_step a
        fraction of the last interval.
    """

    values: PyTree[Array]
    solved: Solved


def solve_at(
    field: Field,
    y0: State,
    times: ArrayLike,
    save: Callable[[State], PyTree] | None = None,
    *,
    t0: ArrayLike = 0.0,
    **options: Any,
) -> Saved:
    """`save(y(t))` at every one of the times, of `dy/dt = field(t, y, args)`, `y(t0) = y0`.

    A trajectory of a network's weights seldom fits memory: save a loss, a norm, a projection. The
    solve stops at every time and carries on with the step it had, so that what is saved is exact to
    the tolerance; diffrax would interpolate, and check the times by a callback to the host, which
    keeps a program out of JAX's persistent compilation cache. Times closer than the solver's own
    steps cost a step each.

    Args:
      field: `field(t, y, args) -> dy/dt`.
      y0: where it starts.
      times: when to save; ascending from t0 on, or descending; shape `(k,)`. Not traced times are
        checked.
      save: `save(y)`, a tree of floating-point arrays; None for y itself.
      t0: the start time.
      **options: those of `driftlab.flows.solve` but the first step. `steps` and `max_steps` count
        between two times, of which `smallest_step` is a fraction.

    Returns:
      The values, and how the last solve ended: after a failure, that one's result, at no further
      cost.

    Raises:
      ValueError: if the times are not a sequence in order, or `save` gives anything but
        floating-point arrays; as `solve`.
      TypeError: as `solve`.

    Cost: that of the solve, and up to a step a time; the first solve tries the whole first interval
    and pays a rejected step or a few where that is too much.
    """
    check_state(y0)
    _check_times(times, t0)
    save = (lambda y: y) if save is None else save
    clock = time_dtype(y0)
    _check_saved(jax.eval_shape(save, y0))
    equal = options.get("steps") is not None
    smallest = options.get("smallest_step", 1e-6)
    stops = jnp.asarray(times, clock)
    starts = jnp.concatenate([jnp.asarray(t0, clock)[None], stops[:-1]])

    def advance(carry: tuple[Solved, Array], span: tuple) -> tuple[tuple[Solved, Array], PyTree]:
        (solved, last), (start, stop) = carry, span
        duration = stop - start
        first_step = None
        if not equal:
            # The same step in another interval's fractions; the whole of one without length.
            step = last / abs(duration)
            first_step = jnp.where(jnp.isfinite(step), jnp.clip(step, smallest, 1), 1)
        # A start that is not finite costs no step: so do the times after a failure.
        y = jax.tree.map(lambda leaf: jnp.where(solved.failed, jnp.nan, leaf), solved.y)
        found = solve(field, y, duration, t0=start, first_step=first_step, **options)
        failed = solved.failed
        found = found._replace(
            y=jax.tree.map(lambda new, old: jnp.where(failed, old, new), found.y, solved.y),
            time=jnp.where(failed, solved.time, found.time),
            result=jnp.where(failed, solved.result, found.result),
            steps=solved.steps + found.steps,
            evaluations=solved.evaluations + found.evaluations,
        )
        values = jax.tree.map(
            lambda value: jnp.where(found.failed, jnp.nan, value), save(found.y)
        )  # fmt: skip
        # An interval without length says nothing of the step after it.
        last = jnp.where(duration == 0, last, found.next_step * abs(duration))
        return (found, last), values

    begun = Solved(
        y=jax.tree.map(jnp.asarray, y0),
        time=jnp.asarray(t0, clock),
        result=jnp.zeros((), jnp.int8),
        steps=jnp.zeros((), jnp.int32),
        evaluations=jnp.zeros((), jnp.int32),
        next_step=jnp.ones((), clock),
    )
    nothing_yet = jnp.full((), jnp.inf, clock)
    (solved, _), values = jax.lax.scan(advance, (begun, nothing_yet), (starts, stops))
    return Saved(values, solved)


def _check_times(times: Any, t0: Any) -> None:
    if np.ndim(times) != 1 or np.shape(times)[0] == 0:
        raise ValueError(f"times must be a sequence; got shape {np.shape(times)}.")
    if isinstance(times, Tracer) or isinstance(t0, Tracer):
        return
    steps = np.diff(np.asarray(times, float), prepend=float(t0))
    if not ((steps >= 0).all() or (steps <= 0).all()):
        raise ValueError(
            f"times must go from t0={float(t0)} on in order, all forwards or all backwards; got "
            f"{np.asarray(times).tolist()}."
        )


def _check_saved(values: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"save(y){jax.tree_util.keystr(path)} has dtype {leaf.dtype}, which has no NaN for "
                "where a solve did not get; make it floating-point."
            )


def gradients_per_evaluation(
    field: Field, loss: Callable[[PyTree], Float[Array, ""]], y: State, args: Any = None
) -> float:
    """What one evaluation of a field costs, in gradients of a loss.

    The ratio of floating-point operations as XLA counts them before it optimises: 1 for gradient
    flow; 1 to 2 more for every Hessian-vector product. `solved.evaluations` times this is what a
    solve cost.

    Args:
      field: `field(t, y, args) -> dy/dt`.
      loss: `loss(params) -> scalar`, of the same parameters as y.
      y: a state; shapes are enough.
      args: the field's third argument.

    Returns:
      The ratio. A loop counts as one pass through its body: compare full-batch with full-batch.

    Raises:
      ValueError: if XLA counts no operation in the gradient.
    """

    def operations(function: Callable) -> float:
        found = jax.jit(function).lower(y).cost_analysis()
        # One dict, or a list of one a device, in the versions of JAX there are.
        found = found[0] if isinstance(found, list) else found
        return float((found or {}).get("flops", 0.0))

    gradient = operations(jax.grad(loss))
    if gradient <= 0:
        raise ValueError("XLA counts no floating-point operation in the loss' gradient.")
    zero = jnp.zeros((), time_dtype(y))
    return operations(lambda y: field(zero, y, args)) / gradient
