import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from driftlab import curvature
from tests.curvature.cases import CASES, dense_operator, draw, matrix_with, quick_jit


def norm_of(matrix):
    return max(np.abs(matrix).max(), 1e-300)


@pytest.mark.parametrize("name", CASES)
def test_products_equal_dense_matrices(name, matrices_of):
    matrices = matrices_of(name)
    assert set(matrices.operators) >= set(matrices.dense)
    for kind, found in matrices.operators.items():
        expected = matrices.dense[kind.removesuffix("_in_batches")]
        error = np.abs(found - expected).max()
        assert error <= 1e-10 * norm_of(expected), (kind, error)


def test_gauss_newton_equals_fisher_for_natural_parameters(matrices_of):
    for name in ("tanh_cross_entropy", "relu_squared_error", "cnn"):
        found = matrices_of(name).operators
        np.testing.assert_allclose(found["gauss_newton"], found["fisher"], atol=1e-13)


def test_semidefinite_operators_are(matrices_of):
    for name in CASES:
        for kind, matrix in matrices_of(name).operators.items():
            if kind.startswith("hessian"):
                continue
            lowest = np.linalg.eigvalsh(matrix)[0]
            assert lowest >= -1e-12 * norm_of(matrix), (name, kind)


def test_zero_hessian_is_exactly_zero(matrices_of):
    assert not matrices_of("zero_hessian").operators["hessian"].any()


def test_lanes_of_params_and_of_hyper_parameters(matrices_of):
    case = CASES["mixed_shapes"]
    vector, unravel = ravel_pytree(case.params)
    scales = jnp.asarray([1.0, 0.5, -2.0])

    def product(scale, weight):
        params = jax.tree.map(lambda leaf: scale * leaf, case.params)
        operator = curvature.hessian(lambda p, b: weight * case.loss(p, b), params, case.data, 3)
        return ravel_pytree(operator.mv(case.params))[0]

    lanes = jax.jit(jax.vmap(product))(scales, scales)
    assert lanes.shape == (3, vector.size)
    expected = matrices_of("mixed_shapes").dense["hessian"] @ np.asarray(vector)
    np.testing.assert_allclose(lanes[0], expected, rtol=1e-10, atol=1e-10)
    jax.tree.map(np.testing.assert_array_equal, unravel(vector), case.params)
    np.testing.assert_allclose(lanes[2], product(scales[2], scales[2]), rtol=1e-10, atol=1e-12)


def test_preconditioned_spectrum_is_that_of_the_quotient():
    matrix = matrix_with([-1.0, -0.2, 0.3, 1.0, 2.0, 4.0])
    diagonal = jnp.asarray([0.1, 1.0, 2.0, 5.0, 0.5, 3.0])
    operator = curvature.preconditioned(dense_operator(matrix), diagonal)
    found = np.asarray(jax.vmap(operator.mv)(jnp.eye(6)))
    np.testing.assert_allclose(found, found.T, atol=1e-15)
    expected = np.linalg.eigvals(np.asarray(matrix) / np.asarray(diagonal)[:, None])
    np.testing.assert_allclose(np.linalg.eigvalsh(found), np.sort(expected.real), rtol=1e-10)


def test_an_infinite_preconditioner_freezes():
    diagonal = jnp.asarray([jnp.inf, 4.0])
    operator = curvature.preconditioned(dense_operator(jnp.ones((2, 2))), diagonal)
    np.testing.assert_array_equal(jax.vmap(operator.mv)(jnp.eye(2)), [[0, 0], [0, 0.25]])


def test_preconditioning_keeps_what_is_known_of_the_operator():
    case = CASES["array"]
    fisher = curvature.fisher(case.model, "categorical", case.params, case.data)
    ones = jnp.ones_like(case.params)
    assert lineax.is_positive_semidefinite(curvature.preconditioned(fisher, ones))
    hessian = curvature.hessian(case.loss, case.params, case.data)
    scaled = curvature.preconditioned(hessian, ones)
    assert lineax.is_symmetric(scaled)
    assert not lineax.is_positive_semidefinite(scaled)
    with pytest.raises(ValueError, match=r"structure and shapes, \(7, 4\); got \(4, 7\)"):
        curvature.preconditioned(hessian, ones.T)
    with pytest.raises(ValueError, match="structure and shapes"):
        curvature.preconditioned(hessian, {"w": ones})


