"""The tests of stationarity, against scipy on the same blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftlab.measures.blocking import add_to_blocks, empty_blocks, last_half
from driftlab.measures.stationarity import (
    norm_trend_test,
    ratio_test,
    residual_test,
    t_quantile,
)

RANDOM = np.random.RandomState(0)


@jax.jit
def window_of(stream):
    def step(blocks, values):
        return add_to_blocks(blocks, values), None

    return last_half(jax.lax.scan(step, empty_blocks(3, 32), stream)[0])


def stream(difference=0.0, slope=0.0, seed=0):
    """left, right, |theta|^2 of 600 steps."""
    random = np.random.RandomState(seed)
    right = 2 + 0.1 * random.standard_normal(600)
    left = right + difference + 0.3 * random.standard_normal(600)
    norm = 50 + random.standard_normal(600) + slope * np.arange(600)
    return np.stack([left, right, norm], 1)


def blocks_of(window):
    return np.asarray(window.block_means)[np.asarray(window.complete)]


@pytest.mark.parametrize("degrees", [1, 2, 15, 31, 1000])
@pytest.mark.parametrize("significance", [0.05, 0.2])
def test_quantiles(degrees, significance):
    expected = stats.t.ppf(1 - significance / 2, degrees)
    found = t_quantile(significance)(jnp.asarray(degrees))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.isnan(t_quantile(significance)(jnp.asarray(0)))


def test_the_ratio_test():
    window = window_of(stream(difference=0.03))
    ratio = window.mean[0] / window.mean[1] - 1
    assert 0 < ratio < 0.1
    assert ratio_test(1.001 * ratio)(window)
    assert not ratio_test(0.999 * ratio)(window)


def test_the_residual_test_is_scipy_s():
    verdicts = []
    for difference in (0.0, 0.02, 0.05, 0.1, -0.1):
        window = window_of(stream(difference))
        rows = blocks_of(window)
        residual = rows[:, 0] - rows[:, 1]
        expected = stats.ttest_1samp(residual, 0).pvalue > 0.05
        verdicts.append(bool(residual_test()(window)))
        assert verdicts[-1] == expected
        # Equivalence: the whole interval within the margin.
        interval = stats.t.interval(
            0.8, len(residual) - 1, residual.mean(), stats.sem(residual, ddof=1)
        )
        right = float(window.mean[1])
        for margin in (0.005, 0.02, 0.06):
            inside = -margin * right < interval[0] and interval[1] < margin * right
            assert bool(residual_test(0.2, margin)(window)) == inside
    assert len(set(verdicts)) == 2


def test_the_norm_trend_test_is_scipy_s():
    verdicts = []
    for slope in (0.0, 1e-4, 1e-3, -1e-3, 1e-2):
        window = window_of(stream(slope=slope))
        values = blocks_of(window)[:, 2]
        expected = stats.linregress(np.arange(len(values)), values).pvalue > 0.05
        verdicts.append(bool(norm_trend_test()(window)))
        assert verdicts[-1] == expected
    assert len(set(verdicts)) == 2
    assert not norm_trend_test()(window_of(stream(difference=5.0)))  # far from balance


def test_a_level_holds_under_stationarity():
    """On independent noise a test of level 5% calls 95% of windows stationary."""
    draws = RANDOM.standard_normal((400, 256, 3)) + np.array([1.0, 1.0, 5.0])
    windows = jax.vmap(window_of)(draws)
    tests = (residual_test(), norm_trend_test())
    shares = jax.jit(jax.vmap(lambda window: jnp.stack([test(window) for test in tests])))(windows)
    for share in shares.mean(0):
        # 400 windows: a standard deviation of 1.1%.
        np.testing.assert_allclose(share, 0.95, atol=0.04)


@pytest.mark.parametrize("test", [ratio_test(), residual_test(), norm_trend_test()])
def test_nan_and_empty_windows_are_not_stationary(test):
    assert not test(last_half(empty_blocks(3)))
    assert not test(window_of(np.full((600, 3), np.nan)))


def test_bad_arguments_are_refused():
    for bad in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"significance=.* must be above 0 and below 1"):
            residual_test(bad)
    with pytest.raises(ValueError, match=r"tolerance=0 must be positive"):
        ratio_test(0)
    with pytest.raises(ValueError, match=r"margin=-1.0 must be positive"):
        residual_test(0.05, -1.0)
    with pytest.raises(ValueError, match=r"significance must be a number"):
        jax.jit(lambda p: residual_test(p)(window_of(stream())))(0.05)
