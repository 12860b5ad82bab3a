"""Neural tangent kernels from layers: features of single examples, and their contractions.

A block of the kernel is `contract(features of its rows, features of its columns)`. Inside this
module the kernel is a matrix whose rows are (example, output), or examples where it is averaged
over outputs; `driftlab.curvature.ntk` is what users call.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.curvature.ntk_layers import Product, as_inputs, as_positions, weight_products
from driftlab.curvature.ntk_program import Program, Slot, evaluate, multiply_adds, trace


class Features(NamedTuple):
    """What the kernel needs of each of n examples.

    Attributes:
      inputs: for every structured layer, what its weight multiplies, `(n, groups, positions,
        inputs)`.
      deltas: for every structured layer, the derivatives of the network's outputs with respect to
        the layer's, `(n, outputs, groups, positions, layer outputs)`.
      jacobians: for every other leaf, the derivatives of the outputs, `(n, outputs, size)`.
    """

    inputs: list[Float[Array, "n groups positions _"]]
    deltas: list[Float[Array, "n outputs groups positions _"]]
    jacobians: list[Float[Array, "n outputs _"]]


class Network(NamedTuple):
    """One example's outputs as a program, and how each leaf of the params is contracted.

    Attributes:
      program: of the flat params and one example.
      products: the leaves in structured form.
      remaining: the indices of the other leaves that the outputs depend on.
      sizes: the entries of every leaf.
      num_outputs: outputs o of an example.
      traced: whether the kernel is averaged over outputs.
    """

    program: Program
    products: tuple[Product, ...]
    remaining: tuple[int, ...]
    sizes: tuple[int, ...]
    num_outputs: int
    traced: bool

    @property
    def rows(self) -> int:
        """Rows of the kernel's matrix for an example."""
        return 1 if self.traced else self.num_outputs

    @property
    def forward_cost(self) -> int:
        """Multiply-adds of one example's outputs."""
        return multiply_adds(equation.source for equation in self.program.equations)


def network(
    single: Callable[[list[Array], Array], Float[Array, " outputs"]],
    leaves: Sequence[Array],
    example: Array | jax.ShapeDtypeStruct,
    traced: bool,
    num_pairs: int,
    num_examples: int,
) -> Network:
    """Traces a network and decides leaf by leaf whether the structured form is the cheaper one.

    Args:
      single: `single(leaves, example) -> (outputs,)`.
      leaves: the params.
      example: one example, or its shape and type.
      traced: whether the kernel is averaged over outputs.
      num_pairs: pairs of examples that are contracted.
      num_examples: examples whose features are computed.

    Returns:
      The network.
    """
    program = trace(single, leaves, example)
    sizes = tuple(math.prod(leaf.shape) for leaf in leaves)
    num_outputs = math.prod(jax.eval_shape(single, leaves, example).shape)
    atoms = [atom for equation in program.equations for atom in equation.operands]
    used = {atom for atom in (*atoms, *program.outputs) if isinstance(atom, Slot)}
    plain = Network(program, (), (), sizes, num_outputs, traced)

    def is_cheaper(product: Product) -> bool:
        formed = num_examples * product.positions * num_outputs * sizes[product.leaf]
        jacobian = formed + num_pairs * _jacobian_cost(plain, product.leaf)
        return num_pairs * _product_cost(plain, product) < jacobian

    products = tuple(filter(is_cheaper, weight_products(program, len(leaves))))
    structured = _leaves_of(products)
    remaining = tuple(
        leaf
        for leaf, slot in enumerate(program.inputs[: len(leaves)])
        if slot in used and leaf not in structured
    )
    return plain._replace(products=products, remaining=remaining)


def unstructured(net: Network) -> Network:
    """The same network with every leaf in the Jacobian contraction."""
    leaves = sorted({*net.remaining, *_leaves_of(net.products)})
    return net._replace(products=(), remaining=tuple(leaves))


def features(net: Network, leaves: Sequence[Array], examples: Array) -> Features:
    """The features of n examples: one forward pass, and one backward pass for every output.

    A structured layer's delta is the derivative with respect to an addition to its product, so
    the layer's own Jacobian is never formed.

    Args:
      net: from `network`.
      leaves: the params.
      examples: `(n, ...)`.

    Returns:
      The features, in the precision of the kernel (the finest of the params, float32 at least).
    """
    dtype = jnp.result_type(jnp.float32, *leaves)
    program = net.program
    others = [(product.equation, 1 - product.side) for product in net.products]
    indices = sorted({index for index, _ in others})
    types = {index: program.equations[index].source.outvars[0].aval for index in indices}
    zeros = {index: jnp.zeros(aval.shape, aval.dtype) for index, aval in types.items()}
    differentiated = {leaf: leaves[leaf] for leaf in net.remaining}

    def of_example(example: Array) -> Features:
        def outputs(
            perturbations: dict[int, Array], some: dict[int, Array]
        ) -> tuple[Array, list[Array]]:
            params = [some.get(index, leaf) for index, leaf in enumerate(leaves)]
            results, recorded = evaluate(program, [*params, example], perturbations, others)
            return results[0], recorded

        values, pullback, recorded = jax.vjp(outputs, zeros, differentiated, has_aux=True)
        deltas, gradients = jax.vmap(pullback)(jnp.eye(net.num_outputs, dtype=values.dtype))
        seen = jax.vmap(as_positions, in_axes=(0, None))
        return Features(
            [
                as_inputs(operand, program, product).astype(dtype)
                for operand, product in zip(recorded, net.products, strict=True)
            ],
            [seen(deltas[p.equation], p).astype(dtype) for p in net.products],
            [
                gradients[leaf].reshape(net.num_outputs, net.sizes[leaf]).astype(dtype)
                for leaf in net.remaining
            ],
        )

    return jax.vmap(of_example)(examples)


