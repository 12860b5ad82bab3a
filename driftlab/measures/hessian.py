"""The Hessian that the measures look at: that of what is minimised, over all the data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from driftlab import curvature
from driftlab.dynamics import Snapshot
from driftlab.objective import Batch, Objective, Params

FULL, STEP = "full", "step"

# Apart from the keys that batches are drawn with, `fold_in(key, step)` for steps from 0.
_PROBE_STREAM = 0x5EC7


def objective_hessian(
    snapshot: Snapshot, name: str, batch_size: int | None = None, data: str = FULL
) -> curvature.Operator:
    """The Hessian of loss plus regulariser at theta_k.

    Args:
      snapshot: what the step saw.
      name: the measure that asks, for errors.
      batch_size: examples at once; None for all of them.
      data: "full" for all the training data, "step" for the step's own batch.

    Returns:
      A symmetric operator on trees like params.

    Raises:
      ValueError: if the dynamics has no objective.
    """
    objective, examples = objective_and_data(snapshot, name, data)
    return curvature.hessian(
        lambda params, batch: objective.value(params, batch)[0],
        snapshot.params,
        examples,
        batch_size,
    )


def objective_and_data(snapshot: Snapshot, name: str, data: str) -> tuple[Objective, Batch]:
    """What a curvature measure needs of a snapshot.

    Args:
      snapshot: what the step saw.
      name: the measure that asks, for errors.
      data: "full" or "step".

    Returns:
      The objective and the examples.

    Raises:
      ValueError: if the dynamics has no objective.
    """
    if snapshot.objective is None:
        raise ValueError(f"{name} needs a dynamics with an objective, to differentiate it.")
    return snapshot.objective, snapshot.objective.data if data == FULL else snapshot.batch


def check_data(data: str) -> None:
    """Refuses what is neither "full" nor "step".

    Args:
      data: what was given.

    Raises:
      ValueError: saying what is accepted.
    """
    if data not in (FULL, STEP):
        raise ValueError(f'data must be "full" or "step" (the step\'s own batch); got {data!r}.')


def probe_key(snapshot: Snapshot) -> PRNGKeyArray:
    """The key of a measure's random vectors: a pure function of the run's key and the step.

    Args:
      snapshot: what the step saw.

    Returns:
      A key that no batch is drawn with.
    """
    return jax.random.fold_in(
        jax.random.fold_in(snapshot.state.key, _PROBE_STREAM), snapshot.state.step
    )


def parameter_count(params: Params) -> int:
    """n, the number of parameters.

    Args:
      params: a pytree of arrays or their shapes.

    Returns:
      The sum of the leaves' sizes.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def vector_dtype(params: Params) -> jnp.dtype:
    """The dtype of flat vectors like params: theirs, float32 at least.

    Args:
      params: a pytree of arrays or their shapes.

    Returns:
      The dtype.
    """
    return jnp.result_type(jnp.float32, *[leaf.dtype for leaf in jax.tree.leaves(params)])


def inner_product(first: PyTree[Array], second: PyTree[Array]) -> Array:
    """`first . second` over all leaves, in float32 at least.

    Args:
      first: a pytree of arrays.
      second: likewise.

    Returns:
      Scalar.
    """
    products = jax.tree.map(
        lambda a, b: jnp.sum(a.astype(vector_dtype(first)) * b.astype(vector_dtype(first))),
        first,
        second,
    )
    return jnp.stack(jax.tree.leaves(products)).sum()
