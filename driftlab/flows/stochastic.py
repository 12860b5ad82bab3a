"""Stochastic modified equations of SGD: a drift and a diffusion that model its iterates in law.

In the papers' time: at learning rate h, iteration n is time `t = n h`. The expectation of a smooth
function of the iterate differs from that under an equation of weak order p by O(h^p) after a fixed
time. `driftlab.flows.stochastic_solve` follows them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.solve import time_dtype
from driftlab.flows.vector_field import Field, check_real, gradient_function
from driftlab.hyperparameters import check_positive
from driftlab.objective import Objective, Params

if TYPE_CHECKING:
    import lineax

ITO = "ito"
STRATONOVICH = "stratonovich"
# Per-example gradients held at once where nothing else is said.
_BATCH_SIZE = 32


class StochasticFlow(NamedTuple):
    """The equation `dY = drift(t, Y) dt + diffusion(t, Y) dW`, and the way into its state and back.

    Attributes:
      drift: `drift(t, y, args) -> dy/dt`, for `diffrax.ODETerm`.
      diffusion: `diffusion(t, y, args)`, a lineax operator from `(noise_size,)` to trees like y,
        for `diffrax.ControlTerm`.
      noise_size: how many independent Brownian motions drive it.
      step_time: the time of one iteration of the optimiser.
      calculus: "ito" or "stratonovich": how the integral over W is meant, and so which solvers
        apply.
      init: `init(params) -> y`; that of an optimiser with memory takes its optax state as well.
      params: `params(y) -> params`.
    """

    drift: Field
    diffusion: Callable[[Any, PyTree, Any], "lineax.AbstractLinearOperator"]
    noise_size: int
    step_time: ArrayLike
    calculus: str
    init: Callable[..., PyTree]
    params: Callable[[PyTree], Params]


def sgd_sde(
    objective: Objective,
    learning_rate: ArrayLike,
    order: int = 1,
    *,
    batch_size: int | None = None,
    noise_basis: Float[Array, "n r"] | None = None,
    calculus: str = ITO,
    micro_batch_size: int | None = None,
) -> StochasticFlow:
    """The stochastic modified equation of SGD, of weak order 1 or 2.

    With f the loss over all n examples, Sigma the covariance of the gradient of one of them, and
    batches of B drawn independently with replacement,
    `dX = -grad f dt + sqrt(h / B) Sigma^(1/2) dW` at order 1, and
    `dX = -grad(f + (h/4) |grad f|^2) dt + sqrt(h / B) Sigma^(1/2) dW` at order 2, in Ito's sense.

    No root of a matrix is taken: `Sigma = A A^T`, where column i of A is
    `(g_i - grad f) / sqrt(n)`, so W has one component an example, and `A dW` is one gradient of
    the loss with weighted examples.

    In Stratonovich's sense the same equation has the drift of the loss
    `f + (h/4) (|grad f|^2 + tr(Sigma) / B)`, at order 1 without the first of the two terms: the
    second is what half the derivative of the diffusion along itself comes to, since its columns
    are gradients. At order 2 the bracket is the mean squared norm of a batch's gradient.

    Not a model of the stationary state: there the order-2 equation is off by O(h) relative, as is
    the order-1 one. Take care that a solver does not hide the difference: the order-1 equation in
    Euler steps of h is SGD with normal noise of SGD's covariance, whose first two moments on a
    quadratic loss are SGD's own.

    Args:
      objective: its loss is a mean over the batch's examples; loss plus regulariser over all its
        training data is f.
      learning_rate: h, positive; may be a traced scalar.
      order: 1 or 2, the weak order.
      batch_size: B; None for that of the objective's own sampling, which then must be
        `with_replacement`. Batches of shuffled epochs are not independent of each other.
      noise_basis: weights of `noise_basis(...)`, which make the noise low-rank; None for all of
        it.
      calculus: "ito", or "stratonovich", the same law for other solvers at a higher cost.
      micro_batch_size: examples of one gradient evaluation, to bound memory; None for all at
        once, and 32 for the per-example gradients of Stratonovich's drift.

    Returns:
      The equation; its state is params.

    Raises:
      ValueError: if the order, calculus or learning rate is none, the batch size is not known, or
        the basis has another number of examples; from the fields, if the loss is not a scalar.
      TypeError: from the fields, if a parameter is not real.

    Source: Li, Tai & E, Stochastic modified equations and adaptive stochastic gradient algorithms,
    2017, equations 7 and 8, for B = 1. Cost of the drift: one gradient; at order 2 one
    Hessian-vector product more; in Stratonovich's sense n per-example gradients and
    Hessian-vector products more (r weighted ones with a basis). Of the diffusion: one gradient.
    """
    if order not in (1, 2):
        raise ValueError(
            f"order={order!r} must be 1 or 2: no stochastic modified equation of higher weak order "
            "is published."
        )
    if calculus not in (ITO, STRATONOVICH):
        raise ValueError(f"calculus={calculus!r} must be 'ito' or 'stratonovich'.")
    check_positive("learning_rate", learning_rate)
    batch_size = independent_batch_size(objective, batch_size)
    if noise_basis is not None and jnp.shape(noise_basis)[:1] != (objective.size,):
        raise ValueError(
            f"noise_basis has shape {jnp.shape(noise_basis)}; it needs a row for each of the "
            f"{objective.size} examples."
        )
    gradient = gradient_function(objective, micro_batch_size)

    def noise(y: Params, weights: Float[Array, " noise"]) -> Params:
        if noise_basis is not None:
            weights = jnp.asarray(noise_basis, weights.dtype) @ weights
        return covariance_factor(objective, y, weights, micro_batch_size)

    def drift(t: Any, y: Params, args: Any) -> Params:
        del t, args
        if order == 1:
            rate = jax.tree.map(jnp.negative, gradient(y))
        else:
            g = gradient(y)
            _, bent = jax.jvp(gradient, (y,), (g,))
            rate = jax.tree.map(lambda g, hg: -(g + _half(learning_rate, hg) * hg), g, bent)
        if calculus == ITO:
            return rate
        correction = (
            _mean_along_itself(objective, y, micro_batch_size or _BATCH_SIZE)
            if noise_basis is None
            else _along_itself(noise, y, noise_basis)
        )
        return jax.tree.map(
            lambda f, c: f - _half(learning_rate, c) / batch_size * c, rate, correction
        )

    def diffusion(t: Any, y: Params, args: Any) -> "lineax.AbstractLinearOperator":
        del t, args

        def product(weights: Float[Array, " noise"]) -> Params:
            scale = jnp.sqrt(jnp.asarray(learning_rate, weights.dtype) / batch_size)
            return noise(y, scale * weights)

        return noise_operator(product, y, size)

    size = objective.size if noise_basis is None else jnp.shape(noise_basis)[1]
    return StochasticFlow(
        drift, diffusion, size, learning_rate, calculus, lambda params: params, lambda y: y
    )


def covariance_factor(
    objective: Objective,
    params: Params,
    weights: Float[Array, " n"],
    micro_batch_size: int | None = None,
) -> Params:
    """`A w`, where `A A^T` is the covariance of the gradient of one example.

    Column i of A is `(g_i - grad f) / sqrt(n)`.

    Args:
      objective: its loss is a mean over the batch's examples.
      params: where.
      weights: w, one an example.
      micro_batch_size: examples at once; None for all.

    Returns:
      A tree like params: for w of independent standard normals, a draw of that covariance.

    Cost: one gradient.
    """
    from driftlab.curvature.batching import mean_over_batches

    check_real(params)
    # The columns are centred through the weights: no gradient is subtracted from another.
    weights = (weights - weights.mean()) * objective.size**0.5

    def batch_gradient(batch: PyTree) -> Params:
        weights, examples = batch

        def weighted(params: Params) -> Float[Array, ""]:
            losses = jax.vmap(lambda example: _example_loss(objective, params, example))(examples)
            return jnp.mean(weights.astype(losses.dtype) * losses)

        return jax.grad(weighted)(params)

    return mean_over_batches(batch_gradient, (weights, objective.data), micro_batch_size)


class NoiseBasis(NamedTuple):
    """The directions of gradient noise that carry most of it.

    Attributes:
      weights: orthonormal columns of weights of examples, `(n, r)`: the right singular vectors of
        the A of `covariance_factor`.
      eigenvalues: the r largest of the covariance, descending; loss^2 / parameter^2.
      trace: of the whole covariance; `eigenvalues.sum() / trace` is the share that is kept.
      converged: whether the eigenvalues are.
    """

    weights: Float[Array, "n r"]
    eigenvalues: Float[Array, " r"]
    trace: Float[Array, ""]
    converged: Array


def noise_basis(
    objective: Objective, params: Params, rank: int, micro_batch_size: int = _BATCH_SIZE
) -> NoiseBasis:
    """The top eigenspace of the gradient covariance, for noise of that rank.

    With `A = U S V^T` this gives V's first columns: the noise `A V dW` has at params exactly the
    covariance's top r eigenpairs, and elsewhere a covariance that is below the full one. Nothing
    of the size parameters times examples is kept.

    Args:
      objective: its loss is a mean over the batch's examples.
      params: where.
      rank: r, below the number of examples n (the covariance has rank n - 1 at most).
      micro_batch_size: per-example gradients held at once.

    Returns:
      The basis.

    Raises:
      ValueError: if the rank is not between 1 and n - 1.

    Cost: about `2 r + 20` products or more, each two gradients, and 2 n per-example gradients for
    the trace.
    """
    import lineax

    from driftlab import curvature

    size = objective.size
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank < size:
        raise ValueError(
            f"rank={rank!r} must be a whole number from 1 to {size - 1}: {size} examples have a "
            "gradient covariance of no higher rank."
        )
    clock = time_dtype(params)

    def product(weights: Float[Array, " n"]) -> Float[Array, " n"]:
        direction = covariance_factor(objective, params, weights, micro_batch_size)

        def along(example: PyTree) -> Float[Array, ""]:
            return jax.jvp(lambda p: _example_loss(objective, p, example), (params,), (direction,))[
                1
            ]

        slopes = jax.lax.map(along, objective.data, batch_size=micro_batch_size)
        return ((slopes - slopes.mean()) / size**0.5).astype(weights.dtype)

    operator = lineax.FunctionLinearOperator(
        product, jax.ShapeDtypeStruct((size,), clock), lineax.positive_semidefinite_tag
    )
    pairs = curvature.eigenpairs(operator, rank)
    moments = curvature.gradient_moments(
        lambda p, batch: objective.value(p, batch)[0], params, objective.data, micro_batch_size
    )
    return NoiseBasis(pairs.vectors.T, pairs.values, moments.covariance_trace, pairs.converged)


def noise_operator(
    product: Callable[[Float[Array, " noise"]], PyTree], y: PyTree, size: int
) -> "lineax.AbstractLinearOperator":
    """A function of the noise as the operator that diffrax multiplies with.

    Args:
      product: `noise (size,) -> tree like y`, linear.
      y: the state, whose types the product is given.
      size: the dimension of the noise.

    Returns:
      A lineax operator.
    """
    import lineax

    def like_y(noise: Float[Array, " noise"]) -> PyTree:
        return jax.tree.map(lambda part, leaf: part.astype(leaf.dtype), product(noise), y)

    return lineax.FunctionLinearOperator(like_y, jax.ShapeDtypeStruct((size,), time_dtype(y)))


def independent_batch_size(objective: Objective, batch_size: int | None) -> int:
    """B, where batches are drawn independently of each other.

    Args:
      objective: what is minimised.
      batch_size: B, or None for the sampling's own.

    Returns:
      B.

    Raises:
      ValueError: if batch_size is not a positive integer; or it is None and the objective's
        sampling is another than `with_replacement`; or there are no examples.
    """
    if objective.size == 0:
        raise ValueError("the objective has no data, so its gradient has no noise to model.")
    if batch_size is None:
        sampling = objective.sampling
        if sampling.name != "with_replacement" or sampling.batch_size is None:
            raise ValueError(
                f"batch_size=None takes the objective's own, but its sampling is "
                f"{sampling.name!r}, whose batches are not independent draws: give it "
                "driftlab.sampling.with_replacement(B), or pass batch_size=B to model such draws."
            )
        return sampling.batch_size
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer; got {batch_size!r}.")
    return batch_size


def _example_loss(objective: Objective, params: Params, example: PyTree) -> Float[Array, ""]:
    return objective.value(params, jax.tree.map(lambda array: array[None], example))[0]


def _half(learning_rate: ArrayLike, like: Array) -> Array:
    return jnp.asarray(learning_rate, like.dtype) / 2


def _mean_along_itself(objective: Objective, params: Params, micro_batch_size: int) -> Params:
    """`mean_i H_i (g_i - g)`, half the gradient of the covariance's trace."""
    from driftlab.curvature.batching import mean_over_batches

    mean = gradient_function(objective, micro_batch_size)(params)

    def of_batch(batch: PyTree) -> Params:
        def of_one(example: PyTree) -> Params:
            gradient = jax.grad(lambda p: _example_loss(objective, p, example))
            deviation = jax.tree.map(jnp.subtract, gradient(params), mean)
            return jax.jvp(gradient, (params,), (deviation,))[1]

        return jax.tree.map(lambda rows: rows.mean(0), jax.vmap(of_one)(batch))

    return mean_over_batches(of_batch, objective.data, min(micro_batch_size, objective.size))


def _along_itself(noise: Callable, params: Params, basis: Float[Array, "n r"]) -> Params:
    """The sum over columns c(y) of `noise` of their derivatives along themselves, `(Dc) c`."""

    def column(index: Array) -> Params:
        unit = jax.nn.one_hot(index, basis.shape[1], dtype=time_dtype(params))
        factor = lambda y: noise(y, unit)  # noqa: E731
        return jax.jvp(factor, (params,), (factor(params),))[1]

    columns = jax.lax.map(column, jnp.arange(basis.shape[1]))
    return jax.tree.map(lambda rows: rows.sum(0), columns)
