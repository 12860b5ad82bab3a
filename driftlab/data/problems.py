"""Small problems with known answers, on which theory is compared with optimisers.

Parameters are arrays, `loss(params, batch=None)` ignores the batch, and every type follows the
inputs: float64 arguments make a float64 problem (with `jax_enable_x64`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, PyTree

from driftlab.data.dataset import Batch

# What becomes a vector of params: an array or a sequence of numbers.
Vector = Num[Array | np.ndarray, " n"] | Sequence[float]

# Minimiser of `perturbed_rosenbrock`, by Newton's method in extended precision.
_PERTURBED_MINIMIZER = (1.20910186700807620, 1.53104662797790048)
_PERTURBED_START = (0.3, -0.4)


class Problem(NamedTuple):
    """A loss with a starting point and the answer.

    Attributes:
        name: what to call it in a figure.
        loss: `(params, batch=None) -> scalar`; the batch is ignored.
        initial_params: where to start.
        minimizer: a global minimiser of the loss.
    """

    name: str
    loss: Callable[..., Float[Array, ""]]
    initial_params: PyTree[Float[Array, "..."]]
    minimizer: PyTree[Float[Array, "..."]]


def quadratic(
    eigenvalues: Vector,
    rotation_key: Key[Array, ""] | None = None,
    initial: Vector | None = None,
) -> Problem:
    """Makes the quadratic `E(x) = x^T H x / 2` with the given eigenvalues of H.

    Gradient descent with learning rate h multiplies eigencoordinate i by `1 - h lambda_i` a step.
    The principal-flow paper's example `E = x^T diag(1, 0.01) x` is
    `quadratic((2.0, 0.02), initial=(-0.35, -0.2))`: its Hessian is twice its matrix.

    Args:
        eigenvalues: eigenvalues of the Hessian, `(n,)`.
        rotation_key: draws the eigenvectors uniformly (Haar); None takes the coordinate axes.
        initial: starting point, `(n,)`; None starts every eigencoordinate at 1.

    Returns:
        The problem; its minimiser is 0 (a saddle or a line if an eigenvalue is not positive).
    """
    eigenvalues = _floating(eigenvalues)
    size = eigenvalues.shape[0]
    if rotation_key is None:
        eigenvectors = jnp.eye(size, dtype=eigenvalues.dtype)
    else:
        eigenvectors = jax.random.orthogonal(rotation_key, size, dtype=eigenvalues.dtype)
    start = jnp.sum(eigenvectors, axis=1) if initial is None else _floating(initial)

    def loss(params: Float[Array, " n"], batch: object = None) -> Float[Array, ""]:
        del batch
        return jnp.sum(eigenvalues * jnp.square(eigenvectors.T @ params)) / 2

    return Problem("quadratic", loss, start, jnp.zeros_like(start))


def rosenbrock(
    a: float | Float[Array, ""] = 1.0,
    b: float | Float[Array, ""] = 100.0,
    initial: Vector = (-1.2, 1.0),
) -> Problem:
    """Makes Rosenbrock's curved valley, `E(x, y) = (a - x)^2 + b (y - x^2)^2`.

    Args:
        a: where along the valley the minimum is.
        b: how steep the walls are; the Hessian at the minimum of a = 1 has determinant 4 b.
        initial: starting point.

    Returns:
        The problem; its minimiser is `(a, a^2)` with loss 0.

    Source: Rosenbrock, 1960.
    """
    start = _floating(initial)

    def loss(params: Float[Array, " 2"], batch: object = None) -> Float[Array, ""]:
        del batch
        x, y = params[0], params[1]
        return (a - x) ** 2 + b * (y - x**2) ** 2

    minimizer = jnp.stack([jnp.asarray(a, start.dtype), jnp.asarray(a, start.dtype) ** 2])
    return Problem("rosenbrock", loss, start, minimizer)


def perturbed_rosenbrock(
    initial: Vector = _PERTURBED_START,
) -> Problem:
    """Makes a mild banana-shaped valley with non-zero derivatives of every order.

    `E(x, y) = (1 - x)^2 / 2 + 3 (y - x^2)^2 / 2 + 3 sin(2 x + y) / 10 + x^4 / 10`. The Hessian at
    the default start has eigenvalues 1.76252 and 6.06748. The sine keeps high-order terms of
    modified equations from vanishing by accident, which a polynomial does not.

    Args:
        initial: starting point.

    Returns:
        The problem; its minimiser is known to float64 precision.

    Source: driftlab's own reference problem for orders of convergence.
    """
    start = _floating(initial)

    def loss(params: Float[Array, " 2"], batch: object = None) -> Float[Array, ""]:
        del batch
        x, y = params[0], params[1]
        valley = 0.5 * (1 - x) ** 2 + 1.5 * (y - x**2) ** 2
        return valley + 0.3 * jnp.sin(2 * x + y) + 0.1 * x**4

    minimizer = jnp.asarray(_PERTURBED_MINIMIZER, start.dtype)
    return Problem("perturbed_rosenbrock", loss, start, minimizer)


def quartic(
    quadratic_coefficients: Vector,
    quartic_coefficients: Vector,
    initial: Vector | None = None,
) -> Problem:
    """Makes the separable quartic `E(x) = sum_i (a_i x_i^2 / 2 + b_i x_i^4 / 4)`.

    The curvature is `a_i + 3 b_i x_i^2`. Gradient descent with learning rate h has an orbit of
    period two at `x_i^2 = (2 - h a_i) / (h b_i)`: where the curvature falls away from 0 (b_i < 0)
    it is attracting for `2 < h a_i < 3`, the simplest edge of stability; where it grows (b_i > 0)
    it is the boundary beyond which gradient descent diverges.

    Args:
        quadratic_coefficients: a, `(n,)`, the eigenvalues of the Hessian at 0.
        quartic_coefficients: b, `(n,)`.
        initial: starting point, `(n,)`; None starts at ones.

    Returns:
        The problem; its minimiser is 0 (only a local one where a b_i is negative).
    """
    second, fourth = _floating(quadratic_coefficients), _floating(quartic_coefficients)
    start = jnp.ones_like(second) if initial is None else _floating(initial)

    def loss(params: Float[Array, " n"], batch: object = None) -> Float[Array, ""]:
        del batch
        return jnp.sum(second * params**2 / 2 + fourth * params**4 / 4)

    return Problem("quartic", loss, start, jnp.zeros_like(start))


def two_layer_linear(left: Vector, right: Vector) -> Problem:
    """Makes the one-example linear network of the catapult, `E = f^2 / 2`, `f = u.v / sqrt(m)`.

    With `k = (|u|^2 + |v|^2) / m` gradient descent obeys exactly
    `f' = f (1 - h k + h^2 f^2 / m)` and `k' = k + h f^2 (h k - 4) / m`: between `2 / k` and `4 / k`
    the loss first rises, then converges at a smaller k.

    Args:
        left: u at the start, `(m,)`.
        right: v at the start, `(m,)`.

    Returns:
        The problem, with params `{"left": u, "right": v}`; 0 is one of its minimisers.

    Source: Lewkowycz, Bahri, Dyer, Sohl-Dickstein and Gur-Ari, 2020.
    """
    start = {"left": _floating(left), "right": _floating(right)}
    width = start["left"].shape[0]

    def loss(params: dict[str, Float[Array, " width"]], batch: object = None) -> Float[Array, ""]:
        del batch
        return jnp.dot(params["left"], params["right"]) ** 2 / (2 * width)

    return Problem("two_layer_linear", loss, start, jax.tree.map(jnp.zeros_like, start))


def separable_classification(
    key: Key[Array, ""],
    n: int,
    dimension: int,
    margin: float | Float[Array, ""],
) -> Batch:
    """Draws two classes that a hyperplane through 0 separates with a given margin.

    `x = z + margin * y * w` with z standard normal, w uniform on the unit sphere and
    `y = sign(w.z)`, so that `y (w.x) >= margin` for every example.

    Args:
        key: randomness.
        n: examples.
        dimension: features.
        margin: distance of the closest possible example from the hyperplane, not negative.

    Returns:
        Inputs `(n, dimension)` and targets -1 or +1 `(n,)`, in the default floating type.
    """
    direction_key, input_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, (dimension,))
    direction = direction / jnp.linalg.norm(direction)
    inputs = jax.random.normal(input_key, (n, dimension))
    targets = jnp.where(inputs @ direction >= 0, 1.0, -1.0).astype(inputs.dtype)
    return Batch(inputs + margin * jnp.outer(targets, direction), targets)


def linear_regression(
    key: Key[Array, ""],
    n: int,
    dimension: int,
    noise: float | Float[Array, ""] = 0.0,
) -> Batch:
    """Draws `y = w.x + noise * e` with standard normal x and e, and w of expected norm 1.

    Args:
        key: randomness.
        n: examples.
        dimension: features.
        noise: standard deviation of the noise in the targets.

    Returns:
        Inputs `(n, dimension)` and targets `(n,)`, in the default floating type.
    """
    weight_key, input_key, noise_key = jax.random.split(key, 3)
    weights = jax.random.normal(weight_key, (dimension,)) / jnp.sqrt(1.0 * dimension)
    inputs = jax.random.normal(input_key, (n, dimension))
    targets = inputs @ weights + noise * jax.random.normal(noise_key, (n,))
    return Batch(inputs, targets)


def _floating(values: Vector) -> Float[Array, " n"]:
    """Makes an array, turning integers into the default floating type."""
    array = jnp.asarray(values)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
