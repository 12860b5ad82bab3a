"""Factorisations of small dense matrices that are safe in lanes.

On a CPU, jaxlib (0.10.2) splits a batched LAPACK call over XLA's thread pool, and waits for the
parts on a thread of that pool. Two such calls at once, which a program with two independent
factorisations makes, can occupy all threads and wait for ever. So lanes go one at a time there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature.lanes import one_at_a_time


def eigh(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    Args:
      matrix: symmetric.

    Returns:
      `(values, vectors)`, vectors in columns; NaN for a matrix that is not finite.
    """
    return _eigh(matrix)


def orthonormal_columns(matrix: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Orthonormal columns that span those of a matrix: the Q of its QR factorisation.

    Args:
      matrix: with no more columns than rows.

    Returns:
      Q. Where columns depend on each other, some of Q's are arbitrary.
    """
    return _orthonormal_columns(matrix)


def eigenvalues(matrix: Float[Array, "m m"]) -> Float[Array, " m"]:
    """Eigenvalues, ascending, of a symmetric matrix.

    Args:
      matrix: symmetric.

    Returns:
      The eigenvalues; NaN for a matrix that is not finite.
    """
    return _eigenvalues(matrix)


def singular_values(matrix: Float[Array, "n m"]) -> Float[Array, " r"]:
    """Singular values, descending.

    Args:
      matrix: any.

    Returns:
      The smaller number of rows and columns of them.
    """
    return _singular_values(matrix)


def leave_one_out(
    matrix: Float[Array, "n m"],
) -> tuple[Float[Array, "n m"], Float[Array, "m m"], Float[Array, "m m"]]:
    """A QR factorisation, and what its span loses without each of the columns.

    Args:
      matrix: Y, with no more columns than rows.

    Returns:
      `(Q, R, S)`: the columns of Y but the i-th span those of `Q (I - s_i s_i^T)`.
    """
    return _leave_one_out(matrix)


_eigh = one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
_orthonormal_columns = one_at_a_time(lambda matrix: jnp.linalg.qr(matrix)[0])
_eigenvalues = one_at_a_time(lambda matrix: jnp.linalg.eigvalsh(matrix))
_singular_values = one_at_a_time(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))


@one_at_a_time
def _leave_one_out(matrix: Float[Array, "n m"]) -> tuple[Array, Array, Array]:
    q, r = jnp.linalg.qr(matrix)
    # s_i is orthogonal to all columns of R but the i-th: a column of R^{-T}.
    size = jnp.abs(jnp.diag(r))
    least = jnp.finfo(r.dtype).eps * jnp.where(size.max() == 0, 1, size.max())
    regular = r + jnp.diag(jnp.where(size < least, least, 0))
    inverse = jax.scipy.linalg.solve_triangular(regular, jnp.eye(len(r), dtype=r.dtype)).T
    return q, r, inverse / jnp.linalg.norm(inverse, axis=0, keepdims=True)
