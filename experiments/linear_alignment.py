"""Alignment of deep linear networks: rank one, one direction, the max margin; and its drift.

    python -m experiments.linear_alignment
    python -m experiments.linear_alignment --config=configs/linear_alignment_small.py

Five parts, each a sweep with a folder of its own in the run's folder. `plane` and `images`: a deep
linear network and one of a single layer, on separable points of a plane and on two classes of real
images, by gradient descent at constant learning rates and at multiples of the step sizes for which
the theorem is proved. `flow`: gradient flow by arc length, down to risks that have no number.
`drift`: what optimisers do to the balancedness that gradient flow conserves, beside what the
modified flow predicts. `cnn`: the dense layers of a convolutional network under SGD. Learning rates
and seeds are lanes; all but the last part in 64 bits.
Source: Ji & Telgarsky (2019), "Gradient descent aligns the layers of deep linear networks".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import PRNGKeyArray

import driftlab
from driftlab import measures
from driftlab.flows import gradient_descent_flow, gradient_flow
from driftlab.flows.arc_length import arc_length_flow
from driftlab.measures.layer_balance import balancedness_drift
from driftlab.measures.singular_alignment import spectral_ratio
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import is_finished
from driftlab.transforms.deep_linear import deep_linear_descent
from experiments import (
    flags,
    linear_alignment_figures,
    linear_alignment_models,
    linear_alignment_report,
    report,
)
from experiments.linear_alignment_models import IMAGES, PLANE, Separable
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray

STEP_SIZES = ("constant", "proved")
DYNAMICS = (
    "gradient_descent",
    "gradient_flow",
    "modified_flow",
    "heavy_ball",
    "nesterov",
    "adam",
)
ALL_PARTS = (PLANE, IMAGES, "flow", "drift", "cnn")
STARTS = ("default", "norm_4")


def make_problems(config: Any) -> dict[str, Separable]:
    """The separable data of a config, with their max-margin directions.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.

    Returns:
      "plane" and "images".

    Raises:
      ValueError: if data do not exist, or are not separable.
    """
    return {
        PLANE: linear_alignment_models.plane(config.plane_examples, config.plane_gap, config.seed),
        IMAGES: linear_alignment_models.images(config),
    }


def run_descent(
    config: Any, name: str, separable: Separable, out: Path | None = None, **options: Any
) -> "xarray.Dataset":
    """Deep and shallow networks by gradient descent.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.
      name: "plane" or "images".
      separable: the data.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.
    """
    inner = linear_alignment_models.widths(config[f"{name}_widths"])
    depths = (1, len(inner) + 1)
    with jax.enable_x64(True):
        networks = {
            depth: linear_alignment_models.network(
                separable, inner if depth > 1 else (), config.scale
            )
            for depth in depths
        }
        key = jax.random.key(config.seed)

        def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
            rate, net = hparams["learning_rate"], networks[hparams["depth"]]
            tx = optax.sgd(rate)
            if hparams["step_size"] == "proved":
                tx = optax.chain(deep_linear_descent(), optax.scale(rate))
            start = net.initialize(jax.random.fold_in(key, hparams["seed"]))
            return driftlab.descent(tx, net.objective), start

        rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
        return driftlab.sweep(
            build,
            driftlab.Grid(
                {"learning_rate": rates, "seed": flags.parse_seeds(config.seeds)},
                {"depth": depths, "step_size": STEP_SIZES},
            ),
            config[f"{name}_steps"],
            measures=linear_alignment_models.alignment_measures(separable, list(networks.values())),
            record_every=max(config[f"{name}_steps"] // config.records, 1),
            seed=config.seed,
            divergence_factor=config.divergence_factor,
            out=out,
            config=flags.as_json(config),
            **options,
        )


def run_flow(
    config: Any, problems: dict[str, Separable], out: Path | None = None, **options: Any
) -> "xarray.Dataset":
    """Deep networks along gradient flow, by the length of its path.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.
      problems: the data.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset, over tolerances, seeds and problems.
    """
    with jax.enable_x64(True):
        networks = {
            name: linear_alignment_models.network(
                separable,
                linear_alignment_models.widths(config[f"{name}_widths"]),
                config.scale,
            )
            for name, separable in problems.items()
        }
        key = jax.random.key(config.seed)
        recorded = {
            name: linear_alignment_models.alignment_measures(problems[name], [net])
            for name, net in networks.items()
        }

        def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
            net = networks[hparams["problem"]]
            dynamics = driftlab.flow(
                arc_length_flow(net.log_objective),
                config.flow_length / config.flow_records,
                net.log_objective,
                rtol=hparams["tolerance"],
            )
            return dynamics, net.initialize(jax.random.fold_in(key, hparams["seed"]))

        tolerances = flags.parse_values(config.tolerances, "tolerances", positive=True)

        return driftlab.sweep(
            build,
            driftlab.Grid(
                {"tolerance": tolerances, "seed": flags.parse_seeds(config.seeds)},
                {"problem": tuple(networks)},
            ),
            config.flow_records,
            measures=[_chosen(recorded, networks), balancedness_drift()],
            seed=config.seed,
            out=out,
            config=flags.as_json(config),
            # Under vmap every adaptive solve would take the steps of the stiffest lane.
            **{**options, "lanes": "map"},
        )


def _chosen(recorded: dict[str, list[Any]], networks: dict[str, Any]) -> Any:
    """The measures of the problem that a snapshot is of, told apart by its number of inputs."""
    inputs = {net.objective.data.inputs.shape[1]: name for name, net in networks.items()}

    def name_of(params: Any) -> str:
        return inputs[params["layer_0"]["kernel"].shape[0]]

    def init(params: Any) -> Any:
        return measures.initial_memory(recorded[name_of(params)], params)

    def update(snapshot: Any, memory: Any) -> Any:
        return measures.record(recorded[name_of(snapshot.params)], snapshot, memory)

    return measures.Tracker("alignment", init, update)


def run_drift(
    config: Any, problems: dict[str, Separable], out: Path | None = None, **options: Any
) -> "xarray.Dataset":
    """Balancedness under optimisers and flows, at one effective learning rate, to one time.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.
      problems: the data.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset; iteration `drift_time / h` of each lane is the one to look at.

    Raises:
      ValueError: if the learning rates do not divide the time.
    """
    rates = flags.parse_values(config.drift_rates, "drift_rates", positive=True)
    counts = config.drift_time / rates
    if len(rates) < 2 or np.abs(counts - np.rint(counts)).max() > 1e-6:
        raise ValueError(
            f"drift_rates={config.drift_rates!r}: give two or more that divide "
            f"drift_time={config.drift_time}, so that all have an iteration there."
        )
    m, names = config.momentum, config.drift_dynamics.split(",")
    _check_names("drift_problems", config.drift_problems.split(","), tuple(problems))
    _check_names("drift_dynamics", names, DYNAMICS, DYNAMICS[:3])
    with jax.enable_x64(True):
        inner = linear_alignment_models.widths(config.drift_widths)
        networks = {
            name: linear_alignment_models.network(problems[name], inner, config.scale)
            for name in config.drift_problems.split(",")
        }
        key = jax.random.key(config.seed)

        def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
            net, h, name = (
                networks[hparams["problem"]],
                hparams["learning_rate"],
                hparams["dynamics"],
            )
            objective, start = net.objective, net.initialize(key)
            if name.endswith("flow"):
                field = gradient_flow(objective)
                if name == "modified_flow":
                    field = gradient_descent_flow(objective, h, 2, route="closed_form")
                return driftlab.flow(field, h, objective, rtol=config.drift_tolerance), start
            chains = {
                "gradient_descent": lambda: optax.sgd(h),
                "heavy_ball": lambda: optax.sgd(h * (1 - m), m),
                "nesterov": lambda: optax.sgd(h * (1 - m), m, nesterov=True),
                "adam": lambda: optax.adam(config.adam_factor * h),
            }
            return driftlab.descent(chains[name](), objective), start

        return driftlab.sweep(
            build,
            driftlab.Grid(
                {"learning_rate": np.sort(rates)[::-1]},
                {"problem": tuple(networks), "dynamics": tuple(names)},
            ),
            int(np.rint(counts.max())),
            measures=[
                measures.loss,
                linear_alignment_models.balance_entries,
                balancedness_drift(),
            ],
            seed=config.seed,
            divergence_factor=config.divergence_factor,
            out=out,
            config=flags.as_json(config),
            **{**options, "lanes": "map"},
        )


def _check_names(
    field: str, given: list[str], known: Sequence[str], needed: Sequence[str] = ()
) -> None:
    unknown = [name for name in given if name not in known]
    missing = [name for name in needed if name not in given]
    if unknown or missing:
        raise ValueError(
            f"{field}={','.join(given)!r} must name some of {', '.join(known)}"
            + (f", {', '.join(needed)} among them." if needed else ".")
        )


def run_cnn(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """The dense layers of a convolutional network under SGD.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.
      out: the sweep's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config's `cnn` describes no network.
    """
    objective, initialize = make_objective(config.cnn)

    def build(hparams: HParams, key: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        first, second = jax.random.split(key)
        params = initialize(first)
        if hparams["start"] == "norm_4":
            params = linear_alignment_models.with_dense_norm(params, second, 4.0)
        return driftlab.descent(optax.sgd(hparams["learning_rate"]), objective), params

    rates = flags.parse_values(config.cnn.learning_rates, "cnn.learning_rates", positive=True)
    return driftlab.sweep(
        build,
        driftlab.Grid(
            {"learning_rate": rates, "seed": flags.parse_seeds(config.cnn.seeds)},
            {"start": STARTS},
        ),
        config.cnn.steps,
        measures=[
            measures.loss,
            spectral_ratio(),
            measures.every(measures.evaluation(), 5),
        ],
        record_every=max(config.cnn.steps // config.cnn.records, 1),
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
    for flag in (flags.STEPS, flags.RECORD_EVERY):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name} has no effect here: each part has its own, such as "
                "--config.plane_steps and --config.records."
            )
    config = flags.override(config)
    flags.refuse_shard()
    out = flags.run_folder(config, "linear_alignment")
    chosen = PARTS.value.split(",")
    _check_names("--parts", chosen, ALL_PARTS)
    with opened(out, {"config": flags.as_json(config)}):
        problems = make_problems(config)
        parts = {
            PLANE: lambda **given: run_descent(config, PLANE, problems[PLANE], **given),
            IMAGES: lambda **given: run_descent(config, IMAGES, problems[IMAGES], **given),
            "flow": lambda **given: run_flow(config, problems, **given),
            "drift": lambda **given: run_drift(config, problems, **given),
            "cnn": lambda **given: run_cnn(config, **given),
        }
        finished = all(is_finished(out / name) for name in chosen)
        results = {
            name: part(out=out / name, **flags.engine_options())
            for name, part in parts.items()
            if name in chosen
        }
        flags.announce(out, finished)
        margins = {name: found.oracle.margin for name, found in problems.items()}
        tables = linear_alignment_report.tables(results, config, margins)
        seconds = sum(dataset.attrs["wall_seconds"] for dataset in results.values())
        figures = linear_alignment_figures.draw(results, config)
        whole = results[chosen[0]].assign_attrs(wall_seconds=seconds)
        title = "Alignment of deep linear networks"
        report.write_report(out, title, whole, tables, figures)
    report.print_tables(out, tables)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("linear_alignment.py")
    absl_flags.adopt_module_key_flags(flags)
    PARTS = absl_flags.DEFINE_string(
        "parts", ",".join(ALL_PARTS), "Which parts to run; a later command with others adds them."
    )
    flags.run(lambda: main(CONFIG.value))
