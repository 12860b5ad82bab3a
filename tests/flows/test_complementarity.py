"""The semidefinite complementarity problem: its three conditions, checked in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.flows.complementarity import solve_complementarity
from driftlab.flows.symmetric_coordinates import smat, svec

solve = jax.jit(solve_complementarity)
solve_lanes = jax.jit(jax.vmap(solve_complementarity))


def problems(k, count, seed=0):
    """Indefinite A, and B of condition about 100."""
    random = np.random.default_rng(seed)
    m = k * (k + 1) // 2
    constants = random.normal(size=(count, k, k))
    constants = (constants + constants.swapaxes(1, 2)) / 2 - 0.5 * np.eye(k)[None]
    factors = random.normal(size=(count, m, m + 3))
    return constants, factors @ factors.swapaxes(1, 2) / m


def violation(constant, operator, solution):
    """The largest violation of the three conditions, with coordinates made by hand."""
    k = len(constant)
    rows, columns = np.triu_indices(k)
    scale = np.where(rows == columns, 1, np.sqrt(2))
    image = operator @ (scale * solution[rows, columns]) / scale
    slack = constant.copy()
    slack[rows, columns] += image
    slack[columns, rows] = slack[rows, columns]
    return max(
        -np.linalg.eigvalsh(solution)[0],
        -np.linalg.eigvalsh(slack)[0],
        abs((solution * slack).sum()),
    )


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_conditions_hold(k):
    touched = 0
    for constant, operator in zip(*problems(k, 20), strict=True):
        found = solve(constant, operator)
        assert violation(constant, operator, np.asarray(found.solution)) < 1e-10
        assert 0 <= found.residual < 1e-10
        touched += float(jnp.trace(found.solution)) > 0
    assert touched > 10  # X = 0 alone would be no test


def test_one_eigenvector_has_a_closed_form():
    for a, b in [(-3.0, 2.0), (-1e-3, 50.0), (0.5, 2.0), (0.0, 1.0)]:
        found = solve(jnp.array([[a]]), jnp.array([[b]]))
        np.testing.assert_allclose(found.solution, [[max(0, -a / b)]], rtol=1e-14)


def test_the_identity_projects():
    constant = problems(4, 1)[0][0]
    values, vectors = np.linalg.eigh(-constant)
    expected = (vectors * np.maximum(values, 0)[None]) @ vectors.T
    found = solve(constant, np.eye(10))
    np.testing.assert_allclose(found.solution, expected, atol=1e-13)


def test_nothing_to_do_is_done_at_once():
    """An empty active set: A >= 0, whatever B; and A = 0, where X and S both vanish."""
    random = np.random.default_rng(4)
    for constant in (np.diag([0.5, 0.0, 2.0]), np.zeros((3, 3))):
        for operator in (np.zeros((6, 6)), problems(3, 1, seed=random.integers(9))[1][0]):
            found = solve(constant, operator)
            np.testing.assert_array_equal(found.solution, np.zeros((3, 3)))
            assert found.residual == 0
            assert found.iterations == 0


@pytest.mark.parametrize("active", [1, 2])
def test_what_cannot_oscillate_changes_nothing(active):
    """As a central flow asks: A = diag(2 - eigenvalue) with B = 0 beyond the first directions."""
    constants, operators = problems(active, 6, seed=5)
    columns = np.triu_indices(4)[1]
    kept = np.flatnonzero(columns < active)
    touched = 0
    for small, part in zip(constants, operators, strict=True):
        constant, operator = np.diag([0.0, 0.0, 0.7, 1.5]), np.zeros((10, 10))
        constant[1, 1] = 0.6 * (active == 1)
        constant[:active, :active] = small
        operator[np.ix_(kept, kept)] = part
        found, alone = solve(constant, operator), solve(small, part)
        expected = np.zeros((4, 4))
        expected[:active, :active] = alone.solution
        np.testing.assert_allclose(found.solution, expected, atol=1e-11)
        assert found.residual < 1e-10
        touched += float(jnp.trace(alone.solution)) > 0
    assert touched > 2


def test_lanes_are_single_solves():
    constants, operators = problems(3, 64, seed=1)
    found = solve_lanes(constants, operators)
    assert found.residual.shape == (64,)
    assert found.residual.max() < 1e-10
    for lane in (0, 17, 63):
        alone = solve(constants[lane], operators[lane])
        np.testing.assert_allclose(found.solution[lane], alone.solution, atol=1e-11)


def test_a_start_nearby_saves_iterations():
    constants, operators = problems(3, 8, seed=2)
    for constant, operator in zip(constants, operators, strict=True):
        found = solve(constant, operator)
        again = solve(constant, operator, found.solution)
        assert again.iterations <= 1
        np.testing.assert_allclose(again.solution, found.solution, atol=1e-11)


@pytest.mark.parametrize(("condition", "bound"), [(1e2, 1e-12), (1e6, 1e-10)])
def test_ill_conditioned_problems_in_units_of_any_size(condition, bound):
    """Where Newton's method alone fails: the interior point must get near on its own."""
    random = np.random.default_rng(0)
    k, m, count = 3, 6, 64
    constants = random.normal(size=(count, k, k))
    constants = (constants + constants.swapaxes(1, 2)) / 2 - 0.5 * np.eye(k)[None]
    turns = np.linalg.qr(random.normal(size=(count, m, m)))[0]
    values = condition ** random.uniform(-1, 0, size=(count, m))
    operators = (turns * values[:, None]) @ turns.swapaxes(1, 2)
    sizes = 10.0 ** random.uniform(-4, 4, size=(2, count, 1, 1))
    found = solve_lanes(sizes[0] * constants, sizes[1] * operators)
    assert found.residual.max() < bound
    assert found.iterations.max() < 70
    assert (found.iterations > 20).sum() > 5  # some do need it
    # The residual is no invention: the conditions, in the units of each problem.
    for index in range(count):
        solution = np.asarray(found.solution[index])
        unit = solution * sizes[1][index] / sizes[0][index]
        size = 1 + np.linalg.norm(unit)
        assert violation(constants[index], operators[index], unit) < 10 * bound * size**2


