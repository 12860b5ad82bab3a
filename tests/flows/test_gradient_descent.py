"""Gradient descent's flows: the reference table, the closed forms, and where a loss exists."""

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Objective, regularized, shuffled_epochs
from driftlab.flows import fitted_order, observed_orders, solve
from driftlab.flows.backward_error import modified_equation_terms
from driftlab.flows.gradient_descent import (
    gradient_descent_flow,
    gradient_descent_terms,
    modified_loss,
)
from tests.flows.problems import digits_network, toy

START = toy.initial_params
POINTS = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(8, 2)))
RATES = jnp.array([0.1, 0.025, 0.0125, 0.00625, 0.003125])
# rosca.md, 1.4: the distance of one step from the flow, at h = 0.1, 0.025 and 0.00625; the last
# slope; by the log map at h = 0.00625.
TABLE = {
    1: ("3.104e-02", "2.297e-03", "1.506e-04", 1.98, "1.506e-04"),
    2: ("1.175e-02", "2.455e-04", "4.100e-06", 2.97, "5.095e-06"),
    3: ("5.363e-03", "3.139e-05", "1.337e-07", 3.96, "2.754e-07"),
    4: ("2.678e-03", "4.376e-06", "4.765e-09", 4.95, "2.050e-08"),
    5: ("1.404e-03", "6.378e-07", "1.779e-10", 5.94, "1.927e-09"),
}


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def local_errors(loss, start, order, route, rates, steps):
    def error(h):
        field = gradient_descent_flow(loss, h, order, route=route)
        flowed = solve(field, start, h, solver=diffrax.Dopri8(), steps=steps).y
        slope = jax.grad(loss)(start)
        return norm(jax.tree.map(lambda f, y, g: f - (y - h * g), flowed, start, slope))

    return np.asarray(jax.jit(lambda many: jax.lax.map(error, many))(rates))


@pytest.mark.parametrize("order", TABLE)
def test_closed_forms_give_the_reference_table(order):
    errors = local_errors(toy.loss, START, order, "closed_form", RATES, 8)
    *known, slope, _ = TABLE[order]
    assert [f"{error:.3e}" for error in errors[[0, 1, 3]]] == known
    assert observed_orders(RATES, errors)[-2] == pytest.approx(slope, abs=0.006)
    assert observed_orders(RATES, errors)[-1] == pytest.approx(order + 1, abs=0.05)


@pytest.mark.parametrize("order", TABLE)
def test_the_log_map_gives_the_reference_table(order):
    # At order 5 the slope comes within 0.1 of 6 just above rounding only.
    rates = RATES if order < 5 else jnp.array([0.025, 0.0125, 0.005, 0.00625, 0.002])
    errors = local_errors(toy.loss, START, order, "log_map", rates, 8)
    assert f"{errors[3]:.3e}" == TABLE[order][-1]
    assert observed_orders(rates, errors)[-1] == pytest.approx(order + 1, abs=0.1)


def test_closed_forms_are_the_recurrence_s():
    """At eight points of two components, more than the nine coefficients of f_5 are pinned.

    Two exponentials: every derivative is there, and the program of the recurrence stays small.
    """
    matrix = jnp.array([[1.0, -0.4], [0.3, -1.2]])

    def loss(y):
        return jnp.exp(matrix @ y).sum()

    terms = modified_equation_terms((lambda y: -jnp.exp(matrix @ y) @ matrix,), 5)
    exact = jax.jit(jax.vmap(lambda y: tuple(term(y) for term in terms)))(POINTS)
    closed = jax.jit(jax.vmap(gradient_descent_terms(loss, 5)))(POINTS)
    for one, other in zip(exact, closed, strict=True):
        assert float(norm(one - other) / norm(one)) < 1e-12


def test_only_two_terms_are_a_gradient():
    """rosca.md, 1.1: the Jacobian less its transpose, and its largest entry."""
    jacobians = jax.jit(jax.jacfwd(gradient_descent_terms(toy.loss, 4)))(START)
    curl = [float(abs(jacobian[0, 1] - jacobian[1, 0])) for jacobian in jacobians]
    assert curl[0] == 0
    assert curl[1] < 1e-14
    assert curl[2] == pytest.approx(3.4, abs=0.05)
    assert curl[3] == pytest.approx(47, abs=0.5)
    sizes = [float(jnp.abs(jacobian).max()) for jacobian in jacobians]
    assert sizes[2:] == [pytest.approx(130, rel=0.02), pytest.approx(867, rel=0.02)]
    # 2 to 1 instead of the 4 to 1 of H^2 g and T[g,g] would be a gradient: of |H g|^2.
    gradient, hessian = jax.grad(toy.loss), jax.hessian(toy.loss)

    def other(y):
        g = gradient(y)
        bent = jax.jvp(lambda y: hessian(y) @ g, (y,), (g,))[1]
        return 2 * hessian(y) @ hessian(y) @ g + bent

    jacobian = jax.jit(jax.jacfwd(other))(START)
    np.testing.assert_allclose(jacobian, jacobian.T, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_a_modified_loss_has_the_flow_as_its_gradient(order):
    h = 0.1
    slope = jax.grad(modified_loss(toy.loss, h, order))(START)
    field = gradient_descent_flow(toy.loss, h, order, route="closed_form")(0.0, START, None)
    np.testing.assert_allclose(-slope, field, rtol=1e-13)


@pytest.mark.parametrize("route", ["log_map", "closed_form", "recurrence"])
def test_routes_on_a_quadratic_are_one_series(route):
    """-(1 + z / 2 + z^2 / 3) g in each eigendirection, z = h lambda."""
    eigenvalues, y, h = jnp.array([0.5, 2.0, -1.0]), jnp.array([1.0, -2.0, 3.0]), 0.2
    field = gradient_descent_flow(lambda y: jnp.sum(eigenvalues * y**2) / 2, h, 3, route=route)
    z = h * eigenvalues
    np.testing.assert_allclose(
        jax.jit(field)(0.0, y, None), -(1 + z / 2 + z**2 / 3) * eigenvalues * y, rtol=1e-13
    )


@pytest.mark.parametrize(("route", "order"), [("closed_form", 2), ("closed_form", 3),
                                              ("log_map", 4)])  # fmt: skip
def test_orders_on_a_digits_network(route, order):
    loss, params = digits_network()
    # A decade below h * sharpness = 0.16.
    rates = 0.5 * jnp.array([1.0, 0.5, 0.25, 0.1])
    errors = local_errors(loss, params, order, route, rates, 1)
    assert fitted_order(rates, errors) == pytest.approx(order + 1, abs=0.2)


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["w"]) - targets) ** 2)


