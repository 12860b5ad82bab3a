"""The matrices of a loss as matrix-free operators over pytrees: lineax's, so its solvers fit.

A product with data in one piece linearises once, where the operator is made: each product then
costs the tangent part alone, at the price of the activations' memory. In micro-batches nothing is
kept, and each product recomputes the gradient's own part.

Make an operator inside the function that you `jax.jit`, from arguments of that function: params
and data closed over become constants of the program.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from driftlab.curvature.batching import check_batches, mean_over_batches

Params = PyTree[Array]
Batch = PyTree[Array]
Operator = lineax.AbstractLinearOperator


def hessian(
    loss: Callable[[Params, Batch], Float[Array, ""]],
    params: Params,
    data: Batch = (),
    batch_size: int | None = None,
) -> Operator:
    """The Hessian `H = d^2 L / d theta^2` of a loss, exact over all the data.

    Forward over reverse: `H v = d/de grad L(theta + e v)`. Cost of a product: 1 to 1.5 gradients,
    and 1 gradient once; in micro-batches 1.2 to 2 gradients.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch's examples.
      params: theta, a pytree of floating-point arrays.
      data: all the examples; `()` for a loss without data.
      batch_size: examples at once, to bound memory; None for all of them.

    Returns:
      A symmetric lineax operator on trees like params.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: if the loss is not a real scalar, or batch_size not a positive integer.
    """
    check_params(params)
    check_loss(loss, params, data)

    def linearized(batch: Batch) -> Callable[[Params], Params]:
        return jax.linearize(jax.grad(lambda p: loss(p, batch)), params)[1]

    return mean_operator(linearized, params, data, batch_size, lineax.symmetric_tag)


def preconditioned(operator: Operator, preconditioner: PyTree[Array]) -> Operator:
    """`P^{-1/2} A P^{-1/2}` for a positive diagonal P: the spectrum of `P^{-1} A`, symmetric.

    Its eigenvectors are `P^{1/2}` times those of `P^{-1} A`. Cost of a product: that of A.

    Args:
      operator: A, symmetric, on trees.
      preconditioner: the diagonal of P, in the same structure (see `preconditioner`); entries
        that are infinite freeze their coordinate.

    Returns:
      A symmetric lineax operator; positive semidefinite if A is tagged so.

    Raises:
      ValueError: if the structures or shapes differ.
    """
    structure = operator.in_structure()
    given = jax.tree.map(lambda leaf: jnp.shape(leaf), preconditioner)
    expected = jax.tree.map(lambda leaf: leaf.shape, structure)
    if given != expected:
        raise ValueError(
            f"the preconditioner must have the operator's structure and shapes, {expected}; "
            f"got {given}."
        )
    root = jax.tree.map(lambda leaf: jax.lax.rsqrt(jnp.asarray(leaf)), preconditioner)

    def product(vector: PyTree[Array]) -> PyTree[Array]:
        scaled = operator.mv(_scaled(root, vector))
        return _scaled(root, scaled)

    semidefinite = lineax.is_positive_semidefinite(operator)
    tag = lineax.positive_semidefinite_tag if semidefinite else lineax.symmetric_tag
    return lineax.FunctionLinearOperator(product, structure, tag)


def damped(operator: Operator, damping: float | Float[Array, ""]) -> Operator:
    """`A + damping I`, which keeps the tag that lineax's sum drops, and that `lineax.CG` asks for.

    Args:
      operator: A, symmetric.
      damping: added to each eigenvalue, in their units; 0 or more.

    Returns:
      A symmetric lineax operator; positive semidefinite if A is tagged so.
    """

    def product(vector: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(
            lambda image, v: image + (damping * v).astype(v.dtype), operator.mv(vector), vector
        )

    semidefinite = lineax.is_positive_semidefinite(operator)
    tag = lineax.positive_semidefinite_tag if semidefinite else lineax.symmetric_tag
    return lineax.FunctionLinearOperator(product, operator.in_structure(), tag)


def symmetric_operator(
    function: Callable[[PyTree[Array]], PyTree[Array]],
    like: PyTree[Array],
    probes: int = 3,
) -> Operator:
    """Your own function as a symmetric operator, after a check that it is linear and symmetric.

    Compares `u.Av` with `v.Au`, and `A(u + v)` with `Au + Av`, for random vectors.

    Args:
      function: `vector -> A vector`, both trees like `like`.
      like: arrays or shapes that say on what trees it acts.
      probes: pairs of random vectors; 0 skips the check (as is needed while tracing, where values
        are not known).

    Returns:
      A symmetric lineax operator.

    Raises:
      ValueError: if the function is not linear or not symmetric, with the numbers that differ;
        or if its values are not known because it is being traced.
    """
    structure = jax.eval_shape(lambda: like)
    operator = lineax.FunctionLinearOperator(function, structure, lineax.symmetric_tag)
    for probe in range(probes):
        key = jax.random.key(probe)
        u, v = (_random_like(jax.random.fold_in(key, index), structure) for index in range(2))
        image_u, image_v = function(u), function(v)
        sum_image = function(jax.tree.map(jnp.add, u, v))
        forward, backward = _dot(u, image_v), _dot(v, image_u)
        scale = jnp.sqrt(_dot(image_u, image_u) * _dot(v, v))
        bent = jax.tree.map(lambda s, a, b: s - a - b, sum_image, image_u, image_v)
        if isinstance(forward, Tracer):
            raise ValueError(
                "symmetric_operator checks values, which are not known inside jax.jit or jax.vmap; "
                "make it outside, or pass probes=0."
            )
        tolerance = float(jnp.finfo(forward.dtype).eps) ** 0.5
        if jnp.sqrt(_dot(bent, bent)) > tolerance * jnp.sqrt(_dot(sum_image, sum_image)):
            raise ValueError("the function is not linear: A(u + v) differs from A u + A v.")
        if abs(forward - backward) > tolerance * scale:
            raise ValueError(
                f"the operator is not symmetric: u.Av = {forward} but v.Au = {backward} for "
                "random u and v; its symmetric part is v -> (A v + A^T v) / 2."
            )
    return operator


def check_params(params: Params) -> None:
    """Refuses parameters that have no derivative.

    Args:
      params: theta.

    Raises:
      TypeError: naming the leaf that is not floating-point.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"parameter {jax.tree_util.keystr(path) or 'params'} has dtype "
                f"{jnp.result_type(leaf)}; curvature needs floating-point parameters. Close over "
                "integers and booleans, or split them off."
            )


