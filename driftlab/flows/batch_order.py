"""What SGD minimises over a few steps: modified losses of batches in an order, or in any.

The losses are in the papers' time: n steps with learning rate h are time `n h` of gradient flow.
The flow of a fixed order without frozen terms is `log_map_flow(step_sequence(step, batches), ...)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.vector_field import Field, Loss
from driftlab.hyperparameters import check_positive
from driftlab.objective import Batch, Params, batch_length

BatchLoss = Callable[[Params, Batch], Float[Array, ""]]


def shuffled_epoch_loss(loss: BatchLoss, batches: Batch, learning_rate: ArrayLike) -> Loss:
    """What an epoch of SGD follows in the mean over all orders of its batches.

    For m batches with losses E_k and `E = (1/m) sum_k E_k`,

        E(theta) + (h / (4 m)) sum_k |grad E_k(theta)|^2.

    Its gradient flow after time m h is the mean of the epoch's end over all m! orders, up to
    `O(h^3)`. The sum is `|grad E|^2` plus the variance of the batch gradients, which is how small
    batches regularise more.

    Args:
      loss: `loss(params, batch) -> scalar`.
      batches: the batches: a pytree whose leaves have a leading axis of length m
        (`split_batches`).
      learning_rate: h; may be traced.

    Returns:
      `params -> scalar`.

    Raises:
      ValueError: if the leaves of batches share no leading axis, or the learning rate is not
        positive.

    Source: Smith, Dherin, Barrett & De, 2021, On the Origin of Implicit Regularization in
    Stochastic Gradient Descent. Cost: m gradients of a batch; its own gradient m
    gradients and Hessian-vector products.
    """
    _check_batches(batches)
    check_positive("learning_rate", learning_rate)

    def modified(params: Params) -> Float[Array, ""]:
        def one(batch: Batch) -> Float[Array, ""]:
            value, gradient = jax.value_and_grad(loss)(params, batch)
            return value + _rate(learning_rate, value) / 4 * optax.tree.vdot(gradient, gradient)

        return jnp.mean(jax.lax.map(one, batches))

    return modified


def batch_order_loss(
    loss: BatchLoss, batches: Batch, learning_rate: ArrayLike, start: Params
) -> Loss:
    """What n steps of SGD follow on batches in a given order, from a given start.

    For n batches with losses E_0, ..., E_{n-1} and `E = (1/n) sum_i E_i`,

        E(theta) + (n h / 4) |grad E(theta)|^2
            - (h / n) sum_{i=1..n-1} grad E_i(theta) . sum_{j<i} grad E_j(start).

    The last factors are constants of this trajectory; that makes the field a gradient. It rewards
    agreement of a batch's gradient with those before it. Gradient flow on it for time n h ends
    where the n steps do, up to `O((n h)^3)`; with identical batches its gradient at the start is
    that of `modified_loss`. For the next n steps it is made anew from where they start:
    `batch_order_flow` does that along a flow.

    Args:
      loss: `loss(params, batch) -> scalar`.
      batches: the batches in their order: a pytree whose leaves have a leading axis of length n.
      learning_rate: h; may be traced.
      start: the parameters before the first step.

    Returns:
      `params -> scalar`.

    Raises:
      ValueError: if the leaves of batches share no leading axis, or the learning rate is not
        positive.

    Source: Rosca & Deisenroth, 2023, Implicit regularisation in stochastic gradient descent: from
    single-objective to two-player games. Cost: n gradients of a batch when it is made; then
    2 n, and its own gradient 2 n gradients and Hessian-vector products.
    """
    check_positive("learning_rate", learning_rate)
    return _frozen_loss(loss, batches, learning_rate, earlier_gradients(loss, batches, start))


def batch_order_flow(loss: BatchLoss, batches: Batch, learning_rate: ArrayLike) -> Field:
    """The field of `batch_order_loss`, whose frozen terms come as args: n steps at a time.

    `driftlab.flow(field, n * learning_rate, objective, args=lambda state: earlier_gradients(loss,
    batches, state.params))` follows epoch after epoch in the same order of batches.

    Args:
      loss: as in `batch_order_loss`.
      batches: likewise.
      learning_rate: likewise.

    Returns:
      `field(t, y, args) -> dy/dt`, args being `earlier_gradients(loss, batches, start)`; t is
      ignored.

    Raises:
      ValueError: as `batch_order_loss`.

    Source: as `batch_order_loss`. Cost: 2 n gradients and Hessian-vector products of a batch.
    """
    _check_batches(batches)
    check_positive("learning_rate", learning_rate)

    def field(t: Any, y: Params, args: Params) -> Params:
        del t
        slope = jax.grad(_frozen_loss(loss, batches, learning_rate, args))(y)
        return jax.tree.map(jnp.negative, slope)

    return field


def earlier_gradients(loss: BatchLoss, batches: Batch, start: Params) -> PyTree[Array]:
    """`sum_{j<i} grad E_j(start)` for every i: the constants of `batch_order_loss`.

    Args:
      loss: `loss(params, batch) -> scalar`.
      batches: a pytree whose leaves have a leading axis of length n.
      start: the parameters before the first step.

    Returns:
      The structure of the parameters, each leaf with a leading axis of length n; 0 at i = 0.

    Raises:
      ValueError: if the leaves of batches share no leading axis.

    Cost: n gradients of a batch, and the memory of n of them.
    """
    _check_batches(batches)
    gradients = jax.lax.map(lambda batch: jax.grad(loss)(start, batch), batches)
    return jax.tree.map(lambda leaf: jnp.cumsum(leaf, axis=0) - leaf, gradients)


def split_batches(data: Batch, batch_size: int) -> Batch:
    """The batches of `driftlab.fixed_order(batch_size)`, stacked: leaves `(n, batch_size, ...)`.

    Args:
      data: examples; leaves share one leading axis.
      batch_size: examples a batch; those left over at the end are in none.

    Returns:
      The structure of the data.

    Raises:
      ValueError: if batch_size is not from 1 to the number of examples.
    """
    size = batch_length(data, "data")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer; got {batch_size!r}.")
    if batch_size > size:
        raise ValueError(f"batch_size is {batch_size}, but the data hold only {size} examples.")
    count = size // batch_size
    return jax.tree.map(
        lambda leaf: leaf[: count * batch_size].reshape(count, batch_size, *leaf.shape[1:]), data
    )


def _frozen_loss(
    loss: BatchLoss, batches: Batch, learning_rate: ArrayLike, earlier: PyTree[Array]
) -> Loss:
    count = _check_batches(batches)

    def mean_loss(params: Params) -> Float[Array, ""]:
        return jnp.mean(jax.lax.map(lambda batch: loss(params, batch), batches))

    def modified(params: Params) -> Float[Array, ""]:
        value, gradient = jax.value_and_grad(mean_loss)(params)
        rate = _rate(learning_rate, value)

        def agreement(entry: tuple[Batch, Params]) -> Float[Array, ""]:
            batch, before = entry
            # grad E_i . before, forwards: its own gradient is then one Hessian-vector product.
            return jax.jvp(lambda p: loss(p, batch), (params,), (before,))[1]

        agreed = jnp.sum(jax.lax.map(agreement, (batches, earlier)))
        squared = optax.tree.norm(gradient, squared=True)
        return value + count * rate / 4 * squared - rate / count * agreed

    return modified


def _check_batches(batches: Batch) -> int:
    count = batch_length(batches, "batches")
    if count < 1:
        raise ValueError("batches hold no batch: give a pytree with one leading axis of batches.")
    return count


def _rate(learning_rate: ArrayLike, like: Array) -> Float[Array, ""]:
    return jnp.asarray(learning_rate, like.dtype)
