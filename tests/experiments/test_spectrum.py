"""The spectrum experiment: what counts as an outlier, the problems, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

import driftlab
from configs import spectrum_small
from driftlab.plot.density import spectra
from experiments import spectrum

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = spectrum_small.get_config()
    config.classes = "3"
    config.train_size = 30
    config.model_args = "widths=(8,),activation='tanh'"
    config.normalization = "unit"
    config.steps = 40
    config.probes = 2
    config.lanczos_steps = 12
    config.eigenvalues = 6
    return config


@pytest.fixture(scope="module")
def finished(config):
    problems = spectrum.make_problems(config)
    return problems, spectrum.run(config, problems, progress=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([9.0, 8.0, 7.0, 1.0, 0.9, 0.8], (3, 7.0, 8 / 7)),
        ([9.0, 1.0, 0.5, 0.4], (1, 9.0, 2.0)),
        # Negative eigenvalues are no part of any gap.
        ([4.0, 3.0, 1.0, 0.9, -5.0], (2, 3.0, 4 / 3)),
        # Units do not matter.
        ([9e-6, 8e-6, 7e-6, 1e-6, 0.9e-6], (3, 7.0, 8 / 7)),
    ],
)
def test_outliers_end_at_the_largest_ratio(values, expected):
    np.testing.assert_allclose(spectrum.outlier_count(np.array(values)), expected)


@pytest.mark.parametrize("values", [[np.nan] * 4, [-1.0, -2.0, -3.0], [1.0, 0.5, -1.0]])
def test_no_spectrum_no_outliers(values):
    count, gap, other = spectrum.outlier_count(np.array(values))
    assert count == 0
    assert np.isnan([gap, other]).all()


def test_problems_hold_the_classes_asked_for(config):
    for (loss, classes), problem in spectrum.make_problems(config).items():
        targets = np.asarray(problem.objective.data.targets)
        labels = targets.argmax(1) if loss == "squared_error" else targets
        assert sorted(np.bincount(labels)) == [10] * classes
        leaves = jax.tree.leaves(problem.initialize(jax.random.key(0)))
        assert problem.dimension == sum(leaf.size for leaf in leaves)


def test_recorded_eigenvalues_are_those_of_the_dense_hessian(finished):
    problems, dataset = finished
    problem = problems["squared_error", 3]
    # The sweep's key of seed 0; its parameters' stream is 0.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    flat, restore = jax.flatten_util.ravel_pytree(problem.initialize(key))
    data = problem.objective.data
    dense = jax.hessian(lambda theta: problem.objective.loss(restore(theta), data))(flat)
    expected = np.linalg.eigvalsh(dense)[::-1][:6]
    lane = dataset.sel(loss_name="squared_error", classes=3).isel(seed=0, learning_rate=0, step=0)
    # The tracker stops at a residual of 1e-3 lambda_max; the error is its square over the gap.
    np.testing.assert_allclose(lane.hessian_eigenvalues, expected, atol=1e-3 * expected[0])
    exact = np.trace(dense)
    samples = problem.dimension * (lane.density_nodes.values * lane.density_weights.values).sum(-1)
    # Each probe's rule is exact for z.Hz, whatever the number of Lanczos steps.
    spread = np.sqrt(2 * (np.sum(np.square(dense)) - np.sum(np.square(np.diag(dense)))))
    assert (abs(samples - exact) < 4 * spread).all()


def test_tables_and_figures(finished):
    problems, dataset = finished
    claims, traces = spectrum.tables(dataset, problems).values()
    assert [row["claim"] for row in claims] == [2, 3]
    assert claims[1]["at step 20"] == "3"
    # Two probes say little of their own error: far off is what a wrong scale would be.
    assert all(row["trace, quadrature"] > 0 for row in traces)
    figures = spectrum.draw(dataset, problems)
    assert set(figures) == {"spectrum_cross_entropy", "spectrum_squared_error"}
    assert len(figures["spectrum_squared_error"].axes) == 3


def test_a_grid_of_panels_needs_a_dimension_a_row_and_a_spectrum(finished):
    _, dataset = finished
    lane = dataset.isel(seed=0, learning_rate=0, loss_name=0)
    with pytest.raises(ValueError, match="dimensions has 2 entries, but there are 1 rows"):
        spectra(lane, [3, 4], "classes")
    with pytest.raises(ValueError, match=r"no spectrum at steps=\[7\]"):
        spectra(lane, [3], "classes", steps=[7])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", "3,x", r"classes='3,x': give a comma list"),
        ("classes", "11", r"classes=11 must be from 2 to 10"),
        ("loss", "cross_entropi", r"did you mean cross_entropy"),
        ("train_size", 100000, r"train_size=100000, but 3 classes have"),
    ],
)
def test_bad_configs_are_refused(config, field, value, message):
    other = config.copy_and_resolve_references()
    other[field] = value
    with pytest.raises(ValueError, match=message):
        spectrum.make_problems(other)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path):
    command = [
        sys.executable, "-m", "experiments.spectrum", "--config=configs/spectrum_small.py",
        "--config.classes=2,3", "--config.loss=squared_error", "--config.train_size=20",
        "--config.model_args=widths=(8,)", "--steps=20", "--config.probes=2",
        "--config.lanczos_steps=8", "--config.eigenvalues=5", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    for again in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 2
    assert (tmp_path / "run" / "figures" / "spectrum_squared_error.png").exists()
    assert driftlab.open_run(tmp_path / "run").attrs["status"] == "finished"
