"""Implicit regularisation made explicit and cancelled: measured orders, and its flows."""

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Objective, descent, regularized, shuffled_epochs
from driftlab.flows import gradient_flow, observed_orders, solve
from driftlab.flows.batch_order import shuffled_epoch_loss, split_batches
from driftlab.flows.gradient_descent import gradient_descent_flow
from driftlab.regularizers import squared_gradient_norm
from tests.flows.problems import toy

START = toy.initial_params
OBJECTIVE = Objective(toy.loss)
RATES = jnp.array([0.02, 0.01, 0.005, 0.002])
RANDOM = np.random.default_rng(2)
DATA = (RANDOM.normal(size=(12, 3)), RANDOM.normal(size=12))
PARAMS = {"w": jnp.asarray(RANDOM.normal(size=3)), "b": jnp.zeros(())}


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["w"]) + params["b"] - targets) ** 2)


def with_drift(h, sign, objective=OBJECTIVE):
    return regularized(objective, squared_gradient_norm(objective), sign * h / 4)


def order(minimized, followed):
    """The last observed order of one step of descent less gradient flow, for objectives of h."""

    def error(h):
        dynamics = descent(optax.sgd(h), minimized(h))
        end = dynamics.step(dynamics.init(START, jax.random.key(0))).params
        field = gradient_flow(followed(h))
        return jnp.linalg.norm(solve(field, START, h, solver=diffrax.Dopri8(), steps=2).y - end)

    return observed_orders(RATES, jax.jit(lambda many: jax.lax.map(error, many))(RATES))[-1]


def test_cancelled_drift_leaves_gradient_flow_to_one_order_more():
    plain = order(lambda h: OBJECTIVE, lambda h: OBJECTIVE)
    cancelled = order(lambda h: with_drift(h, -1), lambda h: OBJECTIVE)
    assert plain == pytest.approx(2, abs=0.1)
    assert cancelled == pytest.approx(3, abs=0.1)


def test_explicit_drift_is_what_descent_follows_to_one_order_more():
    explicit = order(lambda h: OBJECTIVE, lambda h: with_drift(h, 1))
    other_way = order(lambda h: OBJECTIVE, lambda h: with_drift(h, -1))
    assert explicit == pytest.approx(3, abs=0.1)
    assert other_way == pytest.approx(2, abs=0.1)


def test_after_a_fixed_time_cancelling_buys_an_order():
    """GD with the drift removed at t = 1, against gradient flow: h squared rather than h."""

    def distance(h, sign):
        dynamics = descent(optax.sgd(h), with_drift(h, sign))
        state = dynamics.init(START, jax.random.key(0))
        count = jnp.round(1 / h).astype(int)
        end = jax.lax.fori_loop(0, count, lambda _, s: dynamics.step(s), state).params
        flowed = solve(gradient_flow(OBJECTIVE), START, 1.0, solver=diffrax.Dopri8(), steps=40).y
        return jnp.linalg.norm(flowed - end)

    def distances(sign):
        return jax.lax.map(lambda h: distance(h, sign), RATES)

    found = jax.jit(jax.vmap(distances))(jnp.array([0.0, -1.0]))
    assert observed_orders(RATES, found[0])[-1] == pytest.approx(1, abs=0.1)
    assert observed_orders(RATES, found[1])[-1] == pytest.approx(2, abs=0.1)


def test_its_gradient_flow_is_the_order_2_flow():
    objective = Objective(squared_error, DATA)
    flow = gradient_flow(with_drift(0.1, 1, objective))(0.0, PARAMS, None)
    expected = gradient_descent_flow(objective, 0.1, 2, route="closed_form")(0.0, PARAMS, None)
    chex.assert_trees_all_close(flow, expected, rtol=1e-12, atol=1e-14)


def test_the_second_order_flow_of_cancelled_descent_is_gradient_flow_to_h_squared():
    def off(h):
        field = gradient_descent_flow(with_drift(h, -1), h, 2, route="closed_form")
        return jnp.linalg.norm(field(0.0, START, None) - gradient_flow(OBJECTIVE)(0.0, START, None))

    found = jax.jit(lambda many: jax.lax.map(off, many))(RATES)
    assert observed_orders(RATES, found)[-1] == pytest.approx(2, abs=0.1)


def test_on_minibatches_its_mean_is_what_shuffling_adds():
    objective = Objective(squared_error, DATA, shuffled_epochs(4))
    batches, h = split_batches(objective.data, 4), 0.1
    made = with_drift(h, 1, objective)
    mean = jnp.mean(jax.lax.map(lambda batch: made.value(PARAMS, batch)[0], batches))
    expected = shuffled_epoch_loss(squared_error, batches, h)(PARAMS)
    np.testing.assert_allclose(mean, expected, rtol=1e-13)


def test_it_includes_the_regularizer_that_is_there():
    objective = regularized(Objective(squared_error, DATA), lambda p, b: jnp.sum(p["w"] ** 2), 0.3)
    gradient = jax.grad(lambda p: objective.value(p, DATA)[0])(PARAMS)
    expected = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    found = squared_gradient_norm(objective)(PARAMS, DATA)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    # A bare loss has none.
    bare = squared_gradient_norm(squared_error)(PARAMS, DATA)
    np.testing.assert_allclose(bare, squared_gradient_norm(Objective(squared_error))(PARAMS, DATA))


def test_float32_stays_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    data = jax.tree.map(lambda leaf: leaf.astype(np.float32), DATA)
    assert squared_gradient_norm(squared_error)(params, data).dtype == jnp.float32


def test_what_is_no_loss_is_refused():
    with pytest.raises(TypeError, match="loss must be a function"):
        squared_gradient_norm(3.0)
