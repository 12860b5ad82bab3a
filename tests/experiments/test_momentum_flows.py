"""Momentum beside its flows: the pairing, the tables, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags as absl_flags

import driftlab
from configs import momentum_flows_small
from driftlab.flows import solve
from driftlab.flows.momentum import inertial_flow
from experiments import (
    momentum_flows,
    momentum_flows_figures,
    momentum_flows_models,
    momentum_flows_report,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = momentum_flows_small.get_config()
    config.learning_rates = "0.002,0.001"
    config.problems = "quadratic"
    config.networks = "classifier"
    config.momenta = "0.5"
    config.train_size = 20
    config.steps = 20
    return config


@pytest.fixture(scope="module")
def far(config):
    return momentum_flows.run_errors(config, progress=False)


@pytest.fixture(scope="module")
def trained(config):
    return momentum_flows.run_training(config, progress=False)


def test_errors_are_those_of_a_flow_and_an_optimiser_run_apart(config, far):
    objective, initialize = momentum_flows_models.make_problems(config)["quadratic"]
    h, m, steps = 0.002, config.momentum, 50
    start = initialize(jax.random.key(0))
    dynamics = driftlab.descent(optax.sgd(h, m, nesterov=True), objective)
    last = jax.jit(
        lambda: jax.lax.fori_loop(
            0, steps, lambda _, s: dynamics.step(s), dynamics.init(start, jax.random.key(0))
        )
    )()
    model = inertial_flow(objective, h, m, nesterov=True)
    end = solve(model.field, model.init(start), steps * h, rtol=1e-11)
    expected = jnp.linalg.norm(model.params(end.y) - last.params)
    where = {"problem": "quadratic", "method": "nesterov", "learning_rate": h, "step": steps}
    np.testing.assert_allclose(far.error_inertial.sel(where), expected, rtol=1e-4)
    assert far.error_inertial.dtype == np.float64


def test_an_error_is_read_at_one_slow_time(far):
    found = momentum_flows_report.at_time(far, "loss", 0.1)
    for h, n in ((0.002, 50), (0.001, 100)):
        expected = far.loss.sel(learning_rate=h, step=n)
        np.testing.assert_array_equal(found.sel(learning_rate=h), expected)


def test_tables_and_figures(config, far, trained):
    runs = momentum_flows.training_runs(config)
    assert list(runs) == [
        "gradient flow", "heavy ball 0.5", "nesterov 0.5"
    ]  # fmt: skip
    found = momentum_flows_report.tables(far, trained, runs, config.momentum, config.time)
    claims, orders, manifold, training = found.values()
    # Two rates of a quadratic are enough for all orders; 20 images say nothing about training.
    assert [row["holds"] for row in claims[:10]] == ["yes"] * 10
    assert len(orders) == 2 * len(momentum_flows_report.MODELS)
    assert [row["method"] for row in manifold] == ["heavy ball", "Nesterov"]
    factors = {row["run"]: row["regularisation / h_eff"] for row in training}
    # (1 + m) / (4 (1 - m)) and (1 - m + 2 m^2) / (4 (1 - m)) at m = 1/2.
    assert factors == {
        "heavy ball 0.5": 0.75,
        "nesterov 0.5": 0.5,
    }
    # m / (1 - m) iterations, and m^2 / (1 - m).
    assert [row["lag, iterations"] for row in training] == [1.0, 0.5]
    lossy = trained.loss.sel(network="classifier", seed=0)
    end, flow = lossy.sel(run="heavy ball 0.5", step=20), lossy.sel(run="gradient flow")
    late = np.exp((np.log(flow.sel(step=18)) + np.log(flow.sel(step=20))) / 2)
    assert training[0]["at the end"] == pytest.approx(abs(np.log(end / flow.sel(step=20)).item()))
    assert training[0]["at the end, lag taken off"] == pytest.approx(
        abs(np.log(end / late).item()), rel=1e-5
    )
    figures = momentum_flows_figures.draw(far, trained, runs, config)
    assert len(figures) == 3


def test_a_claim_that_fails_says_so():
    claim = momentum_flows_report._claim("order", [1.0, 1.4], 1, 0.25, "order")
    assert claim["holds"] == "no"
    assert momentum_flows_report._claim("order", [np.nan], 1, 0.25, "order")["holds"] == "no"


def test_bad_configs_are_refused(config):
    other = config.copy_and_resolve_references()
    other.learning_rates = "0.003,0.001"
    with pytest.raises(ValueError, match=r"learning_rates='0.003,0.001'.*divide time=0.4"):
        momentum_flows.run_errors(other)
    other.problems = "quadric"
    with pytest.raises(ValueError, match=r"there is no problem 'quadric'"):
        momentum_flows_models.make_problems(other)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path):
    command = [
        sys.executable, "-m", "experiments.momentum_flows",
        "--config=configs/momentum_flows_small.py", "--learning_rates=0.002,0.001", "--steps=10",
        "--config.problems=quadratic", "--config.networks=classifier", "--config.train_size=20",
        "--config.time=0.02", "--config.momenta=0.5", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    for again in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 4
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 3
    assert "momentum_flows_errors" in (tmp_path / "run" / "report.md").read_text()
