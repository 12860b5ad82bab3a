"""Modified losses of a few batches: their orders, and where they meet gradient descent's."""

import itertools

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Objective, fixed_order, flow
from driftlab.flows import gradient_flow, observed_orders, solve
from driftlab.flows.batch_order import (
    batch_order_flow,
    batch_order_loss,
    earlier_gradients,
    shuffled_epoch_loss,
    split_batches,
)
from driftlab.flows.gradient_descent import modified_loss
from driftlab.flows.one_step import step_sequence
from tests.flows.problems import toy

START = toy.initial_params
BATCHES = jnp.asarray(np.random.default_rng(4).normal(size=(4, 2)) / 2)
# The steps of n batches are n h long: a decade below 0.02.
RATES = jnp.array([0.02, 0.01, 0.005, 0.002]) / 4


def loss(params, batch):
    return toy.loss(params) + jnp.sin(params @ batch) * (params[0] - batch[1])


def sgd(start, batches, h):
    return step_sequence(lambda y, batch: y - h * jax.grad(loss)(y, batch), batches)(start)


def slope(make, target, n, rates=RATES):
    """The last observed order of the distance from gradient flow on a loss after time n h."""

    def error(h):
        flowed = solve(gradient_flow(make(h)), START, n * h, solver=diffrax.Dopri8(), steps=2).y
        return jnp.linalg.norm(flowed - target(h))

    return observed_orders(rates, jax.jit(lambda many: jax.lax.map(error, many))(rates))[-1]


@pytest.mark.parametrize("n", [2, 4])
def test_a_given_order_is_followed_to_third_order(n):
    batches = BATCHES[:n]

    def end(h):
        return sgd(START, batches, h)

    found = slope(lambda h: batch_order_loss(loss, batches, h, START), end, n)
    assert found == pytest.approx(3, abs=0.1)


def test_plain_gradient_flow_has_one_order_less():
    found = slope(
        lambda h: lambda p: jnp.mean(jax.vmap(lambda b: loss(p, b))(BATCHES)),
        lambda h: sgd(START, BATCHES, h),
        4,
    )
    assert found == pytest.approx(2, abs=0.1)


def test_the_mean_over_all_orders_is_followed_to_third_order():
    orders = jnp.asarray(list(itertools.permutations(range(4))))

    def mean_end(h):
        return jax.vmap(lambda order: sgd(START, BATCHES[order], h))(orders).mean(0)

    found = slope(lambda h: shuffled_epoch_loss(loss, BATCHES, h), mean_end, 4)
    assert found == pytest.approx(3, abs=0.1)
    # One order is not the mean: its own terms are missing.
    found = slope(
        lambda h: shuffled_epoch_loss(loss, BATCHES, h), lambda h: sgd(START, BATCHES, h), 4
    )
    assert found == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("n", [1, 4])
def test_identical_batches_are_gradient_descent(n):
    """rosca.md, 5: at the start the gradient is g + (h / 2) H g, whatever n."""
    batches, h = jnp.broadcast_to(BATCHES[:1], (n, 2)), 0.05
    expected = jax.grad(modified_loss(lambda p: loss(p, BATCHES[0]), h))(START)
    ordered = jax.grad(batch_order_loss(loss, batches, h, START))(START)
    np.testing.assert_allclose(ordered, expected, rtol=1e-13)
    shuffled = jax.grad(shuffled_epoch_loss(loss, batches, h))(START)
    np.testing.assert_allclose(shuffled, expected, rtol=1e-13)


def test_the_losses_are_the_formulas():
    h, y = 0.1, START + 0.1
    gradients = [jax.grad(loss)(y, batch) for batch in BATCHES]
    before = [jax.grad(loss)(START, batch) for batch in BATCHES]
    mean = sum(loss(y, batch) for batch in BATCHES) / 4
    smith = mean + h / 16 * sum(jnp.sum(g**2) for g in gradients)
    np.testing.assert_allclose(shuffled_epoch_loss(loss, BATCHES, h)(y), smith, rtol=1e-13)
    agreed = sum(gradients[i] @ before[j] for i in range(4) for j in range(i))
    rosca = mean + h * jnp.sum((sum(gradients) / 4) ** 2) - h / 4 * agreed
    np.testing.assert_allclose(batch_order_loss(loss, BATCHES, h, START)(y), rosca, rtol=1e-13)


def linear_loss(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["w"]) - targets) ** 2)


def test_a_flow_of_epochs_follows_sgd_of_an_objective():
    """Ten epochs of three batches, frozen anew each: the error falls with h squared."""
    random = np.random.default_rng(5)
    params = {"w": jnp.asarray(random.normal(size=3))}
    data = (random.normal(size=(10, 3)), random.normal(size=10))
    objective = Objective(linear_loss, data, fixed_order(3))
    batches = split_batches(objective.data, 3)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: leaf[1], batches),
        objective.batch(jax.random.key(0), jnp.array(4)),
    )

    def distance(h):
        dynamics = flow(
            batch_order_flow(linear_loss, batches, h),
            3 * h,
            objective,
            args=lambda state: earlier_gradients(linear_loss, batches, state.params),
            solver=diffrax.Dopri5(),
            steps=1,
        )
        step = step_sequence(
            lambda y, b: jax.tree.map(lambda p, g: p - h * g, y, jax.grad(linear_loss)(y, b)),
            batches,
        )
        # The same time for every h: t = 0.6.
        count = jnp.round(0.2 / h).astype(int)
        state = jax.lax.fori_loop(
            0, count, lambda _, s: dynamics.step(s), dynamics.init(params, jax.random.key(0))
        )
        end = jax.lax.fori_loop(0, count, lambda _, y: step(y), params)
        return jnp.linalg.norm(state.params["w"] - end["w"])

    rates = jnp.array([0.04, 0.02, 0.01, 0.005])
    errors = jax.jit(lambda many: jax.lax.map(distance, many))(rates)
    assert observed_orders(rates, errors)[-1] == pytest.approx(2, abs=0.1)


def test_float32_and_lanes():
    start, batches = START.astype(jnp.float32), BATCHES.astype(jnp.float32)

    def gradients(h):
        ordered = jax.grad(batch_order_loss(loss, batches, h, start))(start)
        return ordered, jax.grad(shuffled_epoch_loss(loss, batches, h))(start)

    lanes = jax.jit(jax.vmap(gradients))(jnp.array([0.01, 0.1]))
    chex.assert_trees_all_equal_dtypes(lanes, (start, start))
    one = jax.tree.map(lambda leaf: leaf[1], lanes)
    chex.assert_trees_all_close(one, gradients(0.1), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shuffled_epoch_loss(loss, BATCHES, -0.1), "learning_rate=-0.1 must be positive"),
        (lambda: batch_order_loss(loss, BATCHES, 0.0, START), "learning_rate=0.0 must be"),
        (lambda: batch_order_flow(loss, (), 0.1), "batches hold no batch"),
        (lambda: batch_order_flow(loss, (BATCHES, BATCHES[:2]), 0.1), "same leading axis"),
        (lambda: split_batches(BATCHES, 5), "batch_size is 5, but the data hold only 4"),
        (lambda: split_batches(BATCHES, 0), "positive integer; got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
