"""Flows against descent: distances by another route, slopes, portraits, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags as absl_flags

from configs import flow_vs_descent_small
from driftlab.data import problems
from experiments import flow_models, flow_portraits, flow_vs_descent, flow_vs_descent_report

ROOT = Path(__file__).parents[2]


def make_config(**fields):
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = flow_vs_descent_small.get_config()
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def quadratic():
    """On which every distance is known: `(1 - z)^n` against the exponential of n times a series."""
    config = make_config(
        problem="quadratic",
        flows="gradient_flow,order_2,principal",
        learning_rates="0.02,0.05",
        shown_rates="0.75",
        duration=0.2,
        shown_steps=12,
    )
    setting = flow_vs_descent.make_setting(config)
    return config, setting, flow_vs_descent.run(config, setting, progress=False, lanes="map")


def test_distances_are_those_of_the_closed_form(quadratic):
    _, setting, dataset = quadratic
    start, eigenvalues = np.array([-0.35, -0.35]), np.array([2.0, 0.2])
    np.testing.assert_allclose(setting.params, start)
    steps = dataset.step.values
    for rate in dataset.learning_rate.values:
        z = rate * eigenvalues
        descent = start * (1 - z) ** steps[:, None]
        for name, exponent in (("gradient_flow", -z), ("order_2", -z - z**2 / 2)):
            flow = start * np.exp(exponent * steps[:, None])
            found = dataset[f"distance_{name}"].sel(learning_rate=rate)
            expected = np.linalg.norm(descent - flow, axis=1)
            tolerance = 1e-11 if rate < 0.1 else 1e-5  # of the solver at the fitted rates, beyond
            np.testing.assert_allclose(found, expected, atol=tolerance)
        # The principal flow passes through the iterates, also beyond h lambda = 1.
        exact = dataset.distance_principal.sel(learning_rate=rate)
        np.testing.assert_allclose(exact, 0, atol=tolerance)


def test_rates_are_moved_to_whole_numbers_of_iterations(quadratic):
    config, setting, _ = quadratic
    np.testing.assert_allclose(np.sort(setting.fitted), [0.02, 0.05])
    assert setting.steps == 12
    config = config.copy_and_resolve_references()
    config.learning_rates = "0.03,0.1"
    np.testing.assert_allclose(
        np.sort(flow_vs_descent.make_setting(config).fitted), [0.2 / 7, 0.1], rtol=1e-12
    )


def test_heavy_ball_s_flows_have_their_orders():
    """Of any optimiser: momentum stays in the ODE; after a warm-up, where the run then stands."""
    config = make_config(
        optimizer_args="momentum=0.5",
        flows="modified_1,modified_2",
        learning_rates="0.003,0.006",
        duration=0.06,
        shown_rates="0.02",
        shown_steps=20,
        optimizer="sgd",
        warm_up=3,
    )
    setting = flow_vs_descent.make_setting(config)
    dataset = flow_vs_descent.run(config, setting, progress=False, lanes="map")
    assert float(dataset.distance_modified_1.isel(step=0).max()) == 0
    for name in setting.flows:
        local, whole = flow_vs_descent_report.errors(dataset, name, setting.fitted, config.duration)
        assert (whole > 0).all()
        assert (local > 0).all()
    last = dataset.isel(step=-1, learning_rate=0)
    assert float(last.distance_modified_1) > 3 * float(last.distance_modified_2)


def test_tables_and_figures(quadratic):
    config, setting, dataset = quadratic
    found = flow_vs_descent_report.tables(dataset, setting.flows, setting.fitted, config.duration)
    slopes, rows = found.values()
    # The principal flow's distance is rounding, which has no slope.
    assert [row["holds"] for row in slopes] == ["yes", "yes", "-"]
    assert len(rows) == 6
    figures = flow_vs_descent_report.draw(
        dataset, setting.flows, setting.fitted, config.duration, config.shown_steps
    )
    assert len(figures) == 2


def test_a_portrait_follows_descent_and_its_flows():
    problem = problems.quadratic((2.0, 0.2), initial=(-0.35, -0.35))
    portrait = flow_portraits.Portrait(problem, np.array([0.5, 1.5]), 4)
    iterates, flows = flow_portraits.paths(portrait)
    expected = -0.35 * (1 - np.array([0.5, 1.5])) ** 4
    np.testing.assert_allclose(iterates[:, -1, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(flows["principal"][:, -1, 0], expected, atol=1e-4)
    np.testing.assert_allclose(flows["gradient_flow"][0, -1, 0], -0.35 * np.exp(-2), atol=1e-4)
    assert flow_portraits.draw(portrait) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flows": "order_2,order_x"}, r"there is no flow 'order_x'; give of gradient descent"),
        ({"flows": "order_2,order_2"}, r"names a flow twice"),
        ({"optimizer": "adam", "flows": "order_2"}, r"order_2 is a flow of gradient descent"),
        ({"learning_rates": "0.1"}, r"a slope needs two different numbers of iterations"),
        ({"problem": "banana"}, r"there is no problem 'banana'"),
        ({"warm_up": -1}, r"warm_up=-1 must be 0 or more"),
        ({"optimizer": "sdg"}, r"no optimizer 'sdg': did you mean sgd"),
    ],
)
def test_bad_arguments_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        flow_vs_descent.make_setting(make_config(**fields))


def test_bad_portraits_are_refused():
    with pytest.raises(ValueError, match=r"portraits: there is no problem 'bowl'"):
        flow_portraits.parse_portraits(make_config(portraits="bowl"), flow_vs_descent.PROBLEMS)
    with pytest.raises(ValueError, match=r"portrait_steps=0 must be 1 or more"):
        flow_portraits.parse_portraits(make_config(portrait_steps=0), flow_vs_descent.PROBLEMS)


def test_every_name_has_its_order():
    names = flow_models.parse_models("auto", plain=True)
    assert [flow_models.expected_order(name) for name in names] == [1, 2, 3, 2, 3]
    names = flow_models.parse_models("modified_4,eliminated_2", plain=False)
    assert [flow_models.expected_order(name) for name in names] == [4, 2]


def test_the_binary_leaves_a_run(tmp_path):
    command = [
        sys.executable, "-m", "experiments.flow_vs_descent",
        "--config=configs/flow_vs_descent_small.py", "--learning_rates=0.05,0.1",
        "--config.flows=gradient_flow", "--config.portraits=", "--config.duration=0.2",
        "--config.shown_steps=4", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 2
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 2
