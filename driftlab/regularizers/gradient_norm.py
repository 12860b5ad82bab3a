"""Implicit gradient regularisation made explicit, or cancelled."""

import jax
import optax
from jaxtyping import Array, Float

from driftlab.objective import Batch, Loss, Objective, Params


def squared_gradient_norm(loss: Loss | Objective) -> Loss:
    """The regulariser `(params, batch) -> |grad L(params, batch)|^2`.

    Gradient descent with learning rate h follows the gradient flow of `L + (h/4) |grad L|^2` to
    one order more than that of L. So with `driftlab.regularized(objective,
    squared_gradient_norm(objective), coefficient)` and

    - `coefficient = h / 4`, gradient *flow* on the new objective is the order-2 flow of gradient
      descent on the old one: the drift of order 1, made explicit;
    - `coefficient = -h / 4`, gradient *descent* on the new objective with learning rate h follows
      gradient flow on the old one to an error of `O(h^3)` a step rather than `O(h^2)`: the drift
      of order 1, cancelled.

    On minibatches it is the norm of the batch's gradient, whose mean over an epoch is what
    shuffled SGD adds (`driftlab.flows.batch_order.shuffled_epoch_loss`): the same coefficients
    hold. With -h/4 the new objective is unbounded below for most losses: it holds in the
    small-step regime, `h * sharpness` well below 1.

    Args:
      loss: `loss(params, batch) -> scalar`, or an `Objective`: its loss plus regulariser as it
        stands.

    Returns:
      A function for `driftlab.regularized`, whose coefficient may be traced.

    Raises:
      TypeError: if loss is neither.

    Sources: Barrett & Dherin, 2021, Implicit Gradient Regularization, theorem 3.1; Smith, Dherin,
    Barrett & De, 2021; the cancelled form, Rosca, Wu, Dherin & Barrett, 2021. Cost: one
    gradient; as part of a loss that is differentiated, a gradient and a Hessian-vector product.
    """
    if isinstance(loss, Objective):
        objective = loss

        def value(params: Params, batch: Batch, /) -> Float[Array, ""]:
            return objective.value(params, batch)[0]

    elif callable(loss):
        value = loss
    else:
        raise TypeError(
            "loss must be a function loss(params, batch) -> scalar, or a driftlab.Objective; got "
            f"{loss}."
        )

    def regularizer(params: Params, batch: Batch) -> Float[Array, ""]:
        gradient = jax.grad(value)(params, batch)
        return optax.tree.norm(gradient, squared=True)

    return regularizer
