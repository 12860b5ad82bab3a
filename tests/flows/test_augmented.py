"""Some memory dynamic, the rest eliminated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows import observed_orders
from driftlab.flows.modified import modified_flow
from tests.flows.chains import START, errors, loss


def test_auto_keeps_what_is_slow():
    def kept(tx):
        state = jax.eval_shape(tx.init, START)
        settled = jax.tree.map(
            lambda s: jnp.full(s.shape, 5000 if s.dtype.kind == "i" else 0.1, s.dtype), state
        )
        flow = modified_flow(tx, loss, START, 2, "auto")
        return list(flow.init(START, settled).memory)

    assert kept(optax.adam(0.01, b1=0.5, b2=0.999)) == ["[0].nu['a']", "[0].nu['b']"]
    assert len(kept(optax.adam(0.01))) == 4
    assert kept(optax.sgd(0.01, momentum=0.5)) == []
    assert kept(optax.adagrad(0.01)) == [f"[0].sum_of_squares['{n}']" for n in "ab"]


def test_auto_needs_to_know_the_decays():
    def build(decay):
        flow = modified_flow(optax.sgd(0.01, momentum=decay), loss, START, 1, "auto")
        return flow.field(0.0, flow.init(START), None)

    with pytest.raises(ValueError, match=r"auto.*trace\['a'\] depends on a traced.*'augment'"):
        jax.vmap(build)(jnp.array([0.5, 0.6]))


def test_order_2_of_slow_second_moments():
    # 1 - b2 proportional to h: what eliminate cannot follow (momentum_flows.md, 5.4: 1.02, 2.01).
    def make(h):
        return optax.adam(h, b1=0.5, b2=1 - 4 * h, eps=0.0, eps_root=0.1)

    rates = (0.008, 0.004, 0.002)
    for order in (1, 2):
        found = errors(make, order, "augment", rates=rates, time=0.6, burn_in=0.4, dynamic=["nu"])
        np.testing.assert_allclose(observed_orders(rates, found.errors)[-1], order, atol=0.25)


def test_all_memory_dynamic_is_the_joint_field_to_second_order():
    tx = optax.sgd(0.01, momentum=0.9)
    trace = jax.tree.map(lambda p: p + 0.3, START)
    state = (optax.TraceState(trace), optax.EmptyState())
    flow = modified_flow(tx, loss, START, 2, "augment", dynamic=["trace"])
    y = flow.init(START, state)
    found = jax.jit(flow.field)(0.0, y, None)

    # z' = F - (1/2) DF F, with the map written out.
    def increment(z):
        params, memory = z
        moved = jax.tree.map(lambda m, g: 0.9 * m + g, memory, jax.grad(loss)(params))
        return (
            jax.tree.map(lambda m: -0.01 * m, moved),
            jax.tree.map(jnp.subtract, moved, memory),
        )

    rate = increment((START, trace))
    bend = jax.jvp(increment, ((START, trace),), (rate,))[1]
    expected = jax.tree.map(lambda f, b: f - b / 2, rate, bend)
    for a, b in zip(
        jax.tree.leaves((found.params, found.memory)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_what_cannot_be_eliminated_must_stay():
    tx = optax.amsgrad(0.01)
    with pytest.raises(ValueError, match=r"nu_max\['a'\] does not forget"):
        modified_flow(tx, loss, START, 2, "augment", dynamic=["mu"])
