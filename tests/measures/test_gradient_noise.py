import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray

import driftlab
from driftlab.measures import every
from driftlab.measures.gradient_noise import (
    gradient_covariance_trace,
    gradient_noise,
    gradient_noise_scale,
    gradient_signal_to_noise,
    per_example_gradient_norm,
    update_cosine,
)
from tests.sweep import problems

KEY = jax.random.key(3)
DATA = np.random.RandomState(0).standard_normal((40, 6)) + 0.3
ALL = gradient_noise(8)


def pull(params, batch):
    """Half the mean squared distance from the examples: g_i = params - x_i."""
    return jnp.mean(jnp.sum((params[None] - batch) ** 2, 1)) / 2


def snapshot_of(objective, params=None, tx=None, key=KEY):
    dynamics = driftlab.descent(tx or optax.sgd(0.1), objective)
    return dynamics.observe(dynamics.init(jnp.zeros(6) if params is None else params, key))


def test_values_against_numpy():
    each = -DATA
    mean, variance = each.mean(0), each.var(0)
    norms = np.linalg.norm(each, axis=1)
    ratios = mean**2 / variance
    expected = {
        "per_example_gradient_norm": norms.mean(),
        "per_example_gradient_norm_std": norms.std(),
        "gradient_covariance_trace": variance.sum(),
        "gradient_noise_scale": variance.sum() / (mean**2).sum(),
        "gradient_stochasticity": np.sqrt((mean**2).sum() / variance.sum()),
        "gradient_signal_to_noise": ratios.mean(),
        "gradient_signal_to_noise_median": np.median(ratios),
    }
    chex.assert_trees_all_close(ALL(snapshot_of(driftlab.Objective(pull, DATA))), expected)


@pytest.mark.parametrize(
    "make",
    [
        per_example_gradient_norm,
        gradient_covariance_trace,
        gradient_noise_scale,
        gradient_signal_to_noise,
    ],
)
def test_single_measures_are_selections_of_the_pass(make):
    snapshot = snapshot_of(driftlab.Objective(pull, DATA))
    values, everything = make(8)(snapshot), ALL(snapshot)
    assert make.__name__ == make().__name__
    assert make.__name__ in values
    assert values == {name: everything[name] for name in values}


def test_is_over_all_the_data_whatever_the_step_draws():
    whole = ALL(snapshot_of(driftlab.Objective(pull, DATA)))
    drawn = ALL(snapshot_of(driftlab.Objective(pull, DATA, driftlab.with_replacement(4))))
    chex.assert_trees_all_equal(drawn, whole)


def test_a_regularizer_is_signal_and_no_noise():
    objective = driftlab.Objective(pull, DATA)
    decayed = driftlab.objective.regularized(objective, lambda params, _: jnp.sum(params))
    plain, values = ALL(snapshot_of(objective)), ALL(snapshot_of(decayed))
    np.testing.assert_allclose(
        values["gradient_covariance_trace"], plain["gradient_covariance_trace"], rtol=1e-13
    )
    gradient = 1 - DATA.mean(0)
    np.testing.assert_allclose(
        values["gradient_noise_scale"],
        plain["gradient_covariance_trace"] / (gradient**2).sum(),
        rtol=1e-13,
    )


def test_coordinates_without_noise_are_left_out_of_the_signal_to_noise():
    data = DATA.copy()
    data[:, 2:5] = 0.1  # an odd number of coordinates stays
    values = ALL(snapshot_of(driftlab.Objective(pull, data)))
    ratios = (data.mean(0) ** 2 / data.var(0))[[0, 1, 5]]
    np.testing.assert_allclose(values["gradient_signal_to_noise"], ratios.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        values["gradient_signal_to_noise_median"], np.median(ratios), rtol=1e-12
    )


def test_no_noise_at_all():
    values = ALL(snapshot_of(driftlab.Objective(pull, np.full((7, 6), 0.1))))
    # The mean of seven times 0.1 is off by its rounding.
    assert values["gradient_covariance_trace"] < 1e-30
    assert values["gradient_noise_scale"] < 1e-30
    assert values["gradient_stochasticity"] > 1e15
    assert np.isnan(values["gradient_signal_to_noise"])
    assert np.isnan(values["gradient_signal_to_noise_median"])


