"""What must hold of parameters and players before anything runs, said in its own terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from driftlab.objective import Params


def check_params(params: Params) -> None:
    """Raises where parameters cannot be optimised.

    Args:
      params: any pytree.

    Raises:
      TypeError: if it holds no array, or one that is not floating-point, naming it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise TypeError("params hold no array: there is nothing to optimise.")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path) or "params"
            raise TypeError(
                f"parameter {name} has dtype {dtype}; gradients need floating-point "
                "parameters. Keep integers and booleans out of params (close over them, or "
                "split them off as equinox.partition and nnx.split do)."
            )


def check_players(name: str, given: Mapping[str, Any], players: Sequence[str]) -> None:
    """Raises where something is not given for each player and nobody else.

    Args:
      name: the argument.
      given: player -> anything.
      players: the game's.

    Raises:
      TypeError: if it is no mapping.
      ValueError: naming who is missing, or not in the game.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name} must map each player ({', '.join(players)}) to a value; got "
            f"{type(given).__name__}."
        )
    missing = [player for player in players if player not in given]
    unknown = [player for player in given if player not in players]
    if missing or unknown:
        raise ValueError(
            f"{name} is given for {list(given)}, the players are {list(players)}: "
            + "; ".join(
                [f"{missing} missing"] * bool(missing)
                + [f"{unknown} not in the game"] * bool(unknown)
            )
            + "."
        )


def check_round(
    players: Sequence[str], order: Sequence[str] | None, updates: Sequence[int] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The order of a round and how often each player moves in it, checked.

    Args:
      players: the game's.
      order: first to last; None for that of the game.
      updates: how many updates each makes, in that order; None for one each.

    Returns:
      `(order, updates)`.

    Raises:
      ValueError: if order is not an order of the players, or updates are not positive integers.
    """
    order = tuple(players) if order is None else tuple(order)
    if sorted(order) != sorted(players):
        raise ValueError(f"order={order} must name each of the players {tuple(players)} once.")
    updates = (1,) * len(order) if updates is None else tuple(updates)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in updates)
    if len(updates) != len(order) or not whole:
        raise ValueError(
            f"updates={updates} must be {len(order)} positive integers: how many updates each of "
            f"{order} makes in a round."
        )
    return order, updates


def check_scheme(
    simultaneous: bool | None, order: Sequence[str] | None, updates: Sequence[int] | None
) -> bool:
    """Whether all players move at once, which must be said: the two drift in opposite ways.

    Args:
      simultaneous: True; False for in turn; None where order or updates say that.
      order: the players in turn, or None.
      updates: how many updates each makes in its turn, or None.

    Returns:
      Whether they move at once.

    Raises:
      ValueError: if nothing says so, or simultaneous players are given turns.
    """
    turns = order is not None or updates is not None
    if simultaneous is None and not turns:
        raise ValueError(
            "say how the game is played: simultaneous=True, or simultaneous=False for in turn. The "
            "interaction terms of the second player have opposite signs."
        )
    if simultaneous and updates is not None:
        raise ValueError(
            f"updates={tuple(updates)} have no meaning in simultaneous play: leave them out."
        )
    return bool(simultaneous)


def check_rates(learning_rates: Mapping[str, Any]) -> None:
    """Raises where a known learning rate is not a positive scalar.

    Args:
      learning_rates: player -> h_p.

    Raises:
      ValueError: naming the player.
    """
    for player, rate in learning_rates.items():
        if callable(rate):
            raise ValueError(
                f"the learning rate of player {player!r} is a function; it must be a number (or a "
                "traced one): the coefficients are of one learning rate."
            )
        if jnp.shape(rate) != ():
            raise ValueError(
                f"the learning rate of player {player!r} must be a scalar; got shape "
                f"{jnp.shape(rate)}. Several make a lane axis of a sweep."
            )
        if isinstance(rate, Tracer):
            continue
        if not 0 < float(rate) < float("inf"):
            raise ValueError(
                f"the learning rate of player {player!r} is {float(rate)}; it must be positive and "
                "finite: a player who does not move belongs into the other's loss."
            )