def weight_norm(params, batch):
    return jnp.sum(params["w"] ** 2)


RANDOM = np.random.default_rng(3)
PARAMS = {"w": jnp.asarray(RANDOM.normal(size=(3, 2)))}
DATA = (RANDOM.normal(size=(10, 3)), RANDOM.normal(size=(10, 2)))
OBJECTIVE = regularized(Objective(squared_error, DATA, shuffled_epochs(4)), weight_norm, 0.1)


def whole(params):
    return squared_error(params, DATA) + 0.1 * weight_norm(params, None)


@pytest.mark.parametrize(("route", "batch_size"), [("log_map", 3), ("closed_form", None)])
def test_of_an_objective_it_is_that_of_all_it_minimises(route, batch_size):
    flow = gradient_descent_flow(OBJECTIVE, 0.1, 3, route=route, batch_size=batch_size)
    expected = gradient_descent_flow(whole, 0.1, 3, route=route)(0.0, PARAMS, None)
    chex.assert_trees_all_close(jax.jit(flow)(0.0, PARAMS, None), expected, rtol=1e-12, atol=1e-13)


def test_the_modified_loss_of_an_objective():
    expected = whole(PARAMS) + 0.1 / 4 * norm(jax.grad(whole)(PARAMS)) ** 2
    np.testing.assert_allclose(modified_loss(OBJECTIVE, 0.1)(PARAMS), expected, rtol=1e-13)


@pytest.mark.parametrize("route", ["log_map", "closed_form", "recurrence"])
def test_lanes_of_learning_rates_keep_float32(route):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)

    def field(h):
        return gradient_descent_flow(OBJECTIVE_32, h, 2, route=route)(0.0, params, None)

    lanes = jax.jit(jax.vmap(field))(jnp.array([0.1, 0.2]))
    chex.assert_trees_all_equal_dtypes(lanes, params)
    one = jax.tree.map(lambda leaf: leaf[1], lanes)
    chex.assert_trees_all_close(one, field(0.2), rtol=1e-5, atol=1e-6)
    loss = modified_loss(OBJECTIVE_32, jnp.float64(0.1))(params)
    assert loss.dtype == jnp.float32


OBJECTIVE_32 = Objective(squared_error, jax.tree.map(lambda leaf: leaf.astype(np.float32), DATA))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradient_descent_flow(toy.loss, 0.1, 0), ValueError, "order=0 must be 1 or more"),
        (lambda: gradient_descent_flow(toy.loss, 0.1, 2.5), TypeError, "must be a Python integer"),
        (lambda: gradient_descent_flow(toy.loss, -0.1), ValueError, "learning_rate=-0.1 must be"),
        (lambda: gradient_descent_flow(toy.loss, jnp.ones(2)), ValueError, "must be a scalar"),
        (lambda: gradient_descent_flow(toy.loss, 0.1, 6, route="closed_form"), ValueError,
         "order=6: the closed forms end at 5.*for 6 gradients"),
        (lambda: gradient_descent_flow(toy.loss, 0.1, route="logmap"), ValueError,
         "no route='logmap'.*did you mean log_map"),
        (lambda: modified_loss(toy.loss, 0.1, 3), ValueError,
         "order=3: there is no modified loss beyond order 2.*not the gradient of any function"),
        (lambda: modified_loss(toy.loss, 0.0), ValueError, "learning_rate=0.0 must be positive"),
        (lambda: modified_loss(3.0, 0.1), TypeError, "loss must be a function"),
        (lambda: gradient_descent_flow(OBJECTIVE, 0.1, batch_size=0), ValueError,
         "positive integer"),
        (lambda: gradient_descent_flow(toy.loss, 0.1)(0.0, jnp.arange(2), None), TypeError,
         "dtype int64"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
