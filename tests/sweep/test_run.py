import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray

import driftlab
from driftlab import Grid, open_run, sweep
from driftlab.sweep import FolderError, Interrupted, engine
from driftlab.sweep.folder import CONFIG, PROGRESS, read_json
from driftlab.sweep.results import MetricsStore

GRID = Grid({"learning_rate": [0.05, 0.1, 0.5]})
QUIET = {"progress": False, "devices": 1}


def compiles_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(engine, "compile_chunks", refuse)


def test_the_dataset_has_dimensions_coordinates_units_and_provenance(problems):
    grid = Grid({"learning_rate": [0.05, 0.1], "seed": 2})
    dataset = sweep(problems.quadratic, grid, 6, record_every=2, config={"note": "hello"}, **QUIET)
    assert dataset.loss.dims == ("learning_rate", "seed", "step")
    np.testing.assert_array_equal(dataset.step, [0, 2, 4, 6])
    assert dataset.step.attrs["units"] == "iterations"
    loss = dataset.loss.sel(learning_rate=0.1, seed=1).values
    expected = 5 * 0.0 ** (2 * dataset.step.values) + 0.5 * 0.9 ** (2 * dataset.step.values)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    run = json.loads(dataset.attrs["config"])
    assert run["config"] == {"note": "hello"}
    assert run["steps"] == 6
    assert "jax" in json.loads(dataset.attrs["environment"])["versions"]
    assert dataset.attrs["seed"] == 0
    assert dataset.attrs["status"] == "finished"
    assert dataset.attrs["wall_seconds"] > 0
    assert set(dataset.data_vars) > {"loss", "gradient_norm", "verdict", "verdict_step"}


def test_lanes_share_the_key_unless_seeds_differ(problems):
    grid = Grid({"learning_rate": [1e-9, 1e-8], "seed": [4, 0]})
    dataset = sweep(problems.mlp, grid, 1, measures=[problems.parameters], lanes="map", **QUIET)
    start = dataset.parameters.isel(step=0).values
    np.testing.assert_array_equal(start[0], start[1])
    assert not np.array_equal(start[0, 0], start[0, 1])
    alone = sweep(
        problems.mlp, Grid({"seed": 5}), 1, measures=[problems.parameters], lanes="map", **QUIET
    )
    np.testing.assert_array_equal(alone.parameters.values[[4, 0], 0], start[0])
    other = sweep(
        problems.mlp, Grid({"seed": 1}), 1, measures=[problems.parameters], seed=1, **QUIET
    )
    assert not np.array_equal(other.parameters.values[0, 0], start[0, 1])


def test_a_grid_of_static_axes_alone():
    def build(hparams, key):
        objective = driftlab.Objective(lambda x, batch: (x * x).sum())
        return driftlab.descent(optax.sgd(0.1), objective), jnp.ones(hparams["width"])

    for devices in (1, 2):
        dataset = sweep(build, Grid({}, {"width": [1, 2]}), 2, progress=False, devices=devices)
        np.testing.assert_allclose(dataset.loss.values[:, 0], [1, 2])


def constant_name(value):
    """Two functions of one name, as a module imported twice has."""

    def momentum(hparams):
        return value

    return momentum


def test_static_axes_are_programs_of_their_own(tmp_path, monkeypatch):
    traced = []

    def build(hparams, key):
        objective = driftlab.Objective(lambda x, batch: (x * x).sum())
        traced.append((hparams["optimizer"], hparams["shape"]))
        tx = {"sgd": optax.sgd, "adam": optax.adam}[hparams["optimizer"]]
        tx = tx(hparams["learning_rate"])
        return driftlab.descent(tx, objective), jnp.ones(hparams["shape"])

    static = {"optimizer": ["sgd", "adam"], "shape": [(2,), (1, 3)]}
    dataset = sweep(build, Grid({"learning_rate": [0.1, 0.2]}, static), 3, out=tmp_path, **QUIET)
    assert set(traced) == {(o, s) for o in static["optimizer"] for s in static["shape"]}
    assert dataset.loss.dims == ("optimizer", "shape", "learning_rate", "step")
    again = open_run(tmp_path)
    for result in (dataset, again):
        assert result.optimizer.values.tolist() == ["sgd", "adam"]
        assert result["shape"].values.tolist() == ["(2,)", "(1, 3)"]
        np.testing.assert_allclose(
            result.loss.sel(optimizer="sgd", shape="(1, 3)", learning_rate=0.1),
            3 * 0.64 ** np.arange(4),
        )


