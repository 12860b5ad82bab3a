"""Stability maps of linear games: theory against closed forms, growth, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from configs import bilinear_quadratic_games_small
from experiments import bilinear_quadratic_games, bilinear_quadratic_games_report, linear_games

ROOT = Path(__file__).parents[2]
RATES = np.geomspace(0.05, 6.0, 9)


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = bilinear_quadratic_games_small.get_config()
    config.learning_rates = config.theta_rates = "0.05:6:9"
    return config


@pytest.fixture(scope="module")
def dataset(config):
    return bilinear_quadratic_games.run(config, progress=False, lanes="vmap")


def test_theory_of_the_bilinear_game():
    a, b = RATES[:, None], RATES[None, :]
    rounds, modified = linear_games.theory("bilinear", "simultaneous", RATES, RATES)
    np.testing.assert_allclose(rounds, np.log(1 + a * b) / 2, rtol=1e-10)
    np.testing.assert_allclose(modified, a * b / 2, rtol=1e-10)
    rounds, modified = linear_games.theory("bilinear", "alternating", RATES, RATES)
    # Determinant 1, trace 2 - a b: on the unit circle while |trace| <= 2.
    half = np.abs(2 - a * b) / 2
    expected = np.log(half + np.sqrt(np.maximum(half**2 - 1, 0)))
    np.testing.assert_allclose(rounds, np.where(a * b < 4, 0, expected), atol=1e-8)
    # The modified flow's eigenvalues are +-sqrt(a b (a b / 4 - 1)): the same boundary.
    expected = np.sqrt(np.maximum(a * b * (a * b / 4 - 1), 0))
    np.testing.assert_allclose(modified, expected, atol=1e-8)


def test_theory_of_quadratic_games_with_self_terms():
    e, a, b = 0.2, RATES[:, None], RATES[None, :]
    rounds, _ = linear_games.theory("quadratic_0.2", "simultaneous", RATES, RATES)
    first = np.stack(np.broadcast_arrays(1 - a * e, a + 0 * b), -1)
    second = np.stack(np.broadcast_arrays(-b + 0 * a, 1 - b * e), -1)
    matrices = np.stack(np.broadcast_arrays(first, second), -2)
    np.testing.assert_allclose(
        rounds, np.log(np.abs(np.linalg.eigvals(matrices)).max(-1)), atol=1e-12
    )


def test_measured_growth_is_the_theory(dataset, config):
    found = bilinear_quadratic_games_report.growth(dataset, config.growth, 1e12)
    kept = ~found.diverged.values & (abs(found.rounds.values) > 1e-9)
    assert kept.sum() > 100
    # Oscillation by the run's length, and where the run ended early, by fewer rounds.
    difference = abs(found.measured.values - found.rounds.values)[kept]
    assert np.median(difference) < 1e-3
    assert (difference < 0.03 + 0.05 * abs(found.rounds.values)[kept]).all()
    exact = found.rounds.values > 1e-9
    np.testing.assert_array_equal(found.unstable.values, exact)
    assert found.unstable.sel(game="bilinear", play="simultaneous").all()
    claims = bilinear_quadratic_games_report.tables(found)["Claims"]
    assert [row["holds"] for row in claims] == ["yes"] * len(claims)


def test_a_record_is_the_largest_size_since_the_last():
    rates = {"phi": 0.5, "theta": 0.8}
    play = linear_games.make_play("bilinear", "alternating", rates)
    plain = play.init(linear_games.start(), jax.random.key(0))
    peaked = linear_games.with_peak(play, rates, 5)
    state = peaked.init(linear_games.start(), jax.random.key(0))
    step, plain_step = jax.jit(peaked.step), jax.jit(play.step)
    sizes = []
    for k in range(1, 21):
        state, plain = step(state), plain_step(plain)
        np.testing.assert_array_equal(state.params["phi"], plain.params["phi"])
        weighted = [plain.params[p][0] ** 2 / rates[p] for p in rates]
        sizes.append(np.sqrt(sum(weighted)))
        if k % 5 == 0:
            np.testing.assert_allclose(state.inner[1], max(sizes[-5:]), rtol=1e-12)


def test_beyond_one_cell():
    expected = np.zeros((6, 6), bool)
    expected[:, 3:] = True
    far = bilinear_quadratic_games_report.beyond_one_cell
    assert not far(expected, expected).any()
    assert not far(np.roll(expected, 1, axis=1) & expected, expected).any()
    shifted = expected.copy()
    shifted[:, 3:5] = False
    np.testing.assert_array_equal(far(shifted, expected).any(0), np.arange(6) == 4)


def test_bad_arguments_are_refused(config):
    for field, value, message in (
        ("games", "bilinaer", "there is no 'bilinaer'.*bilinear"),
        ("plays", " ", "plays is empty"),
        ("growth", 1.0, "growth=1.0 must be more than 1"),
        ("steps", 100, "steps=100 with record_every=20"),
        ("theta_rates", "0,1", "every value must be positive"),
    ):
        other = config.copy_and_resolve_references()
        other[field] = value
        with pytest.raises(ValueError, match=message):
            bilinear_quadratic_games.run(other, progress=False)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path):
    command = [
        sys.executable, "-m", "experiments.bilinear_quadratic_games",
        "--config=configs/bilinear_quadratic_games_small.py", "--learning_rates=0.1:4:6",
        "--config.theta_rates=0.1:4:5", "--config.games=bilinear", "--steps=200",
        f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    for again in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 2
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 1
