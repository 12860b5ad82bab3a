"""Joint flows: the logarithm of the optimiser's own step, orders, digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows import observed_orders, solve
from driftlab.flows.joint import OptimizerState
from driftlab.flows.modified import modified_flow
from tests.flows.chains import RATES, START, errors, loss
from tests.flows.problems import digits_network


def test_it_is_the_log_of_the_step():
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.exponential_decay(0.1, 7, 0.8), eps=0.1),
    )
    state = tx.init(START)
    count = jnp.asarray(30)
    state = jax.tree.map(lambda s: count if s.dtype.kind == "i" else s + 0.1, state)
    flow = modified_flow(tx, loss, START, 3)
    y = flow.init(START, state)
    assert isinstance(y, OptimizerState)
    found = jax.jit(flow.field)(0.0, y, None)

    params, points = START, [(START, state)]
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        points.append((params, state))
    rows = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)][0]
    # log(1 + D) = D - D^2 / 2 + D^3 / 3 in the values of four successive points.
    weights = jnp.array([-11 / 6, 3.0, -3 / 2, 1 / 3])

    def by_hand(leaf):
        return jnp.tensordot(weights, leaf.astype(float), 1)

    expected = jax.tree.map(by_hand, rows)
    for a, b in zip(
        jax.tree.leaves((found.params, dict(sorted(found.memory.items())))),
        jax.tree.leaves((expected[0], _memory(expected[1]))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
    for clock in jax.tree.leaves(found.clocks):
        np.testing.assert_allclose(clock, 1, rtol=1e-14)


def _memory(state):
    flat = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
    return {name: named[name] for name in sorted(named) if "count" not in name}


CHAINS = {
    "nesterov": lambda h: optax.sgd(h, momentum=0.8, nesterov=True),
    "adam": lambda h: optax.adam(h, b1=0.8, b2=0.9, eps=0.0, eps_root=0.1),
    "adabelief": lambda h: optax.adabelief(h, b1=0.8, b2=0.9, eps=1e-1),
}


@pytest.mark.parametrize(
    ("name", "order"), [("nesterov", 1), ("nesterov", 3), ("adam", 2), ("adam", 4)]
)
def test_orders(name, order):
    found = errors(CHAINS[name], order, "joint", burn_in=0.4)
    orders = observed_orders(RATES, found.errors)
    # The initial layer is over after a slow time of .4 but for the two largest rates.
    np.testing.assert_allclose(orders[-1], order, atol=0.25)


def test_memory_without_a_slow_manifold_is_served():
    # eliminate refuses adabelief: its variance is 0 where the gradient stands still.
    found = errors(CHAINS["adabelief"], 2, "joint", burn_in=0.4)
    assert found.errors[-1] < 1e-4 * found.moved[-1]


def digits_error(tx, order, warm, steps):
    digits_loss, start = digits_network()
    gradient = jax.grad(digits_loss)

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    flow = modified_flow(tx, digits_loss, start, order)

    def run():
        params, state = jax.lax.fori_loop(0, warm, step, (start, tx.init(start)))
        end, _ = jax.lax.fori_loop(0, steps, step, (params, state))
        solved = solve(flow.field, flow.init(params, state), float(steps), rtol=1e-6)
        gap = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), flow.params(solved.y), end)
        moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), end, params)
        return [jnp.sqrt(sum(jax.tree.leaves(tree))) for tree in (gap, moved)]

    gap, moved = jax.jit(run)()
    return float(gap), float(moved)


@pytest.mark.parametrize(
    ("tx", "warm", "steps", "order", "expected"),
    [
        # momentum_flows.md, 5.5, rows of digits. The other entries: experiments/optimizer_flows.py.
        (optax.sgd(0.04, momentum=0.9), 0, 50, 1, 7.0e-2),
        (optax.sgd(0.04, momentum=0.9), 0, 50, 3, 2.3e-4),
        (optax.adam(1e-3), 20, 300, 2, 1.0e-3),
    ],
)
def test_digits(tx, warm, steps, order, expected):
    gap, moved = digits_error(tx, order, warm, steps)
    assert expected / 2 < gap < expected * 2
    assert moved > 5


def test_the_clocks_are_those_of_the_state_whatever_t_is():
    tx = optax.sgd(optax.exponential_decay(0.1, 5, 0.5))
    flow = modified_flow(tx, loss, START, 1)
    state = jax.tree.map(lambda count: jnp.asarray(10), tx.init(START))
    slope = flow.field(0.0, flow.init(START, state), None)
    expected = jax.grad(loss)(START)
    for a, b in zip(jax.tree.leaves(slope.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, -0.1 * 0.25 * b, rtol=1e-12)


def test_it_costs_a_gradient_an_order():
    calls = []

    def counted(params):
        jax.debug.callback(lambda _: calls.append(1), params["a"][0])
        return loss(params)

    flow = modified_flow(optax.adam(0.01), counted, START, 3)
    state = optax.adam(0.01).init(START)
    state = (state[0]._replace(count=jnp.asarray(500)), *state[1:])
    y = flow.init(START, state)
    calls.clear()
    jax.block_until_ready(jax.jit(flow.field)(0.0, y, None))
    jax.effects_barrier()
    assert len(calls) == 3