def test_functions_on_a_static_axis_are_named_not_addressed(tmp_path):
    # Another process has the same function at another address, and must be able to resume.
    def build(hparams, key):
        objective = driftlab.Objective(lambda x, batch: (x * x).sum())
        tx = optax.sgd(hparams["learning_rate"], hparams["momentum"](hparams))
        return driftlab.descent(tx, objective), jnp.ones(2)

    for _ in range(2):
        grid = Grid({"learning_rate": [0.1]}, {"momentum": [constant_name(0.5)]})
        dataset = sweep(build, grid, 2, out=tmp_path, **QUIET)
    assert dataset.coords["momentum"].values.tolist() == ["momentum"]


def test_a_folder_holds_the_run_and_opens_equal(problems, tmp_path):
    dataset = sweep(problems.quadratic, GRID, 40, out=tmp_path / "run", **QUIET)
    assert {"config.json", "metrics.zarr", "checkpoints", "progress.json"} <= set(
        os.listdir(tmp_path / "run")
    )
    assert read_json(tmp_path / "run" / PROGRESS)["status"] == "finished"
    assert dataset.verdict.values.tolist() == ["ok", "ok", "diverged"]
    xarray.testing.assert_identical(open_run(tmp_path / "run"), dataset)
    problems.assert_same_bits(open_run(str(tmp_path / "run")), dataset)


def test_a_finished_folder_returns_at_once(problems, tmp_path, monkeypatch):
    dataset = sweep(problems.quadratic, GRID, 5, out=tmp_path, **QUIET)
    compiles_nothing(monkeypatch)
    again = sweep(problems.quadratic, GRID, 5, out=tmp_path, **QUIET)
    xarray.testing.assert_identical(again, dataset)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": 6}, "steps: 5 / 6"),
        ({"seed": 3}, "seed: 0 / 3"),
        ({"grid": Grid({"learning_rate": [0.05, 0.1]})}, "grid.lanes.learning_rate"),
        ({"config": {"data": "digits"}}, 'config.data: "(unset)" / "digits"'),
        ({"divergence_factor": 10.0}, "divergence_factor: 1000.0 / 10.0"),
        ({"measures": [driftlab.measures.loss]}, "measures"),
        ({"lanes": "chunk:2"}, "lanes"),
        ({"record_every": 2}, "record_every: 1 / 2"),
    ],
)
def test_a_folder_of_another_config_is_refused(problems, tmp_path, monkeypatch, changes, field):
    arguments = {"grid": GRID, "steps": 5, "lanes": "map", **QUIET}
    compiles_nothing(monkeypatch)
    with pytest.raises(AssertionError, match="compiled"):
        sweep(problems.quadratic, out=tmp_path, **arguments)
    with pytest.raises(FolderError) as caught:
        sweep(problems.quadratic, out=tmp_path, **arguments | changes)
    assert field in str(caught.value)


def test_a_full_disk_is_named_and_the_run_continues(problems, tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MetricsStore, "write", full)
        with pytest.raises(FolderError, match=r"No space left on device.*make room"):
            sweep(problems.quadratic, GRID, 5, out=tmp_path, **QUIET)
    again = sweep(problems.quadratic, GRID, 5, out=tmp_path, **QUIET)
    problems.assert_same_bits(again, sweep(problems.quadratic, GRID, 5, **QUIET))


def test_open_run_says_what_is_wrong(problems, tmp_path, monkeypatch):
    with pytest.raises(FolderError, match=r"holds no run \(no config\.json\)"):
        open_run(tmp_path)
    compiles_nothing(monkeypatch)
    with pytest.raises(AssertionError):
        sweep(problems.quadratic, GRID, 5, out=tmp_path, **QUIET)
    with pytest.raises(FolderError, match="not recorded anything yet"):
        open_run(tmp_path)
    assert (tmp_path / CONFIG).exists()


def twice(snapshot):
    return {"loss": 2 * snapshot.loss}


