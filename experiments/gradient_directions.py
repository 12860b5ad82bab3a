"""How the directions of minibatch gradients spread during training: von Mises-Fisher concentration.

    python -m experiments.gradient_directions
    python -m experiments.gradient_directions --config=configs/gradient_directions_small.py

An MLP and a CNN with and without normalisation and shortcuts are trained by SGD; at intervals, n
minibatch gradients are drawn at fixed parameters, and the concentration of their directions, their
gradient stochasticity and their norm stochasticity are measured. Every learning rate and seed is a
lane. Source: Lee, Cho & Kang (2018), "Directional analysis of stochastic gradient descent via von
Mises-Fisher distributions in deep learning".
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags as absl_flags
from jaxtyping import PRNGKeyArray

import driftlab
from driftlab import data, measures, models, sampling
from driftlab.measures.direction_concentration import gradient_directions
from driftlab.sweep.lane import HParams
from experiments import (
    flags,
    gradient_directions_figures,
    gradient_directions_report,
    report,
)
from experiments.gradient_directions_models import make_network

if TYPE_CHECKING:
    import xarray


def network_names(config: Any) -> list[str]:
    """The config's networks.

    Args:
      config: an `ml_collections.ConfigDict` with `networks`, a comma list.

    Returns:
      Their names.
    """
    return [name.strip() for name in config.networks.split(",")]


class Setting(NamedTuple):
    """What a config describes.

    Attributes:
      build: `build(hparams, key) -> (Dynamics, params)`, for the sweep.
      dimensions: network -> d, its parameters.
      steps_per_epoch: steps in one pass over the training data.
    """

    build: Callable
    dimensions: dict[str, int]
    steps_per_epoch: int


def make_setting(config: Any) -> Setting:
    """The networks, their data and how they are trained.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/gradient_directions.py.

    Returns:
      The setting.

    Raises:
      ValueError: if a name in the config does not exist.
    """
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        normalization=config.normalization,
        data_dir=flags.DATA_DIR.value,
    )
    train, test = (
        batch._replace(inputs=jnp.asarray(batch.inputs, float))
        for batch in (loaded.train, loaded.test)
    )
    names = network_names(config)
    networks = {name: make_network(name, config, loaded.num_classes) for name in names}
    objectives = {}
    for name, network in networks.items():
        apply = models.apply_function(network)
        objectives[name] = driftlab.Objective(
            models.cross_entropy(apply),
            train,
            sampling.shuffled_epochs(config.batch_size),
            test,
            {"accuracy": models.accuracy(apply)},
        )

    def initialize(name: str, key: PRNGKeyArray) -> Any:
        return models.initialize(networks[name], key, train.inputs)

    def build(hparams: HParams, key: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        name = hparams["network"]
        dynamics = driftlab.descent(optax.sgd(hparams["learning_rate"]), objectives[name])
        return dynamics, initialize(name, key)

    dimensions = {
        name: sum(
            leaf.size
            for leaf in jax.tree.leaves(
                jax.eval_shape(lambda key, n=name: initialize(n, key), jax.random.key(0))
            )
        )
        for name in networks
    }
    return Setting(build, dimensions, objectives[names[0]].sampling.steps_per_epoch(len(train[0])))


def run(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/gradient_directions.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset; the coordinate `dimension` is the number of parameters of each network, `epoch`
      the step in passes over the data.

    Raises:
      ValueError: if the config describes no sweep.
    """
    setting = make_setting(config)
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    names = network_names(config)
    grid = driftlab.Grid(
        {"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)}, {"network": names}
    )
    spaced = [
        gradient_directions(config.gradients),
        measures.training(batch_size=1000),
        measures.evaluation(batch_size=1000),
    ]
    dataset = driftlab.sweep(
        setting.build,
        grid,
        config.steps,
        measures=[measures.every(measure, config.directions_every) for measure in spaced],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        out=out,
        config=flags.as_json(config),
        **options,
    )
    return dataset.assign_coords(
        dimension=("network", [setting.dimensions[name] for name in names]),
        epoch=("step", dataset["step"].values / setting.steps_per_epoch),
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    out = flags.run_folder(config, "gradient_directions")
    dataset = flags.run_shard(partial(run, config), out)
    if dataset is None:
        return
    measured = gradient_directions_report.measured(dataset)
    found = gradient_directions_report.tables(measured)
    figures = gradient_directions_figures.draw(measured)
    report.write_report(out, "Directions of minibatch gradients", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("gradient_directions.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
