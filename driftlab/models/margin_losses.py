"""Losses of margins that go on when the risk itself has underflowed: their logarithms.

On separable data the risk of a deep network falls below the smallest number there is while its
logarithm is still of the size of 100; a flow that is to be followed there descends the logarithm.
Signs and shapes are those of `models.logistic`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from driftlab.models.losses import Apply, BatchFunction, Inputs, Targets


def exponential(apply: Apply) -> BatchFunction:
    """Makes the exponential loss of signs, `R = mean_i exp(-y_i f(x_i))`.

    Args:
        apply: `(params, inputs) -> outputs`, `(batch,)` or `(batch, 1)`.

    Returns:
        The loss. Its targets are -1 or +1, `(batch,)` or `(batch, 1)`. It raises `ValueError` for
        other shapes.
    """

    def loss(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        return jnp.mean(jnp.exp(-_signed_outputs(apply, params, batch, "exponential")))

    return loss


def log_exponential(apply: Apply) -> BatchFunction:
    """Makes the logarithm of the exponential risk, `log mean_i exp(-y_i f(x_i))`.

    Args:
        apply: as in `exponential`.

    Returns:
        The loss, finite where the risk underflows; minus a smooth minimum of the margins.
    """

    def loss(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        margins = _signed_outputs(apply, params, batch, "log_exponential")
        return jax.scipy.special.logsumexp(-margins) - math.log(margins.shape[0])

    return loss


def log_logistic(apply: Apply) -> BatchFunction:
    """Makes the logarithm of the logistic risk, `log mean_i log(1 + exp(-y_i f(x_i)))`.

    A log-sum-exp of `log softplus(-m)`, which for large margins m is `-m - exp(-m) / 2` to
    rounding.

    Args:
        apply: as in `exponential`.

    Returns:
        The loss, finite where the risk underflows. `exp` of it is `models.logistic`.
    """

    def loss(params: PyTree, batch: tuple[Inputs, Targets]) -> Inexact[Array, ""]:
        margins = _signed_outputs(apply, params, batch, "log_logistic")
        # From here on the next term of the series, 5 exp(-2 m) / 24, is below the rounding of m.
        edge = -math.log(float(jnp.finfo(margins.dtype).eps)) / 2
        # Each formula sees only margins for which it and all its derivatives are exact.
        wrong, large = margins < 0, margins > edge
        far, below = jnp.where(large, margins, edge), jnp.where(wrong, margins, 0)
        near = jnp.where(wrong | large, 0, margins)
        logs = jnp.select(
            [large, wrong],
            [-far - jnp.exp(-far) / 2, jnp.log(jnp.log1p(jnp.exp(below)) - below)],
            jnp.log(jnp.log1p(jnp.exp(-near))),
        )
        return jax.scipy.special.logsumexp(logs) - math.log(margins.shape[0])

    return loss


def _signed_outputs(
    apply: Apply, params: PyTree, batch: tuple[Inputs, Targets], name: str
) -> Inexact[Array, " batch"]:
    inputs, targets = batch
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    outputs = apply(params, inputs)
    count = inputs.shape[0]
    shapes = ((count,), (count, 1))
    if outputs.shape not in shapes or targets.shape not in shapes:
        raise ValueError(
            f"{name} of signs needs one output and one target for each of the {count} examples; "
            f"found outputs {outputs.shape} and targets {targets.shape}"
        )
    return targets.reshape(-1).astype(outputs.dtype) * outputs.reshape(-1)
