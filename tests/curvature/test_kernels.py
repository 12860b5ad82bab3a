"""Kernels as matrices, and the infinite-width kernel of the two-layer ReLU network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models
from driftlab.curvature.kernels import (
    kernel_distance,
    kernel_spectrum,
    kernel_target_alignment,
    relu_kernel,
)
from driftlab.curvature.ntk import ntk

KEY = jax.random.key(0)


def random_kernel(key, n=6, rank=4):
    factor = jax.random.normal(jax.random.key(key), (n, rank), float)
    return factor @ factor.T


def sphere(n, d, seed=0):
    points = np.random.RandomState(seed).randn(n, d)
    return jnp.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def test_spectrum_is_descending_and_flattens_blocks():
    kernel = random_kernel(0)
    expected = np.linalg.eigvalsh(kernel)[::-1]
    np.testing.assert_allclose(kernel_spectrum(kernel), expected, atol=1e-12)
    blocks = kernel.reshape(3, 2, 3, 2).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(kernel_spectrum(blocks), expected, atol=1e-12)
    lanes = jax.vmap(kernel_spectrum)(jnp.stack([kernel, kernel * jnp.nan, 2 * kernel]))
    np.testing.assert_allclose(lanes[0], expected, atol=1e-12)
    assert jnp.isnan(lanes[1]).all()
    np.testing.assert_allclose(lanes[2], 2 * expected, atol=1e-12)


def test_alignment_is_the_formula():
    kernel, targets = random_kernel(1), jnp.arange(6.0) - 2
    formula = targets @ kernel @ targets / (np.linalg.norm(kernel) * targets @ targets)
    np.testing.assert_allclose(kernel_target_alignment(kernel, targets), formula, rtol=1e-12)
    many = jax.random.normal(KEY, (6, 3), float)
    cosine = np.sum(kernel * (many @ many.T)) / (
        np.linalg.norm(kernel) * np.linalg.norm(many @ many.T)
    )
    np.testing.assert_allclose(kernel_target_alignment(kernel, many), cosine, rtol=1e-12)
    blocks, pairs = kernel.reshape(3, 2, 3, 2).transpose(0, 2, 1, 3), targets.reshape(3, 2)
    np.testing.assert_allclose(kernel_target_alignment(blocks, pairs), formula, rtol=1e-12)


def test_alignment_of_the_targets_own_kernel_is_one():
    targets = jax.random.normal(KEY, (6, 3), float)
    own = 7.0 * targets @ targets.T
    np.testing.assert_allclose(kernel_target_alignment(own, targets), 1, rtol=1e-12)
    assert jnp.isnan(kernel_target_alignment(own, jnp.zeros(6)))


def test_distance_is_the_formula_at_any_scale():
    first, second = random_kernel(2), random_kernel(3)
    formula = 1 - np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second))
    np.testing.assert_allclose(kernel_distance(first, second), formula, rtol=1e-12)
    np.testing.assert_allclose(kernel_distance(1e200 * first, 1e-200 * second), formula, rtol=1e-12)
    np.testing.assert_allclose(kernel_distance(first, 3 * first), 0, atol=1e-30)
    assert jnp.isnan(kernel_distance(first, 0 * first))


def test_distance_of_close_kernels_keeps_its_digits_in_float32(float32):
    first = np.diag(np.arange(1.0, 7.0)).astype(np.float32)
    change = np.zeros_like(first)
    change[0, 1] = 1e-3
    # The change is orthogonal to the kernel, of norm sqrt(91): tan^2 / 2 of the angle.
    distance = kernel_distance(jnp.asarray(first), jnp.asarray(first + change))
    np.testing.assert_allclose(distance, 1e-6 / 91 / 2, rtol=1e-4)


def test_relu_kernel_is_the_formula():
    inputs = jax.random.normal(KEY, (6, 4), float)
    dots, norms = np.asarray(inputs @ inputs.T), np.linalg.norm(inputs, axis=1)
    products = np.outer(norms, norms)
    angle = np.arccos(np.clip(dots / products, -1, 1))
    np.fill_diagonal(angle, 0)
    first = dots * (np.pi - angle) / (2 * np.pi)
    second = products * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    # The formula itself is no better than this where it takes the arccos.
    np.testing.assert_allclose(relu_kernel(inputs), first, atol=1e-13)
    np.testing.assert_allclose(relu_kernel(inputs, both_layers=True), first + second, atol=1e-13)


def test_relu_kernel_is_the_mean_over_random_weights():
    inputs = jax.random.normal(KEY, (4, 3), float)
    weights = jax.random.normal(jax.random.key(1), (200_000, 3), float)
    hidden = inputs @ weights.T
    active = (hidden >= 0).astype(float)
    first = (inputs @ inputs.T) * (active @ active.T) / len(weights)
    second = jax.nn.relu(hidden) @ jax.nn.relu(hidden).T / len(weights)
    # 200,000 samples: 4 standard errors of the largest entries.
    np.testing.assert_allclose(relu_kernel(inputs), first, atol=0.02)
    np.testing.assert_allclose(relu_kernel(inputs, both_layers=True), first + second, atol=0.06)


def test_relu_kernel_of_parallel_antiparallel_and_zero_inputs():
    x = jnp.array([3.0, 4.0])
    kernel = relu_kernel(jnp.stack([x, 2 * x, -x, 0 * x]))
    expected = np.zeros((4, 4))
    expected[:2, :2], expected[2, 2] = [[12.5, 25], [25, 50]], 12.5
    np.testing.assert_allclose(kernel, expected, atol=1e-13)
    np.testing.assert_array_equal(jnp.diag(kernel), [12.5, 50, 12.5, 0])
    both = relu_kernel(jnp.stack([x, 2 * x, -x, 0 * x]), both_layers=True)
    np.testing.assert_allclose(both, 2 * expected, atol=1e-13)
    np.testing.assert_allclose(kernel_spectrum(kernel[::2, ::2]), [12.5, 12.5], atol=1e-13)


def test_relu_kernel_keeps_its_digits_in_float32():
    angles = np.array([0.0, 1e-6, 1e-4, 1e-2, 1.0, np.pi - 1e-3])
    inputs = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    exact = relu_kernel(jnp.asarray(inputs, float))
    with jax.enable_x64(False):
        rounded = relu_kernel(jnp.asarray(inputs))
        assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=5e-7)
    # Through arccos of the inner product the error is 1e2 times that.
    cosines = np.clip(inputs @ inputs.T, -1, 1)
    naive = cosines * (np.pi - np.arccos(cosines)) / (2 * np.pi)
    assert abs(naive - exact).max() > 1e-5


def test_smallest_eigenvalue_for_200_points_on_the_sphere():
    # The experiment of Du et al. (2019) at n = d = 200: lambda_0 = .239 in our own measurements,
    # which varies by some thousandths with the draw; the diagonal is 1/2.
    kernel = relu_kernel(sphere(200, 200))
    spectrum = kernel_spectrum(kernel)
    np.testing.assert_allclose(spectrum[-1], 0.239, atol=0.003)
    np.testing.assert_allclose(jnp.trace(kernel), 100, rtol=1e-12)


def test_finite_width_kernel_approaches_the_limit_at_rate_one_half():
    inputs = sphere(10, 5)
    limit = relu_kernel(inputs)
    widths = np.array([64, 256, 1024, 4096])

    def error(width):
        model = models.TwoLayerReLU(int(width))
        apply = models.apply_function(model)

        def squared(key):
            params = models.initialize(model, key, inputs)
            kernel = ntk(apply, params, inputs, trace_outputs=True)
            return jnp.square(kernel - limit).sum()

        return jnp.sqrt(jax.jit(jax.vmap(squared))(jax.random.split(KEY, 50)).mean())

    errors = np.array([error(width) for width in widths])
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.05


ERRORS = {
    "rectangular": (lambda: kernel_spectrum(jnp.ones((3, 2))), r"one set .* shape \(3, 2\)"),
    "rank": (lambda: kernel_spectrum(jnp.ones((3, 3, 3))), r"must be \(n, n\) or .*\(3, 3, 3\)"),
    "blocks": (lambda: kernel_spectrum(jnp.ones((3, 3, 2, 1))), r"got \(3, 3, 2, 1\)"),
    "targets": (lambda: kernel_target_alignment(jnp.eye(3), jnp.ones(4)), r"got \(3, 3\) and \(4"),
    "outputs": (
        lambda: kernel_target_alignment(jnp.ones((3, 3, 2, 2)), jnp.ones(3)),
        r"got \(3, 3, 2, 2\) and \(3,\)",
    ),
    "shapes": (lambda: kernel_distance(jnp.eye(3), jnp.eye(2)), r"same shape; got \(3, 3\)"),
    "images": (lambda: relu_kernel(jnp.ones((2, 3, 3))), "Flatten images first"),
    "integers": (lambda: relu_kernel(jnp.ones((2, 3), int)), "got shape .* int64"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
