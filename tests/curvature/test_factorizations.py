import jax
import jax.numpy as jnp
import numpy as np

from driftlab.curvature.factorizations import eigh, leave_one_out, orthonormal_columns
from tests.curvature.cases import draw, quick_jit

MATRICES = draw(0, 5, 2, 6, 4)


def test_nested_lanes_are_what_single_calls_are():
    def all_of(matrix):
        return eigh(matrix.T @ matrix), orthonormal_columns(matrix), leave_one_out(matrix)

    lanes = quick_jit(jax.vmap(jax.vmap(all_of)))(MATRICES)
    single = quick_jit(all_of)(MATRICES[3, 1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3, 1], b, atol=1e-14), lanes, single)


def test_definitions():
    matrix = MATRICES[0, 0]
    values, vectors = eigh(matrix.T @ matrix)
    np.testing.assert_allclose(vectors * values[None] @ vectors.T, matrix.T @ matrix, atol=1e-13)
    q, r, lost = leave_one_out(matrix)
    np.testing.assert_allclose(q @ r, matrix, atol=1e-14)
    for index in range(4):
        span = np.linalg.qr(np.delete(matrix, index, 1))[0]
        projection = q @ (np.eye(4) - np.outer(lost[:, index], lost[:, index])) @ q.T
        np.testing.assert_allclose(projection, span @ span.T, atol=1e-13)


def test_no_nan_without_nan():
    for matrix in (jnp.zeros((6, 4)), jnp.ones((6, 4)), 1e-200 * MATRICES[0, 0]):
        assert all(np.isfinite(part).all() for part in leave_one_out(matrix))
    broken = MATRICES[0, 0].at[2, 2].set(jnp.nan)
    assert np.isnan(leave_one_out(broken)[2]).any()
    assert np.isnan(eigh(broken.T @ broken)[0]).all()


def lapack_calls(function, *shape):
    """The lines of a compiled program that call LAPACK."""
    lowered = jax.jit(jax.vmap(function)).lower(jnp.zeros(shape))
    calls = [line for line in lowered.as_text().splitlines() if "@lapack" in line]
    assert calls
    return calls


def test_no_lapack_call_sees_the_lanes():
    """Batched ones wait for each other on XLA's threads, and two at once may do so for ever.

    That was seen in 25 lanes of eigenpairs; it depends on timing, so what is tested is its cause.
    """
    assert any("64x7x5" in line for line in lapack_calls(lambda m: jnp.linalg.qr(m)[0], 64, 7, 5))
    for function in (orthonormal_columns, leave_one_out):
        assert not any("64x" in line for line in lapack_calls(function, 64, 7, 5))
    assert not any("64x" in line for line in lapack_calls(eigh, 64, 5, 5))
