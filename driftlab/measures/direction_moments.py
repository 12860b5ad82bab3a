"""Moments of vectors and of their directions, updated one vector at a time, in O(d) memory."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from driftlab.objective import Params


class DirectionMoments(NamedTuple):
    """Moments of vectors `g_1 .. g_n` and of the directions `x_i = g_i / |g_i|` of those not 0.

    Sums of squares are about the mean of all and updated as Welford (1962) does: no difference of
    large numbers is taken.

    Attributes:
      count: n.
      nonzero_count: how many are not 0 (or not finite: these count, and make NaNs).
      mean: `mean_i g_i`; a tree.
      squared_deviation: `sum_i |g_i - mean|^2`.
      mean_direction: `mean_i x_i`, over the nonzero ones; a tree.
      squared_direction_deviation: `sum_i |x_i - mean_direction|^2`.
      mean_norm: `mean_i |g_i|`.
      norm_deviation: `sum_i (|g_i| - mean_norm)^2`.
    """

    count: Int[Array, ""]
    nonzero_count: Int[Array, ""]
    mean: Params
    squared_deviation: Float[Array, ""]
    mean_direction: Params
    squared_direction_deviation: Float[Array, ""]
    mean_norm: Float[Array, ""]
    norm_deviation: Float[Array, ""]

    @property
    def dimension(self) -> int:
        """d, the number of coordinates."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.mean))

    @property
    def squared_norm_of_mean(self) -> Float[Array, ""]:
        """`|mean_i g_i|^2`."""
        return optax.tree.norm(self.mean, squared=True)

    @property
    def squared_resultant(self) -> Float[Array, ""]:
        """`R^2 = |mean_i x_i|^2`."""
        return optax.tree.norm(self.mean_direction, squared=True)

    @property
    def direction_variance(self) -> Float[Array, ""]:
        """`1 - R^2`, as the mean squared distance of the directions from their mean."""
        return self.squared_direction_deviation / jnp.maximum(self.nonzero_count, 1)


def no_moments(like: Params) -> DirectionMoments:
    """The moments of no vectors.

    Args:
      like: a tree of the vectors' shapes.

    Returns:
      Zeros, in the vectors' precision, float32 at least.
    """
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), like
    )
    dtype = jnp.result_type(*jax.tree.leaves(zeros))
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), dtype)
    return DirectionMoments(none, none, zeros, zero, zeros, zero, zero, zero)


def add_vector(moments: DirectionMoments, vector: Params) -> DirectionMoments:
    """The moments with one vector more.

    Args:
      moments: of the vectors so far.
      vector: the next one. Zero counts as a vector, and has no direction.

    Returns:
      The moments, in the same dtypes.
    """
    dtype = moments.mean_norm.dtype
    vector = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), vector, moments.mean)
    # Scaled by the largest coordinate: the squares of small gradients vanish in float32.
    largest = jnp.stack([jnp.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(vector)]).max()
    largest = largest.astype(dtype)
    safe = jnp.where(largest == 0, 1, largest)
    scaled = jax.tree.map(lambda leaf: leaf / safe.astype(leaf.dtype), vector)
    length = optax.tree.norm(scaled).astype(dtype)
    norm = length * largest
    direction = jax.tree.map(
        lambda leaf: leaf / jnp.where(length == 0, 1, length).astype(leaf.dtype), scaled
    )
    count = moments.count + 1
    each = 1 / count.astype(dtype)  # a quotient of integers would be float32
    # A zero moves neither the mean direction nor its count; NaN is not equal to 0 and shows.
    directed = largest != 0
    nonzero = moments.nonzero_count + directed
    mean, squared = _welford(moments.mean, moments.squared_deviation, vector, each)
    mean_direction, squared_direction = _welford(
        moments.mean_direction,
        moments.squared_direction_deviation,
        direction,
        directed / jnp.maximum(nonzero, 1).astype(dtype),
    )
    mean_norm, norm_deviation = _welford(moments.mean_norm, moments.norm_deviation, norm, each)
    return DirectionMoments(
        count, nonzero, mean, squared, mean_direction, squared_direction, mean_norm, norm_deviation
    )


def _welford(
    mean: Params, squared: Array, new: Params, weight: Array
) -> tuple[Params, Float[Array, ""]]:
    """The mean with one more of weight 1/n, and the sum of squares about it; 0: as before."""
    difference = jax.tree.map(jnp.subtract, new, mean)
    updated = jax.tree.map(lambda m, x: m + weight.astype(m.dtype) * x, mean, difference)
    added = optax.tree.norm(difference, squared=True).astype(squared.dtype) * (1 - weight)
    return updated, jnp.where(weight == 0, squared, squared + added)


def stream_moments(
    draw: Callable[[PRNGKeyArray], Params],
    keys: PRNGKeyArray,
    like: Params,
    groups: Mapping[str, tuple[int, ...]],
    at_once: int = 1,
) -> dict[str, DirectionMoments]:
    """The moments of drawn vectors, and of parts of them, without keeping the vectors.

    Args:
      draw: `key -> vector`, a tree.
      keys: one a vector, `(n,)`.
      like: a tree of the vectors' shapes.
      groups: name -> positions of leaves in `jax.tree.leaves(like)`: each part is a vector of its
        own, with its own direction.
      at_once: vectors drawn together by vmap; divides n. Memory: that of so many, and of two trees
        for every group.

    Returns:
      Name -> moments.
    """

    def parts(tree: Params) -> dict[str, list[Array]]:
        leaves = jax.tree.leaves(tree)
        return {name: [leaves[index] for index in chosen] for name, chosen in groups.items()}

    def add(moments: dict[str, DirectionMoments], vector: Params) -> tuple:
        new = parts(vector)
        return {name: add_vector(moments[name], new[name]) for name in groups}, None

    def add_chunk(moments: dict[str, DirectionMoments], chunk: PRNGKeyArray) -> tuple:
        return jax.lax.scan(add, moments, jax.vmap(draw)(chunk))

    def add_one(moments: dict[str, DirectionMoments], key: PRNGKeyArray) -> tuple:
        return add(moments, draw(key))

    start = {name: no_moments(part) for name, part in parts(like).items()}
    if at_once == 1:
        return jax.lax.scan(add_one, start, keys)[0]
    return jax.lax.scan(add_chunk, start, keys.reshape(-1, at_once))[0]
