"""Gradient flow by the length of its path: the same orbit, in a time that does not run away."""

from typing import Any

import jax
import optax

from driftlab.flows.vector_field import Field, Loss, gradient_function
from driftlab.objective import Objective, Params


def arc_length_flow(loss: Loss | Objective, batch_size: int | None = None) -> Field:
    """The field `dy/ds = -grad L(y) / |grad L(y)|`, with s the length of the path.

    Its orbit is that of the gradient flow of L, and of any increasing function of L: it conserves
    what they conserve, the balancedness of linear networks for one. On separable data the risk R of
    a deep network takes exponentially long in gradient flow's own time, while the flow of
    `log R`, `-grad R / R`, blows up in a finite one; by arc length neither happens. Pass the
    logarithm of the risk (`models.log_logistic`), whose gradient does not underflow, and stop
    near `log R = -50`: beyond, the flow along the ridge is stiff.

    Args:
      loss: what is minimised, as in `gradient_flow`; any increasing function of it will do.
      batch_size: with an objective, the examples of one gradient evaluation.

    Returns:
      `field(s, y, args) -> dy/ds`, in the structure and types of y, of Euclidean norm 1; NaN at a
      stationary point, where the path ends.

    Raises:
      TypeError: as `gradient_flow`.
      ValueError: as `gradient_flow`.

    Cost: one gradient an evaluation.
    """
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Params, args: Any) -> Params:
        del t, args
        slope = gradient(y)
        size = optax.tree.norm(slope)
        return jax.tree.map(lambda leaf: -leaf / size.astype(leaf.dtype), slope)

    return field
