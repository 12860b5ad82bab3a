"""Deep linear networks, whose training is non-linear although the function is not."""

from collections.abc import Mapping, Sequence
from functools import reduce

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Inexact

from driftlab.models.dense import Dense, flatten
from driftlab.models.initializers import Initialization, Scale


class DeepLinear(nn.Module):
    """A product of matrices, `f(x) = x W_1 W_2 ... W_L`, without biases; inputs are flattened.

    Attributes:
        widths: inner dimensions; empty for a single matrix.
        num_outputs: outputs.
        initialization: how the matrices start, see `models.initializer`.
        scale: multiplies all initial matrices.

    Source: Saxe, McClelland and Ganguli, 2014.
    """

    widths: Sequence[int]
    num_outputs: int
    initialization: Initialization = "lecun_normal"
    scale: Scale = 1.0

    @nn.compact
    def __call__(self, inputs: Inexact[Array, "batch ..."]) -> Inexact[Array, "batch outputs"]:
        """Computes the outputs.

        Args:
            inputs: examples of any shape along the first axis.

        Returns:
            One row of outputs an example.
        """
        hidden = flatten(inputs)
        for layer, size in enumerate((*self.widths, self.num_outputs)):
            hidden = Dense(
                size,
                use_bias=False,
                initialization=self.initialization,
                scale=self.scale,
                name=f"layer_{layer}",
            )(hidden)
        return hidden


def end_to_end_matrix(
    params: Mapping[str, Mapping[str, Inexact[Array, "_ _"]]],
) -> Inexact[Array, "inputs outputs"]:
    """Multiplies the layers of a `DeepLinear` into the matrix that it applies.

    Args:
        params: the model's params.

    Returns:
        `W_1 W_2 ... W_L`, so that `f(x) = x @ matrix`.
    """
    layers = (params[f"layer_{layer}"]["kernel"] for layer in range(len(params)))
    return reduce(jnp.matmul, layers)
