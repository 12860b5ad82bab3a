"""The losses that the players of a discretised game minimise instead of their own."""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from driftlab.checks import check_players, check_round
from driftlab.flows.games import Clock, interaction_coefficients
from driftlab.game import Game, PlayerLoss, Players
from driftlab.objective import Batch

Form = Literal["stop_gradient", "frozen", "zero_sum", "common_payoff"]
FORMS = ("stop_gradient", "frozen", "zero_sum", "common_payoff")


def modified_game_losses(
    losses: Game | Mapping[str, PlayerLoss],
    learning_rates: Mapping[str, ArrayLike],
    *,
    form: Form = "stop_gradient",
    start: Players | None = None,
    turns: Sequence[str] | None = None,
    updates: Sequence[int] | None = None,
    simultaneous: bool | None = None,
    clock: Clock = "one",
) -> dict[str, PlayerLoss]:
    """Losses whose gradients, each in its own player's parameters, are the order-2 drift's.

    With the K of `driftlab.flows.games.interaction_coefficients` and `c_pq = -K_pq / a_p`,

        L_p + (c_pp / 2) |grad_p L_p|^2 + sum_{q != p} c_pq grad_q L_p . w_q,

    the first a self term, the others interaction terms, where w_q is

    - `stop_gradient`: `grad_q L_q` at the present parameters, not differentiated: general-sum, the
      field of `game_flow` exactly, though no player descends a function.
    - `frozen`: `grad_q L_q` at `start`, a constant of this round: each player truly descends a
      loss, to be made anew every round; as accurate over one.
    - `zero_sum`, `common_payoff`: `-grad_q L_p` and `grad_q L_p`, so that the term is `-+ (c_pq /
      2) |grad_q L_p|^2`: of `L_2 = -L_1` and of `L_2 = L_1`, which are the caller's to see to. In
      simultaneous zero-sum play each player then *raises* the other's gradient norm.

    Args:
      losses: the game, or player -> `loss(params, batch) -> scalar`.
      learning_rates: player -> s_p of one update.
      form: one of the above.
      start: everyone's parameters before the round; for `frozen`, and for it alone.
      turns: as in `game_flow`.
      updates: likewise.
      simultaneous: likewise.
      clock: likewise.

    Returns:
      player -> `loss(params, batch) -> scalar`, losses of a `Game`; gradient flow on it at rates
      a_p is the modified flow.

    Raises:
      ValueError: if there is no such form, the game has a correction, start is missing or has no
        use, or there are more than two players in `zero_sum`; as `game_flow`.

    Source: Rosca, Wu, Dherin & Barrett (2021), corollaries 5.1 and 5.2; frozen, Rosca & Deisenroth
    (2023). Cost: the gradients in it; differentiated, a Hessian-vector product each.
    """
    game = losses if isinstance(losses, Game) else Game(losses)
    check_players("learning_rates", learning_rates, game.players)
    if game.correction is not None:
        raise ValueError(
            "the game has a correction, which need not be the gradient of anything: there are no "
            "losses of it. game_flow has its field."
        )
    if form not in FORMS:
        raise ValueError(f"form={form!r} must be one of {', '.join(FORMS)}.")
    if (form == "frozen") != (start is not None):
        raise ValueError(
            "form='frozen' needs start, everyone's parameters before the round, and no other form "
            f"takes it; form={form!r}, start is {'missing' if start is None else 'given'}."
        )
    if form == "zero_sum" and len(game.players) != 2:
        raise ValueError(f"form='zero_sum' is of two players; the game has {game.players}.")
    rates = {player: learning_rates[player] for player in game.players}
    coefficients = interaction_coefficients(rates, turns, updates, simultaneous, clock)
    names, counts = check_round(game.players, turns, updates)
    moves = dict(zip(names, counts, strict=True))

    def modified(p: str, params: Players, batch: Batch) -> Float[Array, ""]:
        def loss(joint: Players) -> Float[Array, ""]:
            return game.losses[p](joint, batch)

        value, gradient = jax.value_and_grad(loss)(params)
        total = value
        for q in game.players:
            factor = jnp.asarray(-coefficients[p][q] / (moves[p] * rates[p]), value.dtype)
            if q == p:
                total = total + factor / 2 * optax.tree.vdot(gradient[p], gradient[p])
            elif form in ("zero_sum", "common_payoff"):
                sign = -1 if form == "zero_sum" else 1
                total = total + sign * factor / 2 * optax.tree.vdot(gradient[q], gradient[q])
            else:
                at = params if start is None else start
                other = jax.lax.stop_gradient(game.gradient(q, at, batch)[1])
                total = total + factor * optax.tree.vdot(gradient[q], other)
        return total

    def of(player: str) -> PlayerLoss:
        return lambda params, batch: modified(player, params, batch)

    return {player: of(player) for player in game.players}
