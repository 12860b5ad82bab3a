import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet

from driftlab.data import Batch
from driftlab.models import accuracy, cross_entropy, logistic, squared_error

OUTPUTS = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.5, 4.0], [0.1, 0.0, 0.0]])
CLASSES = np.array([0, 2, 2, 1], np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]
INPUTS = np.zeros((4, 2), np.float32)


def apply(params, inputs):
    del inputs
    return params


def test_cross_entropy_of_class_numbers_one_hot_rows_and_probabilities():
    loss = jax.jit(cross_entropy(apply))
    exponentials = np.exp(OUTPUTS)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = -np.mean(np.log(probabilities[np.arange(4), CLASSES]))
    np.testing.assert_allclose(loss(OUTPUTS, Batch(INPUTS, CLASSES)), expected, rtol=1e-12)
    np.testing.assert_allclose(loss(OUTPUTS, (INPUTS, ONE_HOT)), expected, rtol=1e-12)
    # Cross-entropy with one's own probabilities is the entropy.
    entropy = -np.mean(np.sum(probabilities * np.log(probabilities), axis=1))
    np.testing.assert_allclose(loss(OUTPUTS, (INPUTS, probabilities)), entropy, rtol=1e-12)
    gradient = jax.jit(jax.grad(loss))(OUTPUTS, Batch(INPUTS, CLASSES))
    np.testing.assert_allclose(gradient, (probabilities - ONE_HOT) / 4, rtol=1e-12, atol=1e-14)


def test_squared_error_is_half_the_sum_over_outputs_and_the_mean_over_examples():
    loss = jax.jit(squared_error(apply))
    expected = np.mean(0.5 * np.sum((OUTPUTS - ONE_HOT) ** 2, axis=1))
    np.testing.assert_allclose(loss(OUTPUTS, (INPUTS, ONE_HOT)), expected, rtol=1e-12)
    single = OUTPUTS[:, :1]
    targets = jnp.arange(4.0)
    expected = np.mean(0.5 * (single[:, 0] - targets) ** 2)
    for outputs in (single, single[:, 0]):
        for shaped in (targets, targets[:, None]):
            np.testing.assert_allclose(loss(outputs, (INPUTS, shaped)), expected, rtol=1e-12)


def test_logistic_is_softplus_of_the_negative_margin_and_stable():
    loss = jax.jit(logistic(apply))
    signs = np.array([1, -1, -1, 1], np.float32)
    outputs = OUTPUTS[:, :1]
    expected = np.mean(np.log1p(np.exp(-signs * outputs[:, 0])))
    np.testing.assert_allclose(loss(outputs, (INPUTS, signs)), expected, rtol=1e-12)
    huge = loss(jnp.array([1e4, 1e4, -1e4, 0.0]), (INPUTS, signs))
    np.testing.assert_allclose(huge, (1e4 + np.log(2)) / 4, rtol=1e-12)
    # At 0, where stable forms with |m| go wrong: slope -1/2 and curvature 1/4.
    one = (INPUTS[:1], np.ones(1))
    at_zero = jnp.zeros(1)
    slope, curvature = jax.jit(lambda x: (jax.grad(loss)(x, one), jax.hessian(loss)(x, one)))(
        at_zero
    )
    np.testing.assert_allclose(slope, [-0.5], rtol=1e-12)
    np.testing.assert_allclose(curvature, [[0.25]], rtol=1e-12)


def test_taylor_mode_passes_through_the_losses():
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    for loss, outputs, targets in [
        (logistic(apply), OUTPUTS[:, 0], signs),
        (cross_entropy(apply), OUTPUTS, CLASSES),
    ]:  # a curve through the outputs, with first and second derivatives in all of them

        def along(t, loss=loss, outputs=outputs, targets=targets):
            return loss(outputs + jnp.sin(t) * outputs**2, (INPUTS, targets))

        def second_derivatives(t, along=along):
            _, (_, second) = jet.jet(along, (t,), ((jnp.ones_like(t), jnp.zeros_like(t)),))
            return second, jax.grad(jax.grad(along))(t)

        np.testing.assert_allclose(*jax.jit(second_derivatives)(0.1), rtol=1e-10)


def test_accuracy_of_every_kind_of_target():
    measure = jax.jit(accuracy(apply))
    assert measure(OUTPUTS, (INPUTS, CLASSES)) == 0.5
    assert measure(OUTPUTS, (INPUTS, ONE_HOT)) == 0.5
    signs = np.array([1, -1, 1, 1], np.float32)
    outputs = jnp.array([0.3, 0.2, 5.0, 0.0])
    assert measure(outputs, (INPUTS, signs)) == 0.5
    assert measure(outputs[:, None], (INPUTS, signs)) == 0.5
    assert measure(OUTPUTS.astype(jnp.float32), (INPUTS, CLASSES)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "outputs", "targets", "message"),
    [
        (cross_entropy, OUTPUTS, CLASSES[:3], r"\(4, 2\) and targets \(3,\)"),
        (cross_entropy, OUTPUTS, CLASSES.astype(float), "integer class numbers.*float64"),
        (cross_entropy, OUTPUTS, ONE_HOT[:, :2], "integer class numbers"),
        (cross_entropy, OUTPUTS[:, 0], CLASSES, "two or more classes.*logistic"),
        (cross_entropy, OUTPUTS[:2], CLASSES, "one row for each of the 4 inputs"),
        (squared_error, OUTPUTS, CLASSES, r"one_hot"),
        (squared_error, OUTPUTS[:, 0], ONE_HOT, r"outputs' shape \(4,\), found \(4, 3\)"),
        (logistic, OUTPUTS, CLASSES, "one output and one target"),
        (accuracy, OUTPUTS, np.ones(4), "integer class numbers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_while_tracing(make, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(apply), outputs, (INPUTS, targets))
