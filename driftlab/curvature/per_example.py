"""Per-example gradients: their norms, their mean and their covariance, in bounded memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

Params = PyTree[Float[Array, "..."]]
Loss = Callable[[Params, PyTree[Array]], Float[Array, ""]]

# Gradients held at once unless the caller says otherwise: enough to keep matrix products busy,
# and for a network of a million parameters 128 MB in float32.
_BATCH_SIZE = 32


class GradientMoments(NamedTuple):
    """Moments of the gradients g_1 .. g_n of n examples (or micro-batches).

    Attributes:
      mean: `g = mean_i g_i`; the structure of params.
      norms: `|g_i|`, shape `(n,)`, in the order of the data.
      distances: `|g_i - g|`, shape `(n,)`.
      direction_sum: `sum_i g_i / |g_i|` over the gradients that are not zero.
      variance: per coordinate `mean_i (g_i - g)^2`, the population form; 0 where it is below what
        rounding in g alone amounts to. The structure of params; None if not asked for.
    """

    mean: Params
    norms: Float[Array, " n"]
    distances: Float[Array, " n"]
    direction_sum: Params
    variance: Params | None

    @property
    def count(self) -> int:
        """How many gradients, n."""
        return self.norms.shape[0]

    @property
    def nonzero_count(self) -> Int[Array, ""]:
        """How many are not zero (zero: |g_i|^2 is 0 in the arithmetic used)."""
        return (self.norms != 0).sum()

    @property
    def squared_norm_of_mean(self) -> Float[Array, ""]:
        """`|g|^2`."""
        return _squared_norm(self.mean)

    @property
    def mean_squared_norm(self) -> Float[Array, ""]:
        """`mean_i |g_i|^2`, which is `|g|^2 + tr Cov`."""
        return jnp.square(self.norms).mean()

    @property
    def covariance_trace(self) -> Float[Array, ""]:
        """`tr Cov = mean_i |g_i - g|^2`: the population form (divided by n).

        Exact for a gradient drawn uniformly from these n.
        """
        return jnp.square(self.distances).mean()

    @property
    def sample_covariance_trace(self) -> Float[Array, ""]:
        """`n/(n-1) tr Cov`, unbiased where the n are a sample of something larger; NaN at n = 1."""
        unbiased = jnp.square(self.distances).sum() / max(self.count - 1, 1)
        return unbiased if self.count > 1 else jnp.full_like(unbiased, jnp.nan)


def gradient_moments(
    loss: Loss,
    params: Params,
    data: PyTree[Array],
    batch_size: int | None = None,
    per_coordinate: bool = False,
    micro_batch_size: int = 1,
) -> GradientMoments:
    """First and second moments of per-example gradients, `g_i = grad loss(params, data[i:i+1])`.

    In two passes, both over chunks of examples: the mean gradient first, then every example's
    distance from it. `mean |g_i|^2 - |g|^2` would do in one, but is a difference of two large
    numbers: in float32 it has no digit left once the noise is below 3e-4 of the mean, where the
    distances have all of theirs (they lose them to rounding in g at 1e-6).

    Cost: two gradients over the data (one if `direction_sum` is not used), and n gradients one by
    one, by vmap. Together 10 gradients' time on a 784-256-256-10 network and a CPU, where norms are
    taken without writing the gradients out, or 40 with `per_coordinate`, for which they are
    written. Memory: that of `batch_size` gradients, times lanes under vmap.
    A regulariser inside the loss that does not look at the examples is part of every g_i: of the
    mean and the norms, not of the covariance. A loss that couples examples (batch normalisation)
    has no per-example gradient; use `micro_batch_size`. Dense layers would allow the norms from
    activations and back-propagated errors alone (Goodfellow, 2015); this works on any loss.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch's examples.
      params: where; floating-point arrays.
      data: examples; leaves share one leading axis.
      batch_size: gradients held at once, at most; None for 32.
      per_coordinate: whether to compute every coordinate's variance too.
      micro_batch_size: consecutive examples to a gradient: the moments then are those of the
        gradients of micro-batches. It divides the number of examples.

    Returns:
      The moments, in the finest precision among params, or float32 if that is less.

    Raises:
      ValueError: if there are no examples, or the sizes are not positive integers that fit them.
    """
    chunks = _chunks(data, batch_size, micro_batch_size)

    def weighted_gradient(weights: Float[Array, " chunk"], indices: Int[Array, " chunk"]) -> Params:
        def weighted_loss(params: Params) -> Float[Array, ""]:
            losses = jax.vmap(lambda index: loss(params, chunks.example(index)))(indices)
            return jnp.vdot(weights.astype(losses.dtype), losses)

        return _at_least_float32(jax.grad(weighted_loss)(params))

    def add_to_mean(mean: Params, chunk: tuple) -> tuple[Params, None]:
        weights, indices = chunk
        gradient = weighted_gradient(weights, indices)
        return jax.tree.map(lambda m, g: m + g / chunks.count, mean, gradient), None

    def add_to_moments(carry: tuple, chunk: tuple) -> tuple[tuple, tuple]:
        direction_sum, squares = carry
        weights, indices = chunk

        def of_one(index: Int[Array, ""]) -> tuple[Array, Array, Params | None]:
            gradient = _at_least_float32(jax.grad(loss)(params, chunks.example(index)))
            deviation = jax.tree.map(jnp.subtract, gradient, mean)
            squares = jax.tree.map(jnp.square, deviation) if per_coordinate else None
            return _norm(gradient), _norm(deviation), squares

        norms, distances, new = jax.vmap(of_one)(indices)
        squares = jax.tree.map(lambda s, rows: s + jnp.tensordot(weights, rows, 1), squares, new)
        directed = norms != 0
        scales = jnp.where(directed, weights / jnp.where(directed, norms, 1), 0)
        directions = weighted_gradient(scales, indices)
        return (jax.tree.map(jnp.add, direction_sum, directions), squares), (norms, distances)

    zeros = jax.tree.map(jnp.zeros_like, _at_least_float32(params))
    dtype = jax.tree.leaves(zeros)[0].dtype
    steps = (chunks.weights.astype(dtype), chunks.indices)
    mean, _ = jax.lax.scan(add_to_mean, zeros, steps)
    (direction_sum, squares), (norms, distances) = jax.lax.scan(
        add_to_moments, (zeros, zeros if per_coordinate else None), steps
    )

    # A coordinate on which the examples agree has a sum that is off by its rounding, and so have
    # its deviations; left in, its signal-to-noise ratio would be 1e13 rather than undefined.
    rounding = sum(chunks.indices.shape) * jnp.finfo(dtype).eps

    def variance_of(squares: Array, mean: Array) -> Array:
        variance = squares / chunks.count
        return jnp.where(variance <= jnp.square(rounding * mean), 0, variance)

    return GradientMoments(
        mean=mean,
        norms=norms.reshape(-1)[: chunks.count],
        distances=distances.reshape(-1)[: chunks.count],
        direction_sum=direction_sum,
        variance=jax.tree.map(variance_of, squares, mean) if per_coordinate else None,
    )


def per_example_gradient_norms(
    loss: Loss, params: Params, data: PyTree[Array], batch_size: int | None = None
) -> Float[Array, " n"]:
    """The norms `|g_i|` of the gradients of the examples, one by one.

    Cost and memory: see `gradient_moments`, without its two plain gradients.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch's examples.
      params: where; floating-point arrays.
      data: n examples; leaves share one leading axis.
      batch_size: gradients held at once, at most; None for 32.

    Returns:
      Shape `(n,)`, in the order of the data.

    Raises:
      ValueError: if there are no examples, or batch_size is not a positive integer.
    """
    chunks = _chunks(data, batch_size, 1)

    def norm(index: Int[Array, ""]) -> Float[Array, ""]:
        return _norm(_at_least_float32(jax.grad(loss)(params, chunks.example(index))))

    return jax.lax.map(jax.vmap(norm), chunks.indices).reshape(-1)[: chunks.count]


class _Chunks(NamedTuple):
    """How examples are gone through: `indices` and `weights` have shape `(chunks, chunk size)`.

    The last chunk is filled up with copies of the last example, of weight 0.
    """

    count: int
    indices: Int[Array, "chunks chunk"]
    weights: Bool[Array, "chunks chunk"]
    example: Callable[[Int[Array, ""]], PyTree[Array]]


def _chunks(data: PyTree[Array], batch_size: int | None, micro_batch_size: int) -> _Chunks:
    if batch_size is None:
        batch_size = _BATCH_SIZE
    for name, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    leaves = jax.tree.leaves(data)
    size = leaves[0].shape[0] if leaves else 0
    if size == 0:
        raise ValueError(
            "per-example gradients need examples, but data hold none; a loss without data has "
            "one gradient and no noise."
        )
    if size % micro_batch_size:
        raise ValueError(
            f"micro_batch_size={micro_batch_size} does not divide the {size} examples; leave some "
            "out, or choose a divisor."
        )
    count = size // micro_batch_size
    # Chunks as equal as can be: fewer gradients are taken twice than there are chunks.
    num_chunks = -(-count // batch_size)
    indices = jnp.arange(num_chunks * -(-count // num_chunks)).reshape(num_chunks, -1)

    def example(index: Int[Array, ""]) -> PyTree[Array]:
        def cut(array: Array) -> Array:
            first = index * micro_batch_size
            return jax.lax.dynamic_slice_in_dim(array, first, micro_batch_size)

        return jax.tree.map(cut, data)

    return _Chunks(count, jnp.minimum(indices, count - 1), indices < count, example)


def _at_least_float32(tree: Params) -> Params:
    """All leaves in one precision, that of the finest and at least float32."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def _squared_norm(tree: Params) -> Float[Array, ""]:
    return jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)]).sum()


def _norm(tree: Params) -> Float[Array, ""]:
    return jnp.sqrt(_squared_norm(tree))
