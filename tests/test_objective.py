import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Objective, fixed_order, regularized, shuffled_epochs, with_replacement
from driftlab.objective import batch_length

KEY = jax.random.key(0)
INPUTS = np.arange(21.0).reshape(7, 3)
LABELS = np.arange(7)
PARAMS = jnp.array([0.5, -1.0, 2.0])


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def squared_norm(params, batch):
    del batch
    return jnp.sum(params**2)


def wide(params, batch):
    """A penalty that depends on the batch."""
    return jnp.sum(jnp.abs(params)) * jnp.mean(batch[0])


class TestBatch:
    def test_full_batch_is_the_data_itself(self):
        objective = Objective(squared_error, (INPUTS, LABELS))
        assert objective.batch(KEY, jnp.int32(9)) is objective.data
        np.testing.assert_array_equal(objective.data[0], INPUTS)

    def test_data_are_on_the_device_once(self):
        objective = Objective(squared_error, (INPUTS, LABELS), evaluation_data=(INPUTS, LABELS))
        for leaf in jax.tree.leaves((objective.data, objective.evaluation_data)):
            assert isinstance(leaf, jax.Array)

    @pytest.mark.parametrize("rule", [with_replacement(4), shuffled_epochs(4), fixed_order(4)])
    def test_holds_the_same_examples_of_every_array(self, rule):
        data = {"inputs": INPUTS, "labels": LABELS}
        objective = Objective(squared_error, data, rule)
        batch = jax.jit(objective.batch)(KEY, jnp.int32(2))
        indices = np.asarray(rule.indices(KEY, jnp.int32(2), 7))
        np.testing.assert_array_equal(batch["inputs"], INPUTS[indices])
        np.testing.assert_array_equal(batch["labels"], LABELS[indices])
        assert jnp.issubdtype(batch["labels"].dtype, jnp.integer)

    def test_is_drawn_inside_a_compiled_loop(self):
        objective = Objective(squared_error, (INPUTS, LABELS), shuffled_epochs(3))
        _, labels = jax.lax.scan(
            lambda _, step: (None, objective.batch(KEY, step)[1]), None, jnp.arange(4)
        )
        for epoch in np.asarray(labels).reshape(2, 6):
            assert len(set(epoch)) == 6

    def test_without_data_is_empty(self):
        objective = Objective(squared_norm)
        assert objective.batch(KEY, jnp.int32(0)) == ()
        assert objective.size == 0
        np.testing.assert_allclose(objective.value(PARAMS, ()), (5.25, 5.25))

    def test_without_data_nothing_can_be_drawn_in_batches(self):
        with pytest.raises(ValueError, match=r"batch_size is 1, .* only 0 examples"):
            Objective(squared_norm, sampling=shuffled_epochs(1))

    def test_batch_larger_than_the_data_is_refused(self):
        with pytest.raises(ValueError, match=r"batch_size is 8, .* only 7 examples"):
            Objective(squared_error, (INPUTS, LABELS), fixed_order(8))


class TestSize:
    def test_is_the_leading_axis(self):
        assert Objective(squared_error, (INPUTS, LABELS)).size == 7

    def test_of_arrays_that_differ(self):
        data = {"inputs": INPUTS, "labels": LABELS[:6]}
        with pytest.raises(ValueError, match=r"Objective\.data .*inputs.*\(7, 3\).*\(6,\)"):
            Objective(squared_error, data)

    def test_of_evaluation_data_that_differ(self):
        with pytest.raises(ValueError, match=r"Objective\.evaluation_data"):
            Objective(squared_error, (), evaluation_data=(INPUTS, LABELS[:6]))

    @pytest.mark.parametrize("scalar", [np.float64(1.0), jnp.ones(()), 1.0])
    def test_of_a_scalar(self, scalar):
        with pytest.raises(ValueError, match=r"needs the same leading axis.*\(\)"):
            Objective(squared_error, (INPUTS, scalar))

    def test_of_a_bare_array_names_it(self):
        with pytest.raises(ValueError, match=r"held_out.*\(array\)"):
            batch_length(np.float64(1.0), "held_out")


