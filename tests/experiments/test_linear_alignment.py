"""Alignment of linear networks: the drift's table, the parts, and the binary."""

import json

import numpy as np
import pytest

from configs import linear_alignment_small
from experiments import linear_alignment, linear_alignment_models, linear_alignment_report


@pytest.fixture(scope="module")
def config(parsed_flags):
    config = linear_alignment_small.get_config()
    config.train_size = 30
    config.drift_rates = "0.4,0.2"
    config.drift_dynamics = "gradient_descent,gradient_flow,modified_flow"
    return config


@pytest.fixture(scope="module")
def drift(config):
    problems = linear_alignment.make_problems(config)
    return linear_alignment.run_drift(config, problems, progress=False)


def test_the_data_are_separable_and_in_the_unit_ball(config):
    for separable in linear_alignment.make_problems(config).values():
        norms = np.linalg.norm(separable.examples.inputs, axis=1)
        np.testing.assert_allclose(norms.max(), 1, rtol=1e-14)
        towards = separable.examples.targets[:, None] * separable.examples.inputs
        np.testing.assert_allclose(
            (towards @ separable.oracle.direction).min(), separable.oracle.margin, rtol=1e-9
        )
    assert linear_alignment_models.plane(20, 0.3, 1).oracle.margin > 0.3


def test_the_drift_of_balancedness_is_predicted(drift, config):
    found, integral = linear_alignment_report.drifts(drift, "plane", config.drift_time)
    rates = drift.learning_rate.values
    size = np.linalg.norm(integral)
    for name in ("gradient_descent", "modified_flow"):
        slopes = np.linalg.norm(found[name], axis=1) / rates / size
        np.testing.assert_allclose(slopes, 1, atol=0.05)
    errors = np.linalg.norm(found["gradient_descent"] - found["modified_flow"], axis=1)
    assert errors[0] / errors[1] > 3.5, "order 2 in h"
    # At the solver's tolerance.
    np.testing.assert_allclose(found["gradient_flow"], 0, atol=1e-6)
    assert float(drift.balancedness_error.sel(dynamics="gradient_descent").max()) < 1e-13
    claims = linear_alignment_report.tables({"drift": drift}, config, {})
    assert [row["holds"] for row in next(iter(claims.values()))] == ["yes"] * 4


def test_bad_fields_are_refused(config):
    other = config.copy_and_resolve_references()
    other.labels = "binary"
    with pytest.raises(ValueError, match=r"labels='binary' must be two classes"):
        linear_alignment.make_problems(other)
    other = config.copy_and_resolve_references()
    other.labels, other.train_size = "binary:8,1", 0
    other.drift_rates = "0.3,0.2"
    with pytest.raises(ValueError, match=r"give two or more that divide drift_time"):
        linear_alignment.run_drift(other, {})
    other.drift_rates, other.drift_dynamics = "0.4,0.2", "gradient_descent"
    with pytest.raises(ValueError, match=r"drift_problems='plane' must name some of"):
        linear_alignment.run_drift(other, {})
    with pytest.raises(ValueError, match=r"gap=2 must be between 0 and 1"):
        linear_alignment_models.plane(10, 2, 0)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path, run_experiment):
    arguments = [
        "--config=configs/linear_alignment_small.py",
        "--parts=plane,flow,cnn",
        "--learning_rates=1",
        "--config.plane_steps=100",
        "--config.records=5",
        "--config.tolerances=1e-5",
        "--config.flow_records=4",
        "--config.flow_length=3.0",
        "--config.train_size=10",
        "--config.cnn.steps=4",
        "--config.cnn.records=2",
        "--config.cnn.train_size=64",
        f"--out={tmp_path / 'run'}",
    ]
    for again in (False, True):
        done = run_experiment("linear_alignment", *arguments)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    claims, descent, flow, dense = summary["tables"].values()
    assert [row["part"] for row in claims] == (
        ["plane"] * 5 + ["flow, plane"] * 4 + ["flow, images"] * 4
        + ["cnn, default"] * 2 + ["cnn, norm_4"] * 2
    )  # fmt: skip
    assert {row["holds"] for row in claims if "lemma 2" in row["claim"]} == {"yes"}
    assert len(descent) == 4
    assert {row["problem"] for row in flow} == {"plane", "images"}
    assert len(dense) == 6
    assert (tmp_path / "run" / "figures" / "linear_alignment_cnn.png").exists()
