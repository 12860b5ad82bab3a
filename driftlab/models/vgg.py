"""Networks of the VGG family: stages of 3 x 3 convolutions with pooling between them."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.activations import Activation, activation_function
from driftlab.models.convolution import Convolution
from driftlab.models.dense import Dense, flatten
from driftlab.models.initializers import Initialization, Scale
from driftlab.models.normalization import Normalization
from driftlab.models.pooling import max_pool

VGG11_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions, each stage followed by 2 x 2 max-pooling, then dense layers.

    The default is small. `VGG(stages=VGG11_STAGES)` is VGG-11 for 32 x 32 images without the wide
    dense layers that ImageNet needs. Images must be at least `2 ** len(stages)` pixels wide.

    Attributes:
        num_outputs: outputs.
        stages: for each stage the output channels of its convolutions.
        dense_widths: units of the hidden dense layers.
        normalization: `none`, `batch`, `layer` or `group`, see `models.Normalization`.
        activation: name or function, see `models.activation_function`.
        initialization: how weights start. Without normalisation a deep stack of rectifiers keeps
            its scale only with a `he` one.
        scale: multiplies all initial weights.
        method: `auto`, `shift` or `lax`, see `models.convolution`.

    Source: Simonyan and Zisserman, 2015.
    """

    num_outputs: int
    stages: Sequence[Sequence[int]] = ((16, 16), (32, 32))
    dense_widths: Sequence[int] = ()
    normalization: str = "none"
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
            ValueError: images too small for the stages, or an unknown name.
        """
        if min(inputs.shape[1:3]) < 2 ** len(self.stages):
            raise ValueError(
                f"{len(self.stages)} stages need images of at least {2 ** len(self.stages)} pixels "
                f"in height and width, found {inputs.shape[1:3]}"
            )
        activation = activation_function(self.activation)
        start = {"initialization": self.initialization, "scale": self.scale}
        hidden = inputs
        for stage, widths in enumerate(self.stages):
            for layer, channels in enumerate(widths):
                name = f"stage_{stage}_{layer}"
                # The bias behind a normalisation makes one before it superfluous.
                hidden = Convolution(
                    channels,
                    use_bias=self.normalization == "none",
                    method=self.method,
                    name=f"{name}_convolution",
                    **start,
                )(hidden)
                hidden = Normalization(self.normalization, name=f"{name}_normalization")(hidden)
                hidden = activation(hidden)
            hidden = max_pool(hidden)
        hidden = flatten(hidden)
        for layer, width in enumerate(self.dense_widths):
            hidden = activation(Dense(width, name=f"dense_{layer}", **start)(hidden))
        return Dense(self.num_outputs, name="output", **start)(hidden)
