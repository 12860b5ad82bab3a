"""The axes of a sweep: numeric lane axes (vmapped) and static axes (one program each)."""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

SEED_AXIS = "seed"
_RESERVED = ("step",)


class Grid:
    """A product of named axes.

    Lane axes are numeric hyper-parameters whose values are arrays inside one compiled program.
    Static axes hold anything hashable that changes the program (an optimiser's name, a width, a
    batch size); each of their points is compiled once. The lane axis `seed` also picks the
    lane's random key: `fold_in(key, seed)`, so that adding lanes or seeds never changes the key
    of a lane there was before, and lanes that differ in anything else share initialisation and
    batches.

    Args:
      lanes: axis name -> values: a 1-D array or sequence of distinct finite numbers, or for
        `seed` an integer n, which stands for `0 .. n-1`.
      static: axis name -> distinct hashable values.

    Attributes:
      lanes: axis name -> 1-D NumPy array.
      static: axis name -> tuple of values.

    Raises:
      ValueError: if an axis is empty, repeated, not numeric, or holds a non-finite or repeated
        value.
    """

    lanes: Mapping[str, np.ndarray]
    static: Mapping[str, tuple[Hashable, ...]]

    def __init__(
        self,
        lanes: Mapping[str, Any],
        static: Mapping[str, Iterable[Hashable]] | None = None,
    ):
        static = {} if static is None else static
        repeated = sorted(set(lanes) & set(static))
        if repeated:
            raise ValueError(f"axes {repeated} are both lane and static axes; choose one.")
        for name in (*lanes, *static):
            if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
                raise ValueError(
                    f"axis name {name!r} is not usable: give an identifier other than {_RESERVED}."
                )
        self.lanes = {name: _lane_axis(name, values) for name, values in lanes.items()}
        self.static = {name: _static_axis(name, values) for name, values in static.items()}

    def __repr__(self) -> str:
        """Axis sizes, lanes first."""
        sizes = ", ".join(f"{name}: {len(values)}" for name, values in self.axes.items())
        return f"Grid({sizes})"

    @property
    def axes(self) -> dict[str, Any]:
        """All axes in the order of a result's dimensions: static ones, then lane axes."""
        return {**self.static, **self.lanes}

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of `axes`."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def num_lanes(self) -> int:
        """Lanes of one static point: the product of the lane axes' lengths."""
        return int(np.prod([len(values) for values in self.lanes.values()], dtype=int))

    def static_points(self) -> Iterator[dict[str, Hashable]]:
        """The points of the static axes, the last axis fastest."""
        for values in itertools.product(*self.static.values()):
            yield dict(zip(self.static, values, strict=True))

    def lane_values(self) -> dict[str, np.ndarray]:
        """Axis name -> its value on every lane, shape `(num_lanes,)`, the last axis fastest."""
        mesh = np.meshgrid(*self.lanes.values(), indexing="ij")
        return {name: values.reshape(-1) for name, values in zip(self.lanes, mesh, strict=True)}

    def lane_keys(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """The lanes' keys.

        Args:
          key: the sweep's key.

        Returns:
          `fold_in(key, seed)` for every lane, shape `(num_lanes,)`; without a seed axis one key
          `fold_in(key, 0)` that all lanes share, shape `()`.
        """
        if SEED_AXIS not in self.lanes:
            return jax.random.fold_in(key, 0)
        seeds = jnp.asarray(self.lane_values()[SEED_AXIS], jnp.uint32)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, seeds)


def canonical(values: np.ndarray) -> np.ndarray:
    """Lane values in JAX's default precision: floats as float32 (float64 under x64), ints int32.

    Args:
      values: a NumPy array of numbers.

    Returns:
      The same in that precision.
    """
    dtype = float if np.issubdtype(values.dtype, np.floating) else np.int32
    return values.astype(jax.dtypes.canonicalize_dtype(dtype))


def _lane_axis(name: str, values: Any) -> np.ndarray:
    if name == SEED_AXIS and isinstance(values, int) and not isinstance(values, bool):
        values = range(values)
    array = np.asarray(list(values) if isinstance(values, Iterable) else values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"lane axis {name!r} needs a non-empty 1-D list of numbers; got {values!r}."
        )
    if array.dtype == bool or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"lane axis {name!r} needs numbers; got {values!r}. Axes that change the program "
            "(names, booleans) go into Grid(static=...)."
        )
    if np.iscomplexobj(array) or not np.isfinite(array).all():
        raise ValueError(f"lane axis {name!r} needs finite real numbers; got {array.tolist()}.")
    seeds = np.issubdtype(array.dtype, np.integer) and (array >= 0).all() and (array < 2**31).all()
    if name == SEED_AXIS and not seeds:
        raise ValueError(f"lane axis 'seed' needs integers in [0, 2**31); got {array.tolist()}.")
    _check_distinct(name, array.tolist())
    return array


def _static_axis(name: str, values: Iterable[Hashable]) -> tuple[Hashable, ...]:
    values = tuple(values) if not isinstance(values, str) else ()
    if not values:
        raise ValueError(f"static axis {name!r} needs a non-empty list of values.")
    for value in values:
        try:
            hash(value)
        except TypeError:
            raise ValueError(
                f"static axis {name!r} needs hashable values; got {value!r}."
            ) from None
    _check_distinct(name, values)
    return values


def _check_distinct(name: str, values: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"axis {name!r} holds {value!r} more than once.")
        seen.add(value)
