"""Normalisation layers without running averages."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Inexact

KINDS = ("none", "batch", "layer", "group")


class Normalization(nn.Module):
    """Shifts and scales features to mean 0 and variance 1, then by learnable `bias` and `scale`.

    `y = scale (x - mean) / sqrt(variance + epsilon) + bias`, with the mean and variance over

    * `batch`: the examples and pixels, for each channel;
    * `layer`: the pixels and channels, for each example;
    * `group`: the pixels and the channels of one group, for each example;
    * `none`: returns the inputs and has no params.

    Batch normalisation uses the statistics of the batch it is given, always: there are no running
    averages, so that `loss(params, batch)` is a pure function whose gradient a flow can follow. The
    output for an example then depends on its neighbours, in evaluation as well; evaluate on large
    batches.

    Attributes:
        kind: one of the above.
        num_groups: groups of channels for `group`.
        epsilon: added to the variance.
        zero_scale: whether `scale` starts at 0 instead of 1.
    """

    kind: str
    num_groups: int = 4
    epsilon: float = 1e-5
    zero_scale: bool = False

    @nn.compact
    def __call__(
        self, inputs: Inexact[Array, "batch height width channels"]
    ) -> Inexact[Array, "batch height width channels"]:
        """Applies the layer.

        Args:
            inputs: images, channels last.

        Returns:
            The normalised images.

        Raises:
            ValueError: an unknown kind, or groups that do not divide the channels.
        """
        if self.kind not in KINDS:
            raise ValueError(
                f"normalization={self.kind!r} is not known; choose from {', '.join(KINDS)}"
            )
        if self.kind == "none":
            return inputs
        channels = inputs.shape[-1]
        groups = self.num_groups if self.kind == "group" else 1
        if channels % groups:
            raise ValueError(f"num_groups={groups} does not divide the {channels} channels")
        if self.kind == "batch":
            grouped, axes = inputs, (0, 1, 2)
        else:
            grouped = inputs.reshape(*inputs.shape[:3], groups, channels // groups)
            axes = (1, 2, 4)
        mean = jnp.mean(grouped, axis=axes, keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=axes, keepdims=True)
        normalized = (grouped - mean) * lax.rsqrt(variance + self.epsilon)
        start = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = self.param("scale", start, (channels,), inputs.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), inputs.dtype)
        shape = (1, 1, 1, channels)
        return normalized.reshape(inputs.shape) * scale.reshape(shape) + bias.reshape(shape)
