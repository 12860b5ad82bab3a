"""Transposed convolution, the adjoint of `driftlab.models.convolution` in its inputs."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.convolution import convolution
from driftlab.models.initializers import Initialization, Scale, initializer
from driftlab.models.windows import Pair, as_pair


def transposed_convolution(
    inputs: Inexact[Array, "batch height width inputs"],
    kernel: Inexact[Array, "kernel_height kernel_width inputs outputs"],
    strides: Pair = 2,
    method: str = "auto",
) -> Inexact[Array, "batch rows columns outputs"]:
    """Enlarges images by a stride: the adjoint of a `SAME` convolution with that stride.

    `<transposed_convolution(x, w), y> = <x, convolution(y, w')>` for every y, where w' is w with
    its two channel axes exchanged. On a CPU it is one matrix product whose results are added up
    where windows overlap: no zeros are multiplied, as they are when the input is dilated first, and
    it stays fast inside a loop (see `driftlab.models.convolution`).

    Args:
      inputs: images, channels last.
      kernel: weights.
      strides: the factor of enlargement, or one each for height and width.
      method: `auto`, `shift` or `lax`, as of `driftlab.models.convolution`.

    Returns:
      Images of `strides` times the height and width.

    Raises:
      ValueError: shapes that do not fit, or an unknown method.
    """
    factors = as_pair(strides, "strides")
    if inputs.ndim != 4 or kernel.ndim != 4 or inputs.shape[3] != kernel.shape[2]:
        raise ValueError(
            "inputs must be (batch, height, width, channels) and kernel (height, width, channels, "
            f"outputs) with the same channels, found {inputs.shape} and {kernel.shape}"
        )
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    inputs, swapped = inputs.astype(dtype), jnp.swapaxes(kernel, 2, 3).astype(dtype)
    batch, height, width, _ = inputs.shape
    shape = (batch, height * factors[0], width * factors[1], kernel.shape[3])
    adjoint = jax.linear_transpose(
        lambda images: convolution(images, swapped, factors, "SAME", method),
        jax.ShapeDtypeStruct(shape, dtype),
    )
    return adjoint(inputs)[0]


class TransposedConvolution(nn.Module):
    """A layer that enlarges images by a transposed convolution and adds a bias.

    Params: `kernel` `(kernel_height, kernel_width, inputs, features)` and, with `use_bias`, `bias`
    `(features,)`, in the type of the inputs that the layer is initialised with.

    Attributes:
      features: output channels.
      kernel_size: one size, or height and width.
      strides: the factor of enlargement, or one each for height and width. A pixel of the output
        sees a share `1 / (height factor * width factor)` of the kernel, and the initial kernel is
        the larger by the root of that, so that variances are as `initialization` says.
      use_bias: whether to add a bias, which starts at 0.
      initialization: how the kernel starts, see `models.initializer`.
      scale: multiplies the initial kernel.
      method: `auto`, `shift` or `lax`.
    """

    features: int
    kernel_size: Pair = 4
    strides: Pair = 2
    use_bias: bool = True
    initialization: Initialization = "lecun_normal"
    scale: Scale = 1.0
    method: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Inexact[Array, "batch height width inputs"]
    ) -> Inexact[Array, "batch rows columns features"]:
        """Applies the layer.

        Args:
          inputs: images, channels last.

        Returns:
          The enlarged images.
        """
        factors = as_pair(self.strides, "strides")
        shape = (*as_pair(self.kernel_size, "kernel_size"), inputs.shape[-1], self.features)
        start = initializer(self.initialization, self.scale * (factors[0] * factors[1]) ** 0.5)
        kernel = self.param("kernel", start, shape, inputs.dtype)
        outputs = transposed_convolution(inputs, kernel, factors, self.method)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), inputs.dtype)
            outputs = outputs + bias.reshape(1, 1, 1, self.features)
        return outputs
