"""Generators and discriminators of generative adversarial networks, for images of three sizes.

None keeps running averages: a player's loss must be a pure function of both players' parameters,
or there would be no gradient field whose drift one could ask for. So normalisation, where wanted,
is `driftlab.models.Normalization` (of the batch at hand), and the default is none.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Inexact, PyTree

from driftlab.models.activations import Activation, activation_function
from driftlab.models.convolution import Convolution, convolution
from driftlab.models.dense import Dense, flatten
from driftlab.models.initializers import Initialization
from driftlab.models.mlp import MLP
from driftlab.models.normalization import Normalization
from driftlab.models.transposed import TransposedConvolution


class GANNetworks(NamedTuple):
    """The two networks of a generative adversarial network.

    Attributes:
      generator: latents `(batch, latent_size)` -> images `(batch, height, width, channels)`.
      discriminator: images -> one score an image, `(batch, 1)`; positive means real.
    """

    generator: nn.Module
    discriminator: nn.Module


def leaky_relu(inputs: Inexact[Array, "..."], slope: float = 0.1) -> Inexact[Array, "..."]:
    """`x` where it is positive, else `slope * x`; the derivative at 0 is the slope.

    Args:
      inputs: any array.
      slope: of the negative side.

    Returns:
      The same shape; NaN stays NaN.
    """
    return jnp.where(inputs <= 0, slope * inputs, inputs)


class MLPGenerator(nn.Module):
    """A multilayer perceptron from latents to images.

    Attributes:
      image_shape: `(height, width, channels)`.
      widths: units of each hidden layer.
      activation: of the hidden layers.
      output_activation: of the pixels; `tanh` for images from -1 to 1, `sigmoid` from 0 to 1.
      initialization: how weights start, see `models.initializer`.
    """

    image_shape: Sequence[int]
    widths: Sequence[int] = (128, 128)
    activation: Activation = "relu"
    output_activation: Activation = "tanh"
    initialization: Initialization = "he_normal"

    @nn.compact
    def __call__(
        self, latents: Inexact[Array, "batch latent"]
    ) -> Inexact[Array, "batch height width channels"]:
        """Makes images.

        Args:
          latents: standard normal, one row an image.

        Returns:
          The images.
        """
        height, width, channels = self.image_shape
        mlp = MLP(
            self.widths,
            height * width * channels,
            activation=self.activation,
            initialization=self.initialization,
            name="layers",
        )
        images = mlp(latents).reshape(latents.shape[0], height, width, channels)
        return activation_function(self.output_activation)(images)


class ConvolutionalGenerator(nn.Module):
    """A dense layer to a small image, then transposed convolutions that double it each.

    Attributes:
      image_shape: `(height, width, channels)`; height and width divisible by 2 to the number of
        doublings.
      channels: of the small image, then of each enlarged one.
      kernel_size: of the transposed convolutions.
      last_kernel_size: of the last layer, to the pixels.
      last_doubles: whether the last layer doubles the image as well, or is a plain convolution.
      normalization: `none`, `batch`, `layer` or `group`, behind every layer but the last.
      activation: of the hidden layers.
      output_activation: of the pixels.
      initialization: how weights start.
      method: `auto`, `shift` or `lax`, see `models.convolution`.
    """

    image_shape: Sequence[int]
    channels: Sequence[int]
    kernel_size: int = 4
    last_kernel_size: int = 3
    last_doubles: bool = False
    normalization: str = "none"
    activation: Activation = "relu"
    output_activation: Activation = "tanh"
    initialization: Initialization = "he_normal"
    method: str = "auto"

    @nn.compact
    def __call__(
        self, latents: Inexact[Array, "batch latent"]
    ) -> Inexact[Array, "batch height width channels"]:
        """Makes images.

        Args:
          latents: standard normal, one row an image.

        Returns:
          The images.

        Raises:
          ValueError: if the doublings do not divide the image.
        """
        height, width, pixels = self.image_shape
        factor = 2 ** (len(self.channels) - 1 + self.last_doubles)
        if height % factor or width % factor:
            raise ValueError(
                f"image_shape={tuple(self.image_shape)}: {len(self.channels)} stages of channels "
                f"double the image to multiples of {factor}; give fewer stages"
            )
        activation = activation_function(self.activation)
        start: dict[str, Any] = {"initialization": self.initialization}
        small = (height // factor, width // factor, self.channels[0])
        hidden = Dense(small[0] * small[1] * small[2], name="dense", **start)(latents)
        hidden = hidden.reshape(latents.shape[0], *small)
        hidden = activation(Normalization(self.normalization, name="normalization_0")(hidden))
        for stage, channels in enumerate(self.channels[1:], start=1):
            hidden = TransposedConvolution(
                channels,
                kernel_size=self.kernel_size,
                method=self.method,
                name=f"transposed_{stage}",
                **start,
            )(hidden)
            hidden = Normalization(self.normalization, name=f"normalization_{stage}")(hidden)
            hidden = activation(hidden)
        last = TransposedConvolution if self.last_doubles else Convolution
        images = last(
            pixels, kernel_size=self.last_kernel_size, method=self.method, name="pixels", **start
        )(hidden)
        return activation_function(self.output_activation)(images)


class ConvolutionalDiscriminator(nn.Module):
    """Convolutions with leaky rectifiers, then a dense layer to one score.

    Attributes:
      channels: of each convolution.
      kernel_sizes: one for all, or one each.
      strides: one for all, or one each.
      slope: of the rectifiers' negative side.
      normalization: `none`, `batch`, `layer` or `group`, behind every convolution but the first.
      initialization: how weights start.
      method: `auto`, `shift` or `lax`, see `models.convolution`.
    """

    channels: Sequence[int]
    kernel_sizes: int | Sequence[int] = 5
    strides: int | Sequence[int] = 2
    slope: float = 0.2
    normalization: str = "none"
    initialization: Initialization = "he_normal"
    method: str = "auto"

    @nn.compact
    def __call__(
        self, images: Inexact[Array, "batch height width channels"]
    ) -> Inexact[Array, "batch 1"]:
        """Scores images.

        Args:
          images: channels last.

        Returns:
          One score an image; positive means real.

        Raises:
          ValueError: if kernel sizes or strides are not one for each convolution.
        """
        sizes = _one_each("kernel_sizes", self.kernel_sizes, len(self.channels))
        strides = _one_each("strides", self.strides, len(self.channels))
        hidden = images
        for layer, channels in enumerate(self.channels):
            hidden = Convolution(
                channels,
                kernel_size=sizes[layer],
                strides=strides[layer],
                initialization=self.initialization,
                method=self.method,
                name=f"convolution_{layer}",
            )(hidden)
            kind = self.normalization if layer else "none"
            hidden = Normalization(kind, name=f"normalization_{layer}")(hidden)
            hidden = leaky_relu(hidden, self.slope)
        # The score starts near 0: a discriminator that is sure at once teaches nothing.
        return Dense(1, initialization="lecun_normal", name="score")(flatten(hidden))


def mlp_gan(
    image_shape: Sequence[int] = (8, 8, 1),
    widths: Sequence[int] = (128, 128),
    output_activation: Activation = "tanh",
) -> GANNetworks:
    """Two multilayer perceptrons, for small images such as the 8 x 8 digits.

    Args:
      image_shape: `(height, width, channels)`.
      widths: units of each hidden layer, of the generator; the discriminator's are reversed.
      output_activation: of the pixels.

    Returns:
      The networks.
    """
    discriminator = MLP(
        tuple(reversed(widths)), 1, activation=leaky_relu, initialization="he_normal"
    )
    generator = MLPGenerator(tuple(image_shape), tuple(widths), output_activation=output_activation)
    return GANNetworks(generator, discriminator)


def dcgan(
    image_shape: Sequence[int] = (28, 28, 1), width: float = 1.0, normalization: str = "none"
) -> GANNetworks:
    """Deep convolutional networks for images of 28 x 28 pixels or so.

    Generator: dense to height / 4 x width / 4 x 128, transposed 5 x 5 convolutions of stride 2 to
    64 channels and to the pixels. Discriminator: 5 x 5 convolutions of stride 2 to 64 and 128
    channels, leaky rectifiers of slope 0.2.

    Args:
      image_shape: `(height, width, channels)`, height and width divisible by 4.
      width: multiplies all channels; 0.25 is small enough for a CPU.
      normalization: as of the networks.

    Returns:
      The networks.

    Source: after Radford, Metz & Chintala (2016), with batch normalisation optional.
    """
    generator = ConvolutionalGenerator(
        tuple(image_shape),
        _widened((128, 64), width),
        kernel_size=5,
        last_kernel_size=5,
        last_doubles=True,
        normalization=normalization,
    )
    discriminator = ConvolutionalDiscriminator(
        _widened((64, 128), width), normalization=normalization
    )
    return GANNetworks(generator, discriminator)


def sngan(
    image_shape: Sequence[int] = (32, 32, 3), width: float = 1.0, normalization: str = "none"
) -> GANNetworks:
    """The networks of spectrally normalised GANs for images of 32 x 32 pixels.

    Generator: dense to 4 x 4 x 512, transposed 4 x 4 convolutions of stride 2 to 256, 128 and 64
    channels, a 3 x 3 convolution to the pixels. Discriminator: convolutions to 64, 64, 128, 128,
    256, 256 and 512 channels with strides 1, 2, 1, 2, 1, 2, 1 and kernels of 3 x 3 (stride 1) and
    4 x 4 (stride 2), slope 0.1. The spectral normalisation is a transform of the discriminator's
    parameters: `driftlab.regularizers.spectral_norm`.

    Args:
      image_shape: `(height, width, channels)`, height and width divisible by 8.
      width: multiplies all channels.
      normalization: of the generator; the published one is `batch`, with running averages.

    Returns:
      The networks.

    Source: Miyato, Kataoka, Koyama & Yoshida (2018), table 3; Rosca et al. (2021), appendix.
    """
    generator = ConvolutionalGenerator(
        tuple(image_shape), _widened((512, 256, 128, 64), width), normalization=normalization
    )
    discriminator = ConvolutionalDiscriminator(
        _widened((64, 64, 128, 128, 256, 256, 512), width),
        kernel_sizes=(3, 4, 3, 4, 3, 4, 3),
        strides=(1, 2, 1, 2, 1, 2, 1),
        slope=0.1,
    )
    return GANNetworks(generator, discriminator)


def _widened(channels: Sequence[int], width: float) -> tuple[int, ...]:
    if not width > 0:
        raise ValueError(f"width={width} must be positive: it multiplies the channels")
    return tuple(max(1, round(width * number)) for number in channels)


def _one_each(name: str, given: int | Sequence[int], count: int) -> tuple[int, ...]:
    each = (given,) * count if isinstance(given, int) else tuple(given)
    if len(each) != count:
        raise ValueError(f"{name}={given} must be one integer, or {count}: one each convolution")
    return each


def convolution_layers(
    model: nn.Module, params: PyTree, images: Inexact[Array, "batch height width channels"]
) -> dict[str, tuple[Callable[[Array, Array], Array], tuple[int, int, int]]]:
    """The convolutions of a network as linear maps, for their true operator norms.

    Args:
      model: a network of `driftlab.models.Convolution` layers.
      params: its parameters.
      images: a batch that shows the shape of the inputs; nothing is computed.

    Returns:
      Path of the layer's kernel in params, joined by "/" -> `(apply, input_shape)`, with
      `apply(kernel, image)` linear in both, as
      `driftlab.regularizers.spectral_norm.spectral_normalize` takes them.
    """
    found: dict[str, Any] = {}

    def look(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, Convolution) and context.method_name == "__call__":
            strides, padding, method = layer.strides, layer.padding, layer.method

            def apply(kernel: Array, image: Array) -> Array:
                batch = image.reshape(1, *image.shape)
                return convolution(batch, kernel, strides, padding, method)[0]

            found["/".join((*layer.path, "kernel"))] = (apply, args[0].shape[1:])
        return call(*args, **kwargs)

    def traced(params: PyTree, images: Array) -> Any:
        with nn.intercept_methods(look):
            return model.apply({"params": params}, images)

    jax.eval_shape(traced, params, images)
    return found
