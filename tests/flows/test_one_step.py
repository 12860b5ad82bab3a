"""The logarithm of a map: its order on many maps, its types, and what it refuses."""

import math

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.flows import fitted_order, observed_orders, solve
from driftlab.flows.one_step import log_map_flow, step_sequence
from tests.flows.problems import toy

START = toy.initial_params
GRADIENT = jax.grad(toy.loss)
CENTERS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)) / 2)


def gradient_descent(y, h):
    return y - h * GRADIENT(y)


def runge_kutta_4(y, h):
    k1 = -GRADIENT(y)
    k2 = -GRADIENT(y + h / 2 * k1)
    k3 = -GRADIENT(y + h / 2 * k2)
    k4 = -GRADIENT(y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def batch_step(y, center, h):
    return y - h * jax.grad(lambda p: toy.loss(p) + jnp.sin(p @ center) * (p[0] - center[1]))(y)


def minibatches(y, h):
    return step_sequence(lambda y, center: batch_step(y, center, h), CENTERS)(y)


def exponentiated_gradient(y, h):
    """Mirror descent of the entropy: it moves log(y), and y here is exp of the toy's place."""
    return y * jnp.exp(-h * GRADIENT(jnp.log(y)) / y)


def first_loss(phi, theta):
    return toy.loss(jnp.stack([phi, theta])) + phi * theta


def second_loss(phi, theta):
    return jnp.cos(phi) * theta + theta**4 / 8 + theta**2


def simultaneous(y, h):
    phi, theta = y
    return (
        phi - h * jax.grad(first_loss)(phi, theta),
        theta - 2 * h * jax.grad(second_loss, argnums=1)(phi, theta),
    )


def alternating(y, h):
    phi, theta = y
    phi = phi - h * jax.grad(first_loss)(phi, theta)
    return phi, theta - 2 * h * jax.grad(second_loss, argnums=1)(phi, theta)


# Map, start, steps of gradient descent in one application, and the largest learning rate of a
# decade: where the map moves further (four batches, a Runge-Kutta step whose lower terms vanish),
# the leading term of the error takes over at smaller ones.
MAPS = {
    "gradient_descent": (gradient_descent, START, 1, 0.01),
    "runge_kutta_4": (runge_kutta_4, START, 1, 0.004),
    "minibatches": (minibatches, START, 4, 0.0006),
    "exponentiated_gradient": (exponentiated_gradient, jnp.exp(START), 1, 0.01),
    "simultaneous_players": (simultaneous, (START[0], START[1]), 1, 0.01),
    "alternating_players": (alternating, (START[0], START[1]), 1, 0.01),
}


def local_errors(step, start, order, applied, rates):
    """The distance of one application from the flow over its time, for every learning rate."""

    def error(h):
        field = log_map_flow(lambda y: step(y, h), order, applied * h)
        flowed = solve(field, start, applied * h, solver=diffrax.Dopri8(), steps=2).y
        off = jax.tree.map(jnp.subtract, flowed, step(start, h))
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(off)))

    return np.asarray(jax.jit(lambda many: jax.lax.map(error, many))(rates))


@pytest.mark.parametrize(
    ("name", "order"), [("gradient_descent", 1), *((name, p) for name in MAPS for p in (2, 4))]
)
def test_the_local_error_has_one_order_more_than_terms(name, order):
    step, start, applied, largest = MAPS[name]
    rates = largest * jnp.array([1.0, 0.5, 0.25, 0.1])
    errors = local_errors(step, start, order, applied, rates)
    assert fitted_order(rates, errors) == pytest.approx(order + 1, abs=0.1)


def test_of_runge_kutta_it_is_gradient_flow_to_the_fourth_order():
    """The modified equation of an order-4 method starts with the flow itself, then h^4."""
    rates, off = jnp.array([0.01, 0.005, 0.0025, 0.001]), []
    for h in rates:
        field = log_map_flow(lambda y, h=h: runge_kutta_4(y, h), 4, h)
        off.append(float(jnp.linalg.norm(field(0.0, START, None) + GRADIENT(START))))
    assert observed_orders(rates, off)[-1] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("order", [2, 5, 7])
