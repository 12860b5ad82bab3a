"""Whether an instability comes: what the principal flow says of the next steps, by direction."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Float

from driftlab.flows.principal import principal_directions
from driftlab.flows.principal_complex import real_neighborhood
from driftlab.flows.principal_krylov import projected_function
from driftlab.flows.stability_coefficients import (
    check_momentum,
    principal_coefficient,
)
from driftlab.flows.vector_field import Loss
from driftlab.hyperparameters import check_positive
from driftlab.objective import Objective, Params


class Instability(NamedTuple):
    """The principal flow's reading of a point, by eigendirection and in all.

    Attributes:
      eigenvalues: the k largest of the Hessian, descending, in loss / parameter^2.
      coefficients: alpha of each, complex, without unit; a positive real part is an unstable
        direction, a non-zero imaginary part one in which iterates jump from side to side.
      squares: `(g.u_i)^2`, of the gradient's component along each.
      loss_rates: `Re alpha_i (g.u_i)^2`, what each adds to dL/dt.
      loss_rate: dL/dt of the principal flow's real part, over all directions.
      unstable: whether it is positive: the loss is predicted to rise.
    """

    eigenvalues: Float[Array, " k"]
    coefficients: Complex[Array, " k"]
    squares: Float[Array, " k"]
    loss_rates: Float[Array, " k"]
    loss_rate: Float[Array, ""]
    unstable: Bool[Array, ""]


def instability_prediction(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    *,
    top: int = 6,
    products: int = 24,
    momentum: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Callable[[Params], Instability]:
    """Whether the principal flow says that descent's loss rises: `sum_i Re alpha_i (g.u_i)^2 > 0`.

    A direction of `h lambda_i > 2` has `Re alpha_i > 0`, but the loss rises only once the gradient
    has enough of it. Gradient flow and the flows of order 2 and 3 have no such direction: they
    predict that the loss falls, always.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      learning_rate: h, positive; may be traced.
      top: k, directions to report, at most as many as parameters.
      products: Hessian-vector products for the directions outside.
      momentum: b of heavy ball, as in `principal_flow`; then g stands for its settled velocity.
      batch_size: as in `gradient_flow`.

    Returns:
      `params -> Instability`.

    Raises:
      ValueError: if an argument is out of range; from the function, as `gradient_flow`.
      TypeError: from the function, if a parameter is not a real floating-point array.

    Source: Rosca, Wu, Qin, Dherin (2023), "On a continuous time model of gradient descent
    dynamics and instability in deep learning", stability coefficients.

    Cost: 1 gradient, `k + products` Hessian-vector products and those of `principal_directions`.
    """
    check_positive("learning_rate", learning_rate)
    check_momentum(momentum)
    if not isinstance(products, int) or isinstance(products, bool) or products < 1:
        raise ValueError(f"products must be a whole number, 1 or more; got {products!r}.")
    directions = principal_directions(loss, top, batch_size)

    def coefficient(values: Any) -> Complex[Array, "..."]:
        return principal_coefficient(jnp.asarray(learning_rate, values.dtype) * values, momentum)

    def prediction(params: Params) -> Instability:
        near = real_neighborhood(loss, params, batch_size)
        g = near.gradient
        rows = directions(params).astype(g.dtype)
        # Rayleigh quotients: their error is the square of the eigenvectors'.
        values = jnp.sum(rows * jax.lax.map(near.product, rows), axis=1)
        alpha, squares = coefficient(values), jnp.sum(rows * g[None], axis=1) ** 2
        slope, _ = projected_function(
            near.product, g, lambda v: coefficient(v).real, near.hermitian, products, rows
        )
        rate = jnp.sum(slope * g)
        return Instability(values, alpha, squares, alpha.real * squares, rate, rate > 0)

    return prediction
