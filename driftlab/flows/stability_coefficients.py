"""Stability coefficients: by what each model of descent multiplies the gradient, by curvature.

A model `dy/dt = sum_i alpha(h lambda_i) (g.u_i) u_i` of descent with learning rate h, where
(lambda_i, u_i) are the Hessian's eigenpairs, is its function alpha of `z = h lambda`. On real
parameters it makes the loss change at the rate `sum_i Re alpha(z_i) (g.u_i)^2`, so the sign of
`Re alpha(z)` says whether a direction of that curvature lowers the loss or raises it.

Source: Rosca, Wu, Qin, Dherin (2023), "On a continuous time model of gradient descent dynamics
and instability in deep learning", sections 3 and 4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Complex, Float, Inexact

Scaled = Float[Array, "..."] | Complex[Array, "..."]


def truncated_coefficient(z: Scaled, order: int, momentum: Any = None) -> Inexact[Array, "..."]:
    """The alpha of the flows of low order, as far as it is made of g and H alone.

    `alpha(z) = -(1 + z/2 + z^2/3)`, the first `order` terms: gradient flow, implicit gradient
    regularisation, and the principal part of the third-order flow. With momentum b, where
    p = 1 - b and q = 1 + b: `alpha(z) = -(1/p + q z/(2 p^3) + (q^2/(2 p^5) - 1/(6 p^3)) z^2)`. All
    are negative for every z > 0: none of these models sees an instability of descent.

    Args:
      z: `h lambda`, learning rate times eigenvalue; any shape, real or complex.
      order: 1, 2 or 3 terms.
      momentum: b of heavy ball, 0 <= b < 1; may be traced. None for gradient descent.

    Returns:
      alpha, in the type of z.

    Raises:
      ValueError: if the order is none of these, or momentum is out of range.

    Source: Rosca et al. (2023), section 3; Barrett and Dherin (2021), "Implicit gradient
    regularization"; with momentum, the series of `principal_coefficient`.
    """
    z = _inexact(z)
    total = jnp.zeros_like(z)
    for term in reversed(coefficient_series(order, momentum)):
        total = total * z + jnp.asarray(term, jnp.finfo(z.dtype).dtype)
    return total


def coefficient_series(order: int, momentum: Any = None) -> list[Any]:
    """The first terms of alpha's power series in z, as `truncated_coefficient` has them.

    Args:
      order: 1, 2 or 3 terms.
      momentum: as in `truncated_coefficient`.

    Returns:
      Numbers, or arrays where momentum is one.

    Raises:
      ValueError: as `truncated_coefficient`.
    """
    check_momentum(momentum)
    if order not in (1, 2, 3) or isinstance(order, bool):
        raise ValueError(f"order must be 1, 2 or 3, the terms that are kept; got {order!r}.")
    b = 0.0 if momentum is None else momentum
    p, q = 1 - b, 1 + b
    # From z = p l - q l^2 / 2 + p l^3 / 6 + ..., l = -log mu, solved for l.
    return [-1 / p, -q / (2 * p**3), 1 / (6 * p**3) - q**2 / (2 * p**5)][:order]


def principal_coefficient(z: Scaled, momentum: Any = None) -> Complex[Array, "..."]:
    """The alpha of the principal flow, `log(1 - z) / z`: all terms made of g and H, summed.

    Its regions for real z: negative below 1 (-1 at 0); complex beyond, with the imaginary part
    `pi / z`; real part negative up to z = 2, 0 there, positive beyond. At a stationary point the
    flow attracts where descent does, `0 < z < 2`.

    With momentum b, `log(mu(z)) / z`, mu the larger root in size of `mu^2 - (1 + b - z) mu + b`,
    by which heavy ball multiplies what is left of a direction when its velocity has settled. For
    `(1 - sqrt b)^2 < z < (1 + sqrt b)^2` the roots are a conjugate pair, and no slow direction
    exists: there alpha is that of the one with positive imaginary part, whose real part is a
    trajectory of heavy ball with another velocity at the start. Unstable from z = 2 (1 + b) on.

    Both are continued from real z <= 1 with the cut along `z = 1 + i r`, r > 0: `log` is analytic
    around real z > 1, with the value `log|1 - z| + i pi` there. The principal branch has its cut
    on that very line, where eigenvalues of a flow lie that starts from real parameters. At z = 1,
    where descent annihilates a direction in a step, `|1 - z|` counts as the type's epsilon.

    Args:
      z: `h lambda`, learning rate times eigenvalue; any shape, real or complex.
      momentum: b of heavy ball, `v' = b v + g`, `theta' = theta - h v`; 0 <= b < 1; may be
        traced. None for gradient descent.

    Returns:
      alpha, complex, in the precision of z; -1 at z = 0 (with momentum `-1 / (1 - b)`).

    Raises:
      ValueError: if momentum is out of range.

    Source: Rosca et al. (2023), section 3 and definition of the stability coefficient. With
    momentum it is not in the paper: the logarithm of heavy ball's recurrence.
    """
    check_momentum(momentum)
    z = _inexact(z)
    z = z.astype(jnp.result_type(z.dtype, jnp.complex64))
    if momentum is None:
        log, limit = _log1p(-z), -jnp.ones_like(z)
    else:
        log, limit = _log_slow_root(z, jnp.asarray(momentum, jnp.finfo(z.dtype).dtype))
    at_zero = z == 0
    return jnp.where(at_zero, limit, log / jnp.where(at_zero, 1, z))


def check_momentum(momentum: Any) -> None:
    """Refuses a momentum at which heavy ball forgets nothing, where its value is known.

    Args:
      momentum: b, or None.

    Raises:
      ValueError: naming it.
    """
    if momentum is None or isinstance(momentum, Tracer):
        return
    if np.ndim(momentum) != 0 or not 0 <= float(momentum) < 1:
        raise ValueError(
            f"momentum={momentum} must be a number in [0, 1): beyond, velocities never settle. "
            "None is gradient descent."
        )


def _inexact(z: Any) -> Array:
    z = jnp.asarray(z)
    return z if jnp.issubdtype(z.dtype, jnp.inexact) else z.astype(float)


def _log1p(d: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """`log(1 + d)` with its cut on the negative imaginary axis of `1 + d`; guarded at d = -1."""
    x, y = d.real, d.imag
    size = jnp.maximum(jnp.hypot(1 + x, y), jnp.finfo(x.dtype).eps)
    # Each where it has its digits: around 1 + d = 1 and around 1 + d = 0.
    near_one = size > 0.5
    small = jnp.where(near_one, x * (2 + x) + y**2, 0)
    real = jnp.where(near_one, jnp.log1p(small) / 2, jnp.log(size))
    # + 0.0: a negative zero as imaginary part would put real z > 1 on the other branch.
    angle = jnp.arctan2(y + 0.0, 1 + x)
    return jax.lax.complex(real, jnp.where(angle < -np.pi / 2, angle + 2 * np.pi, angle))


def _square_root(a: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """The square root with its cut on the negative imaginary axis."""
    root = jnp.sqrt(a)
    return jnp.where(jnp.angle(a) < -np.pi / 2, -root, root)


def _log_slow_root(
    z: Complex[Array, "..."], b: Float[Array, ""]
) -> tuple[Complex[Array, "..."], Complex[Array, "..."]]:
    """The logarithm of heavy ball's slow root, and its limit over z at z = 0."""
    p, q = 1 - b, 1 + b
    # As a product of roots it is continued through the conjugate pair to the larger one beyond.
    root = _square_root(q - z - 2 * jnp.sqrt(b)) * _square_root(q - z + 2 * jnp.sqrt(b))
    # mu = (q - z + root) / 2; as 1 + z slope it keeps its digits for small z.
    ahead = root.real >= 0
    slope = ((z - 2 * q) / jnp.where(ahead, root + p, 1) - 1) / 2
    minus_one = jnp.where(ahead, z * slope, (q - z + root) / 2 - 1)
    return _log1p(minus_one), jnp.full_like(z, -1 / p)
