"""The stochastic experiment: its moments against enumeration, its verdicts, and the binary."""

import itertools
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

import driftlab
from configs import stochastic_flows_small
from driftlab import sampling
from driftlab.flows.stochastic import sgd_sde
from experiments import stochastic_flows, stochastic_report
from experiments.stochastic_moments import Moments, expectation, of_flow, of_sgd

ROOT = Path(__file__).parents[2]
RANDOM = np.random.RandomState(0)
DATA = {"x": RANDOM.randn(3, 2), "y": RANDOM.randn(3)}


def regression(batch_size):
    return driftlab.Objective(
        lambda p, batch: jnp.mean((batch["x"] @ p - batch["y"]) ** 2) / 2,
        DATA,
        sampling.with_replacement(batch_size),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of the binary, and its tables."""
    folder = tmp_path_factory.mktemp("stochastic") / "run"
    # 16 seeds: lanes run in chunks of 16, and a remainder would be compiled as well.
    command = [
        sys.executable, "-m", "experiments.stochastic_flows",
        "--config=configs/stochastic_flows_small.py", "--learning_rates=0.02:0.005:3",
        "--seeds=16", "--steps=2", "--config.time=2.0", "--config.train_size=20",
        "--config.width=4", "--config.adam_steps=4", "--config.warm_up=4",
        "--config.network_rates=0.1", f"--out={folder}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "summary.json").read_text())["tables"]


def test_moments_of_sgd_are_those_of_all_its_paths():
    h, start, steps = 0.3, jnp.array([1.0, -0.5]), 3
    batches = list(itertools.product(range(3), repeat=2))
    ends = [start]
    for _ in range(steps):
        ends = [
            x - h * np.mean([DATA["x"][i] * (DATA["x"][i] @ x - DATA["y"][i]) for i in b], axis=0)
            for x in ends
            for b in batches
        ]
    found = jax.jit(lambda: of_sgd(regression(2), h, start, steps))()
    np.testing.assert_allclose(found.mean, np.mean(ends, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(np.array(ends).T, bias=True), rtol=1e-11)


def test_moments_of_a_flow_are_those_of_its_paths():
    # On gamma x^2 / 2 with gamma = 1/2, 3/2 they are known in closed form.
    gammas = driftlab.Objective(
        lambda x, gamma: jnp.mean(gamma) * jnp.sum(x**2) / 2, jnp.array([0.5, 1.5]),
        sampling.with_replacement(1),
    )  # fmt: skip
    h, end = 0.1, 2.0
    found = jax.jit(lambda: of_flow(sgd_sde(gammas, h, 2), jnp.ones(1), end))()
    rate = 1 + h / 2
    np.testing.assert_allclose(found.mean[0], np.exp(-rate * end), rtol=1e-8)
    second = np.exp((-2 * rate + h / 4) * end)
    np.testing.assert_allclose(found.covariance[0, 0] + found.mean[0] ** 2, second, rtol=1e-8)


def test_expectations_of_quadratics_are_exact():
    moments = Moments(jnp.array([1.0, 2.0]), jnp.array([[2.0, 1.0], [1.0, 3.0]]))
    found = expectation(lambda x: jnp.outer(x, x) + x[0], moments)
    exact = moments.covariance + jnp.outer(moments.mean, moments.mean) + 1.0
    np.testing.assert_allclose(found, exact, rtol=1e-13)


def test_the_weak_orders_and_their_verdicts(finished):
    def verdicts(orders):
        sgd = [
            {"run": "order 1", "h lambda": 1.0, "apart (s.e.)": 4.0},
            {"run": "order 2", "h lambda": 1.0, "apart (s.e.)": 1.0},
            {"run": "order 2", "h lambda": 2.0, "apart (s.e.)": 9.0},
        ]
        losses = {"adam": 1.0, "sde": 1.0, "sde with mean": 1.0, "square root": 1.2, "linear": 1.1}
        adam = [{"run": name, "E loss": x, "apart (s.e.)": 0.0} for name, x in losses.items()]
        return [row["holds"] for row in stochastic_report._claims(orders, sgd, adam)]

    orders = finished[1]["Weak order"]
    assert verdicts(orders) == ["yes", "yes", "NO", "yes", "yes", "yes", "NO"]
    # An order-2 equation that is none.
    first, second = ([row for row in orders if row["theory"] == order] for order in (1, 2))
    none = [row | {"theory": 2} for row in first]
    assert verdicts([*first, *none])[:2] == ["yes", "NO"]
    # Smaller errors, not only steeper ones.
    assert all(b["smallest h"] < a["smallest h"] for a, b in zip(first, second, strict=True))


def test_bad_arguments_are_refused():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = stochastic_flows_small.get_config()
    config.features = 65
    with pytest.raises(ValueError, match=r"features=65 must be 1 .. 64"):
        stochastic_flows.make_regression(config)
    config.warm_up = 7
    with pytest.raises(ValueError, match="must be multiples of factor=4"):
        stochastic_flows.adam_ensembles(config)


def test_the_binary_leaves_a_run(finished):
    folder, tables = finished
    assert [row["run"] for row in tables["SGD"]] == ["sgd", "order 1", "order 2"]
    names = ["adam", "sde", "sde with mean", "square root", "linear", "unscaled"]
    assert [row["run"] for row in tables["Adam"]] == names
    # Members of an ensemble differ.
    assert all(row["sd loss"] > 0 for row in tables["SGD"] + tables["Adam"])
    assert len(list((folder / "figures").glob("*.png"))) == 2
