"""Jacobians of maps and fields of pytrees, their eigenvalues, and the leading ones without them.

What takes a matrix is jax and works in lanes of a sweep. Jacobians of games are not symmetric, so
without a matrix there is Arnoldi's method: ARPACK, through scipy, on the host, outside `jax.jit`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

# Krylov vectors at least: eigenvalues of games come in clusters along the imaginary axis.
_VECTORS = 40


class Eigenvalues(NamedTuple):
    """What Arnoldi's method found.

    Attributes:
      values: the leading eigenvalues, complex, the leading one first; `(count,)`, one more where
        that would part a complex pair, fewer if not all converged, NaN if none.
      residuals: `|J v - value v| / |v|` of each.
      converged: whether all asked for are there.
    """

    values: np.ndarray
    residuals: np.ndarray
    converged: bool


class Conditions(NamedTuple):
    """Of a 2 x 2 Jacobian.

    Attributes:
      trace: of it.
      determinant: of it.
      stable: whether the two say that the equilibrium is asymptotically stable.
    """

    trace: Float[Array, "..."]
    determinant: Float[Array, "..."]
    stable: Bool[Array, "..."]


def dense_jacobian(
    function: Callable[[PyTree], PyTree], params: PyTree[Array]
) -> Float[Array, "n n"]:
    """The Jacobian of `params -> a tree like params`, as a matrix.

    Args:
      function: a field `y -> dy/dt` or a map `y -> y`.
      params: where; n numbers in all, in the order of `jax.flatten_util.ravel_pytree`.

    Returns:
      `J[i, j] = d function_i / d params_j`; may be traced, and vmapped.

    Cost: n Jacobian-vector products.
    """
    flat, unravel = ravel_pytree(params)
    return jax.jacfwd(lambda y: ravel_pytree(function(unravel(y)))[0])(flat)


def leading_eigenvalues(
    function: Callable[[PyTree], PyTree],
    params: PyTree[Array],
    target: Literal["real", "modulus"] = "real",
    count: int = 1,
    *,
    tolerance: float = 1e-8,
    max_restarts: int = 300,
    seed: int = 0,
) -> Eigenvalues:
    """The eigenvalues of largest real part, or modulus, of a Jacobian that is never formed.

    Implicitly restarted Arnoldi: `scipy.sparse.linalg.eigs` (ARPACK) on the host, over compiled
    Jacobian-vector products. Not to be traced.

    Args:
      function: a field or map, as in `dense_jacobian`.
      params: where; at least `count + 4` numbers in all.
      target: "real", which decides over a field, or "modulus", over a map.
      count: how many.
      tolerance: relative error of an eigenvalue at which it counts as converged; ARPACK's, for a
        normal matrix. Not below a few times the precision of params.
      max_restarts: of Arnoldi's method; each costs up to 40 products.
      seed: of the first vector.

    Returns:
      The eigenvalues with their residuals, measured afterwards.

    Raises:
      ValueError: if there is no such target, or too few parameters: form the Jacobian then.

    Source: Lehoucq, Sorensen & Yang (1998), ARPACK users' guide. Cost: Jacobian-vector products.
    """
    import scipy.sparse.linalg as sparse

    which = {"real": "LR", "modulus": "LM"}.get(target)
    if which is None:
        raise ValueError(f"target={target!r} must be 'real' or 'modulus'.")
    flat, unravel = ravel_pytree(params)
    n = flat.size
    if count < 1 or n < count + 4:
        raise ValueError(
            f"count={count} leading eigenvalues of {n} parameters: Arnoldi's method needs count "
            "positive, and count + 4 parameters or more. Use dense_jacobian."
        )

    @jax.jit
    def along(at: Array, tangent: Array) -> Array:
        moved = jax.jvp(lambda y: ravel_pytree(function(unravel(y)))[0], (at,), (tangent,))
        return moved[1]

    def product(vector: Any) -> np.ndarray:
        return np.asarray(along(flat, jnp.asarray(vector, flat.dtype).reshape(n)))

    start = np.random.default_rng(seed).standard_normal(n).astype(flat.dtype)
    nothing = Eigenvalues(np.array([complex("nan")]), np.array([np.nan]), False)
    if not np.isfinite(product(start)).all():
        return nothing  # ARPACK would iterate on it
    # One more: of a complex pair at the edge both, or the leading one might be dropped.
    asked = count + 1
    # scipy's annotations know neither of these arguments nor what comes back.
    linear_operator: Any = sparse.LinearOperator
    eigs: Any = sparse.eigs
    operator = linear_operator((n, n), matvec=product, dtype=np.dtype(flat.dtype))
    values: Any
    vectors: Any
    converged = True
    try:
        values, vectors = eigs(
            operator,
            k=asked,
            which=which,
            v0=start,
            ncv=min(n, max(2 * asked + 1, _VECTORS)),
            maxiter=max_restarts,
            tol=max(tolerance, 4 * float(jnp.finfo(flat.dtype).eps)),
        )
    except sparse.ArpackNoConvergence as stopped:
        values, vectors = np.asarray(stopped.eigenvalues), np.asarray(stopped.eigenvectors)
        converged = False
        if not len(values):
            return nothing
    size = values.real if target == "real" else np.abs(values)
    order = np.argsort(-size)
    values, vectors = values[order], vectors[:, order]
    keep = min(count, len(values))
    if keep < len(values) and np.isclose(values[keep], values[keep - 1].conj(), rtol=1e-6):
        keep += 1
    values, vectors = values[:keep], vectors[:, :keep]
    images = np.stack(
        [product(v.real) + 1j * product(v.imag) for v in vectors.T.astype(np.complex128)], axis=1
    )
    residuals = np.linalg.norm(images - vectors * values[None, :], axis=0)
    return Eigenvalues(values, residuals / np.linalg.norm(vectors, axis=0), converged)


def spectral_abscissa(jacobian: Float[ArrayLike, "... n n"]) -> Float[Array, "..."]:
    """The largest real part of an eigenvalue: negative where a field's equilibrium is stable.

    Args:
      jacobian: one matrix or many; may be traced. Beyond 2 x 2 its eigenvalues are LAPACK's, which
        JAX has on a CPU.

    Returns:
      One number a matrix; NaN where the matrix is not finite.
    """
    return jnp.max(_eigenvalues(jacobian).real, axis=-1)


def spectral_radius(jacobian: Float[ArrayLike, "... n n"]) -> Float[Array, "..."]:
    """The largest modulus of an eigenvalue: below 1 where a map's fixed point is stable.

    Args:
      jacobian: as in `spectral_abscissa`.

    Returns:
      One number a matrix; NaN where the matrix is not finite.
    """
    return jnp.max(jnp.abs(_eigenvalues(jacobian)), axis=-1)


def field_conditions(jacobian: Float[ArrayLike, "... 2 2"]) -> Conditions:
    """`trace < 0` and `det > 0`: both eigenvalues of a field's 2 x 2 Jacobian have real part < 0.

    Args:
      jacobian: one matrix or many; may be traced.

    Returns:
      Trace, determinant and whether both conditions hold.

    Raises:
      ValueError: if a matrix is not 2 x 2.
    """
    trace, determinant = _invariants(jacobian)
    return Conditions(trace, determinant, (trace < 0) & (determinant > 0))


def map_conditions(jacobian: Float[ArrayLike, "... 2 2"]) -> Conditions:
    """`det < 1` and `|trace| < 1 + det`: both eigenvalues of a map are inside the unit circle.

    Args:
      jacobian: one matrix or many; may be traced.

    Returns:
      Trace, determinant and whether both conditions hold.

    Raises:
      ValueError: if a matrix is not 2 x 2.

    Source: Jury's conditions at order 2.
    """
    trace, determinant = _invariants(jacobian)
    return Conditions(trace, determinant, (determinant < 1) & (jnp.abs(trace) < 1 + determinant))


def _invariants(jacobian: Any) -> tuple[Array, Array]:
    jacobian = jnp.asarray(jacobian)
    if jacobian.shape[-2:] != (2, 2):
        raise ValueError(
            f"jacobian has shape {jacobian.shape}: trace and determinant decide for (..., 2, 2) "
            "alone. Use spectral_abscissa or spectral_radius."
        )
    (a, b), (c, d) = (
        (jacobian[..., 0, 0], jacobian[..., 0, 1]),
        (jacobian[..., 1, 0], jacobian[..., 1, 1]),
    )
    return a + d, a * d - b * c


def _eigenvalues(jacobian: Any) -> Array:
    jacobian = jnp.asarray(jacobian)
    if jacobian.ndim < 2 or jacobian.shape[-1] != jacobian.shape[-2]:
        raise ValueError(f"jacobian has shape {jacobian.shape}; it must be (..., n, n).")
    if jacobian.shape[-1] != 2:
        return jnp.linalg.eigvals(jacobian)
    # Closed form, for every platform; half the difference on the diagonal keeps its digits.
    half = (jacobian[..., 0, 0] - jacobian[..., 1, 1]) / 2
    centre = (jacobian[..., 0, 0] + jacobian[..., 1, 1]) / 2
    inside = half**2 + jacobian[..., 0, 1] * jacobian[..., 1, 0]
    root = jnp.sqrt(jax.lax.complex(inside, jnp.zeros_like(inside)))
    return jnp.stack([centre + root, centre - root], axis=-1)
