"""Flows of games: orders of convergence, coefficients, modified losses."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import flows
from driftlab.flows.game_losses import modified_game_losses
from driftlab.flows.games import (
    drift_term,
    game_flow,
    game_log_map_flow,
    game_step,
    interaction_coefficients,
)
from driftlab.game import Game

SCALES = (0.02, 0.01, 0.005)
TIME = 1.0
# Rates of the players as multiples of the scale: unequal, so that one clock matters.
RATES = {"phi": 1.0, "theta": 2.5}
START = {"phi": jnp.array([0.4, -0.3]), "theta": jnp.array([0.2, 0.5])}
A = jnp.array([[1.0, 0.3], [-0.4, 0.8]])


def phi_loss(params, batch):
    del batch
    phi, theta = params["phi"], params["theta"]
    return phi @ A @ theta + 0.3 * phi @ phi + 0.2 * jnp.sum(jnp.sin(phi) * theta**2)


def theta_loss(params, batch):
    del batch
    phi, theta = params["phi"], params["theta"]
    return -phi @ A.T @ theta + 0.2 * theta @ theta + 0.3 * jnp.sum(jnp.cos(theta) * phi)


GAME = Game({"phi": phi_loss, "theta": theta_loss})
ROUNDS = {
    "simultaneous": {"simultaneous": True},
    "alternating": {"simultaneous": False},
    "the other first": {"turns": ("theta", "phi")},
    "three and two": {"updates": (3, 2)},
    "two and three, the other first": {"updates": (2, 3), "turns": ("theta", "phi")},
}


def distance(field, step, start, scale):
    """Between the flow and the rounds after time TIME, a round being the scale of time."""
    rounds = jnp.round(TIME / scale).astype(int)
    moved = jax.lax.fori_loop(0, rounds, lambda i, y: step(y), start)
    solved = flows.solve(field, start, rounds, solver=diffrax.Dopri8(), rtol=1e-11)
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), moved, solved.y)
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def orders(make_field, options):
    def one(scale):
        rates = {player: rate * scale for player, rate in RATES.items()}
        step = game_step(GAME, rates, **options)
        return distance(make_field(rates), step, START, scale)

    errors = jax.jit(lambda scales: jax.lax.map(one, scales))(jnp.asarray(SCALES))
    return flows.observed_orders(SCALES, errors)


@pytest.mark.parametrize("name", ROUNDS)
def test_order_two_is_one_order_above_the_plain_flow(name):
    options = ROUNDS[name]
    plain = orders(lambda rates: game_flow(GAME, rates, 1, **options), options)
    second = orders(lambda rates: game_flow(GAME, rates, 2, **options), options)
    np.testing.assert_allclose([plain[-1], second[-1]], [1, 2], atol=0.1)


# (1, 1), (3, 2) and (2, 3) are above.
@pytest.mark.parametrize("updates", [(1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 3)])
def test_any_number_of_updates(updates):
    found = orders(lambda rates: game_flow(GAME, rates, updates=updates), {"updates": updates})
    np.testing.assert_allclose(found[-1], 2, atol=0.1)


@pytest.mark.parametrize("name", ["simultaneous", "three and two"])
def test_the_round_itself_gives_any_order(name):
    options = ROUNDS[name]
    found = orders(lambda rates: game_log_map_flow(GAME, rates, 3, **options), options)
    np.testing.assert_allclose(found[-1], 3, atol=0.1)


def test_own_time_is_no_trajectory_at_unequal_rates():
    options = ROUNDS["simultaneous"]
    found = orders(lambda rates: game_flow(GAME, rates, 2, clock="own", **options), options)
    np.testing.assert_allclose(found[-1], 1, atol=0.1)


def test_own_time_is_true_of_each_player_after_its_own_time():
    # Theorem 3.1: phi after time a, theta after time l, of one flow in the losses' own time.
    def one(scale):
        rates = {player: rate * scale for player, rate in RATES.items()}
        moved = game_step(GAME, rates, simultaneous=True)(START)
        coefficients = interaction_coefficients(rates, simultaneous=True, clock="own")

        def field(t, y, args):
            xi = GAME.gradients(y, ())

            def rate(p):
                weights = {q: c / rates[p] for q, c in coefficients[p].items()}
                return -xi[p] + drift_term(GAME, p, weights, y)

            return {p: rate(p) for p in y}

        def after(player):
            solved = flows.solve(field, START, rates[player], solver=diffrax.Dopri8(), rtol=1e-11)
            return jnp.sum((solved.y[player] - moved[player]) ** 2)

        return jnp.sqrt(after("phi") + after("theta"))

    errors = jax.jit(lambda scales: jax.lax.map(one, scales))(jnp.asarray(SCALES))
    np.testing.assert_allclose(flows.observed_orders(SCALES, errors)[-1], 3, atol=0.1)


def test_coefficients_of_the_theorems():
    a, b, m, k = 0.3, 0.7, 3, 2
    rates = {"phi": a / m, "theta": b / k}
    one = interaction_coefficients(rates, updates=(m, k))
    own = interaction_coefficients(rates, updates=(m, k), clock="own")
    np.testing.assert_allclose(
        [one["phi"]["phi"], one["phi"]["theta"], one["theta"]["phi"], one["theta"]["theta"]],
        [-a * a / (2 * m), -a * b / 2, a * b / 2, -b * b / (2 * k)],
    )
    np.testing.assert_allclose(
        [own["phi"]["phi"], own["phi"]["theta"], own["theta"]["phi"], own["theta"]["theta"]],
        [-a * a / (2 * m), -a * a / 2, -b * b / 2 * (1 - 2 * a / b), -b * b / (2 * k)],
    )


@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.parametrize("form", ["stop_gradient", "frozen"])
def test_modified_losses_have_the_field_for_their_gradient(name, form):
    rates = {player: 0.1 * rate for player, rate in RATES.items()}
    start = START if form == "frozen" else None
    options = ROUNDS[name]
    modified = Game(modified_game_losses(GAME, rates, form=form, start=start, **options))
    field = game_flow(GAME, rates, **options)(0.0, START, None)
    counts = dict(zip(options.get("turns", RATES), options.get("updates", (1, 1)), strict=True))
    for player, xi in modified.gradients(START, ()).items():
        np.testing.assert_allclose(
            -counts[player] * rates[player] * xi, field[player], rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("form", ["zero_sum", "common_payoff"])
def test_the_special_cases_are_the_general_one(form):
    sign = -1 if form == "zero_sum" else 1
    game = Game({"phi": phi_loss, "theta": lambda params, batch: sign * phi_loss(params, batch)})
    rates = {"phi": 0.1, "theta": 0.25}
    for options in ROUNDS.values():
        general = Game(modified_game_losses(game, rates, **options)).gradients(START, ())
        special = modified_game_losses(game, rates, form=form, **options)
        special = Game(special).gradients(START, ())
        for player in rates:
            np.testing.assert_allclose(special[player], general[player], rtol=1e-12)


def test_frozen_losses_end_where_the_round_does():
    def one(scale):
        rates = {player: rate * scale for player, rate in RATES.items()}
        modified = Game(
            modified_game_losses(GAME, rates, form="frozen", start=START, simultaneous=False)
        )
        moved = game_step(GAME, rates, simultaneous=False)(START)
        field = game_flow(modified, rates, 1)
        solved = flows.solve(field, START, 1.0, solver=diffrax.Dopri8(), rtol=1e-12)
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), moved, solved.y)
        return jnp.sqrt(sum(jax.tree.leaves(squares)))

    errors = jax.jit(lambda scales: jax.lax.map(one, scales))(jnp.asarray(SCALES))
    np.testing.assert_allclose(flows.observed_orders(SCALES, errors)[-1], 3, atol=0.1)


def test_three_players():
    def loss(player, other):
        return lambda params, batch: jnp.sum(
            params[player] * params[other] + jnp.cos(params[player]) * params["c"] ** 2
        )

    game = Game({"a": loss("a", "b"), "b": loss("b", "c"), "c": loss("c", "a")})
    start = {"a": jnp.array([0.3]), "b": jnp.array([-0.2]), "c": jnp.array([0.5])}
    options = {"turns": ("c", "a", "b"), "updates": (1, 2, 1)}

    def one(scale):
        rates = {"a": scale, "b": 2 * scale, "c": 0.5 * scale}
        step = game_step(game, rates, **options)
        return distance(game_flow(game, rates, **options), step, start, scale)

    errors = jax.jit(lambda scales: jax.lax.map(one, scales))(jnp.asarray(SCALES))
    np.testing.assert_allclose(flows.observed_orders(SCALES, errors)[-1], 2, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "must be 1 or 2"),
        ({"clock": "none", "simultaneous": True}, "clock='none'"),
        ({}, "say how the game is played"),
        ({"turns": ("phi",)}, "must name each of the players"),
        ({"updates": (1, 0)}, "positive integers"),
        ({"updates": (2, 1), "simultaneous": True}, "no meaning in simultaneous play"),
    ],
)
def test_clear_errors(options, message):
    with pytest.raises(ValueError, match=message):
        game_flow(GAME, RATES, **options)


def test_rates_are_checked():
    with pytest.raises(ValueError, match=r"\['theta'\] missing"):
        game_flow(GAME, {"phi": 0.1})
    with pytest.raises(ValueError, match="player 'theta' is -0.1; it must be positive"):
        game_flow(GAME, {"phi": 0.1, "theta": -0.1})
