"""How a game is played: all at once, in turn, or by Runge-Kutta. Each is a `Dynamics`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree

from driftlab.checks import check_params, check_players, check_rates, check_round
from driftlab.dynamics import Dynamics, Snapshot, State, eval_params
from driftlab.game import Game, Players, no_single_loss
from driftlab.objective import Batch, Params

# Explicit Runge-Kutta methods: rows of a, then b.
_TABLEAUX = {
    "euler": ([], [1.0]),
    "heun": ([[1.0]], [0.5, 0.5]),
    "rk4": ([[0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    "extragradient": ([[1.0]], [0.0, 1.0]),
}


class _Moved(NamedTuple):
    params: Players
    inner: PyTree
    gradients: Players
    batch: Batch


def simultaneous(txs: Mapping[str, optax.GradientTransformation], game: Game) -> Dynamics:
    """Every player moves at once, from the same theta: `theta_p <- theta_p + tx_p(xi_p(theta))`.

    Args:
      txs: player -> any optax chain, whose hyper-parameters may be traced: learning rates of two
        players are two lane axes.
      game: what they play.

    Returns:
      The dynamics; `State.params` is player -> parameters, `State.inner` player -> optax state. A
      snapshot's value and loss are the Hamiltonian of the gradients that moved the players
      (`|xi|^2 / 2`, corrections included), so that a sweep's verdict is about it; its eval_params
      are each player's own (`driftlab.dynamics.eval_params`).

    Raises:
      ValueError: if txs are not one for each player; from `init`, if params are not.
      TypeError: from `init`, if a parameter is not a floating-point array.
    """
    check_players("txs", txs, game.players)

    def step(state: State) -> _Moved:
        batch = game.batch(state.key, state.step)
        moved = {
            player: _update(txs[player], game, player, state.params, state.inner[player], batch)
            for player in game.players
        }
        return _Moved(
            {player: found[0] for player, found in moved.items()},
            {player: found[1] for player, found in moved.items()},
            {player: found[2] for player, found in moved.items()},
            batch,
        )

    return _dynamics(txs, game, step)


def alternating(
    txs: Mapping[str, optax.GradientTransformation],
    game: Game,
    order: Sequence[str] | None = None,
    updates: Sequence[int] | None = None,
    fresh_batches: bool = True,
) -> Dynamics:
    """The players move in turn, each seeing what those before it did.

    One step is a whole round: `updates[0]` updates of the first player of `order`, then
    `updates[1]` of the second, and so on.

    Args:
      txs: player -> any optax chain. Its learning rate is that of one update: m updates of a size
        h move a player as far as one of m h.
      game: what they play.
      order: the players, first to last; None for the order of `game.losses`.
      updates: how many updates each makes, in that order; None for one each.
      fresh_batches: whether each of the round's U updates has a batch of its own, of number
        `step * U + j`; else all share that of the step.

    Returns:
      The dynamics, as `simultaneous`; the gradients of a snapshot are those of each player's first
      update of the round.

    Raises:
      ValueError: if order is not an order of the players, or updates are not positive integers;
        as `simultaneous`.
      TypeError: as `simultaneous`.
    """
    check_players("txs", txs, game.players)
    order, updates = check_round(game.players, order, updates)
    total = sum(updates)

    def step(state: State) -> _Moved:
        params, inner, gradients = dict(state.params), dict(state.inner), {}
        first = state.step * total if fresh_batches else state.step
        for i, (player, count) in enumerate(zip(order, updates, strict=True)):
            before = sum(updates[:i])

            def once(
                params: Players,
                opt_state: PyTree,
                j: Any,
                player: str = player,
                before: int = before,
            ) -> tuple[Params, PyTree, Params]:
                batch = game.batch(state.key, first + (before + j) * fresh_batches)
                return _update(txs[player], game, player, params, opt_state, batch)

            params[player], inner[player], gradients[player] = once(params, inner[player], 0)
            if count > 1:

                def again(j: Any, carry: tuple, once: Any = once, player: str = player) -> tuple:
                    own, opt_state = carry
                    return once({**params, player: own}, opt_state, j)[:2]

                params[player], inner[player] = jax.lax.fori_loop(
                    1, count, again, (params[player], inner[player])
                )
        return _Moved(params, inner, gradients, game.batch(state.key, first))

    return _dynamics(txs, game, step)


def runge_kutta(
    learning_rates: Mapping[str, ArrayLike], game: Game, method: str = "rk4"
) -> Dynamics:
    """One step of a Runge-Kutta method on `dtheta_p/dt = -h_p xi_p`, over a unit of time.

    The step of ODE-GAN: gradient play without most of its discretisation drift, whose order in the
    learning rates is 2 for Heun and 4 for RK4. All stages see the same batch.

    Args:
      learning_rates: player -> h_p; may be traced.
      game: what they play. Corrections are part of every stage.
      method: "rk4", "heun"; "extragradient", which moves from theta along the gradients a step
        ahead; or "euler", which is `simultaneous` with `optax.sgd`.

    Returns:
      The dynamics, as `simultaneous`; it has no inner state.

    Raises:
      ValueError: if there is no such method; as `simultaneous`.
      TypeError: as `simultaneous`.

    Source: Qin et al. (2020), Training generative adversarial networks by solving ordinary
    differential equations. Cost: 4, 2 or 1 gradients of every player.
    """
    check_players("learning_rates", learning_rates, game.players)
    check_rates(learning_rates)
    if method not in _TABLEAUX:
        raise ValueError(f"method={method!r} must be one of {', '.join(_TABLEAUX)}.")
    rows, weights = _TABLEAUX[method]

    def step(state: State) -> _Moved:
        batch = game.batch(state.key, state.step)

        def gradients(params: Players) -> Players:
            return {
                player: game.corrected_gradient(player, params, batch) for player in game.players
            }

        def moved(stages: list[Players], factors: list[float]) -> Players:
            def along(player: str) -> Params:
                def leaf(start: Any, *slopes: Any) -> Any:
                    rate = jnp.asarray(learning_rates[player], start.dtype)
                    return start - rate * sum(
                        f * s for f, s in zip(factors, slopes, strict=True) if f
                    )

                return jax.tree.map(leaf, state.params[player], *(s[player] for s in stages))

            return {player: along(player) for player in game.players}

        stages = [gradients(state.params)]
        for row in rows:
            stages.append(gradients(moved(stages, row)))
        return _Moved(moved(stages, weights), state.inner, stages[0], batch)

    nothing = {player: optax.identity() for player in game.players}
    return _dynamics(nothing, game, step)


def _update(
    tx: optax.GradientTransformation,
    game: Game,
    player: str,
    params: Players,
    opt_state: PyTree,
    batch: Batch,
) -> tuple[Params, PyTree, Params]:
    """A player's new parameters and optax state, and the gradient they come from."""
    gradient = game.corrected_gradient(player, params, batch)
    extra: dict[str, Any] = {}
    if isinstance(tx, optax.GradientTransformationExtraArgs):

        def value_fn(own: Params) -> Any:
            return game.losses[player]({**params, player: own}, batch)

        extra = {"value": value_fn(params[player]), "grad": gradient, "value_fn": value_fn}
    updates, opt_state = tx.update(gradient, opt_state, params[player], **extra)
    return optax.apply_updates(params[player], updates), opt_state, gradient


