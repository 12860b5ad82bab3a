"""Modified flows of games: what simultaneous and alternating play follow, to order 2 or any.

All fields here count time in iterations (rounds): each player has a learning rate of its own, and
one clock for all is what makes the joint path a trajectory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from driftlab.checks import check_players, check_rates, check_round, check_scheme
from driftlab.flows.one_step import log_map_flow
from driftlab.flows.vector_field import Field
from driftlab.game import Game, PlayerLoss, Players
from driftlab.objective import Params

Clock = Literal["one", "own"]
# player -> player -> coefficient
Coefficients = dict[str, dict[str, Any]]


def interaction_coefficients(
    learning_rates: Mapping[str, ArrayLike],
    order: Sequence[str] | None = None,
    updates: Sequence[int] | None = None,
    simultaneous: bool | None = None,
    clock: Clock = "one",
) -> Coefficients:
    """K_pq of the drift: a round moves p along `a_p v_p + sum_q K_pq (d_q v_p) v_q`, to order 2.

    With `v_p = -grad_p L_p`, s_p the learning rate of one update, n_p updates a round, `a_p = n_p
    s_p`, and N_pq the number of pairs of an update of p and an earlier one of q that it saw,

        K_pq = s_p s_q N_pq - a_p a_q / 2.

    For simultaneous play N = 0; for `m` updates of the first and `k` of the second `N_22 = k
    (k - 1) / 2`, `N_21 = m k`, `N_12 = 0`, so that `K_21 = +a_1 a_2 / 2`: its sign changes.

    Args:
      learning_rates: player -> s_p; may be traced.
      order: the players in turn; None for the order of learning_rates.
      updates: n_p, in that order; None for one each. Not for simultaneous play.
      simultaneous: whether all move at once; it may be left out where order or updates are given.
      clock: "one": every player's parameters at the same time, an ODE. "own": p's parameters after
        its own time a_p, the form of the source's theorems, with `a_p a_p / 2` in place of
        `a_p a_q / 2`. It is true of one round, but with unequal rates its field has no trajectory
        that the iterates follow.

    Returns:
      player p -> player q -> K_pq.

    Raises:
      ValueError: if a learning rate is not positive, clock is neither, or order and updates are no
        round (`driftlab.play.alternating`).

    Source: Rosca, Wu, Dherin & Barrett (2021), theorems 3.1 and 3.2, for two players and clock
    "own"; the common form and clock "one" are driftlab's own, from the composition of the updates.
    """
    check_rates(learning_rates)
    simultaneous = check_scheme(simultaneous, order, updates)
    if clock not in ("one", "own"):
        raise ValueError(f"clock={clock!r} must be 'one' or 'own'.")
    order, counts = check_round(tuple(learning_rates), order, updates)
    moves = dict(zip(order, counts, strict=True))
    place = {player: i for i, player in enumerate(order)}

    def seen(p: str, q: str) -> float:
        if simultaneous:
            return 0.0
        if p == q:
            return moves[p] * (moves[p] - 1) / 2
        return float(moves[p] * moves[q]) if place[q] < place[p] else 0.0

    def coefficient(p: str, q: str) -> Any:
        s_p, s_q = learning_rates[p], learning_rates[q]
        a_p, a_q = moves[p] * s_p, moves[q] * s_q
        return s_p * s_q * seen(p, q) - a_p * (a_q if clock == "one" else a_p) / 2

    return {p: {q: coefficient(p, q) for q in order} for p in order}


def drift_term(
    losses: Game | Mapping[str, PlayerLoss],
    player: str,
    weights: Mapping[str, ArrayLike],
    params: Players,
    batch: Any = (),
    other_batch: Any = None,
) -> Params:
    """`sum_q w_q (d_q xi_p) xi_q`, with `xi_p = grad_p L_p`: what discretisation adds to player p.

    Args:
      losses: the game, or player -> `loss(params, batch)`.
      player: p.
      weights: player q -> w_q; who is left out counts as 0.
      params: everyone's parameters.
      batch: what the losses take.
      other_batch: the batch of the factor xi_q; None for the same. Two independent batches make
        the product unbiased.

    Returns:
      The structure of the player's parameters.

    Raises:
      ValueError: if player or weights name no player, or params are not those of all.

    Cost: the gradients of the players in weights, and one Hessian-vector product of L_p.
    """
    game = losses if isinstance(losses, Game) else Game(losses)
    check_players("params", params, game.players)
    unknown = sorted({player, *weights} - set(game.players))
    if unknown:
        raise ValueError(f"{unknown} are no players of the game: those are {game.players}.")
    factor_batch = batch if other_batch is None else other_batch
    moving = [q for q in params if q in weights]
    tangents = {}
    for q in params:
        if q not in moving:
            tangents[q] = jax.tree.map(jnp.zeros_like, params[q])
            continue
        xi = game.gradient(q, params, factor_batch)[1]
        tangents[q] = jax.tree.map(lambda g, w=weights[q]: jnp.asarray(w, g.dtype) * g, xi)
    return jax.jvp(lambda joint: game.gradient(player, joint, batch)[1], (params,), (tangents,))[1]


def game_flow(
    losses: Game | Mapping[str, PlayerLoss],
    learning_rates: Mapping[str, ArrayLike],
    order: int = 2,
    *,
    turns: Sequence[str] | None = None,
    updates: Sequence[int] | None = None,
    simultaneous: bool | None = None,
    clock: Clock = "one",
    batch: Any = None,
) -> Field:
    """The flow that rounds of gradient play follow, to order 1 or 2; `y` is player -> parameters.

    `d theta_p / dt = -a_p xi_p + sum_q K_pq (d_q xi_p) xi_q`, t in rounds, with the K of
    `interaction_coefficients`: after a fixed a t the distance to the iterates is O(h^order).
    Order 1 leaves the sum out. For more terms see `game_log_map_flow`.

    Args:
      losses: the game, whose corrections are part of xi; or player -> `loss(params, batch) ->
        scalar`.
      learning_rates: player -> s_p of one update; may be traced.
      order: 1 or 2.
      turns: the players in turn; None for the order of the losses.
      updates: how many updates each makes a round; None for one each.
      simultaneous: whether all move at once. It must be said at order 2, unless turns or updates
        do: the two drift in opposite ways.
      clock: "one", or the source's "own" (see `interaction_coefficients`).
      batch: what the losses take; None for all the data of a game, and `()` of losses.

    Returns:
      `field(t, y, args)`, which ignores t and args.

    Raises:
      ValueError: if order is not 1 or 2, or the players do not match; as
        `interaction_coefficients`.

    Source: Rosca, Wu, Dherin & Barrett (2021); see `interaction_coefficients`. Cost: every player's
    gradient, and at order 2 a Hessian-vector product each.
    """
    game, batch = _with_batch(losses, batch)
    check_players("learning_rates", learning_rates, game.players)
    check_rates(learning_rates)
    if order not in (1, 2):
        raise ValueError(f"order={order!r} must be 1 or 2; game_log_map_flow has more terms.")
    rates = {player: learning_rates[player] for player in game.players}
    names, counts = check_round(game.players, turns, updates)
    moves = dict(zip(names, counts, strict=True))
    coefficients: Coefficients = {}
    if order == 2:
        coefficients = interaction_coefficients(rates, turns, updates, simultaneous, clock)

    def field(t: Any, y: Players, args: Any) -> Players:
        del t, args
        check_players("y", y, game.players)
        xi = {p: game.corrected_gradient(p, y, batch) for p in y}

        def rate(p: str) -> Params:
            plain = jax.tree.map(lambda g: -jnp.asarray(moves[p] * rates[p], g.dtype) * g, xi[p])
            if order == 1:
                return plain
            tangents = {
                q: jax.tree.map(lambda g, w=coefficients[p][q]: jnp.asarray(w, g.dtype) * g, xi[q])
                for q in y
            }
            drift = jax.jvp(lambda at: game.corrected_gradient(p, at, batch), (y,), (tangents,))[1]
            return jax.tree.map(jnp.add, plain, drift)

        return {p: rate(p) for p in y}

    return field


def game_step(
    losses: Game | Mapping[str, PlayerLoss],
    learning_rates: Mapping[str, ArrayLike],
    *,
    turns: Sequence[str] | None = None,
    updates: Sequence[int] | None = None,
    simultaneous: bool | None = None,
    batch: Any = None,
) -> Callable[[Players], Players]:
    """One round of gradient play as a map of the joint parameters.

    Args:
      losses: as in `game_flow`.
      learning_rates: likewise.
      turns: likewise.
      updates: likewise.
      simultaneous: likewise.
      batch: likewise.

    Returns:
      `y -> y`.

    Raises:
      ValueError: as `game_flow`.
    """
    game, batch = _with_batch(losses, batch)
    check_players("learning_rates", learning_rates, game.players)
    check_rates(learning_rates)
    at_once = check_scheme(simultaneous, turns, updates)
    names, counts = check_round(game.players, turns, updates)

    def moved(player: str, y: Players) -> Params:
        xi = game.corrected_gradient(player, y, batch)
        return jax.tree.map(
            lambda leaf, g: leaf - jnp.asarray(learning_rates[player], g.dtype) * g, y[player], xi
        )

    def step(y: Players) -> Players:
        check_players("y", y, game.players)
        if at_once:
            return {player: moved(player, y) for player in y}
        for player, count in zip(names, counts, strict=True):
            for _ in range(count):
                y = {**y, player: moved(player, y)}
        return y

    return step


def game_log_map_flow(
    losses: Game | Mapping[str, PlayerLoss],
    learning_rates: Mapping[str, ArrayLike],
    order: int,
    **round_options: Any,
) -> Field:
    """The flow of rounds of gradient play to any order, from the round itself.

    `driftlab.flows.log_map_flow(game_step(...), order, 1.0)`: no derivative beyond the gradients.
    At order 2 it agrees with `game_flow` to one order more than both have.

    Args:
      losses: as in `game_flow`.
      learning_rates: likewise.
      order: the number of terms.
      **round_options: turns, updates, simultaneous, batch, as in `game_flow`.

    Returns:
      `field(t, y, args)`, in rounds.

    Raises:
      ValueError: as `game_flow` and `log_map_flow`.
      TypeError: as `log_map_flow`.

    Cost: `order` rounds an evaluation.
    """
    return log_map_flow(game_step(losses, learning_rates, **round_options), order, 1.0)


def _with_batch(losses: Game | Mapping[str, PlayerLoss], batch: Any) -> tuple[Game, Any]:
    """The game, and what its losses take: all its data where nothing is given."""
    game = losses if isinstance(losses, Game) else Game(losses)
    if batch is not None:
        return game, batch
    if game.draw is not None:
        raise ValueError(
            "a game that draws random numbers for every batch has no flow of its own: pass batch="
            "game.batch(key, step), the numbers of one step."
        )
    return game, game.data
