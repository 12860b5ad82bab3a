"""Functions of a Hessian times a gradient: dense, and from a few products with it.

All of them project: with an orthonormal basis V, `f(H) g = V f(V* H V) V* g`. With the Krylov
basis of g that is exact for polynomials of degree below its size. With eigenvectors in front of it,
the Krylov basis of the rest of g sees a spectrum without their eigenvalues, whose ends are what
costs products: `log(1 - z)` is singular at z = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Inexact

from driftlab.curvature.factorizations import eigh
from driftlab.curvature.lanes import one_at_a_time

Vector = Inexact[Array, " n"]
Product = Callable[[Vector], Vector]


def dense_function(
    product: Product,
    gradient: Vector,
    function: Callable[[Array], Array],
    hermitian: bool,
) -> Vector:
    """`f(H) g` from the whole matrix.

    Args:
      product: `v -> H v`, with a symmetric H, real or complex.
      gradient: g.
      function: f, of arrays of eigenvalues.
      hermitian: whether H is real.

    Returns:
      The vector; real only if g is and f returns real values.

    Cost: n products, and an eigendecomposition of n x n.
    """
    matrix = jax.vmap(product)(jnp.eye(gradient.size, dtype=gradient.dtype))
    return matrix_function(matrix.T, gradient, function, hermitian)


def projected_function(
    product: Product,
    gradient: Vector,
    function: Callable[[Array], Array],
    hermitian: bool,
    steps: int,
    directions: Float[Array, "k n"] | None = None,
) -> tuple[Vector, Vector]:
    """`f(H) g` from `k + steps` products.

    Args:
      product: `v -> H v`, as in `dense_function`.
      gradient: g.
      function: f.
      hermitian: whether H is real.
      steps: Krylov vectors, of what is left of g outside the directions; 0 for none.
      directions: orthonormal rows in front of them: eigenvectors of H, or of a matrix nearby.

    Returns:
      `(f(H) g, rest)`, as far as the basis goes; the rest of g is what lies outside the
      directions, and is left out without steps.

    Source: Saad (1992), "Analysis of some Krylov subspace approximations to the matrix exponential
    operator"; the directions in front as in deflated methods. Full re-orthogonalisation.
    """
    dtype, count = gradient.dtype, 0 if directions is None else directions.shape[0]
    rows = count + min(steps, max(gradient.size - count, 1))
    basis = jnp.zeros((rows, gradient.size), dtype)
    projected = jnp.zeros((rows, rows), dtype)
    images = jnp.zeros((0, gradient.size), dtype)
    if directions is not None:
        basis = basis.at[:count].set(directions.astype(dtype))
        images = jax.lax.map(product, basis[:count])
    coordinates, rest, size = _orthogonalized(gradient, basis)
    if rows > count:
        # What is left of a gradient inside the directions is rounding, and not orthogonal to them.
        size = jnp.where(size <= _negligible(dtype) * jnp.linalg.norm(gradient), 0, size)
        coordinates = coordinates.at[count].set(size)
        basis, projected = _arnoldi(
            product, basis.at[count].set(_unit(rest, size)), projected, count
        )
    projected = projected.at[:, :count].set(jnp.conj(basis) @ images.T)
    values = matrix_function(projected, coordinates, function, hermitian)
    return values @ basis, rest


def matrix_function(
    matrix: Inexact[Array, "m m"],
    vector: Inexact[Array, " m"],
    function: Callable[[Array], Array],
    hermitian: bool,
) -> Inexact[Array, " m"]:
    """`f(A) b` by eigendecomposition, with a true inverse where A is not Hermitian.

    Args:
      matrix: A.
      vector: b.
      function: f, of arrays of eigenvalues.
      hermitian: whether A is.

    Returns:
      The vector; NaN where A is not finite. Where A is not Hermitian digits are lost in proportion
      to how close its eigenvectors are to dependent.
    """
    finite = jnp.isfinite(matrix).all() & jnp.isfinite(vector).all()
    matrix = jnp.where(finite, matrix, 0)
    if hermitian:
        values, vectors = eigh((matrix + jnp.conj(matrix).T) / 2)
        result = vectors @ (function(values) * (jnp.conj(vectors).T @ vector))
    else:
        values, vectors = _eig(matrix)
        result = vectors @ (function(values) * _solve(vectors, vector))
    return jnp.where(finite, result, jnp.nan)


# Lanes one at a time on a CPU: see driftlab.curvature.factorizations.
_eig = one_at_a_time(lambda matrix: tuple(jnp.linalg.eig(matrix)))
_solve = one_at_a_time(jnp.linalg.solve)


def _arnoldi(
    product: Product,
    basis: Inexact[Array, "r n"],
    projected: Inexact[Array, "r r"],
    count: int,
) -> tuple[Inexact[Array, "r n"], Inexact[Array, "r r"]]:
    """The Krylov rows from `count` on, whose first is given, and their columns of `V* H V`."""
    rows = basis.shape[0]
    negligible = _negligible(basis.dtype)

    def advance(row: Array, carry: tuple) -> tuple:
        basis, projected, scale = carry
        column, rest, norm = _orthogonalized(product(basis[row]), basis)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(column).max(), norm))
        # An invariant basis is exact; rows of zeros fill it up, and change nothing.
        norm = jnp.where(norm <= negligible * scale, 0, norm)
        # The last row's image has its rest outside of the basis: dropped by the index.
        basis = basis.at[row + 1].set(_unit(rest, norm), mode="drop")
        column = column.at[row + 1].set(norm.astype(column.dtype), mode="drop")
        return basis, projected.at[:, row].set(column), scale

    scale = jnp.zeros((), jnp.finfo(basis.dtype).dtype)
    basis, projected, _ = jax.lax.fori_loop(count, rows, advance, (basis, projected, scale))
    return basis, projected


def _orthogonalized(
    vector: Vector, basis: Inexact[Array, "r n"]
) -> tuple[Inexact[Array, " r"], Vector, Float[Array, ""]]:
    """A vector's coordinates in an orthonormal basis, and its rest with its norm.

    Twice is enough for rounding (Parlett 1998, section 6.9).
    """
    first = (jnp.conj(basis) * vector[None]).sum(1)
    rest = vector - first @ basis
    second = (jnp.conj(basis) * rest[None]).sum(1)
    rest = rest - second @ basis
    return first + second, rest, jnp.linalg.norm(rest)


def _negligible(dtype: DTypeLike) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.75


def _unit(vector: Vector, norm: Float[Array, ""]) -> Vector:
    return jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), 0)
