"""The modified equation's terms by differentiation, against series known by other means."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.flows.backward_error import (
    modified_equation_terms,
    series_flow,
    taylor_coefficients,
)
from driftlab.flows.one_step import log_map_flow
from tests.flows.problems import toy

POINTS = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(5, 2)))
MATRIX = jnp.array([[0.3, -1.1], [0.7, 0.5]])


def descent(y):
    return -jax.grad(toy.loss)(y)


def derivative(function, y, *directions):
    for direction in directions:
        function = lambda y, f=function, v=direction: jax.jvp(f, (y,), (v,))[1]  # noqa: E731
    return function(y)


def test_euler_on_a_square():
    """y' = y^2: the modified equation of Euler's method that HLW (IX.1) print to the fifth term."""
    y = jnp.float64(0.7)
    terms = modified_equation_terms((jnp.square,), 5)
    found = jax.jit(lambda y: [term(y) for term in terms])(y)
    known = (1, -1, 3 / 2, -8 / 3, 31 / 6)
    np.testing.assert_allclose(found, [c * y ** (j + 2) for j, c in enumerate(known)], rtol=1e-13)


def test_runge_kutta_on_a_linear_field_is_a_series_of_the_logarithm():
    """Its growth is exp(z) but for z^5 / 120, so the terms are A y, 0, 0, 0, -A^5 y / 120."""

    def step(y, h):
        k1 = MATRIX @ y
        k2 = MATRIX @ (y + h / 2 * k1)
        k3 = MATRIX @ (y + h / 2 * k2)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + MATRIX @ (y + h * k3))

    y = POINTS[0]
    coefficients = taylor_coefficients(step, 5)
    found = jax.jit(lambda y: [d(y) for d in coefficients])(y)
    for j, d in enumerate(found, start=1):
        expected = jnp.linalg.matrix_power(MATRIX, j) @ y / math.factorial(j) if j < 5 else 0 * y
        np.testing.assert_allclose(d, expected, rtol=1e-14, atol=1e-15)
    # Its coefficients are matrices: the recurrence on them is a small program.
    linear = [lambda y, j=j: jnp.linalg.matrix_power(MATRIX, j) @ y / math.factorial(j)
              for j in range(1, 5)]  # fmt: skip
    terms = modified_equation_terms(linear, 5)
    found = jax.jit(lambda y: [term(y) for term in terms])(y)
    zero = jnp.zeros(2)
    expected = [MATRIX @ y, zero, zero, zero, -jnp.linalg.matrix_power(MATRIX, 5) @ y / 120]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_the_midpoint_rule_keeps_its_order_and_has_the_known_third_term():
    """f_2 = 0 and f_3 = d_3 - (f''(f,f) + f'f'f) / 6 with d_3 = f''(f,f) / 8."""

    def step(y, h):
        return y + h * descent(y + h / 2 * descent(y))

    terms = modified_equation_terms(taylor_coefficients(step, 3), 3)
    first, second, third = jax.jit(jax.vmap(lambda y: tuple(term(y) for term in terms)))(POINTS)

    def known(y):
        f = descent(y)
        bent, twice = (
            derivative(descent, y, f, f),
            derivative(descent, y, derivative(descent, y, f)),
        )
        return -bent / 24 - twice / 6

    expected = jax.jit(jax.vmap(known))(POINTS)
    np.testing.assert_allclose(first, jax.vmap(descent)(POINTS), rtol=1e-14)
    np.testing.assert_allclose(second, 0, atol=1e-12 * float(jnp.abs(third).max()))
    np.testing.assert_allclose(third, expected, rtol=1e-11, atol=1e-11)


def test_the_terms_are_the_derivatives_of_the_logarithm_of_the_map():
    """log_map_flow is a function of h whose first terms are those of the modified equation."""
    order = 4
    terms = modified_equation_terms((descent,), order)
    found = jax.jit(jax.vmap(lambda y: tuple(term(y) for term in terms)))(POINTS)

    def logarithm(y, h):
        # Euler's steps as increments of f alone: the factor h of each cancels that of the time.
        weights = [25 / 12, -23 / 12, 13 / 12, -1 / 4]
        total = jnp.zeros_like(y)
        for weight in weights:
            f = descent(y)
            total, y = total + weight * f, y + h * f
        return total

    np.testing.assert_allclose(
        logarithm(POINTS[0], 0.01),
        log_map_flow(lambda y: y + 0.01 * descent(y), order, 0.01)(0.0, POINTS[0], None),
        rtol=1e-11,
    )

    def derivatives(y):
        along, values = (lambda h: logarithm(y, h)), []
        for j in range(order):
            values.append(along(jnp.float64(0.0)) / math.factorial(j))
            along = lambda h, f=along: jax.jvp(f, (h,), (jnp.ones_like(h),))[1]  # noqa: E731
        return tuple(values)

    expected = jax.jit(jax.vmap(derivatives))(POINTS)
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_flow_adds_powers_in_the_types_of_the_state():
    y = {"a": jnp.array([1.0, 2.0], jnp.float32), "b": jnp.float32(3.0)}
    terms = [lambda y, c=c: jax.tree.map(lambda leaf: c * leaf, y) for c in (1.0, 10.0, 100.0)]
    lanes = jax.vmap(lambda h: series_flow(terms, h)(0.0, y, None))(jnp.array([0.1, 0.2]))
    chex.assert_trees_all_equal_dtypes(lanes, y)
    np.testing.assert_allclose(lanes["b"], [3 * 3.0, 3 * 7.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: taylor_coefficients(lambda y, h: y, 0), ValueError, "order=0 must be 1 or more"),
        (lambda: modified_equation_terms((descent,), 0), ValueError, "nested derivatives"),
        (lambda: modified_equation_terms((descent,), 2.0), TypeError, "order=2.0 must be a Python"),
        (lambda: modified_equation_terms((), 2), ValueError, "coefficients are empty"),
        (lambda: series_flow((), 0.1), ValueError, "terms are empty"),
        (lambda: series_flow((descent,), -0.1), ValueError, "learning_rate=-0.1 must be positive"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
