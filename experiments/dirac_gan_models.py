"""The Dirac GAN: its game, the ways to play it, and the flow that models each of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from driftlab.dynamics import Dynamics, State
from driftlab.flows.games import game_flow
from driftlab.flows.one_step import log_map_flow
from driftlab.flows.solve import solve
from driftlab.flows.vector_field import Field
from driftlab.game import Correction, Game, Players, corrected
from driftlab.play import alternating, runge_kutta, simultaneous
from driftlab.regularizers.games import (
    consensus_optimization,
    drift_correction,
    gradient_norm_correction,
    symplectic_gradient_adjustment,
)

Rates = Mapping[str, Any]
PLAYERS = ("phi", "theta")

# What `correction` returns depends on the rates: these follow the drift, which is O(h).
MULTIPLIERS = {
    "interaction_cancelled": (0.0, -1.0),
    "drift_cancelled": (-1.0, -1.0),
    "interaction_twice": (0.0, -2.0),
    "interaction_five_times": (0.0, -5.0),
}
# These are as large as the gradients, whatever the rates.
ADJUSTMENTS = ("regularized", "symplectic", "consensus")
TURNS = {"alternating": ("phi", "theta"), "alternating_theta_first": ("theta", "phi")}
PLAYS = (
    "simultaneous", *TURNS, *MULTIPLIERS, *ADJUSTMENTS, "optimistic", "extragradient", "rk4",
)  # fmt: skip
# Play -> the order of the gradient flow as its model, where that is not 1.
PLAIN_ORDERS = {"drift_cancelled": 2, "rk4": 4}
# The flows that are drawn beside the plays.
FLOWS = ("gradient_flow", "simultaneous_flow", *(f"{name}_flow" for name in TURNS))


class Errors(NamedTuple):
    """Distances between the iterates of a play and its models after a fixed time.

    Attributes:
      plain: of the gradient flow at the same rates, with adjustments as part of the gradient.
      modified: of the play's own flow of order 2; NaN where that is the gradient flow.
    """

    plain: Float[np.ndarray, "ratios rates"]
    modified: Float[np.ndarray, "ratios rates"]


def dirac_game() -> Game:
    """`L_theta = softplus(phi theta) = -L_phi`, zero-sum, with its equilibrium at 0.

    Returns:
      The game: `phi' = s(phi theta) theta`, `theta' = -s(phi theta) phi`, s the logistic function.
    """

    def divergence(params: Players, batch: Any) -> Float[Array, ""]:
        del batch
        return jnp.sum(jax.nn.softplus(params["phi"] * params["theta"]))

    return Game({"phi": lambda params, batch: -divergence(params, batch), "theta": divergence})


def start() -> Players:
    """Phi = theta = 1."""
    return {player: jnp.ones(1) for player in PLAYERS}


def make_play(name: str, rates: Rates, weight: float) -> Dynamics:
    """A way to play the Dirac GAN.

    Args:
      name: one of `PLAYS`.
      rates: player -> learning rate; may be traced.
      weight: of "symplectic" and "consensus", and what "regularized" has beyond a quarter of
        phi's learning rate.

    Returns:
      The dynamics.
    """
    game = dirac_game()
    if name in ("rk4", "extragradient"):
        return runge_kutta(rates, game, name)
    if name == "optimistic":
        txs = {p: optax.optimistic_gradient_descent(rate) for p, rate in rates.items()}
        return simultaneous(txs, game)
    txs = {p: optax.sgd(rate) for p, rate in rates.items()}
    if name in TURNS:
        return alternating(txs, game, TURNS[name])
    if name == "simultaneous":
        return simultaneous(txs, game)
    return simultaneous(txs, corrected(game, _correction(name, game, rates, weight)))


def make_field(name: str, rates: Rates) -> Field:
    """One of `FLOWS`, in rounds.

    Args:
      name: which.
      rates: player -> learning rate; may be traced.

    Returns:
      The field.
    """
    play = name.removesuffix("_flow")
    if play == "gradient":
        return game_flow(dirac_game(), rates, 1)
    return game_flow(dirac_game(), rates, turns=TURNS.get(play), simultaneous=play not in TURNS)


def make_models(name: str, rates: Rates, weight: float) -> tuple[Field, Field | None]:
    """The gradient flow of a play and its flow of order 2, in rounds.

    Args:
      name: one of `PLAYS`.
      rates: player -> learning rate; may be traced.
      weight: as in `make_play`.

    Returns:
      `(plain, modified)`; None where the gradient flow itself is of order 2 or more.
    """
    game = dirac_game()
    plain = game_flow(game, rates, 1)
    if name in PLAIN_ORDERS:
        return plain, None
    if name in ("simultaneous", *TURNS):
        return plain, make_field(f"{name}_flow", rates)
    if name in ("optimistic", "extragradient"):
        # Both look a step ahead: the drift of simultaneous play with its sign changed.
        drifting = game_flow(game, rates, 2, simultaneous=True)

        def against(t: Any, y: Players, args: Any) -> Players:
            return jax.tree.map(lambda a, b: 2 * a - b, plain(t, y, args), drifting(t, y, args))

        return plain, against
    once = _step(make_play(name, rates, weight))
    return log_map_flow(once, 1) if name in ADJUSTMENTS else plain, log_map_flow(once, 2)


def measure_errors(
    names: tuple[str, ...],
    rates: Float[np.ndarray, " rates"],
    ratios: Float[np.ndarray, " ratios"],
    duration: float,
    weight: float,
) -> dict[str, Errors]:
    """How far each play is from its models after a fixed time.

    Args:
      names: some of `PLAYS`.
      rates: learning rates h of phi; `duration / h` are whole numbers.
      ratios: theta's learning rate over phi's.
      duration: the time, in h times rounds.
      weight: as in `make_play`.

    Returns:
      Play -> errors.
    """
    import diffrax

    def one(name: str, ratio: Array, rate: Array) -> tuple[Array, Array]:
        each = {"phi": rate, "theta": ratio * rate}
        rounds = jnp.round(duration / rate).astype(int)
        dynamics = make_play(name, each, weight)
        state = dynamics.init(start(), jax.random.key(0))
        end = jax.lax.fori_loop(0, rounds, lambda _, s: dynamics.step(s), state).params

        def distance(field: Field | None) -> Array:
            if field is None:
                return jnp.full((), jnp.nan)
            solved = solve(field, start(), rounds, solver=diffrax.Dopri8(), rtol=1e-12)
            return jnp.hypot(*(solved.y[p][0] - end[p][0] for p in PLAYERS))

        plain, modified = make_models(name, each, weight)
        return distance(plain), distance(modified)

    def all_rates(name: str) -> Callable[[Array, Array], tuple[Array, Array]]:
        return jax.jit(lambda *lanes: jax.lax.map(lambda lane: one(name, *lane), lanes))

    lanes = [jnp.asarray(part.ravel()) for part in np.meshgrid(ratios, rates, indexing="ij")]
    shape = (len(ratios), len(rates))
    return {
        name: Errors(*(np.asarray(part).reshape(shape) for part in all_rates(name)(*lanes)))
        for name in names
    }


def _correction(name: str, game: Game, rates: Rates, weight: float) -> Correction:
    if name in MULTIPLIERS:
        return drift_correction(game, rates, *MULTIPLIERS[name], simultaneous=True)
    if name == "symplectic":
        return symplectic_gradient_adjustment(game, weight)
    if name == "consensus":
        return consensus_optimization(game, weight)
    # The published notebook's: the game of E + (h / 4 + w) |E_phi|^2, zero-sum.
    w = 2 * (rates["phi"] / 4 + weight)
    return gradient_norm_correction(game, {"phi": {"phi": -w}, "theta": {"phi": w}})


def _step(dynamics: Dynamics) -> Callable[[Players], Players]:
    key = jax.random.key(0)

    def step(y: Players) -> Players:
        return dynamics.step(State(y, dynamics.init(y, key).inner, jnp.zeros((), int), key)).params

    return step
