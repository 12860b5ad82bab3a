"""The adaptive schedules: against a Python loop with lists, under jit, vmap and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import driftlab
from driftlab import sampling
from driftlab.measures.fluctuation_dissipation import first_relation
from driftlab.measures.stationarity import norm_trend_test, ratio_test
from driftlab.transforms.fluctuation_dissipation_schedule import (
    TESTS,
    fluctuation_dissipation_sgd,
    lower_at_stationarity,
)
from driftlab.transforms.sasa import sasa

KEY = jax.random.key(2)
RANDOM = np.random.RandomState(1)
NOISE = RANDOM.standard_normal((50, 4)) * np.array([1.0, 0.5, 2.0, 1.0])
CURVATURES = np.array([2.0, 1.0, 0.5, 0.25])


def quadratic(params, batch):
    curvatures = jnp.asarray(CURVATURES, params.dtype)
    return jnp.sum(curvatures * params**2) / 2 - jnp.mean(batch @ params)


def objective():
    return driftlab.Objective(quadratic, NOISE, sampling.with_replacement(2))


def rates(tx, steps, key=KEY, start=4.0):
    """The learning rate in force at every step, and the final state."""
    dynamics = driftlab.descent(tx, objective())

    def step(state, _):
        return dynamics.step(state), state.inner.learning_rate

    start = dynamics.init(jnp.full(4, start), key)
    return jax.jit(lambda state: jax.lax.scan(step, state, length=steps))(start)


def half(values, number=64):
    """The last half of a list, from a block's beginning; and the means of its whole blocks."""
    size = 1
    while len(values) >= number * size:
        size *= 2
    start = len(values) // (2 * size) * size
    count = (len(values) - start) // size
    values = np.array(values[start:])
    return values, values[: count * size].reshape(count, size).mean(1)


def loop(learning_rate, momentum, dampening, interval, test, factor, steps, restart=False):
    """The schedule as a Python loop that keeps lists, on driftlab's batches."""
    problem = objective()
    theta, velocity = np.full(4, 4.0), np.zeros(4)
    lefts, rights, norms, found = [], [], [], []
    batches = jax.jit(jax.vmap(lambda k: problem.batch(KEY, k)))(jnp.arange(steps))
    for k, batch in enumerate(np.asarray(batches)):
        found.append(learning_rate)
        gradient = CURVATURES * theta - batch.mean(0)
        velocity = momentum * velocity - (1 - dampening) * gradient
        lefts.append(theta @ gradient)
        share = (1 + momentum) / (1 - dampening)
        rights.append(share * learning_rate * (velocity @ velocity) / 2)
        norms.append(theta @ theta)
        theta = theta + learning_rate * velocity
        if (k + 1) % interval == 0 and len(lefts) >= 128 and test(lefts, rights, norms):
            learning_rate *= factor
            lefts, rights, norms = [], [], []
            velocity = 0 * velocity if restart else velocity
    return np.array(found)


def by_ratio(lefts, rights, norms):
    return abs(half(lefts)[0].mean() / half(rights)[0].mean() - 1) < 0.05


def by_residual(lefts, rights, norms):
    return stats.ttest_1samp(half(lefts)[1] - half(rights)[1], 0).pvalue > 0.05


def by_trend(lefts, rights, norms):
    means = half(norms)[1]
    near = abs(half(lefts)[0].mean() / half(rights)[0].mean() - 1) < 1
    return near and stats.linregress(np.arange(len(means)), means).pvalue > 0.05


@pytest.mark.parametrize(
    ("test", "oracle", "momentum", "dampening"),
    [
        ("ratio", by_ratio, 0.0, 0.0),
        ("ratio", by_ratio, 0.9, 0.2),
        ("residual", by_residual, 0.5, 0.0),
        ("norm_trend", by_trend, 0.5, 0.5),
    ],
)
def test_the_schedule_is_that_of_a_loop_with_lists(test, oracle, momentum, dampening):
    tx = fluctuation_dissipation_sgd(
        0.1, momentum, dampening, interval=100, test=test, tolerance=0.05, decrease=0.3
    )
    expected = loop(0.1, momentum, dampening, 100, oracle, 0.7, 3000)
    end, found = rates(tx, 3000)
    assert len(np.unique(expected)) > 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert end.inner.drops == len(np.unique(expected)) - (end.inner.learning_rate == found[-1])


def test_sasa_is_that_of_a_loop_with_lists():
    def oracle(lefts, rights, norms):
        residual = half(lefts)[1] - half(rights)[1]
        low, high = stats.t.interval(0.8, len(residual) - 1, residual.mean(), stats.sem(residual))
        bound = 0.1 * half(rights)[0].mean()
        return -bound < low and high < bound

    tx = sasa(0.5, 0.9, interval=100, minimum_steps=128, margin=0.1)
    expected = loop(0.5, 0.9, 0.9, 100, oracle, 0.1, 3000, restart=True)
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(rates(tx, 3000)[1], expected, rtol=1e-12)


