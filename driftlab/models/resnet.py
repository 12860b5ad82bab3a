"""Residual networks of basic blocks, with or without normalisation."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.activations import Activation, activation_function
from driftlab.models.convolution import Convolution
from driftlab.models.dense import Dense
from driftlab.models.initializers import Initialization, Scale
from driftlab.models.normalization import Normalization

RESIDUAL_INITIALIZATIONS = ("zero", "depth", "plain")


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: `activation(shortcut(x) + branch(x))`.

    The shortcut is the identity, or a 1 x 1 convolution where the shape changes.

    Attributes:
        channels: output channels.
        strides: stride of the first convolution and of the shortcut.
        normalization: see `ResNet`.
        activation: name or function.
        initialization: how weights start.
        scale: multiplies all initial weights.
        branch_scale: multiplies the start of the branch's last convolution besides.
        zero_branch: whether the branch starts as 0, by its last convolution or, with
            normalisation, by the scale of its last normalisation.
        method: see `models.convolution`.
    """

    channels: int
    strides: int
    normalization: str
    activation: Activation
    initialization: Initialization
    scale: Scale
    branch_scale: float
    zero_branch: bool
    method: str

    @nn.compact
    def __call__(
        self, inputs: Inexact[Array, "batch height width channels"]
    ) -> Inexact[Array, "batch rows columns features"]:
        """Applies the block.

        Args:
            inputs: images, channels last.

        Returns:
            Images with `channels` channels.
        """
        activation = activation_function(self.activation)
        normalized = self.normalization != "none"
        common = {"use_bias": not normalized, "method": self.method}
        start = {"initialization": self.initialization, "scale": self.scale}
        branch = Convolution(
            self.channels, strides=self.strides, name="convolution_0", **start, **common
        )(inputs)
        branch = activation(Normalization(self.normalization, name="normalization_0")(branch))
        last_start = {
            "initialization": self.initialization,
            # Behind a normalisation the size of the weights has no effect.
            "scale": self.scale if normalized else self.scale * self.branch_scale,
        }
        if self.zero_branch and not normalized:
            last_start["initialization"] = "zeros"
        branch = Convolution(self.channels, name="convolution_1", **last_start, **common)(branch)
        branch = Normalization(
            self.normalization, zero_scale=self.zero_branch, name="normalization_1"
        )(branch)
        shortcut = inputs
        if self.strides != 1 or inputs.shape[-1] != self.channels:
            shortcut = Convolution(
                self.channels,
                kernel_size=1,
                strides=self.strides,
                name="shortcut_convolution",
                **start,
                **common,
            )(inputs)
            shortcut = Normalization(self.normalization, name="shortcut_normalization")(shortcut)
        return activation(shortcut + branch)


class ResNet(nn.Module):
    """A 3 x 3 convolution, stages of residual blocks, the mean over pixels and a dense layer.

    Every stage but the first halves height and width. The default is small;
    `ResNet(blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512), normalization="batch")` is ResNet-18
    for 32 x 32 images.

    Without normalisation the variance would double with each block, so the start of the branches
    is explicit:

    * `zero`: every branch starts as 0, by the last convolution of each block, or by the last scale
      if there is a normalisation (Goyal et al., 2017; Zhang, Dauphin and Ma, 2019);
    * `depth`: the last convolution of each block is multiplied by `1 / sqrt(number of blocks)`,
      which bounds the variance of the sum; no effect with normalisation;
    * `plain`: as any other convolution.

    Attributes:
        num_outputs: outputs.
        blocks: residual blocks of each stage.
        channels: channels of each stage.
        normalization: `none`, `batch`, `layer` or `group`, see `models.Normalization`.
        residual_initialization: `zero`, `depth` or `plain`.
        activation: name or function, see `models.activation_function`.
        initialization: how weights start, see `models.initializer`.
        scale: multiplies all initial weights.
        method: `auto`, `shift` or `lax`, see `models.convolution`.

    Source: He, Zhang, Ren and Sun, 2016.
    """

    num_outputs: int
    blocks: Sequence[int] = (1, 1, 1)
    channels: Sequence[int] = (8, 16, 32)
    normalization: str = "none"
    residual_initialization: str = "zero"
    activation: Activation = "relu"
    initialization: Initialization = "he_normal"
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
            ValueError: an unknown name, or stages without channels.
        """
        if self.residual_initialization not in RESIDUAL_INITIALIZATIONS:
            raise ValueError(
                f"residual_initialization={self.residual_initialization!r} is not known; choose "
                f"from {', '.join(RESIDUAL_INITIALIZATIONS)}"
            )
        if len(self.blocks) != len(self.channels):
            raise ValueError(
                f"blocks={self.blocks} and channels={self.channels} must name the same stages"
            )
        depth_scaled = self.residual_initialization == "depth"
        start = {"initialization": self.initialization, "scale": self.scale}
        normalized = self.normalization != "none"
        hidden = Convolution(
            self.channels[0], use_bias=not normalized, method=self.method, name="stem", **start
        )(inputs)
        hidden = Normalization(self.normalization, name="stem_normalization")(hidden)
        hidden = activation_function(self.activation)(hidden)
        for stage, (count, channels) in enumerate(zip(self.blocks, self.channels, strict=True)):
            for block in range(count):
                hidden = ResidualBlock(
                    channels,
                    strides=2 if stage > 0 and block == 0 else 1,
                    normalization=self.normalization,
                    activation=self.activation,
                    branch_scale=sum(self.blocks) ** -0.5 if depth_scaled else 1.0,
                    zero_branch=self.residual_initialization == "zero",
                    method=self.method,
                    name=f"stage_{stage}_{block}",
                    **start,
                )(hidden)
        features = jnp.mean(hidden, axis=(1, 2))
        return Dense(self.num_outputs, name="output", **start)(features)
