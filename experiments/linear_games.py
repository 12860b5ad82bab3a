"""Linear games of two numbers, the ways to play them, and what theory says of their stability."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from driftlab.dynamics import Dynamics, Snapshot, State
from driftlab.flows.game_spectra import dense_jacobian, spectral_abscissa, spectral_radius
from driftlab.flows.games import game_flow, game_step
from driftlab.game import Game, Players
from driftlab.play import alternating, simultaneous

# Name -> (e1, e2, c1, c2) of phi' = -e1 phi + c1 theta, theta' = -c2 phi - e2 theta.
GAMES = {
    "bilinear": (0.0, 0.0, 1.0, 1.0),
    "quadratic_0.09": (0.09, 0.09, 1.0, 1.0),
    "quadratic_0.2": (0.2, 0.2, 1.0, 1.0),
    # The second player's own curvature alone holds the first; strong, so that speeds limit too.
    "one_sided": (0.0, 1.0, 1.0, 1.0),
    # Not zero-sum, and its flow's eigenvalues are real.
    "common_payoff": (1.0, 0.5, 0.6, -0.6),
}
# Eigenvalues on the unit circle, or the imaginary axis, are there to rounding.
ROUNDING = 1e-9
# Name -> options of `game_flow` and `game_step`.
PLAYS: dict[str, dict[str, Any]] = {
    "simultaneous": {"simultaneous": True},
    "alternating": {"simultaneous": False},
    "alternating_1_to_2": {"updates": (1, 2)},
}


def linear_game(name: str) -> Game:
    """`L_phi = e1 phi^2 / 2 - c1 phi theta`, `L_theta = e2 theta^2 / 2 + c2 phi theta`.

    Args:
      name: one of `GAMES`.

    Returns:
      The game, with its only equilibrium at 0.
    """
    e1, e2, c1, c2 = GAMES[name]

    def phi_loss(params: Players, batch: Any) -> Float[Array, ""]:
        del batch
        return jnp.sum(e1 / 2 * params["phi"] ** 2 - c1 * params["phi"] * params["theta"])

    def theta_loss(params: Players, batch: Any) -> Float[Array, ""]:
        del batch
        return jnp.sum(e2 / 2 * params["theta"] ** 2 + c2 * params["phi"] * params["theta"])

    return Game({"phi": phi_loss, "theta": theta_loss})


def start() -> Players:
    """The start of the reference's simulation, no eigenvector of these games."""
    return {"phi": jnp.array([0.08]), "theta": jnp.array([-0.05])}


def make_play(game: str, play: str, rates: Mapping[str, Any]) -> Dynamics:
    """Gradient play.

    Args:
      game: one of `GAMES`.
      play: one of `PLAYS`.
      rates: player -> learning rate of one update; may be traced.

    Returns:
      The dynamics.
    """
    txs = {player: optax.sgd(rate) for player, rate in rates.items()}
    if play == "simultaneous":
        return simultaneous(txs, linear_game(game))
    return alternating(txs, linear_game(game), updates=PLAYS[play].get("updates"))


def with_peak(dynamics: Dynamics, rates: Mapping[str, Any], every: int) -> Dynamics:
    """The same dynamics, which remembers its largest size since the last record.

    The size is `sqrt(phi^2 / a + theta^2 / b)`, which a zero-sum game's gradient flow conserves.
    Looked at every so often it would only be sampled: of a rotation by nearly a whole number of
    half turns between records one sees slow growth where there is none.

    Args:
      dynamics: gradient play of a linear game.
      rates: player -> learning rate; may be traced.
      every: rounds a record.

    Returns:
      The dynamics; its inner state is `(that of dynamics, the largest size)`.
    """

    def size(params: Players) -> Array:
        return jnp.sqrt(sum(jnp.sum(params[player] ** 2) / rates[player] for player in params))

    def init(params: Players, key: PRNGKeyArray) -> State:
        state = dynamics.init(params, key)
        return state._replace(inner=(state.inner, size(state.params)))

    def wrapped(state: State, moved: State) -> State:
        new = size(moved.params)
        # A record at step k holds the rounds from k - every + 1 to k.
        fresh = state.step % every == 0
        return moved._replace(
            inner=(moved.inner, jnp.where(fresh, new, jnp.maximum(state.inner[1], new)))
        )

    def observe(state: State) -> Snapshot:
        inside = dynamics.observe(state._replace(inner=state.inner[0]))
        following = wrapped(state, inside.next_state)
        return inside._replace(state=state, next_state=following, dynamics=outside)

    outside = Dynamics(init, lambda state: observe(state).next_state, observe)
    return outside


def theory(
    game: str,
    play: str,
    phi_rates: Float[np.ndarray, " phi"],
    theta_rates: Float[np.ndarray, " theta"],
) -> tuple[Float[np.ndarray, "phi theta"], Float[np.ndarray, "phi theta"]]:
    """Growth a round, by the map of a round and by its modified flow.

    Args:
      game: one of `GAMES`.
      play: one of `PLAYS`.
      phi_rates: learning rates of phi.
      theta_rates: of theta.

    Returns:
      `(log of the spectral radius of the round's Jacobian, spectral abscissa of the order-2
      flow's)`, in 64 bits; positive where unstable.
    """
    zero = {player: jnp.zeros(1) for player in ("phi", "theta")}

    def one(phi_rate: Array, theta_rate: Array) -> tuple[Array, Array]:
        rates = {"phi": phi_rate, "theta": theta_rate}
        step = game_step(linear_game(game), rates, **PLAYS[play])
        field = game_flow(linear_game(game), rates, **PLAYS[play])
        return (
            jnp.log(spectral_radius(dense_jacobian(step, zero))),
            spectral_abscissa(dense_jacobian(lambda y: field(0.0, y, None), zero)),
        )

    with jax.enable_x64(True):
        zero = {player: jnp.zeros(1) for player in ("phi", "theta")}
        over = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
        rounds, modified = over(jnp.asarray(phi_rates), jnp.asarray(theta_rates))
        return np.asarray(rounds), np.asarray(modified)