def test_until_the_first_drop_it_is_optax_sgd():
    ours = driftlab.descent(fluctuation_dissipation_sgd(0.1, 0.9, interval=1000), objective())
    theirs = driftlab.descent(optax.sgd(0.1, 0.9), objective())
    ends = [
        jax.jit(lambda s, d=d: jax.lax.fori_loop(0, 200, lambda _, s: d.step(s), s))(
            d.init(jnp.ones(4), KEY)
        ).params
        for d in (ours, theirs)
    ]
    np.testing.assert_allclose(*ends, rtol=1e-12)


def test_every_lane_follows_its_own_schedule(float32):
    def tx_of(rate, tolerance):
        return fluctuation_dissipation_sgd(
            rate, interval=100, tolerance=tolerance, decrease=0.3, min_learning_rate=0.02
        )

    def build(hparams, key):
        tx = tx_of(hparams["learning_rate"], hparams["ratio_tolerance"])
        return driftlab.descent(tx, objective()), jnp.full(4, 4.0)

    grid = driftlab.Grid({"learning_rate": [0.02, 0.1, 0.4], "ratio_tolerance": [0.05, 1e-9]})
    found = driftlab.sweep(
        build, grid, 3000, measures=[first_relation()], record_every=100, progress=False
    )
    force = found.learning_rate_in_force
    assert force.dtype == np.float32
    never = force.sel(ratio_tolerance=1e-9)
    assert (never == never.isel(step=0)).all()
    drops = found.learning_rate_drops.isel(step=-1).sel(ratio_tolerance=0.05).values
    np.testing.assert_array_equal(drops > 0, [False, True, True])  # the first starts at the least
    np.testing.assert_allclose(force.min(), 0.02, rtol=1e-6)
    lane = force.sel(learning_rate=0.4, ratio_tolerance=0.05).values
    steps = np.flatnonzero(np.diff(lane))
    np.testing.assert_allclose(lane[steps + 1], np.maximum(0.7 * lane[steps], 0.02), rtol=1e-6)
    # A window that has just restarted has no number.
    ratio = found.first_relation_ratio.sel(learning_rate=0.4, ratio_tolerance=0.05).values
    assert np.isnan(ratio[steps + 1]).all()
    assert np.isfinite(ratio[steps]).all()


def test_any_direction_will_do_and_nan_ends_nothing():
    tx = lower_at_stationarity(
        optax.scale_by_adam(), 0.05, norm_trend_test(), interval=50, factor=0.5
    )
    end, found = rates(tx, 2000)
    assert found[-1] < 0.05
    assert np.isfinite(end.params).all()
    _, found = rates(tx, 300, start=float("nan"))
    np.testing.assert_array_equal(found, 0.05)


def test_traced_numbers_do_not_promote_float32_parameters():
    params = jnp.ones(3, jnp.float32)

    @jax.jit
    def states(rate, momentum, factor):
        for tx in (
            fluctuation_dissipation_sgd(rate, momentum, momentum, decrease=factor),
            sasa(rate, momentum, factor=factor),
        ):
            state = tx.init(params)
            updates, following = tx.update(params, state, params)
            found.append((updates, state, following))
        return rate

    found = []
    states(*(jnp.array(value, jnp.float64) for value in (0.1, 0.9, 0.5)))
    for updates, state, following in found:
        assert updates.dtype == jnp.float32
        before, after = (jax.tree.map(lambda x: x.dtype, s) for s in (state, following))
        assert before == after


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"learning_rate=0.0 must be positive"):
        fluctuation_dissipation_sgd(0.0)
    with pytest.raises(ValueError, match=r"decrease=1.0 must be above 0 and below 1"):
        fluctuation_dissipation_sgd(0.1, decrease=1.0)
    with pytest.raises(ValueError, match=r"test='ration' must be one of"):
        fluctuation_dissipation_sgd(0.1, test="ration")
    with pytest.raises(ValueError, match=r"interval=0 must be a whole number of steps"):
        fluctuation_dissipation_sgd(0.1, interval=0)
    with pytest.raises(ValueError, match=r"interval=2.5 must be a whole number of steps"):
        sasa(0.1, interval=2.5)
    with pytest.raises(ValueError, match=r"minimum_steps must be a whole number, 2 or more"):
        sasa(0.1, minimum_steps=1)
    with pytest.raises(ValueError, match=r"momentum=1.0 must be at least 0 and below 1"):
        sasa(0.1, 1.0)
    with pytest.raises(ValueError, match=r"blocks must be an even number"):
        lower_at_stationarity(optax.identity(), 0.1, ratio_test(), blocks=9)
    tx = fluctuation_dissipation_sgd(0.1)
    with pytest.raises(ValueError, match=r"needs params"):
        tx.update(jnp.ones(4), tx.init(jnp.ones(4)))
    assert TESTS == ("ratio", "residual", "norm_trend")
