import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.curvature.per_example import gradient_moments
from driftlab.measures import every
from driftlab.measures.gradient_noise import gradient_noise
from driftlab.measures.two_batch import gradient_noise_scale_two_batch, ratio_of_means
from tests.sweep import problems

KEY = jax.random.key(3)
NAMES = (
    "gradient_covariance_trace_two_batch",
    "squared_gradient_norm_two_batch",
    "gradient_noise_scale_two_batch",
)


def pull(params, batch):
    """Half the mean squared distance from the examples: g_i = params - x_i."""
    return jnp.mean(jnp.sum((params[None] - batch) ** 2, 1)) / 2


def snapshots(data, sampling=None, key=KEY):
    """`step -> snapshot` at params 0."""
    objective = driftlab.Objective(pull, data, sampling or driftlab.full_batch())
    dynamics = driftlab.descent(optax.sgd(0.1), objective)
    state = dynamics.init(jnp.zeros(data.shape[1]), key)
    return lambda step: dynamics.observe(state._replace(step=step))


def estimates(measure, at, count):
    steps = jnp.arange(count, dtype=jnp.int32)
    values = jax.jit(lambda: jax.lax.map(lambda step: measure(at(step)), steps, batch_size=500))()
    return tuple(np.asarray(values[name]) for name in NAMES)


def by_hand(batch, small):
    """The textbook's formulas on one batch of examples, `(big, dimension)`."""
    big = len(batch)
    large = (batch.mean(0) ** 2).sum()
    little = (batch.reshape(-1, small, batch.shape[1]).mean(1) ** 2).sum(1).mean()
    return (little - large) / (1 / small - 1 / big), (big * large - small * little) / (big - small)


@pytest.mark.parametrize(("small", "big"), [(1, 3), (1, 4), (2, 4)])
def test_the_formulas_are_unbiased_over_all_batches(small, big):
    """The mean over every one of the equally likely batches, not a sample of them."""
    data = np.random.RandomState(0).standard_normal((4, 2)) + 0.5
    parts = [
        by_hand(data[list(choice)], small) for choice in itertools.product(range(4), repeat=big)
    ]
    exact = data.var(0).sum(), (data.mean(0) ** 2).sum()
    np.testing.assert_allclose(np.mean(parts, 0), exact, rtol=1e-12)


@pytest.mark.parametrize(("small", "big"), [(1, 2), (1, 32), (4, 32)])
def test_the_measure_is_the_formulas_on_the_batch_it_draws(small, big, monkeypatch):
    data = np.random.RandomState(0).standard_normal((50, 3)) + 0.5
    drawn = []

    def watched(loss, params, batch, *args, **options):
        drawn.append(np.asarray(batch))
        return gradient_moments(loss, params, batch, *args, **options)

    monkeypatch.setattr("driftlab.measures.two_batch.gradient_moments", watched)
    values = gradient_noise_scale_two_batch(small, big, batch_size=3)(snapshots(data)(0))
    (batch,) = drawn
    assert len(batch) == big
    assert np.isin(batch, data).all()
    trace, squared_norm = by_hand(batch, small)
    np.testing.assert_allclose(values[NAMES[0]], trace, rtol=1e-12)
    np.testing.assert_allclose(values[NAMES[1]], squared_norm, rtol=1e-11, atol=1e-13)
    expected = trace / squared_norm if squared_norm > 0 else np.nan
    np.testing.assert_allclose(values[NAMES[2]], expected, rtol=1e-10)


def test_means_over_steps_and_the_bias_of_the_mean_ratio():
    """The reference check's setting: n = 1000, B = 32, trace 109, a noise scale near 27.6."""
    scales = 1 / np.arange(1, 110)  # standard deviations; noise of few directions has more bias
    scales *= np.sqrt(109 / (scales**2).sum())
    data = scales * np.random.RandomState(1).standard_normal((1000, 109)) + np.sqrt(3.96 / 109)
    at = snapshots(data)
    exact = gradient_noise()(at(0))
    trace, squared_norm, ratio = estimates(gradient_noise_scale_two_batch(1, 32), at, 4000)
    for parts, truth in [
        (trace, exact["gradient_covariance_trace"]),
        (squared_norm, exact["gradient_covariance_trace"] / exact["gradient_noise_scale"]),
    ]:
        error = parts.std() / np.sqrt(len(parts))
        assert abs(parts.mean() - truth) < 3 * error
        assert error < 0.02 * truth
    together = ratio_of_means(trace, squared_norm)
    # Three standard errors of the denominator's mean, which is the noisier of the two.
    bound = 3 * squared_norm.std() / np.sqrt(len(squared_norm)) / squared_norm.mean()
    np.testing.assert_allclose(together, exact["gradient_noise_scale"], rtol=bound)
    assert np.nanmean(ratio) > 1.2 * exact["gradient_noise_scale"]


