"""The predictions of a fixed kernel: against explicit iteration, and bounds against training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models
from driftlab.curvature.kernels import relu_kernel
from driftlab.curvature.lazy_training import (
    descent_bound,
    flow_bound,
    linearized_residuals,
    movement_bound,
)
from driftlab.curvature.two_layer_relu_kernel import relu_gram, smallest_eigenvalue

N, D = 12, 8
POINTS = np.random.RandomState(0).randn(N, D)
INPUTS = jnp.asarray(POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True))
KERNEL = relu_kernel(INPUTS)
RESIDUAL = jnp.asarray(np.random.RandomState(1).randn(N))


def test_descent_is_the_iteration():
    # 1.9 / lambda_max: the largest factor is -0.9, so odd and even powers differ in sign.
    rate = 1.9 / float(np.linalg.eigvalsh(KERNEL)[-1])
    matrix = np.eye(N) - rate * np.asarray(KERNEL)
    expected = [np.linalg.matrix_power(matrix, k) @ RESIDUAL for k in (0, 1, 2, 7, 50)]
    found = linearized_residuals(KERNEL, RESIDUAL, jnp.array([0, 1, 2, 7, 50]), rate)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_flow_is_the_matrix_exponential():
    expected = [jax.scipy.linalg.expm(-0.3 * k * KERNEL) @ RESIDUAL for k in (0, 1, 9)]
    found = linearized_residuals(KERNEL, RESIDUAL, jnp.array([0, 1, 9]), 0.3, flow=True)
    np.testing.assert_allclose(found, jnp.stack(expected), atol=1e-13)


def test_rates_are_lanes_and_float32_stays(float32):
    kernel, residual = KERNEL.astype(jnp.float32), RESIDUAL.astype(jnp.float32)
    rates = jnp.array([0.1, 0.5])
    steps = jnp.arange(3)
    lanes = jax.jit(jax.vmap(lambda h: linearized_residuals(kernel, residual, steps, h)))(rates)
    assert lanes.dtype == jnp.float32
    one = linearized_residuals(kernel, residual, steps, 0.5)
    np.testing.assert_allclose(lanes[1], one, atol=1e-5)
    assert descent_bound(steps, rates[0], kernel[0, 0]).dtype == jnp.float32


def test_descent_stays_below_its_bound_and_flow_below_its_own():
    steps = jnp.arange(0, 400, 20)
    least = smallest_eigenvalue(KERNEL)
    top = np.linalg.eigvalsh(KERNEL)[-1]
    for rate in (0.1, 1.9 / top):
        squares = jnp.square(linearized_residuals(KERNEL, RESIDUAL, steps, rate)).sum(1)
        bound = descent_bound(steps, rate, least)
        np.testing.assert_allclose(bound, (1 - rate * float(least) / 2) ** np.arange(0, 400, 20))
        assert (squares[1:] < bound[1:] * squares[0]).all()
        flowing = linearized_residuals(KERNEL, RESIDUAL, steps, rate, flow=True)
        bound = flow_bound(rate * steps, least)
        np.testing.assert_allclose(bound, np.exp(-rate * np.arange(0, 400, 20) * float(least)))
        assert (jnp.square(flowing).sum(1)[1:] < bound[1:] * squares[0]).all()


@pytest.fixture(scope="module")
def trained():
    """Gradient descent on the network: squared residuals, movement, and the linear prediction."""
    width, rate, steps = 4096, 0.5, 60
    signs = jnp.asarray(models.output_signs(width, 1, 0)[:, 0]) / width**0.5
    start = jax.random.normal(jax.random.key(0), (D, width), float)

    def outputs(kernel):
        return jax.nn.relu(INPUTS @ kernel) @ signs

    def loss(kernel):
        return jnp.sum(jnp.square(outputs(kernel) - RESIDUAL)) / 2

    def step(kernel, _):
        return kernel - rate * jax.grad(loss)(kernel), outputs(kernel) - RESIDUAL

    end, residuals = jax.jit(lambda s: jax.lax.scan(step, s, length=steps))(start)
    moved = jnp.linalg.norm(end - start, axis=0).max()
    gram = relu_gram(INPUTS, start)
    return width, rate, residuals, float(moved), gram


def test_training_follows_the_kernel_and_never_exceeds_the_bound(trained):
    width, rate, residuals, moved, gram = trained
    steps = jnp.arange(len(residuals))
    predicted = linearized_residuals(gram, residuals[0], steps, rate)
    # The kernel at initialisation is exact for the first step, up to the patterns that change.
    error = jnp.linalg.norm(predicted - residuals, axis=1) / jnp.linalg.norm(residuals[0])
    assert error[0] < 1e-14
    assert error.max() < 0.05
    least = smallest_eigenvalue(KERNEL)
    ratios = jnp.square(residuals).sum(1) / jnp.square(residuals[0]).sum()
    assert (ratios[1:] < descent_bound(steps, rate, least)[1:]).all()
    # A bound that is much too fast is one that the network does not keep.
    assert not (ratios[1:] < descent_bound(steps, rate, 10 * least)[1:]).all()
    bound = movement_bound(jnp.linalg.norm(residuals[0]), N, width, least)
    assert 0 < moved < bound
    half = movement_bound(jnp.linalg.norm(residuals[0]), N, width, least, flow=True)
    np.testing.assert_allclose(half, bound / 2)


def test_the_movement_bound_is_the_sum_of_the_bound_on_gradients():
    # h sqrt(n / m) |u_0 - y| sum_k (1 - h lambda_0 / 2)^(k / 2), the largest at small h.
    least, n, width = 0.3, 20, 400
    rate = 1e-3
    total = rate * (n / width) ** 0.5 * np.sum((1 - rate * least / 2) ** (np.arange(400_000) / 2))
    bound = movement_bound(1.0, n, width, least)
    assert total < bound
    assert total / bound > 0.999


ERRORS = {
    "shapes": (lambda: linearized_residuals(KERNEL, RESIDUAL[:3], jnp.arange(2), 0.1), r"\(3,\)"),
    "times": (lambda: linearized_residuals(KERNEL, RESIDUAL, jnp.arange(2.0), 0.1), "float64"),
    "rate": (lambda: linearized_residuals(KERNEL, RESIDUAL, jnp.arange(2), -1.0), "=-1.0 must"),
    "bound": (lambda: descent_bound(jnp.arange(2), 0.1, 0.0), "least_eigenvalue=0.0 must be pos"),
    "flow": (lambda: flow_bound(jnp.arange(2.0), -2.0), "least_eigenvalue=-2.0"),
    "movement": (lambda: movement_bound(1.0, 3, 0, 0.1), "width=0 must be positive"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
