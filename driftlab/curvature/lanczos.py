"""The Lanczos recurrence with full re-orthogonalisation, one step at a time.

Without re-orthogonalisation a converged eigenvalue comes back as a ghost, several times in 64
steps. Each vector is orthogonalised twice against all before it, which is enough for rounding
(Parlett 1998, section 6.9); what is projected out is the matrix of the Rayleigh quotient itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from driftlab.curvature.factorizations import eigh
from driftlab.curvature.vectors import FlatOperator


class Krylov(NamedTuple):
    """An orthonormal basis Q of j rows, grown by one a step, and `T = Q A Q^T`.

    Attributes:
      basis: Q, `(m, n)`; rows from j on are zero.
      projected: T, `(m, m)`; rows and columns from j on are zero.
      filled: j.
      following: the unit vector that becomes row j.
      coupling: the norm of `A q_{j-1}` outside the basis: 0 where the basis is invariant.
      expected: `following . A q_i` for each row, which a symmetric A gives back in the next step.
      asymmetry: the largest difference seen so far from what symmetry expects.
      scale: the largest entry of T so far: the norm of A, roughly.
      spare: a random vector to go on with when the basis is invariant.
      segments: how often it was invariant: each time, A was seen through once more.
      segment: the row at which the recurrence last began anew.
    """

    basis: Float[Array, "m n"]
    projected: Float[Array, "m m"]
    filled: Int[Array, ""]
    following: Float[Array, " n"]
    coupling: Float[Array, ""]
    expected: Float[Array, " m"]
    asymmetry: Float[Array, ""]
    scale: Float[Array, ""]
    spare: Float[Array, " n"]
    segments: Int[Array, ""]
    segment: Int[Array, ""]


def start(flat: FlatOperator, steps: int, vector: Float[Array, " n"], key: PRNGKeyArray) -> Krylov:
    """An empty basis, with the direction of its first vector.

    Args:
      flat: the operator A.
      steps: m, the rows that the basis has room for; n at most.
      vector: the first direction; where it is zero or not finite, a random one is taken.
      key: draws the spare vector.

    Returns:
      The empty basis.
    """
    spare = jax.random.normal(key, (flat.size,), flat.dtype)
    spare = spare / jnp.linalg.norm(spare)
    norm = jnp.linalg.norm(vector)
    usable = jnp.isfinite(norm) & (norm > 0)
    zero = jnp.zeros((), flat.dtype)
    return Krylov(
        basis=jnp.zeros((steps, flat.size), flat.dtype),
        projected=jnp.zeros((steps, steps), flat.dtype),
        filled=jnp.zeros((), jnp.int32),
        following=jnp.where(usable, vector / jnp.where(usable, norm, 1), jnp.roll(spare, 1)),
        coupling=zero,
        expected=jnp.zeros((steps,), flat.dtype),
        asymmetry=zero,
        scale=zero,
        spare=spare,
        segments=jnp.zeros((), jnp.int32),
        segment=jnp.zeros((), jnp.int32),
    )


def step(flat: FlatOperator, krylov: Krylov) -> Krylov:
    """One product: a row more.

    Where the basis has become invariant, as it does on a matrix of few distinct eigenvalues, it
    goes on from a random direction orthogonal to it, and so finds repeated eigenvalues.

    Args:
      flat: the operator A.
      krylov: the basis; with room for a row.

    Returns:
      The longer basis.
    """
    row = krylov.filled
    basis = krylov.basis.at[row].set(krylov.following)
    image = flat.apply(krylov.following)
    # A second pass leaves only rounding in the basis, and what it removes belongs to T as well.
    # Sums of products, not `basis @ image`: XLA's product with a vector adds up 269,000 float32
    # entries to 1e-6 only, and the basis would be no more orthogonal than that.
    first = (basis * image[None]).sum(1)
    rest = image - first @ basis
    second = (basis * rest[None]).sum(1)
    rest = rest - second @ basis
    column = first + second
    norm = jnp.linalg.norm(rest)

    scale = jnp.maximum(krylov.scale, jnp.maximum(jnp.abs(column).max(), norm))
    earlier = jnp.arange(basis.shape[0]) < row
    difference = jnp.where(earlier, jnp.abs(column - krylov.expected), 0)
    # Well above rounding, which a small coupling has amplified by its inverse before.
    negligible = float(jnp.finfo(flat.dtype).eps) ** 0.75 * scale
    is_full = row + 1 >= flat.size
    invariant = (norm <= negligible) | is_full

    def go_on() -> Float[Array, " n"]:
        # Rolled, or the second time it would lie in what was seen already.
        fresh = jnp.roll(krylov.spare, krylov.segments + 2)
        fresh = fresh - (basis @ fresh) @ basis
        fresh = fresh / jnp.linalg.norm(fresh)
        fresh = fresh - (basis @ fresh) @ basis
        return fresh / jnp.linalg.norm(fresh)

    following = jax.lax.cond(
        invariant & ~is_full, go_on, lambda: rest / jnp.where(norm == 0, 1, norm)
    )
    coupling = jnp.where(invariant, 0, norm)
    projected = krylov.projected.at[:, row].set(column).at[row, :].set(column)
    return Krylov(
        basis=basis,
        projected=projected,
        filled=row + 1,
        following=following,
        coupling=coupling,
        expected=jnp.zeros_like(krylov.expected).at[row].set(coupling),
        asymmetry=jnp.maximum(krylov.asymmetry, difference.max()),
        scale=scale,
        spare=krylov.spare,
        segments=krylov.segments + invariant,
        segment=jnp.where(invariant, row + 1, krylov.segment),
    )


def ritz(
    krylov: Krylov, begin: Int[Array, ""] | int = 0
) -> tuple[Float[Array, " m"], Float[Array, "m m"], Float[Array, " m"]]:
    """The Rayleigh-Ritz approximations in a basis.

    Args:
      krylov: a basis of j rows.
      begin: leave out the rows before this one.

    Returns:
      `(values, vectors, residuals)`: values ascending, those of the j rows first (what follows is
      filling); vectors in the basis' coordinates, `(m, values)`; `||A y - theta y||` of each.
    """
    steps = krylov.projected.shape[0]
    rows = jnp.arange(steps)
    used = (rows >= begin) & (rows < krylov.filled)
    # Above all the others, so that the filling is sorted behind them.
    filling = jnp.where(used, 0, 1 + 3 * steps * krylov.scale)
    projected = jnp.where(used[:, None] & used[None, :], krylov.projected, 0)
    values, vectors = eigh(projected + jnp.diag(filling))
    last = jnp.take(vectors, jnp.maximum(krylov.filled - 1, 0), axis=0)
    return values, vectors, jnp.abs(krylov.coupling * last)


def restart(
    krylov: Krylov,
    values: Float[Array, " m"],
    vectors: Float[Array, "m m"],
    kept: Int[Array, " p"],
) -> Krylov:
    """A shorter basis of the best Ritz vectors, which the recurrence goes on from.

    The thick restart (Wu, Simon 2000): memory stays bounded, and nothing that was found is lost.

    Args:
      krylov: a full basis.
      values: its Ritz values.
      vectors: its Ritz vectors, in the basis' coordinates.
      kept: which of them to keep; p of m.

    Returns:
      The basis of p rows.
    """
    steps, count = krylov.projected.shape[0], kept.shape[0]
    chosen = vectors[:, kept]
    basis = jnp.zeros_like(krylov.basis).at[:count].set(chosen.T @ krylov.basis)
    diagonal = jnp.zeros((steps,), values.dtype).at[:count].set(values[kept])
    expected = jnp.zeros((steps,), values.dtype).at[:count].set(krylov.coupling * chosen[-1])
    return krylov._replace(
        basis=basis,
        projected=jnp.diag(diagonal),
        filled=jnp.asarray(count, jnp.int32),
        expected=expected,
        segment=jnp.zeros_like(krylov.segment),
    )


def is_broken(krylov: Krylov) -> Bool[Array, ""]:
    """Whether the operator has returned something that is not finite: going on is of no use.

    Args:
      krylov: the basis.

    Returns:
      A boolean scalar.
    """
    return ~jnp.isfinite(krylov.scale)
