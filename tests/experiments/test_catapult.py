"""The catapult: the linear network against its recursion, outcomes, and the binary."""

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
from configs import catapult_small
from driftlab.data import problems
from experiments import catapult, catapult_report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = catapult_small.get_config()
    config.learning_rates = "0.5,2.2,16"
    config.train_size = 16
    config.steps = 60
    return config


@pytest.fixture(scope="module")
def dataset(config):
    return catapult.run(config, progress=False)


def test_the_linear_network_obeys_the_recursion_to_rounding():
    network = catapult.linear_network(512, 0.532)
    params = network.initialize(jax.random.key(3))
    top = (jnp.sum(params["left"] ** 2) + jnp.sum(params["right"] ** 2)) / 512
    np.testing.assert_allclose(top, 2.0, rtol=1e-14)
    step = jax.jit(
        lambda p, h: jax.tree.map(
            lambda a, g: a - h * g, p, jax.grad(network.objective.loss)(p, network.objective.data)
        )
    )
    for rate in (1.9, 2.5, 3.0, 3.5, 3.9):
        # Until the loss has peaked and fallen; further on its value is rounding itself.
        losses, curvatures = catapult_report.recursion(rate, 512, 0.532, 12)
        here = params
        for expected, ratio in zip(losses, curvatures, strict=True):
            loss = network.objective.loss(here, network.objective.data)
            kernel = (jnp.sum(here["left"] ** 2) + jnp.sum(here["right"] ** 2)) / 512
            # A step multiplies an error in f by |1 - x + y| + 2 y, up to 6 here.
            np.testing.assert_allclose(loss / 0.532**2 / 2, expected, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(kernel / 2, ratio, rtol=1e-12, atol=1e-12)
            here = step(here, rate / top)


def test_the_linear_network_is_the_library_s_problem():
    network = catapult.linear_network(64, 0.532)
    params = network.initialize(jax.random.key(0))
    problem = problems.two_layer_linear(params["left"], params["right"])
    here = network.objective.loss(params, network.objective.data)
    np.testing.assert_allclose(here, problem.loss(params), rtol=1e-14)


@pytest.mark.parametrize("rate", catapult_report.REFERENCE)
def test_the_recursion_gives_the_reference_values(rate):
    losses, curvatures = catapult_report.recursion(rate, 512, 0.532, 600)
    expected = catapult_report.REFERENCE[rate]
    if expected is None:
        assert not losses[-1] < 1e6
        return
    # The reference gives integers (.8: one digit) and three decimals.
    np.testing.assert_allclose(losses[1:].max(), expected[0], atol=0.5 if expected[0] > 1 else 0.05)
    np.testing.assert_allclose(curvatures[-1], expected[1], atol=6e-4)


def test_kernel_operator_is_the_kernel(config):
    network = catapult.make_networks(config)[catapult.RELU]
    params = network.initialize(jax.random.key(1))
    inputs = network.objective.data.inputs
    rows = jax.jacrev(lambda p: network.apply(p, inputs))(params)
    flat = jnp.concatenate([leaf.reshape(16, -1) for leaf in jax.tree.leaves(rows)], axis=1)
    expected = jnp.linalg.eigvalsh(flat @ flat.T / 16)[-1]
    pairs = driftlab.curvature.eigenpairs(catapult.kernel_operator(network, params))
    np.testing.assert_allclose(pairs.values[0], expected, rtol=1e-10)


def test_outcomes_and_tables(dataset, config):
    outcome = catapult_report.outcomes(dataset)
    linear = outcome.outcome.sel(network="linear").isel(seed=0)
    ends = dict(zip(outcome.scaled_learning_rate.values.tolist(), linear.values, strict=True))
    assert ends[0.5] == ends[1.9] == "lazy"
    assert ends[2.2] == ends[2.5] == ends[3.0] == ends[3.9] == "catapult"
    assert ends[4.3] == ends[16.0] == "diverged"
    first = outcome.scaled_curvature.isel(step=0).values
    np.testing.assert_allclose(
        first, np.broadcast_to(outcome.scaled_learning_rate.values[None, :, None], first.shape)
    )
    # lambda_0 of the sharpness' own route: once the loss is gone, the two are one.
    lane = outcome.sel(network="linear", scaled_learning_rate=2.5).isel(seed=0, step=-1)
    np.testing.assert_allclose(lane.kernel_eigenvalue, lane.sharpness, rtol=1e-3)
    found = catapult_report.tables(outcome, config.width, config.initial_output, config.steps)
    claims, compared, _ = found.values()
    assert [row["holds"] for row in claims if row["network"] == "linear"] == ["yes"] * 5
    assert [row["h lambda_0"] for row in compared] == list(catapult_report.REFERENCE)
    relu = outcome.outcome.sel(network="relu").values
    assert "diverged" not in relu


def test_bad_arguments_are_refused(config):
    with pytest.raises(ValueError, match=r"initial_output=20.*between 0 and sqrt"):
        catapult.linear_network(512, 20.0)
    other = config.copy_and_resolve_references()
    other.labels = "one_hot"
    with pytest.raises(ValueError, match=r"labels='one_hot' must be 'binary'"):
        catapult.make_networks(other)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path):
    command = [
        sys.executable, "-m", "experiments.catapult", "--config=configs/catapult_small.py",
        "--learning_rates=1,3,8", "--steps=40", "--config.train_size=8",
        f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    for again in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 3
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 4
    assert "catapult_final_curvature" in (tmp_path / "run" / "report.md").read_text()
