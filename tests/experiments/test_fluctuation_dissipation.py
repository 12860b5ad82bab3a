"""The fluctuation-dissipation experiment: its schedules, tables and figures, and the binary."""

import json

import numpy as np
import pytest

from configs import fluctuation_dissipation_schedule
from experiments import fluctuation_dissipation
from experiments import fluctuation_dissipation_models as models
from experiments import fluctuation_dissipation_report as reports


@pytest.fixture(scope="module")
def config(parsed_flags):
    config = fluctuation_dissipation_schedule.get_config()
    config.train_size = 200
    config.model_args = "widths=(10,),activation='relu'"
    config.learning_rates = "0.1,0.4"
    config.schedules = "constant;step(0.5,0.75);ratio"
    config.weight_decay = 0.1
    config.tolerance = 0.2
    config.seeds = "1"
    config.steps = 2000
    config.record_every = 50
    config.second_relation = True
    return config


@pytest.fixture(scope="module")
def dataset(config):
    return fluctuation_dissipation.run(config, progress=False)


def test_the_learning_rates_are_those_of_the_schedules(dataset):
    force = dataset.learning_rate_in_force.sel(learning_rate=0.4).isel(seed=0)
    steps = dataset.step.values
    assert (force.sel(schedule="constant") == force.isel(step=0, schedule=0)).all()
    by_hand = np.where(steps < 1000, 0.4, np.where(steps < 1500, 0.04, 0.004))
    np.testing.assert_allclose(force.sel(schedule="step(0.5,0.75)"), by_hand, rtol=1e-6)
    adaptive = force.sel(schedule="ratio").values
    assert adaptive[-1] < adaptive[0]
    lower = np.flatnonzero(np.diff(adaptive))
    # An epoch is 20 steps, so that a record may hold two drops.
    drops = np.log(adaptive[lower] / adaptive[lower + 1]) / -np.log(0.9)
    np.testing.assert_allclose(drops, np.round(drops), atol=1e-3)


def test_the_tables_say_what_the_dataset_holds(dataset, config):
    found = reports.tables(dataset, config)
    first = found["The first relation, over the last half of the run"]
    lane = dataset.sel(schedule="constant", learning_rate=0.4).isel(seed=0, step=-1)
    np.testing.assert_allclose(first[1]["ratio"], lane.first_relation_ratio)
    np.testing.assert_allclose(first[1]["left"] / first[1]["right"], first[1]["ratio"], rtol=1e-5)
    assert first[1]["run / (1 / 2 eta lambda)"] == pytest.approx(2000 * 2 * 0.4 * 0.1)
    second = found["The second relation"]
    np.testing.assert_allclose(second[1]["G"], lane.second_relation_left)
    rows = found["Schedules at equal epochs, each at its best first rate"]
    assert [row["schedule"] for row in rows] == ["constant", "step(0.5,0.75)", "ratio"]
    for row in rows:
        lanes = dataset.training_loss.sel(schedule=row["schedule"]).isel(step=-1, seed=0)
        np.testing.assert_allclose(row["training loss"], lanes.min())
    assert {row["holds"] for row in found["Claims (Yaida 2019)"]} <= {"yes", "no", "-"}
    assert set(reports.draw(dataset, config)) == {
        f"fluctuation_dissipation_{name}" for name in ("first", "second", "schedules")
    }


def test_half_life():
    steps = np.arange(0, 2000, 10.0)
    decay = 3 + 2 * np.exp(-steps * np.log(2) / 100)
    assert reports.half_life(steps, decay) == 100
    assert reports.half_life(steps, np.minimum(3 + steps / 50, decay)) == pytest.approx(110, abs=30)
    assert np.isnan(reports.half_life(steps, steps))
    assert np.isnan(reports.half_life(steps, np.where(steps > 50, np.nan, decay)))


def test_bad_arguments_are_refused(config):
    for bad in ("steps", "step()", "step(0.5,0.2)", "step(1.5)", "step(a)", ""):
        with pytest.raises(ValueError, match=r"is none of constant, ratio, residual"):
            models.parse_schedules(f"constant;{bad}")
    with pytest.raises(ValueError, match=r"each schedule once"):
        models.parse_schedules("ratio;ratio")
    other = config.copy_and_resolve_references()
    other.steps = 100
    with pytest.raises(ValueError, match=r"steps=100, record_every=50: the averages need 128"):
        fluctuation_dissipation.run(other)
    other = config.copy_and_resolve_references()
    other.weight_decay = 0.0
    with pytest.raises(ValueError, match=r"weight_decay=0.0 must be positive"):
        fluctuation_dissipation.run(other)


def test_the_binary_leaves_a_run_and_redraws_it(run_experiment, tmp_path):
    out = tmp_path / "run"
    arguments = [
        "--config=configs/fluctuation_dissipation_small.py", "--learning_rates=0.1,0.2",
        "--steps=1000", "--record_every=25", "--config.train_size=100",
        "--config.model_args=widths=(8,)", f"--out={out}",
    ]  # fmt: skip
    for again in (False, True):
        done = run_experiment("fluctuation_dissipation", *arguments)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["tables"]) >= 3
    assert len(list((out / "figures").glob("*.png"))) == 2
    assert "fluctuation_dissipation_second" in (out / "report.md").read_text()
