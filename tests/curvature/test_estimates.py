import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import curvature
from tests.curvature.cases import CASES, dense_operator, draw, matrix_with, quick_jit, run

METHODS = ("hutchinson", "hutch++", "xtrace")
KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def estimated(stack):
    """Every estimate of every matrix, with one key each."""

    def all_of(matrix, key):
        operator = dense_operator(matrix)
        products = {"hutchinson": 60, "hutch++": 60, "xtrace": 24}
        found = {name: curvature.trace(operator, key, products[name], name) for name in METHODS}
        return found | {"frobenius": curvature.frobenius_norm(operator, key, 60)}

    keys = jax.random.split(KEY, len(stack[0]))
    return jax.tree.map(np.asarray, quick_jit(jax.vmap(all_of))(stack[1], keys))


@pytest.mark.parametrize("name", [*METHODS, "frobenius"])
def test_within_three_standard_errors_on_every_case(name, stack, estimated):
    names, matrices = stack
    found = estimated[name]
    failures = []
    limit = 3 * 1.7 if name == "xtrace" else 3  # see its docstring
    for index, matrix in enumerate(np.asarray(matrices)):
        scale = np.linalg.norm(matrix)
        exact = scale if name == "frobenius" else np.trace(matrix)
        error = abs(found.value[index] - exact)
        if error > limit * found.standard_error[index] + 1e-12 * scale:
            failures.append((names[index], error, found.standard_error[index]))
    assert not failures


@pytest.mark.parametrize("name", [*METHODS, "frobenius"])
@pytest.mark.parametrize("spectrum", ["flat", "decaying"])
def test_standard_errors_are_honest(name, spectrum):
    """Over many keys, errors in units of the standard error have a deviation of about 1."""
    values = np.linspace(-1, 2, 60) if spectrum == "flat" else 0.9 ** np.arange(60)
    matrix = matrix_with(values)

    def estimate(key):
        operator = dense_operator(matrix)
        if name == "frobenius":
            return curvature.frobenius_norm(operator, key, 60)
        return curvature.trace(operator, key, 30 if name == "xtrace" else 60, name)

    found = quick_jit(jax.vmap(estimate))(jax.random.split(KEY, 100))
    exact = np.linalg.norm(values) if name == "frobenius" else values.sum()
    errors = np.asarray(found.value - exact)
    # A deviation of 100 numbers is known to 7%; with 20 probes the ratio has 1.06, by Student's t.
    low, high = (1.0, 2.0) if name == "xtrace" else (0.85, 1.3)  # see its docstring
    assert low < np.std(errors / np.asarray(found.standard_error)) < high
    assert abs(errors.mean()) < 4 * errors.std() / 10  # no bias


def test_methods_rank_as_they_should():
    """Where the spectrum decays, Hutch++ and XTrace spend the same products better."""
    matrix = matrix_with(0.7 ** np.arange(60))
    keys = jax.random.split(KEY, 20)
    errors = {}
    for name in METHODS:
        trace = lambda key, n=name: curvature.trace(dense_operator(matrix), key, 30, n).value  # noqa: E731
        found = quick_jit(jax.vmap(trace))(keys)
        errors[name] = np.sqrt(np.mean((np.asarray(found) - np.trace(matrix)) ** 2))
    assert errors["hutch++"] < 0.1 * errors["hutchinson"]
    assert errors["xtrace"] < errors["hutch++"]


def trace(matrix, products, method="hutchinson", **settings):
    return run(curvature.trace, matrix, KEY, products=products, method=method, **settings)


def frobenius_norm(matrix, products, **settings):
    return run(curvature.frobenius_norm, matrix, KEY, products=products, **settings)