def contract(net: Network, rows: Features, columns: Features) -> Float[Array, "rows columns"]:
    """A block of the kernel.

    For a structured layer `sum_{t,s} (h_t . h'_s)(delta_t,a . delta'_s,b)`, t and s running over
    the positions that share the weight, with `h . h' + 1` for a layer of one position that has a
    bias; for any other leaf the product of the Jacobians.

    Args:
      net: from `network`.
      rows: features of n examples.
      columns: features of m examples.

    Returns:
      `(n o, m o)`, examples slower than outputs; `(n, m)` where it is averaged over outputs.

    Raises:
      ValueError: if the outputs depend on no leaf.
    """
    terms = [
        _contract_jacobians(net, first, second)
        for first, second in zip(rows.jacobians, columns.jacobians, strict=True)
    ]
    for index, product in enumerate(net.products):
        operands = (rows.inputs, rows.deltas, columns.inputs, columns.deltas)
        h, delta, other_h, other_delta = (operand[index] for operand in operands)
        if product.groups * product.positions == 1:
            gram = _einsum("igtc,jgtc->ij", h, other_h) + (product.bias is not None)
            terms.append(_contract_vectors(net, gram, delta, other_delta))
        else:
            terms.append(_contract_positions(net, h, delta, other_h, other_delta))
    if not terms:
        raise ValueError(
            "the outputs of apply(params, inputs) depend on none of the params, so there is no "
            "kernel; check that apply uses the params it is given and not others it closes over."
        )
    return sum(terms[1:], terms[0])


def contraction_cost(net: Network) -> int:
    """Multiply-adds of the kernel of one pair of examples, given their features."""
    structured = sum(_product_cost(net, product) for product in net.products)
    return structured + sum(_jacobian_cost(net, leaf) for leaf in net.remaining)


def _leaves_of(products: Sequence[Product]) -> set[int]:
    pairs = [(product.leaf, product.bias) for product in products]
    return {leaf for pair in pairs for leaf in pair if leaf is not None}


def _jacobian_cost(net: Network, leaf: int) -> int:
    return net.num_outputs * net.rows * net.sizes[leaf]


def _product_cost(net: Network, product: Product) -> int:
    outputs = net.num_outputs
    if product.groups * product.positions == 1:
        return product.inputs + outputs * net.rows * product.outputs
    squared = product.positions**2
    gram = squared * (product.inputs + outputs * product.outputs)
    return product.groups * (gram + outputs * net.rows * product.positions * product.outputs)


def _contract_jacobians(net: Network, rows: Array, columns: Array) -> Array:
    if net.traced:
        return _einsum("iap,jap->ij", rows, columns) / net.num_outputs
    return _einsum("iap,jbp->iajb", rows, columns).reshape(_shape(net, rows, columns))


def _contract_vectors(net: Network, gram: Array, delta: Array, other_delta: Array) -> Array:
    if net.traced:
        return gram * _einsum("iagtf,jagtf->ij", delta, other_delta) / net.num_outputs
    blocks = _einsum("iagtf,jbgtf->iajb", delta, other_delta)
    return (gram[:, None, :, None] * blocks).reshape(_shape(net, delta, other_delta))


def _contract_positions(
    net: Network, h: Array, delta: Array, other_h: Array, other_delta: Array
) -> Array:
    def row(one: tuple[Array, Array]) -> Array:
        gram = _einsum("gtc,jgsc->jgts", one[0], other_h)
        moved = _einsum("jgts,jbgsf->jbgtf", gram, other_delta)
        if net.traced:
            return _einsum("agtf,jagtf->j", one[1], moved) / net.num_outputs
        return _einsum("agtf,jbgtf->ajb", one[1], moved)

    # Row by row: the products over pairs of positions are the largest arrays here.
    return jax.lax.map(row, (h, delta)).reshape(_shape(net, delta, other_delta))


def _einsum(equation: str, *operands: Array) -> Array:
    # Small eigenvalues of a kernel matter: never the reduced precision of an accelerator's default.
    return jnp.einsum(equation, *operands, precision=jax.lax.Precision.HIGHEST)


def _shape(net: Network, rows: Array, columns: Array) -> tuple[int, int]:
    return rows.shape[0] * net.rows, columns.shape[0] * net.rows
