"""Balancedness: exact changes, conservation along flows, and the orders of its drift."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.flows import (
    fitted_order,
    gradient_descent_flow,
    gradient_flow,
    modified_loss_coefficient,
    solve,
)
from driftlab.measures.layer_balance import (
    balancedness,
    balancedness_change,
    balancedness_drift,
    balancedness_source,
    balancedness_velocity,
    momentum_balancedness_factor,
)
from driftlab.measures.layer_matrices import network_matrices
from driftlab.measures.recording import record
from driftlab.models.linear import DeepLinear

WIDTHS = (4, 5, 6, 1)
TIME = 8.0


@pytest.fixture(scope="module")
def problem():
    """Weights 4-5-6-1, and a logistic objective of 20 separable examples."""
    keys = jax.random.split(jax.random.key(3), 5)
    weights = [
        0.5 * jax.random.normal(key, (after, before))
        for key, before, after in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    ]
    inputs = jax.random.normal(keys[3], (20, 4))
    signs = jnp.sign(inputs @ jax.random.normal(keys[4], (4,)))

    def loss(weights, batch):
        hidden, labels = batch
        for matrix in weights:
            hidden = hidden @ matrix.T
        return jnp.mean(jnp.log1p(jnp.exp(-labels * hidden[:, 0])))

    return weights, driftlab.Objective(loss, (inputs, signs))


@pytest.fixture(scope="module")
def gradient(problem):
    _, objective = problem
    return jax.jit(jax.grad(lambda weights: objective.loss(weights, objective.data)))


def flat(balance):
    return np.concatenate([np.ravel(matrix) for matrix in balance])


def run(gradient, start, tx, steps):
    """The weights after some steps of an optax chain."""

    @jax.jit
    def go(start):
        def step(_, carry):
            weights, state = carry
            updates, state = tx.update(gradient(weights), state, weights)
            return optax.apply_updates(weights, updates), state

        return jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0]

    return go(start)


@pytest.fixture(scope="module")
def integral(problem, gradient):
    """I_k, by an ODE of its own beside gradient flow."""
    weights, objective = problem
    flow = gradient_flow(objective)

    def field(t, y, args):
        return flow(t, y[0], args), balancedness_source(gradient(y[0]))

    nothing = jax.tree.map(jnp.zeros_like, balancedness(weights))
    return flat(solve(field, (weights, nothing), TIME, rtol=1e-11).y[1])


def test_one_step_of_gradient_descent_changes_it_by_h_squared_d_to_rounding(problem, gradient):
    weights, objective = problem
    half = jax.tree.map(lambda array: array[:7], objective.data)
    for slope in (gradient(weights), jax.grad(objective.loss)(weights, half)):
        for h in (0.05, 1.0):
            after = jax.tree.map(lambda w, g, h=h: w - h * g, weights, slope)
            changed = flat(balancedness(after)) - flat(balancedness(weights))
            np.testing.assert_allclose(changed, h**2 * flat(balancedness_source(slope)), atol=2e-15)


def test_any_update_changes_it_as_the_formula_says(problem):
    weights, _ = problem
    keys = jax.random.split(jax.random.key(1), 3)
    updates = [
        jax.random.normal(key, matrix.shape) for key, matrix in zip(keys, weights, strict=True)
    ]
    after = jax.tree.map(jnp.add, weights, updates)
    changed = flat(balancedness(after)) - flat(balancedness(weights))
    np.testing.assert_allclose(changed, flat(balancedness_change(weights, updates)), atol=1e-14)
    # The formula's own terms, written out.
    (first, second, _), (u, v, _) = weights, updates
    linear = second.T @ v + v.T @ second - u @ first.T - first @ u.T
    np.testing.assert_allclose(balancedness_velocity(weights, updates)[0], linear, atol=1e-14)


def test_velocities_along_flows(problem, gradient):
    weights, objective = problem
    source = flat(balancedness_source(gradient(weights)))
    still = balancedness_velocity(weights, gradient_flow(objective)(0.0, weights, None))
    np.testing.assert_allclose(flat(still), 0, atol=1e-15)
    h, decay = 0.3, 0.7
    modified = gradient_descent_flow(objective, h, 2, route="closed_form")(0.0, weights, None)
    moved = flat(balancedness_velocity(weights, modified))
    np.testing.assert_allclose(moved, h * source, atol=1e-15)
    decaying = jax.tree.map(lambda w, g: -g - decay * w, weights, gradient(weights))
    np.testing.assert_allclose(
        flat(balancedness_velocity(weights, decaying)),
        -2 * decay * flat(balancedness(weights)),
        atol=1e-14,
    )


def test_the_drift_is_h_times_the_integral_and_that_of_the_modified_flow(
    problem, gradient, integral
):
    weights, objective = problem
    start = flat(balancedness(weights))
    rates = [0.2, 0.1, 0.05, 0.025]

    @jax.jit
    def modified(h):
        field = gradient_descent_flow(objective, h, 2, route="closed_form")
        return solve(field, weights, TIME, rtol=1e-9).y

    @jax.jit
    def descent(h, steps):
        def step(_, w):
            return jax.tree.map(lambda a, g: a - h * g, w, gradient(w))

        return jax.lax.fori_loop(0, steps, step, weights)

    drifts, to_integral, to_modified, parameters = [], [], [], []
    for h in rates:
        end, flow = descent(h, round(TIME / h)), modified(h)
        drifts.append(flat(balancedness(end)) - start)
        to_integral.append(np.linalg.norm(drifts[-1] - h * integral))
        to_modified.append(np.linalg.norm(flat(balancedness(end)) - flat(balancedness(flow))))
        parameters.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, end, flow))))
    for errors in (to_integral, to_modified, parameters):
        assert abs(fitted_order(rates, errors) - 2) < 0.1
    # The issue's own bar: the slope within 5 % of the prediction.
    slope = np.linalg.norm(drifts[-1]) / rates[-1]
    np.testing.assert_allclose(slope, np.linalg.norm(integral), rtol=0.02)


def test_gradient_flow_conserves_it_as_the_tolerance_falls(problem):
    weights, objective = problem
    start = flat(balancedness(weights))
    follow = jax.jit(lambda rtol: solve(gradient_flow(objective), weights, TIME, rtol=rtol).y)
    errors = [
        np.abs(flat(balancedness(follow(rtol))) - start).max() for rtol in (1e-3, 1e-6, 1e-9, 1e-12)
    ]
    assert errors[0] > 1e-5, "the loosest solve must show something"
    assert all(fine < coarse / 10 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 1e-11


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_multiplies_the_drift_by_its_factor(problem, gradient, integral, nesterov):
    weights, _ = problem
    start, momentum = flat(balancedness(weights)), 0.5
    factor = momentum_balancedness_factor(momentum, nesterov)
    rates, errors = [0.02, 0.005], []
    for h in rates:
        tx = optax.sgd(h * (1 - momentum), momentum, nesterov=nesterov)
        end = run(gradient, weights, tx, round(TIME / h))
        drift = flat(balancedness(end)) - start
        errors.append(np.linalg.norm(drift - factor * h * integral))
        # Without the factor it would be off by far more than that.
        assert np.linalg.norm(drift - h * integral) > 5 * errors[-1]
    assert abs(fitted_order(rates, errors) - 2) < 0.2


def test_the_factor_is_that_of_the_modified_loss():
    for momentum in (0.0, 0.3, 0.9):
        for nesterov in (False, True):
            k = modified_loss_coefficient(momentum, nesterov)
            np.testing.assert_allclose(
                momentum_balancedness_factor(momentum, nesterov),
                2 * k * (1 - momentum),
                rtol=1e-14,
            )
    assert momentum_balancedness_factor(0.5) == 3
    with pytest.raises(ValueError, match=r"momentum=1.0 must be at least 0 and below 1"):
        momentum_balancedness_factor(1.0)


def test_adam_does_not_conserve_it_as_the_learning_rate_falls(problem, gradient):
    weights, _ = problem
    start = flat(balancedness(weights))
    found = {}
    for name, make in (("sgd", optax.sgd), ("adam", optax.adam)):
        found[name] = [
            np.linalg.norm(
                flat(balancedness(run(gradient, weights, make(h), round(1 / h)))) - start
            )
            for h in (0.01, 0.0025)
        ]
    assert found["sgd"][1] < found["sgd"][0] / 3.5
    # Of the size of the weights at a quarter of the learning rate too. The two are not equal: b2's
    # memory of 1000 iterations is another share of the time at each.
    assert found["adam"][1] > 0.7 * found["adam"][0] > 1


def test_the_tracker_records_drift_prediction_and_error(problem):
    weights, objective = problem
    dynamics = driftlab.descent(optax.sgd(0.05), objective)
    tracker = balancedness_drift()

    def recorded(every):
        def step(carry, _):
            state, memory = carry
            snapshot = dynamics.observe(state)
            values, memory = record((tracker,), snapshot, memory)
            state = jax.lax.fori_loop(0, every, lambda _, s: dynamics.step(s), state)
            return (state, memory), values

        begun = (dynamics.init(weights, jax.random.key(0)), (tracker.init(weights),))
        return jax.jit(lambda: jax.lax.scan(step, begun, None, 60 // every + 1)[1])()

    each, near, spaced = recorded(1), recorded(2), recorded(5)
    assert each["balancedness_drift"][0] < 1e-15
    assert each["balancedness_drift"][-1] > 0.01
    np.testing.assert_allclose(each["balancedness_error"], 0, atol=1e-14)
    np.testing.assert_allclose(
        each["balancedness_predicted"], each["balancedness_drift"], atol=1e-14
    )
    np.testing.assert_allclose(
        spaced["balancedness_drift"], each["balancedness_drift"][::5], atol=1e-14
    )
    # The trapezoidal rule for a sum of m terms is wrong by (m^2 - 1) times the same: 24 against 3.
    exact = each["balancedness_drift"][-1]
    errors = [abs(found["balancedness_predicted"][-1] - exact) for found in (near, spaced)]
    assert errors[0] < errors[1] / 6
    assert errors[1] < 0.05 * exact


def test_the_order_and_the_orientation_of_matrices():
    weights = [jnp.full((3, 2), 1.0), jnp.full((1, 3), 2.0)]
    named = {"layer_10": weights[1], "layer_9": weights[0]}
    assert list(network_matrices(named)) == ["layer_9", "layer_10"]
    np.testing.assert_array_equal(balancedness(named)[0], balancedness(weights)[0])
    kernels = {"layer_0": {"kernel": weights[0].T}, "layer_1": {"kernel": weights[1].T}}
    assert list(network_matrices(kernels)) == ["layer_0", "layer_1"]
    np.testing.assert_array_equal(balancedness(kernels)[0], balancedness(weights)[0])
    turned = [matrix.T for matrix in weights]
    np.testing.assert_array_equal(balancedness(turned, True)[0], balancedness(weights)[0])


def test_a_flax_network_s_balancedness_is_conserved_in_its_own_convention():
    inputs = jax.random.normal(jax.random.key(0), (6, 3))
    model = DeepLinear(widths=(4, 5), num_outputs=2)
    params = model.init(jax.random.key(1), inputs)["params"]
    slope = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, inputs))))(params)
    velocity = balancedness_velocity(params, slope)
    assert [matrix.shape for matrix in velocity] == [(4, 4), (5, 5)]
    np.testing.assert_allclose(flat(velocity), 0, atol=1e-13)


def test_bad_params_are_refused():
    with pytest.raises(ValueError, match=r"'bias'\] has shape \(3,\).*use_bias=False"):
        balancedness({"layer_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r"no chain.*transposed=True"):
        balancedness([jnp.ones((2, 3)), jnp.ones((3, 1))])
    with pytest.raises(ValueError, match="two or more"):
        balancedness([jnp.ones((2, 3))])


def test_float32_stays_float32_and_lanes_agree(float32):
    weights = [jnp.ones((3, 2)), jnp.ones((1, 3))]
    assert all(matrix.dtype == jnp.float32 for matrix in balancedness(weights))
    lanes = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), weights)
    found = jax.vmap(balancedness)(lanes)[0]
    np.testing.assert_allclose(found[1], 4 * found[0])
