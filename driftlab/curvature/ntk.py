"""The empirical neural tangent kernel: the Gram matrix of the gradients of a network's outputs."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from driftlab.curvature import ntk_structured as structured
from driftlab.curvature.ntk_blocks import check_network, gram_matrix

Params = PyTree[Array]
Apply = Callable[[Params, Array], Float[Array, "n *outputs"]]

METHODS = ("structured", "products", "jacobian")


def ntk(
    apply: Apply,
    params: Params,
    inputs: Array,
    other: Array | None = None,
    *,
    method: str = "auto",
    trace_outputs: bool = False,
    batch_size: int | None = None,
) -> Float[Array, "n m *outputs"]:
    """The empirical neural tangent kernel `Theta = J J^T` (Jacot, Gabriel and Hongler, 2018).

    `Theta_ij,ab = sum_p (d f_a(x_i) / d theta_p) (d f_b(x_j) / d theta_p)`, by one of three
    contractions that agree to rounding (compared by Novak, Sohl-Dickstein and Schoenholz, 2022):

    - "jacobian": the Jacobians of both sides, multiplied. `n m o^2 P` multiply-adds.
    - "products": for every column (j, b) the gradient of f_b(x_j), multiplied with the Jacobian
      by transposing reverse differentiation. About `2 n m o` forward passes.
    - "structured": for the weight of a matrix product, whose gradient is `sum_t h_t (x) delta_t`
      over the positions t that share it, `sum_ts (h_t . h'_s)(delta_t,a . delta'_s,b)`, without
      forming that gradient: for a dense layer `n m (inputs + o^2 outputs)`. The layers are found
      in the traced network. Any other leaf (biases, normalisation, a weight that is used twice or
      inside a `custom_vjp` or scan), and one with so many positions that it would cost more, goes
      through its Jacobian.
    - "auto": the one with the fewest multiply-adds by `ntk_costs`, in the order above on ties.

    Features of all examples cost one forward and o backward passes each. With `batch_size` blocks
    of the kernel are computed from two batches at a time, and the features of the second are
    computed once for each block; with `other=None` only blocks on and above the diagonal are.

    Args:
      apply: `apply(params, inputs (n, ...)) -> (n, outputs)` or `(n,)`; each example's outputs
        depend on that example alone (no batch normalisation in training mode). For "structured"
        and "jacobian" it is called with one example at a time.
      params: theta, a pytree of floating-point arrays.
      inputs: n examples.
      other: m examples; None for `inputs`, which gives an exactly symmetric result.
      method: "auto", "structured", "products" or "jacobian".
      trace_outputs: whether to return the mean over outputs `(1/o) sum_a Theta_ij,aa` instead of
        the blocks (the trace divided by the number of outputs).
      batch_size: examples of each side whose derivatives are held at once: at most
        `2 batch_size o P` numbers for "jacobian". None for all.

    Returns:
      `(n, m, outputs, outputs)`; `(n, m)` for the mean over outputs, or if `apply` returns
      `(n,)`. In the finest precision among params, or float32 if that is less.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: for an unknown method, examples that do not fit, outputs that are not
        `(n, outputs)`, or a batch_size that is not a positive integer.
    """
    if method not in ("auto", *METHODS):
        raise ValueError(
            f"method={method!r} is not known; choose from 'auto', {', '.join(map(repr, METHODS))}."
        )
    inputs, params = jnp.asarray(inputs), jax.tree.map(jnp.asarray, params)
    other = None if other is None else jnp.asarray(other)
    num_outputs, is_scalar = check_network(apply, params, inputs, other, batch_size)
    net, costs = _network_and_costs(apply, params, inputs, other, trace_outputs, batch_size)
    if method == "auto":
        method = min(METHODS, key=lambda name: costs[name])
    leaves = jax.tree.leaves(params)
    rows, columns, contract = _contraction(apply, params, leaves, net, method)
    gram = gram_matrix(rows, columns, contract, inputs, other, net.rows, batch_size)
    if trace_outputs or is_scalar:
        return gram
    blocks = gram.reshape(gram.shape[0] // num_outputs, num_outputs, -1, num_outputs)
    return blocks.transpose(0, 2, 1, 3)


def ntk_costs(
    apply: Apply,
    params: Params,
    inputs: Array,
    other: Array | None = None,
    *,
    trace_outputs: bool = False,
    batch_size: int | None = None,
) -> dict[str, int]:
    """The multiply-adds of each method of `ntk`, which "auto" goes by.

    Counted from the shapes of the traced network: with F those of one forward pass, N examples
    whose features are computed, and n m pairs,

    - "structured": `N F (1 + 2 o)` and what its contractions cost,
    - "products": `m F (1 + 2 o)` and `2 F n m o`,
    - "jacobian": `N F (1 + 2 o)` and `n m o^2 P` (o P where the outputs are averaged).

    Args:
      apply: as in `ntk`.
      params: theta; shapes and types suffice.
      inputs: n examples; shape and type suffice.
      other: m examples, or None.
      trace_outputs: whether the mean over outputs is wanted.
      batch_size: as in `ntk`.

    Returns:
      Method -> multiply-adds.

    Raises:
      TypeError: as `ntk`.
      ValueError: as `ntk`.
    """
    check_network(apply, params, inputs, other, batch_size)
    return _network_and_costs(apply, params, inputs, other, trace_outputs, batch_size)[1]


def _contraction(
    apply: Apply, params: Params, leaves: list[Array], net: structured.Network, method: str
) -> tuple[Callable, Callable, Callable]:
    """Functions of a batch for the rows and for the columns, and the one that multiplies them."""
    if method != "products":
        chosen = net if method == "structured" else structured.unstructured(net)

        def features(batch: Array) -> structured.Features:
            return structured.features(chosen, leaves, batch)

        return features, features, lambda r, c: structured.contract(chosen, r, c)

    def gradients(batch: Array) -> Params:
        jacobian = jax.jacrev(lambda p, x: apply(p, x[None]).reshape(-1))
        return jax.vmap(jacobian, in_axes=(None, 0))(params, batch)

    def multiply(batch: Array, tangents: Params) -> Array:
        outputs, pull = jax.vjp(lambda p: apply(p, batch).reshape(len(batch), -1), params)
        # J as the transpose of J^T: a network with a `custom_vjp` has no forward derivative.
        push = jax.linear_transpose(lambda vector: pull(vector)[0], outputs)
        (blocks,) = jax.vmap(jax.vmap(push))(tangents)  # (m, outputs, n, outputs)
        blocks = blocks.astype(jnp.result_type(jnp.float32, *leaves))
        if net.traced:
            return jnp.einsum("jaia->ij", blocks) / net.num_outputs
        shape = (len(batch) * net.rows, blocks.shape[0] * net.rows)
        return blocks.transpose(2, 3, 0, 1).reshape(shape)

    return lambda batch: batch, gradients, multiply


def _network_and_costs(
    apply: Apply,
    params: Params,
    inputs: Array,
    other: Array | None,
    trace_outputs: bool,
    batch_size: int | None,
) -> tuple[structured.Network, dict[str, int]]:
    leaves, tree = jax.tree.flatten(params)
    n, m = inputs.shape[0], inputs.shape[0] if other is None else other.shape[0]
    chunks = 1 if batch_size is None else math.ceil(n / batch_size)
    num_columns = m * chunks
    num_examples = n if other is None and chunks == 1 else n + num_columns

    def single(flat: list[Array], example: Array) -> Array:
        return apply(jax.tree.unflatten(tree, flat), example[None]).reshape(-1)

    example = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    net = structured.network(single, leaves, example, trace_outputs, n * m, num_examples)
    outputs, passes = net.num_outputs, net.forward_cost * (1 + 2 * net.num_outputs)
    plain = structured.unstructured(net)
    return net, {
        "structured": num_examples * passes + n * m * structured.contraction_cost(net),
        "products": num_columns * passes + 2 * net.forward_cost * n * m * outputs,
        "jacobian": num_examples * passes + n * m * structured.contraction_cost(plain),
    }
