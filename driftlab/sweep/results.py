"""A sweep's records: host arrays while it runs, zarr on disk, an xarray.Dataset for the user."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.sweep.grid import Grid
from driftlab.sweep.lane import DIVERGED, NONFINITE, OK

if TYPE_CHECKING:
    import xarray

MISSING = -1
VERDICTS = {MISSING: "missing", OK: "ok", DIVERGED: "diverged", NONFINITE: "nonfinite"}
METRICS = "metrics.zarr"
_UNITS = {"step": "iterations", "learning_rate": "1", "seed": "1"}
_VERDICT_DTYPE = f"<U{max(map(len, VERDICTS.values()))}"


class Records:
    """Everything a sweep has recorded, by static point, lane and record.

    Attributes:
      values: measure -> array `(points, lanes, records, ...)`, NaN where nothing was recorded.
      verdict: codes of `VERDICTS`, `(points, lanes)`.
      verdict_step: the iterate at which the verdict fell, or -1; `(points, lanes)`.
    """

    def __init__(self, grid: Grid, record_steps: np.ndarray, attrs: Mapping[str, Any]):
        self.grid = grid
        self.record_steps = record_steps
        self.attrs = dict(attrs)
        self.values: dict[str, np.ndarray] = {}
        points = len(list(grid.static_points()))
        self.verdict = np.full((points, grid.num_lanes), MISSING, np.int8)
        self.verdict_step = np.full((points, grid.num_lanes), -1, np.int32)

    def write(
        self,
        point: int,
        lanes: np.ndarray,
        first: int,
        count: int,
        values: Mapping[str, np.ndarray],
    ) -> None:
        """Stores records `first .. first+count-1` of some lanes.

        Args:
          point: the static point's number.
          lanes: lane numbers, `(n,)`.
          first: the first record's number.
          count: how many rows of the buffers count.
          values: measure -> buffer `(n or more, count or more, ...)`.
        """
        for name, buffer in values.items():
            if name not in self.values:
                shape = (*self.verdict.shape, len(self.record_steps), *buffer.shape[2:])
                self.values[name] = np.full(shape, np.nan, buffer.dtype)
            self.values[name][point, lanes, first : first + count] = buffer[: len(lanes), :count]

    def dataset(self) -> "xarray.Dataset":
        """The records as an xarray.Dataset: one dimension per axis and `step`.

        Returns:
          Measures over (axes..., step, ...), `verdict` ("ok", "diverged", "nonfinite", "missing")
          and `verdict_step` over the axes.
        """
        import xarray

        axes, shape = tuple(self.grid.axes), self.grid.shape
        variables = {}
        for name, array in self.values.items():
            extra = tuple(f"{name}_{index}" for index in range(array.ndim - 3))
            variables[name] = ((*axes, "step", *extra), array.reshape(*shape, *array.shape[2:]))
        names = np.array([VERDICTS[int(code)] for code in self.verdict.ravel()], _VERDICT_DTYPE)
        variables["verdict"] = (axes, names.reshape(shape), {"long_name": "verdict"})
        variables["verdict_step"] = (
            axes,
            self.verdict_step.reshape(shape),
            {"long_name": "iterate at which the verdict fell (-1: none)", "units": "iterations"},
        )
        coordinates = {name: coordinate(values) for name, values in self.grid.axes.items()}
        coordinates["step"] = self.record_steps
        dataset = xarray.Dataset(variables, coordinates, self.attrs)
        for name, variable in dataset.variables.items():
            variable.attrs.setdefault("long_name", str(name).replace("_", " "))
            if name in _UNITS:
                variable.attrs.setdefault("units", _UNITS[str(name)])
        return dataset

    def load(self, dataset: "xarray.Dataset") -> None:
        """Takes the values over from the dataset of an earlier, interrupted run.

        Args:
          dataset: what `dataset` of that run wrote.
        """
        codes = {name: code for code, name in VERDICTS.items()}
        flat = self.verdict.shape
        for name, variable in dataset.data_vars.items():
            array = np.array(variable.values)
            if name == "verdict":
                named = [codes[str(verdict)] for verdict in array.ravel()]
                self.verdict = np.array(named, np.int8).reshape(flat)
            elif name == "verdict_step":
                self.verdict_step = array.reshape(flat)
            else:
                self.values[str(name)] = array.reshape(*flat, *array.shape[len(self.grid.shape) :])


class MetricsStore:
    """The records on disk as zarr, written as they come.

    The arrays have their final shape from the start, NaN where nothing is recorded yet; each write
    replaces whole chunks by renaming, so that a reader, or a run that was killed, never meets
    half a chunk.

    Args:
      folder: the run's folder.
    """

    def __init__(self, folder: Path):
        self.path = folder / METRICS

    def exists(self) -> bool:
        """Whether there is a store."""
        return self.path.exists()

    def write(self, records: Records, first: int, point: int | None = None) -> None:
        """Writes one static point's records from number `first` on; the first write creates.

        Args:
          records: everything recorded.
          first: the first record that may have changed.
          point: the static point; None for all.
        """
        if not self.exists():
            write_zarr(records.dataset(), self.path)
            return
        import zarr

        group: Any = zarr.open_group(self.path, mode="r+")
        static_shape = tuple(len(values) for values in records.grid.static.values())
        lane_shape = records.grid.shape[len(static_shape) :]
        points = range(len(records.verdict)) if point is None else [point]
        for number in points:
            where = tuple(int(i) for i in np.unravel_index(number, static_shape))
            everything = where + (slice(None),) * len(lane_shape)
            for name, array in records.values.items():
                array = array[number].reshape(*lane_shape, *array.shape[2:])
                recent = (slice(None),) * len(lane_shape) + (slice(first, None),)
                group[name][(*everything, slice(first, None))] = array[recent]
            group["verdict_step"][everything] = records.verdict_step[number].reshape(lane_shape)
            codes = records.verdict[number].reshape(lane_shape)
            group["verdict"][everything] = codes


def write_zarr(dataset: "xarray.Dataset", path: Path) -> None:
    """Writes a dataset as zarr: to a temporary name beside it, then renamed.

    Args:
      dataset: a sweep's dataset.
      path: the store to create or replace.
    """
    codes = {name: code for code, name in VERDICTS.items()}
    named = dataset["verdict"]
    encoded = named.copy(
        data=np.array([codes[str(v)] for v in named.values.ravel()], np.int8).reshape(named.shape)
    )
    encoded.attrs |= {
        "flag_values": list(VERDICTS),
        "flag_meanings": " ".join(VERDICTS.values()),
    }
    dataset = dataset.assign(verdict=encoded)
    # One chunk holds all lanes of a static point for a sixteenth of the run: few files, and
    # a segment rewrites little.
    static = set(json.loads(dataset.attrs.get("static_axes", "[]")))
    encoding = {
        str(name): {
            "chunks": tuple(
                1 if dim in static else -(-size // 16) if dim == "step" else size
                for dim, size in variable.sizes.items()
            )
        }
        for name, variable in dataset.data_vars.items()
        if variable.ndim
    }
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    dataset.to_zarr(temporary, mode="w", encoding=encoding, consolidated=False, zarr_format=2)
    if path.exists():
        replaced = path.with_name(f"{path.name}.replaced-{os.getpid()}")
        path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced)
    else:
        temporary.rename(path)


def read_zarr(path: Path) -> "xarray.Dataset":
    """Reads what `write_zarr` wrote, into memory.

    Args:
      path: the store.

    Returns:
      The dataset, verdicts by name.
    """
    import xarray

    with xarray.open_zarr(path, consolidated=False, chunks=None) as stored:
        dataset = stored.load()
    codes = dataset["verdict"]
    named = np.array([VERDICTS[int(code)] for code in codes.values.ravel()], _VERDICT_DTYPE)
    verdict = (codes.dims, named.reshape(codes.shape), {"long_name": "verdict"})
    return dataset.assign(verdict=verdict)


def coordinate(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """An axis' values as a coordinate: numbers as they are, everything else by name.

    Args:
      values: the axis' values.

    Returns:
      A 1-D array of numbers or strings.
    """
    array = np.asarray(values) if all(isinstance(v, int | float) for v in values) else None
    if isinstance(values, np.ndarray):
        array = values
    if array is not None and array.dtype != bool:
        return array
    return np.array([getattr(value, "__name__", str(value)) for value in values])
