"""Full-batch training at the edge of stability (Cohen et al. 2021, 2022), at many learning rates.

    python -m experiments.edge_of_stability
    python -m experiments.edge_of_stability --config=configs/edge_of_stability_small.py
    python -m experiments.edge_of_stability --config.optimizers=adam --learning_rates=1e-4:1e-2:8
    python -m experiments.edge_of_stability --config.loss=cross_entropy --out=runs/cross_entropy

The sharpness rises until the optimiser is about to become unstable, at 2 / learning_rate for
gradient descent, and stays there; gradient flow's goes on rising. The learning rates of an
optimiser are lanes of one compiled program, whose sweep has a folder of its own in the run's
folder, as has gradient flow; figures, report.md and summary.json are beside them. The same command
continues an interrupted run; on a finished one it redraws the figures.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags as absl_flags
from jaxtyping import Array, Float

import driftlab
from driftlab import flows, measures
from driftlab.dynamics import Snapshot
from driftlab.measures.sharpness import sharpness
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import WHOLE, is_finished, parse_shard
from experiments import edge_tables, flags, report
from experiments.edge_figures import draw, flow_curves
from experiments.edge_methods import Method, make_methods
from experiments.objective import Initialize, make_objective

if TYPE_CHECKING:
    import xarray

FLOW = "gradient_flow"
Problem = tuple[driftlab.Objective, Initialize]
CONFIG = flags.define_config("edge_of_stability.py")
absl_flags.adopt_module_key_flags(flags)


def override(config: Any) -> Any:
    """The config with the shared flags that were given put in.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/edge_of_stability.py.

    Returns:
      The same config; `--learning_rates` are those of every optimiser.
    """
    if flags.LEARNING_RATES.value is not None:
        for name in config.learning_rates:
            config.learning_rates[name] = flags.LEARNING_RATES.value
    for flag in (flags.SEEDS, flags.STEPS, flags.RECORD_EVERY):
        if flag.value is not None:
            config[flag.name] = flag.value
    return config


def loss_rises(snapshot: Snapshot) -> Float[Array, ""]:
    """Whether the step raises what is minimised: 1 or 0. Cost: one evaluation of the loss.

    Args:
      snapshot: what the step saw.
    """
    objective = snapshot.objective
    if objective is None:
        raise ValueError("loss_rises needs a dynamics with an objective.")
    after = objective.value(snapshot.next_state.params, snapshot.batch)[0]
    return (after > snapshot.value).astype(snapshot.value.dtype)


def run_method(
    config: Any, method: Method, problem: Problem, /, **options: Any
) -> "xarray.Dataset":
    """Sweeps the learning rates of one optimiser.

    Args:
      config: the config.
      method: the optimiser.
      problem: the objective, and `initialize(key) -> params`.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      The sweep's result.

    Raises:
      ValueError: if the config's text does not describe a grid.
    """
    objective, initialize = problem
    grid = driftlab.Grid(
        {"learning_rate": _rates(config, method.name), "seed": flags.parse_seeds(config.seeds)}
    )

    def build(hparams: HParams, key: Any) -> tuple[driftlab.Dynamics, Any]:
        transform = method.transform(hparams["learning_rate"])
        return driftlab.descent(transform, objective), initialize(key)

    recorded = method.measure(
        batch_size=config.curvature_batch_size or None, tolerance=config.tolerance
    )
    return driftlab.sweep(
        build,
        grid,
        config.steps,
        measures=[measures.loss, measures.gradient_norm, loss_rises, recorded],
        record_every=config.record_every,
        **options,
    )


def run_flow(config: Any, problem: Problem, /, **options: Any) -> "xarray.Dataset":
    """Follows gradient flow from every seed's initialisation, up to `flow_time`.

    Args:
      config: the config.
      problem: the objective, and `initialize(key) -> params`.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      The sweep's result: one step is `flow_time / flow_records` of time.
    """
    objective, initialize = problem
    field = flows.gradient_flow(objective)
    step_time = config.flow_time / config.flow_records

    def build(hparams: HParams, key: Any) -> tuple[driftlab.Dynamics, Any]:
        return flows.flow(field, step_time, objective), initialize(key)

    recorded = sharpness(batch_size=config.curvature_batch_size or None, tolerance=config.tolerance)
    return driftlab.sweep(
        build,
        driftlab.Grid({"seed": flags.parse_seeds(config.seeds)}),
        config.flow_records,
        measures=[measures.loss, recorded],
        **options,
    )


def tables(
    config: Any,
    methods: Mapping[str, Method],
    results: Mapping[str, "xarray.Dataset"],
    flow: "xarray.Dataset | None",
) -> dict[str, list[dict[str, Any]]]:
    """The tables: the claims, and every lane's plateau.

    Args:
      config: the config.
      methods: method name -> method.
      results: method name -> its sweep's result.
      flow: gradient flow's; None if it was not followed.

    Returns:
      Heading -> rows.
    """
    outcomes = {name: edge_tables.lanes(data, methods[name]) for name, data in results.items()}
    peaks: list[float] = []
    if flow is not None and "gradient_descent" in results:
        method, dataset = methods["gradient_descent"], results["gradient_descent"]
        curves = flow_curves(config, method, dataset, flow) or []
        rates = dataset["learning_rate"].values
        for curve, rate in zip(curves, rates, strict=True):
            peak = float(np.nanmax(curve.values)) * float(rate) / method.constant
            peaks += [peak] * dataset.sizes["seed"]
    return {
        "Claims": edge_tables.claim_rows(outcomes, methods, peaks, config.accuracy),
        "Every lane": edge_tables.lane_rows(outcomes, methods),
    }


def main() -> None:
    """Runs the sweeps that the flags describe."""
    config = override(CONFIG.value)
    if parse_shard(flags.SHARD.value) != WHOLE:
        raise ValueError(
            f"--shard={flags.SHARD.value}: this experiment is not split; run its optimisers in "
            "folders of their own, with --config.optimizers=NAME --out=FOLDER."
        )
    methods = make_methods(config)
    for name in methods:
        _rates(config, name)  # refused before anything has run
    problem = make_objective(config)
    described = flags.as_json(config)
    out = flags.run_folder(config, "edge_of_stability")
    options = {
        **flags.engine_options(),
        "seed": config.seed,
        "divergence_factor": config.divergence_factor,
        "config": described,
    }
    with opened(out, {"config": described, "x64": flags.X64.value}):
        followed = config.flow_time > 0 and any(method.flow_time for method in methods.values())
        parts = [*methods, *([FLOW] if followed else [])]
        finished = all(is_finished(out / part) for part in parts)
        results = {
            name: run_method(config, method, problem, out=out / name, **options)
            for name, method in methods.items()
        }
        flow = run_flow(config, problem, out=out / FLOW, **options) if followed else None
        flags.announce(out, finished)
        found = tables(config, methods, results, flow)
        whole = _whole([*results.values(), *([] if flow is None else [flow])])
        figures = draw(config, methods, results, flow)
        report.write_report(out, "Edge of stability", whole, found, figures)
    report.print_table("Edge of stability", found["Claims"])
    print(f"{out}/report.md: figures and every lane")


def _whole(parts: list["xarray.Dataset"]) -> "xarray.Dataset":
    """An empty dataset with the attrs of all sweeps together."""
    import xarray

    attrs = dict(parts[0].attrs)
    attrs["wall_seconds"] = sum(part.attrs["wall_seconds"] for part in parts)
    attrs["lanes"] = "; ".join(dict.fromkeys(part.attrs["lanes"] for part in parts))
    return xarray.Dataset(attrs=attrs)


def _rates(config: Any, name: str) -> np.ndarray:
    text = config.learning_rates[name]
    return flags.parse_values(text, f"learning_rates.{name}", positive=True)


if __name__ == "__main__":
    flags.run(main)
