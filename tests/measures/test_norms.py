import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Objective, descent, measures
from driftlab.measures import DEFAULT, record

KEY = jax.random.key(0)
CURVATURES = np.array([1.0, 4.0, 9.0])
PARAMS = {"w": jnp.array([3.0, -1.0, 0.5]), "b": jnp.array([[2.0]])}


def quadratic(params, batch):
    del batch
    return 0.5 * jnp.sum(CURVATURES * params["w"] ** 2) + jnp.sum(params["b"])


def snapshot_of(tx, params=PARAMS, loss=quadratic):
    dynamics = descent(tx, Objective(loss))
    return dynamics.observe(dynamics.init(params, KEY))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in (tree["w"], tree["b"])])


GRADIENT = np.concatenate([CURVATURES * np.asarray(PARAMS["w"]), [1.0]])


def test_norms_equal_numpy():
    initial = {"w": jnp.zeros(3), "b": jnp.ones((1, 1))}
    snapshot = snapshot_of(optax.adam(0.1))._replace(initial_params=initial)
    norm = np.linalg.norm
    after, before = flat(snapshot.next_state.params), flat(PARAMS)
    expected = {
        "loss": 0.5 * CURVATURES @ np.asarray(PARAMS["w"]) ** 2 + 2.0,
        "gradient_norm": norm(GRADIENT),
        "update_norm": norm(after - before),
        "parameter_norm": norm(before),
        "distance_from_initialization": norm(before - flat(initial)),
        "effective_learning_rate": norm(after - before) / norm(GRADIENT),
    }
    recorded = record(DEFAULT, snapshot)[0]
    assert recorded.keys() == expected.keys()
    for name, value in expected.items():
        assert recorded[name].shape == ()
        np.testing.assert_allclose(recorded[name], value, rtol=1e-12, err_msg=name)


def test_update_norm_of_adam_at_its_first_step():
    # Bias correction makes the first step lr * sign(gradient): sqrt(4) * lr.
    np.testing.assert_allclose(measures.update_norm(snapshot_of(optax.adam(0.1))), 0.2, rtol=1e-7)


def test_distance_needs_a_beginning():
    with pytest.raises(ValueError, match=r"needs snapshot\.initial_params.*_replace"):
        measures.distance_from_initialization(snapshot_of(optax.sgd(0.1)))


class TestEffectiveLearningRate:
    @pytest.mark.parametrize("learning_rate", [1e-3, 0.1, 3.0])
    def test_of_sgd_is_its_learning_rate(self, learning_rate):
        effective = measures.effective_learning_rate(snapshot_of(optax.sgd(learning_rate)))
        np.testing.assert_allclose(effective, learning_rate, rtol=1e-12)

    def test_is_zero_without_a_gradient(self):
        snapshot = snapshot_of(optax.sgd(0.1), loss=lambda params, _: 0.0 * jnp.sum(params["w"]))
        assert measures.effective_learning_rate(snapshot) == 0

    # Was once broken: a NaN gradient is not > 0, and so is reported as 0, "no gradient".
    def test_of_a_gradient_that_is_nan_is_nan(self):
        params = {"w": jnp.zeros(3), "b": jnp.zeros((1, 1))}
        snapshot = snapshot_of(
            optax.sgd(0.1), params, lambda params, _: jnp.sum(jnp.sqrt(params["w"] ** 3))
        )
        assert np.isfinite(snapshot.loss)
        assert np.isnan(measures.gradient_norm(snapshot))
        assert np.isnan(measures.effective_learning_rate(snapshot))


@pytest.mark.usefixtures("float32")
def test_norms_keep_single_precision():
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), PARAMS)
    snapshot = snapshot_of(optax.sgd(0.1), params)._replace(initial_params=params)
    for name, value in record(DEFAULT, snapshot)[0].items():
        assert value.dtype == jnp.float32, name