def test_many_terms_are_exact_sums_and_compile_as_a_loop(order):
    """y -> y / (1 + h y) has the iterates 1 / (1 + k h) from 1, and known differences."""

    def field(h):
        return log_map_flow(lambda y: y / (1 + h * y), order, h)(0.0, jnp.ones(()), None)

    rates = jnp.array([0.1, 0.05])
    assert str(jax.make_jaxpr(field)(0.1)).count("scan") == (order > 4)
    expected = [
        -sum(
            math.factorial(k - 1)
            * float(h) ** (k - 1)
            / math.prod(1 + j * h for j in range(1, k + 1))
            for k in range(1, order + 1)
        )
        for h in rates
    ]
    np.testing.assert_allclose(jax.vmap(field)(rates), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
def test_it_is_the_sum_of_forward_differences(order):
    h, y, iterates = 0.01, START, [START]
    for _ in range(order):
        iterates.append(gradient_descent(iterates[-1], h))
    expected, differences = jnp.zeros(2), jnp.stack(iterates)
    for k in range(1, order + 1):
        differences = differences[1:] - differences[:-1]
        expected += (-1) ** (k + 1) / k * differences[0] / h
    for increments in (False, True):
        step = (lambda y: -h * GRADIENT(y)) if increments else (lambda y: gradient_descent(y, h))
        found = log_map_flow(step, order, h, increments=increments)(0.0, y, None)
        # The 2^order / order times amplified rounding of y, over h.
        np.testing.assert_allclose(found, expected, rtol=1e-12 * 2**order)


def test_increments_keep_the_digits_that_states_lose():
    y, h = START.astype(jnp.float32), 1e-5
    exact = log_map_flow(lambda y: -h * GRADIENT(y), 4, h, increments=True)(0.0, START, None)
    off = {}
    for increments in (False, True):
        step = (lambda y: -h * GRADIENT(y)) if increments else (lambda y: gradient_descent(y, h))
        field = log_map_flow(step, 4, h, increments=increments)
        off[increments] = float(jnp.linalg.norm(field(0.0, y, None) - exact))
    assert off[True] < 1e-5 < 1e-3 < off[False]


def test_args_reach_the_step():
    def step(y, batch):
        return batch_step(y, batch, 0.01)

    field = log_map_flow(step, 3, 0.01)
    alone = log_map_flow(lambda y: step(y, CENTERS[2]), 3, 0.01)
    chex.assert_trees_all_equal(field(0.0, START, CENTERS[2]), alone(1.0, START, None))


def test_a_sequence_is_its_steps_one_after_another():
    y = START
    for center in CENTERS:
        y = batch_step(y, center, 0.01)
    np.testing.assert_allclose(minibatches(START, 0.01), y, rtol=1e-14)


@pytest.mark.parametrize("order", [2, 6])
def test_types_and_lanes(order):
    """Traced float64 step times neither promote a float32 state nor change what a lane gets."""
    y = {"a": jnp.ones(3, jnp.float32), "b": jnp.full((2,), 0.5, jnp.bfloat16)}

    def field(h):
        step = lambda y: jax.tree.map(lambda x: x - h * x**2, y)  # noqa: E731
        return log_map_flow(step, order, h)(0.0, y, None)

    rates = jnp.array([0.01, 0.1])
    lanes = jax.jit(jax.vmap(field))(rates)
    chex.assert_trees_all_equal_dtypes(lanes, y)
    for index, h in enumerate((0.01, 0.1)):
        one = field(h)
        chex.assert_trees_all_equal_dtypes(one, y)
        np.testing.assert_allclose(lanes["a"][index], one["a"], rtol=1e-4)


def test_complex_states_pass():
    """z -> z exp(i h), a rotation: the field is i z up to h^order / (order + 1)."""
    h = 0.01
    field = log_map_flow(lambda z: z * jnp.exp(1j * h), 4, h)
    np.testing.assert_allclose(field(0.0, jnp.array([1.0 + 2.0j]), None), [1j - 2], atol=1e-8)


def test_nan_stays_nan():
    field = jax.jit(log_map_flow(lambda y: gradient_descent(y, 0.1), 6, 0.1))
    assert jnp.isnan(field(0.0, jnp.array([jnp.nan, 1.0]), None)).all()


@pytest.mark.parametrize(
    ("order", "step_time", "error", "message"),
    [
        (0, 1.0, ValueError, "order=0 must be 1 or more.*P applications of the step"),
        (-1, 1.0, ValueError, "order=-1 must be 1 or more"),
        (1.5, 1.0, TypeError, "order=1.5 must be a Python integer"),
        (True, 1.0, TypeError, "order=True must be a Python integer"),
        (2, 0.0, ValueError, "step_time=0.0 must be positive"),
        (2, -0.1, ValueError, "step_time=-0.1 must be positive"),
        (2, jnp.ones(3), ValueError, r"step_time must be a scalar; got shape \(3,\)"),
    ],
)
def test_bad_arguments_are_refused(order, step_time, error, message):
    with pytest.raises(error, match=message):
        log_map_flow(lambda y: y, order, step_time)


def test_states_that_do_not_fit_are_refused():
    field = log_map_flow(lambda y: y, 2)
    with pytest.raises(TypeError, match=r"y\['count'\] has dtype int64.*Keep integers"):
        field(0.0, {"count": jnp.zeros((), int), "x": jnp.zeros(2)}, None)
    with pytest.raises(TypeError, match="holds no array"):
        field(0.0, (), None)
    with pytest.raises(ValueError, match="structure of y"):
        log_map_flow(lambda y: (y, y), 2)(0.0, jnp.zeros(2), None)
    with pytest.raises(ValueError, match=r"float64\(2,\) it returned float64\(3,\)"):
        log_map_flow(lambda y: jnp.zeros(3), 2)(0.0, jnp.zeros(2), None)
    with pytest.raises(ValueError, match="it returned complex128"):
        log_map_flow(lambda y: y * 1j, 2)(0.0, jnp.zeros(2), None)
    with pytest.raises(ValueError, match="order=40 amplifies the rounding errors of float32"):
        log_map_flow(lambda y: y, 40)(0.0, jnp.zeros(2, jnp.float32), None)
