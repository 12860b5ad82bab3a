"""Means over the last half of a stream, and their error bars, in memory that never grows.

The stream is kept as sums over blocks of equal length. When every block is full, neighbours are
merged and the length doubles, so that a run of any length needs the same few numbers: inside a
compiled step, in a lane's state, in a checkpoint. The means of blocks that are long beside the
stream's memory are nearly independent, which is what their error bars rest on.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BLOCKS = 64


class Blocks(NamedTuple):
    """A stream of vectors, as sums over blocks.

    Attributes:
      sums: the sum of each block, shape `(blocks, quantities)`.
      count: how many vectors the stream has had; int32.
      size: vectors of a full block, a power of 2; int32.
    """

    sums: Float[Array, "blocks quantities"]
    count: Int[Array, ""]
    size: Int[Array, ""]


class Window(NamedTuple):
    """The last half of a stream.

    Attributes:
      mean: of each quantity, `(quantities,)`; NaN of an empty stream.
      error: its standard error from the means of the complete blocks, `(quantities,)`; NaN where
        fewer than two are complete.
      block_means: the mean of every block, `(blocks, quantities)`.
      complete: which blocks are full and lie in the window, `(blocks,)`.
      count: vectors in the window.
      total: vectors in the stream.
    """

    mean: Float[Array, " quantities"]
    error: Float[Array, " quantities"]
    block_means: Float[Array, "blocks quantities"]
    complete: Bool[Array, " blocks"]
    count: Int[Array, ""]
    total: Int[Array, ""]


def empty_blocks(quantities: int, blocks: int = BLOCKS, dtype: Any = None) -> Blocks:
    """A stream that has not begun.

    Args:
      quantities: entries of its vectors.
      blocks: how many blocks are kept, even and 8 or more. A window holds a quarter to a half of
        them.
      dtype: of the sums; None for JAX's default.

    Returns:
      The blocks.

    Raises:
      ValueError: if blocks is not an even number, 8 or more.
    """
    if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 8 or blocks % 2:
        raise ValueError(
            f"blocks must be an even number, 8 or more (64 by default); got {blocks!r}."
        )
    sums = jnp.zeros((blocks, quantities), dtype or float)
    return Blocks(sums, jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32))


def add_to_blocks(blocks: Blocks, values: Float[Array, " quantities"]) -> Blocks:
    """The stream with one vector more.

    Args:
      blocks: the stream.
      values: the vector.

    Returns:
      The stream.

    Cost: O(blocks x quantities), whatever the stream's length.
    """
    number, quantities = blocks.sums.shape
    here = (jnp.arange(number) == blocks.count // blocks.size)[:, None]
    # A choice, not a product: 0 * NaN would spoil the other blocks.
    sums = blocks.sums + jnp.where(here, values.astype(blocks.sums.dtype)[None, :], 0)
    count = blocks.count + 1
    full = count == number * blocks.size
    pairs = sums.reshape(number // 2, 2, quantities).sum(1)
    merged = jnp.concatenate([pairs, jnp.zeros_like(pairs)])
    return Blocks(
        jnp.where(full, merged, sums), count, jnp.where(full, 2 * blocks.size, blocks.size)
    )


def last_half(blocks: Blocks) -> Window:
    """The half-running mean: that over the last half of the stream, with error bars by blocking.

    The window begins with the block that holds vector `count // 2`: at that vector exactly if
    `count` is an even number of blocks, and else less than a block before it: `count / 32`, of 64.

    Args:
      blocks: the stream.

    Returns:
      The window.

    Source: Yaida (2019) (half-running averages); Flyvbjerg & Petersen (1989) (blocking).
    """
    number = blocks.sums.shape[0]
    index = jnp.arange(number)
    inside = index >= blocks.count // (2 * blocks.size)
    lengths = jnp.where(inside, jnp.clip(blocks.count - index * blocks.size, 0, blocks.size), 0)
    complete = inside & (lengths == blocks.size)
    count = lengths.sum()
    dtype = blocks.sums.dtype
    mean = jnp.where(inside[:, None], blocks.sums, 0).sum(0) / count.astype(dtype)
    means = blocks.sums / blocks.size.astype(dtype)
    return Window(mean, standard_error(means, complete), means, complete, count, blocks.count)


def standard_error(
    values: Float[Array, "blocks quantities"], complete: Bool[Array, " blocks"]
) -> Float[Array, " quantities"]:
    """The standard error of a mean over blocks that are taken for independent.

    Args:
      values: one row a block.
      complete: which rows count, m of them.

    Returns:
      `sqrt(sum (x_b - mean x)^2 / (m - 1) / m)` for each column; NaN for m < 2.
    """
    number = complete.sum().astype(values.dtype)
    mean = jnp.where(complete[:, None], values, 0).sum(0) / number
    squares = jnp.where(complete[:, None], jnp.square(values - mean[None, :]), 0).sum(0)
    return jnp.sqrt(squares / (number - 1) / number)


def trend(window: Window, quantity: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The least-squares line through the means of a window's complete blocks.

    Args:
      window: the window, with m complete blocks.
      quantity: which.

    Returns:
      `(change, error)`: by how much the line changes over the m blocks, and the standard error of
      that with m - 2 degrees of freedom; NaN for m < 3. Memory longer than a block makes the error
      too small.
    """
    dtype = window.block_means.dtype
    complete, values = window.complete, window.block_means[:, quantity]
    number = complete.sum().astype(dtype)
    times = jnp.arange(len(complete), dtype=dtype)

    def total(array: Float[Array, " blocks"]) -> Float[Array, ""]:
        return jnp.where(complete, array, 0).sum()

    times, values = times - total(times) / number, values - total(values) / number
    spread = total(times**2)
    slope = total(times * values) / spread
    variance = total(jnp.square(values - slope * times)) / (number - 2)
    few = number < 3
    change, error = number * slope, number * jnp.sqrt(variance / spread)
    return jnp.where(few, jnp.nan, change), jnp.where(few, jnp.nan, error)
