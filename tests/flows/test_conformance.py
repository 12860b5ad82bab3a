"""Every flow goes through the same properties, alone, vmapped and in a sweep."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import flows, measures
from tests.flows.cases import CASES, as_flow
from tests.flows.problems import toy

RATES = (0.01, 0.005, 0.0025)
TIME = 0.4

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ordered = pytest.mark.parametrize(
    "case", [case for case in CASES if case.order is not None], ids=lambda case: case.name
)


def loss(params):
    return toy.loss(jnp.concatenate([params["x"], params["y"]]))


def tree(vector):
    return {"x": vector[:1], "y": vector[1:]}


def start(dtype):
    return tree(jnp.asarray(toy.initial_params, dtype))


def rate_of_change(case, params, learning_rate):
    """d params / dt at the start of the flow from params, by the chain rule."""
    flow = as_flow(case.build(loss, learning_rate, params))
    y = flow.init(params)
    slope = flow.field(jnp.zeros_like(learning_rate), y, None)
    assert jax.tree.structure(slope) == jax.tree.structure(y)
    for leaf, like in zip(jax.tree.leaves(slope), jax.tree.leaves(y), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    return jax.jvp(flow.params, (y,), (slope,))[1]


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rate_of_change_has_the_structure_and_types_of_the_state(case, dtype):
    found = jax.jit(lambda h: rate_of_change(case, start(dtype), h))(jnp.asarray(0.05, dtype))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), start(dtype)
    )


@each
def test_lanes_are_what_single_learning_rates_are(case):
    rates = jnp.asarray([0.01, 0.05, 0.1])
    lanes = jax.jit(jax.vmap(lambda h: rate_of_change(case, start(float), h)))(rates)
    for i, rate in enumerate(rates):
        single = rate_of_change(case, start(float), rate)
        for name in single:
            np.testing.assert_allclose(lanes[name][i], single[name], rtol=1e-9, atol=1e-11)


@each
def test_nothing_moves_at_the_minimum(case):
    found = rate_of_change(case, tree(jnp.asarray(toy.minimizer, float)), jnp.asarray(0.05))
    # The minimiser is known to rounding, which iteration time divides by the learning rate.
    np.testing.assert_allclose([*found["x"], *found["y"]], 0, atol=1e-11)


@each
def test_nan_in_nan_out(case):
    def slope(learning_rate):
        flow = as_flow(case.build(loss, learning_rate, start(float)))
        broken = jax.tree.map(lambda leaf: leaf * jnp.nan, flow.init(start(float)))
        # Not at time 0, where the accelerated flows are at rest whatever their state.
        return flow.field(learning_rate, broken, None)

    found = jax.jit(slope)(jnp.asarray(0.05))
    assert not any(np.isfinite(leaf).any() for leaf in jax.tree.leaves(found))


@ordered
def test_the_distance_to_the_optimiser_falls_at_its_order(case):
    def distance(learning_rate):
        tx = case.descent(learning_rate)
        iterations = jnp.round(TIME / learning_rate).astype(int)

        def iterate(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        first = (start(float), tx.init(start(float)))
        params = jax.lax.fori_loop(0, iterations, iterate, first)[0]
        flow = as_flow(case.build(loss, learning_rate, start(float)))
        solved = flows.solve(
            flow.field,
            flow.init(start(float)),
            iterations * case.step_time(learning_rate),
            solver=diffrax.Dopri8(),
            rtol=1e-11,
        )
        found = flow.params(solved.y)
        squares = [jnp.sum((params[name] - found[name]) ** 2) for name in params]
        return jnp.sqrt(sum(squares)), solved.result

    errors, results = jax.jit(lambda rates: jax.lax.map(distance, rates))(jnp.asarray(RATES))
    assert not results.any()
    orders = flows.observed_orders(RATES, errors)
    # The smallest rates: with momentum 0.5 the next order is 0.18 of a slope at the larger ones.
    np.testing.assert_allclose(orders[-1], case.order, atol=0.1)


@each
def test_a_flow_is_swept_like_an_optimiser(case):
    objective = driftlab.Objective(lambda params, batch: loss(params))

    def build(hparams, key):
        h = hparams["learning_rate"]
        dynamics = driftlab.flow(case.build(loss, h, start(float)), case.step_time(h), objective)
        return dynamics, start(float)

    grid = driftlab.Grid({"learning_rate": [0.02, 0.05]})
    result = driftlab.sweep(build, grid, steps=2, measures=[measures.loss], progress=False)
    losses = result.loss.transpose("learning_rate", "step").values
    assert np.isfinite(losses).all()
    assert (np.diff(losses, axis=1) < 0).all()
