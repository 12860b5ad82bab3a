"""A loss around complex parameters: what the principal flow sees of it, as flat vectors.

Beyond `h lambda = 1` the principal flow leaves the real parameters, so that the gradient and the
Hessian must be continued to complex ones. Holomorphically: the loss is evaluated at complex
parameters, and its Hessian is complex and symmetric. Linearised: both are taken at the real part
x, `g(x + i y) = g(x) + i H(x) y`, and the Hessian is that of x; exact where H is constant, wrong by
O(|y|^2) elsewhere, and possible for every loss and network.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float, Inexact, PyTree

from driftlab.flows.vector_field import Loss, check_real, gradient_function
from driftlab.objective import Objective, Params

CONTINUATIONS = ("holomorphic", "linearized")

Vector = Inexact[Array, " n"]


class PrincipalState(NamedTuple):
    """Complex parameters in real arrays, which every solver takes.

    Attributes:
      real: their real part, in the structure of params.
      imaginary: their imaginary part.
    """

    real: Params
    imaginary: Params


class Neighborhood(NamedTuple):
    """A loss to second order (third, where asked) at a point.

    Attributes:
      gradient: g, `(n,)`.
      product: `v -> H v`, linear over the numbers that g is made of.
      third: `(u, v) -> T[u, v]`, the third derivative.
      hermitian: whether H is a real symmetric matrix.
      unflatten: `(n,)` -> a tree like params.
    """

    gradient: Vector
    product: Callable[[Vector], Vector]
    third: Callable[[Vector, Vector], Vector]
    hermitian: bool
    unflatten: Callable[[Vector], PyTree[Array]]


def real_neighborhood(
    loss: Loss | Objective, params: Params, batch_size: int | None = None
) -> Neighborhood:
    """A loss around real parameters.

    Args:
      loss: as in `gradient_flow`.
      params: where.
      batch_size: as in `gradient_flow`.

    Returns:
      The neighbourhood, with real vectors.

    Raises:
      TypeError: if a parameter is not a real floating-point array.
      ValueError: if the loss is not a real scalar.
    """
    check_real(params)
    gradient, unflatten = _flat(gradient_function(loss, batch_size), params)
    point = ravel_pytree(params)[0]
    return _neighborhood(gradient, point, unflatten, linearize=batch_size is None, hermitian=True)


def linearized_neighborhood(
    loss: Loss | Objective, params: Params, batch_size: int | None = None
) -> Neighborhood:
    """A loss around complex parameters, from its derivatives at their real part.

    Args:
      loss: as in `gradient_flow`.
      params: where; complex leaves.
      batch_size: as in `gradient_flow`.

    Returns:
      The neighbourhood, with complex vectors and a real Hessian.

    Raises:
      ValueError: if the loss is not a real scalar.
    """
    near = real_neighborhood(loss, jax.tree.map(jnp.real, params), batch_size)
    _, unflatten = ravel_pytree(params)
    imaginary = ravel_pytree(jax.tree.map(jnp.imag, params))[0]

    def product(vector: Complex[Array, " n"]) -> Complex[Array, " n"]:
        real, imaginary = jax.vmap(near.product)(jnp.stack([vector.real, vector.imag]))
        return jax.lax.complex(real, imaginary)

    def third(u: Complex[Array, " n"], v: Complex[Array, " n"]) -> Complex[Array, " n"]:
        parts = [near.third(a, b) for a in (u.real, u.imag) for b in (v.real, v.imag)]
        return jax.lax.complex(parts[0] - parts[3], parts[1] + parts[2])

    gradient = jax.lax.complex(near.gradient, near.product(imaginary))
    return Neighborhood(gradient, product, third, True, unflatten)


def holomorphic_neighborhood(
    loss: Loss | Objective, params: Params, batch_size: int | None = None
) -> Neighborhood:
    """A loss around complex parameters, by evaluating it there.

    Args:
      loss: as in `gradient_flow`, of functions that are analytic: no modulus, norm or conjugate.
        tanh, sin, sigmoid, softplus, silu, gelu, elu, log_softmax and logsumexp are; relu and
        maxima are so piece by piece, and jump where the real part changes sides.
      params: where; complex leaves.
      batch_size: as in `gradient_flow`.

    Returns:
      The neighbourhood, with complex vectors; the Hessian is complex and symmetric.

    Raises:
      ValueError: if the loss of complex parameters is no complex scalar.
    """
    gradient, unflatten = _flat(holomorphic_gradient(loss, batch_size), params)
    point = ravel_pytree(params)[0]
    return _neighborhood(gradient, point, unflatten, linearize=batch_size is None, hermitian=False)


def holomorphic_gradient(
    loss: Loss | Objective, batch_size: int | None = None
) -> Callable[[Params], Params]:
    """`params -> grad L(params)` for complex params, the derivatives `dL/d theta_j`.

    Args:
      loss: as in `holomorphic_neighborhood`.
      batch_size: as in `gradient_flow`.

    Returns:
      The gradient.

    Raises:
      ValueError: from the function, if the loss of complex parameters is no complex scalar.
    """
    if not isinstance(loss, Objective):

        def gradient(params: Params) -> Params:
            return _complex_gradient(loss, params)

        return gradient

    from driftlab.curvature.batching import mean_over_batches

    objective = loss

    def value(params: Params, batch: PyTree) -> Complex[Array, ""]:
        # Not `objective.value`, which refuses what is not real.
        penalty = 0.0 if objective.regularizer is None else objective.regularizer(params, batch)
        return objective.loss(params, batch) + penalty

    def mean_gradient(params: Params) -> Params:
        return mean_over_batches(
            lambda batch: _complex_gradient(lambda p: value(p, batch), params),
            objective.data,
            batch_size,
        )

    return mean_gradient


def to_complex(state: PrincipalState) -> Params:
    """Complex parameters from their parts.

    Args:
      state: the parts.

    Returns:
      A tree of complex arrays; parts below 32 bits become 32.
    """

    def join(real: Float[Array, "..."], imaginary: Float[Array, "..."]) -> Complex[Array, "..."]:
        dtype = jnp.promote_types(real.dtype, jnp.float32)
        return jax.lax.complex(real.astype(dtype), imaginary.astype(dtype))

    return jax.tree.map(join, state.real, state.imaginary)


def _complex_gradient(loss: Callable[[Params], Any], params: Params) -> Params:
    found = jax.eval_shape(loss, params)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"the loss of complex parameters must be a complex scalar; got {found}. If it takes a "
            'norm, modulus or real part, pass continuation="linearized", or state="real".'
        )
    return jax.grad(loss, holomorphic=True)(params)


def _flat(
    gradient: Callable[[Params], Params], params: Params
) -> tuple[Callable[[Vector], Vector], Callable[[Vector], Params]]:
    """A gradient of flat vectors, and the way back into trees."""
    _, unflatten = ravel_pytree(params)
    return lambda vector: ravel_pytree(gradient(unflatten(vector)))[0], unflatten


def _neighborhood(
    gradient: Callable[[Vector], Vector],
    point: Vector,
    unflatten: Callable[[Vector], Params],
    *,
    linearize: bool,
    hermitian: bool,
) -> Neighborhood:
    if linearize:
        value, product = jax.linearize(gradient, point)
    else:
        # Linearising would keep what every micro-batch computed.
        value = gradient(point)

        def product(vector: Vector) -> Vector:
            return jax.jvp(gradient, (point,), (vector,))[1]

    def third(u: Vector, v: Vector) -> Vector:
        def along(where: Vector) -> Vector:
            return jax.jvp(gradient, (where,), (u,))[1]

        return jax.jvp(along, (point,), (v,))[1]

    return Neighborhood(value, product, third, hermitian, unflatten)
