"""Loss and metrics on whole data sets, held-out or training."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature import mean_over_batches
from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Measure
from driftlab.objective import Batch, Loss, Objective, Params
from driftlab.sampling import check_batch_size


def evaluation(batch_size: int | None = None) -> Measure:
    """A measure of the loss and the objective's metrics on its evaluation data.

    Evaluated at `snapshot.eval_params` (schedule-free and averaging methods name another point
    than where the gradient is taken). Cost: one forward pass over the evaluation data a record.

    Args:
      batch_size: examples evaluated at once, to bound memory; None for all of them. Batches are
        averaged with their sizes as weights, which is exact for losses that are means.

    Returns:
      A measure giving `evaluation_loss` and `evaluation_<metric>` for every metric of the
      objective, all scalars. It raises a ValueError on an objective without evaluation data.
    """
    if batch_size is not None:
        check_batch_size(batch_size)

    def evaluate(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
        objective = snapshot.objective
        if objective is None or objective.evaluation_data is None:
            raise ValueError(
                "the evaluation measure needs held-out data: build the Objective with "
                "evaluation_data=..., or leave this measure out."
            )
        return _means(snapshot, objective, objective.evaluation_data, "evaluation", batch_size)

    return evaluate


def training(batch_size: int | None = None) -> Measure:
    """A measure of the loss and the objective's metrics on all the training data.

    Unlike `loss`, which is that of the step's own batch, it has no sampling noise. Evaluated at
    `snapshot.eval_params`. Cost: one forward pass over the training data a record.

    Args:
      batch_size: examples evaluated at once, as in `evaluation`.

    Returns:
      A measure giving `training_loss` and `training_<metric>`, all scalars. It raises a
      ValueError on a dynamics without objective.
    """
    if batch_size is not None:
        check_batch_size(batch_size)

    def train(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
        objective = snapshot.objective
        if objective is None:
            raise ValueError("the training measure needs a dynamics with an objective.")
        return _means(snapshot, objective, objective.data, "training", batch_size)

    return train


def _means(
    snapshot: Snapshot, objective: Objective, data: Batch, prefix: str, batch_size: int | None
) -> dict[str, Float[Array, ""]]:
    params = snapshot.eval_params
    functions = {"loss": objective.loss, **objective.metrics}
    named = {f"{prefix}_{name}": function for name, function in functions.items()}
    return mean_over_batches(lambda batch: _evaluated(named, params, batch), data, batch_size)


def _evaluated(
    functions: dict[str, Loss | Callable], params: Params, batch: Batch
) -> dict[str, Float[Array, ""]]:
    values = {name: jnp.asarray(function(params, batch)) for name, function in functions.items()}
    for name, value in values.items():
        if value.shape != ():
            raise ValueError(
                f"{name} must be a scalar; got shape {value.shape}: average inside the metric."
            )
    return values
