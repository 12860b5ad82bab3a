"""The binary as its users meet it: interrupted, continued, finished, and given bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import driftlab

ROOT = Path(__file__).parents[2]
QUICK = [
    "--config=configs/edge_of_stability_small.py", "--config.optimizers=gradient_descent,adam",
    "--config.learning_rates.gradient_descent=0.1,0.6,5", "--config.learning_rates.adam=2e-3",
    "--config.model_args=widths=(32,32),activation='tanh',scale=0.7", "--steps=800",
    "--config.flow_time=60", "--config.flow_records=20",
]  # fmt: skip


@pytest.fixture(scope="session")
def start():
    cache = os.environ.get("TMPDIR", "/tmp")
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    environment = kept | {"XDG_CACHE_HOME": f"{cache}/driftlab-test-xdg"}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.edge_of_stability", *map(str, arguments)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def run(start):
    def run(*arguments):
        process = start(*arguments)
        output, error = process.communicate(timeout=300)
        return process.returncode, output, error

    return run


@pytest.fixture(scope="session")
def finished(start, run, tmp_path_factory):
    """A run that was interrupted after its first optimiser, and continued."""
    folder = tmp_path_factory.mktemp("edge") / "run"
    process = start(*QUICK, f"--out={folder}")
    deadline = time.monotonic() + 200
    while not (folder / "adam" / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert not (folder / "summary.json").exists()
    code, output, error = run(*QUICK, f"--out={folder}")
    assert code == 0, error
    return folder, output


def test_gradient_descent_and_adam_hover_at_their_thresholds(finished):
    folder, output = finished
    assert "gradient_descent: sharpness x rate settles at 2" in " ".join(output.split())
    summary = json.loads((folder / "summary.json").read_text())
    rows = {(r["optimizer"], r["learning rate"]): r for r in summary["tables"]["Every lane"]}
    assert "below the edge" in rows["gradient_descent", 0.1]["outcome"]
    assert rows["gradient_descent", 0.6]["ratio"] == pytest.approx(1, abs=0.05)
    assert re.match("(diverged|nonfinite) at", rows["gradient_descent", 5]["outcome"])
    assert rows["gradient_descent", 5]["ratio"] is None
    assert rows["adam", 2e-3]["ratio"] == pytest.approx(1, abs=0.05)
    claims = {row["claim"]: row["holds"] for row in summary["tables"]["Claims"]}
    assert len(claims) == 6
    assert "adam: preconditioned sharpness x rate settles at 2 (1 + b1) / (1 - b1) = 38" in claims
    assert set(claims.values()) == {"yes"}, claims


def test_the_run_leaves_what_it_promises(finished):
    folder, _ = finished
    report = (folder / "report.md").read_text()
    figures = re.findall(r"\]\((figures/.*?\.png)\)", report)
    assert len(figures) == 4
    assert all((folder / figure).stat().st_size > 5000 for figure in figures)
    descent = driftlab.open_run(folder / "gradient_descent")
    adam = driftlab.open_run(folder / "adam")
    flow = driftlab.open_run(folder / "gradient_flow")
    assert set(descent) >= {"sharpness", "sharpness_residual", "loss", "loss_rises"}
    assert "preconditioned_sharpness" in adam
    # Every lane, of every method, starts from the same parameters.
    first = descent.isel(step=0)
    np.testing.assert_allclose(first.sharpness.values.ravel(), flow.sharpness[0, 0], rtol=1e-5)
    np.testing.assert_allclose(adam.loss[0, 0, 0], flow.loss[0, 0], rtol=1e-5)
    # Below the edge gradient descent is close to the flow: t = 60 is iteration 600 at 0.1.
    followed = descent.sharpness.sel(step=600, seed=0, learning_rate=0.1)
    np.testing.assert_allclose(followed, flow.sharpness[0, -1], rtol=0.02)


def test_a_finished_run_redraws_and_refuses_another_config(finished, run):
    folder, _ = finished
    figure = folder / "figures" / "adam_sharpness.png"
    figure.unlink()
    code, again, error = run(*QUICK, f"--out={folder}")
    assert code == 0, error
    assert "finished" in again
    assert figure.exists()
    code, _, error = run(*QUICK, "--config.momentum=0.5", f"--out={folder}")
    assert code == 2
    assert "config.momentum: 0.9 / 0.5" in error


BAD = {
    "rates": (["--learning_rates=0,1"], "learning_rates.gradient_descent='0,1'.*positive"),
    "shard": (["--shard=1/2"], "not split.*--config.optimizers"),
    "foreign folder": (["--out=docs"], "not empty and holds no run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_one_clear_message(name, run, tmp_path):
    arguments, message = BAD[name]
    code, _, error = run(*QUICK, f"--out={tmp_path / 'run'}", *arguments)
    assert code == 2
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
