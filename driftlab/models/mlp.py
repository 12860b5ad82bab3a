"""The multilayer perceptron."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.activations import Activation, activation_function
from driftlab.models.dense import Dense, flatten
from driftlab.models.initializers import Initialization, Scale


class MLP(nn.Module):
    """Fully connected layers with an activation between them; inputs are flattened.

    `h_0 = x`, `h_l = activation(h_{l-1} W_l + b_l)`, and the output layer has no activation.

    Attributes:
        widths: units of each hidden layer; empty for a linear model.
        num_outputs: outputs.
        activation: `tanh`, `relu`, `gelu`, `silu`, `elu`, `sigmoid`, `sin`, `identity`, or a
            function.
        use_bias: whether layers have biases.
        initialization: how weights start, see `models.initializer`.
        scale: multiplies all initial weights.
        bias_initialization: how biases start.
    """

    widths: Sequence[int]
    num_outputs: int
    activation: Activation = "tanh"
    use_bias: bool = True
    initialization: Initialization = "lecun_normal"
    scale: Scale = 1.0
    bias_initialization: Initialization = "zeros"

    @nn.compact
    def __call__(self, inputs: Inexact[Array, "batch ..."]) -> Inexact[Array, "batch outputs"]:
        """Computes the outputs.

        Args:
            inputs: examples of any shape along the first axis.

        Returns:
            One row of outputs an example.
        """
        activation = activation_function(self.activation)
        hidden = flatten(inputs)
        sizes = (*self.widths, self.num_outputs)
        for layer, size in enumerate(sizes):
            hidden = Dense(
                size,
                use_bias=self.use_bias,
                initialization=self.initialization,
                scale=self.scale,
                bias_initialization=self.bias_initialization,
                name=f"layer_{layer}",
            )(hidden)
            if layer < len(self.widths):
                hidden = activation(hidden)
        return hidden