class TestValue:
    def test_is_the_loss_twice_without_a_regularizer(self):
        objective = Objective(squared_error, (INPUTS, LABELS))
        expected = np.mean((INPUTS @ np.asarray(PARAMS) - LABELS) ** 2)
        np.testing.assert_allclose(
            objective.value(PARAMS, objective.data), (expected, expected), rtol=1e-14
        )

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda params, batch: params**2, r"loss must return a scalar.*\(3,\).*average or sum"),
            (lambda params, batch: params[:1], r"loss must return a scalar.*\(1,\)"),
            (lambda params, batch: jnp.int32(3), "loss must return a real floating.*int32"),
            (lambda params, batch: True, "loss must return a real floating.*bool"),
            (lambda params, batch: params[0] * 1j, "loss must return a real floating.*complex128"),
        ],
    )
    def test_what_is_no_real_scalar_is_refused(self, loss, message):
        with pytest.raises(ValueError, match=message):
            Objective(loss).value(PARAMS, ())
        with pytest.raises(ValueError, match=message.replace("loss", "regularizer")):
            Objective(squared_norm, regularizer=loss).value(PARAMS, ())

    def test_an_error_of_the_loss_passes_through(self):
        def broken(params, batch):
            raise KeyError("my own mistake")

        with pytest.raises(KeyError, match="my own mistake"):
            Objective(broken).value(PARAMS, ())


class TestRegularized:
    data = (INPUTS, LABELS)

    def test_adds_to_the_value_and_leaves_the_loss(self):
        plain = Objective(squared_error, self.data)
        penalized = regularized(plain, squared_norm, 0.1)
        value, loss = penalized.value(PARAMS, self.data)
        np.testing.assert_allclose(loss, plain.value(PARAMS, self.data)[1], rtol=1e-15)
        np.testing.assert_allclose(value - loss, 0.1 * 5.25, rtol=1e-12)
        assert plain.regularizer is None

    def test_coefficient_is_one_by_default(self):
        objective = regularized(Objective(squared_error, self.data), squared_norm)
        value, loss = objective.value(PARAMS, self.data)
        np.testing.assert_allclose(value - loss, 5.25, rtol=1e-12)

    def test_regularizers_add_up_and_see_the_batch(self):
        objective = Objective(squared_error, self.data)
        objective = regularized(objective, squared_norm, 0.1)
        objective = regularized(objective, wide, 2.0)
        value, loss = objective.value(PARAMS, self.data)
        expected = 0.1 * 5.25 + 2.0 * 3.5 * INPUTS.mean()
        np.testing.assert_allclose(value - loss, expected, rtol=1e-12)
        value, loss = objective.value(PARAMS, (INPUTS[:2], LABELS[:2]))
        expected = 0.1 * 5.25 + 2.0 * 3.5 * INPUTS[:2].mean()
        np.testing.assert_allclose(value - loss, expected, rtol=1e-12)

    def test_coefficients_may_be_traced(self):
        objective = Objective(squared_error, self.data)

        def gradient(coefficient):
            penalized = regularized(objective, squared_norm, coefficient)
            return jax.grad(lambda params: penalized.value(params, self.data)[0])(PARAMS)

        coefficients = jnp.array([0.0, 0.1, 10.0])
        swept = jax.jit(jax.vmap(gradient))(coefficients)
        residual = INPUTS @ np.asarray(PARAMS) - LABELS
        unpenalized = 2 * INPUTS.T @ residual / 7
        expected = unpenalized + 2 * np.outer(coefficients, PARAMS)
        np.testing.assert_allclose(swept, expected, rtol=1e-12)

    def test_keeps_the_rest_of_the_objective(self):
        objective = Objective(
            squared_error, self.data, fixed_order(2), self.data, {"error": squared_error}
        )
        penalized = regularized(objective, squared_norm)
        for field in ("loss", "sampling", "metrics"):
            assert getattr(penalized, field) is getattr(objective, field)
        for field in ("data", "evaluation_data"):
            for kept, given in zip(getattr(penalized, field), self.data, strict=True):
                np.testing.assert_array_equal(kept, given)


def test_objectives_share_no_defaults():
    assert Objective(squared_norm).metrics is not Objective(squared_norm).metrics
