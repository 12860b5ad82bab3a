"""Games: gradients of each player, corrections, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftlab
from driftlab.game import Game, corrected


def leader(params, batch):
    del batch
    return jnp.sum(params["a"] * params["b"]) + jnp.sum(params["a"] ** 2)


def follower(params, batch):
    del batch
    return -jnp.sum(params["a"] * params["b"]) + 3 * jnp.sum(params["b"])


PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([-1.0, 0.5])}
GAME = Game({"a": leader, "b": follower})


def test_each_gradient_is_of_the_players_own_loss_and_parameters():
    xi = GAME.gradients(PARAMS, ())
    np.testing.assert_array_equal(xi["a"], PARAMS["b"] + 2 * PARAMS["a"])
    np.testing.assert_array_equal(xi["b"], 3 - PARAMS["a"])
    squares = jnp.sum(xi["a"] ** 2) + jnp.sum(xi["b"] ** 2)
    np.testing.assert_allclose(GAME.hamiltonian(PARAMS, ()), squares / 2)


def test_corrections_add_up():
    def shift(player, params, batch):
        del batch
        return jnp.ones_like(params[player])

    once = corrected(GAME, shift, {"a": 1.0, "b": -2.0})
    twice = corrected(once, shift, 0.5)
    for player, expected in {"a": 1.5, "b": -1.5}.items():
        np.testing.assert_array_equal(twice.correction(player, PARAMS, ()), jnp.full(2, expected))


def test_a_batch_is_a_pure_function_of_key_and_step():
    data = {"x": jnp.arange(10.0)}
    game = Game(
        {"a": leader, "b": follower},
        data,
        driftlab.with_replacement(4),
        draw=lambda key: jax.random.normal(key, (4, 2)),
    )
    key = jax.random.key(3)
    examples, drawn = game.batch(key, jnp.asarray(5))
    again, drawn_again = game.batch(key, jnp.asarray(5))
    np.testing.assert_array_equal(examples["x"], again["x"])
    np.testing.assert_array_equal(drawn, drawn_again)
    assert not np.allclose(drawn, game.batch(key, jnp.asarray(6))[1])


def test_one_player_is_no_game():
    with pytest.raises(ValueError, match=r"losses=\['a'\]: a game has two players or more"):
        Game({"a": leader})


def test_a_loss_must_be_a_scalar():
    game = Game({"a": lambda params, batch: params["a"], "b": follower})
    with pytest.raises(ValueError, match="the loss of player 'a' must return a real scalar"):
        game.gradients(PARAMS, ())


def test_coefficients_by_player_are_of_all_players():
    with pytest.raises(ValueError, match=r"coefficient is given for \['a'\]"):
        corrected(GAME, lambda player, params, batch: params[player], {"a": 1.0})
