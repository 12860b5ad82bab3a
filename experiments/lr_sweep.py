"""Sweeps learning rates of any optax optimiser over models on real data.

    python -m experiments.lr_sweep
    python -m experiments.lr_sweep --optimizer=adam,sgd --learning_rates=1e-4:1:32 --seeds=3
    python -m experiments.lr_sweep --config=configs/lr_sweep_small.py --shard=1/4 --out=runs/mine

Every learning rate and seed is a lane of one compiled program. The run's folder holds the
metrics (metrics.zarr; driftlab.open_run), figures, report.md and summary.json. The same command
continues an interrupted run; on a finished one it redraws the figures.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

import driftlab
from driftlab import plot, transforms
from driftlab.sweep.lane import HParams
from driftlab.sweep.summary import divergence_rate, final, learning_rate_summary
from experiments import flags, report
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray

CONFIG = flags.define_config("lr_sweep.py")
absl_flags.adopt_module_key_flags(flags)
OPTIMIZER = absl_flags.DEFINE_string(
    "optimizer",
    None,
    "optax aliases or module:function, comma-separated. Overrides the config's, and its arguments.",
)
OPTIMIZER_ARGS = absl_flags.DEFINE_string(
    "optimizer_args", None, "The optimiser's arguments: momentum=0.9,nesterov=True."
)


def make_grid(config: Any) -> driftlab.Grid:
    """The grid of a config: learning rates, further axes, seeds; optimisers if several.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/lr_sweep.py.

    Returns:
      The grid.

    Raises:
      ValueError: if the config's text does not describe one.
    """
    lanes: dict[str, Any] = {
        "learning_rate": flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    }
    for axis in filter(None, config.axes.split(";")):
        name, _, values = axis.partition("=")
        lanes[name.strip()] = flags.parse_values(values, f"axes: {name.strip()}")
    lanes["seed"] = flags.parse_seeds(config.seeds)
    optimizers = [name.strip() for name in config.optimizer.split(",")]
    return driftlab.Grid(lanes, {"optimizer": optimizers} if len(optimizers) > 1 else {})


def make_build(config: Any, grid: driftlab.Grid) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/lr_sweep.py.
      grid: its grid.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`.

    Raises:
      ValueError: if an optimiser or an argument of one does not exist.
    """
    objective, initialize = make_objective(config)
    arguments = flags.parse_arguments(config.optimizer_args, "optimizer_args")
    names = grid.static.get("optimizer", (config.optimizer.strip(),))
    swept = [name for name in grid.lanes if name not in ("learning_rate", "seed")]
    for name in names:
        transforms.by_name(str(name), **arguments, **dict.fromkeys(swept))
    factories = {name: transforms.by_name(str(name), **arguments) for name in names}

    def build(hparams: HParams, key: Any) -> tuple[driftlab.Dynamics, Any]:
        name = hparams.get("optimizer", names[0])
        given = {name: hparams[name] for name in ("learning_rate", *swept)}
        try:
            tx = factories[name](**given)
        except Exception as error:
            raise ValueError(
                f"the optimizer {name!r} could not be built: {type(error).__name__}: {error}. "
                "Its hyper-parameters are traced arrays, on whose values nothing may branch."
            ) from error
        return driftlab.descent(tx, objective), initialize(key)

    return build


def draw(dataset: "xarray.Dataset") -> dict[str, Any]:
    """The figures of a sweep.

    Args:
      dataset: its result.

    Returns:
      File name without ending -> figure.
    """
    return {
        "final_training_loss": plot.final_value(dataset, "training_loss"),
        "final_accuracy": plot.final_value(dataset, "evaluation_accuracy"),
        "loss_curves": plot.curves(dataset, "training_loss"),
        "loss_heat_map": plot.heat_map(dataset, "training_loss"),
    }


def tables(dataset: "xarray.Dataset") -> dict[str, list[dict[str, Any]]]:
    """The tables of a sweep: what was best and stable, and every rate's outcome.

    Args:
      dataset: its result.

    Returns:
      Heading -> rows.
    """
    best = []
    for by_loss, by_accuracy in zip(
        learning_rate_summary(dataset, "training_loss"),
        learning_rate_summary(dataset, "evaluation_accuracy", larger_is_better=True),
        strict=True,
    ):
        point = {k: v for k, v in by_loss.items() if k in dataset.dims}
        best.append(
            point
            | {
                "best rate (training loss)": by_loss["best"],
                "training loss": by_loss["best_value"],
                "best rate (accuracy)": by_accuracy["best"],
                "test accuracy": by_accuracy["best_value"],
                "largest stable rate": by_loss["largest_stable"],
                "diverged": f"{100 * by_loss['failed_share']:.0f}%",
            }
        )
    failed = divergence_rate(dataset)
    loss, accuracy = final(dataset, "training_loss"), final(dataset, "evaluation_accuracy")
    seeds = ["seed"] if "seed" in loss.dims else []
    others = [name for name in failed.dims if name != "learning_rate"]
    stacked = failed.stack(row=[*others, "learning_rate"])
    outcome = []
    for index in range(stacked.sizes["row"]):
        point = {
            str(name): stacked[name].values[index].item() for name in (*others, "learning_rate")
        }
        outcome.append(
            point
            | {
                "diverged": f"{100 * float(stacked[index]):.0f}%",
                "training loss": float(loss.sel(point).median(seeds)),
                "test accuracy": float(accuracy.sel(point).median(seeds)),
            }
        )
    return {"Learning rates": best, "Every rate (medians over seeds that ended well)": outcome}


def main() -> None:
    """Runs the sweep that the flags describe."""
    config = flags.override(CONFIG.value)
    if OPTIMIZER.value is not None:
        config.optimizer_args = ""  # those in the config are another optimiser's
    for flag in (OPTIMIZER, OPTIMIZER_ARGS):
        if flag.value is not None:
            config[flag.name] = flag.value
    grid = make_grid(config)
    build = make_build(config, grid)
    out = flags.run_folder(config, "lr_sweep")
    measures = driftlab.measures
    whole = [measures.training(batch_size=1000), measures.evaluation(batch_size=1000)]
    sweep = partial(
        driftlab.sweep,
        build,
        grid,
        config.steps,
        measures=[
            *measures.DEFAULT,
            *(measures.every(measure, config.evaluate_every) for measure in whole),
        ],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        config=flags.as_json(config),
    )
    dataset = flags.run_shard(sweep, out)
    if dataset is None:
        return
    found = tables(dataset)
    report.write_report(out, "Learning-rate sweep", dataset, found, draw(dataset))
    report.print_table(*next(iter(found.items())))
    print(f"{out}/report.md: figures and the outcome of every rate")


if __name__ == "__main__":
    flags.run(main)
