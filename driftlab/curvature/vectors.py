"""Pytrees as flat vectors, for the linear algebra of this package."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree


class FlatOperator(NamedTuple):
    """A symmetric operator on flat vectors.

    Attributes:
      apply: `(n,) -> (n,)`.
      size: n, the dimension.
      dtype: in which the linear algebra is done: that of the operator, float32 at least.
      flatten: pytree -> `(n,)`.
      unflatten: `(n,)` -> pytree, in the leaves' own types.
    """

    apply: Callable[[Float[Array, " n"]], Float[Array, " n"]]
    size: int
    dtype: np.dtype
    flatten: Callable[[PyTree[Array]], Float[Array, " n"]]
    unflatten: Callable[[Float[Array, " n"]], PyTree[Array]]


def flat_operator(operator: lineax.AbstractLinearOperator) -> FlatOperator:
    """A symmetric operator on pytrees, as one on flat vectors.

    Args:
      operator: a lineax operator tagged symmetric (or positive semidefinite, or diagonal).

    Returns:
      The flat operator.

    Raises:
      TypeError: if it is not a lineax operator.
      ValueError: if it is not tagged symmetric, or acts on an empty tree.
    """
    if not isinstance(operator, lineax.AbstractLinearOperator):
        raise TypeError(
            f"the operator must be a lineax linear operator; got {type(operator).__name__}. Make "
            "one with driftlab.curvature.hessian, gauss_newton, ... or, from your own function, "
            "with driftlab.curvature.symmetric_operator."
        )
    if not lineax.is_symmetric(operator):
        raise ValueError(
            "the operator is not tagged symmetric, and eigenvalues, traces and conjugate gradients "
            "here are those of symmetric operators; if it is one, wrap it with "
            "driftlab.curvature.symmetric_operator, which checks it, or add lineax.symmetric_tag."
        )
    leaves, structure = jax.tree.flatten(operator.in_structure())
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    if not sum(sizes):
        raise ValueError("the operator acts on an empty tree: there is nothing to compute.")
    dtype = jnp.result_type(jnp.float32, *[leaf.dtype for leaf in leaves])
    ends = np.cumsum(sizes)

    def flatten(tree: PyTree[Array]) -> Float[Array, " n"]:
        shapes, expected = [jnp.shape(x) for x in jax.tree.leaves(tree)], [x.shape for x in leaves]
        if shapes != expected:
            raise ValueError(
                f"the operator acts on trees with leaves of shapes {expected}; got a vector with "
                f"leaves of shapes {shapes}."
            )
        return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)])

    def unflatten(vector: Float[Array, " n"]) -> PyTree[Array]:
        parts = [
            vector[end - size : end].reshape(leaf.shape).astype(leaf.dtype)
            for leaf, size, end in zip(leaves, sizes, ends, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    def apply(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return flatten(operator.mv(unflatten(vector)))

    return FlatOperator(apply, int(ends[-1]), dtype, flatten, unflatten)


def rademacher(key: PRNGKeyArray, flat: FlatOperator) -> Float[Array, " n"]:
    """A random vector of independent signs, `E[z z^T] = I`: the least variance for a trace.

    Args:
      key: what it is drawn with.
      flat: the operator that it is for.

    Returns:
      The vector, in the operator's dtype.
    """
    return jax.random.rademacher(key, (flat.size,), flat.dtype)


def all_finite(*arrays: Array) -> Bool[Array, ""]:
    """Whether every entry of every array is finite.

    Args:
      *arrays: arrays of any shapes.

    Returns:
      A boolean scalar.
    """
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()


def check_count(name: str, value: object, largest: int | None = None) -> None:
    """Refuses what is not a positive integer up to a largest one.

    Args:
      name: the argument.
      value: what was given.
      largest: the greatest value that is accepted; None for any.

    Raises:
      ValueError: naming the argument, its value and what is accepted.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and int(value) >= 1 and (largest is None or int(value) <= largest):  # type: ignore
        return
    accepted = "1 or more" if largest is None else f"from 1 to {largest}"
    raise ValueError(f"{name} must be a whole number, {accepted}; got {value!r}.")
