"""How measures are named, spaced and gathered into one record."""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from driftlab.dynamics import Snapshot

Measure = Callable[[Snapshot], Array | Mapping[str, Array]]


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

    def spaced(snapshot: Snapshot) -> Array | Mapping[str, Array]:
        return measure(snapshot)

    spaced.__name__ = measure_name(measure)
    spaced.__doc__ = measure.__doc__
    spaced.interval = interval * getattr(measure, "interval", 1)  # type: ignore[attr-defined]
    return spaced


def record(
    measures: Iterable[Measure],
    snapshot: Snapshot,
    index: Int[Array, ""] | int = 0,
    is_last: Bool[Array, ""] | bool = False,
) -> dict[str, Array]:
    """All measures of one snapshot, by name.

    Args:
      measures: the measures.
      snapshot: what the step saw.
      index: which record this is, from 0: decides which spaced measures are due.
      is_last: whether it is the run's last record, at which all are due.

    Returns:
      Name -> array; integers and booleans become floats, so that a missing value can be NaN.

    Raises:
      ValueError: if two measures give the same name.
    """
    values: dict[str, Array] = {}
    for measure in measures:
        interval = getattr(measure, "interval", 1)
        if interval == 1:
            named = _named(measure, snapshot)
        else:
            shapes = jax.eval_shape(lambda m=measure: _named(m, snapshot))
            due = (index % interval == 0) | is_last
            # index is the same for every lane, so under vmap this stays a branch: lanes
            # pay for the measure only when it is due.
            named = jax.lax.cond(
                due,
                lambda m=measure: _named(m, snapshot),
                lambda shapes=shapes: jax.tree.map(
                    lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes
                ),
            )
        repeated = sorted(values.keys() & named.keys())
        if repeated:
            raise ValueError(f"more than one measure records {repeated}; rename one of them.")
        values |= named
    return values


def measure_name(measure: Measure) -> str:
    """The name under which an array that a measure returns is recorded.

    Args:
      measure: a function, a `functools.partial` of one, or any callable.

    Returns:
      The function's name, or the callable's class.
    """
    while isinstance(measure, functools.partial):
        measure = measure.func
    return getattr(measure, "__name__", type(measure).__name__)


def _named(measure: Measure, snapshot: Snapshot) -> dict[str, Array]:
    result = measure(snapshot)
    if not isinstance(result, Mapping):
        result = {measure_name(measure): result}
    return {name: _inexact(value) for name, value in result.items()}


def _inexact(value: Array) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value.astype(jnp.result_type(float))
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))  # files know no bfloat16
