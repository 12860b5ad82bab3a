"""Losses of margins against 60 digits, far into the range where the risk underflows."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.models.losses import logistic
from driftlab.models.margin_losses import exponential, log_exponential, log_logistic

EDGE = -np.log(np.finfo(float).eps) / 2  # where log_logistic changes its formula
MARGINS = (-800.0, -30.0, -1.0, 0.0, 0.5, 8.0, EDGE - 1e-9, EDGE + 1e-9, 30.0, 700.0, 1e5)


def identity(params, inputs):
    return params * inputs[:, 0]


def batch(margins):
    margins = jnp.asarray(margins)
    signs = jnp.where(jnp.arange(len(margins)) % 2 == 0, 1.0, -1.0)
    return (margins * signs)[:, None], signs


def softplus(power):
    """`log(1 + power)`, by its series where adding 1 would take the digits."""
    if power > decimal.Decimal("1e-6"):
        return (1 + power).ln()
    return sum(-((-power) ** k) / k for k in range(1, 11))


@pytest.mark.parametrize("margin", MARGINS)
def test_log_logistic_and_its_slope_are_exact_at_every_margin(margin):
    with decimal.localcontext(prec=60):
        power = (-decimal.Decimal(margin)).exp()
        soft = softplus(power)
        expected = soft.ln()
        slope = -power / (1 + power) / soft
    value, found = jax.value_and_grad(
        lambda m: log_logistic(identity)(jnp.ones(()), (m.reshape(1, 1), jnp.ones(1)))
    )(jnp.asarray(margin))
    np.testing.assert_allclose(value, float(expected), rtol=4e-16 * 8)
    np.testing.assert_allclose(found, float(slope), rtol=1e-14)


def test_means_over_a_batch():
    examples = batch([0.3, 2.0, -1.0])
    one = jnp.ones(())
    risk = np.mean(np.exp([-0.3, -2.0, 1.0]))
    np.testing.assert_allclose(exponential(identity)(one, examples), risk, rtol=1e-15)
    np.testing.assert_allclose(log_exponential(identity)(one, examples), np.log(risk), rtol=1e-14)
    np.testing.assert_allclose(
        log_logistic(identity)(one, examples), np.log(logistic(identity)(one, examples)), rtol=1e-14
    )
    far = batch([900.0, 1000.0])
    expected = -900 - np.log(2)
    np.testing.assert_allclose(log_logistic(identity)(one, far), expected, rtol=1e-15)
    np.testing.assert_allclose(log_exponential(identity)(one, far), expected, rtol=1e-15)


def test_float32_and_bad_shapes(float32):
    examples = batch([5.0, 50.0])
    value, slope = jax.value_and_grad(log_logistic(identity))(jnp.ones(()), examples)
    assert value.dtype == slope.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log(np.log1p(np.exp(-5.0)) / 2), rtol=1e-6)
    with pytest.raises(ValueError, match=r"exponential of signs.*each of the 2 examples"):
        exponential(lambda params, inputs: inputs[:1])(None, (jnp.ones((2, 3)), jnp.ones(2)))
