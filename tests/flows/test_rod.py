"""Rod flow: the two-step map, its fixed points, its rates, and where nothing oscillates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftlab
from driftlab.data import problems
from driftlab.flows import observed_orders, solve
from driftlab.flows.gradient import gradient_flow
from driftlab.flows.rod import Rod, rod_flow
from tests.flows.problems import toy


def test_a_step_of_euler_is_gradient_descent():
    rate = 0.3  # h lambda_max = 1.8
    flow = rod_flow(toy.loss, rate, floor=0.0)
    field = jax.jit(flow.field)
    y, x = flow.init(toy.initial_params), toy.initial_params
    gradient = jax.jit(jax.grad(toy.loss))
    for n in range(12):
        np.testing.assert_allclose(y.centre + (-1) ** n * y.half, x, rtol=1e-12)
        slope = field(0.0, y, None)
        y = jax.tree.map(lambda value, v: value + rate * v, y, slope)
        x = x - rate * gradient(x)


@pytest.mark.parametrize("terms", [1, 2])
def test_the_orbit_of_a_quartic_is_a_fixed_point(terms):
    # Gradient descent's orbit of period two: x^2 = (2 - h a) / (h b).
    rate, a, b = 0.25, 9.0, -1.0
    problem = problems.quartic([a], [b])
    orbit = np.sqrt((2 - rate * a) / (rate * b))
    flow = rod_flow(problem.loss, rate, terms=terms)
    slope = flow.field(0.0, Rod(jnp.zeros(1), jnp.array([orbit])), None)
    np.testing.assert_allclose(jax.tree.leaves(slope), np.zeros((2, 1)), atol=1e-13)
    # And it is where a small oscillation ends: rod flow stabilises itself without the centre.
    start = Rod(jnp.array([1e-3]), jnp.array([1e-2]))
    end = jax.jit(lambda y: solve(flow.field, y, 60.0))(start).y
    np.testing.assert_allclose(end.half, [orbit], rtol=1e-5)
    np.testing.assert_allclose(end.centre, [0.0], atol=1e-6)


@pytest.mark.parametrize(("terms", "order"), [(1, 2), (2, 3)])
def test_growth_near_the_edge(terms, order):
    """The rate of delta against log(h lambda - 1), at h lambda = 2 + e."""
    excess, rate = np.array([0.08, 0.04, 0.02, 0.01]), 0.5
    errors = []
    for e in excess:
        problem = problems.quadratic([(2 + e) / rate])
        slope = rod_flow(problem.loss, rate, terms=terms).field(
            0.0, Rod(jnp.zeros(1), jnp.ones(1)), None
        )
        errors.append(abs(float(slope.half[0]) - np.log1p(e) / rate))
    np.testing.assert_allclose(observed_orders(excess, errors), order, atol=0.1)


@pytest.mark.parametrize("terms", [1, 2])
def test_order_where_nothing_oscillates(terms):
    rates = np.array([0.02, 0.01, 0.005, 0.0025])
    gradient = jax.grad(toy.loss)

    @jax.jit
    def error(rate, steps):
        flow = rod_flow(toy.loss, rate, terms=terms)
        y = solve(flow.field, flow.init(toy.initial_params), 1.0, rtol=1e-10).y
        x = jax.lax.fori_loop(0, steps, lambda _, x: x - rate * gradient(x), toy.initial_params)
        return jnp.linalg.norm(flow.params(y) - x)

    errors = [error(rate, round(1 / rate)) for rate in rates]
    np.testing.assert_allclose(observed_orders(rates, errors)[-2:], terms, atol=0.15)


def test_without_oscillation_the_centre_is_on_gradient_flow():
    y = Rod(toy.initial_params, jnp.zeros(2))
    slope = rod_flow(toy.loss, 0.1).field(0.0, y, None)
    expected = gradient_flow(toy.loss)(0.0, toy.initial_params, None)
    np.testing.assert_allclose(slope.centre, expected, rtol=1e-14)
    np.testing.assert_array_equal(slope.half, np.zeros(2))


def test_the_floor_holds_a_shrinking_oscillation():
    problem = problems.quadratic([2.0, 30.0])
    flow = rod_flow(problem.loss, 0.1, floor=1e-3)
    shrinking = flow.field(0.0, Rod(jnp.ones(2), jnp.array([1e-4, 0.0])), None)
    np.testing.assert_allclose(shrinking.half, np.zeros(2), atol=1e-18)
    growing = flow.field(0.0, Rod(jnp.ones(2), jnp.array([0.0, 1e-4])), None)
    np.testing.assert_allclose(growing.half, [0, 1e-3], rtol=1e-12)
    longer = flow.field(0.0, Rod(jnp.ones(2), jnp.array([1e-2, 0.0])), None)
    assert longer.half[0] < 0


def test_an_oscillation_at_rounding_is_seen(float32):
    """At |delta| = eps |c| the iterates c + delta are c in all entries but a few."""
    problem = problems.quadratic(np.linspace(1, 25, 200), initial=np.full(200, 0.3))
    rate, random = 0.1, np.random.default_rng(0)
    flow = rod_flow(problem.loss, rate)
    half = random.normal(size=200)
    half *= 1e-7 * np.sqrt(200) * 0.3 / np.linalg.norm(half)
    y = Rod(jnp.asarray(problem.initial_params, jnp.float32), jnp.asarray(half, jnp.float32))
    slope = jax.jit(flow.field)(0.0, y, None)
    expected = (np.linspace(1, 25, 200) - 2 / rate) * half
    # It is at the floor, which takes out what shrinks it along itself.
    along = half @ expected / (half @ half)
    expected = expected - min(along, 0) * half
    error = np.linalg.norm(slope.half - expected) / np.linalg.norm(expected)
    assert error < 0.02


def test_learning_rates_are_lanes_and_float32_stays(float32):
    problem = problems.perturbed_rosenbrock()
    objective = driftlab.Objective(problem.loss)

    def run(rate, params):
        flow = rod_flow(problem.loss, rate)
        dynamics = driftlab.flow(flow, rate, objective)
        state = dynamics.init(params, jax.random.key(0))
        return jax.lax.fori_loop(0, 3, lambda _, s: dynamics.step(s), state).params

    params = jnp.asarray(problem.initial_params, jnp.float32)
    rates = np.array([0.05, 0.1])
    lanes = jax.jit(jax.vmap(run, (0, None)))(rates, params)
    assert lanes.dtype == jnp.float32
    assert jnp.isfinite(lanes).all()
    assert abs(lanes[0] - lanes[1]).max() > 1e-2
    broken = run(jnp.asarray(0.1), params * jnp.nan)
    assert jnp.isnan(broken).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"learning_rate must be one positive.*-0.1"):
        rod_flow(toy.loss, -0.1)
    with pytest.raises(ValueError, match="not a schedule"):
        rod_flow(toy.loss, lambda step: 0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="terms=3"):
        rod_flow(toy.loss, 0.1, terms=3)
    with pytest.raises(ValueError, match="floor=-1"):
        rod_flow(toy.loss, 0.1, floor=-1)
    with pytest.raises(TypeError, match="int"):
        rod_flow(toy.loss, 0.1).init(jnp.arange(2))
