"""Tables of the fluctuation-dissipation runs: the relations, the fit, the schedules, the claims."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from driftlab.measures.fluctuation_curvature import hessian_magnitude
from experiments import fluctuation_dissipation_claims as claims
from experiments import fluctuation_dissipation_figures as figures
from experiments.fluctuation_dissipation_models import CONSTANT

if TYPE_CHECKING:
    import xarray

draw = figures.draw

# The reference calculation's numbers, of other draws of the same problem, digits on 64-100-100-10:
# (batch size, momentum, learning rate) -> {epoch: ratio of the first relation}, and learning rate
# -> |grad f|^2 of the second at batches of 10 without momentum.
REFERENCE_RATIOS = {
    (100, 0.9, 0.1): {5: 5.05, 10: 2.98, 20: 1.41, 50: 1.035, 100: 1.008, 200: 1.005},
    (10, 0.0, 0.1): {10: 3.43, 50: 1.009, 100: 1.013, 200: 0.9999},
}
REFERENCE_SECOND = {0.1: 0.1115, 0.05: 0.0351, 0.02: 0.0146}


def relaxation_steps(config: Any, learning_rate: float) -> float:
    """The steps in which weight decay alone shrinks `|theta|^2` to 1 / e.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/fluctuation_dissipation.py.
      learning_rate: eta.

    Returns:
      `(1 - mu) / (2 (1 - nu) eta lambda)`.
    """
    share = (1 - config.momentum) / (1 - config.dampening)
    return share / (2 * learning_rate * config.weight_decay)


def half_life(steps: Float[np.ndarray, " r"], norms: Float[np.ndarray, " r"]) -> float:
    """The steps in which a weight norm comes half-way to where it ends.

    Args:
      steps: of the records.
      norms: `|theta|^2`; its mean over the last quarter is where it ends.

    Returns:
      From its largest distance to the first record at half of that; NaN if it has none, or its
      last quarter still moves by more than a fifth of it.
    """
    quarter = max(1, len(norms) // 4)
    end = norms[-quarter:].mean()
    distance = np.abs(norms - end)
    peak = int(distance.argmax())
    if not np.isfinite(distance).all() or np.ptp(norms[-quarter:]) > distance[peak] / 5:
        return float("nan")
    below = np.flatnonzero(distance[peak:] <= distance[peak] / 2)
    return float(steps[peak + below[0]] - steps[peak]) if below.size else float("nan")


def tables(dataset: "xarray.Dataset", config: Any) -> dict[str, list[dict[str, Any]]]:
    """The tables of a run.

    Args:
      dataset: the sweep's result.
      config: its config.

    Returns:
      Heading -> rows.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    found_claims: list[dict[str, Any]] = []
    schedules = [str(name) for name in np.atleast_1d(dataset.schedule.values)]
    if CONSTANT in schedules:
        lanes = figures.of_schedule(dataset, CONSTANT)
        first = first_rows(lanes, config)
        found["The first relation, over the last half of the run"] = first
        found_claims += claims.first_claims(first)
        reference = reference_rows(lanes, config)
        if reference:
            found["Beside the reference's own run on digits"] = reference
        if config.second_relation:
            second = second_rows(lanes)
            fits = fit_rows(second, first, config)
            found["The second relation"] = second
            found_claims += claims.second_claims(second, first, fits)
            if fits:
                found["G = trace eta / 2 + curvature eta^2, at rates that equilibrated"] = fits
    if len(schedules) > 1:
        rows = schedule_rows(dataset, schedules)
        found["Schedules at equal epochs, each at its best first rate"] = rows
        found_claims += claims.schedule_claims(rows)
    return {"Claims (Yaida 2019)": found_claims} | found


def first_rows(lanes: "xarray.Dataset", config: Any) -> list[dict[str, Any]]:
    """One row a learning rate: both sides, their ratio, and how long it took.

    Args:
      lanes: the lanes of constant rates.
      config: the run's.

    Returns:
      The rows; means over seeds that did not diverge.
    """
    rows = []
    steps = lanes.step.values
    for rate in lanes.learning_rate.values:
        lane = lanes.sel(learning_rate=rate)
        alive = lane.isel(seed=(lane.verdict == "ok").values)
        last = alive.isel(step=-1)
        lives = [half_life(steps, norms**2) for norms in alive.parameter_norm.values]
        lives = [life for life in lives if np.isfinite(life)]
        time = relaxation_steps(config, float(rate))
        ratios = last.first_relation_ratio.values
        rows.append(
            {
                "learning rate": float(rate),
                "left": _mean(last.first_relation_left),
                "right": _mean(last.first_relation_right),
                "ratio": _mean(ratios),
                "its error": _mean(last.first_relation_ratio_error),
                "trend of the norm (t)": _mean(last.weight_norm_trend),
                "run / (1 / 2 eta lambda)": config.steps / time,
                "half-life": float(np.mean(lives)) if lives else None,
                "ln 2 / 2 eta lambda": float(np.log(2)) * time,
                "training loss": _mean(last.training_loss),
                "at the start": _mean(lane.training_loss.isel(step=0)),
                "diverged": f"{lane.sizes['seed'] - len(ratios)} of {lane.sizes['seed']}",
            }
        )
    return rows


