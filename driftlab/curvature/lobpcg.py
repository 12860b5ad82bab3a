"""Eigenpairs followed along a run: a few products each time, from the last time's vectors."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from driftlab.curvature.eigenpairs import Eigenpairs, refuse_asymmetric
from driftlab.curvature.factorizations import eigh
from driftlab.curvature.lanes import solve_in_lanes
from driftlab.curvature.operators import Operator
from driftlab.curvature.vectors import FlatOperator, check_count, flat_operator


def initial_block(
    operator_size: int,
    rows: int,
    dtype: DTypeLike = jnp.float32,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "rows n"]:
    """Random directions for the first call of `tracked_eigenpairs`.

    Args:
      operator_size: n, the number of parameters.
      rows: vectors: the wanted ones and a guard or two.
      dtype: of the vectors.
      key: draws them; None for a fixed one.

    Returns:
      The block.
    """
    check_count("rows", rows, operator_size)
    key = jax.random.key(0) if key is None else key
    return jax.random.normal(key, (rows, operator_size), dtype)


def tracked_eigenpairs(
    operator: Operator,
    block: Float[Array, "rows n"],
    k: int = 1,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> tuple[Eigenpairs, Float[Array, "rows n"]]:
    """The k algebraically largest eigenpairs, from the vectors of an operator nearby.

    LOBPCG: the best combination of the present vectors X, their residuals W and the last
    directions P. Rows of X beyond k are guards: they cost a product a call, not one an iteration,
    and hold the next eigenvector, so that the one wanted is not lost when two eigenvalues cross.
    Products: `rows + k * iterations`; from a converged block at the same operator, `rows`.

    Args:
      operator: symmetric.
      block: the vectors of the last call, or `initial_block`. What is not finite, zero or
        dependent is drawn anew.
      k: how many are wanted; the block holds at least as many.
      tolerance: on residuals, relative to the largest |eigenvalue|. An isolated eigenvalue is
        wrong by about its square over the relative gap.
      max_iterations: stop there, converged or not.

    Returns:
      `(eigenpairs, block)`: the pairs, and the block for the next call. Where the operator
      returns NaN, so are the eigenvalues, at once.

    Raises:
      TypeError: if the operator is not a lineax operator.
      ValueError: if it is not tagged symmetric, or turns out not to be (outside of jit; inside,
        `converged` is False), k exceeds the rows, or the block does not fit.

    Source: Knyazev (2001), "Toward the optimal preconditioned eigensolver", algorithm 5.1; with
    an orthonormal basis throughout, as Duersch et al. (2018) advise.
    """
    flat = flat_operator(operator)
    rows = block.shape[0]
    check_count("k", k, min(rows, flat.size))
    check_count("max_iterations", max_iterations)
    if block.shape != (rows, flat.size) or rows > flat.size:
        raise ValueError(
            f"the block has shape {block.shape}; it needs {flat.size} columns, the operator's "
            "dimension, and no more rows than that."
        )

    def solve(flat: FlatOperator, block: Array) -> tuple[Eigenpairs, Array]:
        return _track(flat, block, k, tolerance, max_iterations)

    pairs, block = solve_in_lanes(solve, flat, block)
    symmetric = pairs.asymmetry <= float(jnp.finfo(flat.dtype).eps) ** 0.5
    refuse_asymmetric(pairs.asymmetry, symmetric, jnp.isfinite(pairs.values).all())
    vectors = jax.vmap(flat.unflatten)(pairs.vectors)
    return pairs._replace(vectors=vectors, converged=pairs.converged & symmetric), block


def _track(
    flat: FlatOperator,
    block: Float[Array, "rows n"],
    k: int,
    tolerance: float,
    max_iterations: int,
) -> tuple[Eigenpairs, Float[Array, "rows n"]]:
    """What `tracked_eigenpairs` says, with flat vectors, `(k, n)`."""
    rows = block.shape[0]
    usable = jnp.isfinite(block).all()
    fresh = initial_block(flat.size, rows, flat.dtype)
    start = _orthonormal(jnp.where(usable, block.astype(flat.dtype), fresh), None)
    start = jnp.where(_absent(start)[:, None], _orthonormal(fresh, start), start)
    images = jax.lax.map(flat.apply, start)
    gram = start @ images.T
    values, vectors = eigh(_symmetrized(gram))
    mix = vectors[:, ::-1].T
    x, ax, values = mix @ start, mix @ images, values[::-1]
    none = jnp.zeros((k, flat.size), flat.dtype)

    def residuals_of(x: Array, ax: Array, values: Array) -> Float[Array, "k n"]:
        return ax[:k] - values[:k, None] * x[:k]

    def is_unfinished(norms: Float[Array, " k"], values: Array) -> Bool[Array, ""]:
        # A comparison with NaN is False, so that a broken operator ends the loop.
        return (norms > tolerance * abs(values).max()).any()

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        x, ax, _, _, values, _, iteration = carry
        norms = jnp.linalg.norm(residuals_of(x, ax, values), axis=1)
        return is_unfinished(norms, values) & (iteration < max_iterations)

    def improve(carry: tuple) -> tuple:
        x, ax, p, ap, values, asymmetry, iteration = carry
        p, ap = _orthonormalized_pair(p, ap, x, ax)
        w = _orthonormal(residuals_of(x, ax, values), jnp.concatenate([x, p]))
        aw = jax.lax.map(flat.apply, w)
        basis, images = jnp.concatenate([x, w, p]), jnp.concatenate([ax, aw, ap])
        products = basis @ images.T
        gram = _symmetrized(products)
        # Empty rows (a converged residual) go below everything.
        floor = 1 + 2 * gram.shape[0] * abs(gram).max()
        found, vectors = eigh(gram - jnp.diag(jnp.where(_absent(basis), floor, 0)))
        mix = vectors[:, ::-1][:, :rows].T
        # The next directions: what entered the wanted vectors beside the old block.
        fresh = mix[:k].at[:, :rows].set(0)
        return (
            mix @ basis,
            mix @ images,
            fresh @ basis,
            fresh @ images,
            found[::-1][:rows],
            jnp.maximum(asymmetry, _asymmetry(products[: rows + k, : rows + k])),
            iteration + 1,
        )

    carry = (x, ax, none, none, values, _asymmetry(gram), jnp.zeros((), jnp.int32))
    carry = jax.lax.while_loop(unfinished, improve, carry)
    x, ax, _, _, values, asymmetry, iterations = carry
    norms = jnp.linalg.norm(residuals_of(x, ax, values), axis=1)
    broken = ~jnp.isfinite(norms).all()
    nan = jnp.asarray(jnp.nan, flat.dtype)
    pairs = Eigenpairs(
        values=jnp.where(broken, nan, values[:k]),
        vectors=x[:k],
        residuals=norms,
        products=_products(rows, k, iterations),
        converged=~broken & ~is_unfinished(norms, values),
        asymmetry=asymmetry,
    )
    return pairs, jnp.where(broken, start, x).astype(block.dtype)


def _products(rows: int, k: int, iterations: Int[Array, ""]) -> Int[Array, ""]:
    return rows + k * iterations


def _symmetrized(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    return (matrix + matrix.T) / 2


def _asymmetry(matrix: Float[Array, "m m"]) -> Float[Array, ""]:
    largest = abs(matrix).max()
    return abs(matrix - matrix.T).max() / jnp.where(largest == 0, 1, largest)


def _absent(rows: Float[Array, "r n"]) -> Bool[Array, " r"]:
    """Which of some rows, each a unit vector or zero, are zero."""
    return (rows * rows).sum(1) < 0.5


def _orthonormal(
    rows: Float[Array, "r n"], against: Float[Array, "b n"] | None
) -> Float[Array, "r n"]:
    """The rows, orthonormal and orthogonal to others; a row that vanishes is zero."""
    rows = _unit(rows)
    # Twice is enough (Parlett 1998, section 6.9): what shrinks once more was rounding alone.
    for least in (1e2 * float(jnp.finfo(rows.dtype).eps), 0.5):
        if against is not None:
            rows = rows - (rows @ against.T) @ against
        rows = _gram_schmidt(rows, least)
    return rows


def _gram_schmidt(rows: Float[Array, "r n"], least: float) -> Float[Array, "r n"]:
    """Gram-Schmidt over rows, in order; what is shorter than `least` is zero."""

    # A loop, which compiles in no time for 50 rows; QR would not tell a lost row from noise.
    def one(index: Int[Array, ""], done: Float[Array, "r n"]) -> Float[Array, "r n"]:
        row = rows[index]
        row = row - (done @ row) @ done
        norm = jnp.linalg.norm(row)
        return done.at[index].set(jnp.where(norm <= least, 0, row / jnp.where(norm == 0, 1, norm)))

    return jax.lax.fori_loop(0, rows.shape[0], one, jnp.zeros_like(rows))


def _unit(rows: Float[Array, "r n"]) -> Float[Array, "r n"]:
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms == 0, 1, norms)


def _orthonormalized_pair(
    p: Float[Array, "k n"], ap: Float[Array, "k n"], x: Float[Array, "r n"], ax: Float[Array, "r n"]
) -> tuple[Float[Array, "k n"], Float[Array, "k n"]]:
    """P orthogonal to X and orthonormal, with the same done to its images: no product."""
    for _ in range(2):
        norms = jnp.linalg.norm(p, axis=1, keepdims=True)
        norms = jnp.where(norms == 0, 1, norms)
        p, ap = p / norms, ap / norms
        inside = p @ x.T
        p, ap = p - inside @ x, ap - inside @ ax
        gram = p @ p.T
        lengths, turned = eigh(_symmetrized(gram))
        # Beside 1, the length before: what cancels leaves images that are not those of P.
        kept = lengths > 1e3 * jnp.finfo(p.dtype).eps
        scale = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, lengths, 1)), 0)
        mix = scale[:, None] * turned.T
        p, ap = mix @ p, mix @ ap
    return p, ap
