"""The chains of experiments/optimizer_flows.py, and the problems that they are followed on."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from driftlab import data
from driftlab.objective import Params
from experiments import flags

Factory = Callable[[Any], optax.GradientTransformation]

# Memory of these spans is short beside a slow time of 1 at the learning rates of the table, as the
# theory wants; eps this large keeps updates smooth where a coordinate of the gradient passes 0.
_SMOOTH: dict[str, Any] = {"b1": 0.8, "b2": 0.9, "eps": 0.1}
_BETAS: dict[str, Any] = {"betas": (0.8, 0.9), "eps": 0.1}


def _alias(factory: Callable[..., Any], **arguments: Any) -> Factory:
    return lambda rate: factory(learning_rate=rate, **arguments)


def _scaled(make: Callable[[], Any]) -> Factory:
    return lambda rate: optax.chain(make(), optax.scale_by_learning_rate(rate))


# Every optimiser of optax, as a function of its learning rate. `published` is what there is: what
# an upgrade of optax adds makes a test fail until it is listed here.
OPTIMIZERS: dict[str, Factory] = {
    **{
        name: _alias(getattr(optax, name), **_SMOOTH)
        for name in (
            "adabelief", "adam", "adamax", "adamaxw", "adamw", "amsgrad", "lamb", "nadam", "nadamw",
            "novograd", "optimistic_adam", "optimistic_adam_v2", "radam", "yogi",
        )
    },
    **{
        name: _alias(getattr(optax, name))
        for name in (
            "fromage", "lbfgs", "lion", "optimistic_gradient_descent", "rprop", "sign_sgd",
            "signum", "sm3",
        )
    },
    "adadelta": _alias(optax.adadelta, eps=0.1),
    "adafactor": _alias(optax.adafactor, eps=0.1),
    "adagrad": _alias(optax.adagrad, eps=0.1),
    "adan": _alias(optax.adan, b1=0.8, b2=0.8, b3=0.9, eps=0.1),
    # The default coefficient, 0.001, hardly moves.
    "lars": _alias(optax.lars, momentum=0.8, trust_coefficient=1.0),
    "noisy_sgd": _alias(optax.noisy_sgd, key=0),
    "polyak_sgd": lambda rate: optax.polyak_sgd(max_learning_rate=rate),
    "rmsprop": _alias(optax.rmsprop, eps=0.1),
    "sgd": _alias(optax.sgd, momentum=0.8, nesterov=True),
    **{
        f"contrib.{name}": _alias(getattr(optax.contrib, name), **_SMOOTH)
        for name in ("acprop", "adopt", "momo_adam")
    },
    **{
        f"contrib.{name}": _alias(getattr(optax.contrib, name))
        for name in ("cocob", "galore", "sophia")
    },
    # Those with a rate of their own: divided where they would be at the minimum before the flow
    # starts, and with a first estimate of 1 where the default, 1e-6, hardly moves.
    "contrib.ademamix": lambda rate: optax.contrib.ademamix(
        rate / 6, b1=0.8, b2=0.9, b3=0.9, eps=0.1
    ),
    "contrib.simplified_ademamix": lambda rate: optax.contrib.simplified_ademamix(
        rate / 10, **_SMOOTH
    ),
    "contrib.dadapt_adamw": _alias(optax.contrib.dadapt_adamw, estim_lr0=1.0, **_BETAS),
    "contrib.dog": _alias(optax.contrib.dog, init_step=("distance", 1.0)),
    "contrib.dowg": _alias(optax.contrib.dowg, init_estim_sq_dist=1.0),
    "contrib.differentially_private_aggregate": _scaled(
        lambda: optax.contrib.differentially_private_aggregate(1.0, 0.5, 0)
    ),
    "contrib.dpsgd": _alias(optax.contrib.dpsgd, l2_norm_clip=1.0, noise_multiplier=0.5, seed=0),
    "contrib.hutchinson_estimator_diag_hessian": _scaled(
        optax.contrib.hutchinson_estimator_diag_hessian
    ),
    "contrib.madgrad": lambda rate: optax.contrib.madgrad(rate / 20, eps=0.1),
    "contrib.mechanize": lambda rate: optax.contrib.mechanize(optax.sgd(rate)),
    "contrib.momo": _alias(optax.contrib.momo, beta=0.8),
    # Its steps are of one size: at the full rate it would chatter around the minimum.
    "contrib.muon": lambda rate: optax.contrib.muon(
        rate / 4, beta=0.8, adam_b1=0.8, adam_b2=0.9, adam_eps_root=0.1, eps=0.1
    ),
    "contrib.normalize": _scaled(optax.contrib.normalize),
    "contrib.prodigy": _alias(optax.contrib.prodigy, estim_lr0=1.0, **_BETAS),
    "contrib.reduce_on_plateau": lambda rate: optax.chain(
        optax.sgd(rate), optax.contrib.reduce_on_plateau()
    ),
    # It takes no argument that it does not know.
    "contrib.sam": lambda rate: optax.GradientTransformation(
        *optax.contrib.sam(optax.sgd(rate), optax.sgd(0.05))
    ),
    "contrib.schedule_free": lambda rate: optax.contrib.schedule_free(
        optax.sgd(rate), rate, b1=0.8
    ),
    "contrib.schedule_free_adamw": _alias(
        optax.contrib.schedule_free_adamw, b1=0.8, b2=0.9, eps=0.1
    ),
    "contrib.schedule_free_sgd": _alias(optax.contrib.schedule_free_sgd, b1=0.8),
    "contrib.split_real_and_imaginary": lambda rate: optax.contrib.split_real_and_imaginary(
        optax.adam(rate, **_SMOOTH)
    ),
}  # fmt: skip


def published() -> set[str]:
    """The names of optax's optimisers: its aliases, and what `optax.contrib` has to update with.

    Parts of others (`scale_by_...`) are left out, and the one function of `contrib` that evaluates
    parameters.
    """
    found = {
        name
        for name, value in vars(optax).items()
        if not name.startswith("_") and _module(value) == _module(optax.sgd)
    }
    contrib = {
        f"contrib.{name}"
        for name, value in vars(optax.contrib).items()
        if inspect.isroutine(value) or isinstance(value, functools.partial)
        if not name.startswith(("_", "scale_by_", "schedule_free_eval"))
    }
    return found | contrib


def _module(value: Any) -> str | None:
    while isinstance(value, functools.partial):
        value = value.func
    return value.__module__ if inspect.isroutine(value) else None


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

    Pixels are from 0 to 1, less the mean image.

    Args:
      name: the data set: digits or mnist5k.
      size: how many images.
      hidden: hidden units.

    Returns:
      The network, started normal with variance 1 / fan-in, without biases' noise.
    """
    loaded = data.load(
        name, train_size=size, normalization="unit", flatten=True, data_dir=flags.DATA_DIR.value
    )
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
