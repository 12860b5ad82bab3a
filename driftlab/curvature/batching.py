"""Means over a data set in micro-batches: exact, in bounded memory."""

from collections.abc import Callable

import jax
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
      ValueError: if batch_size is not a positive integer.
    """
    if batch_size is not None and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise ValueError(f"batch_size must be a positive integer, or None; got {batch_size!r}.")
    leaves = jax.tree.leaves(data)
    size = leaves[0].shape[0] if leaves else 0
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
    first, others = jax.tree.map(lambda a: a[0], whole), jax.tree.map(lambda a: a[1:], whole)
    total = jax.tree.map(lambda value: value * (batch_size / size), function(first))
    if count > 1:
        total, _ = jax.lax.scan(accumulate, total, others)
    if rest:
        last = function(jax.tree.map(lambda array: array[size - rest :], data))
        total = jax.tree.map(lambda t, v: t + v * (rest / size), total, last)
    return total
