"""Extreme eigenvalues and eigenvectors of a symmetric operator, with their residuals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from driftlab.curvature import lanczos
from driftlab.curvature.lanes import solve_in_lanes
from driftlab.curvature.operators import Operator
from driftlab.curvature.vectors import FlatOperator, all_finite, check_count, flat_operator

ENDS = ("largest", "smallest", "both")


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs.

    Attributes:
      values: the eigenvalues, `(k,)`: descending from the largest, ascending from the smallest;
        of both ends `(2 k,)`, the k largest first.
      vectors: orthonormal eigenvectors: a tree like the operator's vectors, with a leading axis.
      residuals: `||A v - lambda v||` of each: an eigenvalue lies within that distance, and where
        it is alone, within its square over the gap.
      products: matrix-vector products used.
      converged: whether all residuals are below the tolerance and the operator was symmetric.
      asymmetry: the largest violation of symmetry seen, relative to the operator's norm.
    """

    values: Float[Array, " k"]
    vectors: PyTree[Array]
    residuals: Float[Array, " k"]
    products: Int[Array, ""]
    converged: Bool[Array, ""]
    asymmetry: Float[Array, ""]


def eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    which: str = "largest",
    tolerance: float | None = None,
    max_products: int | None = None,
    basis_size: int | None = None,
    looks: int = 1,
    start: PyTree[Array] | None = None,
    key: PRNGKeyArray | None = None,
) -> Eigenpairs:
    """The k algebraically largest (smallest, or both) eigenpairs, by thick-restart Lanczos.

    Full re-orthogonalisation; stops when every wanted residual is below the tolerance. An
    invariant subspace (few distinct eigenvalues, a zero matrix, k beyond the rank) is left for a
    random direction, so repeated eigenvalues of small matrices are all found. In a large matrix
    one starting vector sees one copy of a repeated eigenvalue; further `looks` see the others.

    Args:
      operator: symmetric, from this package or any lineax operator with a symmetric tag.
      k: how many, at each end that is asked for; up to the dimension (half of it for both ends).
      which: "largest" (algebraically, as sharpness is), "smallest" or "both".
      tolerance: on residuals, relative to the largest |Ritz value|; None for the square root of
        the dtype's epsilon, which puts the error of a separated eigenvalue at its rounding. A
        loose one (1e-2) can pass over an eigenvalue close to its neighbours altogether.
      max_products: stop there, converged or not; None for 20 times the basis.
      basis_size: vectors kept, which is the memory: None for 2 k + 20 (twice that for both ends).
      looks: 1 for one run. Each further look is a run as long as the first, from a random
        direction, on the operator without the eigenvectors found so far; together they see
        eigenvalues repeated up to `looks` times.
      start: the first direction, such as a gradient or an earlier eigenvector; None for random.
      key: of the random vectors; None for a fixed one.

    Returns:
      The eigenpairs. Where the operator returns NaN or infinity, values are NaN and `converged`
      is False.

    Raises:
      TypeError: if the operator is not a lineax operator.
      ValueError: if it is not tagged symmetric, or turns out not to be (outside of jit, where
        values are known; inside, `converged` is False and `asymmetry` says how far off); if k is
        larger than the dimension; for other arguments out of range.

    Source: Wu, Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue
    problems"; Parlett (1998), "The symmetric eigenvalue problem", chapters 11 and 13.
    """
    flat = flat_operator(operator)
    if which not in ENDS:
        raise ValueError(f"which must be one of {ENDS}; got {which!r}.")
    check_count("k", k, flat.size // (2 if which == "both" else 1))
    check_count("looks", looks)
    wanted = 2 * k if which == "both" else k
    size = min(2 * wanted + 20 if basis_size is None else basis_size, flat.size)
    check_count("basis_size", size)
    if size < min(wanted + 3, flat.size):
        raise ValueError(
            f"basis_size={basis_size} leaves no room beside the {wanted} wanted vectors; give "
            f"{min(wanted + 3, flat.size)} or more."
        )
    epsilon = float(jnp.finfo(flat.dtype).eps)
    settings = _Settings(
        which,
        k,
        wanted,
        size,
        epsilon**0.5 if tolerance is None else tolerance,
        20 * size if max_products is None else max_products,
    )
    check_count("max_products", settings.max_products)
    if settings.max_products < wanted:
        raise ValueError(
            f"max_products={max_products} cannot show {wanted} eigenpairs, which need a product "
            "each at least; give more."
        )
    if not settings.tolerance > 0:
        raise ValueError(f"tolerance must be positive; got {tolerance!r}.")
    key = jax.random.key(0) if key is None else key
    first = None if start is None else flat.flatten(start)

    def solve(flat: FlatOperator, first: Array | None, key: PRNGKeyArray) -> Eigenpairs:
        found = _look(flat, settings, first, key)
        for index in range(1, looks):
            found = _look_again(flat, settings, found, jax.random.fold_in(key, index))
        return found

    found = solve_in_lanes(solve, flat, first, key)
    symmetric = found.asymmetry <= epsilon**0.5
    healthy = all_finite(found.values, found.residuals)
    refuse_asymmetric(found.asymmetry, symmetric, healthy)
    nan = jnp.asarray(jnp.nan, flat.dtype)
    return Eigenpairs(
        values=jnp.where(healthy, found.values, nan),
        vectors=jax.vmap(flat.unflatten)(found.vectors),
        residuals=jnp.where(healthy, found.residuals, nan),
        products=found.products,
        converged=found.converged & healthy & symmetric,
        asymmetry=found.asymmetry,
    )


class _Settings(NamedTuple):
    which: str
    k: int
    wanted: int  # pairs: k, or 2 k for both ends
    size: int
    tolerance: float
    max_products: int

    def ranked(self, filled: Int[Array, ""] | int, count: int) -> Int[Array, " count"]:
        """Indices of the best of `filled` ascending values, the wanted ones first."""
        ranks = jnp.arange(count)
        if self.which == "largest":
            indices = filled - 1 - ranks
        elif self.which == "smallest":
            indices = ranks
        else:
            half = (count + 1) // 2
            indices = jnp.concatenate([filled - 1 - ranks[:half], ranks[: count - half]])
        return jnp.maximum(indices, 0)


def _look(
    flat: FlatOperator,
    settings: _Settings,
    first: Float[Array, " n"] | None,
    key: PRNGKeyArray,
) -> Eigenpairs:
    """One run from one direction; vectors stay flat, `(k, n)`."""
    wanted, size, limit = settings.wanted, settings.size, settings.max_products
    begin_key, spare_key = jax.random.split(key)
    # A given direction may lie in an invariant subspace, such as one eigenvector's.
    enough = wanted if first is None else wanted + 1
    if first is None:
        first = jax.random.normal(begin_key, (flat.size,), flat.dtype)
    # Where the basis can hold all, a repeated eigenvalue is seen for sure only by going on to it.
    hasty = size == flat.size and settings.k > 1
    # A look at the Ritz values costs an eigendecomposition of T: at every few products.
    stride = max(2, wanted // 4)
    kept = min(size - 1, wanted + max(2, (size - wanted) // 3))

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        krylov, products, finished = carry
        return ~finished & (products < limit) & ~lanczos.is_broken(krylov)

    def advance(carry: tuple) -> tuple:
        krylov, products, _ = carry
        count = jnp.minimum(jnp.minimum(stride, size - krylov.filled), limit - products)
        krylov = jax.lax.fori_loop(0, count, lambda _, k: lanczos.step(flat, k), krylov)
        values, vectors, residuals = lanczos.ritz(krylov)
        norm = jnp.maximum(abs(values[0]), abs(values[krylov.filled - 1]))
        indices = settings.ranked(krylov.filled, wanted)
        small = residuals[indices] <= settings.tolerance * norm
        seen = jax.lax.cond(
            krylov.segments > 0,
            lambda: _seen_through(settings, krylov, values[indices], norm, enough),
            lambda: jnp.asarray(not hasty) | (krylov.filled == flat.size),
        )
        finished = small.all() & (krylov.filled >= wanted) & seen
        krylov = jax.lax.cond(
            (krylov.filled == size) & ~finished,
            lambda: lanczos.restart(krylov, values, vectors, settings.ranked(size, kept)),
            lambda: krylov,
        )
        return krylov, products + count, finished

    begun = (
        lanczos.start(flat, size, first, spare_key),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )
    krylov, products, finished = jax.lax.while_loop(unfinished, advance, begun)
    values, vectors, residuals = lanczos.ritz(krylov)
    indices = settings.ranked(krylov.filled, wanted)
    asymmetry = krylov.asymmetry / jnp.where(krylov.scale == 0, 1, krylov.scale)
    rows = vectors[:, indices].T @ krylov.basis
    return Eigenpairs(values[indices], rows, residuals[indices], products, finished, asymmetry)


def _seen_through(
    settings: _Settings,
    krylov: lanczos.Krylov,
    found: Float[Array, " wanted"],
    norm: Float[Array, ""],
    enough: int,
) -> Bool[Array, ""]:
    """Whether no copy of a wanted eigenvalue can be left, once the basis has been invariant.

    Every segment from a random direction sees each distinct eigenvalue of what is left once. So
    all is found after as many as there are wanted values, or when the best of the last is worse
    than all found.
    """
    values, _, residuals = lanczos.ritz(krylov, krylov.segment)
    length = krylov.filled - krylov.segment
    ends = settings.ranked(length, 2 if settings.which == "both" else 1)
    slack = settings.tolerance * norm
    half = found.size // 2
    worst = {
        "largest": found[-1:],
        "smallest": found[-1:],
        "both": jnp.stack([found[half - 1], found[-1]]),
    }[settings.which]
    sign = {"largest": [1], "smallest": [-1], "both": [1, -1]}[settings.which]
    worse = jnp.asarray(sign, values.dtype) * (worst - values[ends]) > slack
    known = (residuals[ends] <= slack) & (length > 0)
    whole = krylov.filled == krylov.basis.shape[1]
    return (worse & known).all() | (krylov.segments >= enough) | whole


def _look_again(
    flat: FlatOperator, settings: _Settings, found: Eigenpairs, key: PRNGKeyArray
) -> Eigenpairs:
    """What is found, together with the best of what is left without it."""
    known = found.vectors
    half = settings.wanted // 2
    norm = abs(found.values).max()
    norm = jnp.where(norm == 0, 1, norm)
    # Where the known vectors are worse than every value that is found.
    parked = {
        "largest": found.values.min() - norm,
        "smallest": found.values.max() + norm,
        "both": (found.values[half - 1] + found.values[-1]) / 2,
    }[settings.which]

    def deflated(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        inside = known @ vector
        image = flat.apply(vector - inside @ known)
        return image - (known @ image) @ known + parked * (inside @ known)

    other = _look(flat._replace(apply=deflated), settings, None, key)
    values = jnp.concatenate([found.values, other.values])
    # Of equals the known one: what the other look then saw may be the parked vectors.
    handicap = float(jnp.finfo(flat.dtype).eps) ** 0.75 * norm
    sign = {
        "largest": 1,
        "smallest": -1,
        "both": jnp.where(jnp.arange(settings.wanted) < half, 1, -1),
    }
    handicapped = jnp.concatenate([found.values, other.values - handicap * sign[settings.which]])
    order = jnp.argsort(handicapped)[settings.ranked(values.size, settings.wanted)]
    return Eigenpairs(
        values=values[order],
        vectors=jnp.concatenate([known, other.vectors])[order],
        residuals=jnp.concatenate([found.residuals, other.residuals])[order],
        products=found.products + other.products,
        converged=found.converged & other.converged,
        asymmetry=jnp.maximum(found.asymmetry, other.asymmetry),
    )


def refuse_asymmetric(
    asymmetry: Float[Array, ""], symmetric: Bool[Array, ""], healthy: Bool[Array, ""]
) -> None:
    """Raises for an operator that is not symmetric, where values are known.

    Args:
      asymmetry: relative to the operator's norm.
      symmetric: whether that is small.
      healthy: whether the operator returned finite values; if not, symmetry means nothing.

    Raises:
      ValueError: saying how far off it is.
    """
    if isinstance(symmetric, Tracer) or bool(symmetric) or not bool(healthy):
        return
    raise ValueError(
        f"the operator is tagged symmetric but is not: q_i.A q_j and q_j.A q_i differ by "
        f"{float(asymmetry):.1e} of its norm. Check it with driftlab.curvature.symmetric_operator."
    )
