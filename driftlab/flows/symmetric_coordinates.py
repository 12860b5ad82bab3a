"""Symmetric matrices as vectors that keep inner products.

A k x k matrix is a vector of length m = k (k + 1) / 2: the upper triangle by rows, with
off-diagonal entries times sqrt(2).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def svec(matrix: Float[Array, "*b k k"]) -> Float[Array, "*b m"]:
    """A symmetric matrix as a vector with the same inner products.

    Args:
      matrix: symmetric; the upper triangle counts.

    Returns:
      The entries `(0,0), (0,1) sqrt(2), ...` by rows.
    """
    rows, columns = np.triu_indices(matrix.shape[-1])
    scale = jnp.asarray(np.where(rows == columns, 1.0, math.sqrt(2)), matrix.dtype)
    return matrix[..., rows, columns] * jnp.broadcast_to(scale, matrix.shape[:-2] + scale.shape)


def smat(vector: Float[Array, "*b m"]) -> Float[Array, "*b k k"]:
    """The matrix of `svec`.

    Args:
      vector: of length k (k + 1) / 2.

    Returns:
      The symmetric matrix.
    """
    k = (math.isqrt(8 * vector.shape[-1] + 1) - 1) // 2
    rows, columns = np.triu_indices(k)
    scale = jnp.asarray(np.where(rows == columns, 1.0, math.sqrt(0.5)), vector.dtype)
    # Where each entry of the matrix is found: a gather, which is cheaper than two scatters.
    index = np.zeros((k, k), int)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return (vector * jnp.broadcast_to(scale, vector.shape))[..., index]


class Coordinates(NamedTuple):
    """The coordinates. As arguments: constants would not survive a vmap of a cond around a solve.

    Attributes:
      basis: the orthonormal symmetric matrix of each coordinate.
      first: which row each coordinate is of, one-hot.
      second: which column.
    """

    basis: Float[Array, "m k k"]
    first: Float[Array, "m k"]
    second: Float[Array, "m k"]

    def vector(self, matrix: Float[Array, "k k"]) -> Float[Array, " m"]:
        """The coordinates of a matrix, as `svec`."""
        return jnp.tensordot(self.basis, matrix, 2)

    def matrix(self, vector: Float[Array, " m"]) -> Float[Array, "k k"]:
        """The matrix of coordinates, as `smat`."""
        return jnp.tensordot(vector, self.basis, 1)

    def congruence(self, matrix: Float[Array, "k k"]) -> Float[Array, "m m"]:
        """`V -> M V M^T` on coordinates."""
        images = matrix[None] @ self.basis @ matrix.T[None]
        return jnp.tensordot(self.basis, images, ((1, 2), (1, 2)))


def coordinates_of(k: int, dtype: Any) -> Coordinates:
    """The coordinates of k x k matrices.

    Args:
      k: rows.
      dtype: floating-point.

    Returns:
      Them.
    """
    rows, columns = np.triu_indices(k)
    first, second = (jnp.asarray(np.eye(k)[indices], dtype) for indices in (rows, columns))
    return Coordinates(smat(jnp.eye(len(rows), dtype=dtype)), first, second)
