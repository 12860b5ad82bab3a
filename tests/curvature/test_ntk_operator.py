"""Kernel-vector products, against the dense kernel."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

from driftlab import models
from driftlab.curvature.kernels import kernel_spectrum
from driftlab.curvature.ntk import ntk
from driftlab.curvature.ntk_operator import ntk_operator

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (7, 5), float)
MODEL = models.MLP((8,), 3)
APPLY = models.apply_function(MODEL)
PARAMS = models.initialize(MODEL, KEY, INPUTS)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 7, 20])
def test_products_equal_the_dense_kernel(batch_size):
    vector = jax.random.normal(jax.random.key(2), (7, 3), float)

    @jax.jit
    def product(params, inputs, vector):
        return ntk_operator(APPLY, params, inputs, batch_size).mv(vector)

    expected = jnp.einsum("ijab,jb->ia", ntk(APPLY, PARAMS, INPUTS), vector)
    np.testing.assert_allclose(product(PARAMS, INPUTS, vector), expected, rtol=1e-12)


def test_one_output_without_an_axis_and_lanes():
    def kernel_row(params, scale):
        operator = ntk_operator(lambda p, x: scale * APPLY(p, x)[:, 0], params, INPUTS, 3)
        return operator.mv(jnp.arange(7.0))

    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    together = jax.vmap(kernel_row)(lanes, jnp.array([1.0, 2.0]))
    kernel = ntk(lambda p, x: 2 * APPLY(p, x)[:, 0], jax.tree.map(lambda p: 2 * p, PARAMS), INPUTS)
    np.testing.assert_allclose(together[1], kernel @ jnp.arange(7.0), rtol=1e-12)


def test_lineax_solves_with_it():
    operator = ntk_operator(APPLY, PARAMS, INPUTS, 4)
    assert lineax.is_symmetric(operator)
    assert lineax.is_positive_semidefinite(operator)
    kernel = ntk(APPLY, PARAMS, INPUTS).transpose(0, 2, 1, 3).reshape(21, 21)
    np.testing.assert_allclose(operator.as_matrix(), kernel, atol=1e-12)

    @jax.jit
    def solve(params, vector):
        operator = ntk_operator(APPLY, params, INPUTS, 4)
        damped = operator + lineax.IdentityLinearOperator(operator.in_structure())
        damped = lineax.TaggedLinearOperator(damped, lineax.positive_semidefinite_tag)
        return lineax.linear_solve(damped, vector, lineax.CG(1e-12, 1e-12)).value

    vector = jnp.ones((7, 3))
    expected = jnp.linalg.solve(kernel + jnp.eye(21), vector.reshape(-1))
    np.testing.assert_allclose(solve(PARAMS, vector).reshape(-1), expected, rtol=1e-8)


def test_spectrum_is_n_times_that_of_the_gauss_newton_matrix():
    # For 1/(2n) sum_i |f(x_i) - y_i|^2 the Gauss-Newton matrix is J^T J / n.
    jacobian = jax.tree.leaves(jax.jacrev(lambda p: APPLY(p, INPUTS))(PARAMS))
    matrix = jnp.concatenate([leaf.reshape(21, -1) for leaf in jacobian], axis=1)
    gauss_newton = jnp.linalg.eigvalsh(matrix.T @ matrix / 7)[::-1]
    spectrum = kernel_spectrum(ntk(APPLY, PARAMS, INPUTS))
    np.testing.assert_allclose(spectrum / 7, gauss_newton[:21], atol=1e-12 * gauss_newton[0])
    np.testing.assert_allclose(gauss_newton[21:], 0, atol=1e-12 * gauss_newton[0])


def test_networks_with_a_derivative_of_their_own_have_no_forward_derivative_and_need_none():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))

    def apply(params, x):
        return straight_through(APPLY(params, x))

    product = ntk_operator(apply, PARAMS, INPUTS, 3).mv(jnp.ones((7, 3)))
    # Rounding with the derivative 1: the kernel is that of the network before it.
    expected = jnp.einsum("ijab,jb->ia", ntk(APPLY, PARAMS, INPUTS), jnp.ones((7, 3)))
    np.testing.assert_allclose(product, expected, rtol=1e-12)


def test_float32(float32):
    params, inputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (PARAMS, INPUTS))
    vector = jnp.ones((7, 3), jnp.float32)
    product = ntk_operator(APPLY, params, inputs, 3).mv(vector)
    assert product.dtype == jnp.float32
    expected = jnp.einsum("ijab,jb->ia", ntk(APPLY, params, inputs), vector)
    np.testing.assert_allclose(product, expected, atol=2e-6 * float(abs(expected).max()))


def test_params_that_are_nan_give_nan():
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    assert jnp.isnan(ntk_operator(APPLY, broken, INPUTS, 3).mv(jnp.ones((7, 3)))).all()


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more; got 0"):
        ntk_operator(APPLY, PARAMS, INPUTS, 0)
    with pytest.raises(ValueError, match=r"f64\[7\](.|\n)*f64\[7,3\]"):  # lineax's own refusal
        ntk_operator(APPLY, PARAMS, INPUTS).mv(jnp.ones(7))
    with pytest.raises(ValueError, match=r"must return \(n, outputs\)"):
        ntk_operator(lambda p, x: APPLY(p, x).sum(), PARAMS, INPUTS)
