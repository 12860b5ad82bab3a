import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import curvature
from driftlab.curvature.quadrature import Quadrature
from driftlab.curvature.vectors import flat_operator, rademacher
from tests.curvature.cases import SIZE, dense_operator, matrix_with, quick_jit, run

KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def rules(stack):
    """Quadratures of every matrix, with 40 probes of 28 steps: all there are."""
    solve = jax.vmap(lambda m, k: curvature.quadrature(dense_operator(m), k, 40, 50))
    keys = jax.random.split(KEY, len(stack[0]))
    found = jax.tree.map(np.asarray, quick_jit(solve)(stack[1], keys))
    return [Quadrature(n, w, SIZE) for n, w in zip(found.nodes, found.weights, strict=True)]


def test_weights_and_nodes_on_every_case(stack, rules):
    for name, matrix, rule in zip(*stack, rules, strict=True):
        values = np.linalg.eigvalsh(matrix)
        norm = np.abs(values).max()
        assert rule.nodes.shape == (40, SIZE), name
        np.testing.assert_allclose(rule.weights.sum(1), 1, rtol=1e-12, err_msg=name)
        assert (rule.weights >= 0).all(), name
        # All the steps there are: the nodes are the eigenvalues.
        for nodes in rule.nodes[:3]:
            np.testing.assert_allclose(np.sort(nodes), values, atol=1e-9 * norm, err_msg=name)


