"""Half-running means and their error bars, against NumPy on the whole stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftlab.measures.blocking import add_to_blocks, empty_blocks, last_half, trend

RANDOM = np.random.RandomState(0)
STREAM = RANDOM.standard_normal((700, 2)) + np.array([3.0, -0.5])


@jax.jit
def windows(stream):
    """The window after every vector of a stream, with 16 blocks."""

    def step(blocks, values):
        blocks = add_to_blocks(blocks, values)
        return blocks, (blocks, last_half(blocks), trend(last_half(blocks), 0))

    return jax.lax.scan(step, empty_blocks(2, 16, stream.dtype), stream)[1]


def oracle(stream, number):
    """(start, size) of the window after all of a stream, from its length alone."""
    size = 1
    while len(stream) >= number * size:
        size *= 2
    return len(stream) // (2 * size) * size, size


def test_half_running_means_and_errors_equal_numpy():
    _, window, _ = windows(STREAM)
    for count in (1, 2, 3, 15, 16, 17, 31, 32, 100, 255, 256, 257, 511, 512, 699, 700):
        past = STREAM[:count]
        start, size = oracle(past, 16)
        assert start <= count // 2 < start + size
        row = jax.tree.map(lambda leaf, k=count - 1: np.asarray(leaf[k]), window)
        np.testing.assert_allclose(row.mean, past[start:].mean(0), rtol=1e-12)
        assert (row.count, row.total) == (count - start, count)
        number = (count - start) // size
        means = past[start : start + number * size].reshape(number, size, 2).mean(1)
        np.testing.assert_allclose(row.block_means[row.complete], means, rtol=1e-12)
        if number >= 2:
            np.testing.assert_allclose(row.error, means.std(0, ddof=1) / number**0.5, rtol=1e-10)
        else:
            assert np.isnan(row.error).all()


def test_the_window_is_the_last_half_exactly_where_blocks_allow():
    _, window, _ = windows(STREAM)
    for count in (2, 16, 28, 32, 56, 64, 128, 192, 512, 640):
        mean = STREAM[count // 2 : count].mean(0)
        np.testing.assert_allclose(window.mean[count - 1], mean, rtol=1e-12)


def test_a_window_keeps_a_quarter_to_a_half_of_the_blocks():
    _, window, _ = windows(STREAM)
    complete = np.asarray(window.complete.sum(1))[16:]
    assert (complete.min(), complete.max()) == (4, 8)


def test_trend_equals_scipy():
    _, window, (change, error) = windows(STREAM)
    row = jax.tree.map(lambda leaf: np.asarray(leaf[699]), window)
    values = row.block_means[row.complete, 0]
    fit = stats.linregress(np.arange(len(values)), values)
    np.testing.assert_allclose(change[699], len(values) * fit.slope, rtol=1e-9)
    np.testing.assert_allclose(error[699], len(values) * fit.stderr, rtol=1e-9)
    assert np.isnan(error[3])  # two complete blocks


def test_error_bars_of_a_correlated_stream_are_its_spread_over_repetitions():
    key = jax.random.key(0)

    @jax.jit
    @jax.vmap
    def final(key):
        def step(carry, noise):
            value, blocks = carry
            value = 0.8 * value + noise
            return (value, add_to_blocks(blocks, value[None])), None

        noises = jax.random.normal(key, (3000,))
        return last_half(jax.lax.scan(step, (0.0, empty_blocks(1)), noises)[0][1])

    window = final(jax.random.split(key, 300))
    spread = window.mean[:, 0].std()
    # 300 repetitions give the spread to 4%; blocks of 64 steps of a memory of 4.5, neighbours of
    # which correlate, make the bars 7% too small.
    np.testing.assert_allclose(jnp.sqrt((window.error**2).mean()), spread, rtol=0.15)


def test_nan_shows_and_float32_stays(float32):
    stream = jnp.asarray(STREAM[:40], jnp.float32)
    blocks, window, _ = windows(stream)
    assert blocks.sums.dtype == window.mean.dtype == jnp.float32
    spoilt = windows(stream.at[30, 0].set(jnp.nan))[1].mean
    np.testing.assert_array_equal(np.isnan(spoilt[jnp.array([29, 39])]), [[0, 0], [1, 0]])


@pytest.mark.parametrize("blocks", [7, 6, 9, 0, True, 64.0])
def test_bad_numbers_of_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match=r"blocks must be an even number, 8 or more"):
        empty_blocks(2, blocks)
