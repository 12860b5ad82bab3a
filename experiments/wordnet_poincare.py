"""Hierarchies in the Poincare ball: Riemannian SGD, Adagrad, Adam and AMSGrad on WordNet.

    python -m experiments.wordnet_poincare --config=configs/wordnet_poincare_small.py
    python -m experiments.wordnet_poincare --config=configs/wordnet_poincare_mammals.py
    python -m experiments.wordnet_poincare --config.relations=edges.tsv --config.batch_size=10

Every pair of a word and a more general one draws its two points together and away from words drawn
at random; every learning rate and seed is a lane, every optimiser and move (the retraction x + v or
the exponential) a program. The config describes all nouns, configs/wordnet_poincare_small.py the
mammals; any edge list does as well, lines of `child<TAB>ancestor`. The points of every optimiser's
best lane are left in `embedding_*.tsv`.
Source: Nickel, Kiela (2017), "Poincare embeddings for learning hierarchical representations";
Becigneul, Ganea (2019), "Riemannian adaptive optimization methods".
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

import driftlab
from driftlab import measures
from driftlab.transforms.riemannian_steps import METHODS as MOVES
from experiments import flags, report, wordnet_poincare_report
from experiments.wordnet_poincare_models import (
    OPTIMIZERS,
    Task,
    make_build,
    make_task,
    relation_scores,
)

if TYPE_CHECKING:
    import xarray


def run(config: Any, task: Task, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/wordnet_poincare.py.
      task: from `make_task(config)`.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    seeds = flags.parse_seeds(config.seeds)
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    grid = driftlab.Grid(
        {"learning_rate": rates, "seed": seeds},
        {
            "optimizer": flags.parse_names(config.optimizers, "optimizers", OPTIMIZERS),
            "move": flags.parse_names(config.moves, "moves", MOVES),
        },
    )
    return driftlab.sweep(
        make_build(config, task, seeds),
        grid,
        config.steps or config.epochs * task.steps_per_epoch,
        measures=[measures.loss, relation_scores(config, task)],
        record_every=config.record_every or config.record_epochs * task.steps_per_epoch,
        seed=config.seed,
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
    out = flags.run_folder(config, "wordnet_poincare")
    task = make_task(config)
    dataset = flags.run_shard(partial(run, config, task), out)
    if dataset is None:
        return
    outcome = wordnet_poincare_report.outcome(dataset, task)
    best = wordnet_poincare_report.write_embeddings(config, task, outcome, out)
    found = wordnet_poincare_report.tables(config, task, outcome, best)
    figures = wordnet_poincare_report.draw(config, task, outcome)
    report.write_report(out, "Hierarchies in the Poincare ball", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("wordnet_poincare.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
