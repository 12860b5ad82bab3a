"""Gradient descent on deep linear networks with the step sizes for which alignment is proved."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from driftlab.hyperparameters import check_positive
from driftlab.objective import Params


class DeepLinearDescentState(NamedTuple):
    """The state of `deep_linear_descent`.

    Attributes:
      learning_rate: eta of the last step; 0 before the first.
    """

    learning_rate: Float[Array, ""]


def risk_smoothness(
    radius: ArrayLike, depth: int, smoothness: ArrayLike = 0.25, lipschitz: ArrayLike = 1.0
) -> Any:
    """How smooth the risk is inside a ball, `beta(R) = 2 L^2 R^{2 L - 2} (beta + G)`.

    Args:
      radius: R, at least 1: no matrix has a larger Frobenius norm.
      depth: L.
      smoothness: beta, the largest second derivative of the loss of a margin; 1/4 for logistic.
      lipschitz: G, its largest slope; 1 for logistic.

    Returns:
      The largest eigenvalue of the risk's Hessian there, at most, for inputs of norm up to 1.

    Source: Ji & Telgarsky (2019), section 3.
    """
    return 2 * depth**2 * radius ** (2 * depth - 2) * (smoothness + lipschitz)


def deep_linear_descent(
    smoothness: ArrayLike = 0.25,
    lipschitz: ArrayLike = 1.0,
    largest: ArrayLike = 1.0,
) -> optax.GradientTransformation:
    """Gradient descent with `eta_t = min(1 / beta(R_t), largest)`, R_t a ball that it cannot leave.

    `R_t = max(1, max_k |W_k(t)|_F + 1 / (2 L^2))`: a step of that size moves no matrix by more than
    `1 / (2 L^2)`, since `|G_k|_F <= G R^{L-1}`. So the next iterate is in the ball too, the risk
    falls by `eta_t / 2 |grad|^2` or more in every step, and
    `sum_t eta_t^2 |grad_t|^2 <= 2 risk(0)`. It assumes inputs of norm at most 1, which nothing
    here can see. eta falls like `|W|^{2 - 2 L}`: safe, and slow.

    Args:
      smoothness: beta of the loss of a margin: 1/4 for the logistic one. (The exponential one has
        none.)
      lipschitz: G, likewise: 1.
      largest: of all steps; the proof has 1.

    Returns:
      A transformation of gradients of a network whose params are its matrices; its update needs
      params. Its state holds the last eta.

    Raises:
      ValueError: for a known argument that is not positive; from `init`, for a parameter that is
        no matrix.

    Source: Ji & Telgarsky (2019), section 3, assumption on the step sizes; how R_t is chosen is
    driftlab's own. Cost: the norms of the params.
    """
    for name, value in (
        ("smoothness", smoothness),
        ("lipschitz", lipschitz),
        ("largest", largest),
    ):
        check_positive(name, value)

    def init(params: Params) -> DeepLinearDescentState:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if jnp.ndim(leaf) != 2:
                raise ValueError(
                    f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}: the step "
                    "sizes are those of a product of matrices, without biases (use_bias=False)."
                )
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return DeepLinearDescentState(jnp.zeros((), dtype))

    def update(
        updates: Params, state: Any, params: Params | None = None
    ) -> tuple[Params, DeepLinearDescentState]:
        if params is None:
            raise ValueError("deep_linear_descent needs params: tx.update(updates, state, params).")
        matrices = jax.tree.leaves(params)
        depth, dtype = len(matrices), state.learning_rate.dtype
        size = jnp.stack([jnp.linalg.norm(matrix).astype(dtype) for matrix in matrices]).max()
        radius = jnp.maximum(size + 1 / (2 * depth**2), 1)
        rate = jnp.minimum(1 / risk_smoothness(radius, depth, smoothness, lipschitz), largest)
        rate = rate.astype(dtype)
        steps = jax.tree.map(lambda slope: -rate.astype(slope.dtype) * slope, updates)
        return steps, DeepLinearDescentState(rate)

    return optax.GradientTransformation(init, update)
