"""Dense matrix functions without LAPACK, for many small matrices in lanes.

On a CPU, LAPACK calls under vmap can wait for each other for ever (jaxlib 0.10.2), and the
derivative of a QR factorisation or of eigenvectors does not exist at the matrices that occur here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Enough for a condition number of 1e6: a small eigenvalue more than doubles each time.
ROOT_ITERATIONS = 32
MAX_SQUARINGS = 16
TAYLOR_DEGREE = 18


def identity_like(matrix: Float[Array, "... n p"]) -> Float[Array, "... p p"]:
    """The identity, as many columns wide as a matrix, once for each of its batch.

    Args:
      matrix: what it goes with.

    Returns:
      Identity matrices.
    """
    size = matrix.shape[-1]
    return jnp.broadcast_to(jnp.eye(size, dtype=matrix.dtype), (*matrix.shape[:-2], size, size))


def orthonormal_columns(matrix: Float[Array, "... n p"]) -> Float[Array, "... n p"]:
    """The Q of a QR factorisation whose R has a positive diagonal, by Gram and Schmidt, twice.

    Args:
      matrix: with independent columns.

    Returns:
      Q.
    """
    columns: list[Array] = []
    for index in range(matrix.shape[-1]):
        column = matrix[..., index]
        for _ in range(2 if columns else 0):
            basis = jnp.stack(columns, axis=-1)
            column = column - (basis @ (jnp.swapaxes(basis, -1, -2) @ column[..., None]))[..., 0]
        columns.append(column / jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True)))
    return jnp.stack(columns, axis=-1)


def inverse_square_root(matrix: Float[Array, "... p p"]) -> Float[Array, "... p p"]:
    """`M^(-1/2)` of a symmetric positive definite matrix, by the coupled Newton-Schulz iteration.

    Args:
      matrix: with a condition number up to 1e6.

    Returns:
      Its inverse square root.

    Source: Higham (2008), "Functions of matrices", section 6.7.
    """
    one = identity_like(matrix)
    bound = jnp.max(jnp.sum(jnp.abs(matrix), axis=-1), axis=-1)[..., None, None]

    def iterate(_: int, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        root, inverse = pair
        factor = 1.5 * one - inverse @ root / 2
        return root @ factor, factor @ inverse

    start = (matrix / bound, one)
    return jax.lax.fori_loop(0, ROOT_ITERATIONS, iterate, start)[1] / jnp.sqrt(bound)


def exponential(matrix: Float[Array, "... p p"]) -> Float[Array, "... p p"]:
    """The matrix exponential, by its series, scaled to norm 1/2 and squared.

    Args:
      matrix: of norm up to 2^15.

    Returns:
      Its exponential.
    """
    one = identity_like(matrix)
    norm = jnp.max(jnp.sum(jnp.abs(matrix), axis=-1), axis=-1)[..., None, None]
    squarings = jnp.ceil(jnp.log2(jnp.maximum(2 * norm, 1)))
    small = matrix / 2**squarings

    def horner(index: Array, total: Array) -> Array:
        degree = (TAYLOR_DEGREE - index).astype(matrix.dtype)
        return one + small @ total / degree

    def squared(index: Array, total: Array) -> Array:
        return jnp.where(index < squarings, total @ total, total)

    # Loops of known length: small programs, and derivatives in reverse.
    return jax.lax.fori_loop(
        0, MAX_SQUARINGS, squared, jax.lax.fori_loop(0, TAYLOR_DEGREE, horner, one)
    )


def solve_skew(matrix: Float[Array, "... p p"], right: Array) -> Array:
    """`(I - M)^-1 right` for an M whose eigenvalues are imaginary, by elimination.

    No pivot is needed to exist, but rows are exchanged for size: Gauss and Jordan's method, a
    column at a time.

    Args:
      matrix: M.
      right: columns, `(..., p, k)`.

    Returns:
      The solution, in the shape of `right`.
    """
    size = matrix.shape[-1]
    table = jnp.concatenate([identity_like(matrix) - matrix, right], axis=-1)
    rows = jnp.broadcast_to(jnp.arange(size), table.shape[:-1])
    for index in range(size):
        column = jnp.where(rows >= index, jnp.abs(table[..., index]), -1)
        pivot = jnp.argmax(column, axis=-1, keepdims=True)
        exchanged = jnp.where(rows == index, pivot, jnp.where(rows == pivot, index, rows))
        table = jnp.take_along_axis(table, exchanged[..., None], axis=-2)
        here = (rows == index)[..., None]
        chosen = table[..., index : index + 1, :] / table[..., index : index + 1, index][..., None]
        cleared = table - table[..., index : index + 1] * chosen
        table = jnp.where(here, chosen, cleared)
    return table[..., size:]
