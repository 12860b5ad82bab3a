"""A run that was killed, wherever it stood, ends with the bits of one that was not."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from driftlab import Grid, open_run, sweep
from driftlab.measures import gradient_norm, loss
from driftlab.sweep import Interrupted, final_params
from driftlab.sweep.folder import PROGRESS, read_json

RECORDS, EVERY = 64, 3
# Lanes die all through the run, between the records at which vmap's lanes are compacted too.
LIVES = Grid({"life": [20.0, 30, 45, 58, 70, 85, 104, 118, 131, 150, 1e5, 2e5]})
OPTIONS = {"steps": RECORDS * EVERY, "record_every": EVERY, "progress": False}


@pytest.mark.parametrize(("lanes", "devices"), [("chunk:3", 1), ("vmap", 1), ("vmap", 2)])
def test_a_run_stopped_many_times_has_the_bits_of_one_that_was_not(
    problems, tmp_path, monkeypatch, signal_at, lanes, devices
):
    options = OPTIONS | {
        "lanes": lanes, "compact": True, "devices": devices,
        "measures": [loss, gradient_norm, problems.parameters, problems.moved],
    }  # fmt: skip
    with jax.enable_x64(False):  # where rounding shows soonest
        whole = sweep(problems.mortal, LIVES, out=tmp_path / "whole", **options)
        dead = whole.verdict_step.values
        assert (np.diff(dead[:10]) > 0).all()
        assert whole.verdict.values[-2:].tolist() == ["ok", "ok"]
        # At record 29 half of the lanes are dead, but vmap's next compaction is at record 30.
        for segment in (2, 6, 9, 12, 8):
            with monkeypatch.context():
                signal_at(signal.SIGTERM, segment)
                with pytest.raises(Interrupted):
                    sweep(problems.mortal, LIVES, out=tmp_path / "stopped", **options)
            monkeypatch.undo()
        resumed = sweep(problems.mortal, LIVES, out=tmp_path / "stopped", **options)
    problems.assert_same_bits(resumed, whole)
    problems.assert_same_bits(open_run(tmp_path / "stopped"), whole)
    finals = (final_params(tmp_path / name) for name in ("whole", "stopped"))
    for a, b in zip(*map(jax.tree.leaves, finals), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_resumes_on_another_number_of_devices(problems, tmp_path, signal_at, monkeypatch):
    options = OPTIONS | {"lanes": "chunk:3", "measures": [loss, problems.parameters]}
    whole = sweep(problems.mortal, LIVES, devices=1, **options)
    with monkeypatch.context():
        signal_at(signal.SIGTERM, 20)
        with pytest.raises(Interrupted):
            sweep(problems.mortal, LIVES, devices=2, out=tmp_path, **options)
    monkeypatch.undo()
    resumed = sweep(problems.mortal, LIVES, devices=1, out=tmp_path, **options)
    problems.assert_same_bits(resumed, whole)


def test_a_run_stopped_in_its_second_static_point(problems, tmp_path, signal_at, monkeypatch):
    def build(hparams, key):
        return problems.quadratic(hparams, key)

    grid = Grid({"learning_rate": [0.05, 0.1, 0.5]}, {"label": ["a", "b", "c"]})
    options = {"steps": 20, "lanes": "chunk:2", "devices": 1, "progress": False}
    whole = sweep(build, grid, **options)
    calls = signal_at(signal.SIGTERM, 21 + 9)
    with pytest.raises(Interrupted):
        sweep(build, grid, out=tmp_path, **options)
    assert len(calls) == 30
    monkeypatch.undo()
    partial = open_run(tmp_path)
    assert (partial.verdict.sel(label="a") != "missing").all()
    assert (partial.verdict.sel(label="c") == "missing").all()
    problems.assert_same_bits(partial.sel(label="a"), whole.sel(label="a"))
    problems.assert_same_bits(sweep(build, grid, out=tmp_path, **options), whole)


SCRIPT = """
    import signal
    import sys
    # Python's own handler: a job in a script's background starts with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, {problems!r})
    import problems
    from driftlab import Grid, sweep
    from driftlab.measures import loss
    from driftlab.sweep import engine

    engine._SEGMENT_SECONDS = 0.02
    lives = [100.0, 300, 900, 2000, 3500, 5000, 6000, 7500, 9000, 1e8, 2e8]
    print("start", flush=True)
    sweep(
        problems.mortal, Grid({{"life": lives}}), 10000, record_every=40,
        measures=[loss, problems.parameters], lanes={lanes!r}, compact=True, devices=1,
        out=sys.argv[1], checkpoint_seconds=0, progress=False,
    )
"""


def start(script, folder):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    limits = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, **cache, **limits, "JAX_ENABLE_X64": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("lanes", ["chunk:3", "vmap"])
def test_a_run_killed_at_random_moments_has_the_bits_of_one_that_was_not(problems, tmp_path, lanes):
    script = SCRIPT.format(problems=str(Path(__file__).parent), lanes=lanes)
    script = textwrap.dedent(script)
    with start(script, tmp_path / "whole") as process:
        assert process.stdout.readline() == "start\n"
        began = time.monotonic()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        duration = time.monotonic() - began

    # First while it starts and compiles, then while it steps and, most of the time, writes.
    rng, killed = random.Random(lanes), 0
    status = tmp_path / "killed" / PROGRESS
    for early in (True, False, True, False, False):
        with start(script, tmp_path / "killed") as process:
            process.stdout.readline()
            before = status.stat().st_mtime_ns if status.exists() else 0
            if early:
                time.sleep(rng.uniform(0.1, 0.5) * duration)
            else:
                while process.poll() is None and (
                    not status.exists() or status.stat().st_mtime_ns == before
                ):
                    time.sleep(0.01)
                time.sleep(rng.uniform(0.0, 0.3))
            killed += process.poll() is None
            process.kill()
            _, errors = process.communicate(timeout=60)
            assert process.returncode in (0, -signal.SIGKILL), errors
    assert killed >= 2
    with start(script, tmp_path / "killed") as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    assert read_json(tmp_path / "killed" / PROGRESS)["status"] == "finished"
    whole, resumed = open_run(tmp_path / "whole"), open_run(tmp_path / "killed")
    assert 5 < (whole.verdict != "ok").sum() < 11
    problems.assert_same_bits(resumed, whole)
    # What half-written files a kill left are cleared away by the runs after it.
    left = [path.name for path in (tmp_path / "killed").rglob("*")]
    assert [name for name in left if ".partial-" in name or "orbax-checkpoint-tmp" in name] == []


def test_a_second_interrupt_acts_at_once(tmp_path):
    script = SCRIPT.format(problems=str(Path(__file__).parent), lanes="chunk:3")
    script = textwrap.dedent(script).replace("10000", "2000000").replace("every=40", "every=100000")
    with start(script, tmp_path) as process:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while process.poll() is None and not (tmp_path / "config.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
