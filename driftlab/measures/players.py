"""What the players of a game have each."""

from collections.abc import Callable

from jaxtyping import Array

from driftlab.dynamics import Snapshot
from driftlab.game import Game


def player_losses(game: Game) -> Callable[[Snapshot], dict[str, Array]]:
    """A measure: every player's loss on the step's batch, before the step.

    Args:
      game: what is played.

    Returns:
      `snapshot -> {"loss_" + player: L_p}`; scalars in the losses' units. Cost: every player's
      loss, without a gradient.
    """

    def measure(snapshot: Snapshot) -> dict[str, Array]:
        return {
            f"loss_{player}": loss(snapshot.params, snapshot.batch)
            for player, loss in game.losses.items()
        }

    return measure
