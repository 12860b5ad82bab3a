"""The over-parameterised two-layer network of the neural-tangent-kernel literature."""

import math

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float64, Inexact

from driftlab.models.activations import relu
from driftlab.models.dense import flatten
from driftlab.models.initializers import Initialization, Scale, initializer


def output_signs(width: int, num_outputs: int, seed: int) -> Float64[np.ndarray, "width outputs"]:
    """Draws the fixed signs of a `TwoLayerReLU`.

    Args:
        width: hidden units.
        num_outputs: outputs.
        seed: not negative.

    Returns:
        -1 or +1 with equal probability, the same for the same arguments on every machine.
    """
    return 2.0 * np.random.RandomState(seed).randint(0, 2, (width, num_outputs)) - 1.0


class TwoLayerReLU(nn.Module):
    """A hidden layer of rectifiers with fixed output signs; only the hidden weights are trained.

    `f_k(x) = 1 / sqrt(m) sum_r a_rk relu(w_r . x)` with `w_r ~ N(0, I)` and `a_rk` uniform on
    {-1, +1}. The signs are not params: they follow from `sign_seed` alone, so that every key draws
    other weights for the same signs. The rectifier's derivative at 0 is 0.

    Params: `kernel` `(inputs, width)`, whose columns are the w_r.

    Attributes:
        width: hidden units m.
        num_outputs: outputs; the theory has 1.
        sign_seed: seed of the signs, not negative.
        initialization: how the weights start, see `models.initializer`.
        scale: multiplies the initial weights.

    Source: Du, Zhai, Poczos and Singh, 2019.
    """

    width: int
    num_outputs: int = 1
    sign_seed: int = 0
    initialization: Initialization = "standard_normal"
    scale: Scale = 1.0

    @nn.compact
    def __call__(self, inputs: Inexact[Array, "batch ..."]) -> Inexact[Array, "batch outputs"]:
        """Computes the outputs.

        Args:
            inputs: examples of any shape along the first axis; the theory has unit norms.

        Returns:
            One row of outputs an example.
        """
        inputs = flatten(inputs)
        kernel = self.param(
            "kernel",
            initializer(self.initialization, self.scale),
            (inputs.shape[1], self.width),
            inputs.dtype,
        )
        signs = output_signs(self.width, self.num_outputs, self.sign_seed) / math.sqrt(self.width)
        hidden = relu(inputs @ kernel)
        return hidden @ signs.astype(hidden.dtype)
