"""Convergence of over-parameterised two-layer ReLU networks, beside what their kernel predicts.

    python -m experiments.overparameterized
    python -m experiments.overparameterized --config=configs/overparameterized_labels.py
    python -m experiments.overparameterized --config=configs/overparameterized_small.py --seeds=3

`u(x) = 1 / sqrt(m) sum_r a_r relu(w_r . x)` on inputs of norm 1, with half the SUM of squared
errors: a learning rate for the mean is n times as large. The hidden layer is trained by gradient
descent or gradient flow, or both layers by gradient descent, on real and on random labels. Every
width is a program; every learning rate and seed is a lane, beside which the linearised network of
infinite width runs.
Source: Du, Zhai, Poczos and Singh (2019), "Gradient descent provably optimizes over-parameterized
neural networks".
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags
from jaxtyping import PRNGKeyArray

import driftlab
from driftlab import measures
from driftlab.measures.activation_patterns import changed_patterns, unit_distances
from driftlab.sweep.lane import HParams
from experiments import (
    flags,
    overparameterized_figures,
    overparameterized_report,
    overparameterized_tables,
    report,
)
from experiments.overparameterized_data import Setting, make_setting
from experiments.overparameterized_models import (
    TRAININGS,
    initialize,
    kernel_along_training,
    make_objective,
    make_training,
    residuals,
)

if TYPE_CHECKING:
    import xarray


def rate_units(config: Any, setting: Setting) -> dict[str, float]:
    """What the config's learning rates are multiplied by, for each training.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/overparameterized.py.
      setting: its data.

    Returns:
      Training -> 1, or the inverse of the limit kernel's largest eigenvalue if `scaled_rates`.
    """
    return {
        name: 1.0 / float(setting.kernels[both].values[-1]) if config.scaled_rates else 1.0
        for name, (both, _) in TRAININGS.items()
    }


def make_build(config: Any, setting: Setting) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/overparameterized.py.
      setting: its data.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`.
    """
    units = rate_units(config, setting)
    key = jax.random.key(config.seed)

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        name = hparams["training"]
        both = TRAININGS[name][0]
        objective = make_objective(setting, hparams["labels"])
        rate = hparams["learning_rate"] * units[name]
        dynamics = make_training(name, objective, rate, setting.kernels[both], config.flow_rtol)
        # The seed's own key: all rates, labels and trainings of a width start from one network.
        start = jax.random.fold_in(key, hparams["seed"])
        return dynamics, initialize(start, setting.inputs.shape[1], hparams["width"], both)

    return build


def run(config: Any, setting: Setting, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/overparameterized.py.
      setting: its data.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    widths = flags.parse_values(config.widths, "widths", positive=True)
    if (widths != np.round(widths)).any():
        raise ValueError(f"widths={config.widths!r} must be whole numbers of hidden units.")
    grid = driftlab.Grid(
        {
            "learning_rate": flags.parse_values(
                config.learning_rates, "learning_rates", positive=True
            ),
            "seed": flags.parse_seeds(config.seeds),
        },
        {
            "training": flags.parse_names(config.trainings, "trainings", TRAININGS),
            "labels": tuple(setting.targets),
            "width": tuple(int(width) for width in widths),
        },
    )
    inputs = jnp.asarray(setting.inputs, float)
    return driftlab.sweep(
        make_build(config, setting),
        grid,
        config.steps,
        measures=[
            residuals(setting),
            changed_patterns(lambda params, x: x @ params["kernel"], inputs),
            unit_distances(lambda params: params["kernel"]),
            measures.every(kernel_along_training(setting), config.kernel_every),
        ],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    setting = make_setting(config, flags.DATA_DIR.value)
    out = flags.run_folder(config, "overparameterized")
    dataset = flags.run_shard(partial(run, config, setting), out)
    if dataset is None:
        return
    outcome = overparameterized_report.outcomes(dataset, setting, rate_units(config, setting))
    found = overparameterized_tables.tables(outcome, setting)
    figures = overparameterized_figures.draw(outcome)
    title = "Over-parameterised convergence"
    report.write_report(out, title, dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("overparameterized.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
