"""DAL's experiment: its rows against the dataset, the digits table in small, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags as absl_flags

from configs import dal_small
from experiments import dal, dal_report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = dal_small.get_config()
    config.train_size = 200
    config.learning_rates = "0.2,0.5,20"
    config.powers = "0.5,1"
    config.max_learning_rates = "1,5"
    config.momentum = "0,0.5"
    config.seeds = "2"
    config.steps = 100
    config.mini_batch_steps = 0
    return config


@pytest.fixture(scope="module")
def results(config):
    return dal.run_all(config, progress=False)


def test_the_recorded_rate_is_the_rule(results):
    found = results["full_batch"]["dal"]
    recorded = found.dal_learning_rate.transpose("step", ...).values
    cap, power = found.max_learning_rate.values, found.power.values
    rule = 2 / found.dal_curvature**found.power
    rule = rule.clip(max=found.max_learning_rate).transpose("step", *found.power.dims, ...)
    np.testing.assert_allclose(
        found.dal_learning_rate.transpose(*rule.dims).values, rule.values, rtol=1e-5
    )
    assert recorded.max() <= 5
    assert (cap == [1, 5]).all()
    assert (power == [0.5, 1]).all()


def test_outcomes_say_what_the_dataset_holds(results):
    found = dal_report.outcomes(results)
    assert len(found) == 2 * (3 + 4)
    fixed = results["full_batch"]["fixed"].sel(momentum=0.5, learning_rate=0.2)
    outcome = next(o for o in found if (o.momentum, o.setting, o.cap) == (0.5, 0.2, None))
    last = fixed.isel(step=-1)
    np.testing.assert_allclose(outcome.training_loss, last.training_loss.median())
    np.testing.assert_allclose(outcome.accuracy, last.evaluation_accuracy.mean())
    changes = np.diff(fixed.loss.values, axis=-1)
    np.testing.assert_allclose(outcome.rises, (changes > 0).mean())
    # 40 times the largest stable rate.
    lost = next(o for o in found if (o.momentum, o.setting, o.cap) == (0, 20, None))
    assert lost.failed == 2
    assert dal_report.best([lost]) is None


def test_dal_of_a_half_beats_every_fixed_rate_on_digits(results):
    found = [o for o in dal_report.outcomes(results) if o.momentum == 0]
    rival = dal_report.best([o for o in found if o.cap is None])
    half = next(o for o in found if (o.setting, o.cap) == (0.5, 5))
    assert half.failed == 0
    assert half.training_loss < rival.training_loss
    # A part of that is the larger rate, which the cap decides.
    capped = next(o for o in found if (o.setting, o.cap) == (0.5, 1))
    assert capped.at_cap > half.at_cap
    assert capped.training_loss > half.training_loss


def test_tables_and_figures(results):
    found = dal_report.tables(results, 5.0)
    claims, rows = found.values()
    assert {row["momentum"] for row in claims} == {0.0, 0.5}
    assert {row["holds"] for row in claims} <= {"yes", "no", "within error"}
    assert len(rows) == 14
    figures = dal_report.draw(results, 5.0)
    assert len(figures) == 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reference_cap", 3.0, r"reference_cap=3.0 must be one of max_learning_rates='1,5'"),
        ("momentum", "0,1", r"momentum='0,1': every value must lie in \[0, 1\)"),
        ("powers", "0,1", r"powers='0,1': every value must be positive"),
        ("steps", 0, r"steps and mini_batch_steps are both 0"),
    ],
)
def test_bad_arguments_are_refused(config, field, value, message):
    other = config.copy_and_resolve_references()
    other[field] = value
    with pytest.raises(ValueError, match=message):
        dal.run_all(other)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path):
    command = [
        sys.executable, "-m", "experiments.dal", "--config=configs/dal_small.py",
        "--learning_rates=0.5", "--steps=10", "--seeds=1", "--config.mini_batch_steps=0",
        "--config.train_size=100", "--config.powers=0.5,1", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    for again in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 2
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 3
