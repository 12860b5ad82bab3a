"""The fully connected layer that all models share."""

import math

from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.initializers import Initialization, Scale, initializer


def flatten(inputs: Inexact[Array, "batch ..."]) -> Inexact[Array, "batch features"]:
    """Turns each example into a row.

    Args:
        inputs: examples along the first axis.

    Returns:
        The same numbers, `(batch, features)`.
    """
    return inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))


class Dense(nn.Module):
    """A layer `x W + b`.

    Params: `kernel` W `(inputs, features)` and, with `use_bias`, `bias` b `(features,)`, in the
    type of the inputs that the layer is initialised with (flax's own layer would take float32).

    Attributes:
        features: outputs.
        use_bias: whether there is a b.
        initialization: how W starts, see `models.initializer`.
        scale: multiplies the initial W.
        bias_initialization: how b starts.
    """

    features: int
    use_bias: bool = True
    initialization: Initialization = "lecun_normal"
    scale: Scale = 1.0
    bias_initialization: Initialization = "zeros"

    @nn.compact
    def __call__(self, inputs: Inexact[Array, "batch inputs"]) -> Inexact[Array, "batch features"]:
        """Applies the layer.

        Args:
            inputs: one row an example.

        Returns:
            One row an example.
        """
        shape = (inputs.shape[-1], self.features)
        kernel = self.param(
            "kernel", initializer(self.initialization, self.scale), shape, inputs.dtype
        )
        outputs = inputs @ kernel
        if self.use_bias:
            start = initializer(self.bias_initialization)
            bias = self.param("bias", start, (self.features,), inputs.dtype)
            outputs = outputs + bias.reshape(1, self.features)
        return outputs
