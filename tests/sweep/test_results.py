import os

import numpy as np
import pytest
import xarray

from driftlab import Grid
from driftlab.sweep.results import MetricsStore, Records, coordinate, read_zarr, write_zarr

GRID = Grid({"learning_rate": [0.1, 0.2, 0.3], "seed": 2}, {"optimizer": ["sgd", "adam"]})
STEPS = np.array([0, 2, 4, 5])


@pytest.fixture
def records():
    made = Records(GRID, STEPS, {"static_axes": '["optimizer"]', "seed": 0})
    loss = np.arange(6 * 4.0).reshape(6, 4)
    vector = np.arange(6 * 4 * 3, dtype=np.float32).reshape(6, 4, 3)
    made.write(0, np.arange(6), 0, 4, {"loss": loss, "spectrum": vector})
    made.write(1, np.array([4, 1]), 1, 2, {"loss": -loss[:, :2], "spectrum": vector[:, :2]})
    made.verdict[0] = [0, 0, 1, 2, 0, 0]
    made.verdict_step[0, 2:4] = [5, 2]
    made.verdict[1, [4, 1]] = 0
    return made


def test_dataset(records):
    dataset = records.dataset()
    assert dataset.loss.dims == ("optimizer", "learning_rate", "seed", "step")
    assert dataset.spectrum.dims == (*dataset.loss.dims, "spectrum_0")
    assert dataset.spectrum.dtype == np.float32
    assert dataset.loss.sel(optimizer="sgd", learning_rate=0.2, seed=1, step=4).item() == 3 * 4 + 2
    written = dataset.loss.sel(optimizer="adam", learning_rate=0.3, seed=0).values
    np.testing.assert_array_equal(written, [np.nan, 0, -1, np.nan])
    assert dataset.loss.sel(optimizer="adam").notnull().sum() == 4
    assert dataset.verdict.sel(optimizer="sgd").values.ravel().tolist() == [
        "ok", "ok", "diverged", "nonfinite", "ok", "ok",
    ]  # fmt: skip
    assert dataset.verdict.sel(optimizer="adam").values.ravel().tolist() == [
        "missing", "ok", "missing", "missing", "ok", "missing",
    ]  # fmt: skip
    assert dataset.learning_rate.attrs == {"long_name": "learning rate", "units": "1"}


def test_zarr_round_trip(records, tmp_path):
    write_zarr(records.dataset(), tmp_path / "metrics.zarr")
    xarray.testing.assert_identical(read_zarr(tmp_path / "metrics.zarr"), records.dataset())
    write_zarr(records.dataset(), tmp_path / "metrics.zarr")  # replaces
    assert os.listdir(tmp_path) == ["metrics.zarr"]


def test_the_store_on_disk_is_read_by_xarray_alone(records, tmp_path):
    write_zarr(records.dataset(), tmp_path / "metrics.zarr")
    with xarray.open_zarr(tmp_path / "metrics.zarr", consolidated=False, chunks=None) as stored:
        assert stored.verdict.attrs["flag_meanings"] == "missing ok diverged nonfinite"
        assert stored.optimizer.values.tolist() == ["sgd", "adam"]


def test_the_store_takes_a_points_records_as_they_come(records, tmp_path):
    store = MetricsStore(tmp_path)
    empty = Records(GRID, STEPS, records.attrs)
    empty.write(0, np.arange(6), 0, 1, {n: v[0] for n, v in records.values.items()})
    assert not store.exists()
    store.write(empty, 0, 0)
    assert store.exists()
    for point in range(2):
        store.write(records, 0, point)
    xarray.testing.assert_identical(read_zarr(store.path), records.dataset())

    records.values["loss"][1, 2, 1:] = 7
    records.values["loss"][1, 2, 0] = 8  # before `first`: not written
    store.write(records, 1, 1)
    stored = read_zarr(store.path).loss.isel(optimizer=1, learning_rate=1, seed=0)
    np.testing.assert_array_equal(stored, [np.nan, 7, 7, 7])


def test_a_grid_without_static_or_any_axes(tmp_path):
    for number, grid in enumerate((Grid({"seed": 2}), Grid({}))):
        records = Records(grid, STEPS, {"static_axes": "[]"})
        store = MetricsStore(tmp_path / str(number))
        store.path.parent.mkdir()
        for count in (1, 3):
            values = {"loss": np.arange(grid.num_lanes * 4.0).reshape(-1, 4)}
            records.write(0, np.arange(grid.num_lanes), 0, count, values)
            store.write(records, 0, 0)
        xarray.testing.assert_identical(read_zarr(store.path), records.dataset())


def test_load_takes_over_what_was_written(records, tmp_path):
    again = Records(GRID, STEPS, records.attrs)
    again.load(records.dataset())
    np.testing.assert_array_equal(again.verdict, records.verdict)
    np.testing.assert_array_equal(again.verdict_step, records.verdict_step)
    for name, values in records.values.items():
        np.testing.assert_array_equal(again.values[name], values)
        assert again.values[name].flags.writeable
    xarray.testing.assert_identical(again.dataset(), records.dataset())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 2), [1, 2]),
        ((0.5, 1), [0.5, 1.0]),
        (np.array([3, 4]), [3, 4]),
        (("a", "b"), ["a", "b"]),
        ((True, False), ["True", "False"]),
        ((None, "x"), ["None", "x"]),
        (((1, 2), (3,)), ["(1, 2)", "(3,)"]),
        ((len, max), ["len", "max"]),
    ],
)
def test_coordinates(values, expected):
    assert coordinate(values).tolist() == expected