def test_exact_where_theory_says_so():
    found = trace(jnp.diag(jnp.arange(34.0)), 4)
    np.testing.assert_allclose(found.value, 33 * 17, rtol=1e-14)  # signs square to one
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-14)
    low_rank = matrix_with([5.0, 3.0, -2.0, 1.0] + [0.0] * 30)
    for name, products in (("hutch++", 14), ("xtrace", 12)):
        found = trace(low_rank, products, name)
        np.testing.assert_allclose(found.value, 7, rtol=1e-11)
        np.testing.assert_allclose(found.standard_error, 0, atol=1e-11)
    norm = frobenius_norm(low_rank, 14)
    np.testing.assert_allclose(norm.value, np.sqrt(39), rtol=1e-11)
    # As many products as there are dimensions know everything.
    small = matrix_with([5.0, 3.0, -2.0])
    for name in ("hutch++", "xtrace"):
        np.testing.assert_allclose(trace(small, 30, name).value, 6, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_and_nan(value):
    """The same programs as above, so a shape of 34."""
    matrix = jnp.zeros((34, 34)).at[2, 2].set(value)
    for found in [
        *[
            trace(matrix, m, name)
            for name, m in (("hutchinson", 4), ("hutch++", 14), ("xtrace", 12))
        ],
        frobenius_norm(matrix, 14),
    ]:
        np.testing.assert_array_equal(found.value, value)
        np.testing.assert_array_equal(found.standard_error, value)


@pytest.mark.parametrize("name", METHODS)
def test_products_are_counted(name):
    counts = []
    matrix = matrix_with(np.linspace(0, 1, 40))

    def product(vector):
        jax.debug.callback(lambda: counts.append(1))
        return matrix @ vector

    operator = curvature.symmetric_operator(product, matrix[0], probes=0)
    found = curvature.trace(operator, KEY, 21, name)
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(counts) == found.products
    assert 20 <= len(counts) <= 21


def test_parallel_probes_change_nothing():
    matrix = matrix_with(np.linspace(-1, 3, 34))
    for function in (functools.partial(trace, method="hutch++"), frobenius_norm):
        one, several = function(matrix, 14), function(matrix, 14, parallel=4)
        np.testing.assert_allclose(one.value, several.value, rtol=1e-12)
        np.testing.assert_allclose(one.standard_error, several.standard_error, rtol=1e-9)


def test_a_losses_own_operator(matrices_of):
    case = CASES["array"]

    @quick_jit
    def estimate(params, data):
        operator = curvature.gauss_newton(case.model, case.output_loss, params, data, 4)
        return curvature.trace(operator, KEY, 84, "hutch++")  # 28 directions: all there are

    exact = np.trace(matrices_of("array").dense["gauss_newton"])
    np.testing.assert_allclose(estimate(case.params, case.data).value, exact, rtol=1e-10)


def test_float32(float32):
    values = jnp.linspace(-1, 3, 50)
    for name in METHODS:
        found = trace(values, 150, name)  # enough for all to be exact
        assert found.value.dtype == jnp.float32
        np.testing.assert_allclose(found.value, 50, rtol=1e-5)


def test_scale_does_not_matter(float32):
    """A loss near its end has a Hessian of 1e-10, which is neither zero nor of low rank."""
    values = jnp.linspace(-1, 3, 50)
    matrix = jnp.outer(values, values) + jnp.diag(values)
    for name in METHODS:
        found, scaled = trace(matrix, 12, name), trace(1e-10 * matrix, 12, name)
        np.testing.assert_allclose(scaled.value, 1e-10 * found.value, rtol=1e-4)
        np.testing.assert_allclose(scaled.standard_error, 1e-10 * found.standard_error, rtol=1e-3)


def test_bad_arguments():
    operator = dense_operator(draw(0, 1, 1))
    for arguments, message in [
        ((30, "exact"), "method must be one of .*got 'exact'"),
        ((1,), "hutchinson needs products=2 or more; got 1"),
        ((5, "hutch[+][+]"), r"hutch\+\+ needs products=6 or more; got 5"),
        ((3, "xtrace"), "xtrace needs products=4 or more; got 3"),
        ((0,), "products must be"),
        ((2.5,), "products must be"),
        ((4, "hutchinson", 0), "parallel must be"),
    ]:
        arguments = tuple(a.replace("[+]", "+") if isinstance(a, str) else a for a in arguments)
        with pytest.raises(ValueError, match=message):
            curvature.trace(operator, KEY, *arguments)
    with pytest.raises(ValueError, match="frobenius_norm needs products=6 or more; got 5"):
        curvature.frobenius_norm(operator, KEY, 5)
