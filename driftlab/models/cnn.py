"""Small convolutional networks: a configurable one, and LeNet-5."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.activations import Activation, activation_function
from driftlab.models.convolution import Convolution
from driftlab.models.dense import Dense, flatten
from driftlab.models.initializers import Initialization, Scale
from driftlab.models.pooling import average_pool, max_pool
from driftlab.models.windows import Pair

POOLINGS = {"none": lambda inputs: inputs, "max": max_pool, "average": average_pool}


class CNN(nn.Module):
    """Convolutions with activations, each followed by 2 x 2 pooling if wanted, then dense layers.

    The default, two 3 x 3 convolutions of stride 2 with 16 and 32 channels, is the network of
    driftlab's benchmarks. `CNN(channels=(16, 20, 20), kernel_size=5, strides=1, pooling="max")` is
    the CIFAR-10 network of Yaida (2019), with 22,466 params.

    Attributes:
        num_outputs: outputs.
        channels: output channels of each convolution.
        kernel_size: one size, or height and width.
        strides: stride of each convolution.
        padding: `SAME` or `VALID`.
        pooling: `none`, `max` or `average`, over 2 x 2 windows after each activation.
        dense_widths: units of the hidden dense layers.
        activation: name or function, see `models.activation_function`.
        use_bias: whether layers have biases.
        initialization: how weights start, see `models.initializer`.
        scale: multiplies all initial weights.
        method: `auto`, `shift` or `lax`, see `models.convolution`.
    """

    num_outputs: int
    channels: Sequence[int] = (16, 32)
    kernel_size: Pair = 3
    strides: Pair = 2
    padding: str = "SAME"
    pooling: str = "none"
    dense_widths: Sequence[int] = ()
    activation: Activation = "relu"
    use_bias: bool = True
    initialization: Initialization = "lecun_normal"
    scale: Scale = 1.0
    method: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Inexact[Array, "batch height width channels"]
    ) -> Inexact[Array, "batch outputs"]:
        """Computes the outputs.

        Args:
            inputs: images, channels last.

        Returns:
            One row of outputs an image.

        Raises:
            ValueError: an unknown name, or images too small for the layers.
        """
        activation = activation_function(self.activation)
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling={self.pooling!r} is not known; choose from {', '.join(POOLINGS)}"
            )
        start = {"initialization": self.initialization, "scale": self.scale}
        hidden = inputs
        for layer, channels in enumerate(self.channels):
            hidden = Convolution(
                channels,
                kernel_size=self.kernel_size,
                strides=self.strides,
                padding=self.padding,
                use_bias=self.use_bias,
                method=self.method,
                name=f"convolution_{layer}",
                **start,
            )(hidden)
            hidden = POOLINGS[self.pooling](activation(hidden))
        hidden = flatten(hidden)
        for layer, width in enumerate(self.dense_widths):
            dense = Dense(width, use_bias=self.use_bias, name=f"dense_{layer}", **start)
            hidden = activation(dense(hidden))
        return Dense(self.num_outputs, use_bias=self.use_bias, name="output", **start)(hidden)


class LeNet5(nn.Module):
    """LeNet-5 with dense connections between channels and a linear output layer.

    Convolution 5 x 5 to 6 channels (`SAME`), pooling, convolution 5 x 5 to 16 channels (`VALID`),
    pooling, dense layers of 120 and 84 units; average pooling over 2 x 2 windows. 61,706 params for
    28 x 28 grey images. Images must be at least 12 x 12.

    Attributes:
        num_outputs: outputs.
        activation: name or function, see `models.activation_function`.
        initialization: how weights start, see `models.initializer`.
        scale: multiplies all initial weights.
        method: `auto`, `shift` or `lax`, see `models.convolution`.

    Source: LeCun, Bottou, Bengio and Haffner, 1998.
    """

    num_outputs: int = 10
    activation: Activation = "tanh"
    initialization: Initialization = "lecun_normal"
    scale: Scale = 1.0
    method: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Inexact[Array, "batch height width channels"]
    ) -> Inexact[Array, "batch outputs"]:
        """Computes the outputs.

        Args:
            inputs: images, channels last.

        Returns:
            One row of outputs an image.

        Raises:
            ValueError: images smaller than 12 x 12, or an unknown name.
        """
        if min(inputs.shape[1:3]) < 12:
            raise ValueError(
                f"LeNet5 needs images of at least 12 x 12 pixels, found {inputs.shape[1:3]}; "
                "a CNN takes smaller ones"
            )
        activation = activation_function(self.activation)
        start = {"initialization": self.initialization, "scale": self.scale}
        hidden = inputs
        for layer, (channels, padding) in enumerate([(6, "SAME"), (16, "VALID")]):
            hidden = Convolution(
                channels,
                kernel_size=5,
                padding=padding,
                method=self.method,
                name=f"convolution_{layer}",
                **start,
            )(hidden)
            hidden = average_pool(activation(hidden))
        hidden = flatten(hidden)
        for layer, width in enumerate((120, 84)):
            hidden = activation(Dense(width, name=f"dense_{layer}", **start)(hidden))
        return Dense(self.num_outputs, name="output", **start)(hidden)
