"""The program of one lane: a run at one value of every axis, from record to record.

It makes any number of records a call: loop bounds are arguments, so that segments of any length
share one compilation and give the same bits.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, PRNGKeyArray, PyTree

from driftlab.dynamics import Dynamics, Snapshot, State
from driftlab.measures import Measure, initial_memory, record
from driftlab.objective import Params
from driftlab.sweep.checks import check_memory, check_next

HParams = Mapping[str, Any]
Build = Callable[[HParams, PRNGKeyArray], tuple[Dynamics, Params]]

OK, DIVERGED, NONFINITE = 0, 1, 2


class Lane(NamedTuple):
    """What a lane carries from record to record.

    Attributes:
      params: theta_k; for a lane with a verdict, those of its last good record.
      inner: the dynamics' own state, likewise.
      good: `(params, inner)` at the last record whose value was good: the lane's result in the
        end.
      initial_params: theta_0.
      initial_value: the objective's value at step 0.
      verdict: OK, DIVERGED or NONFINITE.
      verdict_step: the iterate k at which the verdict fell; -1 for none.
      memory: what the measures remember, one pytree a measure.
    """

    params: Params
    inner: PyTree
    good: tuple[Params, PyTree]
    initial_params: Params
    initial_value: Float[Array, ""]
    verdict: Int8[Array, ""]
    verdict_step: Int[Array, ""]
    memory: tuple[PyTree, ...] = ()


class Schedule(NamedTuple):
    """When records are made: at steps 0, r, 2r, ... and at the last one, N.

    Attributes:
      steps: N, the iterations.
      record_every: r, iterations a record.
    """

    steps: int
    record_every: int

    @property
    def record_steps(self) -> np.ndarray:
        """The recorded iterations, shape `(records,)`."""
        return np.append(np.arange(0, self.steps, self.record_every), self.steps)


class LaneProgram(NamedTuple):
    """Pure functions of one lane.

    Attributes:
      initialize: `(hparams, key) -> Lane` at step 0.
      advance: `(hparams, key, lane, first, count) -> (Lane, records)`: makes records `first ..
        first + count - 1` and iterates on to the next; `records` maps a measure's name to
        an array `(capacity, ...)` whose first `count` rows are filled.
      step: `(hparams, key, lane) -> params`: one bare iteration, to account for its cost.
    """

    initialize: Callable[[HParams, PRNGKeyArray], Lane]
    advance: Callable[..., tuple[Lane, dict[str, Array]]]
    step: Callable[[HParams, PRNGKeyArray, Lane], Params]


def lane_program(
    build: Build,
    static: Mapping[str, Hashable],
    measures: Sequence[Measure],
    schedule: Schedule,
    divergence_factor: float,
    capacity: int,
) -> LaneProgram:
    """The program of one lane at one static point.

    Args:
      build: the user's `build(hparams, key) -> (Dynamics, params)`.
      static: the static point, merged into the lane's hyper-parameters.
      measures: what a record holds.
      schedule: when records are made.
      divergence_factor: c: a lane diverges once its value exceeds
        `value_0 + c * |value_0|` (never, if value_0 is exactly 0).
      capacity: rows of the records' buffer.

    Returns:
      The program.
    """

    def built(hparams: HParams, key: PRNGKeyArray) -> tuple[Dynamics, Params]:
        # The parameters' key is split off so that batches and initialisation are independent.
        result = build({**static, **hparams}, jax.random.fold_in(key, 0))
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Dynamics)):
            raise TypeError(
                f"build(hparams, key) must return (Dynamics, params); got {type(result).__name__}."
            )
        return result

    def initialize(hparams: HParams, key: PRNGKeyArray) -> Lane:
        dynamics, params = built(hparams, key)
        state = dynamics.init(params, jax.random.fold_in(key, 1))
        params, inner = _strongly_typed((state.params, state.inner))
        value = jax.eval_shape(lambda s: dynamics.observe(s).value, state)
        return Lane(
            params=params,
            inner=inner,
            good=(params, inner),
            initial_params=params,
            initial_value=jnp.zeros((), value.dtype),
            verdict=jnp.zeros((), jnp.int8),
            verdict_step=jnp.full((), -1, jnp.int32),
            memory=_strongly_typed(initial_memory(measures, params)),
        )

    def advance(
        hparams: HParams,
        key: PRNGKeyArray,
        lane: Lane,
        first: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[Lane, dict[str, Array]]:
        dynamics, _ = built(hparams, key)
        dynamics_key = jax.random.fold_in(key, 1)
        last = len(schedule.record_steps) - 1

        def observe(params: Params, inner: PyTree, step: Int[Array, ""]) -> Snapshot:
            # Step and key are the same for every lane (of a seed), so they stay outside the
            # carry: a minibatch then is gathered once, not once a lane.
            state = State(params, inner, step, dynamics_key)
            snapshot = dynamics.observe(state)
            check_next(state, snapshot)
            return snapshot

        def one_record(
            row: Int[Array, ""], carry: tuple[Lane, dict[str, Array]]
        ) -> tuple[Lane, dict[str, Array]]:
            lane, buffer = carry
            index = first + row
            step = jnp.minimum(index * schedule.record_every, schedule.steps)
            snapshot = observe(lane.params, lane.inner, step)
            initial_value = jnp.where(index == 0, snapshot.value, lane.initial_value)
            found = _judge(snapshot.value, initial_value, divergence_factor)
            # A loss may stay finite while a parameter it ignores does not.
            found = jnp.where(_all_finite(lane.params), found, jnp.int8(NONFINITE))
            verdict, verdict_step = _first(lane.verdict, lane.verdict_step, found, step)
            alive = verdict == OK

            good = _select(alive, (lane.params, lane.inner), lane.good)
            values, memory = record(
                measures,
                snapshot._replace(initial_params=lane.initial_params),
                lane.memory,
                index,
                index == last,
            )
            check_memory(measures, lane.memory, memory)
            memory = _select(alive, memory, lane.memory)
            buffer = {
                name: rows.at[row].set(jnp.where(alive, values[name], jnp.nan))
                for name, rows in buffer.items()
            }

            # The record's own step is the first of its interval. At the last record it is one too
            # many; what counts from there on is `good`.
            inner_steps = jnp.minimum(schedule.record_every, schedule.steps - step)
            params, inner = snapshot.next_state.params, snapshot.next_state.inner

            def one_step(offset, carry):
                params, inner, verdict, verdict_step = carry
                snapshot = observe(params, inner, step + offset)
                found = _judge(snapshot.value, initial_value, divergence_factor)
                following = snapshot.next_state
                return (
                    following.params,
                    following.inner,
                    *_first(verdict, verdict_step, found, step + offset),
                )

            params, inner, verdict, verdict_step = jax.lax.fori_loop(
                1, inner_steps, one_step, (params, inner, verdict, verdict_step)
            )
            # Back to the last good record, so that a dead lane carries no NaN (which can send a
            # line search to its iteration limit, and with it every lane beside it).
            params, inner = _select(verdict == OK, (params, inner), good)
            initial = (lane.initial_params, initial_value)
            return Lane(params, inner, good, *initial, verdict, verdict_step, memory), buffer

        shapes = jax.eval_shape(
            lambda: record(
                measures,
                observe(lane.params, lane.inner, first)._replace(
                    initial_params=lane.initial_params
                ),
                lane.memory,
            )[0]
        )
        buffer = {
            name: jnp.full((capacity, *value.shape), jnp.nan, value.dtype)
            for name, value in shapes.items()
        }
        return jax.lax.fori_loop(0, count, one_record, (lane, buffer))

    def step(hparams: HParams, key: PRNGKeyArray, lane: Lane) -> Params:
        dynamics, _ = built(hparams, key)
        state = State(lane.params, lane.inner, jnp.zeros((), jnp.int32), key)
        return dynamics.step(state).params

    return LaneProgram(initialize, advance, step)


def _judge(
    value: Float[Array, ""], initial_value: Float[Array, ""], divergence_factor: float
) -> Int8[Array, ""]:
    """The verdict on one value of what is minimised."""
    limit = initial_value + divergence_factor * abs(initial_value)
    diverged = (value > limit) & (initial_value != 0)
    verdict = jnp.where(diverged, DIVERGED, OK)
    return jnp.where(jnp.isfinite(value), verdict, NONFINITE).astype(jnp.int8)


def _first(
    verdict: Int8[Array, ""], verdict_step: Int[Array, ""], found: Int8[Array, ""], step: Array
) -> tuple[Int8[Array, ""], Int[Array, ""]]:
    """Verdict and step with what was found at `step`; the first verdict stands."""
    fresh = (verdict == OK) & (found != OK)
    return jnp.where(fresh, found, verdict), jnp.where(fresh, step, verdict_step)


def _select(condition: Bool[Array, ""], chosen: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    # A sum of zeros, but for an entry that is not finite: half the time of a test of each.
    return jnp.stack([jnp.isfinite((leaf * 0).sum()) for leaf in jax.tree.leaves(tree)]).all()


def _strongly_typed(tree: PyTree) -> PyTree:
    """Without weak types, which a loop's carry would lose at its first iteration."""

    def strong(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(strong, tree)
