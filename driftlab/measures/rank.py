"""How many directions a weight matrix uses: its effective and stable rank."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature.factorizations import singular_values
from driftlab.dynamics import Snapshot
from driftlab.measures.layerwise import leaf_paths
from driftlab.measures.recording import Measure
from driftlab.objective import Params


def effective_rank() -> Measure:
    """A measure of the effective rank of every weight matrix.

    `exp(-sum_i p_i log p_i)` with `p_i = sigma_i / sum_j sigma_j`: the exponential of the entropy
    of the normalised singular values. It is k for k equal singular values, and at most the rank. A
    matrix is a parameter with two axes or more; all but the last are merged into one (a
    convolution's kernel becomes patch x channels).
    Cost: no gradient; one singular value decomposition a matrix, O(rows * columns * min).
    Source: Roy & Vetterli, 2007, section 2.

    Returns:
      A measure giving `effective_rank_<layer>` for every matrix, in [1, min(rows, columns)], with
      the layer's path joined by "_" (`effective_rank_Dense_0`; followed by the parameter's own
      name where the layer has several matrices). 0 for a matrix of zeros, and NaN for one that is
      not finite. It raises a ValueError on params without a matrix.
    """

    def rank(values: Float[Array, " k"]) -> Float[Array, ""]:
        return jnp.exp(jax.scipy.special.entr(values / values.sum()).sum())

    return _of_matrices("effective_rank", rank)


def stable_rank() -> Measure:
    """A measure of the stable rank of every weight matrix, `|W|_F^2 / |W|_2^2`.

    The sum of the squared singular values over the largest: at most the rank, and hardly moved by
    small singular values. Which parameters are matrices, and the cost: as in `effective_rank`.
    Source: Rudelson & Vershynin, 2007, section 1 ("numerical rank").

    Returns:
      A measure giving `stable_rank_<layer>`, in [1, min(rows, columns)]; names, zeros and NaN as in
      `effective_rank`.
    """

    def rank(values: Float[Array, " k"]) -> Float[Array, ""]:
        return jnp.square(values / values.max()).sum()  # no square can overflow, or all vanish

    return _of_matrices("stable_rank", rank)


def _of_matrices(name: str, rank: Callable[[Float[Array, " k"]], Float[Array, ""]]) -> Measure:
    def of_matrix(matrix: Float[Array, "..."]) -> Float[Array, ""]:
        matrix = matrix.reshape(-1, matrix.shape[-1])
        matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
        # A decomposition sees finite numbers only: what LAPACK does with others is its own affair.
        finite = jnp.isfinite(matrix).all()
        zero = (matrix == 0).all()
        usable = jnp.where(finite & ~zero, matrix, jnp.ones_like(matrix))
        value = rank(singular_values(usable))
        return jnp.where(finite, jnp.where(zero, 0, value), jnp.nan)

    def measure(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
        matrices = _matrices(snapshot.params)
        if not matrices:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(snapshot.params)]
            raise ValueError(
                f"{name} needs a parameter with two axes or more; params have shapes {shapes}."
            )
        return {f"{name}_{layer}": of_matrix(matrix) for layer, matrix in matrices.items()}

    measure.__name__ = name
    return measure


def _matrices(params: Params) -> dict[str, Float[Array, "..."]]:
    """Layer's name -> matrix; the parameter's name follows where a layer has several."""
    found = [
        (path, leaf)
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        if jnp.ndim(leaf) >= 2
    ]
    layers = [path[:-1] or path for path, _ in found]
    names = [
        "_".join(layer if layers.count(layer) == 1 else path) or "params"
        for layer, (path, _) in zip(layers, found, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"two matrices would get one name: {names}; rename their containers.")
    return {name: leaf for name, (_, leaf) in zip(names, found, strict=True)}
