"""Models by name, and the two functions that turn a flax model into params and a pure function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Inexact, Key, Num, PyTree

from driftlab.models.cnn import CNN, LeNet5
from driftlab.models.linear import DeepLinear
from driftlab.models.mlp import MLP
from driftlab.models.resnet import ResNet
from driftlab.models.two_layer_relu import TwoLayerReLU
from driftlab.models.vgg import VGG
from driftlab.suggestions import nearest

_MODELS = {
    "mlp": MLP,
    "cnn": CNN,
    "lenet5": LeNet5,
    "vgg": VGG,
    "resnet": ResNet,
    "deep_linear": DeepLinear,
    "two_layer_relu": TwoLayerReLU,
}


def names() -> tuple[str, ...]:
    """Lists the models that `create` knows.

    Returns:
        Their names.
    """
    return tuple(_MODELS)


def create(name: str, num_outputs: int, **attributes: Any) -> nn.Module:
    """Makes a model from a name and settings, as a config file holds them.

    Args:
        name: one of `names()`.
        num_outputs: outputs, the number of classes for a classifier.
        **attributes: attributes of the model, for example `widths=(128, 128)`.

    Returns:
        The model.

    Raises:
        ValueError: an unknown name, an unknown attribute or a missing one.

    Examples:
        >>> from driftlab import models
        >>> models.create("mlp", 10, widths=(64, 32)).widths
        (64, 32)
    """
    if name not in _MODELS:
        raise ValueError(f"there is no model {name!r}: {nearest(name, _MODELS)}")
    model = _MODELS[name]
    fields = {
        field.name: field.default is dataclasses.MISSING
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name", "num_outputs")
    }
    unknown = [attribute for attribute in attributes if attribute not in fields]
    missing = [field for field, needed in fields.items() if needed and field not in attributes]
    if unknown or missing:
        problem = f"does not take {', '.join(unknown)}" if unknown else f"needs {missing[0]}"
        raise ValueError(f"The model {name!r} {problem}; its attributes are {', '.join(fields)}")
    return model(num_outputs=num_outputs, **attributes)


def initialize(
    model: nn.Module, key: Key[Array, ""], inputs: Num[Array | np.ndarray, "batch ..."]
) -> PyTree:
    """Draws the initial params of a model.

    Called eagerly this compiles every operation by itself, which takes seconds for a deep network;
    inside `jax.jit`, as in the `build` of a sweep, it is one program.

    Args:
        model: a flax linen model without variables other than params.
        key: randomness; the same key gives the same params, also under `vmap`.
        inputs: a batch that shows the shape and type of the inputs; only the first example is
            used. The params of driftlab's models take its type: float32, or float64 under
            `jax_enable_x64`.

    Returns:
        The bare params, a nested dict without the level `"params"`.

    Raises:
        ValueError: inputs that are not floating point, or an empty batch.
    """
    example = jnp.asarray(inputs[:1])
    if example.shape[0] == 0 or not jnp.issubdtype(example.dtype, jnp.inexact):
        raise ValueError(
            f"initialize needs floating-point inputs of at least one example, found "
            f"{example.dtype} {inputs.shape}"
        )
    return model.init(key, example)["params"]


def apply_function(
    model: nn.Module,
) -> Callable[[PyTree, Num[Array | np.ndarray, "batch ..."]], Inexact[Array, "batch ..."]]:
    """Turns a model into the pure function that losses and measures take.

    Args:
        model: a flax linen model without variables other than params.

    Returns:
        `apply(params, inputs) -> outputs` for the bare params of `initialize`.
    """

    def apply(
        params: PyTree, inputs: Num[Array | np.ndarray, "batch ..."]
    ) -> Inexact[Array, "batch ..."]:
        outputs: Any = model.apply({"params": params}, jnp.asarray(inputs))
        return outputs

    return apply
