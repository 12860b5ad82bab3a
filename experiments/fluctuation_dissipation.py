"""The fluctuation-dissipation relations of SGD, and the schedules that follow from them.

    python -m experiments.fluctuation_dissipation
    python -m experiments.fluctuation_dissipation --config=configs/fluctuation_dissipation_small.py
    python -m experiments.fluctuation_dissipation \
        --config=configs/fluctuation_dissipation_schedule.py

Both sides of both relations, accumulated over training at a sweep of learning rates: where and when
they meet, how long that takes, and what the second one says of the loss's curvature. With several
schedules in the config: learning rates that fall when the first relation equilibrates beside
constant ones and steps by hand, at equal epochs. Every learning rate and seed is a lane.
Source: Yaida (2019), "Fluctuation-dissipation relations for stochastic gradient descent".
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

import driftlab
from driftlab import measures
from driftlab.measures.fluctuation_curvature import second_relation
from driftlab.measures.fluctuation_dissipation import first_relation
from experiments import flags, fluctuation_dissipation_report, report
from experiments.fluctuation_dissipation_models import make_build, parse_schedules

if TYPE_CHECKING:
    import xarray

# Steps and records below which the measures say nothing: see driftlab.measures.
LEAST_STEPS, LEAST_RECORDS = 128, 32


def run(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/fluctuation_dissipation.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep, or one too short to say anything.
    """
    records = config.steps // config.record_every
    if config.steps < LEAST_STEPS or (config.second_relation and records < LEAST_RECORDS):
        raise ValueError(
            f"steps={config.steps}, record_every={config.record_every}: the averages need "
            f"{LEAST_STEPS} steps or more, and those of the second relation {LEAST_RECORDS} "
            "records; raise --steps, or lower --record_every."
        )
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    grid = driftlab.Grid(
        {"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)},
        {"schedule": parse_schedules(config.schedules)},
    )
    spaced = [measures.training(), measures.evaluation()]
    return driftlab.sweep(
        make_build(config),
        grid,
        config.steps,
        measures=[
            measures.loss,
            measures.parameter_norm,
            first_relation(),
            *([second_relation()] if config.second_relation else []),
            *(measures.every(measure, config.evaluate_every) for measure in spaced),
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
    out = flags.run_folder(config, "fluctuation_dissipation")
    dataset = flags.run_shard(partial(run, config), out)
    if dataset is None:
        return
    found = fluctuation_dissipation_report.tables(dataset, config)
    figures = fluctuation_dissipation_report.draw(dataset, config)
    report.write_report(out, "Fluctuation-dissipation", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("fluctuation_dissipation.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
