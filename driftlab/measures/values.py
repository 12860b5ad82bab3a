"""The values that a step computes anyway."""

from jaxtyping import Array, Float

from driftlab.dynamics import Snapshot


def loss(snapshot: Snapshot) -> Float[Array, ""]:
    """The training loss on the step's own batch at theta_k, without the regulariser.

    Under full-batch sampling this is the training loss; under mini-batches an unbiased estimate
    of it. Cost: none (a by-product of the step).

    Args:
      snapshot: what the step saw.

    Returns:
      Scalar, in the loss's units.
    """
    return snapshot.loss


def objective_value(snapshot: Snapshot) -> Float[Array, ""]:
    """What is minimised at theta_k: the loss plus the regulariser, on the step's own batch.

    Cost: none (a by-product of the step).

    Args:
      snapshot: what the step saw.

    Returns:
      Scalar, in the loss's units.
    """
    return snapshot.value
