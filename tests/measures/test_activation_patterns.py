"""Changed activation patterns and moved units, against NumPy; in a sweep's lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import models
from driftlab.measures.activation_patterns import changed_patterns, unit_distances

INPUTS = np.random.RandomState(0).randn(9, 4)
MODEL = models.TwoLayerReLU(16)
OBJECTIVE = driftlab.Objective(
    models.squared_error(models.apply_function(MODEL)), (jnp.asarray(INPUTS), jnp.ones(9))
)
PATTERNS = changed_patterns(lambda params, inputs: inputs @ params["kernel"], INPUTS)
DISTANCES = unit_distances(lambda params: params["kernel"], per_unit=True)


def snapshot_at(params, initial):
    dynamics = driftlab.descent(optax.sgd(0.1), OBJECTIVE)
    snapshot = dynamics.observe(dynamics.init(params, jax.random.key(0)))
    return snapshot._replace(initial_params=initial)


def test_both_are_the_formulas():
    initial = models.initialize(MODEL, jax.random.key(0), jnp.asarray(INPUTS))
    noise = 0.5 * jax.random.normal(jax.random.key(1), (4, 16), float)
    params = {"kernel": initial["kernel"] + noise}
    snapshot = snapshot_at(params, initial)
    signs = [INPUTS @ np.asarray(p["kernel"]) >= 0 for p in (initial, params)]
    expected = np.mean(signs[0] != signs[1])
    assert 0.02 < expected < 0.5
    np.testing.assert_allclose(PATTERNS(snapshot), expected, rtol=1e-12)
    lengths = np.linalg.norm(np.asarray(noise), axis=0)
    values = DISTANCES(snapshot)
    np.testing.assert_allclose(values["unit_distance"], lengths, rtol=1e-12)
    np.testing.assert_allclose(values["unit_distance_max"], lengths.max(), rtol=1e-12)
    np.testing.assert_allclose(values["unit_distance_mean"], lengths.mean(), rtol=1e-12)
    assert set(unit_distances(lambda p: p["kernel"])(snapshot)) == values.keys() - {"unit_distance"}


def test_layers_are_counted_by_entry():
    # 2 of 4 entries in one layer and 0 of 12 in another: 2 of 16 altogether.
    def layers(params, inputs):
        first = jnp.concatenate([params["kernel"][0, :2], jnp.ones(2)])
        return [first, jnp.ones((3, 4)) + 0 * inputs[0, 0]]

    measure = changed_patterns(layers, INPUTS)
    one, minus = {"kernel": jnp.ones((4, 16))}, {"kernel": -jnp.ones((4, 16))}
    np.testing.assert_allclose(measure(snapshot_at(minus, one)), 2 / 16)
    # At exactly 0 a unit is active.
    np.testing.assert_allclose(measure(snapshot_at({"kernel": jnp.zeros((4, 16))}, one)), 0)


def test_weights_that_are_not_finite_give_nan():
    one, bad = {"kernel": jnp.ones((4, 16))}, {"kernel": jnp.full((4, 16), jnp.nan)}
    assert jnp.isnan(PATTERNS(snapshot_at(bad, one)))
    assert jnp.isnan(DISTANCES(snapshot_at(bad, one))["unit_distance_max"])


def test_in_the_lanes_of_a_sweep_both_start_at_zero(float32):
    def build(hparams, key):
        params = models.initialize(MODEL, key, jnp.asarray(INPUTS, jnp.float32))
        objective = driftlab.Objective(
            OBJECTIVE.loss, (jnp.asarray(INPUTS, jnp.float32), jnp.ones(9, jnp.float32))
        )
        return driftlab.descent(optax.sgd(hparams["learning_rate"]), objective), params

    inputs = INPUTS.astype(np.float32)
    measures = [
        changed_patterns(lambda params, x: x @ params["kernel"], inputs),
        unit_distances(lambda params: params["kernel"]),
    ]
    grid = driftlab.Grid({"learning_rate": [0.01, 1.0]})
    found = driftlab.sweep(build, grid, 6, measures=measures, progress=False)
    assert found.changed_patterns.dtype == np.float32
    np.testing.assert_array_equal(found.changed_patterns.isel(step=0), 0)
    np.testing.assert_array_equal(found.unit_distance_max.isel(step=0), 0)
    last = found.isel(step=-1)
    assert (last.unit_distance_max.diff("learning_rate") > 0).all()
    assert float(last.changed_patterns[1]) > 0
    assert (last.unit_distance_mean <= last.unit_distance_max).all()


def test_errors_say_what_is_wrong():
    params = {"kernel": jnp.ones((4, 16))}
    for measure, name in ((PATTERNS, "changed_patterns"), (DISTANCES, "unit_distances")):
        with pytest.raises(ValueError, match=f"{name} needs snapshot.initial_params"):
            measure(snapshot_at(params, None))
    with pytest.raises(ValueError, match=r"one column a unit; got shape \(\)"):
        unit_distances(lambda p: p["kernel"].sum())(snapshot_at(params, params))
    with pytest.raises(ValueError, match="holds no entry"):
        changed_patterns(lambda p, x: [], INPUTS)(snapshot_at(params, params))
