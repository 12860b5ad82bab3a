"""What is minimised: a pure loss, its data, and how batches are drawn from them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from driftlab.sampling import Sampling, full_batch

Params = PyTree[Array]
Batch = PyTree[Array]
Loss = Callable[[Params, Batch], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A loss over data: `L(theta) = loss(theta, batch) + regularizer(theta, batch)`.

    Attributes:
      loss: `loss(params, batch) -> scalar`, pure; a mean over the batch's examples.
      data: the training examples: a pytree of arrays with one leading axis of the same length.
        `()` for a loss without data.
      sampling: which examples each step uses (see `driftlab.sampling`).
      evaluation_data: held-out examples of the same structure, or None.
      metrics: name -> `metric(params, batch) -> scalar` (accuracy, ...), evaluated on
        `evaluation_data`.
      regularizer: `regularizer(params, batch) -> scalar` added to the loss that is minimised, or
        None. The reported loss stays without it. Set it with `regularized`.

    Raises:
      ValueError: if the leaves of `data` or `evaluation_data` differ in their leading axis, or
        the sampling needs more examples than there are, or a metric is called "loss".
    """

    loss: Loss
    data: Batch = ()
    sampling: Sampling = dataclasses.field(default_factory=full_batch)
    evaluation_data: Batch | None = None
    metrics: Mapping[str, Loss] = dataclasses.field(default_factory=dict)
    regularizer: Loss | None = None

    def __post_init__(self) -> None:
        # On device once: a NumPy array would be copied into every program that closes over it.
        for name in ("data", "evaluation_data"):
            batch = jax.tree.map(jnp.asarray, getattr(self, name))
            batch_length(batch, f"Objective.{name}")
            object.__setattr__(self, name, batch)
        if "loss" in self.metrics:
            raise ValueError("Objective.metrics cannot hold a 'loss': that is the loss's own name.")
        if self.sampling.batch_size is not None:
            self.sampling.steps_per_epoch(self.size)

    @property
    def size(self) -> int:
        """The number of training examples."""
        return batch_length(self.data, "Objective.data")

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""]) -> Batch:
        """The batch of step `step`: a pure function of (key, step).

        Args:
          key: the run's key; the same key gives the same sequence of batches.
          step: the iteration, counted from 0.

        Returns:
          The examples, in the structure of `data`.
        """
        if self.sampling.batch_size is None:
            return self.data
        indices = self.sampling.indices(key, step, self.size)
        return jax.tree.map(lambda array: array[indices], self.data)

    def value(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What is minimised, and the loss alone.

        Args:
          params: the parameters.
          batch: the examples.

        Returns:
          `(loss + regularizer, loss)`, two scalars.

        Raises:
          ValueError: if the loss or the regulariser does not return a real scalar.
        """
        loss = _scalar(self.loss(params, batch), "loss")
        if self.regularizer is None:
            return loss, loss
        return loss + _scalar(self.regularizer(params, batch), "regularizer"), loss


def regularized(objective: Objective, regularizer: Loss, coefficient: Any = 1.0) -> Objective:
    """The objective with `coefficient * regularizer(params, batch)` added to what is minimised.

    Args:
      objective: the objective; a regulariser it already has is kept.
      regularizer: `regularizer(params, batch) -> scalar`, pure.
      coefficient: its factor; may be a traced array, so it can be a lane axis.

    Returns:
      A new objective.
    """
    previous = objective.regularizer

    def total(params: Params, batch: Batch) -> Float[Array, ""]:
        penalty = coefficient * regularizer(params, batch)
        return penalty if previous is None else previous(params, batch) + penalty

    return dataclasses.replace(objective, regularizer=total)


def batch_length(batch: Batch, name: str) -> int:
    """The common leading axis of a batch's leaves.

    Args:
      batch: a pytree of arrays.
      name: what the batch is called in an error.

    Returns:
      The number of examples; 0 for a tree without leaves.

    Raises:
      ValueError: if leaves are scalars or their leading axes differ.
    """
    shapes = {
        jax.tree_util.keystr(path) or "(array)": tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    lengths = {shape[:1] for shape in shapes.values()}
    if not lengths:
        return 0
    if len(lengths) > 1 or () in lengths:
        raise ValueError(
            f"every array in {name} needs the same leading axis (one entry an example); "
            f"got shapes {shapes}."
        )
    return lengths.pop()[0]


def _scalar(value: Any, name: str) -> Float[Array, ""]:
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"Objective.{name} must return a scalar, but returned an array of shape {value.shape}; "
            "average or sum over the batch inside it."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"Objective.{name} must return a real floating-point scalar; got {value.dtype}."
        )
    return value
