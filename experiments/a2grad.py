"""A2Grad beside Adam, AMSGrad and SGD with momentum, each over a grid of its own.

    python -m experiments.a2grad
    python -m experiments.a2grad --config=configs/a2grad_small.py
    python -m experiments.a2grad --config=configs/a2grad_fashion_mnist.py --data_dir=FOLDER

Logistic regression, which is convex, and a network with one hidden layer. A2Grad's three variants
run with a scale per coordinate, as published, and with one a tensor, as in the public PyTorch
ports. L and beta, or the learning rate and b2 or momentum, are lanes; the methods of a family are
a static axis. Every network and family is a sweep with a folder of its own in the run's folder; the
same command continues an interrupted run.
Source: Deng, Cheng & Lan (2018), "Optimal adaptive and accelerated stochastic gradient descent",
section 5, figure 1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections
import optax
from absl import flags as absl_flags
from jaxtyping import Array

import driftlab
from driftlab import measures
from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Measure
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import is_finished
from driftlab.transforms.a2grad import a2grad
from experiments import a2grad_figures, a2grad_report, flags, report
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray

VARIANTS = ("uniform", "incremental", "exponential")
FAMILIES = {
    "a2grad": (*VARIANTS, *(f"{variant} scalar" for variant in VARIANTS)),
    "adam": ("adam", "amsgrad"),
    "sgd": ("sgd",),
}


def make_grids(config: Any) -> dict[str, driftlab.Grid]:
    """The methods and lanes of each family.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/a2grad.py.

    Returns:
      Family -> grid. (An axis called "method" could not be selected: that is an argument of
      xarray's own.)

    Raises:
      ValueError: if the config's text does not describe one.
    """

    def values(name: str) -> Any:
        return flags.parse_values(config[name], name, positive=True)

    axes = {
        "a2grad": {"lipschitz": values("lipschitz"), "beta": values("beta")},
        "adam": {"learning_rate": values("learning_rates"), "b2": values("b2")},
        "sgd": {"learning_rate": values("sgd_learning_rates"), "momentum": values("momentum")},
    }
    seeds = flags.parse_seeds(config.seeds)
    seed = {"seed": seeds} if len(seeds) > 1 else {}
    chosen = [name.strip() for name in config.optimizers.split(",")]
    known = [name for family in FAMILIES.values() for name in family]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"optimizers={config.optimizers!r}: {unknown} is none of {known}.")
    grids = {}
    for family, lanes in axes.items():
        names = [name for name in FAMILIES[family] if name in chosen]
        if names:
            grids[family] = driftlab.Grid(lanes | seed, {"optimizer": names})
    return grids


def optimizer(hparams: HParams, decay: float) -> optax.GradientTransformation:
    """The optimiser of a lane.

    Args:
      hparams: its method and what the method takes.
      decay: that of A2Grad's exponential variant.

    Returns:
      The chain.
    """
    method = str(hparams["optimizer"])
    if method == "sgd":
        return optax.sgd(hparams["learning_rate"], hparams["momentum"])
    if method in FAMILIES["adam"]:
        factory = {"adam": optax.adam, "amsgrad": optax.amsgrad}[method]
        return factory(hparams["learning_rate"], b2=hparams["b2"])
    variant, _, scalar = method.partition(" ")
    return a2grad(
        hparams["lipschitz"], hparams["beta"], variant, decay=decay, per_coordinate=not scalar
    )


def at_gradient_point(measure: Measure) -> Measure:
    """A measure at y, where A2Grad's gradients are taken and its authors evaluate.

    Args:
      measure: a measure at the evaluation point.

    Returns:
      The measure at the params instead.
    """
    return lambda snapshot: measure(snapshot._replace(eval_params=snapshot.params))


def at_average(measure: Measure) -> Measure:
    """A measure at xbar, the evaluation point that driftlab finds.

    Args:
      measure: a measure of named values at the evaluation point.

    Returns:
      The measure, the names with `average_` before them.
    """

    def renamed(snapshot: Snapshot) -> dict[str, Array]:
        found: Any = measure(snapshot)
        return {f"average_{name}": value for name, value in found.items()}

    return renamed


def make_build(config: Any, problem: Any) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/a2grad.py.
      problem: the objective and how its model is initialised.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`.
    """
    objective, initialize = problem

    def build(hparams: HParams, key: Any) -> tuple[driftlab.Dynamics, Any]:
        return driftlab.descent(optimizer(hparams, config.decay), objective), initialize(key)

    return build


def run(config: Any, network: str, out: Path | None = None, **options: Any) -> Any:
    """All families on one network.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/a2grad.py.
      network: one of `config.networks`, described by the config's field of that name.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Family -> dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    described: Any = ml_collections.ConfigDict(config.to_dict() | config[network].to_dict())
    problem = make_objective(described)
    objective = problem[0]
    per_epoch = objective.sampling.steps_per_epoch(objective.size)
    whole = [measures.training(batch_size=1000), measures.evaluation(batch_size=1000)]
    found = {}
    for family, grid in make_grids(config).items():
        found[family] = driftlab.sweep(
            make_build(config, problem),
            grid,
            config.steps or described.epochs * per_epoch,
            measures=[
                measures.loss,
                *map(at_gradient_point, whole),
                *(
                    measures.every(at_average(measure), config.average_every)
                    for measure in whole
                    if family == "a2grad"
                ),
            ],
            record_every=config.record_every or config.epochs_per_record * per_epoch,
            seed=config.seed,
            divergence_factor=config.divergence_factor,
            out=None if out is None else out / f"{network}_{family}",
            config=flags.as_json(config) | {"steps_per_epoch": per_epoch},
            **options,
        ).assign_attrs(steps_per_epoch=per_epoch)
    return found


def run_all(
    config: Any, out: Path | None = None, **options: Any
) -> dict[str, dict[str, "xarray.Dataset"]]:
    """All networks of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/a2grad.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Network -> family -> dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    make_grids(config)  # refused before data are read
    networks = [name.strip() for name in config.networks.split(",")]
    unknown = [name for name in networks if not isinstance(config.get(name), type(config))]
    if unknown:
        raise ValueError(
            f"networks={config.networks!r}: the config does not describe {unknown}; it needs a "
            "field of that name with model, model_args and epochs."
        )
    return {network: run(config, network, out, **options) for network in networks}


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    flags.refuse_shard()
    out = flags.run_folder(config, "a2grad")
    with opened(out, {"config": flags.as_json(config), "x64": flags.X64.value}):
        networks = [name.strip() for name in config.networks.split(",")]
        families = make_grids(config)
        parts = [out / f"{network}_{family}" for network in networks for family in families]
        finished = all(is_finished(part) for part in parts)
        results = run_all(config, out, **flags.engine_options())
        flags.announce(out, finished)
        outcomes = a2grad_report.outcomes(results)
        found = a2grad_report.tables(outcomes)
        whole = a2grad_report.whole(results)
        figures = a2grad_figures.draw(results, outcomes)
        report.write_report(out, "A2Grad", whole, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("a2grad.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