def _dynamics(
    txs: Mapping[str, optax.GradientTransformation], game: Game, step: Callable[[State], _Moved]
) -> Dynamics:
    # The players' losses are theirs: what evaluates a snapshot's objective is told so.
    objective = dataclasses.replace(game.objective, loss=no_single_loss)

    def init(params: Players, key: PRNGKeyArray) -> State:
        check_players("params", params, game.players)
        check_params(params)
        params = {player: jax.tree.map(jnp.asarray, params[player]) for player in game.players}
        _check_losses(game, params, key)
        inner = {player: txs[player].init(params[player]) for player in game.players}
        return State(params, inner, jnp.zeros((), jnp.int32), key)

    def observe(state: State) -> Snapshot:
        moved = step(state)
        value = optax.tree.norm(moved.gradients, squared=True) / 2
        return Snapshot(
            state=state,
            next_state=State(moved.params, moved.inner, state.step + 1, state.key),
            objective=objective,
            batch=moved.batch,
            value=value,
            loss=value,
            gradient=moved.gradients,
            eval_params={
                player: eval_params(state.inner[player], state.params[player])
                for player in game.players
            },
            dynamics=dynamics,
        )

    dynamics = Dynamics(init, lambda state: observe(state).next_state, observe)
    return dynamics


def _check_losses(game: Game, params: Players, key: PRNGKeyArray) -> None:
    """Raises where a player's loss cannot be evaluated at these parameters, naming the player."""
    for player in game.players:
        try:
            jax.eval_shape(
                lambda params, key, player=player: game.gradient(
                    player, params, game.batch(key, jnp.zeros((), jnp.int32))
                ),
                params,
                key,
            )
        except Exception as error:
            shapes = jax.tree.map(jnp.shape, params)
            raise ValueError(
                f"the loss of player {player!r} cannot be evaluated at parameters of shapes "
                f"{shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error
