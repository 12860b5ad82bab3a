"""Flow by arc length: its speed, its orbit, and what it conserves far beyond float64's risks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.flows import gradient_flow, solve
from driftlab.flows.arc_length import arc_length_flow
from driftlab.measures.layer_balance import balancedness
from driftlab.models.losses import logistic
from driftlab.models.margin_losses import log_logistic


def outputs(weights, inputs):
    hidden = inputs
    for matrix in weights:
        hidden = hidden @ matrix.T
    return hidden


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(4), 4)
    inputs = jax.random.uniform(keys[0], (16, 2), minval=-0.7, maxval=0.7)
    direction = jnp.array([0.8, -0.6])
    signs = jnp.sign(inputs @ direction)
    inputs = inputs + 0.3 * jnp.outer(signs, direction)
    shapes = ((4, 2), (4, 4), (1, 4))
    weights = [
        0.6 * jax.random.normal(key, shape) for key, shape in zip(keys[1:], shapes, strict=True)
    ]
    return weights, (inputs, signs)


def test_the_speed_is_one_and_a_stationary_point_gives_nan():
    field = arc_length_flow(lambda y: jnp.sum(y**4))
    np.testing.assert_allclose(jnp.linalg.norm(field(0.0, jnp.array([1.0, -3.0]), None)), 1.0)
    assert np.isnan(field(0.0, jnp.zeros(2), None)).all()


def test_its_orbit_is_that_of_gradient_flow(problem):
    weights, data = problem
    log_risk = driftlab.Objective(log_logistic(outputs), data)
    risk = driftlab.Objective(logistic(outputs), data)

    # The length of gradient flow's own path, beside it.
    def measured(t, y, args):
        velocity = gradient_flow(risk)(t, y[0], args)
        return velocity, optax.tree.norm(velocity)

    @jax.jit
    def both():
        end, length = solve(measured, (weights, jnp.zeros(())), 20.0, rtol=1e-10).y
        return end, solve(arc_length_flow(log_risk), weights, length, rtol=1e-10).y

    end, other = both()
    for one, two in zip(end, other, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)


def test_it_conserves_balancedness_to_its_tolerance_down_to_exp_minus_40(problem):
    weights, data = problem
    objective = driftlab.Objective(log_logistic(outputs), data)
    start = balancedness(weights)

    @jax.jit
    def follow(rtol):
        end = solve(arc_length_flow(objective), weights, 9.0, rtol=rtol).y
        moved = jax.tree.map(jnp.subtract, balancedness(end), start)
        return optax.tree.norm(moved), objective.loss(end, data)

    errors, log_risks = zip(*(follow(rtol) for rtol in (1e-3, 1e-5, 1e-7, 1e-9)), strict=True)
    assert max(log_risks) < -40
    assert errors[0] > 1e-4, "the loosest solve must show something"
    assert all(fine < coarse / 10 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 1e-7