def second_rows(lanes: "xarray.Dataset") -> list[dict[str, Any]]:
    """One row a learning rate: G, the other side, and 2 G / eta.

    Args:
      lanes: the lanes of constant rates.

    Returns:
      The rows; means over seeds that did not diverge, whose errors add in squares.
    """
    rows = []
    for rate in lanes.learning_rate.values:
        lane = lanes.sel(learning_rate=rate)
        last = lane.isel(seed=(lane.verdict == "ok").values, step=-1)
        left, right = _mean(last.second_relation_left), _mean(last.second_relation_right)
        error = _combined(last.second_relation_left_error)
        rows.append(
            {
                "learning rate": float(rate),
                "G": left,
                "its error": error,
                "eta v'Hv' / 2": right,
                "error": _combined(last.second_relation_right_error),
                "ratio": None if left is None or right is None else left / right,
                "2 G / eta": None if left is None else 2 * left / float(rate),
                "records": _mean(last.second_relation_records),
            }
        )
    return rows


def fit_rows(
    second: list[dict[str, Any]], first: list[dict[str, Any]], config: Any
) -> list[dict[str, Any]]:
    """The Hessian's magnitude and the anharmonicity, over the smallest rates and over all.

    Args:
      second: from `second_rows`.
      first: from `first_rows`; rates whose ratio is further than 5% from 1, or whose loss did not
        halve, are left out.
      config: the run's.

    Returns:
      A row for the three smallest rates and one for all; none if fewer than two equilibrated.
    """
    good = claims.equilibrated(second, first)
    # The velocity's variance over that of plain SGD, whose gradients it sums.
    gain = (1 - config.dampening) ** 2 / (1 - config.momentum**2)
    rows = []
    for name, chosen in (("smallest three", good[:3]), ("all", good)):
        if len(chosen) < 2 or (name == "all" and len(good) <= 3):
            continue
        columns = [[row[key] for row in chosen] for key in ("learning rate", "G", "its error")]
        fit = hessian_magnitude(*(np.array(column, float) for column in columns))
        rows.append(
            {
                "rates": name,
                "from": chosen[0]["learning rate"],
                "to": chosen[-1]["learning rate"],
                "Tr(HC)": float(fit.trace) / gain,
                "its error": float(fit.trace_error) / gain,
                "curvature": float(fit.curvature),
                "error": float(fit.curvature_error),
                "chi^2": float(fit.chi_squared),
            }
        )
    return rows


def reference_rows(lanes: "xarray.Dataset", config: Any) -> list[dict[str, Any]]:
    """The run beside the reference's numbers, where it is of the same problem.

    Args:
      lanes: the lanes of constant rates.
      config: the run's.

    Returns:
      The rows; none for other problems.
    """
    rows: list[dict[str, Any]] = []
    if config.data != "digits" or config.model != "mlp":
        return rows
    for (batch, momentum, rate), ratios in REFERENCE_RATIOS.items():
        near = np.isclose(lanes.learning_rate.values, rate)
        if batch != config.batch_size or momentum != config.momentum or not near.any():
            continue
        lane = lanes.isel(learning_rate=int(near.argmax()))
        for epoch, ratio in ratios.items():
            # The reference's epoch is 1500 examples.
            step = epoch * (1500 // batch)
            if step <= lanes.step.values[-1]:
                measured = _mean(lane.first_relation_ratio.sel(step=step, method="nearest"))
                rows.append(_reference_row(f"ratio, epoch {epoch}", rate, measured, ratio))
    if config.second_relation and (config.batch_size, config.momentum) == (10, 0.0):
        for rate, value in REFERENCE_SECOND.items():
            near = np.isclose(lanes.learning_rate.values, rate)
            if near.any():
                lane = lanes.isel(learning_rate=int(near.argmax()), step=-1)
                rows.append(_reference_row("G", rate, _mean(lane.second_relation_left), value))
    return rows


def schedule_rows(dataset: "xarray.Dataset", schedules: list[str]) -> list[dict[str, Any]]:
    """One row a schedule: its best first rate by training loss, and where that ends.

    Args:
      dataset: the sweep's result.
      schedules: its schedules.

    Returns:
      The rows; medians over seeds.
    """
    rows = []
    for name in schedules:
        lanes = figures.of_schedule(dataset, name)
        rate = figures.best_rate(lanes)
        if rate is None:
            continue
        lane = lanes.sel(learning_rate=rate).median("seed").isel(step=-1)
        all_rates = lanes.evaluation_accuracy.isel(step=-1).median("seed").max()
        rows.append(
            {
                "schedule": name,
                "first rate": rate,
                "last rate": float(lane.learning_rate_in_force),
                "drops": float(lane.learning_rate_drops),
                "training loss": float(lane.training_loss),
                "test loss": float(lane.evaluation_loss),
                "test accuracy": float(lane.evaluation_accuracy),
                "best over rates": float(all_rates),
            }
        )
    return rows


def _reference_row(
    quantity: str, rate: float, measured: float | None, reference: float
) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "learning rate": rate,
        "measured": measured,
        "reference": reference,
    }


def _mean(values: Any) -> float | None:
    values = np.asarray(values, float)
    return float(values.mean()) if values.size and np.isfinite(values).all() else None


def _combined(errors: Any) -> float | None:
    errors = np.asarray(errors, float)
    return float(np.sqrt((errors**2).sum()) / errors.size) if errors.size else None
