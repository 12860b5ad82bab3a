"""The objective that a config describes: data, model, loss and how batches are drawn."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import driftlab
from driftlab import data, models, sampling, transforms
from driftlab.suggestions import nearest
from experiments import flags

Initialize = Callable[[Any], Any]


def make_objective(config: Any) -> tuple[driftlab.Objective, Initialize]:
    """The objective of a config, and how its model is initialised.

    Args:
      config: an `ml_collections.ConfigDict` with `data`, `train_size` (0: all), `normalization`,
        `labels`, `model`, `model_args`, `loss`; and `sampling` and `batch_size`, without which
        every step takes the full batch. configs/lr_sweep.py says what each may hold.

    Returns:
      `(objective, initialize)` with `initialize(key) -> params`.

    Raises:
      ValueError: if a name or argument in the config does not exist.
    """
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        normalization=config.normalization,
        labels=config.labels,
        data_dir=flags.DATA_DIR.value,
    )
    # Models compute in the precision of their inputs.
    train, test = (
        batch._replace(inputs=jnp.asarray(batch.inputs, float))
        for batch in (loaded.train, loaded.test)
    )
    arguments = flags.parse_arguments(config.model_args, "model_args")
    outputs = 1 if config.labels.startswith("binary") else loaded.num_classes
    model = models.create(config.model, outputs, **arguments)
    apply = models.apply_function(model)
    losses = {
        "cross_entropy": models.cross_entropy,
        "squared_error": models.squared_error,
        "logistic": models.logistic,
    }
    loss = _choose(losses, config.loss, "loss")(apply)
    samplings = {
        "with_replacement": sampling.with_replacement,
        "shuffled_epochs": sampling.shuffled_epochs,
        "fixed_order": sampling.fixed_order,
        "full_batch": lambda batch_size: sampling.full_batch(),
    }
    draw = _choose(samplings, config.get("sampling", "full_batch"), "sampling")
    objective = driftlab.Objective(
        loss,
        train,
        draw(config.get("batch_size", 0)),
        test,
        {"accuracy": models.accuracy(apply)},
    )
    return objective, lambda key: models.initialize(model, key, train.inputs)


def _choose(known: dict[str, Callable], name: str, field: str) -> Callable:
    if ":" in name:
        return transforms.resolve(name, field)
    if name not in known:
        raise ValueError(f"there is no {field} {name!r}: {nearest(name, known)}")
    return known[name]