def check_loss(loss: Callable, params: Params, data: Batch) -> None:
    """Refuses a loss that is not a real scalar.

    Args:
      loss: `loss(params, batch)`.
      params: theta.
      data: a batch.

    Raises:
      ValueError: saying what it returned.
    """
    value = jax.eval_shape(loss, params, data)
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        kind = f"shape {shape} and {value.dtype}" if shape is not None else type(value).__name__
        raise ValueError(
            f"loss(params, batch) must return one real floating-point number; got {kind}. Average "
            "over the batch inside it."
        )


def mean_operator(
    linearized: Callable[[Batch], Callable[[Params], Params]],
    params: Params,
    data: Batch,
    batch_size: int | None,
    tags: object,
) -> Operator:
    """The mean over batches of `linearized(batch)(vector)`, linearised once if there is one batch.

    Args:
      linearized: `batch -> (vector -> product)`.
      params: theta, for the structure.
      data: all the examples.
      batch_size: examples at once; None for all of them.
      tags: lineax's, for what is known of the operator.

    Returns:
      A lineax operator on trees like params.

    Raises:
      ValueError: if batch_size is not a positive integer.
    """
    structure = jax.eval_shape(lambda: params)
    if batch_size is None or batch_size >= check_batches(data, batch_size):
        product = linearized(data)
    else:

        def in_batches(vector: Params) -> Params:
            return mean_over_batches(lambda batch: linearized(batch)(vector), data, batch_size)

        product = in_batches
    return lineax.FunctionLinearOperator(product, structure, tags)


def _scaled(root: PyTree[Array], vector: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda r, v: (r * v).astype(v.dtype), root, vector)


def _random_like(key: Array, structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    leaves, treedef = jax.tree.flatten(structure)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


def _dot(first: PyTree[Array], second: PyTree[Array]) -> Float[Array, ""]:
    return sum(
        jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )  # type: ignore[return-value]
