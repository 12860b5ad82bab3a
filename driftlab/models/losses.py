"""Losses and the accuracy of a model, as pure functions `f(params, batch) -> scalar`.

A batch is any pair (inputs, targets), such as `data.Batch`. Every value is a mean over the batch,
so that learning rates mean the same at every batch size. Shapes are checked when a function is
traced, before anything is compiled.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Num, PyTree, Shaped

Inputs = Num[Array | np.ndarray, "batch ..."]
Targets = Shaped[Array | np.ndarray, "batch ..."]
Apply = Callable[[PyTree, Inputs], Inexact[Array, "batch ..."]]
BatchFunction = Callable[[PyTree, tuple[Inputs, Targets]], Inexact[Array, ""]]


def cross_entropy(apply: Apply) -> BatchFunction:
    """Makes the softmax cross-entropy, `mean_i -sum_k p_ik log softmax(f(x_i))_k`, in nats.

    Args:
        apply: `(params, inputs) -> outputs`, logits `(batch, classes)`.

    Returns:
        The loss. Its targets are class numbers `(batch,)`, or probabilities or one-hot rows p
        `(batch, classes)`. It raises `ValueError` for other shapes.
    """

    def loss(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        outputs, targets = _outputs_and_targets(apply, params, batch)
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise ValueError(
                f"cross_entropy needs outputs (batch, classes) with two or more classes, found "
                f"{outputs.shape}; a single output with signs as targets goes with `logistic`"
            )
        log_probabilities = jax.nn.log_softmax(outputs)
        if targets.shape == outputs.shape:
            return -jnp.mean(jnp.sum(targets * log_probabilities, axis=1))
        _check_class_numbers(targets, outputs, "cross_entropy")
        chosen = jnp.take_along_axis(log_probabilities, targets.reshape(-1, 1), axis=1)
        return -jnp.mean(chosen)

    return loss


def squared_error(apply: Apply) -> BatchFunction:
    """Makes half the squared error, `mean_i 1/2 sum_k (f_k(x_i) - y_ik)^2`.

    The sum over outputs and the factor 1/2 make the Gauss-Newton matrix `mean_i J_i^T J_i`.

    Args:
        apply: `(params, inputs) -> outputs`, `(batch, outputs)`.

    Returns:
        The loss. Its targets have the shape of the outputs, or `(batch,)` where there is one
        output. It raises `ValueError` for other shapes.
    """

    def loss(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        outputs, targets = _outputs_and_targets(apply, params, batch)
        outputs, targets = _without_single_axis(outputs), _without_single_axis(targets)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"squared_error needs targets of the outputs' shape {outputs.shape}, found "
                f"{targets.shape}; class numbers become rows with data.load(labels='one_hot')"
            )
        return jnp.sum(jnp.square(outputs - targets)) / (2 * outputs.shape[0])

    return loss


def logistic(apply: Apply) -> BatchFunction:
    """Makes the logistic loss of signs, `mean_i log(1 + exp(-y_i f(x_i)))`, in nats.

    Args:
        apply: `(params, inputs) -> outputs`, `(batch,)` or `(batch, 1)`.

    Returns:
        The loss. Its targets are -1 or +1, `(batch,)` or `(batch, 1)`. It raises `ValueError` for
        other shapes.
    """

    def loss(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        outputs, targets = _outputs_and_targets(apply, params, batch)
        margins = _margins(outputs, targets, "logistic")
        # log(1 + exp(-m)) as a log-sum-exp: stable, and unlike jax.nn.softplus without a custom
        # derivative, on which Taylor mode fails.
        pairs = jnp.stack([-margins, jnp.zeros_like(margins)])
        return jnp.mean(jax.scipy.special.logsumexp(pairs, axis=0))

    return loss


def accuracy(apply: Apply) -> BatchFunction:
    """Makes the share of examples that a classifier gets right, from 0 to 1.

    With two or more outputs the largest one counts, compared with class numbers or with the largest
    entry of one-hot rows. With one output its sign counts, compared with -1 or +1; 0 is wrong.

    Args:
        apply: `(params, inputs) -> outputs`.

    Returns:
        The accuracy. It raises `ValueError` for targets that fit neither form.
    """

    def measure(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        outputs, targets = _outputs_and_targets(apply, params, batch)
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            right = _margins(outputs, targets, "accuracy") > 0
        elif targets.shape == outputs.shape:
            right = jnp.argmax(outputs, axis=1) == jnp.argmax(targets, axis=1)
        else:
            _check_class_numbers(targets, outputs, "accuracy")
            right = jnp.argmax(outputs, axis=1) == targets
        return jnp.mean(right, dtype=outputs.dtype)

    return measure


def _outputs_and_targets(
    apply: Apply, params: PyTree, batch: Any
) -> tuple[Inexact[Array, "batch ..."], Shaped[Array, "batch ..."]]:
    """Applies the model and checks that inputs, outputs and targets are of one batch."""
    inputs, targets = batch
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    if inputs.shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"inputs {inputs.shape} and targets {targets.shape} must have the same first axis, the "
            "examples of the batch"
        )
    outputs = apply(params, inputs)
    if outputs.ndim not in (1, 2) or outputs.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"apply(params, inputs) must return one row for each of the {inputs.shape[0]} inputs, "
            f"(batch, outputs) or (batch,), found {outputs.shape}"
        )
    return outputs, targets


def _without_single_axis(values: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """Turns `(batch, 1)` into `(batch,)`."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _margins(
    outputs: Inexact[Array, "batch ..."], targets: Shaped[Array, "batch ..."], name: str
) -> Inexact[Array, " batch"]:
    """Computes `y f` of single outputs and signs."""
    outputs, targets = _without_single_axis(outputs), _without_single_axis(targets)
    if outputs.ndim != 1 or targets.ndim != 1:
        raise ValueError(
            f"{name} of signs needs one output and one target an example, found outputs "
            f"{outputs.shape} and targets {targets.shape}"
        )
    return targets.astype(outputs.dtype) * outputs


def _check_class_numbers(
    targets: Shaped[Array, "batch ..."], outputs: Inexact[Array, "batch classes"], name: str
) -> None:
    """Insists on integers `(batch,)`."""
    if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"{name} with outputs {outputs.shape} needs integer class numbers (batch,) or rows of "
            f"shape {outputs.shape} as targets, found {targets.dtype} {targets.shape}"
        )