def test_a_negative_denominator_gives_nan_and_keeps_the_parts():
    data = np.random.RandomState(1).standard_normal((64, 3))
    data -= data.mean(0)  # G = 0
    trace, squared_norm, ratio = estimates(
        gradient_noise_scale_two_batch(1, 4), snapshots(data), 40
    )
    assert np.isfinite(trace).all()
    assert 0 < np.isnan(ratio).sum() < 40
    np.testing.assert_array_equal(np.isnan(ratio), squared_norm <= 0)


def test_draws_by_key_and_step_alone_and_not_as_training_does():
    data = np.random.RandomState(1).standard_normal((64, 3))
    measure = gradient_noise_scale_two_batch(1, 8)

    def first(**options):
        return estimates(measure, snapshots(data, **options), 3)[0]

    np.testing.assert_array_equal(first(), first(sampling=driftlab.with_replacement(8)))
    assert len(np.unique(first())) == 3
    assert not np.isin(first(), first(key=jax.random.key(4))).any()
    # The same draws from the training's key would give exactly the batch's own covariance.
    at = snapshots(data, driftlab.with_replacement(8))
    for step in range(3):
        batch = np.asarray(at(step).batch)
        assert not np.isclose(first()[step], by_hand(batch, 1)[0], rtol=1e-6)


@pytest.mark.usefixtures("float32")
def test_small_noise_in_single_precision():
    """Noise of 1e-4 of the mean: the two squared norms agree in all their digits."""
    data = 1 + 1e-4 * np.random.RandomState(1).standard_normal((64, 10))
    data = data.astype(np.float32)
    at = snapshots(data)
    trace, _, _ = estimates(gradient_noise_scale_two_batch(1, 32), at, 50)
    error = trace.std() / np.sqrt(50)
    assert abs(trace.mean() - data.astype(np.float64).var(0).sum()) < 3 * error


def test_nan_parameters_give_nan():
    at = snapshots(np.full((8, 3), np.nan))
    assert all(np.isnan(v) for v in gradient_noise_scale_two_batch(1, 4)(at(0)).values())


class TestRatioOfMeans:
    def test_takes_the_means_first_and_leaves_missing_records_out(self):
        numerators = np.array([[1.0, np.nan, 3.0], [2.0, 2.0, 2.0]])
        denominators = np.array([[1.0, np.nan, 1.0], [1.0, 4.0, np.nan]])
        np.testing.assert_allclose(ratio_of_means(numerators, denominators), [2.0, 0.8])
        np.testing.assert_allclose(ratio_of_means(numerators, denominators, axis=None), 8 / 7)
        np.testing.assert_allclose(ratio_of_means(numerators, denominators, axis=(0, 1)), 8 / 7)

    def test_is_nan_where_there_is_no_signal_or_no_record(self):
        assert np.isnan(ratio_of_means(np.ones(2), np.array([1.0, -1.0])))
        assert np.isnan(ratio_of_means(np.full(2, np.nan), np.full(2, np.nan)))


@pytest.mark.parametrize(("small", "big"), [(3, 8), (8, 8), (8, 4)])
def test_refuses_sizes_that_are_no_multiples(small, big):
    with pytest.raises(ValueError, match=f"multiple of small.*small={small}, big={big}"):
        gradient_noise_scale_two_batch(small, big)


@pytest.mark.parametrize("sizes", [(0, 8), (1, 2.5), (1, 8, 0)])
def test_refuses_what_is_no_size(sizes):
    with pytest.raises(ValueError, match="must be a positive integer"):
        gradient_noise_scale_two_batch(*sizes)


def test_in_a_sweep():
    result = driftlab.sweep(
        problems.mlp,
        driftlab.Grid({"learning_rate": [0.01, 0.1]}),
        steps=4,
        measures=[every(gradient_noise_scale_two_batch(2, 8), 2)],
        record_every=1,
    )
    trace = result[NAMES[0]].transpose("learning_rate", "step").values
    np.testing.assert_array_equal(np.isfinite(trace), [[True, False, True, False, True]] * 2)
    # One key for all lanes: the same batches, and at step 0 the same parameters.
    np.testing.assert_allclose(trace[0, 0], trace[1, 0], rtol=1e-12)
    assert trace[0, 4] != trace[1, 4]
