"""Momentum beside its flows: errors against the learning rate, the manifold, and two networks.

    python -m experiments.momentum_flows
    python -m experiments.momentum_flows --config=configs/momentum_flows_small.py

Part 1, in 64 bits: heavy ball and Nesterov (`optax.sgd`) on a quadratic, a curved valley and a
network, every iteration beside the rescaled gradient flow, the inertial flow from three initial
velocities and the modified flow, and its distance to the invariant manifold. Learning rates are
lanes. Part 2: a classifier and an autoencoder of real images, trained by gradient descent, heavy
ball and Nesterov with several momenta at one effective learning rate `h / (1 - m)`, and along the
gradient flow that all of them are claimed to follow. Each part is a sweep with a folder of its own
in the run's folder; the same command continues an interrupted run.
Source: Kovachki & Stuart (2021), "Continuous time analysis of momentum methods".
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import PRNGKeyArray

import driftlab
from driftlab import measures
from driftlab.flows.momentum import rescaled_gradient_flow
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import is_finished
from experiments import flags, momentum_flows_figures, momentum_flows_report, report
from experiments.momentum_flows_models import METHODS, beside, errors, make_networks, make_problems

if TYPE_CHECKING:
    import xarray


def run_errors(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Part 1: the optimisers beside their flows, in 64 bits.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    counts = config.time / rates
    if len(rates) < 2 or np.abs(counts - np.rint(counts)).max() > 1e-6:
        raise ValueError(
            f"learning_rates={config.learning_rates!r}: give two or more that divide "
            f"time={config.time}, so that all have an iteration there."
        )
    with jax.enable_x64(True):
        problems = make_problems(config)
        key = jax.random.key(config.seed)
        starts = {name: jax.jit(start)(key) for name, (_, start) in problems.items()}

        def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
            name, method = hparams["problem"], hparams["method"]
            dynamics = beside(
                problems[name][0],
                hparams["learning_rate"],
                config.momentum,
                method == "nesterov",
            )
            return dynamics, starts[name]

        grid = driftlab.Grid(
            {"learning_rate": np.sort(rates)[::-1]},
            {"problem": tuple(problems), "method": METHODS},
        )
        return driftlab.sweep(
            build,
            grid,
            int(np.rint(counts.max())),
            measures=[measures.loss, errors],
            record_every=1,
            seed=config.seed,
            divergence_factor=config.divergence_factor,
            out=out,
            config=flags.as_json(config),
            **options,
        )


def training_runs(config: Any) -> dict[str, tuple[str, float]]:
    """The methods of part 2.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      Label -> (method, momentum); the first is the gradient flow.
    """
    runs = {"gradient flow": ("flow", 0.0)}
    for m in flags.parse_values(config.momenta, "momenta"):
        if m == 0:
            runs["gradient descent"] = ("heavy_ball", 0.0)
        else:
            runs |= {f"{method.replace('_', ' ')} {m:g}": (method, float(m)) for method in METHODS}
    return runs


def run_training(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Part 2: two networks at one effective learning rate.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset; iteration n of every run is at the time `t = n h / (1 - m)` of gradient flow.

    Raises:
      ValueError: if the config describes no sweep.
    """
    networks, runs = make_networks(config), training_runs(config)
    seeds = flags.parse_seeds(config.seeds)
    key = jax.random.key(config.seed)

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        objective, initialize = networks[hparams["network"]]
        rate = config[f"{hparams['network']}_learning_rate"]
        method, m = runs[hparams["run"]]
        start = initialize(jax.random.fold_in(key, hparams["seed"]))
        if method == "flow":
            field = rescaled_gradient_flow(objective, 0.0)
            return driftlab.flow(field, rate, objective, rtol=1e-4), start
        tx = optax.sgd(rate * (1 - m), m, method == "nesterov")
        return driftlab.descent(tx, objective), start

    grid = driftlab.Grid({"seed": seeds}, {"network": tuple(networks), "run": tuple(runs)})
    return driftlab.sweep(
        build,
        grid,
        config.steps,
        measures=[measures.loss],
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
    flags.refuse_shard()
    described = flags.as_json(config)
    out = flags.run_folder(config, "momentum_flows")
    with opened(out, {"config": described, "x64": flags.X64.value}):
        parts = {"errors": run_errors, "training": run_training}
        finished = all(is_finished(out / name) for name in parts)
        results = {
            name: part(
                config,
                out / name,
                **flags.engine_options(),
            )
            for name, part in parts.items()
        }
        flags.announce(out, finished)
        far, trained = results["errors"], results["training"]
        runs = training_runs(config)
        found = momentum_flows_report.tables(far, trained, runs, config.momentum, config.time)
        seconds = sum(dataset.attrs["wall_seconds"] for dataset in results.values())
        figures = momentum_flows_figures.draw(far, trained, runs, config)
        whole = trained.assign_attrs(wall_seconds=seconds)
        report.write_report(out, "Momentum beside its flows", whole, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("momentum_flows.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
