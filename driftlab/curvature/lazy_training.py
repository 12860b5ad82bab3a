"""What a fixed tangent kernel predicts of training: residuals, rates and movement.

The loss is `L = 1/2 sum_i (u_i - y_i)^2`, a sum: with a mean over n examples a learning rate is n
times what it is here. The bounds are those of Du, Zhai, Poczos and Singh (2019) for the two-layer
ReLU network on inputs of norm 1, `lambda_0` the smallest eigenvalue of its kernel at infinite width
(`relu_kernel`, `smallest_eigenvalue`).
"""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from driftlab.curvature.factorizations import eigh


def linearized_residuals(
    gram: Float[Array, "n n"],
    residual: Float[Array, " n"],
    steps: Int[Array, " records"],
    learning_rate: ArrayLike,
    *,
    flow: bool = False,
) -> Float[Array, "records n"]:
    """The residuals `u_k - y` of a network whose tangent kernel never changes.

    Gradient descent: `(I - h K)^k (u_0 - y)`, which is stable for `h < 2 / lambda_max(K)`. Gradient
    flow at time `t = k h`: `exp(-h k K) (u_0 - y)`.

    Args:
      gram: K, symmetric; at infinite width or at initialisation.
      residual: `u_0 - y`.
      steps: the k, integers.
      learning_rate: h; may be traced.
      flow: gradient flow rather than descent.

    Returns:
      One residual a row, in the units of the outputs.

    Raises:
      ValueError: for shapes that do not fit, or a learning rate that is not positive.

    Source: Jacot, Gabriel and Hongler (2018), section 5; Lee et al. (2019), equations 10 and 11.
    Cost: an eigendecomposition, O(n^3), and O(n^2) a record; no gradient.
    """
    gram, residual, steps = jnp.asarray(gram), jnp.asarray(residual), jnp.asarray(steps)
    if gram.shape != 2 * residual.shape or residual.ndim != 1 or steps.ndim != 1:
        raise ValueError(
            "gram must be (n, n), residual (n,) and steps (records,); got "
            f"{gram.shape}, {residual.shape} and {steps.shape}."
        )
    if not jnp.issubdtype(steps.dtype, jnp.integer):
        raise ValueError(f"steps must be integers, numbers of iterations; got {steps.dtype}.")
    _check_positive("learning_rate", learning_rate)
    values, vectors = eigh(gram)
    coefficients = vectors.T @ residual
    scaled = learning_rate * values
    count = steps.astype(values.dtype)[:, None]
    # A power with a whole exponent, so that 1 - h lambda may be negative.
    factors = jnp.exp(-count * scaled[None]) if flow else jnp.power(1 - scaled[None], count)
    return (factors * coefficients[None]) @ vectors.T


def descent_bound(
    steps: Int[ArrayLike, "*records"], learning_rate: ArrayLike, least_eigenvalue: ArrayLike
) -> Float[Array, "*records"]:
    """The bound of theorem 4.1 on `|u_k - y|^2 / |u_0 - y|^2`: `(1 - h lambda_0 / 2)^k`.

    The fixed kernel itself gives `(1 - h lambda_0)^(2 k)` or faster. The theorem asks for a width
    of order n^6 / lambda_0^4 and a learning rate of order lambda_0 / n^2, far from where it is
    seen to hold.

    Args:
      steps: the k.
      learning_rate: h, of the sum of squares; may be traced.
      least_eigenvalue: lambda_0.

    Returns:
      In the shape of steps, without unit.

    Raises:
      ValueError: if learning_rate or least_eigenvalue is known and not positive.

    Source: Du, Zhai, Poczos and Singh (2019), theorem 4.1. Cost: none.
    """
    _check_positive("learning_rate", learning_rate)
    _check_positive("least_eigenvalue", least_eigenvalue)
    steps = jnp.asarray(steps)
    base = jnp.asarray(1 - learning_rate * jnp.asarray(least_eigenvalue) / 2)
    return jnp.power(base, steps.astype(base.dtype))


def flow_bound(
    times: Float[ArrayLike, "*records"], least_eigenvalue: ArrayLike
) -> Float[Array, "*records"]:
    """The bound of theorem 3.2 on `|u(t) - y|^2 / |u(0) - y|^2`: `exp(-lambda_0 t)`.

    Args:
      times: t, gradient flow's own: `k h` for iteration k of descent.
      least_eigenvalue: lambda_0.

    Returns:
      In the shape of times, without unit.

    Raises:
      ValueError: if least_eigenvalue is known and not positive.

    Source: Du, Zhai, Poczos and Singh (2019), theorem 3.2. Cost: none.
    """
    _check_positive("least_eigenvalue", least_eigenvalue)
    return jnp.exp(-jnp.asarray(least_eigenvalue) * jnp.asarray(times))


def movement_bound(
    residual_norm: ArrayLike,
    n: int,
    width: int,
    least_eigenvalue: ArrayLike,
    *,
    flow: bool = False,
) -> Float[Array, ""]:
    """A bound on how far any hidden unit moves: `4 sqrt(n) |u_0 - y| / (sqrt(m) lambda_0)`.

    A unit's gradient is at most `sqrt(n / m) |u - y|` for inputs of norm 1 and output weights of
    size 1; the bound sums it over the residuals that `descent_bound` or `flow_bound` allow. For
    gradient flow the factor is 2 in place of 4: the integral of `exp(-lambda_0 t / 2)`.

    Args:
      residual_norm: `|u_0 - y|`, not squared.
      n: examples.
      width: hidden units m.
      least_eigenvalue: lambda_0.
      flow: gradient flow rather than descent.

    Returns:
      In the units of the weights; of order 100 times what is measured.

    Raises:
      ValueError: if n, width or least_eigenvalue is known and not positive.

    Source: Du, Zhai, Poczos and Singh (2019), lemma 3.3 (whose constant differs: 1) and corollary
    4.1. Cost: none.
    """
    for name, value in (("n", n), ("width", width), ("least_eigenvalue", least_eigenvalue)):
        _check_positive(name, value)
    scale = (n / width) ** 0.5 * (2.0 if flow else 4.0)
    return scale * jnp.asarray(residual_norm) / jnp.asarray(least_eigenvalue)


def _check_positive(name: str, value: ArrayLike) -> None:
    """Raises where a known number is not positive; NaN passes, and gives NaN."""
    if isinstance(value, Tracer):
        return
    if np.any(np.asarray(value) <= 0):
        raise ValueError(f"{name}={value} must be positive.")
