"""The layers of a traced network: weights whose only use is one matrix product.

Found in the equations that a network is traced to, not in the modules of a framework.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature.ntk_program import Equation, Program, Slot

# Primitives that move a weight's entries and don't change them: inner products of two gradients
# with respect to the result are those with respect to the weight.
_PERMUTATIONS = {"reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p"}


class Product(NamedTuple):
    """A matrix product in which a leaf of the params takes part, and nowhere else.

    The other operand h is seen as `(groups, positions, inputs)`, the product as `(groups,
    positions, outputs)`: groups are the batch dimensions that the leaf has too, positions those of
    h alone, and the leaf's gradient is `sum_t h_t (x) delta_t` in each group.

    Attributes:
      equation: its index in the program.
      leaf: the index of the leaf among the program's inputs.
      side: which operand the leaf is, 0 or 1.
      groups: batch entries.
      positions: entries of h that share the weight.
      inputs: contracted entries.
      outputs: entries of the leaf that are not contracted.
      bias: the index of a leaf that is added to the product, entry by entry, and has no other use;
        its gradient is `delta`. None if there is none, or there is more than one position.
    """

    equation: int
    leaf: int
    side: int
    groups: int
    positions: int
    inputs: int
    outputs: int
    bias: int | None = None


def weight_products(program: Program, leaves: int) -> list[Product]:
    """Finds the leaves whose only use is as an operand of one matrix product.

    A leaf may be reshaped or transposed on its way there, or converted to another floating type.

    Args:
      program: from `trace`.
      leaves: how many of the program's first inputs are params.

    Returns:
      One product for every such leaf. Leaves used twice, or in any other way, are left out.
    """
    origin = {slot: leaf for leaf, slot in enumerate(program.inputs[:leaves])}
    uses: dict[int, list[tuple[int, int]]] = {leaf: [] for leaf in range(leaves)}
    for index, equation in enumerate(program.equations):
        for side, atom in enumerate(equation.operands):
            leaf = origin.get(atom) if isinstance(atom, Slot) else None
            if leaf is None:
                continue
            if _moves_entries(equation.source):
                origin[equation.results[0]] = leaf
            else:
                uses[leaf].append((index, side))
    for atom in program.outputs:
        if isinstance(atom, Slot) and atom in origin:
            uses[origin[atom]].append((-1, 0))  # no equation: never the only use that counts
    only = {leaf: use[0] for leaf, use in uses.items() if len(use) == 1 and use[0][0] >= 0}
    products: list[Product] = []
    taken: set[int] = set()
    for leaf, (index, side) in only.items():
        product = _product(program.equations[index], index, leaf, side)
        if product is None:
            continue
        bias = _added_leaf(program, product, {use: other for other, use in only.items()})
        if bias is not None and bias not in taken:  # a product of two leaves has one bias
            product = product._replace(bias=bias)
            taken.add(bias)
        products.append(product)
    return products


def as_inputs(
    operand: Array, program: Program, product: Product
) -> Float[Array, "groups positions inputs"]:
    """Sees what the leaf of a product multiplies as `(groups, positions, inputs)`."""
    source = program.equations[product.equation].source
    contracted, batch, free = _dimensions(source, 1 - product.side)
    return jnp.transpose(operand, (*batch, *free, *contracted)).reshape(
        product.groups, product.positions, product.inputs
    )


def as_positions(array: Array, product: Product) -> Float[Array, "groups positions outputs"]:
    """Sees the result of a product, or a gradient of it, as `(groups, positions, outputs)`."""
    sizes = (product.positions, product.outputs)
    if product.side == 1:
        return array.reshape(product.groups, *sizes)
    return array.reshape(product.groups, *sizes[::-1]).swapaxes(1, 2)


def _product(equation: Equation, index: int, leaf: int, side: int) -> Product | None:
    source = equation.source
    if source.primitive.name != "dot_general" or not _is_float(source.outvars[0]):
        return None
    contracted, batch, free = _dimensions(source, side)
    weight, other = source.invars[side].aval.shape, source.invars[1 - side].aval.shape
    return Product(
        equation=index,
        leaf=leaf,
        side=side,
        groups=math.prod(weight[axis] for axis in batch),
        positions=math.prod(other[axis] for axis in _dimensions(source, 1 - side)[2]),
        inputs=math.prod(weight[axis] for axis in contracted),
        outputs=math.prod(weight[axis] for axis in free),
    )


def _dimensions(source: Any, side: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    contracted, batch = (pair[side] for pair in source.params["dimension_numbers"])
    rank = len(source.invars[side].aval.shape)
    free = tuple(axis for axis in range(rank) if axis not in (*contracted, *batch))
    return tuple(contracted), tuple(batch), free


def _added_leaf(
    program: Program, product: Product, leaf_of_use: Mapping[tuple[int, int], int]
) -> int | None:
    """The leaf that is added to the only use of a product of one position, if there is one."""
    if product.groups * product.positions != 1:
        return None
    slot = program.equations[product.equation].results[0]
    following = list(enumerate(program.equations))[product.equation + 1 :]
    while True:
        consumers = [
            (index, side, equation)
            for index, equation in following
            for side, atom in enumerate(equation.operands)
            if atom == slot
        ]
        if len(consumers) != 1 or slot in program.outputs:
            return None
        index, side, equation = consumers[0]
        if equation.source.primitive.name == "add":
            # Both operands of an add have the shape of the product: one entry each, no more.
            return leaf_of_use.get((index, 1 - side))
        if not _moves_entries(equation.source):
            return None
        slot = equation.results[0]


def _moves_entries(source: Any) -> bool:
    name = source.primitive.name
    if name == "convert_element_type":
        return _is_float(source.outvars[0])
    if name == "broadcast_in_dim":
        return source.outvars[0].aval.size == source.invars[0].aval.size
    return name in _PERMUTATIONS


def _is_float(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.floating)
