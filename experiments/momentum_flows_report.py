"""What momentum did beside its flows, in tables: orders, the manifold, training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.flows.momentum_notation import initial_shift, modified_loss_coefficient
from driftlab.flows.order import observed_orders

if TYPE_CHECKING:
    import xarray

# Flow -> (the order that it has, what it is).
MODELS = {
    "rescaled": (1, "rescaled gradient flow"),
    "zero": (1, "inertial, u'(0) = 0"),
    "slow": (1, "inertial, u'(0) = -grad L / (1 - m)"),
    "inertial": (2, "inertial, u'(0) matched"),
    "unshifted": (1, "modified flow, from the start itself"),
    "modified": (2, "modified flow, from the shifted start"),
    "transient": (2, "modified flow of a filling trace"),
}
# An observed order is the theory's if it is this close between the two smallest rates.
TOLERANCE = 0.25


def at_time(dataset: "xarray.Dataset", variable: str, time: float) -> "xarray.DataArray":
    """A variable at one slow time, an iteration of its own for each learning rate.

    Args:
      dataset: of part 1, every iteration recorded.
      variable: its name.
      time: t = n h.

    Returns:
      The variable without `step`; learning rates descending.
    """
    import xarray

    rates = dataset.learning_rate.values
    steps = xarray.DataArray(np.rint(time / rates).astype(int), dims="learning_rate")
    return dataset[variable].sel(step=steps.assign_coords(learning_rate=rates))


def method_name(method: Any) -> str:
    """A method as tables and figures have it."""
    return {"heavy_ball": "heavy ball", "nesterov": "Nesterov"}[str(method)]


def loss_distance(loss: "xarray.DataArray", flow: "xarray.DataArray") -> "xarray.DataArray":
    """`|log(loss / loss of the gradient flow)|`."""
    distance: Any = np.abs(np.log(loss / flow))
    return distance


def tables(
    far: "xarray.Dataset",
    trained: "xarray.Dataset",
    runs: Mapping[str, tuple[str, float]],
    momentum: float,
    time: float,
) -> dict[str, list[dict[str, Any]]]:
    """Claims against what was measured, then the numbers behind them.

    Args:
      far: part 1.
      trained: part 2.
      runs: its methods, as `training_runs` has them.
      momentum: m of part 1.
      time: the slow time of its errors.

    Returns:
      Heading -> rows.
    """
    orders, manifold = _orders(far, time), _manifold(far, momentum, time)
    training = _training(trained, runs)
    claims = []
    for expected, title in MODELS.values():
        rows = [row["orders"][-1] for row in orders if row["flow"] == title]
        claims.append(_claim(f"{title}: error O(h^{expected})", rows, expected, TOLERANCE, "order"))
    for order in (1, 2):
        rows = [row[f"order, formula {order}"] for row in manifold]
        claims.append(
            _claim(f"distance to the manifold is O(h^{order}) by its formula of order {order}",
                   rows, order, TOLERANCE, "order")
        )  # fmt: skip
    rows = [row["factor an iteration"] for row in manifold]
    claims.append(
        _claim(f"at first it falls by m = {momentum:g} an iteration", rows, momentum, 0.05, "")
    )
    for network in trained.network.values:
        mine = [row for row in training if row["network"] == str(network) and row["run"] in runs]
        lags = [row["lag, iterations"] for row in mine]
        found = [row["largest distance"] for row in mine]
        ranks = np.argsort(np.argsort(lags)), np.argsort(np.argsort(found))
        claims.append(
            {
                "claim": f"{network}: the longer the initial lag, the further from gradient flow",
                "measured": "in order " + ", ".join(mine[i]["run"] for i in np.argsort(found)),
                "holds": "yes" if (ranks[0] == ranks[1]).all() else "no",
            }
        )
        gains = [
            row["at the end"] / row["at the end, lag taken off"]
            for row in mine
            if row["lag, iterations"]
        ]
        claims.append(
            {
                "claim": f"{network}: at the end it is closer to a flow that starts as late",
                "measured": f"{min(gains):.3g} to {max(gains):.3g} times, {len(gains)} runs",
                "holds": "yes" if min(gains) > 1 else "no",
            }
        )
    return {
        "Claims": claims,
        f"Distance from the iterates at n h = {time:g}": orders,
        "The invariant manifold": manifold,
        "Training at one effective learning rate": training,
    }


def _claim(
    claim: str, values: list[float], expected: float, tolerance: float, what: str
) -> dict[str, Any]:
    low, high = min(values), max(values)
    holds = np.isfinite(values).all() and max(expected - low, high - expected) <= tolerance
    measured = f"{what} {low:.3g} to {high:.3g}, {len(values)} cases".strip()
    return {"claim": claim, "measured": measured, "holds": "yes" if holds else "no"}


def _orders(far: "xarray.Dataset", time: float) -> list[dict[str, Any]]:
    rows = []
    rates = far.learning_rate.values
    for problem in far.problem.values:
        for method in far.method.values:
            for name, (_, title) in MODELS.items():
                lanes = at_time(far, f"error_{name}", time).sel(
                    {"problem": problem, "method": method}
                )
                rows.append(
                    {
                        "problem": str(problem),
                        "method": method_name(method),
                        "flow": title,
                        "error at the smallest h": float(lanes.values[-1]),
                        "orders": [float(p) for p in observed_orders(rates, lanes.values)],
                    }
                )
    return rows


def _manifold(far: "xarray.Dataset", momentum: float, time: float) -> list[dict[str, Any]]:
    rows, rates = [], far.learning_rate.values
    # While m^n is above a tenth: then the formula's own error shows.
    first = max(1, int(np.log(0.1) / np.log(momentum)))
    for problem in far.problem.values:
        for method in far.method.values:
            where = {"problem": problem, "method": method}
            start = far.manifold_2.sel(where).isel(learning_rate=-1).values[: first + 1]
            row = {
                "problem": str(problem),
                "method": method_name(method),
                "factor an iteration": float((start[-1] / start[0]) ** (1 / first)),
            }
            for order in (1, 2):
                ends = at_time(far, f"manifold_{order}", time).sel(where).values
                row[f"distance, formula {order}"] = float(ends[-1])
                row[f"order, formula {order}"] = float(observed_orders(rates, ends)[-1])
            rows.append(row)
    return rows


def _training(
    trained: "xarray.Dataset", runs: Mapping[str, tuple[str, float]]
) -> list[dict[str, Any]]:
    rows = []
    for network in trained.network.values:
        losses = trained.loss.sel(network=network)
        flow = losses.sel(run="gradient flow")
        for run, (method, m) in runs.items():
            if method == "flow":
                continue
            mine, nesterov = losses.sel(run=run), method == "nesterov"
            apart = loss_distance(mine, flow).max("step").median("seed")
            # Of h_eff = h / (1 - m), so that the runs compare.
            factor = modified_loss_coefficient(m, nesterov) * (1 - m) / 2
            # What the shift of the start is worth in iterations of effective length.
            lag = float(initial_shift(m, nesterov) * (1 - m))
            last = int(flow.step[-1])
            late = np.exp(np.log(flow).interp(step=last - lag))
            end = mine.isel(step=-1)
            rows.append(
                {
                    "network": str(network),
                    "run": run,
                    "regularisation / h_eff": float(factor),
                    "lag, iterations": lag,
                    "largest distance": float(apart),
                    "at the end": float(loss_distance(end, flow.isel(step=-1)).median("seed")),
                    "at the end, lag taken off": float(loss_distance(end, late).median("seed")),
                    "final loss": float(end.median("seed")),
                }
            )
    return rows
