import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.data import problems

KEY = jax.random.key(0)

PROBLEMS = [
    problems.quadratic(jnp.array([3.0, 1.0, 0.1]), KEY),
    problems.rosenbrock(),
    problems.rosenbrock(2.0, 5.0),
    problems.perturbed_rosenbrock(),
    problems.quartic(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.5])),
    problems.two_layer_linear(jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_minimizer_is_a_minimum(problem):
    gradient = jax.grad(problem.loss)(problem.minimizer, None)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, np.zeros(leaf.shape), atol=1e-14)
    assert problem.loss(problem.initial_params) > problem.loss(problem.minimizer)


def test_quadratic_has_the_eigenvalues_and_a_start_with_unit_coordinates():
    eigenvalues = jnp.array([0.1, 1.0, 3.0])
    problem = problems.quadratic(eigenvalues, KEY)
    hessian = jax.hessian(problem.loss)(problem.initial_params)
    assert jnp.abs(hessian - jnp.diag(jnp.diag(hessian))).max() > 0.1
    np.testing.assert_allclose(jnp.linalg.eigvalsh(hessian), eigenvalues, rtol=1e-12)
    np.testing.assert_allclose(
        problem.loss(problem.initial_params), eigenvalues.sum() / 2, rtol=1e-12
    )


def test_quadratic_of_the_principal_flow_paper():
    problem = problems.quadratic((2.0, 0.02), initial=(-0.35, -0.2))
    np.testing.assert_allclose(problem.loss(problem.initial_params), 0.35**2 + 0.01 * 0.2**2)


def test_perturbed_rosenbrock_has_the_published_hessian():
    problem = problems.perturbed_rosenbrock()
    hessian = jax.hessian(problem.loss)(problem.initial_params)
    np.testing.assert_allclose(jnp.linalg.eigvalsh(hessian), [1.76252, 6.06748], atol=5e-6)


def test_rosenbrock_value():
    np.testing.assert_allclose(problems.rosenbrock().loss(jnp.array([-1.2, 1.0])), 24.2)


def test_two_layer_linear_follows_the_catapult_recursion():
    left, right = jax.random.normal(KEY, (2, 16))
    problem = problems.two_layer_linear(left, right)
    rate, width = 0.3, 16

    def function_and_kernel(params):
        u, v = params["left"], params["right"]
        return u @ v / 4.0, (u @ u + v @ v) / width

    f, k = function_and_kernel(problem.initial_params)
    gradient = jax.grad(problem.loss)(problem.initial_params)
    after = jax.tree.map(lambda p, g: p - rate * g, problem.initial_params, gradient)
    expected_f = f * (1 - rate * k + rate**2 * f**2 / width)
    expected_k = k + rate * f**2 * (rate * k - 4) / width
    np.testing.assert_allclose(function_and_kernel(after), (expected_f, expected_k), rtol=1e-13)


def test_quartic_has_the_documented_orbit_of_period_two():
    a, b, rate = 2.5, -1.0, 1.0
    problem = problems.quartic(jnp.array([a]), jnp.array([b]), jnp.array([0.3]))
    step = jax.jit(lambda x: x - rate * jax.grad(problem.loss)(x))
    x = problem.initial_params
    for _ in range(200):
        x = step(x)
    np.testing.assert_allclose(x**2, [(2 - rate * a) / (rate * b)], rtol=1e-10)
    np.testing.assert_allclose(step(x), -x, rtol=1e-10)


def test_types_follow_the_inputs():
    single = problems.quadratic(jnp.ones(3, jnp.float32), KEY)
    assert single.loss(single.initial_params).dtype == jnp.float32
    single = problems.perturbed_rosenbrock(jnp.zeros(2, jnp.float32))
    assert single.loss(single.minimizer).dtype == jnp.float32
    assert problems.rosenbrock().initial_params.dtype == jnp.float64
    assert problems.quadratic(jnp.array([1, 2])).initial_params.dtype == jnp.float64


def test_separable_classification_keeps_its_margin():
    batch = problems.separable_classification(KEY, 200, 5, margin=0.3)
    assert batch.inputs.shape == (200, 5)
    np.testing.assert_array_equal(np.unique(batch.targets), [-1, 1])
    # The same key without a margin differs by margin * y * w, which gives w away.
    bare = problems.separable_classification(KEY, 200, 5, margin=0.0)
    direction = (batch.inputs - bare.inputs)[0] * batch.targets[0] / 0.3
    np.testing.assert_allclose(jnp.linalg.norm(direction), 1, rtol=1e-12)
    margins = batch.targets * (batch.inputs @ direction)
    assert 0.3 <= margins.min() < 0.4


def test_linear_regression_is_linear_up_to_its_noise():
    batch = problems.linear_regression(KEY, 50, 4)
    _, residual, rank, _ = np.linalg.lstsq(batch.inputs, batch.targets, rcond=None)
    assert rank == 4
    assert residual[0] < 1e-24
    noisy = problems.linear_regression(KEY, 2000, 4, noise=0.5)
    _, residual, _, _ = np.linalg.lstsq(noisy.inputs, noisy.targets, rcond=None)
    np.testing.assert_allclose(residual[0] / 2000, 0.25, rtol=0.1)
