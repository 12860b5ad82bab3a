"""The neural tangent kernel of many examples, matrix-free."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, PyTree

from driftlab.curvature.ntk_blocks import check_network, chunk_indices

Params = PyTree[Array]


def ntk_operator(
    apply: Callable[[Params, Array], Float[Array, "n *outputs"]],
    params: Params,
    inputs: Array,
    batch_size: int | None = None,
) -> lineax.FunctionLinearOperator:
    """The neural tangent kernel of many examples as an operator: `v -> Theta v = J (J^T v)`.

    Exact over all examples: one pass of vector-Jacobian products, summed, and one of
    Jacobian-vector products. Cost of a product: about 2 gradients over the data (the forward pass
    is done in both). Memory: the activations of a batch, and two times the parameters.

    Make an operator inside the function that you `jax.jit`, from arguments of that function.

    Args:
      apply: as in `ntk`, called with `batch_size` examples.
      params: theta, a pytree of floating-point arrays.
      inputs: n examples.
      batch_size: examples at once; None for all of them.

    Returns:
      A lineax operator on vectors of the shape of the outputs, `(n, outputs)` or `(n,)`, tagged
      symmetric and positive semidefinite.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: for outputs that are not `(n, outputs)` or `(n,)`, or a batch_size that is not a
        positive integer.
    """
    inputs, params = jnp.asarray(inputs), jax.tree.map(jnp.asarray, params)
    check_network(apply, params, inputs, None, batch_size)
    structure = jax.eval_shape(apply, params, inputs)
    num_examples = structure.shape[0]

    def pull(batch: Array, vector: Array) -> Params:
        return jax.vjp(lambda p: apply(p, batch), params)[1](vector)[0]

    def push(batch: Array, tangent: Params) -> Array:
        # J as the transpose of J^T: a network with a `custom_vjp` has no forward derivative.
        outputs, back = jax.vjp(lambda p: apply(p, batch), params)
        return jax.linear_transpose(lambda vector: back(vector)[0], outputs)(tangent)[0]

    def product(vector: Array) -> Array:
        if batch_size is None or batch_size >= num_examples:
            return push(inputs, pull(inputs, vector))
        indices = chunk_indices(num_examples, batch_size)
        padding = [(0, indices.size - num_examples)] + [(0, 0)] * (vector.ndim - 1)
        # The last batch is filled up with copies of the last example, which weigh nothing.
        parts = jnp.pad(vector, padding).reshape(*indices.shape, *vector.shape[1:])

        def add(total: Params, part: tuple[Array, Array]) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, pull(inputs[part[0]], part[1])), None

        tangent, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (indices, parts))
        rows = jax.lax.map(lambda chunk: push(inputs[chunk], tangent), indices)
        return rows.reshape(-1, *vector.shape[1:])[:num_examples]

    # Closure-converted, lineax's default: its solvers take no function that closes over tracers.
    tags = (lineax.symmetric_tag, lineax.positive_semidefinite_tag)
    return lineax.FunctionLinearOperator(product, structure, tags)
