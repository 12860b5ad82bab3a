"""The chains of experiments/optimizer_flows.py, and the problems that they are followed on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from driftlab import data, transforms
from driftlab.objective import Params
from experiments import flags

# Memory of these spans is short beside a slow time of 1 at the learning rates of the table, as the
# theory wants; eps this large keeps updates smooth where a coordinate of the gradient passes 0.
_SMOOTH = {"b1": 0.8, "b2": 0.9, "eps": 0.1}
ARGUMENTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("adam", "adamw", "adamax", "adamaxw", "amsgrad", "nadam", "nadamw", "adabelief"), _SMOOTH
    ),
    **dict.fromkeys(("radam", "lamb", "yogi", "novograd", "contrib.acprop"), _SMOOTH),
    **dict.fromkeys(("contrib.adopt", "optimistic_adam", "optimistic_adam_v2"), _SMOOTH),
    "adagrad": {"eps": 0.1},
    "adadelta": {"eps": 0.1},
    "rmsprop": {"eps": 0.1},
    "adan": {"b1": 0.8, "b2": 0.8, "b3": 0.9, "eps": 0.1},
    "contrib.ademamix": {"b1": 0.8, "b2": 0.9, "b3": 0.9, "eps": 0.1},
    "contrib.simplified_ademamix": {"b1": 0.8, "b2": 0.9, "eps": 0.1},
    "sgd": {"momentum": 0.8, "nesterov": True},
    "lars": {"momentum": 0.8},
    "contrib.muon": {"beta": 0.8, "adam_b1": 0.8, "adam_b2": 0.9, "eps": 0.1},
    "contrib.sophia": {},
    "contrib.dpsgd": {"l2_norm_clip": 1.0, "noise_multiplier": 0.5, "seed": 0},
    "noisy_sgd": {"key": 0},
}

TOY = {"a": np.array([0.6, -0.4, 0.9]), "b": np.array([[0.5, -0.8]])}


class Network(NamedTuple):
    """A network on images.

    Attributes:
      loss: `loss(params)`.
      params: where it starts.
    """

    loss: Callable[[Params], Float[Array, ""]]
    params: Params


class Row(NamedTuple):
    """A row of the reference table: distances of joint flows from an optimiser.

    Attributes:
      name: what it is called.
      tx: the chain.
      warm: the iterations before the flow starts.
      steps: those that it follows.
      reference: the distances on digits of orders 1 to 4 (momentum_flows.md, 5.5).
    """

    name: str
    tx: optax.GradientTransformation
    warm: int
    steps: int
    reference: tuple[float, float, float, float]


def toy_loss(params: Params) -> Float[Array, ""]:
    """Five coupled parameters, far from quadratic.

    Args:
      params: like `TOY`.

    Returns:
      The loss.
    """
    x = jnp.concatenate([params["a"], params["b"][0]])
    chain = jnp.sum((x[1:] - x[:-1] ** 2) ** 2) / 2
    return chain + jnp.sum(jnp.cosh(x - jnp.arange(5.0) / 4)) / 2 + jnp.sum(jnp.sin(x)) / 5


def make(name: str) -> Callable[[Any], optax.GradientTransformation]:
    """An optimiser of the table, as a function of its learning rate.

    Args:
      name: as `transforms.by_name` has it.

    Returns:
      `learning_rate -> chain`.
    """
    factory = transforms.by_name(name, **ARGUMENTS.get(name, {}))
    return lambda learning_rate: factory(learning_rate=learning_rate)


def rows() -> list[Row]:
    """The rows of the reference table."""
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(3e-3, 400), eps=1e-3),
    )
    return [
        Row("heavy ball, h = 0.04", optax.sgd(0.04, momentum=0.9), 0, 50,
            (7.0e-2, 3.1e-3, 2.3e-4, 3.2e-5)),
        Row("heavy ball, h = 0.16", optax.sgd(0.16, momentum=0.9), 0, 50,
            (3.5e-1, 3.4e-2, 4.6e-3, 1.7e-3)),
        Row("Nesterov, h = 0.01", optax.sgd(0.01, momentum=0.9, nesterov=True), 0, 200,
            (1.1e-2, 1.1e-4, 6.0e-6, 7.0e-7)),
        Row("Adam, default", optax.adam(1e-3), 20, 300, (2.6e-2, 1.0e-3, 6.4e-5, 1.9e-5)),
        Row("clip, AdamW, cosine", chain, 20, 300, (3.1e-2, 1.2e-3, 9.2e-5, 1.0e-5)),
    ]  # fmt: skip


def network(name: str, size: int, hidden: int) -> Network:
    """A tanh network of one hidden layer with cross-entropy, in the default precision.

    Args:
      name: the data set: digits or mnist5k.
      size: how many images.
      hidden: hidden units.

    Returns:
      The network, started normal with variance 1 / fan-in, without biases' noise.
    """
    loaded = data.load(name, train_size=size, flatten=True, data_dir=flags.DATA_DIR.value)
    images = np.asarray(loaded.train.inputs, float).reshape(size, -1)
    images = jnp.asarray(images - images.mean(0), float)
    labels = jax.nn.one_hot(loaded.train.targets, loaded.num_classes, dtype=float)
    random = np.random.default_rng(0)
    inputs, outputs = images.shape[1], labels.shape[1]
    params = {
        "w1": jnp.asarray(random.normal(size=(inputs, hidden)) / inputs**0.5, float),
        "b1": jnp.zeros((hidden,), float),
        "w2": jnp.asarray(random.normal(size=(hidden, outputs)) / hidden**0.5, float),
        "b2": jnp.zeros((outputs,), float),
    }

    def loss(params: Params) -> Float[Array, ""]:
        layer = jnp.tanh(images @ params["w1"] + params["b1"][None])
        logits = layer @ params["w2"] + params["b2"][None]
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=1))

    return Network(loss, params)
