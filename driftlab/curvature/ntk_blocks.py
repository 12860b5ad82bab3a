"""Gram matrices block by block, in bounded memory."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def gram_matrix(
    row_features: Callable[[Array], Any],
    column_features: Callable[[Array], Any],
    contract: Callable[[Any, Any], Array],
    inputs: Array,
    other: Array | None,
    rows: int,
    batch_size: int | None,
) -> Float[Array, "rows columns"]:
    """The Gram matrix of one set of examples and another, in one piece or block by block.

    Args:
      row_features: of a batch of examples.
      column_features: of a batch of examples; the same function as `row_features` where the
        features are the same.
      contract: `contract(row features of n, column features of m) -> (n rows, m rows)`.
      inputs: n examples.
      other: m examples; None for `inputs`.
      rows: rows of the matrix for an example.
      batch_size: examples of each side at once; None for all.

    Returns:
      `(n rows, m rows)`, exactly symmetric if `other` is None: blocks below the diagonal then are
      copies of those above it.
    """
    second = inputs if other is None else other
    n, m = len(inputs), len(second)
    if batch_size is None or batch_size >= max(n, m):
        first = row_features(inputs)
        shared = other is None and row_features is column_features
        gram = contract(first, first if shared else column_features(second))
        return gram if other is not None else (gram + gram.T) / 2
    row_chunks, column_chunks = chunk_indices(n, batch_size), chunk_indices(m, batch_size)

    def block_row(chunk: tuple[Array, Array]) -> Array:
        first = row_features(inputs[chunk[1]])

        def block(column: tuple[Array, Array]) -> Array:
            def compute() -> Array:
                return contract(first, column_features(second[column[1]]))

            if other is not None:
                return compute()
            # Neither index depends on a lane, so that under vmap too only one branch runs.
            shape = jax.eval_shape(compute)
            zeros = jnp.zeros(shape.shape, shape.dtype)
            return jax.lax.cond(chunk[0] <= column[0], compute, lambda: zeros)

        return jax.lax.map(block, (jnp.arange(len(column_chunks)), column_chunks))

    blocks = jax.lax.map(block_row, (jnp.arange(len(row_chunks)), row_chunks))
    height, width = blocks.shape[2:]
    gram = blocks.transpose(0, 2, 1, 3).reshape(len(row_chunks) * height, -1)
    gram = gram[: n * rows, : m * rows]
    if other is not None:
        return gram
    row_block = (jnp.arange(n * rows) // height)[:, None]
    column_block = (jnp.arange(m * rows) // width)[None]
    lower = jnp.where(row_block > column_block, gram.T, (gram + gram.T) / 2)
    return jnp.where(row_block < column_block, gram, lower)


def chunk_indices(count: int, size: int) -> Int[Array, "chunks size"]:
    """Indices of examples in equal chunks, the last one filled up with the last example.

    Args:
      count: how many examples there are.
      size: examples in a chunk.

    Returns:
      Indices from 0 to `count - 1`, in order.
    """
    chunks = math.ceil(count / size)
    return jnp.minimum(jnp.arange(chunks * size), count - 1).reshape(chunks, size)
