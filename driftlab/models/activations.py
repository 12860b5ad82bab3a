"""Activation functions by name, in forms that every transformation of JAX can differentiate.

JAX's own `relu` carries a custom derivative that Taylor mode (`jax.experimental.jet`) fails on, and
modified equations need derivatives of high order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

Activation = str | Callable[[Inexact[Array, "..."]], Inexact[Array, "..."]]


def relu(inputs: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Computes `max(x, 0)` with derivative 0 at 0.

    Args:
        inputs: any array.

    Returns:
        The positive part; NaN stays NaN, so that a diverged network shows.
    """
    return jnp.where(inputs <= 0, jnp.zeros_like(inputs), inputs)


def identity(inputs: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Returns its argument, which makes a network linear.

    Args:
        inputs: any array.

    Returns:
        The same array.
    """
    return inputs


ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "sigmoid": jax.nn.sigmoid,
    "sin": jnp.sin,
    "identity": identity,
}


def activation_function(
    activation: Activation,
) -> Callable[[Inexact[Array, "..."]], Inexact[Array, "..."]]:
    """Looks up an activation function.

    Args:
        activation: `tanh`, `relu`, `gelu` (its tanh form), `silu`, `elu`, `sigmoid`, `sin`,
            `identity`, or a function of an array.

    Returns:
        The function.

    Raises:
        ValueError: an unknown name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is not known; choose from {', '.join(ACTIVATIONS)} or pass "
            "a function"
        )
    return ACTIVATIONS[activation]
