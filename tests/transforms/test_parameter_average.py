"""The moving average against sums written out, with its evaluation point found in games."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.dynamics import eval_params
from driftlab.game import Game
from driftlab.play import simultaneous
from driftlab.transforms.parameter_average import average_parameters

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def trajectory(tx, steps):
    params, state = PARAMS, tx.init(PARAMS)
    visited, averages = [params], [eval_params(state, params)]
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
        visited.append(params)
        averages.append(eval_params(state, params))
    return np.array([p["w"] for p in visited]), np.array([p["w"] for p in averages])


@pytest.mark.parametrize("debias", [True, False])
def test_the_average_is_the_weighted_sum(debias):
    tx = average_parameters(optax.adam(0.1), 0.8, debias=debias)
    visited, averages = trajectory(tx, 6)
    plain, _ = trajectory(optax.adam(0.1), 6)
    np.testing.assert_array_equal(visited, plain)
    np.testing.assert_array_equal(averages[0], visited[0])
    for k in range(1, 7):
        weights = 0.2 * 0.8 ** np.arange(k)[::-1]
        expected = weights @ visited[1 : k + 1]
        expected = expected / weights.sum() if debias else expected + 0.8**k * visited[0]
        np.testing.assert_allclose(averages[k], expected, rtol=1e-12)


def test_decays_may_be_schedules_and_lanes():
    def last(decay):
        return trajectory(average_parameters(optax.sgd(0.1), decay), 4)[1][-1]

    def lane(decay):
        tx = average_parameters(optax.sgd(0.1), decay)
        state, params = tx.init(PARAMS), PARAMS
        for _ in range(4):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
        return state.eval_params(params)["w"]

    lanes = jax.jit(jax.vmap(lane))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(lanes, [last(0.0), last(lambda count: 0.5)], rtol=1e-12)


def test_types_stay(float32):
    tx = average_parameters(optax.sgd(0.1))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    _, state = tx.update(params, tx.init(params), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert state.eval_params(params)["w"].dtype == jnp.float32


def test_snapshots_of_descent_and_of_games_see_it():
    tx = average_parameters(optax.sgd(0.1), 0.5)
    objective = driftlab.Objective(lambda p, batch: jnp.sum(p["w"] ** 2) + p["b"] ** 2)
    dynamics = driftlab.descent(tx, objective)
    state = dynamics.step(dynamics.step(dynamics.init(PARAMS, jax.random.key(0))))
    expected = eval_params(state.inner, state.params)
    found = dynamics.observe(state).eval_params
    np.testing.assert_array_equal(found["w"], expected["w"])

    def loss(params, batch):
        return jnp.vdot(params["one"]["w"], params["two"]["w"])

    game = Game({"one": loss, "two": loss})
    play = simultaneous({"one": tx, "two": optax.sgd(0.1)}, game)
    state = play.init({"one": PARAMS, "two": PARAMS}, jax.random.key(0))
    for _ in range(3):
        state = play.step(state)
    found = play.observe(state).eval_params
    expected = state.inner["one"].eval_params(state.params["one"])
    np.testing.assert_array_equal(found["one"]["w"], expected["w"])
    assert float(jnp.abs(found["one"]["w"] - state.params["one"]["w"]).max()) > 1e-3
    np.testing.assert_array_equal(found["two"]["w"], state.params["two"]["w"])


def test_bad_arguments_are_refused():
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="decay="):
            average_parameters(optax.sgd(0.1), decay)
    tx = average_parameters(optax.sgd(0.1))
    with pytest.raises(ValueError, match="needs params"):
        tx.update(PARAMS, tx.init(PARAMS))
