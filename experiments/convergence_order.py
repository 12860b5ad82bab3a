"""The order of every flow: how its distance from what it models falls with the learning rate.

    python -m experiments.convergence_order
    python -m experiments.convergence_order --config=configs/convergence_order_small.py

A flow of P terms is O(h^{P+1}) from its optimiser after one step, O(h^P) after a fixed time. Each
flow of experiments/convergence_cases.py starts where its optimiser does, on a problem of two
parameters and on a network on real images, at learning rates h in units of 1 / lambda_0, the
inverse of the sharpness at the start, divided by the case's `expansion` where memory is eliminated;
always in 64 bits. Sources: Hairer, Lubich & Wanner (2006), IX.1; Barrett & Dherin (2021); Smith,
Dherin, Barrett & De (2021); Kovachki & Stuart (2021); Rosca, Wu, Qin & Dherin (2023); Rosca &
Deisenroth (2023).
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags
from jaxtyping import Array, Float

from driftlab import flows
from driftlab.suggestions import nearest
from driftlab.sweep.folder import environment, opened, read_json, write_json
from experiments import convergence_report, flags, report
from experiments.convergence_cases import CASES, FIXED_TIME, Case
from experiments.convergence_problems import Problem, network_problem, toy_problem

if TYPE_CHECKING:
    import xarray

ERRORS = "errors.json"


def make_problems(config: Any) -> list[Problem]:
    """The problems of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/convergence_order.py.

    Returns:
      The toy problem, the network, or both.

    Raises:
      ValueError: if a problem has no such name, or the network's fields do not describe one.
    """
    makers = {"toy": toy_problem, "network": lambda: network_problem(config)}
    names = [name.strip() for name in config.problems.split(",")]
    for name in names:
        if name not in makers:
            raise ValueError(f"problems={config.problems!r}: no {name!r}: {nearest(name, makers)}")
    return [makers[name]() for name in names]


def named_cases(config: Any) -> list[Case]:
    """The cases that a config names.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/convergence_order.py.

    Returns:
      Some of `CASES`.

    Raises:
      ValueError: if no flow has such a name.
    """
    parts = [part.strip() for part in config.flows.split(",")]
    named = [case for case in CASES if any(part in case.name for part in parts)]
    if not named:
        raise ValueError(
            f"flows={config.flows!r}: no flow has that in its name. There are: "
            + "; ".join(case.name for case in CASES)
            + "."
        )
    return named


def scaled_learning_rates(config: Any) -> Float[np.ndarray, " rate"]:
    """The config's learning rates, descending, moved so that each divides the fixed time.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/convergence_order.py.

    Returns:
      h lambda_0, of a case without an expansion factor.

    Raises:
      ValueError: if they span less than a decade, or the time is shorter than a step.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    if config.time < rates.max():
        raise ValueError(f"time={config.time} is shorter than a step of {rates.max():g}.")
    rates = np.unique(config.time / np.round(config.time / rates))[::-1]
    if len(rates) < 3 or rates[0] < 10 * rates[-1]:
        raise ValueError(
            f"learning_rates={config.learning_rates!r}: an order needs three or more over at "
            "least a decade."
        )
    return rates


def distances(
    case: Case, problem: Problem, scaled: Float[np.ndarray, " rate"], duration: float
) -> Float[np.ndarray, " rate"]:
    """How far a flow is from what it models, at every learning rate.

    Args:
      case: which flow.
      problem: on what.
      scaled: the learning rates, h lambda_0 times the case's expansion.
      duration: the fixed time, in units of 1 / lambda_0.

    Returns:
      `|params of the flow - params of the iteration|`; NaN where a solve failed.
    """
    fixed = case.compared == FIXED_TIME
    # One iteration is a small step for a solver of order 8.
    accuracy: Any = {"rtol": 1e-12, "max_steps": 2**16} if fixed else {"steps": 4}

    def distance(learning_rate: Float[Array, ""]) -> Float[Array, ""]:
        model = case.build(problem, learning_rate)
        count = jnp.round(duration / problem.sharpness / learning_rate) if fixed else 1.0
        end = jax.lax.fori_loop(
            0, jnp.asarray(count, int), lambda _, state: model.step(state),
            model.init(problem.params),
        )  # fmt: skip
        solved = flows.solve(
            model.flow.field,
            model.flow.init(problem.params),
            count * model.step_time,
            solver=diffrax.Dopri8(),
            **accuracy,
        )
        off = jax.tree.map(jnp.subtract, model.flow.params(solved.y), model.read(end))
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(off)))
        return jnp.where(solved.failed, jnp.nan, norm)

    # One program, and no lane waits for the slowest.
    rates = jnp.asarray(scaled / case.expansion / problem.sharpness)
    return np.asarray(jax.jit(lambda many: jax.lax.map(distance, many))(rates))


def run(config: Any, folder: Path | None = None) -> "xarray.Dataset":
    """Measures every case on every problem of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/convergence_order.py.
      folder: where errors are kept case by case, so that an interrupted run continues; or None.

    Returns:
      `error` over (problem, case, scaled_learning_rate), NaN for a case that a problem leaves out;
      with the sharpness and size of the parameters of each problem. Learning rates are h lambda_0
      times the case's `expansion`.

    Raises:
      ValueError: if the config describes no experiment.
    """
    import xarray

    began = time.perf_counter()
    scaled, named = scaled_learning_rates(config), named_cases(config)
    with jax.enable_x64(True):
        problems = make_problems(config)
        kept = read_json(folder / ERRORS) if folder and (folder / ERRORS).exists() else {}
        errors = np.full((len(problems), len(CASES), len(scaled)), np.nan)
        for i, problem in enumerate(problems):
            for case in named:
                if case.terms > config[f"{problem.name}_terms"]:
                    continue
                key = f"{problem.name}: {case.name}"
                if key not in kept:
                    kept[key] = distances(case, problem, scaled, config.time).tolist()
                    if folder:
                        write_json(folder / ERRORS, kept)
                errors[i, CASES.index(case)] = kept[key]
        sizes = [
            float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(p.params))))
            for p in problems
        ]
    coordinates = {
        "problem": [p.name for p in problems],
        "case": [case.name for case in CASES],
        "scaled_learning_rate": scaled,
    }
    return xarray.Dataset(
        {
            "error": (tuple(coordinates), errors),
            "sharpness": ("problem", [p.sharpness for p in problems]),
            "size": ("problem", sizes),
            "tolerance": ("problem", [p.tolerance for p in problems]),
        },
        coordinates,
        {
            "config": json.dumps({"config": flags.as_json(config)}),
            "environment": json.dumps(environment()),
            "lanes": "map",
            "wall_seconds": time.perf_counter() - began,
        },
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag in (flags.SEEDS, flags.STEPS, flags.RECORD_EVERY):
        if flag.value is not None:
            raise ValueError(f"--{flag.name}: this experiment has none; see --help.")
    config = flags.override(config)
    described = flags.as_json(config)
    out = flags.run_folder(config, "convergence_order")
    # Refused before the folder is made.
    scaled_learning_rates(config)
    named_cases(config)
    with opened(out, {"config": described}) as folder:
        dataset = run(config, folder)
        found = convergence_report.tables(dataset)
        figures = convergence_report.draw(dataset)
        report.write_report(out, "Orders of convergence", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("convergence_order.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
