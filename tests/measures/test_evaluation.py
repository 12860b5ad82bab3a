import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Objective, descent, measures

KEY = jax.random.key(0)
RANDOM = np.random.RandomState(0)
TRAINING = (RANDOM.randn(8, 3), RANDOM.randn(8))
HELD_OUT = (RANDOM.randn(10, 3), RANDOM.randn(10))
PARAMS = jnp.array([1.0, -2.0, 0.5])


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def sign_agreement(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params > 0) == (targets > 0))


OBJECTIVE = Objective(
    squared_error, TRAINING, evaluation_data=HELD_OUT, metrics={"agreement": sign_agreement}
)


def snapshot_of(objective, tx=None):
    dynamics = descent(tx or optax.sgd(0.1), objective)
    return dynamics.observe(dynamics.init(PARAMS, KEY))


def expected_on(data, params=PARAMS):
    inputs, targets = data
    outputs = inputs @ np.asarray(params)
    return np.mean((outputs - targets) ** 2), np.mean((outputs > 0) == (targets > 0))


MEASURES = {
    "evaluation": (measures.evaluation, HELD_OUT),
    "training": (measures.training, TRAINING),
}


@pytest.mark.parametrize("name", MEASURES)
class TestBoth:
    # Whole, an exact division, remainders of 1 and 2, one example at a time, more than there are.
    @pytest.mark.parametrize("batch_size", [None, 2, 3, 4, 1, 100])
    def test_equals_numpy_whatever_the_batches(self, name, batch_size):
        make, data = MEASURES[name]
        recorded = make(batch_size)(snapshot_of(OBJECTIVE))
        loss, agreement = expected_on(data)
        assert recorded.keys() == {f"{name}_loss", f"{name}_agreement"}
        np.testing.assert_allclose(recorded[f"{name}_loss"], loss, rtol=1e-12)
        # The mean of booleans is single precision even under x64.
        np.testing.assert_allclose(recorded[f"{name}_agreement"], agreement, rtol=1e-6)

    def test_is_taken_where_the_method_wants_it(self, name):
        make, data = MEASURES[name]
        elsewhere = jnp.array([0.1, 0.2, 0.3])
        snapshot = snapshot_of(OBJECTIVE)._replace(eval_params=elsewhere)
        loss, _ = expected_on(data, elsewhere)
        np.testing.assert_allclose(make()(snapshot)[f"{name}_loss"], loss, rtol=1e-12)

    def test_leaves_the_regularizer_out(self, name):
        make, data = MEASURES[name]
        objective = dataclasses.replace(OBJECTIVE, regularizer=lambda params, _: jnp.sum(params**2))
        loss, _ = expected_on(data)
        np.testing.assert_allclose(make()(snapshot_of(objective))[f"{name}_loss"], loss, rtol=1e-12)

    # Was once broken: 0 raises ZeroDivisionError inside the sweep, -1 a reshape error, True and
    # 1.5 pass or fail by accident. Check it in `evaluation` itself, as `every` does.
    @pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
    def test_refuses_what_is_no_batch_size(self, name, batch_size):
        make, _ = MEASURES[name]
        with pytest.raises(ValueError, match="batch_size must be a positive integer"):
            make(batch_size)

    # Was once broken: the metric silently takes the place of the loss.
    def test_a_metric_called_loss_is_refused(self, name):
        make, _ = MEASURES[name]
        with pytest.raises(ValueError, match="loss"):
            make()(snapshot_of(dataclasses.replace(OBJECTIVE, metrics={"loss": sign_agreement})))

    # Was once broken: batches are summed over the metric's own axis too: (3,) whole, () batched.
    def test_a_metric_is_the_same_whole_and_in_batches(self, name):
        """A metric that is no scalar is either refused, or averaged over batches alone."""
        make, _ = MEASURES[name]
        metrics = {"inputs": lambda params, batch: batch[0].mean(0)}
        snapshot = snapshot_of(dataclasses.replace(OBJECTIVE, metrics=metrics))
        try:
            whole = make()(snapshot)
        except ValueError:
            return
        chex.assert_trees_all_close(make(3)(snapshot), whole, rtol=1e-12)


def test_needs_held_out_data():
    objective = dataclasses.replace(OBJECTIVE, evaluation_data=None)
    with pytest.raises(ValueError, match="needs held-out data.*evaluation_data="):
        measures.evaluation()(snapshot_of(objective))


def test_training_needs_an_objective():
    with pytest.raises(ValueError, match="objective"):
        measures.training()(snapshot_of(OBJECTIVE)._replace(objective=None))


def test_training_loss_of_a_loss_without_data():
    objective = Objective(lambda params, _: jnp.sum(params**2))
    np.testing.assert_allclose(
        measures.training(4)(snapshot_of(objective))["training_loss"], 5.25, rtol=1e-14
    )


def test_schedule_free_is_evaluated_at_its_average():
    dynamics = descent(optax.contrib.schedule_free_sgd(0.1), OBJECTIVE)
    state = dynamics.init(PARAMS, KEY)
    for _ in range(3):
        state = dynamics.step(state)
    average = optax.contrib.schedule_free_eval_params(state.inner, state.params)
    recorded = measures.evaluation()(dynamics.observe(state))
    np.testing.assert_allclose(
        recorded["evaluation_loss"], expected_on(HELD_OUT, average)[0], rtol=1e-12
    )
    assert not np.allclose(average, state.params)
