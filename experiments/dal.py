"""DAL, the drift-adjusted learning rate, beside a sweep of fixed learning rates.

    python -m experiments.dal
    python -m experiments.dal --config=configs/dal_small.py
    python -m experiments.dal --config.data=fashion_mnist --data_dir=FOLDER --config.model=cnn \
        --config.model_args="channels=(8,16)" --config.train_size=500

DAL(p) takes the rate `min(c / v^p, cap)`, `v = ||H g|| / ||g||`, c = 2, at every step. Powers,
caps, momenta and seeds are lanes of one compiled program, the fixed rates of another, on all
examples at once and on mini-batches; each of these sweeps has a folder of its own in the run's
folder, figures, report.md and summary.json are beside them. The same command continues an
interrupted run; on a finished one it redraws the figures.
Source: Rosca, Wu, Qin, Dherin (2023), "On a continuous time model of gradient descent dynamics and
instability in deep learning", section 6.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Array

import driftlab
from driftlab import measures, sampling
from driftlab.dynamics import Snapshot
from driftlab.sweep.folder import opened
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import WHOLE, is_finished, parse_shard
from driftlab.transforms.dal import scale_by_dal
from experiments import dal_report, flags, report
from experiments.objective import Initialize, make_objective

if TYPE_CHECKING:
    import xarray

FULL, MINI = "full_batch", "mini_batch"
Problem = tuple[driftlab.Objective, Initialize]


def make_grids(config: Any) -> dict[str, driftlab.Grid]:
    """The lanes of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dal.py.

    Returns:
      "fixed" and "dal" -> grid.

    Raises:
      ValueError: if the config's text does not describe one.
    """
    momentum = flags.parse_values(config.momentum, "momentum")
    if not ((momentum >= 0) & (momentum < 1)).all():
        raise ValueError(f"momentum={config.momentum!r}: every value must lie in [0, 1).")
    shared = {"momentum": momentum, "seed": flags.parse_seeds(config.seeds)}
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    powers = flags.parse_values(config.powers, "powers", positive=True)
    caps = flags.parse_values(config.max_learning_rates, "max_learning_rates", positive=True)
    if not np.isclose(caps, config.reference_cap).any():
        raise ValueError(
            f"reference_cap={config.reference_cap} must be one of max_learning_rates="
            f"{config.max_learning_rates!r}: the claims are about it."
        )
    return {
        "fixed": driftlab.Grid({"learning_rate": rates, **shared}),
        "dal": driftlab.Grid({"power": powers, "max_learning_rate": caps, **shared}),
    }


def dal_state(snapshot: Snapshot) -> dict[str, Array]:
    """The rate and v of DAL's step, from its optax state. Cost: none.

    Args:
      snapshot: what the step saw.

    Returns:
      `dal_learning_rate` and `dal_curvature`.
    """
    inner = snapshot.next_state.inner
    return {
        "dal_learning_rate": optax.tree.get(inner, "learning_rate"),
        "dal_curvature": optax.tree.get(inner, "curvature"),
    }


def run(config: Any, problem: Problem, batching: str, method: str, **options: Any) -> Any:
    """One of the sweeps of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dal.py.
      problem: the objective and how its model is initialised.
      batching: "full_batch" or "mini_batch".
      method: "fixed" or "dal".
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    objective, initialize = problem
    if batching == FULL:
        objective = dataclasses.replace(objective, sampling=sampling.full_batch())

    def build(hparams: HParams, key: Any) -> tuple[driftlab.Dynamics, Any]:
        if method == "dal":
            scale = scale_by_dal(
                hparams["power"],
                config.constant,
                max_learning_rate=hparams["max_learning_rate"],
                method=config.method,
            )
        else:
            scale = optax.scale(hparams["learning_rate"])
        # The scaled gradient is accumulated, for fixed rates too: then it is the same as sgd.
        tx = optax.chain(scale, optax.trace(hparams["momentum"]), optax.scale(-1.0))
        return driftlab.descent(tx, objective), initialize(key)

    curvature = measures.sharpness(batch_size=config.curvature_batch_size or None)
    whole = [measures.training(batch_size=1000), measures.evaluation(batch_size=1000)]
    return driftlab.sweep(
        build,
        make_grids(config)[method],
        config.steps if batching == FULL else config.mini_batch_steps,
        measures=[
            measures.loss,
            *([dal_state] if method == "dal" else []),
            *(measures.every(measure, config.evaluate_every) for measure in whole),
            measures.every(curvature, config.curvature_every),
        ],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        config=flags.as_json(config),
        **options,
    )


def run_all(
    config: Any, out: Path | None = None, **options: Any
) -> dict[str, dict[str, "xarray.Dataset"]]:
    """All sweeps of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dal.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      batching -> method -> dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    if not config.steps and not config.mini_batch_steps:
        raise ValueError("steps and mini_batch_steps are both 0: there is nothing to run.")
    make_grids(config)  # refused before data are read
    problem = make_objective(config)
    lengths = {FULL: config.steps, MINI: config.mini_batch_steps}
    return {
        batching: {
            method: run(
                config,
                problem,
                batching,
                method,
                out=None if out is None else out / f"{batching}_{method}",
                **options,
            )
            for method in ("fixed", "dal")
        }
        for batching, steps in lengths.items()
        if steps
    }


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    if parse_shard(flags.SHARD.value) != WHOLE:
        raise ValueError(
            f"--shard={flags.SHARD.value}: this experiment is not split; run full batches and "
            "mini-batches in folders of their own, with --config.mini_batch_steps=0 and "
            "--config.steps=0."
        )
    described = flags.as_json(config)
    out = flags.run_folder(config, "dal")
    with opened(out, {"config": described, "x64": flags.X64.value}):
        parts = [path for path in out.glob("*_batch_*") if path.is_dir()]
        finished = bool(parts) and all(is_finished(path) for path in parts)
        results = run_all(
            config,
            out,
            **flags.engine_options(),
        )
        flags.announce(out, finished)
        found = dal_report.tables(results, config.reference_cap)
        whole = _whole(results)
        figures = dal_report.draw(results, config.reference_cap)
        report.write_report(out, "DAL against fixed rates", whole, found, figures)
    report.print_table(*next(iter(found.items())))
    print(f"{out}/report.md: figures, and every rate, power and cap")


def _whole(results: Mapping[str, Mapping[str, "xarray.Dataset"]]) -> "xarray.Dataset":
    """An empty dataset with the attrs of all sweeps together."""
    import xarray

    parts = [dataset for pair in results.values() for dataset in pair.values()]
    attrs = dict(parts[0].attrs)
    attrs["wall_seconds"] = sum(part.attrs["wall_seconds"] for part in parts)
    attrs["lanes"] = "; ".join(dict.fromkeys(part.attrs["lanes"] for part in parts))
    return xarray.Dataset(attrs=attrs)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("dal.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
