"""How measures are named, spaced and gathered into one record."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from driftlab.dynamics import Snapshot
from driftlab.objective import Params

Values = Array | Mapping[str, Array]
Measure = Callable[[Snapshot], Values]


@dataclasses.dataclass(frozen=True, eq=False)
class Tracker:
    """A measure that remembers, from one of its records to the next: an eigenvector to start from.

    In a sweep its memory travels with the lane, and into the checkpoints. Called like any other
    measure, it starts afresh.

    Attributes:
      name: what an array that it returns is recorded as.
      init: `init(params) -> memory` before the first record: a pytree of arrays.
      update: `update(snapshot, memory) -> (values, memory)`; the memory keeps its shapes.
      interval: records from one of its own to the next (see `every`).
    """

    name: str
    init: Callable[[Params], PyTree[Array]]
    update: Callable[[Snapshot, PyTree[Array]], tuple[Values, PyTree[Array]]]
    interval: int = 1

    def __call__(self, snapshot: Snapshot) -> Values:
        """The values of one snapshot, from a fresh memory.

        Args:
          snapshot: what the step saw.

        Returns:
          An array, or named arrays.
        """
        return self.update(snapshot, self.init(snapshot.params))[0]


def every(measure: Measure, interval: int) -> Measure:
    """The measure, recorded at every `interval`-th record and at the last one; NaN in between.

    Args:
      measure: the measure; its cost is paid only at the records that keep it.
      interval: 1 or more, counted in records (not steps).

    Returns:
      The measure with its interval attached.

    Raises:
      ValueError: if the interval is not a positive integer.
    """
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ValueError(f"interval must be a positive integer of records; got {interval!r}.")

    if isinstance(measure, Tracker):
        return dataclasses.replace(measure, interval=interval * measure.interval)

    def spaced(snapshot: Snapshot) -> Values:
        return measure(snapshot)

    spaced.__name__ = measure_name(measure)
    spaced.__doc__ = measure.__doc__
    spaced.interval = interval * getattr(measure, "interval", 1)  # type: ignore[attr-defined]
    return spaced


def initial_memory(measures: Iterable[Measure], params: Params) -> tuple[PyTree[Array], ...]:
    """What each measure remembers before its first record: `()` for those that don't.

    Args:
      measures: the measures.
      params: theta_0.

    Returns:
      One pytree a measure, as `record` takes them.
    """
    return tuple(
        measure.init(params) if isinstance(measure, Tracker) else () for measure in measures
    )


def record(
    measures: Iterable[Measure],
    snapshot: Snapshot,
    memory: Sequence[PyTree[Array]] | None = None,
    index: Int[Array, ""] | int = 0,
    is_last: Bool[Array, ""] | bool = False,
) -> tuple[dict[str, Array], tuple[PyTree[Array], ...]]:
    """All measures of one snapshot, by name.

    Args:
      measures: the measures.
      snapshot: what the step saw.
      memory: what the measures remember, from `initial_memory` or the last record; None to start
        afresh.
      index: which record this is, from 0: decides which spaced measures are due.
      is_last: whether it is the run's last record, at which all are due.

    Returns:
      `(values, memory)`: name -> array, where integers and booleans become floats, so that a
      missing value can be NaN; and what the measures remember now.

    Raises:
      ValueError: if two measures give the same name.
    """
    measures = tuple(measures)
    if memory is None:
        memory = initial_memory(measures, snapshot.params)
    values: dict[str, Array] = {}
    remembered = []
    for measure, old in zip(measures, memory, strict=True):
        interval = getattr(measure, "interval", 1)
        if interval == 1:
            named, new = _named(measure, snapshot, old)
        else:
            shapes, _ = jax.eval_shape(lambda m=measure, old=old: _named(m, snapshot, old))
            due = (index % interval == 0) | is_last
            # index is the same for every lane, so under vmap this stays a branch: lanes
            # pay for the measure only when it is due.
            named, new = jax.lax.cond(
                due,
                lambda m=measure, old=old: _named(m, snapshot, old),
                lambda shapes=shapes, old=old: (
                    jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes),
                    old,
                ),
            )
        repeated = sorted(values.keys() & named.keys())
        if repeated:
            raise ValueError(f"more than one measure records {repeated}; rename one of them.")
        values |= named
        remembered.append(new)
    return values, tuple(remembered)


def measure_name(measure: Measure) -> str:
    """The name under which an array that a measure returns is recorded.

    Args:
      measure: a function, a `functools.partial` of one, a `Tracker`, or any callable.

    Returns:
      The function's or tracker's name, or the callable's class.
    """
    if isinstance(measure, Tracker):
        return measure.name
    while isinstance(measure, functools.partial):
        measure = measure.func
    return getattr(measure, "__name__", type(measure).__name__)


def _named(
    measure: Measure, snapshot: Snapshot, memory: PyTree[Array]
) -> tuple[dict[str, Array], PyTree[Array]]:
    if isinstance(measure, Tracker):
        result, memory = measure.update(snapshot, memory)
    else:
        result = measure(snapshot)
    if not isinstance(result, Mapping):
        result = {measure_name(measure): result}
    return {name: _inexact(value) for name, value in result.items()}, memory


def _inexact(value: Array) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value.astype(jnp.result_type(float))
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))  # files know no bfloat16
