"""Means over a data set in micro-batches: exact, in bounded memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


def mean_over_batches(
    function: Callable[[PyTree[Array]], PyTree[Array]],
    data: PyTree[Array],
    batch_size: int | None = None,
) -> PyTree[Array]:
    """The mean of `function(batch)` over the batches of a data set, weighted by their sizes.

    Equals `function(data)` for whatever is a mean over examples: a loss, its gradient, a
    Hessian-vector product. Memory: that of one batch.

    Args:
      function: `function(batch) -> pytree of arrays`; may be traced twice (whole and last batch).
      data: examples; leaves share one leading axis. A tree without leaves is one batch.
      batch_size: examples at once; None for all of them.

    Returns:
      The weighted mean, in the structure that `function` returns.

    Raises:
      ValueError: if batch_size is not a positive integer, or the data cannot be divided.
    """
    size = check_batches(data, batch_size)
    if batch_size is None or batch_size >= size:
        return function(data)
    count, rest = divmod(size, batch_size)

    def accumulate(total: PyTree[Array], batch: PyTree[Array]) -> tuple[PyTree[Array], None]:
        weight = batch_size / size
        return jax.tree.map(lambda t, v: t + v * weight, total, function(batch)), None

    whole = jax.tree.map(
        lambda array: array[: count * batch_size].reshape(count, batch_size, *array.shape[1:]),
        data,
    )
    shapes = jax.eval_shape(function, jax.tree.map(lambda array: array[0], whole))
    # Not from the first batch's values: the function would be compiled once more.
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(accumulate, nothing, whole)
    if rest:
        last = function(jax.tree.map(lambda array: array[size - rest :], data))
        total = jax.tree.map(lambda t, v: t + v * (rest / size), total, last)
    return total


def check_batches(data: PyTree[Array], batch_size: int | None) -> int:
    """Refuses a batch size, or data, that micro-batches cannot be made with.

    Args:
      data: examples.
      batch_size: examples at once; None for all of them, in which case data may be anything.

    Returns:
      The number of examples; 0 for a tree without leaves, or if batch_size is None.

    Raises:
      ValueError: if batch_size is not a positive integer, or the leaves share no leading axis.
    """
    if batch_size is None:
        return 0
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, or None; got {batch_size!r}.")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        raise ValueError(
            f"to be taken {batch_size} at a time, all arrays of the data must have the examples "
            f"along a leading axis of one length; got shapes {shapes}."
        )
    return shapes[0][0] if shapes else 0
