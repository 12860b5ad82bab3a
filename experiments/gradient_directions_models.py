"""The networks whose gradients' directions are compared: an MLP, and one CNN in six versions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab import models
from driftlab.models.resnet import ResidualBlock
from driftlab.suggestions import nearest

NETWORKS = {
    "mlp": "MLP",
    "cnn": "CNN",
    "cnn_batch": "CNN, batch norm",
    "cnn_layer": "CNN, layer norm",
    "residual": "residual CNN",
    "residual_batch": "residual CNN, batch norm",
    "residual_layer": "residual CNN, layer norm",
}


class BlockNetwork(nn.Module):
    """A convolution, blocks of two 3 x 3 ones, the mean over pixels, a dense layer.

    Every block but the first halves height and width. With and without shortcuts and normalisation
    the convolutions are the same ones, and start alike.

    Attributes:
      num_outputs: outputs.
      channels: output channels of each block, the stem's being the first's.
      stem_strides: stride s of the first convolution, whose kernel is 2 s + 1 wide.
      normalization: `none`, `batch` or `layer`, after every convolution.
      residual: whether blocks have shortcuts.
    """

    num_outputs: int
    channels: Sequence[int] = (8, 16, 32)
    stem_strides: int = 1
    normalization: str = "none"
    residual: bool = False

    @nn.compact
    def __call__(
        self, inputs: Inexact[Array, "batch height width channels"]
    ) -> Inexact[Array, "batch outputs"]:
        """Computes the outputs.

        Args:
          inputs: images, channels last.

        Returns:
          One row of outputs an image.
        """
        stem = self.stem_strides
        hidden = self._convolved(inputs, self.channels[0], stem, "stem", 2 * stem + 1)
        for block, channels in enumerate(self.channels):
            strides = 2 if block else 1
            if self.residual:
                hidden = ResidualBlock(
                    channels,
                    strides,
                    self.normalization,
                    "relu",
                    "he_normal",
                    1.0,
                    branch_scale=len(self.channels) ** -0.5,
                    zero_branch=False,
                    method="auto",
                    name=f"block_{block}",
                )(hidden)
            else:
                hidden = self._convolved(hidden, channels, strides, f"block_{block}_first")
                hidden = self._convolved(hidden, channels, 1, f"block_{block}_second")
        return models.Dense(self.num_outputs, initialization="he_normal", name="output")(
            jnp.mean(hidden, axis=(1, 2))
        )

    def _convolved(
        self, inputs: Array, channels: int, strides: int, name: str, size: int = 3
    ) -> Array:
        hidden = models.Convolution(
            channels,
            kernel_size=size,
            strides=strides,
            use_bias=self.normalization == "none",
            initialization="he_normal",
            name=name,
        )(inputs)
        normalized = models.Normalization(self.normalization, name=f"{name}_normalization")
        return nn.relu(normalized(hidden))


def make_network(name: str, config: Any, num_outputs: int) -> nn.Module:
    """One of the networks.

    Args:
      name: a key of `NETWORKS`.
      config: an `ml_collections.ConfigDict` with `widths`, `channels` and `stem_strides`.
      num_outputs: outputs.

    Returns:
      The module.

    Raises:
      ValueError: if there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}: {nearest(name, NETWORKS)}")
    if name == "mlp":
        # He's start, which keeps the variance of ReLU layers.
        return models.MLP(
            tuple(config.widths), num_outputs, activation="relu", initialization="he_normal"
        )
    kind, _, normalization = name.partition("_")
    return BlockNetwork(
        num_outputs,
        tuple(config.channels),
        config.stem_strides,
        normalization or "none",
        kind == "residual",
    )
