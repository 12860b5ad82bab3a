"""Which leaf of a tree lives on which manifold."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from driftlab.manifolds.euclidean_space import euclidean
from driftlab.manifolds.manifold import Manifold

Manifolds = Manifold | Mapping[str, Manifold]


def assign(manifolds: Manifolds, tree: PyTree) -> PyTree:
    """The manifold of each leaf.

    Args:
      manifolds: one for all leaves; or path -> manifold, where a path is that of a leaf or of a
        part of the tree, its keys joined by "/" ("embedding", "layers/0/kernel"). The longest
        path that fits counts; leaves without one are Euclidean, each number a factor.
      tree: parameters; leaves of optax's masks stay as they are.

    Returns:
      A tree of manifolds in the structure of `tree`.

    Raises:
      TypeError: if manifolds are neither.
      ValueError: for a path that is not in the tree, naming those that are; for a leaf with fewer
        axes than a point.
    """
    if not isinstance(manifolds, Manifold | Mapping):
        raise TypeError(
            f"manifolds must be a Manifold or a mapping of paths to them; got {manifolds!r}."
        )
    rules = {"": manifolds} if isinstance(manifolds, Manifold) else dict(manifolds)
    wrong = [path for path, manifold in rules.items() if not isinstance(manifold, Manifold)]
    if wrong:
        raise TypeError(f"manifolds[{wrong[0]!r}] must be a Manifold; got {rules[wrong[0]]!r}.")
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_masked)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for rule in rules:
        if rule and not any(_fits(rule, path) for path in paths):
            raise ValueError(f"manifolds name {rule!r}, which is not there; leaves: {paths}.")
    flat = euclidean()
    chosen = []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if _is_masked(leaf):
            continue
        rule = max((rule for rule in rules if _fits(rule, path)), key=len, default=None)
        manifold = flat if rule is None else rules[rule]
        if jnp.ndim(leaf) < manifold.point_ndim:
            raise ValueError(
                f"parameter {path or '(the only one)'!r} has shape {jnp.shape(leaf)}; a point of "
                f"{manifold.name} has {manifold.point_ndim} axes."
            )
        chosen.append(manifold)
    return jax.tree.unflatten(jax.tree.structure(tree), chosen)


def check_points(manifolds: Manifolds, tree: PyTree) -> None:
    """Raises where parameters do not lie on their manifolds; traced ones pass.

    Args:
      manifolds: as in `assign`.
      tree: parameters.

    Raises:
      TypeError: naming a leaf that is not of real floating-point numbers.
      ValueError: naming the leaf, the first point that is off, and what to do; or as `assign`.
    """
    kinds = jax.tree.leaves(assign(manifolds, tree))
    for (path, leaf), manifold in zip(
        jax.tree_util.tree_leaves_with_path(tree), kinds, strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "(the only one)"
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"parameter {name!r} has dtype {dtype}; points of {manifold.name} are real "
                "floating-point arrays."
            )
        if isinstance(leaf, Tracer):
            continue
        with jax.ensure_compile_time_eval():  # init may be called under jit with known points
            answer = manifold.contains(jnp.asarray(leaf))
        if isinstance(answer, Tracer):  # of a traced curvature
            continue
        on = np.asarray(answer)
        if on.all():
            continue
        first = tuple(int(i) for i in np.argwhere(~on)[0])
        point = np.array2string(np.asarray(leaf)[first], threshold=8, precision=4)
        raise ValueError(
            f"parameter {name!r}: {int((~on).sum())} of {on.size} points are not on "
            f"{manifold.name}, the first at index {first}: {point}. Start from "
            "manifold.project(points) or manifold.random(key, shape, dtype)."
        )


def gradient(manifolds: Manifolds, params: PyTree, partial_derivatives: PyTree) -> PyTree:
    """The Riemannian gradient of a tree.

    Args:
      manifolds: as in `assign`.
      params: the points.
      partial_derivatives: what `jax.grad` gives there.

    Returns:
      The tangent vector, in the same structure.
    """
    kinds = assign(manifolds, params)
    return jax.tree.map(lambda m, x, g: m.gradient(x, g), kinds, params, partial_derivatives)


def inner(manifolds: Manifolds, params: PyTree, u: PyTree, v: PyTree) -> Float[Array, ""]:
    """`<u, v>_x` of the product metric, summed over all points.

    Args:
      manifolds: as in `assign`.
      params: x, the points.
      u: tangent vectors there.
      v: likewise.

    Returns:
      A scalar.
    """
    kinds = assign(manifolds, params)
    parts = jax.tree.map(lambda m, *arrays: jnp.sum(m.inner(*arrays)), kinds, params, u, v)
    return jax.tree.reduce(jnp.add, parts)


def _fits(rule: str, path: str) -> bool:
    return rule in ("", path) or path.startswith(f"{rule}/")


def _is_masked(node: Any) -> bool:
    # optax.MaskedNode, by name: an empty tuple, which is no leaf otherwise.
    return type(node).__name__ == "MaskedNode"