def named(name):
    def measure(snapshot):
        return {name: snapshot.loss}

    return measure


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer; got 0"),
        ({"steps": 2.5}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"record_every": 0}, "record_every must be a positive integer; got 0"),
        ({"lanes": "pmap"}, "lanes must be"),
        ({"devices": 3}, "devices=3, but JAX sees 2"),
        ({"devices": 0}, "devices=0"),
        ({"devices": []}, "devices"),
        ({"divergence_factor": 0.0}, "divergence_factor must be positive; got 0.0"),
        ({"divergence_factor": -1.0}, "divergence_factor must be"),
        ({"divergence_factor": float("nan")}, "divergence_factor must be"),
        ({"shard": "0/3"}, "a shard is k/n"),
        ({"shard": "2/9", "lanes": "map"}, "3 chunks of lanes, too few for 9 shards"),
        (
            {"measures": [driftlab.measures.loss, twice]},
            r"more than one measure records \['loss'\]",
        ),
        ({"measures": [named("learning_rate")]}, "learning_rate"),
        ({"measures": [named("step")]}, "step"),
        ({"measures": [named("verdict")]}, "verdict"),
    ],
)
def test_errors_come_before_anything_is_compiled_or_written(
    problems, tmp_path, monkeypatch, changes, message
):
    compiles_nothing(monkeypatch)
    arguments = {"grid": GRID, "steps": 5, "out": tmp_path / "run", **QUIET} | changes
    with pytest.raises(ValueError, match=message):
        sweep(problems.quadratic, **arguments)
    assert not (tmp_path / "run").exists()


def test_measures_that_differ_between_static_points_are_refused_early(problems, monkeypatch):
    compiles_nothing(monkeypatch)

    def build(hparams, key):
        objective = driftlab.Objective(lambda x, batch: (x * x).sum())
        return driftlab.descent(optax.sgd(0.1), objective), jnp.ones(hparams["width"])

    grid = Grid({"learning_rate": [0.1]}, {"width": [2, 3]})
    with pytest.raises(ValueError, match="parameters"):
        sweep(build, grid, 5, measures=[problems.parameters], **QUIET)


class OwnError(Exception):
    pass


def test_the_users_own_exception_survives_with_a_note(problems):
    def build(hparams, key):
        if hparams["width"] == 4:
            raise OwnError("my fault")
        return problems.quadratic(hparams, key)

    grid = Grid({"learning_rate": [0.1]}, {"width": [2, 4]})
    with pytest.raises(OwnError, match="my fault") as caught:
        sweep(build, grid, 5, **QUIET)
    assert any("'width': 4" in note for note in caught.value.__notes__)


def test_a_loss_that_returns_a_vector(problems):
    def build(hparams, key):
        return driftlab.descent(optax.sgd(0.1), driftlab.Objective(lambda x, b: x)), jnp.ones(2)

    with pytest.raises(ValueError, match="must return a scalar"):
        sweep(build, GRID, 5, **QUIET)


def test_branching_on_a_hyper_parameter_is_jaxs_own_error(problems):
    def build(hparams, key):
        return problems.quadratic(hparams, key) if hparams["learning_rate"] > 0 else None

    with pytest.raises(jax.errors.TracerBoolConversionError):
        sweep(build, GRID, 5, **QUIET)


def test_no_measures(problems):
    dataset = sweep(problems.quadratic, GRID, 40, measures=[], **QUIET)
    assert dataset.verdict.values.tolist() == ["ok", "ok", "diverged"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_segment_and_the_run_continues(
    problems, tmp_path, signal_at, number
):
    whole = sweep(problems.quadratic, GRID, 20, **QUIET)
    calls = signal_at(number, 4)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}.*continues it"):
        sweep(problems.quadratic, GRID, 20, out=tmp_path, **QUIET)
    assert len(calls) == 4
    assert read_json(tmp_path / PROGRESS)["status"] == "interrupted"
    partial = open_run(tmp_path)
    assert partial.attrs["status"] == "interrupted"
    np.testing.assert_array_equal(partial.loss.values[:2, :4], whole.loss.values[:2, :4])
    assert np.isnan(partial.loss.values[:, 4:]).all()
    assert partial.verdict.values.tolist() == ["ok", "ok", "diverged"]
    resumed = sweep(problems.quadratic, GRID, 20, out=tmp_path, **QUIET)
    problems.assert_same_bits(resumed, whole)
    xarray.testing.assert_equal(open_run(tmp_path), resumed)


def test_a_signal_without_a_folder_says_that_nothing_was_kept(problems, signal_at):
    signal_at(signal.SIGTERM, 2)
    with pytest.raises(Interrupted, match="nothing was kept"):
        sweep(problems.quadratic, GRID, 20, **QUIET)


def test_a_signal_during_the_last_segment_does_not_throw_the_result_away(problems, signal_at):
    signal_at(signal.SIGTERM, 6)
    dataset = sweep(problems.quadratic, GRID, 5, **QUIET)
    assert dataset.attrs["status"] == "finished"


def test_no_threads_are_left_behind(problems, tmp_path, signal_at):
    before = set(threading.enumerate())
    signal_at(signal.SIGTERM, 4)
    with pytest.raises(Interrupted):
        sweep(problems.quadratic, GRID, 20, out=tmp_path / "run", **QUIET)
    pools = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in pools if name.startswith("ThreadPoolExecutor")}
