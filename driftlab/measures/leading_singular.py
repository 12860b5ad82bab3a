"""The largest singular value of a matrix and its vectors, followed along a run."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from driftlab import curvature
from driftlab.curvature.lanes import one_at_a_time

# Up to this many rows or columns, whichever are fewer, a decomposition costs next to nothing.
DECOMPOSED = 64
_ROWS = 2  # the vector and a guard, that it is not lost when two singular values cross


class SingularTriple(NamedTuple):
    """`W v = sigma u`, for the largest sigma.

    Attributes:
      value: sigma, not negative.
      left: u, a unit vector, `(outputs,)`; its sign is arbitrary, but that of `u v^T` is not.
      right: v, a unit vector, `(inputs,)`.
    """

    value: Float[Array, ""]
    left: Float[Array, " outputs"]
    right: Float[Array, " inputs"]


def initial_singular_block(
    shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "rows smaller"]:
    """What `leading_singular` starts from at a matrix of some shape.

    Args:
      shape: `(outputs, inputs)`.
      dtype: of the matrix.

    Returns:
      Random directions; zeros, which nothing reads, for a matrix that is small enough to be
      decomposed.
    """
    size = min(shape)
    if size <= DECOMPOSED:
        return jnp.zeros((1, size), dtype)  # checkpoints hold no array of size 0
    return curvature.initial_block(size, _ROWS, dtype)


def leading_singular(
    matrix: Float[Array, "outputs inputs"],
    block: Float[Array, "rows smaller"],
    tolerance: float | None = None,
    max_iterations: int = 200,
) -> tuple[SingularTriple, Float[Array, "rows smaller"]]:
    """The largest singular value and its vectors, from the directions of a matrix nearby.

    A matrix with at most 64 rows or columns is decomposed, lanes one at a time on a CPU; of a
    larger one the eigenvectors of `W W^T` or `W^T W`, the smaller, are followed
    (`curvature.tracked_eigenpairs`).

    Args:
      matrix: W.
      block: of `initial_singular_block`, or of the last call.
      tolerance: on the residual of the eigenvector, relative to `sigma^2`; None for the square
        root of the dtype's epsilon. Ignored where W is decomposed.
      max_iterations: stop there.

    Returns:
      `(triple, block)`: NaN for a matrix of zeros, which has no direction, and for one that is not
      finite; the block for the next call.

    Cost: at most `rows * columns * 64` for a decomposition; else two products with W an
    iteration, a handful of iterations from a matrix nearby and up to hundreds from afresh.
    """
    usable = jnp.isfinite(matrix).all() & (matrix != 0).any()
    # A decomposition sees finite numbers only: what LAPACK does with others is its own affair.
    safe = jnp.where(usable, matrix, jnp.ones_like(matrix))
    # Squares of what is large or small would leave the numbers there are.
    scale = jnp.max(abs(safe))
    safe = safe / scale
    if min(matrix.shape) <= DECOMPOSED:
        value, left, right = _decomposed(safe)
        following = block
    else:
        wide = matrix.shape[0] <= matrix.shape[1]
        small = safe if wide else safe.T

        def product(x: Float[Array, " n"]) -> Float[Array, " n"]:
            return small @ (small.T @ x)

        like = jax.ShapeDtypeStruct((small.shape[0],), small.dtype)
        operator = lineax.FunctionLinearOperator(product, like, lineax.symmetric_tag)
        root = float(jnp.finfo(matrix.dtype).eps) ** 0.5
        pairs, following = curvature.tracked_eigenpairs(
            operator,
            block,
            1,
            tolerance=root if tolerance is None else tolerance,
            max_iterations=max_iterations,
        )
        near = pairs.vectors[0]
        far = small.T @ near
        value = jnp.linalg.norm(far)
        far = far / value
        left, right = (near, far) if wide else (far, near)
    triple = SingularTriple(value * scale, left, right)
    return jax.tree.map(lambda leaf: jnp.where(usable, leaf, jnp.nan), triple), following


@one_at_a_time
def _decomposed(matrix: Array) -> tuple[Array, Array, Array]:
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return values[0], left[:, 0], right[0]
