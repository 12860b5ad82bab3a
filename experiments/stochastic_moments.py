"""First and second moments on a quadratic loss, exactly: of SGD and of its stochastic flows.

Where the loss is quadratic, gradients are affine and gradient covariances quadratic in the
parameters, so that mean and covariance of the iterate obey closed equations. They are made here
from the drift and the diffusion as they are, evaluated at the mean and at the mean plus and minus
the columns of a root of the covariance, which is exact for quadratic functions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from driftlab import flows
from driftlab.flows.stochastic import StochasticFlow
from driftlab.objective import Objective


class Moments(NamedTuple):
    """Mean and covariance of parameters that are one vector."""

    mean: Float[Array, " p"]
    covariance: Float[Array, "p p"]


def expectation(function: Callable, moments: Moments) -> Array:
    """`E q(x)` of a quadratic function q, which may give an array.

    Args:
      function: q.
      moments: of x.
    """
    ahead, behind = (jax.vmap(function)(points) for points in _points(moments))
    middle = function(moments.mean)
    return middle + jnp.sum(ahead + behind - 2 * middle[None], axis=0) / 2


def of_sgd(objective: Objective, h: ArrayLike, start: Array, iterations: Array | int) -> Moments:
    """The moments of SGD's iterate, batches drawn with replacement.

    Args:
      objective: a quadratic loss of one vector, with its sampling.
      h: the learning rate.
      start: the first iterate.
      iterations: how many.

    Returns:
      The moments of the last.
    """
    size, batch_size = objective.size, objective.sampling.batch_size
    assert batch_size is not None

    def gradient(x: Array) -> Array:
        return jax.grad(lambda x: objective.value(x, objective.data)[0])(x)

    def covariance(x: Array) -> Array:
        def of_one(index: Array) -> Array:
            example = jax.tree.map(lambda a: a[index][None], objective.data)
            return jax.grad(lambda x: objective.value(x, example)[0])(x)

        centred = jax.vmap(of_one)(jnp.arange(size)) - gradient(x)[None]
        return centred.T @ centred / size

    jacobian = jnp.eye(start.size) - h * jax.jacfwd(gradient)(start)

    def step(_: Array, moments: Moments) -> Moments:
        noise = expectation(covariance, moments) * h**2 / batch_size
        mean = moments.mean - h * gradient(moments.mean)
        return Moments(mean, jacobian @ moments.covariance @ jacobian.T + noise)

    begun = Moments(start, jnp.zeros((start.size, start.size), start.dtype))
    return jax.lax.fori_loop(0, iterations, step, begun)


def of_flow(model: StochasticFlow, start: Array, duration: ArrayLike) -> Moments:
    """The moments of a stochastic flow with affine drift and diffusion.

    Args:
      model: the equation, in Ito's sense.
      start: its start.
      duration: for how long.

    Returns:
      The moments at the end; NaN if they could not be solved for.
    """

    def drift(x: Array) -> Array:
        return model.drift(0.0, x, None)

    def covariance(x: Array) -> Array:
        columns = jax.vmap(model.diffusion(0.0, x, None).mv)(jnp.eye(model.noise_size))
        return columns.T @ columns

    jacobian = jax.jacfwd(drift)(start)

    def field(t: Array, moments: Moments, args: None) -> Moments:
        product = jacobian @ moments.covariance
        noise = expectation(covariance, moments)
        return Moments(drift(moments.mean), product + product.T + noise)

    begun = Moments(start, jnp.zeros((start.size, start.size), start.dtype))
    solved = flows.solve(field, begun, duration, rtol=1e-9, atol=1e-13)
    return jax.tree.map(lambda leaf: jnp.where(solved.failed, jnp.nan, leaf), solved.y)


def _points(moments: Moments) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh((moments.covariance + moments.covariance.T) / 2)
    columns = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]).T
    return moments.mean[None] + columns, moments.mean[None] - columns
