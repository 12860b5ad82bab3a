"""The weight matrices of a linear network in network order, whatever tree holds them."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.measures.layerwise import leaf_paths
from driftlab.objective import Params

# Layer's name -> W_k, (outputs, inputs), from the first layer to the last.
Matrices = dict[str, Float[Array, "outputs inputs"]]


def network_matrices(params: Params, transposed: bool | None = None) -> Matrices:
    """The matrices W_1 .. W_L of `f(x) = W_L ... W_1 x`, first layer first.

    A list, a tuple and a named tuple are in network order. The keys of a dict, which JAX sorts as
    text, are sorted by the numbers in them: `layer_2` before `layer_10`.

    Args:
      params: matrices of a network without biases, in any pytree.
      transposed: whether they are stored as `(inputs, outputs)`; None takes that of leaves called
        "kernel", flax's convention, and W_k itself, `(outputs, inputs)`, of all others.

    Returns:
      Layer's name (its path, without "kernel") -> W_k.

    Raises:
      ValueError: for a leaf that is no matrix, such as a bias; where a layer does not take what
        the one before it gives.
    """
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names, leaves = leaf_paths(params) if keys else [], jax.tree.leaves(params)
    found = {}
    for index in _network_order(keys):
        name, leaf = names[index], jnp.asarray(leaves[index])
        if leaf.ndim != 2:
            raise ValueError(
                f"params{jax.tree_util.keystr(keys[index])} has shape {leaf.shape}: a linear "
                "network is a product of matrices. Biases and convolutions have no place in it "
                "(use_bias=False)."
            )
        is_kernel = name[-1] == "kernel"
        swap = is_kernel if transposed is None else transposed
        label = "_".join(name[:-1] if is_kernel and len(name) > 1 else name)
        found[label] = leaf.T if swap else leaf
    _check_chain(found)
    return found


def _network_order(keys: list[Any]) -> list[int]:
    """Positions of leaves: those of a dict by the numbers in its keys, all others as they come."""
    first: dict[Any, int] = {}
    for index, path in enumerate(keys):
        for depth in range(len(path)):
            first.setdefault(path[: depth + 1], index)

    def place(index: int) -> list[Any]:
        path = keys[index]
        return [
            _natural(str(key.key))
            if isinstance(key, jax.tree_util.DictKey)
            else first[path[: depth + 1]]
            for depth, key in enumerate(path)
        ]

    return sorted(range(len(keys)), key=place)


def _natural(text: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _check_chain(matrices: Mapping[str, Array]) -> None:
    if not matrices:
        raise ValueError("params hold no matrix.")
    shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    sizes = list(shapes.values())
    if any(after[1] != before[0] for before, after in itertools.pairwise(sizes)):
        raise ValueError(
            f"as (outputs, inputs) the matrices {shapes} are no chain, in this order: a layer's "
            "inputs are the outputs of the one before it. Matrices stored as (inputs, outputs) "
            "need transposed=True; a list or tuple fixes the order."
        )
