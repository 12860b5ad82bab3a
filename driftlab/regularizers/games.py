"""Explicit regularisation of games: the drift strengthened or cancelled, and its relatives.

Each is a correction for `driftlab.game.corrected`: `correction(player, params, batch)`, what is
added to the player's gradient. With xi_p = grad_p L_p, xi the joint gradient and J its Jacobian.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike

from driftlab.checks import check_players, check_round
from driftlab.flows.games import Clock, drift_term, interaction_coefficients
from driftlab.game import Correction, Game, Players
from driftlab.objective import Batch, Params

Estimator = Literal["biased", "unbiased"]


def drift_correction(
    game: Game,
    learning_rates: Mapping[str, ArrayLike],
    self_multiplier: ArrayLike | Mapping[str, ArrayLike] = -1.0,
    interaction_multiplier: ArrayLike | Mapping[str, ArrayLike] = -1.0,
    *,
    turns: Sequence[str] | None = None,
    updates: Sequence[int] | None = None,
    simultaneous: bool | None = None,
    clock: Clock = "one",
    estimator: Estimator = "biased",
) -> Correction:
    """Multiples of the discretisation drift: -1 cancels it to first order, +1 doubles it.

        xi_p + mu_p c_pp (d_p xi_p) xi_p + nu_p sum_{q != p} c_pq (d_q xi_p) xi_q

    with the c_pq = -K_pq / a_p of `driftlab.flows.games`. With all multipliers -1 the rounds follow
    the game's own gradient flow to one order more.

    Args:
      game: the game; its losses, without corrections.
      learning_rates: player -> learning rate of one update, as the players' `optax.sgd` has it.
      self_multiplier: mu, one for all or player -> mu_p; may be traced.
      interaction_multiplier: nu, likewise.
      turns: as in `driftlab.flows.games.game_flow`.
      updates: likewise.
      simultaneous: likewise.
      clock: "one", which cancels; or "own", the source's coefficients, which do so only at equal
        rates.
      estimator: "biased", both factors of the drift from one batch; "unbiased", from the halves of
        a batch drawn at random (in the mean over batches the product of the means; exactly with
        replacement, nearly without).

    Returns:
      The correction.

    Raises:
      ValueError: if multipliers are not for each player, or the estimator is neither; as
        `game_flow`.

    Source: Rosca, Wu, Dherin & Barrett (2021), section 6, with their estimators. Cost: every
    player's gradient and a Hessian-vector product for each player.
    """
    check_players("learning_rates", learning_rates, game.players)
    rates = {player: learning_rates[player] for player in game.players}
    own = _by_player("self_multiplier", self_multiplier, game)
    other = _by_player("interaction_multiplier", interaction_multiplier, game)
    coefficients = interaction_coefficients(rates, turns, updates, simultaneous, clock)
    names, counts = check_round(game.players, turns, updates)
    moves = dict(zip(names, counts, strict=True))
    weights = {
        p: {
            q: -(own if q == p else other)[p] * coefficients[p][q] / (moves[p] * rates[p])
            for q in game.players
        }
        for p in game.players
    }
    return weighted_correction(game, weights, estimator)


def weighted_correction(
    game: Game, weights: Mapping[str, Mapping[str, ArrayLike]], estimator: Estimator = "biased"
) -> Correction:
    """`sum_q w_pq (d_q xi_p) xi_q` with free weights, one for each pair of players.

    `w_pp` is the self term, of the loss `(w_pp / 2) |grad_p L_p|^2`; the others are the interaction
    terms, of `w_pq grad_q L_p . [grad_q L_q]`, the bracket held fixed.

    Args:
      game: the game.
      weights: p -> q -> w_pq; pairs left out are 0; may be traced.
      estimator: as in `drift_correction`.

    Returns:
      The correction.

    Raises:
      ValueError: if a name is no player's, or the estimator is neither.
    """
    _check_estimator(estimator, game)
    for name in [*weights, *(q for row in weights.values() for q in row)]:
        if name not in game.players:
            raise ValueError(f"weights name {name!r}; the players are {game.players}.")

    def correction(player: str, params: Players, batch: Batch) -> Params:
        if not weights.get(player):
            return jax.tree.map(jnp.zeros_like, params[player])
        first, second = _batches(batch, estimator)
        return drift_term(game, player, weights[player], params, first, second)

    return correction


def gradient_norm_correction(
    game: Game,
    norms: Mapping[str, Mapping[str, ArrayLike]],
    estimator: Estimator = "biased",
) -> Correction:
    """`grad_p sum_q (w_pq / 2) |grad_q L_q|^2`: gradient norms of the players' own losses.

    - `{p: {p: w}}`: the self norm.
    - `{p: {q: w}}`: the other norm. Of a discriminator p = q' and generator alone, ODE-GAN's
      regulariser: the generator's squared gradient norm, descended by the discriminator.
    - all pairs with one weight: consensus optimisation, `w J^T xi` (`consensus_optimization`).

    Args:
      game: the game.
      norms: p -> q -> w_pq; pairs left out are 0; may be traced.
      estimator: as in `drift_correction`.

    Returns:
      The correction.

    Raises:
      ValueError: if a name is no player's, or the estimator is neither.

    Source: Mescheder, Nowozin & Geiger (2017); Qin et al. (2020). Cost: the gradients of q and a
    Hessian-vector product of each L_q.
    """
    _check_estimator(estimator, game)
    for name in [*norms, *(q for row in norms.values() for q in row)]:
        if name not in game.players:
            raise ValueError(f"norms name {name!r}; the players are {game.players}.")

    def correction(player: str, params: Players, batch: Batch) -> Params:
        first, second = _batches(batch, estimator)
        total = jax.tree.map(jnp.zeros_like, params[player])
        for q, weight in norms.get(player, {}).items():
            cotangent = game.gradient(q, params, batch if second is None else second)[1]

            def gradient(own: Params, q: str = q) -> Params:
                return game.gradient(q, {**params, player: own}, first)[1]

            pulled = jax.vjp(gradient, params[player])[1](cotangent)[0]
            total = jax.tree.map(
                lambda t, leaf, w=weight: t + jnp.asarray(w, leaf.dtype) * leaf, total, pulled
            )
        return total

    return correction


def consensus_optimization(
    game: Game, weight: ArrayLike, estimator: Estimator = "biased"
) -> Correction:
    """`w J^T xi = grad (w / 2) |xi|^2`: everyone descends the Hamiltonian as well.

    Args:
      game: the game.
      weight: w; may be traced.
      estimator: as in `drift_correction`.

    Returns:
      The correction.

    Raises:
      ValueError: if the estimator is neither.

    Source: Mescheder, Nowozin & Geiger (2017), The numerics of GANs.
    """
    pairs = {p: dict.fromkeys(game.players, weight) for p in game.players}
    return gradient_norm_correction(game, pairs, estimator)


def symplectic_gradient_adjustment(
    game: Game, weight: ArrayLike, align: bool = False
) -> Correction:
    """`w A^T xi`, `A = (J - J^T) / 2` the antisymmetric part of the game.

    In zero-sum games with simultaneous play at rate h it is, with w = h / 2, the interaction drift
    cancelled.

    Args:
      game: the game.
      weight: w; may be traced.
      align: whether the sign is chosen so that the adjustment points towards stable points: that of
        `(xi . J^T xi) (A^T xi . J^T xi) / n + 0.1`, n the number of arrays in params.

    Returns:
      The correction.

    Source: Balduzzi et al. (2018), The mechanics of n-player differentiable games, and for the sign
    their appendix. Cost: for each player every gradient, a
    Hessian-vector product and its transpose.
    """

    def correction(player: str, params: Players, batch: Batch) -> Params:
        def field(joint: Players) -> Players:
            return game.gradients(joint, batch)

        xi, pull = jax.vjp(field, params)
        forward = jax.jvp(field, (params,), (xi,))[1]
        pulled = pull(xi)[0]
        adjustment = jax.tree.map(lambda up, down: (up - down) / 2, pulled, forward)
        factor: Any = weight
        if align:
            count = len(jax.tree.leaves(params))
            along, across = optax.tree.vdot(xi, pulled), optax.tree.vdot(adjustment, pulled)
            agreed = jnp.asarray(along) * jnp.asarray(across) / count + 0.1
            factor = jnp.sign(agreed) * jnp.asarray(weight, agreed.dtype)
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, adjustment[player])

    return correction


def _by_player(name: str, given: Any, game: Game) -> dict[str, Any]:
    if isinstance(given, Mapping):
        check_players(name, given, game.players)
        return dict(given)
    return dict.fromkeys(game.players, given)


def _check_estimator(estimator: Any, game: Game) -> None:
    if estimator not in ("biased", "unbiased"):
        raise ValueError(f"estimator={estimator!r} must be 'biased' or 'unbiased'.")
    fixed = game.sampling.name in ("full_batch", "fixed_order")
    if estimator == "unbiased" and fixed and jax.tree.leaves(game.data):
        raise ValueError(
            f"estimator='unbiased' with sampling {game.sampling.name}: its halves are always the "
            "same examples, and their product is biased. Draw batches at random."
        )


def _batches(batch: Batch, estimator: Estimator) -> tuple[Batch, Batch | None]:
    """The batch that is differentiated through, and that of the other factor."""
    if estimator == "biased":
        return batch, None
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(batch)}
    if not sizes or any(size < 2 or size % 2 for size in sizes):
        raise ValueError(
            f"estimator='unbiased' halves the batch, whose arrays have {sorted(sizes)} examples: "
            "make these even numbers."
        )
    # Examples and what is drawn beside them may differ in number: each array by its own.
    first = jax.tree.map(lambda leaf: leaf[: leaf.shape[0] // 2], batch)
    return first, jax.tree.map(lambda leaf: leaf[leaf.shape[0] // 2 :], batch)
