"""The positive semidefinite matrices of a model and its loss: Gauss-Newton and Fisher."""

from collections.abc import Callable

import jax
import lineax
from jaxtyping import Array, Float, PyTree

from driftlab.curvature.operators import (
    Batch,
    Operator,
    Params,
    check_loss,
    check_params,
    mean_operator,
)


def gauss_newton(
    model: Callable[[Params, Batch], PyTree[Array]],
    output_loss: Callable[[PyTree[Array], Batch], Float[Array, ""]],
    params: Params,
    data: Batch,
    batch_size: int | None = None,
) -> Operator:
    """The generalised Gauss-Newton matrix `G = J^T H_out J` of `output_loss(model(theta))`.

    J is the Jacobian of the model's outputs, H_out the Hessian of the loss in them (Schraudolph
    2002). The Hessian is G plus the model's own curvature weighted by the loss's gradient.
    Cost of a product: about 1.2 gradients.

    Args:
      model: `model(params, batch) -> outputs`, a pytree of arrays.
      output_loss: `output_loss(outputs, batch) -> scalar`, a mean over the batch's examples,
        convex in the outputs.
      params: theta.
      data: all the examples.
      batch_size: examples at once; None for all of them.

    Returns:
      A positive semidefinite lineax operator on trees like params.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: if `output_loss` is not a real scalar, or batch_size not a positive integer.
    """
    check_params(params)
    check_loss(lambda p, batch: output_loss(model(p, batch), batch), params, data)

    def output_product(outputs: PyTree[Array], batch: Batch) -> Callable:
        return jax.linearize(jax.grad(lambda out: output_loss(out, batch)), outputs)[1]

    return _jacobian_sandwich(model, output_product, params, data, batch_size)


def fisher(
    model: Callable[[Params, Batch], Float[Array, "batch outputs"]],
    family: str,
    params: Params,
    data: Batch,
    batch_size: int | None = None,
) -> Operator:
    """The (true) Fisher matrix: `F = mean_i E_y[s_i s_i^T]`, `s_i = grad log p(y | f(x_i))`.

    The expectation is over labels drawn from the model itself, exactly: `F = J^T F_out J / n`
    with the output Fisher matrix of the family. For a loss which is the family's negative
    log-likelihood with the outputs as natural parameters, F is its Gauss-Newton matrix
    (Martens 2020, section 9).

    Args:
      model: `model(params, batch) -> (batch, outputs)`: logits or means.
      family: "categorical" (`F_out = diag(p) - p p^T`), "bernoulli" (`diag(p (1 - p))`) or
        "gaussian" (the identity: unit variance).
      params: theta.
      data: all the examples.
      batch_size: examples at once; None for all of them.

    Returns:
      A positive semidefinite lineax operator on trees like params.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: for an unknown family, outputs that do not fit it, or a batch_size that is not
        a positive integer.
    """
    if family not in _OUTPUT_FISHER:
        raise ValueError(f"family must be one of {sorted(_OUTPUT_FISHER)}; got {family!r}.")
    check_params(params)
    outputs = jax.eval_shape(model, params, data)
    if len(getattr(outputs, "shape", ())) < (2 if family == "categorical" else 1):
        raise ValueError(
            f"the model must return an array of shape (batch, outputs) for family={family!r}; got "
            f"{outputs}."
        )

    def output_product(outputs: Array, batch: Batch) -> Callable[[Array], Array]:
        return lambda tangent: _OUTPUT_FISHER[family](outputs, tangent) / outputs.shape[0]

    return _jacobian_sandwich(model, output_product, params, data, batch_size)


def empirical_fisher(
    loss: Callable[[Params, Batch], Float[Array, ""]],
    params: Params,
    data: Batch,
    batch_size: int | None = None,
) -> Operator:
    """The second moment of per-example gradients, `mean_i g_i g_i^T`, at the data's own labels.

    Not the Fisher matrix, for which labels are the model's (Kunstner, Balles, Hennig 2019).
    Cost of a product: about 1.2 gradients; no per-example gradient is stored.

    Args:
      loss: `loss(params, batch) -> scalar`, a mean over the batch's examples.
      params: theta.
      data: all the examples.
      batch_size: examples at once; None for all of them.

    Returns:
      A positive semidefinite lineax operator on trees like params.

    Raises:
      TypeError: if a parameter is not floating-point.
      ValueError: if the loss is not a real scalar, or batch_size not a positive integer.
    """
    check_params(params)
    check_loss(loss, params, data)

    def losses(params: Params, batch: Batch) -> Float[Array, " batch"]:
        def single(example: Batch) -> Float[Array, ""]:
            return loss(params, jax.tree.map(lambda array: array[None], example))

        return jax.vmap(single)(batch)

    def output_product(outputs: Array, batch: Batch) -> Callable[[Array], Array]:
        return lambda tangent: tangent / outputs.shape[0]

    return _jacobian_sandwich(losses, output_product, params, data, batch_size)


def _jacobian_sandwich(
    model: Callable, output_product: Callable, params: Params, data: Batch, batch_size: int | None
) -> Operator:
    """`J^T M J`, J the Jacobian of the model and M a product in its outputs."""

    def linearized(batch: Batch) -> Callable[[Params], Params]:
        outputs, push = jax.linearize(lambda p: model(p, batch), params)
        pull = jax.linear_transpose(push, params)
        middle = output_product(outputs, batch)
        return lambda vector: pull(middle(push(vector)))[0]

    return mean_operator(linearized, params, data, batch_size, lineax.positive_semidefinite_tag)


def _categorical(outputs: Array, tangent: Array) -> Array:
    probabilities = jax.nn.softmax(outputs, axis=-1)
    weighted = probabilities * tangent
    return weighted - probabilities * weighted.sum(-1, keepdims=True)


def _bernoulli(outputs: Array, tangent: Array) -> Array:
    return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs) * tangent


_OUTPUT_FISHER = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "gaussian": lambda outputs, tangent: tangent,
}
