"""The distance between an optimiser and the flows that model it, against step and learning rate.

    python -m experiments.flow_vs_descent
    python -m experiments.flow_vs_descent --config=configs/flow_vs_descent_small.py
    python -m experiments.flow_vs_descent --optimizer=sgd --optimizer_args=momentum=0.9 \
        --learning_rates=1e-3:8e-3:4 --config.duration=0.3 --config.shown_rates=0.02
    python -m experiments.flow_vs_descent --config.problem=network --config.flows=order_2,order_3

Every learning rate is a lane, in which the optimiser and all its flows start together. For a flow
of P terms the distance after one step falls with h to the power P + 1, the one after a fixed time
with P; the tables hold the fitted slopes. Portraits of trajectories on 2-D problems, below and
above 1 / lambda and 2 / lambda, are drawn over the loss's contours. In float64, but for --nox64.
Source: Rosca, Wu, Qin, Dherin (2023), "On a continuous time model of gradient descent dynamics and
instability in deep learning"; Hairer, Lubich & Wanner (2006), Geometric Numerical Integration, IX.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags
from jaxtyping import Float

import driftlab
from driftlab import transforms
from driftlab.data import problems
from driftlab.suggestions import nearest
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import is_finished
from experiments import flags, flow_portraits, flow_vs_descent_report, report
from experiments.flow_models import compare, distances, parse_models
from experiments.objective import make_objective

if TYPE_CHECKING:
    import xarray

NETWORK = "network"
PROBLEMS = {
    "quadratic": lambda: problems.quadratic((2.0, 0.2), initial=(-0.35, -0.35)),
    "rosenbrock": problems.rosenbrock,
    "perturbed_rosenbrock": problems.perturbed_rosenbrock,
}


class Setting(NamedTuple):
    """What a config describes.

    Attributes:
      objective: what is minimised.
      params: where it starts.
      factory: `factory(learning_rate=h) -> optax.GradientTransformation`.
      flows: the names of the flows.
      fitted: the learning rates of the slopes, `duration / n` each.
      rates: all learning rates.
      steps: iterations of every lane: the smallest fitted rate's n.
    """

    objective: driftlab.Objective
    params: Any
    factory: Callable[..., Any]
    flows: tuple[str, ...]
    fitted: Float[np.ndarray, " fitted"]
    rates: Float[np.ndarray, " rates"]
    steps: int


def make_setting(config: Any) -> Setting:
    """What a config describes.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/flow_vs_descent.py.

    Returns:
      The setting.

    Raises:
      ValueError: if it describes none.
    """
    if config.warm_up < 0:
        raise ValueError(f"warm_up={config.warm_up} must be 0 or more iterations.")
    given = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    counts = np.unique(np.maximum(np.round(config.duration / given), 1))
    if len(counts) < 2:
        raise ValueError(
            f"learning_rates={config.learning_rates!r} with duration={config.duration}: a slope "
            "needs two different numbers of iterations duration / h."
        )
    fitted = config.duration / counts
    shown = flags.parse_values(config.shown_rates, "shown_rates", positive=True)
    arguments = flags.parse_arguments(config.optimizer_args, "optimizer_args")
    factory = transforms.by_name(config.optimizer, **arguments)
    plain = config.optimizer == "sgd" and not arguments
    if config.problem == NETWORK:
        objective, initialize = make_objective(config)
        params = jax.jit(initialize)(jax.random.key(config.seed))
    elif config.problem in PROBLEMS:
        problem = PROBLEMS[config.problem]()
        objective, params = driftlab.Objective(problem.loss), problem.initial_params
    else:
        offered = nearest(config.problem, (*PROBLEMS, NETWORK))
        raise ValueError(f"there is no problem {config.problem!r}: {offered}")
    return Setting(
        objective,
        params,
        factory,
        parse_models(config.flows, plain),
        fitted,
        np.union1d(fitted, shown),
        int(max(counts.max(), config.shown_steps)),
    )


def run(config: Any, setting: Setting, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the optimiser and its flows at every learning rate.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/flow_vs_descent.py.
      setting: what it describes.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      The sweep's dataset, with `distance_NAME` and `failed_NAME` for each flow.
    """

    def build(hparams: HParams, key: Any) -> tuple[driftlab.Dynamics, Any]:
        del key
        fitted = hparams["learning_rate"] <= setting.fitted.max() * (1 + 1e-6)
        dynamics = compare(
            setting.factory,
            setting.objective,
            setting.params,
            hparams["learning_rate"],
            setting.flows,
            warm_up=config.warm_up,
            rtol=jnp.where(fitted, config.rtol, config.shown_rtol),
            products=config.products if config.problem == NETWORK else None,
        )
        return dynamics, setting.params

    return driftlab.sweep(
        build,
        driftlab.Grid({"learning_rate": setting.rates}),
        setting.steps,
        measures=[driftlab.measures.loss, distances],
        seed=config.seed,
        # A flow is followed for as long as the optimiser's numbers last.
        divergence_factor=1e12,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag, field in ((flags.LEARNING_RATES, "learning_rates"), (OPTIMIZER, "optimizer")):
        if flag.value is not None:
            config[field] = flag.value
    if OPTIMIZER.value is not None:
        config.optimizer_args = ""  # those in the config are another optimiser's
    if OPTIMIZER_ARGS.value is not None:
        config.optimizer_args = OPTIMIZER_ARGS.value
    for flag in (flags.SEEDS, flags.STEPS, flags.RECORD_EVERY):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name} has no effect here: config.duration and config.learning_rates give "
                "the steps, all of which are recorded; config.seed is the network's."
            )
    flags.refuse_shard()
    setting = make_setting(config)
    portraits = flow_portraits.parse_portraits(config, PROBLEMS)
    out = flags.run_folder(config, "flow_vs_descent")
    finished = is_finished(out)
    dataset = run(
        config,
        setting,
        out,
        **flags.engine_options(),
    )
    flags.announce(out, finished)
    found = flow_vs_descent_report.tables(dataset, setting.flows, setting.fitted, config.duration)
    figures = flow_vs_descent_report.draw(
        dataset, setting.flows, setting.fitted, config.duration, config.shown_steps
    )
    figures |= {
        f"portrait_{portrait.problem.name}": flow_portraits.draw(portrait) for portrait in portraits
    }
    report.write_report(out, "Flow against descent", dataset, found, figures)
    report.print_table(*next(iter(found.items())))
    print(f"{out}/report.md: the figures")


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("flow_vs_descent.py")
    absl_flags.adopt_module_key_flags(flags)
    OPTIMIZER = absl_flags.DEFINE_string(
        "optimizer", None, "As in lr_sweep: an alias or module:function. Overrides the config's."
    )
    OPTIMIZER_ARGS = absl_flags.DEFINE_string(
        "optimizer_args", None, "The optimiser's arguments: momentum=0.9,nesterov=True."
    )
    absl_flags.set_default(flags.X64, True)
    # Under vmap every adaptive solve would take the steps of the stiffest lane.
    absl_flags.set_default(flags.LANES, "map")
    flags.run(lambda: main(CONFIG.value))
