"""Continuous-time models of the edge of stability, side by side on the same runs.

    python -m experiments.central_flows
    python -m experiments.central_flows --config=configs/central_flows_small.py
    python -m experiments.central_flows --config.optimizers=rmsprop --steps=300

Gradient descent beside its central flow (Cohen, Damian et al. 2025), rod flow (Regis, Chewi 2026),
edge flow (Marion 2026) and stable (gradient) flow; RMSProp, with a second moment for every
parameter or one for all (scalar), beside its central and stable flows.
Learning rates and seeds are lanes; each model is one compiled program, and carries the optimiser
along from the same start, so that distances are taken step by step. Every optimiser has a folder
of its own in the run's folder; figures, report.md and summary.json are beside them.
"""

import functools
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

import driftlab
from driftlab import curvature, measures
from driftlab.measures.sharpness import preconditioned_sharpness
from driftlab.sweep.folder import opened
from driftlab.sweep.launch import is_finished
from experiments import central_flows_figures, flags, report
from experiments import central_flows_models as models
from experiments import central_flows_report as found_report
from experiments.central_flows_predictions import predictions
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray


def run(config: Any, optimizer: str, problem: Any, /, **options: Any) -> "xarray.Dataset":
    """Sweeps the models and learning rates of one optimiser.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/central_flows.py.
      optimizer: its name.
      problem: the objective, and `initialize(key) -> params`.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config's text describes no grid, or there is no such optimiser.
    """
    if optimizer not in models.MODELS:
        raise ValueError(f"optimizers={optimizer!r}: there are {', '.join(models.MODELS)}.")
    rates = flags.parse_values(
        config.learning_rates[optimizer], f"learning_rates.{optimizer}", positive=True
    )
    grid = driftlab.Grid(
        {"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)},
        {"model": models.MODELS[optimizer]},
    )
    read = functools.partial(curvature.preconditioner, **models.reading_of(config))

    def diagonal(inner: models.Accompanied, identity_like: Any) -> Any:
        return read(inner.model, identity_like=identity_like)

    spaced = measures.every(
        preconditioned_sharpness(preconditioner=diagonal, or_identity=True), config.sharpness_every
    )
    return driftlab.sweep(
        models.make_build(config, optimizer, *problem),
        grid,
        config.steps,
        measures=[measures.loss, predictions(config.eigenvectors), spaced],
        record_every=1,
        **options,
    )


def main(config: Any) -> None:
    """Runs the sweeps that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag in (flags.SEEDS, flags.STEPS):
        if flag.value is not None:
            config[flag.name] = flag.value
    if flags.LEARNING_RATES.value is not None or flags.RECORD_EVERY.value is not None:
        raise ValueError(
            "--learning_rates and --record_every do not apply: each optimiser has its own, as in "
            "--config.learning_rates.rmsprop=1e-3, and every step is recorded."
        )
    flags.refuse_shard()
    names = config.optimizers.split(",")
    problem = make_objective(config)
    described = flags.as_json(config)
    out = flags.run_folder(config, "central_flows")
    options = {
        **flags.engine_options(),
        "seed": config.seed,
        "divergence_factor": config.divergence_factor,
        "config": described,
    }
    with opened(out, {"config": described, "x64": flags.X64.value}):
        finished = all(is_finished(out / name) for name in names)
        results = {name: run(config, name, problem, out=out / name, **options) for name in names}
        flags.announce(out, finished)
        found = found_report.tables(results, config.window)
        whole = found_report.joined(results)
        figures = central_flows_figures.draw(results, config.window)
        report.write_report(out, "Models of the edge of stability", whole, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("central_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
