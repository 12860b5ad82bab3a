"""Gradient descent at the step sizes of the alignment theorem: what they promise, kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.models.losses import logistic
from driftlab.transforms.deep_linear import deep_linear_descent, risk_smoothness


def outputs(weights, inputs):
    hidden = inputs
    for matrix in weights:
        hidden = hidden @ matrix.T
    return hidden


@pytest.fixture(scope="module")
def path():
    """Risks, gradient norms and rates of 400 steps from a start as large as the proof allows."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], (20, 3))
    inputs = inputs / jnp.linalg.norm(inputs, axis=1).max()
    signs = jnp.sign(inputs @ jnp.array([1.0, 0.3, -1.0]))
    start = [
        jax.random.normal(key, shape) / 2
        for key, shape in zip(keys[1:], ((4, 3), (4, 4), (1, 4)), strict=True)
    ]
    start[0] = jnp.zeros_like(start[0])  # so that the risk is that of the origin
    tx, loss = deep_linear_descent(), logistic(outputs)

    def step(carry, _):
        weights, state = carry
        value, slope = jax.value_and_grad(loss)(weights, (inputs, signs))
        updates, state = tx.update(slope, state, weights)
        after = optax.apply_updates(weights, updates)
        moved = jnp.stack([jnp.linalg.norm(update) for update in updates]).max()
        size = jnp.stack([jnp.linalg.norm(matrix) for matrix in weights]).max()
        rate = state.learning_rate
        return (after, state), (value, optax.tree.norm(slope), rate, moved, size)

    return jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), None, 400)[1])()


def test_the_risk_falls_in_every_step_by_what_is_proved(path):
    risks, slopes, rates, _, _ = path
    np.testing.assert_allclose(risks[0], np.log(2), rtol=1e-14)
    assert (np.diff(risks) <= -(rates * slopes**2 / 2)[:-1]).all()
    assert np.sum(rates**2 * slopes**2) <= 2 * risks[0]


def test_the_ball_is_not_left_and_the_rate_is_that_of_the_ball(path):
    _, _, rates, moved, sizes = path
    assert (moved <= 1 / (2 * 3**2)).all()
    radii = np.maximum(1, sizes + 1 / 18)
    np.testing.assert_allclose(rates, 1 / (18 * radii**4 * 1.25), rtol=1e-13)


def test_beta_bounds_the_hessian():
    # One example of norm 1 at margin 0, where the logistic loss curves most.
    inputs, signs = jnp.array([[1.0, 0.0]]), jnp.ones(1)
    start = [jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, 1.0]])]
    hessian = jax.hessian(lambda w: logistic(outputs)(w, (inputs, signs)))
    rows = hessian(start)
    size = [4, 2]
    matrix = np.block(
        [[np.reshape(rows[i][j], (size[i], size[j])) for j in range(2)] for i in range(2)]
    )
    assert np.abs(np.linalg.eigvalsh(matrix)).max() <= risk_smoothness(1.0, 2)


def test_lanes_and_bad_arguments(float32):
    weights = [jnp.ones((2, 2)), jnp.ones((1, 2))]

    def rate(largest):
        tx = deep_linear_descent(largest=largest)
        updates, state = tx.update(weights, tx.init(weights), weights)
        assert updates[0].dtype == jnp.float32
        return state.learning_rate

    found = jax.vmap(rate)(jnp.array([1e-3, 1.0]))
    np.testing.assert_allclose(found, [1e-3, 1 / risk_smoothness(2.125, 2)], rtol=1e-6)
    with pytest.raises(ValueError, match=r"largest=-1.0 must be positive"):
        deep_linear_descent(largest=-1)
    with pytest.raises(ValueError, match=r"\['bias'\] has shape \(2,\)"):
        deep_linear_descent().init({"bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="needs params"):
        deep_linear_descent().update(weights, rate_state())


def rate_state():
    return deep_linear_descent().init([jnp.ones((1, 1))])
