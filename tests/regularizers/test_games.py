"""Corrections of games: identities, and what cancelling the drift buys."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import flows, with_replacement
from driftlab.flows.games import game_flow
from driftlab.game import Game, corrected
from driftlab.play import alternating, simultaneous
from driftlab.regularizers.games import (
    consensus_optimization,
    drift_correction,
    gradient_norm_correction,
    symplectic_gradient_adjustment,
    weighted_correction,
)
from tests.flows.test_games import GAME, RATES, SCALES, START, TIME, phi_loss

ZERO_SUM = Game({"phi": phi_loss, "theta": lambda params, batch: -phi_loss(params, batch)})


def jacobian(game):
    """J of the joint gradient, dense, and the gradient, flat in the players' order."""
    flat, unflatten = jax.flatten_util.ravel_pytree(START)

    def field(vector):
        return jax.flatten_util.ravel_pytree(game.gradients(unflatten(vector), ()))[0]

    return jax.jacobian(field)(flat), field(flat), unflatten


def all_players(correction, game=GAME):
    return {player: correction(player, START, ()) for player in game.players}


def assert_equal(found, expected):
    for player in expected:
        np.testing.assert_allclose(found[player], expected[player], rtol=1e-12, atol=1e-13)


def cancelled_orders(multipliers, play, clock="one"):
    def one(scale):
        rates = {player: rate * scale for player, rate in RATES.items()}
        options = {"simultaneous": play is simultaneous, "clock": clock}
        game = corrected(GAME, drift_correction(GAME, rates, *multipliers, **options))
        dynamics = play({player: optax.sgd(rate) for player, rate in rates.items()}, game)
        rounds = jnp.round(TIME / scale).astype(int)
        state = dynamics.init(START, jax.random.key(0))
        state = jax.lax.fori_loop(0, rounds, lambda i, s: dynamics.step(s), state)
        field = game_flow(GAME, rates, 1)
        solved = flows.solve(field, START, rounds, solver=diffrax.Dopri8(), rtol=1e-11)
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), state.params, solved.y)
        return jnp.sqrt(sum(jax.tree.leaves(squares)))

    errors = jax.jit(lambda scales: jax.lax.map(one, scales))(jnp.asarray(SCALES))
    return flows.observed_orders(SCALES, errors)[-1]


@pytest.mark.parametrize("play", [simultaneous, alternating])
def test_cancelling_all_terms_raises_the_order_by_one(play):
    np.testing.assert_allclose(cancelled_orders((-1.0, -1.0), play), 2, atol=0.1)
    np.testing.assert_allclose(cancelled_orders((0.0, 0.0), play), 1, atol=0.1)


def test_the_sources_coefficients_cancel_nothing_at_unequal_rates():
    # rosca.md, 4.3: the released code's coefficients are those of each player's own time.
    np.testing.assert_allclose(cancelled_orders((-1.0, -1.0), simultaneous, "own"), 1, atol=0.1)


def test_cancelled_interaction_is_symplectic_gradient_adjustment():
    h = 0.2
    rates = {"phi": h, "theta": h}
    drift = drift_correction(ZERO_SUM, rates, 0.0, -1.0, simultaneous=True)
    adjustment = symplectic_gradient_adjustment(ZERO_SUM, h / 2)
    assert_equal(all_players(drift, ZERO_SUM), all_players(adjustment, ZERO_SUM))


def test_adjustment_and_consensus_against_the_dense_jacobian():
    dense, xi, unflatten = jacobian(GAME)
    assert_equal(
        all_players(symplectic_gradient_adjustment(GAME, 0.7)),
        unflatten(0.7 * (dense.T - dense) @ xi / 2),
    )
    assert_equal(all_players(consensus_optimization(GAME, 0.7)), unflatten(0.7 * dense.T @ xi))
    pulled, adjusted = dense.T @ xi, (dense.T - dense) @ xi / 2
    sign = jnp.sign((xi @ pulled) * (adjusted @ pulled) / 2 + 0.1)
    assert_equal(
        all_players(symplectic_gradient_adjustment(GAME, 0.7, align=True)),
        unflatten(0.7 * sign * adjusted),
    )


def test_consensus_is_the_self_norm_and_the_other_norm():
    both = {"phi": {"phi": 0.3, "theta": 0.3}, "theta": {"phi": 0.3, "theta": 0.3}}
    assert_equal(
        all_players(gradient_norm_correction(GAME, both)),
        all_players(consensus_optimization(GAME, 0.3)),
    )


def test_weights_of_pairs_against_the_dense_jacobian():
    dense, xi, _ = jacobian(GAME)
    found = weighted_correction(GAME, {"phi": {"theta": 0.4}, "theta": {"theta": -0.2}})
    np.testing.assert_allclose(found("phi", START, ()), 0.4 * dense[:2, 2:] @ xi[2:], rtol=1e-12)
    np.testing.assert_allclose(found("theta", START, ()), -0.2 * dense[2:, 2:] @ xi[2:], rtol=1e-12)
    only_phi = weighted_correction(GAME, {"phi": {"phi": 1.0}})
    np.testing.assert_array_equal(only_phi("theta", START, ()), jnp.zeros(2))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_the_mean_of_the_unbiased_estimator_is_the_product_of_means(estimator):
    values = jnp.array([1.0, 2.0, 4.0, -3.0])

    def loss(sign):
        return lambda params, batch: (
            sign * jnp.mean(batch) * jnp.sum(params["phi"] ** 2 * params["theta"])
        )

    game = Game({"phi": loss(1.0), "theta": loss(-1.0)}, values, with_replacement(2))
    correction = weighted_correction(game, {"phi": {"phi": 1.0, "theta": 0.5}}, estimator)
    # Every batch of two examples drawn with replacement, equally likely.
    pairs = jnp.stack(jnp.meshgrid(values, values), axis=-1).reshape(-1, 2)
    mean = jnp.mean(jax.vmap(lambda pair: correction("phi", START, pair))(pairs), axis=0)
    exact = weighted_correction(game, {"phi": {"phi": 1.0, "theta": 0.5}})("phi", START, values)
    differs = float(jnp.max(jnp.abs(mean - exact)))
    assert (differs < 1e-12) == (estimator == "unbiased")


def test_clear_errors():
    with pytest.raises(ValueError, match="estimator='none' must be"):
        weighted_correction(GAME, {}, "none")
    with pytest.raises(ValueError, match="weights name 'psi'"):
        weighted_correction(GAME, {"psi": {"phi": 1.0}})
    with pytest.raises(ValueError, match=r"self_multiplier is given for \['phi'\]"):
        drift_correction(GAME, RATES, {"phi": -1.0}, simultaneous=True)
    odd = weighted_correction(GAME, {"phi": {"phi": 1.0}}, "unbiased")
    with pytest.raises(ValueError, match=r"halves the batch, whose arrays have \[3\] examples"):
        odd("phi", START, jnp.ones(3))
    whole = Game(GAME.losses, jnp.ones(4))
    with pytest.raises(ValueError, match="'unbiased' with sampling full_batch: its halves"):
        weighted_correction(whole, {"phi": {"phi": 1.0}}, "unbiased")
