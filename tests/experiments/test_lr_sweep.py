"""The binary as its users meet it: started as a process, with good flags and bad ones."""

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
SMALL = ["--config=configs/lr_sweep_small.py", "--learning_rates=1e-3:10:4", "--seeds=2"]
QUICK = [*SMALL, "--steps=20", "--record_every=5", "--config.model_args=widths=(8,)"]
FACTORIES = """
import optax

def mine(learning_rate, momentum=0.5):
    return optax.sgd(learning_rate, momentum)

def broken(learning_rate):
    if learning_rate > 1:
        raise AssertionError
    return optax.sgd(learning_rate)

def vector_loss(apply):
    return lambda params, batch: ((apply(params, batch.inputs) - batch.targets) ** 2).mean(-1)
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    modules = tmp_path_factory.mktemp("modules")
    (modules / "factories.py").write_text(FACTORIES)
    cache = os.environ.get("TMPDIR", "/tmp")
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    return kept | {"PYTHONPATH": str(modules), "XDG_CACHE_HOME": f"{cache}/driftlab-test-xdg"}


@pytest.fixture(scope="session")
def start(environment):
    def start(*arguments, shell_first="true"):
        command = [sys.executable, "-m", "experiments.lr_sweep", *map(str, arguments)]
        return subprocess.Popen(
            ["bash", "-c", f'{shell_first}; exec "$@"', "bash", *command],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def run(start):
    def run(*arguments, **options):
        process = start(*arguments, **options)
        output, error = process.communicate(timeout=300)
        return process.returncode, output, error

    return run


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    code, output, error = run(*QUICK, f"--out={folder}")
    assert code == 0, error
    return folder, output


def test_a_run_leaves_what_it_promises(finished):
    folder, output = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json", "metrics.zarr", "checkpoints", "figures", "summary.json", "report.md",
        "progress.json",
    }  # fmt: skip
    assert "best rate" in output
    assert "largest stable" in output
    report = (folder / "report.md").read_text()
    figures = re.findall(r"\]\((figures/.*?\.png)\)", report)
    assert len(figures) == 4
    assert all((folder / figure).stat().st_size > 5000 for figure in figures)
    dataset = driftlab.open_run(folder)
    assert dict(dataset.sizes) == {"learning_rate": 4, "seed": 2, "step": 5}
    np.testing.assert_allclose(dataset.learning_rate, np.geomspace(1e-3, 10, 4))
    assert dataset.attrs["status"] == "finished"
    assert (dataset.verdict.sel(learning_rate=10) != "ok").all()
    assert (dataset.verdict.sel(learning_rate=1e-3) == "ok").all()
    # Whole-data measures come every fourth record, and at the last one.
    recorded = np.isfinite(dataset.training_loss.isel(learning_rate=0, seed=0).values)
    np.testing.assert_array_equal(recorded, [True, False, False, False, True])
    summary = json.loads((folder / "summary.json").read_text())
    row = summary["tables"]["Learning rates"][0]
    final = dataset.training_loss.isel(step=-1).median("seed")
    assert row["training loss"] == pytest.approx(float(final.min()))
    assert row["best rate (training loss)"] == pytest.approx(float(final.idxmin()))


def test_a_finished_run_redraws_its_figures(finished, run):
    folder, _ = finished
    figure = folder / "figures" / "loss_curves.png"
    figure.unlink()
    code, output, error = run(*QUICK, f"--out={folder}")
    assert code == 0, error
    assert "finished" in output
    assert figure.exists()


def test_own_optimizer_several_optimizers_and_axes(run, tmp_path):
    code, _, error = run(
        *QUICK, "--optimizer=factories:mine,sgd", 
        "--config.axes=momentum=0:0.9:2:linear", "--x64", f"--out={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, error
    dataset = driftlab.open_run(tmp_path / "run")
    assert dataset.optimizer.values.tolist() == ["factories:mine", "sgd"]
    assert dataset.momentum.values.tolist() == [0, 0.9]
    assert dataset.loss.dtype == np.float64
    np.testing.assert_array_equal(
        dataset.loss.sel(optimizer="sgd"), dataset.loss.sel(optimizer="factories:mine")
    )


def test_sigterm_exits_75_and_the_same_command_continues(start, run, tmp_path):
    # Long enough for several segments on a fast machine: an interruption waits for the end of one.
    arguments = [*SMALL, "--steps=200000", "--record_every=500", "--config.evaluate_every=50"]
    process = start(*arguments, f"--out={tmp_path / 'run'}")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert "same command continues" in error
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert progress["status"] == "interrupted"
    code, _, error = run(*arguments, f"--out={tmp_path / 'run'}")
    assert code == 0, error
    code, _, error = run(*arguments, f"--out={tmp_path / 'whole'}")
    assert code == 0, error
    resumed = driftlab.open_run(tmp_path / "run").drop_attrs()
    whole = driftlab.open_run(tmp_path / "whole").drop_attrs()
    assert resumed.identical(whole)


def test_shards_merge_into_the_whole(finished, run, environment, tmp_path):
    whole, _ = finished
    for shard in ("1/2", "2/2"):
        code, _, error = run(*QUICK, f"--shard={shard}", "--lanes=chunk:2", f"--out={tmp_path}")
        assert code == 0, error
    merge = [sys.executable, "-m", "driftlab.sweep.command", "merge", str(tmp_path)]
    done = subprocess.run(
        [*merge, f"--out={tmp_path / 'merged'}"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    code, _, error = run(*QUICK, "--lanes=chunk:2", f"--out={tmp_path / 'single'}")
    assert code == 0, error
    merged = driftlab.open_run(tmp_path / "merged").drop_attrs()
    assert merged.identical(driftlab.open_run(tmp_path / "single").drop_attrs())
    assert set(merged) == set(driftlab.open_run(whole))


BAD = {
    "unknown flag": (["--learning_ratess=1"], "learning_rates"),
    "wrong type": (["--steps=abc"], "steps.*abc"),
    "zero steps": (["--steps=0"], "steps"),
    "positional": (["lr=3"], "unexpected argument 'lr=3'"),
    "empty rates": (["--learning_rates="], "learning_rates is empty.*start:stop:count"),
    "negative rate": (["--learning_rates=0.1,-1"], "every value must be positive"),
    "zero rate": (["--learning_rates=0,1"], "every value must be positive"),
    "missing end": (["--learning_rates=1e-3:1"], "a range needs start, stop and count"),
    "missing start": (["--learning_rates=:1:4"], "a range needs start, stop and count"),
    "no number": (["--learning_rates=0.1,x"], "'x' is not a number"),
    "repeated rate": (["--learning_rates=0.1,0.1"], "'learning_rate' holds 0.1 more than once"),
    "no seeds": (["--seeds=0"], "seeds='0'"),
    "optimizer": (["--optimizer=adm"], "no optimizer 'adm': did you mean adam"),
    "argument": (
        ["--optimizer=adam", "--optimizer_args=momentum=0.9"], "'adam' does not take momentum",
    ),
    "arguments": (["--optimizer_args=momentum"], "optimizer_args='momentum': give key=value"),
    "module": (["--optimizer=nowhere:f"], "cannot import 'nowhere'"),
    "function": (["--optimizer=factories:f"], "module 'factories' has no 'f'"),
    "factory": (
        ["--optimizer=factories:broken", "--optimizer_args="],
        "optimizer 'factories:broken' could not be built.*traced",
    ),
    "vector loss": (
        ["--config.loss=factories:vector_loss"], r"Objective.loss must return a scalar.*\(32,\)",
    ),
    "loss": (["--config.loss=cross_entropi"], "no loss .cross_entropi.: did you mean cross_e"),
    "model": (["--config.model=mpl"], "no model 'mpl': did you mean mlp"),
    "data": (["--config.data=mnist"], "no data set 'mnist': did you mean"),
    "config field": (["--config.stepz=1"], "stepz"),
    "batch": (["--config.batch_size=100000"], "batch_size is 100000.*only 1437"),
    "missing data": (
        ["--config.data=cifar10", "--data_dir=/nowhere"], "(?s)batch_1.bin.*Looked in.*/nowhere",
    ),
    "devices": (["--devices=1000"], "devices=1000, but JAX sees"),
    "lanes": (["--lanes=chunk:0"], "lanes must be"),
    "shard": (["--shard=3/2"], "1 <= k <= n"),
    "out is a file": (["--out=README.md/run"], "cannot write in the output folder"),
    "foreign folder": (["--out=docs"], "not empty and holds no run"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_one_clear_message(name, run, tmp_path):
    arguments, message = BAD[name]
    out = [] if any(a.startswith("--out") for a in arguments) else [f"--out={tmp_path / 'run'}"]
    base = [] if name == "positional" else QUICK
    code, output, error = run(*base, *out, *arguments)
    assert code not in (0, 75)
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert "best rate" not in output
    assert not (tmp_path / "run").exists()


def test_another_config_is_refused_with_its_fields(finished, run):
    folder, _ = finished
    code, _, error = run(*QUICK, "--learning_rates=1e-3:1:4", "--x64", f"--out={folder}")
    assert code == 2
    assert "run of another config" in error
    assert "config.learning_rates" in error
    assert "x64: false / true" in error
    assert "Traceback" not in error


def test_truncated_data_are_refused(run, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\0")
    code, _, error = run(
        *QUICK, "--config.data=fashion_mnist", f"--data_dir={tmp_path}", f"--out={tmp_path / 'run'}"
    )
    assert code == 2
    assert "train-images-idx3-ubyte" in error
    assert "Traceback" not in error


def test_a_full_disk_says_so_and_loses_nothing(run, tmp_path):
    # A file-size limit fails writes as a full disk does, without needing one.
    wide = [*SMALL, "--steps=20", "--config.model_args=widths=(512,)", f"--out={tmp_path / 'run'}"]
    code, _, error = run(*wide, "--compilation_cache=none", shell_first="ulimit -f 100")
    assert code == 2
    assert re.search(r"writing in .*run failed.*make room and repeat", error), error
    code, _, error = run(*wide)
    assert code == 0, error
