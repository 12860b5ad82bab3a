"""What every field is made from, and the form of a flow whose state is more than parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from driftlab.objective import Objective, Params

Loss = Callable[[Params], Float[Array, ""]]
Field = Callable[[Any, PyTree, Any], PyTree]


class Flow(NamedTuple):
    """A vector field with the way into its state and back.

    For an ODE whose state y is more than parameters: a velocity or an optimiser's memory beside
    them, real and imaginary parts. `driftlab.flow(flow, step_time, objective)` is its dynamics.

    Attributes:
      field: `field(t, y, args) -> dy/dt`.
      init: `init(params) -> y` at the start; a flow of an optimiser with memory takes the
        optimiser's state as well, `init(params, opt_state)`.
      params: `params(y) -> params`.
    """

    field: Field
    init: Callable[..., PyTree]
    params: Callable[[PyTree], Params]


def gradient_function(
    loss: Loss | Objective, batch_size: int | None = None
) -> Callable[[Params], Params]:
    """`params -> grad L(params)`, over all the data of an objective.

    Args:
      loss: `loss(params) -> scalar`, or an `Objective`: its loss plus regulariser over all its
        training data.
      batch_size: with an objective, the examples of one gradient evaluation (the mean over
        micro-batches is exact); None for all at once.

    Returns:
      The gradient; it can be differentiated again.

    Raises:
      TypeError: if loss is neither; from the function, if a parameter is not a real
        floating-point array.
      ValueError: if batch_size is not a positive integer, or given without an objective; from the
        function, if the loss is not a real scalar.
    """
    if isinstance(loss, Objective):
        # Here, not at the top: the curvature package brings lineax with it.
        from driftlab.curvature.batching import mean_over_batches

        objective = loss
        _check_batch_size(batch_size)

        def gradient(params: Params) -> Params:
            check_real(params)

            def batch_gradient(batch: PyTree) -> Params:
                return jax.grad(lambda params: objective.value(params, batch)[0])(params)

            return mean_over_batches(batch_gradient, objective.data, batch_size)

        return gradient

    if not callable(loss):
        raise TypeError(
            f"loss must be a function loss(params) -> scalar, or a driftlab.Objective; got {loss}."
        )
    if batch_size is not None:
        raise ValueError(
            f"batch_size={batch_size} splits an Objective's data; a loss(params) has none. Pass "
            "the Objective, or leave batch_size out."
        )

    def gradient(params: Params) -> Params:
        check_real(params)
        _check_scalar(jax.eval_shape(loss, params))
        return jax.grad(loss)(params)

    return gradient


def loss_function(loss: Loss | Objective) -> Loss:
    """`params -> L(params)`, of an objective over all its training data at once.

    Args:
      loss: as in `gradient_function`.

    Returns:
      The loss plus regulariser.

    Raises:
      TypeError: if loss is neither a function nor an objective.
    """
    if isinstance(loss, Objective):
        objective = loss
        return lambda params: objective.value(params, objective.data)[0]
    if not callable(loss):
        raise TypeError(
            f"loss must be a function loss(params) -> scalar, or a driftlab.Objective; got {loss}."
        )
    return loss


def check_real(params: Params) -> None:
    """Raises where a parameter cannot be moved by a real flow.

    Args:
      params: the parameters.

    Raises:
      TypeError: naming the first that is not a real floating-point array.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"parameter{jax.tree_util.keystr(path)} has dtype {dtype}; gradient flow needs "
                "real floating-point parameters. Keep integers and booleans out of them."
            )


def _check_batch_size(batch_size: Any) -> None:
    if batch_size is None:
        return
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, or None; got {batch_size!r}.")


def _check_scalar(value: Any) -> None:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"loss(params) must return a real floating-point scalar; got {value}. Average or sum "
            "inside it."
        )
