"""The convergence experiment: what it measures as an order, its cases, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from configs import convergence_order_small
from experiments import convergence_order, convergence_report
from experiments.convergence_cases import (
    CASES,
    FIXED_TIME,
    Case,
    descent,
    expansion_of_decay,
    expansion_of_momentum,
)
from experiments.convergence_problems import toy_problem

ROOT = Path(__file__).parents[2]
RATES = np.geomspace(0.5, 0.001, 15)


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    return convergence_order_small.get_config()


def test_an_order_is_that_of_the_leading_term():
    """A constant that varies like e^{a h}: the plain slope is off, the order is not."""
    found = convergence_report.measured_order(RATES, 3 * RATES**2.0 * np.exp(-4 * RATES), 1e-14)
    assert found["order"] == pytest.approx(2, abs=1e-9)
    assert found["slope"] < 1.99
    # The smallest window that spans a decade.
    high, low = found["window"]
    assert low == RATES[-1]
    assert 10 * low <= high < 10 * low * (RATES[0] / RATES[1])


def test_rounding_takes_no_part_in_an_order():
    errors = RATES**5 + np.where(RATES < 0.01, 1e-9, 0)
    found = convergence_report.measured_order(RATES, errors, 1e-8)
    assert found["order"] == pytest.approx(5, abs=1e-9)
    assert found["window"][1] > 1e-8**0.2
    # Nothing but rounding below the first error that is too small, even if some come out larger.
    errors[-1] = 1.0
    assert convergence_report.measured_order(RATES, errors, 1e-8) == found


def test_what_blows_up_at_large_rates_takes_no_part():
    errors = RATES**2
    errors[[0, 2]] = np.nan, np.inf
    found = convergence_report.measured_order(RATES, errors, 1e-9)
    assert found["order"] == pytest.approx(2, abs=1e-9)
    # But one that blows up in the middle leaves less than a decade.
    errors[6] = np.nan
    assert np.isnan(convergence_report.measured_order(RATES[:11], errors[:11], 1e-9)["order"])


@pytest.mark.parametrize("errors", [RATES * 0, RATES * np.nan, np.where(RATES > 0.1, RATES, 0)])
def test_less_than_a_decade_has_no_order(errors):
    found = convergence_report.measured_order(RATES, errors, 1e-12)
    assert np.isnan(found["order"])
    assert found["window"] is None


def test_learning_rates_divide_the_fixed_time(config):
    scaled = convergence_order.scaled_learning_rates(config)
    assert (np.diff(scaled) < 0).all()
    steps = config.time / scaled
    np.testing.assert_allclose(steps, np.round(steps), rtol=1e-12)


def test_names_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_a_run_measures_the_theory_s_orders_and_nothing_else(config, tmp_path, monkeypatch):
    """One case of each kind on the toy, among them one that claims too much."""

    def build(problem, h):
        return descent(problem, lambda t, y, args: -jax.grad(problem.loss)(y), h)

    wrong = Case("claims too much", "log map", 3, build)
    kept = ("gradient flow", "3 terms, log map", "rescaled gradient flow, heavy ball")
    cases = (*(case for case in CASES if case.name in kept), wrong)
    for module in (convergence_order, convergence_report):
        monkeypatch.setattr(module, "CASES", cases)
    config = config.copy_and_resolve_references()
    config.problems, config.toy_terms = "toy", 3
    dataset = convergence_order.run(config, tmp_path)
    (rows,) = convergence_report.tables(dataset).values()
    found = {row["flow"]: row for row in rows}
    assert [found[name]["holds"] for name in kept] == ["yes"] * 3
    assert [found[name]["claim"] for name in kept] == [2, 4, 1]
    assert found["claims too much"]["holds"] == "no"
    assert found["claims too much"]["measured"] == pytest.approx(2, abs=0.01)
    # Again: nothing is computed, and the same comes out.
    monkeypatch.setattr(convergence_order, "distances", None)
    again = convergence_order.run(config, tmp_path)
    np.testing.assert_array_equal(again.error, dataset.error)
    assert list(convergence_report.draw(again)) == ["convergence_order_toy"]


def test_distances_are_those_of_one_step(config):
    """Gradient flow on a quadratic: e^{-z} - (1 - z) of the start."""
    problem = toy_problem()._replace(
        loss=lambda p: jnp.sum(p**2), params=jnp.array([3.0, 4.0]), sharpness=2.0
    )
    flow = next(case for case in CASES if case.name == "gradient flow")
    scaled = np.array([0.5, 0.1])
    found = convergence_order.distances(flow, problem, scaled, 2.0)
    np.testing.assert_allclose(found, 5 * (np.exp(-scaled) - 1 + scaled), rtol=1e-11)
    after = flow._replace(compared=FIXED_TIME)
    found = convergence_order.distances(after, problem, scaled, 2.0)
    expected = 5 * (np.exp(-2.0) - (1 - scaled) ** (2.0 / scaled))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_an_expansion_divides_the_learning_rates(config, monkeypatch):
    plain = next(case for case in CASES if case.name == "gradient flow")
    problem, scaled = toy_problem(), convergence_order.scaled_learning_rates(config)
    slower = plain._replace(expansion=4.0)
    found = convergence_order.distances(slower, problem, scaled, 2.0)
    np.testing.assert_allclose(
        found, convergence_order.distances(plain, problem, scaled / 4, 2.0), rtol=1e-12
    )
    # The table has the learning rates themselves.
    for module in (convergence_order, convergence_report):
        monkeypatch.setattr(module, "CASES", (slower,))
    config = config.copy_and_resolve_references()
    config.problems = "toy"
    (rows,) = convergence_report.tables(convergence_order.run(config)).values()
    assert rows[0]["h lambda_0"][1] == pytest.approx(scaled[-1] / 4)


def test_memory_that_is_eliminated_has_an_expansion_and_no_other():
    eliminated = ("rescaled", "modified momentum", "eliminate")
    for case in CASES:
        assert (case.expansion > 1) == any(part in case.name for part in eliminated), case.name
    assert expansion_of_momentum(0.8) == pytest.approx(25)
    assert expansion_of_decay(0.9) == pytest.approx(10)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("problems", "toys", "no 'toys': did you mean toy"),
        ("flows", "principle", "no flow has that in its name. There are: gradient flow; "),
        ("learning_rates", "0.1:0.05:5", "at least a decade"),
        ("learning_rates", "0.1,0.01", "three or more"),
        ("time", 0.1, "time=0.1 is shorter than a step of 0.5"),
    ],
)
def test_bad_configs_are_refused(config, field, value, message):
    config = config.copy_and_resolve_references()
    config[field] = value
    with pytest.raises(ValueError, match=message):
        convergence_order.run(config)


def test_the_binary_leaves_a_run(tmp_path):
    command = [
        sys.executable, "-m", "experiments.convergence_order",
        "--config=configs/convergence_order_small.py", "--config.flows=drift explicit",
        "--config.train_size=40", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [row for table in summary["tables"].values() for row in table]
    assert [row["flow"] for row in rows] == ["drift explicit"] * 2
    assert {row["holds"] for row in rows} == {"yes"}
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 2
    assert "convergence_order_toy" in (tmp_path / "run" / "report.md").read_text()
