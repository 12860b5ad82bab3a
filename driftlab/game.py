"""Games: several players, each of whom minimises a loss of everyone's parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from driftlab.objective import Batch, Loss, Objective, Params
from driftlab.sampling import Sampling, full_batch

# Everyone's parameters: player -> a pytree.
Players = dict[str, Params]
PlayerLoss = Callable[[Players, Batch], Float[Array, ""]]
# What is added to a player's gradient: correction(player, params, batch) -> its structure.
Correction = Callable[[str, Players, Batch], Params]


@dataclasses.dataclass(frozen=True, eq=False)
class Game:
    """Players p with losses `L_p(theta, batch)` over joint parameters `theta = {p: theta_p}`.

    Player p moves theta_p along `-xi_p`, `xi_p = grad_{theta_p} L_p`: the joint vector field is in
    general no gradient. A zero-sum game has `L_2 = -L_1`; a game of one loss is common payoff.

    Attributes:
      losses: player -> `loss(params, batch) -> scalar`, pure, of everyone's parameters.
      data: the training examples, as in `driftlab.Objective`; `()` for none.
      sampling: which examples each step uses (see `driftlab.sampling`).
      draw: `draw(key) -> pytree` of fresh random numbers for every batch (a generator's latents),
        a pure function of the run's key and the step; the batch is then `(examples, drawn)`. None
        for none.
      evaluation_data: held-out examples of the same structure as data, or None.
      metrics: name -> `metric(params, batch) -> scalar`, of everyone's parameters, evaluated on
        `evaluation_data`.
      correction: what is added to a player's gradient (see `corrected`), or None.

    Raises:
      ValueError: if there are fewer than two players, or as `driftlab.Objective`.

    `objective` is what a flow of the game refers to, `driftlab.flow(field, 1.0, game.objective)`:
    its loss is the Hamiltonian over all the data. It is no mean over examples, so micro-batches
    of it (`batch_size`) mean nothing.
    """

    losses: Mapping[str, PlayerLoss]
    data: Batch = ()
    sampling: Sampling = dataclasses.field(default_factory=full_batch)
    draw: Callable[[PRNGKeyArray], PyTree] | None = None
    evaluation_data: Batch | None = None
    metrics: Mapping[str, Loss] = dataclasses.field(default_factory=dict)
    correction: Correction | None = None
    objective: Objective = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.losses) < 2:
            raise ValueError(
                f"losses={list(self.losses)}: a game has two players or more; for one there is "
                "driftlab.Objective."
            )
        object.__setattr__(self, "losses", dict(self.losses))
        # Draws are no part of an objective's batches: nothing can be evaluated on those.
        loss = self.hamiltonian if self.draw is None else no_single_loss
        objective = Objective(loss, self.data, self.sampling, self.evaluation_data, self.metrics)
        object.__setattr__(self, "objective", objective)
        object.__setattr__(self, "data", objective.data)

    @property
    def players(self) -> tuple[str, ...]:
        """The players' names, in the order of `losses`."""
        return tuple(self.losses)

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""]) -> Batch:
        """The batch of step `step`: a pure function of (key, step).

        Args:
          key: the run's key.
          step: the iteration, counted from 0.

        Returns:
          The examples; with `draw`, `(examples, drawn)`.
        """
        examples = self.objective.batch(key, step)
        if self.draw is None:
            return examples
        # Apart from the sampling's own use of (key, step).
        return examples, self.draw(jax.random.fold_in(jax.random.fold_in(key, 0x67616D65), step))

    def gradient(self, player: str, params: Players, batch: Batch) -> tuple[Array, Params]:
        """A player's loss and its gradient in that player's own parameters.

        Args:
          player: p.
          params: everyone's parameters.
          batch: what the losses take.

        Returns:
          `(L_p, xi_p)`, without the correction.

        Raises:
          ValueError: if the loss does not return a real scalar.
        """
        own, others = params[player], {k: v for k, v in params.items() if k != player}

        def loss(own: Params) -> Float[Array, ""]:
            return _scalar(self.losses[player]({**others, player: own}, batch), player)

        return jax.value_and_grad(loss)(own)

    def corrected_gradient(self, player: str, params: Players, batch: Batch) -> Params:
        """What moves a player: its gradient with the correction.

        Args:
          player: p.
          params: everyone's parameters.
          batch: what the losses take.

        Returns:
          `xi_p + correction(p, params, batch)`.

        Raises:
          ValueError: as `gradient`.
        """
        gradient = self.gradient(player, params, batch)[1]
        if self.correction is None:
            return gradient
        return jax.tree.map(jnp.add, gradient, self.correction(player, params, batch))

    def gradients(self, params: Players, batch: Batch) -> Players:
        """xi: every player's gradient at the same point, without the correction.

        Args:
          params: everyone's parameters.
          batch: what the losses take.

        Returns:
          player -> xi_p.
        """
        return {player: self.gradient(player, params, batch)[1] for player in params}

    def hamiltonian(self, params: Players, batch: Batch) -> Float[Array, ""]:
        """`|xi|^2 / 2`, which is 0 where nobody moves.

        Args:
          params: everyone's parameters.
          batch: what the losses take.

        Returns:
          The scalar. Source: Balduzzi et al. (2018), section 2. Cost: every player's gradient.
        """
        return optax.tree.norm(self.gradients(params, batch), squared=True) / 2


def corrected(game: Game, correction: Correction, coefficient: Any = 1.0) -> Game:
    """The game with `coefficient * correction(player, params, batch)` added to each gradient.

    The losses stay as they are: a correction need not be the gradient of anything.

    Args:
      game: the game; a correction it already has is kept.
      correction: `correction(player, params, batch)`, in the structure of the player's parameters.
      coefficient: its factor, for all players or player -> factor; may be traced.

    Returns:
      A new game.

    Raises:
      ValueError: if coefficients are given by player, but not for every one.
    """
    previous = game.correction
    if isinstance(coefficient, Mapping) and set(coefficient) != set(game.players):
        raise ValueError(
            f"coefficient is given for {sorted(coefficient)}; the players are {game.players}."
        )

    def total(player: str, params: Players, batch: Batch) -> Params:
        factor = coefficient[player] if isinstance(coefficient, Mapping) else coefficient
        found = correction(player, params, batch)
        found = jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, found)
        if previous is None:
            return found
        return jax.tree.map(jnp.add, previous(player, params, batch), found)

    return dataclasses.replace(game, correction=total)


def no_single_loss(params: Players, batch: Batch) -> Float[Array, ""]:
    """Stands where an objective has its loss, and says that a game has none.

    Args:
      params: everyone's parameters.
      batch: what the losses take.

    Raises:
      ValueError: always.
    """
    del params, batch
    raise ValueError(
        "a game has no single loss for this measure to look at. There is "
        "measures.player_losses(game), what a snapshot holds (its loss and value are the "
        "Hamiltonian of the gradients that moved the players), and functions of a snapshot of "
        "your own."
    )


def _scalar(value: Any, player: str) -> Float[Array, ""]:
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"the loss of player {player!r} must return a real scalar; it returned "
            f"{value.dtype}{value.shape}. Average over the batch inside it."
        )
    return value