def test_products_keep_float32(float32):
    loss = lambda p, _: (p["a"] ** 3).sum() * p["b"]  # noqa: E731
    params = {"a": jnp.arange(3.0), "b": jnp.float32(2)}
    product = curvature.hessian(loss, params).mv(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {np.dtype("float32")}
    np.testing.assert_allclose(product["a"], 6 * 2 * params["a"] ** 2 + 3 * params["a"] ** 2 * 2)


def test_nan_params_give_nan_products():
    case = CASES["array"]
    broken = case.params.at[0, 0].set(jnp.nan)

    def product(params, vector, batch_size):
        return curvature.hessian(case.loss, params, case.data, batch_size).mv(vector)

    for batch_size in (None, 4):
        assert np.isnan(quick_jit(product, static_argnums=2)(broken, case.params, batch_size)).any()


def test_a_loss_that_is_no_scalar_is_refused():
    params = jnp.ones(3)
    for loss, found in [
        (lambda p, _: p, r"shape \(3,\)"),
        (lambda p, _: (p.sum(), p), "tuple"),
        (lambda p, _: (p > 0).any(), "bool"),
        (lambda p, _: p.sum() * 1j, "complex"),
        (lambda p, _: p.sum(keepdims=True), r"shape \(1,\)"),
    ]:
        for make in (curvature.hessian, curvature.empirical_fisher):
            with pytest.raises(ValueError, match=f"must return one real .*{found}"):
                make(loss, params, (jnp.ones(2),))


def test_params_without_derivatives_are_refused():
    loss = lambda p, _: p["w"].sum() * 1.0  # noqa: E731
    for leaf in (jnp.arange(3), np.ones(3, bool), 1, jnp.ones(2, complex)):
        with pytest.raises(TypeError, match=r"parameter \['w'\] has dtype"):
            curvature.hessian(loss, {"w": leaf})


def test_the_users_own_error_comes_through():
    def loss(params, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        curvature.hessian(loss, jnp.ones(2))


def test_symmetric_operator_checks():
    symmetric = matrix_with([1.0, -2.0, 3.0])
    shapes = jax.ShapeDtypeStruct((3,), jnp.float64)
    for like in (jnp.ones(3), shapes, np.ones(3)):
        operator = curvature.symmetric_operator(lambda v: symmetric @ v, like)
        np.testing.assert_array_equal(operator.mv(jnp.ones(3)), symmetric @ jnp.ones(3))
    with pytest.raises(ValueError, match=r"not symmetric: u\.Av ="):
        curvature.symmetric_operator(lambda v: jnp.triu(symmetric) @ v, shapes)
    for bent in (lambda v: symmetric @ v + 1, lambda v: v**2, lambda v: v / jnp.linalg.norm(v)):
        with pytest.raises(ValueError, match="not linear"):
            curvature.symmetric_operator(bent, shapes)
    curvature.symmetric_operator(jnp.zeros_like, shapes)
    slightly = symmetric.at[0, 1].add(1e-4)
    with pytest.raises(ValueError, match="not symmetric"):
        curvature.symmetric_operator(lambda v: slightly @ v, shapes)
    with pytest.raises(ValueError, match="probes=0"):
        jax.jit(lambda m: curvature.symmetric_operator(lambda v: m @ v, shapes).mv(draw(0, 3)))(
            symmetric
        )


def test_what_is_no_operator_is_refused():
    key = jax.random.key(0)
    matrix = jnp.eye(3)
    plain = lineax.MatrixLinearOperator(matrix)
    for function in (
        curvature.eigenpairs,
        lambda a: curvature.tracked_eigenpairs(a, matrix[:1]),
        lambda a: curvature.trace(a, key),
        lambda a: curvature.frobenius_norm(a, key),
        lambda a: curvature.quadrature(a, key),
        lambda a: curvature.log_determinant(a, key),
        lambda a: curvature.conjugate_gradients(a, matrix[0]),
    ):
        with pytest.raises(TypeError, match="must be a lineax linear operator; got"):
            function(matrix)
        with pytest.raises(ValueError, match="not tagged symmetric"):
            function(plain)
        with pytest.raises(ValueError, match="empty tree"):
            function(curvature.symmetric_operator(lambda v: v, (), probes=0))


def test_lineax_matrices_are_operators_here():
    matrix = matrix_with([1.0, 2.0, 5.0])
    operator = lineax.MatrixLinearOperator(matrix, lineax.symmetric_tag)
    np.testing.assert_allclose(curvature.eigenpairs(operator).values, [5.0], rtol=1e-12)
    diagonal = lineax.DiagonalLinearOperator(jnp.asarray([1.0, 4.0]))
    np.testing.assert_allclose(curvature.eigenpairs(diagonal).values, [4.0], rtol=1e-12)


def test_damped_adds_to_every_eigenvalue_and_keeps_the_tag():
    matrix = jnp.diag(jnp.array([3.0, 1.0, 0.0]))
    semidefinite = lineax.FunctionLinearOperator(
        lambda v: matrix @ v,
        jax.ShapeDtypeStruct((3,), matrix.dtype),
        lineax.positive_semidefinite_tag,
    )
    shifted = curvature.damped(semidefinite, 0.5)
    np.testing.assert_allclose(shifted.as_matrix(), matrix + 0.5 * np.eye(3))
    assert lineax.is_positive_semidefinite(shifted)
    solved = lineax.linear_solve(shifted, jnp.ones(3), lineax.CG(rtol=1e-10, atol=1e-10))
    np.testing.assert_allclose(solved.value, 1 / np.array([3.5, 1.5, 0.5]), rtol=1e-9)
    symmetric = lineax.FunctionLinearOperator(
        lambda v: -matrix @ v, jax.ShapeDtypeStruct((3,), matrix.dtype), lineax.symmetric_tag
    )
    assert not lineax.is_positive_semidefinite(curvature.damped(symmetric, 0.5))