@pytest.mark.parametrize("bad", [np.nan, np.array([np.nan, 1, 1, 1, 1, 1])])
def test_nan_parameters_give_nan(bad):
    values = ALL(snapshot_of(driftlab.Objective(pull, DATA), bad * jnp.ones(6)))
    assert all(np.isnan(value) for value in values.values())


def test_isotropic_gaussian_noise():
    """In high dimension GS^2 = |G|^2 / (d s^2), and the norms concentrate at |G|^2 + d s^2."""
    random = np.random.RandomState(1)
    dimension, count, noise = 400, 400, 0.5
    mean = random.standard_normal(dimension)
    data = mean + noise * random.standard_normal((count, dimension))
    values = ALL(snapshot_of(driftlab.Objective(pull, data), jnp.zeros(dimension)))
    trace = dimension * noise**2
    # The trace is a sum of 1.6e5 squares: its standard error is sqrt(2 / 1.6e5) = 0.35%, and the
    # population form is 1/count below.
    np.testing.assert_allclose(
        values["gradient_covariance_trace"], trace * (1 - 1 / count), rtol=3 * 0.0035
    )
    np.testing.assert_allclose(
        values["per_example_gradient_norm"], np.sqrt((mean**2).sum() + trace), rtol=0.01
    )
    np.testing.assert_allclose(
        values["gradient_stochasticity"], values["gradient_noise_scale"] ** -0.5, rtol=1e-13
    )


def test_needs_an_objective_with_data():
    snapshot = snapshot_of(driftlab.Objective(lambda params, _: jnp.sum(params**2)))
    with pytest.raises(ValueError, match="needs training examples"):
        ALL(snapshot)
    with pytest.raises(ValueError, match="objective"):
        ALL(snapshot._replace(objective=None))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_refuses_what_is_no_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        gradient_noise(batch_size)


class TestUpdateCosine:
    @pytest.mark.parametrize("rate", [0.5, 1.0, 1.5, 2.5])
    def test_in_one_dimension_it_is_the_sign_of_the_contraction(self, rate):
        objective = driftlab.Objective(lambda x, batch: jnp.sum(x**2) / 2)
        snapshot = snapshot_of(objective, jnp.ones(1), optax.sgd(rate))
        expected = {0.5: 1, 1.0: np.nan, 1.5: -1, 2.5: -1}[rate]  # at 1 it arrives and stays
        np.testing.assert_allclose(update_cosine(snapshot), expected, rtol=1e-14)

    def test_looks_ahead_with_the_optimizers_state(self):
        dynamics = driftlab.descent(optax.adam(0.1), driftlab.Objective(pull, DATA))
        states = [dynamics.init(jnp.arange(6.0), KEY)]
        for _ in range(2):
            states.append(dynamics.step(states[-1]))
        a, b, c = (state.params for state in states)
        first, second = b - a, c - b
        expected = first @ second / (jnp.linalg.norm(first) * jnp.linalg.norm(second))
        np.testing.assert_allclose(update_cosine(dynamics.observe(states[0])), expected, rtol=1e-13)

    def test_needs_the_dynamics(self):
        snapshot = snapshot_of(driftlab.Objective(pull, DATA))._replace(dynamics=None)
        with pytest.raises(ValueError, match="snapshot.dynamics"):
            update_cosine(snapshot)


def test_in_a_sweep_at_its_own_interval():
    """Every lane's record equals the measure on a run by hand."""
    rates = [0.01, 0.1, 0.5]
    result = driftlab.sweep(
        problems.mlp,
        driftlab.Grid({"learning_rate": rates}),
        steps=6,
        measures=[every(ALL, 2), update_cosine, driftlab.measures.loss],
        record_every=2,
    )
    assert isinstance(result, xarray.Dataset)
    scale = result.gradient_noise_scale
    np.testing.assert_array_equal(
        np.isnan(scale.transpose("learning_rate", "step")), [[False, True, False, False]] * 3
    )
    assert np.isfinite(result.update_cosine).all()
    # All lanes start alike, so the exact measures agree at step 0, and not after it.
    first, last = scale.sel(step=0), scale.sel(step=6)
    np.testing.assert_allclose(first, first[0], rtol=1e-12)
    assert len(np.unique(last)) == 3
