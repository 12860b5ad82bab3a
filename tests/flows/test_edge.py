"""Edge flow: exact on a quadratic, rod flow's limit of small amplitudes, self-stabilisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftlab
from driftlab.data import problems
from driftlab.flows import observed_orders, solve
from driftlab.flows.edge import Edge, edge_flow
from driftlab.flows.rod import Rod, rod_flow
from tests.flows.problems import toy


def test_a_quadratic_is_solved_exactly():
    rate, values = 0.1, np.array([20.5, 3.0])
    problem = problems.quadratic(values, initial=[0.0, 1.0])
    flow = edge_flow(problem.loss, rate)
    y0 = Edge(problem.initial_params, jnp.array([1.0, 0.0]), jnp.asarray(1e-3))
    y = jax.jit(lambda y: solve(flow.field, y, 2.0, rtol=1e-11))(y0).y
    np.testing.assert_allclose(y.centre, [0, np.exp(-6.0)], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(y.amplitude, 1e-3 * np.exp((20.5 - 2 / rate) * 2.0), rtol=1e-8)
    np.testing.assert_allclose(y.direction, [1, 0], atol=1e-12)


def test_the_direction_finds_the_top_eigenvector():
    problem = problems.quadratic([6.0, 2.0, -9.0], jax.random.key(0))
    flow = edge_flow(problem.loss, 0.1)
    direction = jnp.array([0.6, 0.0, 0.8])
    y = Edge(problem.minimizer, direction, jnp.asarray(1e-3))
    y = jax.jit(lambda y: solve(flow.field, y, 6.0, rtol=1e-11))(y).y
    top = jnp.linalg.eigh(jax.hessian(problem.loss)(problem.minimizer))[1][:, -1]
    np.testing.assert_allclose(abs(y.direction @ top), 1, atol=1e-8)
    np.testing.assert_allclose(jnp.linalg.norm(y.direction), 1, atol=1e-8)


def test_it_is_rod_flow_to_first_order_in_the_amplitude():
    direction = jnp.array([0.8, 0.6])
    amplitudes = np.array([0.1, 0.05, 0.025, 0.0125])
    errors = []
    for amplitude in amplitudes:
        edge = edge_flow(toy.loss, 0.3).field(
            0.0, Edge(toy.initial_params, direction, jnp.asarray(amplitude)), None
        )
        rod = rod_flow(toy.loss, 0.3).field(
            0.0, Rod(toy.initial_params, amplitude * direction), None
        )
        np.testing.assert_allclose(edge.centre, rod.centre, rtol=1e-13)
        half = edge.amplitude * direction + amplitude * edge.direction
        errors.append(float(jnp.linalg.norm(half - rod.half)))
    np.testing.assert_allclose(observed_orders(amplitudes, errors), 3, atol=0.1)


def test_a_quartic_stops_rod_flow_and_not_edge_flow():
    rate, a, b = 0.25, 9.0, -1.0
    problem = problems.quartic([a], [b])
    orbit = np.sqrt((2 - rate * a) / (rate * b))
    y = Edge(jnp.zeros(1), jnp.ones(1), jnp.asarray(orbit))
    slope = edge_flow(problem.loss, rate).field(0.0, y, None)
    np.testing.assert_allclose(slope.amplitude, orbit * (a - 2 / rate), rtol=1e-14)


def test_sharpness_rests_at_the_edge():
    """L = s(z) x^2 / 2 - z + z^2 / 100: the sharpness s = 10 + 5 z grows until x oscillates."""

    def loss(params):
        x, z = params
        return (10 + 5 * z) * x**2 / 2 - z + 0.01 * z**2

    # At the edge, z = 2, the mean slope of the oscillation holds z: 5 r^2 / 2 = 1 - 0.02 z.
    field = jax.jit(edge_flow(loss, 0.1).field)
    amplitude = jnp.sqrt(0.4 * (1 - 0.04))
    rest = Edge(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]), amplitude)
    slope = field(0.0, rest, None)
    np.testing.assert_allclose(jnp.concatenate([slope.centre, slope.direction]), 0, atol=1e-14)
    np.testing.assert_allclose(slope.amplitude, 0, atol=1e-14)
    # Above it the oscillation grows, and with more of it the sharpness falls: the feedback.
    assert field(0.0, rest._replace(centre=jnp.array([0.0, 2.1])), None).amplitude > 0
    assert field(0.0, rest._replace(amplitude=1.1 * amplitude), None).centre[1] < 0


def test_init_splits_off_the_top_direction_and_lanes_work():
    def start(rate):
        return edge_flow(toy.loss, rate).init(toy.initial_params)

    lanes = jax.jit(jax.vmap(start))(jnp.array([0.1, 0.3]))
    top = jnp.linalg.eigh(jax.hessian(toy.loss)(toy.initial_params))[1][:, -1]
    np.testing.assert_allclose(abs(lanes.direction @ top), 1, rtol=1e-8)
    assert (lanes.amplitude > 0).all()
    moved = toy.initial_params[None] - lanes.centre
    np.testing.assert_allclose(moved, lanes.amplitude[:, None] * lanes.direction, atol=1e-14)


def test_float32_stays(float32):
    problem = problems.perturbed_rosenbrock()
    flow = edge_flow(problem.loss, np.float64(0.1))
    objective = driftlab.Objective(problem.loss)
    dynamics = driftlab.flow(flow, 0.1, objective)
    state = dynamics.init(jnp.asarray(problem.initial_params, jnp.float32), jax.random.key(0))
    state = jax.jit(dynamics.step)(state)
    assert state.params.dtype == jnp.float32
    assert state.inner.y.amplitude.dtype == jnp.float32
    assert jnp.isfinite(state.params).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"learning_rate must be one positive.*0.0"):
        edge_flow(toy.loss, 0.0)
    with pytest.raises(ValueError, match="floor=-2"):
        edge_flow(toy.loss, 0.1, floor=-2)
    with pytest.raises(TypeError, match="int"):
        edge_flow(toy.loss, 0.1).init(jnp.arange(2))
