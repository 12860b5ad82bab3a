import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, Objective, descent, sweep, with_replacement
from driftlab.measures.drift import iteration_drift

KEY = jax.random.key(0)
EIGENVALUES = jnp.array([5.0, 1.0, -2.0])


def quadratic(x, batch):
    del batch
    return jnp.sum(EIGENVALUES * x**2) / 2


def drift_of(loss, rate, tx=optax.sgd, start=None, **arguments):
    run = descent(tx(rate), Objective(loss))
    snapshot = run.observe(run.init(jnp.ones(3) if start is None else start, KEY))
    return iteration_drift(**arguments)(snapshot)


def test_of_a_quadratic_is_the_difference_of_two_factors():
    for rate in (1e-3, 0.1, 0.5):
        values = drift_of(quadratic, rate, rtol=1e-9)
        exact = np.linalg.norm(1 - rate * EIGENVALUES - jnp.exp(-rate * EIGENVALUES))
        np.testing.assert_allclose(values["drift"], exact, rtol=1e-5)
        predicted = rate**2 / 2 * np.linalg.norm(EIGENVALUES**2)
        np.testing.assert_allclose(values["drift_predicted"], predicted, rtol=1e-12)


def test_prediction_and_measurement_differ_at_third_order():
    def loss(x, batch):
        return jnp.sum(jnp.cos(x) * jnp.roll(x, 1) ** 2) + 0.1 * jnp.sum(x) ** 4

    start = jnp.array([0.3, -0.4, 1.1])
    rates = np.array([0.04, 0.02, 0.01, 0.005])
    values = [drift_of(loss, rate, start=start, rtol=1e-10) for rate in rates]
    drift = np.array([v["drift"] for v in values])
    error = abs(drift - np.array([v["drift_predicted"] for v in values]))
    slope = np.polyfit(np.log(rates), np.log(drift), 1)[0]
    assert slope == pytest.approx(2, abs=0.2)
    assert np.polyfit(np.log(rates), np.log(error), 1)[0] == pytest.approx(3, abs=0.2)


def test_of_another_optimizer_is_of_first_order():
    """Adam's first step has the length of the learning rate in every coordinate."""
    rates = np.array([1e-3, 5e-4])
    drifts = [drift_of(quadratic, rate, optax.adam)["drift"] for rate in rates]
    assert np.log2(drifts[0] / drifts[1]) == pytest.approx(1, abs=0.1)


def test_is_of_the_steps_own_batch():
    data = jnp.array([1.0, 3.0])
    objective = Objective(lambda x, batch: batch.mean() * x**2 / 2, data, with_replacement(1))
    run = descent(optax.sgd(0.1), objective)
    snapshot = run.observe(run.init(jnp.ones(()), KEY))
    scale = float(snapshot.batch[0])
    expected = abs(1 - 0.1 * scale - np.exp(-0.1 * scale))
    np.testing.assert_allclose(iteration_drift()(snapshot)["drift"], expected, rtol=1e-3)


def test_a_flow_that_takes_too_many_steps_is_missing_not_wrong():
    stiff = drift_of(lambda x, _: 1e4 * jnp.sum(x**2), 1.0, max_steps=4)
    assert np.isnan(stiff["drift"])
    assert np.isfinite(stiff["drift_predicted"])


def test_at_rest_it_is_zero():
    values = drift_of(quadratic, 0.1, start=jnp.zeros(3))
    assert values["drift"] == 0 == values["drift_predicted"]


def test_on_the_lanes_of_a_sweep_in_float32(float32):
    def build(hparams, key):
        objective = Objective(lambda x, _: jnp.sum(jnp.array([5.0, 1.0]) * x**2) / 2)
        return descent(optax.sgd(hparams["learning_rate"]), objective), jnp.ones(2)

    rates = np.array([0.01, 0.1, 0.3])
    result = sweep(
        build,
        Grid({"learning_rate": rates}),
        steps=2,
        measures=[iteration_drift()],
        progress=False,
        lanes="vmap",
    )
    exact = [
        np.linalg.norm(1 - h * np.array([5.0, 1]) - np.exp(-h * np.array([5.0, 1]))) for h in rates
    ]
    np.testing.assert_allclose(result.drift[:, 0], exact, rtol=2e-3)
