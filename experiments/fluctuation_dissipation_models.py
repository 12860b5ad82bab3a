"""The objective with its weight decay, and the optimiser of every schedule."""

import re
from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array, PRNGKeyArray

import driftlab
from driftlab.measures.fluctuation_tracking import track_fluctuation_dissipation
from driftlab.objective import Batch, Params
from driftlab.sweep.lane import HParams
from driftlab.transforms.fluctuation_dissipation_schedule import (
    TESTS,
    damped_momentum,
    fluctuation_dissipation_sgd,
)
from driftlab.transforms.sasa import sasa
from experiments.objective import make_objective

CONSTANT, SASA = "constant", "sasa"
SASA_MOMENTUM = 0.9
_STEP = re.compile(r"step\(([0-9., ]+)\)")


def parse_schedules(text: str) -> tuple[str, ...]:
    """The schedules of a config.

    Args:
      text: names separated by ";".

    Returns:
      The names.

    Raises:
      ValueError: if one does not exist, or is given twice.
    """
    names = tuple(name.strip() for name in text.split(";"))
    for name in names:
        if name not in (CONSTANT, SASA, *TESTS):
            step_boundaries(name)
    if len(set(names)) < len(names):
        raise ValueError(f"schedules={text!r}: each schedule once.")
    return names


def step_boundaries(name: str) -> tuple[float, ...]:
    """When a schedule by hand goes to a tenth.

    Args:
      name: such as "step(0.5,0.75)".

    Returns:
      Shares of the run, ascending.

    Raises:
      ValueError: if it is no such name.
    """
    found = _STEP.fullmatch(name)
    try:
        shares = tuple(float(part) for part in found[1].split(",")) if found else ()
    except ValueError:
        shares = ()
    if not shares or not all(0 < a < 1 for a in shares) or list(shares) != sorted(set(shares)):
        known = ", ".join((CONSTANT, *TESTS, SASA))
        raise ValueError(
            f"schedules: {name!r} is none of {known}, nor step(a,b,...) with ascending shares of "
            "the run between 0 and 1."
        )
    return shares


def make_regularized(config: Any) -> tuple[driftlab.Objective, Callable[[PRNGKeyArray], Params]]:
    """The objective with `(weight_decay / 2) |theta|^2` in what is minimised.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/fluctuation_dissipation.py.

    Returns:
      `(objective, initialize)`.

    Raises:
      ValueError: if the weight decay is not positive.
    """
    if not config.weight_decay > 0:
        raise ValueError(
            f"weight_decay={config.weight_decay} must be positive: without it cross-entropy pushes "
            "the weights outwards for ever, and nothing becomes stationary."
        )
    objective, initialize = make_objective(config)

    def half_squared_norm(params: Params, batch: Batch) -> Array:
        del batch
        return optax.tree.norm(params, squared=True) / 2

    return driftlab.regularized(objective, half_squared_norm, config.weight_decay), initialize


def make_optimizer(
    config: Any, name: str, learning_rate: Any, epoch: int
) -> optax.GradientTransformation:
    """SGD with one of the schedules.

    Args:
      config: as in `make_regularized`.
      name: the schedule.
      learning_rate: the first one; for SASA, whose momentum is normalised, over
        `1 - config.momentum`.
      epoch: steps of an epoch.

    Returns:
      The optimiser; its state has a window of the first relation.
    """
    momentum, dampening = config.momentum, config.dampening
    interval = max(1, config.test_epochs * epoch)
    if name in TESTS:
        return fluctuation_dissipation_sgd(
            learning_rate,
            momentum,
            dampening,
            interval=interval,
            test=name,
            tolerance=config.tolerance,
            decrease=config.decrease,
        )
    if name == SASA:
        return sasa(learning_rate / (1 - momentum), SASA_MOMENTUM, interval=interval)
    schedule = learning_rate
    if name != CONSTANT:
        bounds = step_boundaries(name)
        schedule = optax.piecewise_constant_schedule(
            learning_rate, {round(share * config.steps): 0.1 for share in bounds}
        )
    tx = optax.chain(damped_momentum(momentum, dampening), optax.scale_by_learning_rate(schedule))
    return track_fluctuation_dissipation(tx, schedule, momentum, dampening)


def make_build(config: Any) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: as in `make_regularized`.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`.
    """
    objective, initialize = make_regularized(config)
    epoch = objective.sampling.steps_per_epoch(objective.size)

    def build(hparams: HParams, key: PRNGKeyArray) -> tuple[driftlab.Dynamics, Params]:
        tx = make_optimizer(config, str(hparams["schedule"]), hparams["learning_rate"], epoch)
        return driftlab.descent(tx, objective), initialize(key)

    return build
