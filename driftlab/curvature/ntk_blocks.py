"""Gram matrices of networks block by block, in bounded memory."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from driftlab.curvature.operators import check_params
from driftlab.curvature.vectors import check_count


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
      `(n rows, m rows)`, exactly symmetric if `other` is None: what is below the diagonal then is a
      copy of what is above it.
    """
    second = inputs if other is None else other
    n, m = len(inputs), len(second)
    if batch_size is None or batch_size >= max(n, m):
        first = row_features(inputs)
        shared = other is None and row_features is column_features
        gram = contract(first, first if shared else column_features(second))
        return gram if other is not None else _mirrored(gram)
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
    gram = blocks.transpose(0, 2, 1, 3).reshape(len(row_chunks) * blocks.shape[2], -1)
    gram = gram[: n * rows, : m * rows]
    return gram if other is not None else _mirrored(gram)


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


def check_network(
    apply: Callable[[Any, Array], Array],
    params: PyTree[Array],
    inputs: Array,
    other: Array | None,
    batch_size: int | None,
) -> tuple[int, bool]:
    """Refuses networks and examples that have no kernel.

    Args:
      apply: `apply(params, inputs)`.
      params: theta.
      inputs: n examples.
      other: m examples, or None.
      batch_size: examples at once, or None.

    Returns:
      The number of outputs of an example, and whether `apply` returns `(n,)`, without their axis.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: saying what does not fit.
    """
    check_params(params)
    if not jax.tree.leaves(params):
        raise ValueError("params hold no arrays: a network without parameters has no kernel.")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    named = {"inputs": inputs} if other is None else {"inputs": inputs, "other": other}
    for name, array in named.items():
        if not array.shape or not array.shape[0]:
            raise ValueError(
                f"{name} needs one entry or more along its first axis, one an example; got shape "
                f"{array.shape}."
            )
    if other is not None and (other.shape[1:], other.dtype) != (inputs.shape[1:], inputs.dtype):
        raise ValueError(
            f"other holds examples of shape {other.shape[1:]} and {other.dtype}, but inputs of "
            f"{inputs.shape[1:]} and {inputs.dtype}; they must be the same."
        )
    value = jax.eval_shape(apply, params, inputs)
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) not in (1, 2) or shape[0] != inputs.shape[0]:
        raise ValueError(
            f"apply(params, inputs) must return (n, outputs) or (n,) with n={inputs.shape[0]} "
            f"examples; got {type(value).__name__ if shape is None else f'shape {shape}'}."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating) or not math.prod(shape):
        raise ValueError(
            f"apply(params, inputs) must return real floating-point outputs, one or more an "
            f"example; got {value.dtype} of shape {shape}."
        )
    return math.prod(shape[1:]), len(shape) == 1


def _mirrored(gram: Float[Array, "n n"]) -> Float[Array, "n n"]:
    # One gather, not a mean with the transpose or a choice between the two: XLA fuses what computes
    # the entries into those twice, and rounds a b + c d in the one as fma(a, b, c d), in the other
    # as fma(c, d, a b).
    index = jnp.arange(gram.shape[0])
    low = jnp.minimum(index[:, None], index[None])
    high = jnp.maximum(index[:, None], index[None])
    return gram.at[low, high].get(mode="promise_in_bounds")
