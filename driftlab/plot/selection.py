"""What a figure draws of a sweep: one variable's lanes against one axis, as NumPy arrays."""

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from driftlab.plot.labels import step_label, variable_label

if TYPE_CHECKING:
    import xarray

SEED = "seed"
STEP = "step"
_VERDICT, _VERDICT_STEP = "verdict", "verdict_step"


class Point(NamedTuple):
    """The lanes of one point of the axes that are neither the figure's axis nor `seed`.

    Attributes:
      coordinates: the point: axis name -> value, empty where there is no other axis.
      values: the variable, NaN where it was not recorded and from the verdict on.
      diverged: lanes whose verdict is "diverged" or "nonfinite".
      missing: lanes that have not run.
      dead: the records from a diverged lane's verdict on.
    """

    coordinates: Mapping[str, Any]
    values: Float[np.ndarray, "axis seed step"]
    diverged: Bool[np.ndarray, "axis seed"]
    missing: Bool[np.ndarray, "axis seed"]
    dead: Bool[np.ndarray, "axis seed step"]


class Selection(NamedTuple):
    """One variable of a sweep, arranged for a figure.

    Attributes:
      variable: the variable's name.
      axis: the axis' values, ascending.
      steps: the iterations at which the variable was recorded.
      points: one entry a point of the remaining axes, in the dataset's order.
      axis_label: the axis' label, with its unit.
      step_label: the steps' label.
      value_label: the variable's label, with its unit.
    """

    variable: str
    axis: Shaped[np.ndarray, " axis"]
    steps: Int[np.ndarray, " step"]
    points: tuple[Point, ...]
    axis_label: str
    step_label: str
    value_label: str


def select(dataset: "xarray.Dataset", variable: str, axis: str) -> Selection:
    """One variable of a sweep against one axis, point by point of the other axes.

    Records at which no lane holds a value (a variable recorded at a larger interval, or a run in
    progress) are left out; those after the divergence of every lane are kept.

    Args:
      dataset: a sweep's result.
      variable: a variable over the axes and `step`.
      axis: a numeric axis; where it is not `seed`, seeds are kept apart as repetitions.

    Returns:
      The selection.

    Raises:
      ValueError: if the dataset lacks the variable or the axis, or they are of the wrong kind.
    """
    import xarray

    _check(dataset, variable, axis)
    names = (variable, _VERDICT, _VERDICT_STEP)
    arrays = xarray.broadcast(*(dataset[name] for name in names))
    repetition = SEED
    if axis == SEED or SEED not in arrays[0].dims:
        repetition = "_repetition"
        arrays = tuple(array.expand_dims(repetition) for array in arrays)
    others = [str(dim) for dim in arrays[0].dims if dim not in (axis, repetition, STEP)]
    axis_values = dataset[axis].values
    order = np.argsort(axis_values)
    values, verdict, verdict_step = (
        np.take(array.transpose(*others, axis, repetition, STEP).values, order, axis=len(others))
        for array in arrays
    )
    verdict, verdict_step = verdict[..., 0], verdict_step[..., 0]

    steps = dataset[STEP].values
    values = values.astype(float)
    diverged = (verdict == "diverged") | (verdict == "nonfinite")
    dead = diverged[..., None] & (steps >= verdict_step[..., None])
    values[dead | ~np.isfinite(values)] = np.nan
    lanes = tuple(range(values.ndim - 1))
    missing = verdict == "missing"
    over = (dead | missing[..., None]).all(lanes) & diverged.any()
    kept = np.isfinite(values).any(lanes) | over
    kept = kept if kept.any() else np.ones_like(kept)

    points = tuple(
        Point(
            coordinates=dict(
                zip(
                    others,
                    (dataset[o].values[i] for o, i in zip(others, at, strict=True)),
                    strict=True,
                )
            ),
            values=values[at][..., kept],
            diverged=diverged[at],
            missing=missing[at],
            dead=dead[at][..., kept],
        )
        for at in itertools.product(*(range(dataset.sizes[other]) for other in others))
    )
    return Selection(
        variable=variable,
        axis=axis_values[order],
        steps=steps[kept],
        points=points,
        axis_label=variable_label(dataset[axis]),
        step_label=step_label(dataset[STEP]),
        value_label=variable_label(dataset[variable]),
    )


def final_values(selection: Selection) -> tuple[int, list[Float[np.ndarray, "axis seed"]]]:
    """The variable at the last record that any surviving lane has: one step for every lane.

    Args:
      selection: the selection.

    Returns:
      The step, and for each point the values there, NaN for diverged and missing lanes.
    """
    alive = [
        np.where((point.diverged | point.missing)[..., None], np.nan, point.values)
        for point in selection.points
    ]
    recorded = np.flatnonzero(np.isfinite(np.stack(alive)).any((0, 1, 2)))
    last = int(recorded[-1]) if recorded.size else len(selection.steps) - 1
    return int(selection.steps[last]), [values[..., last] for values in alive]


def dead_fraction(
    dead: Bool[np.ndarray, "axis seed ..."], missing: Bool[np.ndarray, "axis seed"]
) -> Float[np.ndarray, "axis ..."]:
    """The share of seeds that have diverged.

    Args:
      dead: which seeds have, at each record or at the end of the run.
      missing: seeds that have not run, which count for nothing.

    Returns:
      The share among the seeds that have run, NaN where none has.
    """
    ran = (~missing).sum(1).astype(float)
    ran = np.where(ran == 0, np.nan, ran)
    return dead.sum(1) / ran.reshape(ran.shape + (1,) * (dead.ndim - 2))


def median(values: Float[np.ndarray, "axis seed ..."]) -> Float[np.ndarray, "axis ..."]:
    """The median over the seeds that have a value.

    Args:
      values: the values, NaN for none.

    Returns:
      The median, NaN where no seed has a value.
    """
    some = np.asarray(np.isfinite(values).any(1))
    known = np.where(some[:, None], values, 0.0)
    return np.where(some, np.nanmedian(known, axis=1), np.nan)


def majority_median(point: Point) -> Float[np.ndarray, "axis step"]:
    """The median over surviving seeds, for as long as no more than half have diverged.

    Args:
      point: a point's lanes.

    Returns:
      The median, NaN where more than half the seeds have diverged or none has a value.
    """
    most_died = dead_fraction(point.dead, point.missing) > 0.5
    return np.where(most_died, np.nan, median(point.values))


def _check(dataset: "xarray.Dataset", variable: str, axis: str) -> None:
    for name in (variable, _VERDICT, _VERDICT_STEP):
        if name not in dataset.data_vars:
            drawable = [v for v in dataset.data_vars if STEP in dataset[v].dims]
            raise ValueError(f"variable {name!r} is not in the dataset; {_nearest(name, drawable)}")
    dims = dataset[variable].dims
    if STEP not in dims:
        drawable = [v for v in dataset.data_vars if STEP in dataset[v].dims]
        raise ValueError(
            f"variable {variable!r} is not recorded over 'step'; {_nearest(variable, drawable)}"
        )
    axes = [str(dim) for dim in dims if dim != STEP]
    numeric = [dim for dim in axes if dataset[dim].dtype.kind in "iuf"]
    if axis not in axes:
        raise ValueError(
            f"axis {axis!r} is not an axis of variable {variable!r}; {_nearest(axis, numeric)}"
        )
    if axis not in numeric:
        raise ValueError(f"axis {axis!r} does not hold numbers; numeric axes: {_listed(numeric)}.")


def _nearest(name: str, known: Iterable[Any]) -> str:
    known = [str(item) for item in known]
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}There are: {_listed(known)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
