"""Two-dimensional convolution that is also fast inside a loop on a CPU.

XLA:CPU calls its fast convolution from straight-line code only: inside `lax.scan` or
`lax.while_loop`, where every run of driftlab and every flow lives, the same convolution is ten
times slower (jax issue 12868). Written as shifted slices and one matrix product it isn't, and
`vmap` over kernels makes of it a batched matrix product instead of a grouped convolution.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Inexact

from driftlab.models.initializers import Initialization, Scale, initializer
from driftlab.models.windows import Pair, as_pair, output_and_padding, shifted_slices

METHODS = ("auto", "shift", "lax")


def convolution(
    inputs: Inexact[Array, "batch height width inputs"],
    kernel: Inexact[Array, "kernel_height kernel_width inputs outputs"],
    strides: Pair = 1,
    padding: str = "SAME",
    method: str = "auto",
) -> Inexact[Array, "batch rows columns outputs"]:
    """Convolves images with a kernel (a cross-correlation, as everywhere in deep learning).

    `y[n, r, c, o] = sum_{i, j, k} x[n, s r + i - p, s c + j - p, k] w[i, j, k, o]` with stride s
    and padding p.

    Args:
        inputs: images, channels last.
        kernel: weights.
        strides: one stride, or one each for height and width.
        padding: `SAME` (output sizes `ceil(size / stride)`) or `VALID` (no padding).
        method: `shift` cuts out a strided slice for each element of the kernel, joins them on the
            channel axis and multiplies once with the kernel as a matrix; `lax` calls
            `jax.lax.conv_general_dilated`; `auto` is `shift` where JAX's default backend is the CPU
            and `lax` elsewhere. The two agree to rounding.

    Returns:
        The filtered images, in the common type of inputs and kernel.

    Raises:
        ValueError: shapes that do not fit, or an unknown padding or method.
    """
    strides = as_pair(strides, "strides")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; choose from {', '.join(METHODS)}")
    if inputs.ndim != 4 or kernel.ndim != 4 or inputs.shape[3] != kernel.shape[2]:
        raise ValueError(
            "inputs must be (batch, height, width, channels) and kernel (height, width, channels, "
            f"outputs) with the same channels, found {inputs.shape} and {kernel.shape}"
        )
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    inputs, kernel = inputs.astype(dtype), kernel.astype(dtype)
    if method == "auto":
        method = "shift" if jax.default_backend() == "cpu" else "lax"
    if method == "lax":
        for axis in (0, 1):  # lax would return an empty image where a VALID window does not fit
            output_and_padding(inputs.shape[1 + axis], kernel.shape[axis], strides[axis], padding)
        return lax.conv_general_dilated(
            inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    slices = shifted_slices(inputs, (kernel.shape[0], kernel.shape[1]), strides, padding)
    patches = jnp.concatenate(slices, axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[3])
    # One two-dimensional product: contracting a four-dimensional array leaves XLA the choice of a
    # slower layout.
    product = patches.reshape(-1, matrix.shape[0]) @ matrix
    return product.reshape(*patches.shape[:3], matrix.shape[1])


class Convolution(nn.Module):
    """A layer that convolves and adds a bias.

    Params: `kernel` `(kernel_height, kernel_width, inputs, features)` and, with `use_bias`, `bias`
    `(features,)`, in the type of the inputs that the layer is initialised with.

    Attributes:
        features: output channels.
        kernel_size: one size, or height and width.
        strides: one stride, or one each for height and width.
        padding: `SAME` or `VALID`.
        use_bias: whether to add a bias, which starts at 0.
        initialization: how the kernel starts, see `models.initializer`.
        scale: multiplies the initial kernel.
        method: `auto`, `shift` or `lax`, see `convolution`.
    """

    features: int
    kernel_size: Pair = 3
    strides: Pair = 1
    padding: str = "SAME"
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
            The filtered images.
        """
        shape = (*as_pair(self.kernel_size, "kernel_size"), inputs.shape[-1], self.features)
        kernel = self.param(
            "kernel", initializer(self.initialization, self.scale), shape, inputs.dtype
        )
        outputs = convolution(inputs, kernel, self.strides, self.padding, self.method)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), inputs.dtype)
            outputs = outputs + bias.reshape(1, 1, 1, self.features)
        return outputs