def test_what_has_no_solution_is_finite_and_says_so():
    found = solve(jnp.array([[-1.0]]), jnp.array([[0.0]]))
    assert jnp.isfinite(found.solution).all()
    assert found.residual > 0.1
    broken = solve(jnp.full((2, 2), jnp.nan), jnp.eye(3))
    assert jnp.isnan(broken.solution).all()
    assert jnp.isnan(broken.residual)


def test_a_nearly_singular_operator_is_solved_or_not_but_never_a_lie():
    random = np.random.default_rng(3)
    for _ in range(8):
        constant = problems(2, 1, seed=random.integers(1000))[0][0]
        factor = random.normal(size=(3, 2))
        operator = factor @ factor.T + 1e-6 * np.eye(3)
        found = solve(constant, operator)
        solution = np.asarray(found.solution)
        size = 1 + np.linalg.norm(solution) * np.linalg.norm(operator) + np.linalg.norm(constant)
        true = violation(constant, operator, solution) / size / (1 + np.linalg.norm(solution))
        assert true <= 10 * found.residual + 1e-12


def test_coordinates_keep_inner_products():
    random = np.random.default_rng(0)
    first, second = (x + x.T for x in random.normal(size=(2, 4, 4)))
    product = svec(jnp.asarray(first)) @ svec(jnp.asarray(second))
    np.testing.assert_allclose(product, (first * second).sum(), rtol=1e-13)
    np.testing.assert_allclose(smat(svec(jnp.asarray(first))), first, rtol=1e-15)


def test_in_float32(float32):
    constants, operators = problems(3, 4)
    found = jax.jit(jax.vmap(solve_complementarity))(jnp.asarray(constants), jnp.asarray(operators))
    assert found.solution.dtype == jnp.float32
    assert found.residual.max() < 1e-5
    for constant, operator, solution in zip(constants, operators, found.solution, strict=True):
        # The true violation, in double precision, of problems of size 1 and condition 100.
        assert violation(constant, operator, np.asarray(solution, float)) < 1e-4


def test_bad_input():
    with pytest.raises(ValueError, match=r"constant must be a square.*\(2, 3\)"):
        solve_complementarity(jnp.zeros((2, 3)), jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"k = 2 it has shape \(3, 3\); got \(4, 4\)"):
        solve_complementarity(jnp.zeros((2, 2)), jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"operator must be floating-point; got int"):
        solve_complementarity(jnp.zeros((1, 1)), jnp.zeros((1, 1), int))
    with pytest.raises(ValueError, match=r"start has shape \(1,\)"):
        solve_complementarity(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros(1))
