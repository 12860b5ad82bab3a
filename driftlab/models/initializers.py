"""Initial values of weights, by name and with a scale: both are settings of an experiment."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Inexact, Key

Initializer = Callable[..., Inexact[Array, "..."]]
Initialization = str | Initializer
Scale = float | Float[Array, ""]

INITIALIZATIONS = {
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
    "he_normal": nn.initializers.he_normal(),
    "he_uniform": nn.initializers.he_uniform(),
    "glorot_normal": nn.initializers.glorot_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "orthogonal": nn.initializers.orthogonal(),
    "standard_normal": jax.random.normal,
    "zeros": nn.initializers.zeros,
}


def initializer(initialization: Initialization, scale: Scale = 1.0) -> Initializer:
    """Makes the function that draws initial weights.

    With n_in and n_out the inputs and outputs of a unit (times the size of the kernel in a
    convolution), the variances are: `lecun` 1 / n_in, `he` 2 / n_in, `glorot` 2 / (n_in + n_out),
    `standard_normal` 1. The `normal` forms of the first three are cut off at two standard
    deviations. `orthogonal` draws a matrix with orthonormal rows or columns.

    Args:
        initialization: one of the names above with `_normal` or `_uniform`, `standard_normal`,
            `orthogonal` or `zeros`; or a function `(key, shape, dtype) -> weights`.
        scale: multiplies the weights; may be a traced array, so that it can be swept.

    Returns:
        A function `(key, shape, dtype) -> weights`.

    Raises:
        ValueError: an unknown name.

    Source: LeCun et al., 1998; He et al., 2015; Glorot and Bengio, 2010; Saxe et al., 2014.
    """
    if isinstance(initialization, str):
        if initialization not in INITIALIZATIONS:
            raise ValueError(
                f"initialization={initialization!r} is not known; choose from "
                f"{', '.join(INITIALIZATIONS)} or pass a function (key, shape, dtype)"
            )
        draw = INITIALIZATIONS[initialization]
    else:
        draw = initialization

    def scaled(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
        return (scale * draw(key, shape, dtype)).astype(dtype)

    return scaled
