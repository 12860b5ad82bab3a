"""Loss and metrics on held-out data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Measure
from driftlab.objective import batch_length


def evaluation(batch_size: int | None = None) -> Measure:
    """A measure of the loss and the objective's metrics on its evaluation data.

    Evaluated at `snapshot.eval_params` (schedule-free and averaging methods name another point
    than where the gradient is taken). Cost: one forward pass over the evaluation data a record.

    Args:
      batch_size: examples evaluated at once, to bound memory; None for all of them. Batches are
        averaged with their sizes as weights, which is exact for losses that are means.

    Returns:
      A measure giving `evaluation_loss` and `evaluation_<metric>` for every metric of the
      objective, all scalars.

    Raises:
      ValueError: when used on an objective without evaluation data.
    """

    def evaluate(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
        objective = snapshot.objective
        if objective is None or objective.evaluation_data is None:
            raise ValueError(
                "the evaluation measure needs held-out data: build the Objective with "
                "evaluation_data=..., or leave this measure out."
            )
        functions = {"loss": objective.loss, **objective.metrics}
        params, data = snapshot.eval_params, objective.evaluation_data
        size = batch_length(data, "Objective.evaluation_data")

        def means(batch):
            return {f"evaluation_{name}": f(params, batch) for name, f in functions.items()}

        if batch_size is None or batch_size >= size:
            return means(data)
        count, rest = divmod(size, batch_size)
        whole = jax.tree.map(
            lambda array: jnp.asarray(array)[: count * batch_size].reshape(
                count, batch_size, *array.shape[1:]
            ),
            data,
        )
        totals = jax.tree.map(
            lambda values: values.sum() * (batch_size / size), jax.lax.map(means, whole)
        )
        if rest:
            tail = means(jax.tree.map(lambda array: jnp.asarray(array)[size - rest :], data))
            totals = jax.tree.map(lambda a, b: a + b * (rest / size), totals, tail)
        return totals

    return evaluate