FUNCTIONS = {
    "trace": lambda t: t,
    "square": lambda t: t**2,
    "exponential": lambda t: jnp.exp(-t),
    "log_determinant": lambda t: jnp.log(t + 200),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_traces_within_three_standard_errors_on_every_case(function, stack, rules):
    f = FUNCTIONS[function]
    failures = []
    for name, matrix, rule in zip(*stack, rules, strict=True):
        if name == "negative_definite" and function == "exponential":
            continue  # exp(100)
        values = f(np.linalg.eigvalsh(matrix))
        found = rule.trace_of(f)
        error = abs(found.value - values.sum())
        if error > 3 * found.standard_error + 1e-10 * np.abs(values).sum():
            failures.append((name, float(error), float(found.standard_error)))
    assert not failures


def test_standard_errors_are_honest():
    spectrum = np.geomspace(1e-2, 10, 40)
    matrix = matrix_with(spectrum)

    def log_determinant(key):
        return curvature.log_determinant(dense_operator(matrix), key, 0.1, 20, 25)

    found = quick_jit(jax.vmap(log_determinant))(jax.random.split(KEY, 60))
    errors = np.asarray(found.value) - np.log(spectrum + 0.1).sum()
    # A deviation of 60 numbers is known to 9%.
    assert 0.8 < np.std(errors / np.asarray(found.standard_error)) < 1.35
    assert abs(errors.mean()) < 4 * errors.std() / 60**0.5


@pytest.mark.parametrize("spectrum", ["distinct", "degenerate"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_exact_for_polynomials_given_the_probe(spectrum, steps):
    """A Gauss rule of m nodes: `n sum_i w_i p(t_i) = z^T p(A) z` up to degree 2 m - 1."""
    values = np.linspace(-1, 2, 30)
    values = values if spectrum == "distinct" else np.round(values)  # few: invariant at once
    matrix = np.asarray(matrix_with(values))
    operator = dense_operator(jnp.asarray(matrix))
    rule = run(curvature.quadrature, jnp.asarray(matrix), KEY, probes=3, steps=steps)
    flat = flat_operator(operator)
    for index, key in enumerate(jax.random.split(KEY, 3)):
        probe = np.asarray(rademacher(jax.random.split(key)[0], flat))
        for degree in range(2 * steps):
            expected = probe @ np.linalg.matrix_power(matrix, degree) @ probe
            found = 30 * (rule.weights[index] * rule.nodes[index] ** degree).sum()
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_density(rules, stack):
    for name in ("tanh_cross_entropy", "outliers", "two_values", "identity", "zero", "tiny"):
        rule = rules[stack[0].index(name)]
        density = curvature.spectral_density(rule, points=4000)
        integral = np.trapezoid(density.values, density.grid)
        np.testing.assert_allclose(integral, 1, rtol=1e-3, err_msg=name)  # 4 widths: 6e-5 is out
        assert (density.values >= 0).all()
        assert (density.standard_errors >= 0).all()
    rule = rules[stack[0].index("two_values")]
    grid = jnp.linspace(-3, 4, 2001)
    density = curvature.spectral_density(rule, grid, width=0.2)
    exact = sum(np.exp(-0.5 * ((grid - t) / 0.2) ** 2) / (0.4 * np.sqrt(2 * np.pi))
                for t in (2.0, -1.0))  # fmt: skip
    away = np.abs(density.values - exact) / np.maximum(density.standard_errors, 1e-12)
    assert away.max() < 3
    np.testing.assert_array_equal(density.grid, grid)


def test_densities_of_lanes():
    def density(scale):
        operator = dense_operator(scale * matrix_with(np.linspace(0, 1, 20)))
        return curvature.spectral_density(curvature.quadrature(operator, KEY, 2, 5), points=50)

    found = quick_jit(jax.vmap(density))(jnp.asarray([1.0, 10.0]))
    assert found.values.shape == (2, 50)
    np.testing.assert_allclose(found.values[0], 10 * found.values[1], rtol=1e-9)


def log_determinant(matrix, damping):
    return run(curvature.log_determinant, matrix, KEY, damping, probes=2, steps=6)


def test_log_determinant():
    eigenvalues = np.array([0.0, 0.5, 3.0, 7.0, 7.0, 20.0])
    matrix = jnp.diag(jnp.asarray(eigenvalues))
    # Signs weigh all eigenvalues of a diagonal matrix alike.
    found = log_determinant(matrix, 0.5)
    np.testing.assert_allclose(found.value, np.log(eigenvalues + 0.5).sum(), rtol=1e-12)
    assert found.standard_error < 1e-12
    assert np.isnan(log_determinant(matrix, -1.0).value)
    assert np.isnan(log_determinant(matrix_with([-1.0, 2, 3, 4, 5, 6]), 0.5).value)
    for bad in (np.nan, np.inf):
        assert np.isnan(log_determinant(matrix.at[3, 3].set(bad), 1.0).value)


def test_a_function_is_not_asked_where_there_is_no_weight():
    rule = Quadrature(jnp.asarray([[1.0, -1.0]] * 2), jnp.asarray([[1.0, 0.0]] * 2), 4)
    assert rule.trace_of(jnp.log).value == 0
    assert np.isnan(Quadrature(-rule.nodes, rule.weights, 4).trace_of(jnp.log).value)


def test_parallel_probes_change_nothing():
    matrix = matrix_with(np.linspace(-1, 1, 20))
    one = run(curvature.quadrature, matrix, KEY, probes=4, steps=6)
    several = run(curvature.quadrature, matrix, KEY, probes=4, steps=6, parallel=3)
    np.testing.assert_allclose(one.nodes, several.nodes, atol=1e-12)
    np.testing.assert_allclose(one.weights, several.weights, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    matrix = matrix_with(np.linspace(1, 2, 20)).at[3, 3].set(bad)
    rule = run(curvature.quadrature, matrix, KEY, probes=4, steps=6)
    assert np.isnan(rule.trace_of(lambda t: t).value)
    assert np.isnan(curvature.spectral_density(rule).values).all()


def test_bad_arguments():
    operator = dense_operator(jnp.eye(3))
    for function in (curvature.quadrature, curvature.log_determinant):
        for arguments, message in [
            ({"probes": 1}, "probes=2 or more; got 1"),
            ({"probes": 2.5}, "probes=2 or more; got 2.5"),
            ({"steps": 0}, "steps must be"),
            ({"parallel": 0}, "parallel must be"),
        ]:
            with pytest.raises(ValueError, match=message):
                function(operator, KEY, **arguments)
    rule = curvature.quadrature(operator, KEY, 2, 2)
    for width in (0.0, -1.0):
        with pytest.raises(ValueError, match="width must be positive"):
            curvature.spectral_density(rule, width=width)
