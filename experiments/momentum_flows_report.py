"""What momentum did beside its flows: orders, the manifold, training; tables and figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.flows.momentum_notation import modified_loss_coefficient
from driftlab.flows.order import observed_orders
from driftlab.plot.axes import add_panels, panel_size, tick_values
from driftlab.plot.style import LINE_COLORS, LINE_STYLES, new_figure, style

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

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
        factors = [row["regularisation / h_eff"] for row in mine]
        found = [row["largest |log(loss / flow)|"] for row in mine]
        ranks = np.argsort(np.argsort(factors)), np.argsort(np.argsort(found))
        claims.append(
            {
                "claim": f"{network}: the larger k (1 - m), the further from gradient flow",
                "measured": "in order " + ", ".join(mine[i]["run"] for i in np.argsort(found)),
                "holds": "yes" if (ranks[0] == ranks[1]).all() else "no",
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
                        "method": str(method).replace("_", " "),
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
                "method": str(method).replace("_", " "),
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
            mine = losses.sel(run=run)
            apart = np.abs(np.log(mine / flow)).max("step").median("seed")
            # Of h_eff = h / (1 - m), so that the runs compare.
            factor = modified_loss_coefficient(m, method == "nesterov") * (1 - m) / 2
            rows.append(
                {
                    "network": str(network),
                    "run": run,
                    "regularisation / h_eff": float(factor),
                    "largest |log(loss / flow)|": float(apart),
                    "final loss": float(mine.isel(step=-1).median("seed")),
                    "gradient flow's": float(flow.isel(step=-1).median("seed")),
                }
            )
    return rows


@style()
def draw(
    far: "xarray.Dataset",
    trained: "xarray.Dataset",
    runs: Mapping[str, tuple[str, float]],
    config: Any,
) -> dict[str, "Figure"]:
    """The figures.

    Args:
      far: part 1.
      trained: part 2.
      runs: its methods.
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      File name without ending -> figure.
    """
    return {
        "momentum_errors": _draw_errors(far, config.time),
        "momentum_manifold": _draw_manifold(far, config.momentum),
        "momentum_training": _draw_training(trained, runs, config),
    }


def _cases(far: "xarray.Dataset") -> list[tuple[str, str]]:
    # Row by row a method, as there are at most three problems to a row.
    return [(str(p), str(m)) for m in far.method.values for p in far.problem.values]


def _panels(far: "xarray.Dataset", x_label: str, y_label: str) -> tuple[Any, Any]:
    cases = _cases(far)
    titles = [f"{problem}, {method.replace('_', ' ')}" for problem, method in cases]
    figure = new_figure(*panel_size(len(cases)))
    return figure, dict(zip(cases, add_panels(figure, titles, x_label, y_label), strict=True))


def _draw_errors(far: "xarray.Dataset", time: float) -> "Figure":
    figure, panels = _panels(far, "learning rate h", f"distance at n h = {time:g}")
    rates = far.learning_rate.values
    for (problem, method), panel in panels.items():
        for index, (name, (order, title)) in enumerate(MODELS.items()):
            values = (
                at_time(far, f"error_{name}", time)
                .sel({"problem": problem, "method": method})
                .values
            )
            color = LINE_COLORS[index % len(LINE_COLORS)]
            line = "--" if order == 1 else "-"
            label = f"{title} (order {order})"
            panel.loglog(rates, values, line, color=color, marker="o", markersize=3, label=label)
        tick_values(panel.xaxis, np.sort(rates), log=True)
    _legend(figure, panels)
    return figure


def _draw_manifold(far: "xarray.Dataset", momentum: float) -> "Figure":
    figure, panels = _panels(far, "iteration n", "distance to the manifold")
    steps = far.step.values[:151]
    for (problem, method), panel in panels.items():
        lanes = far.sel({"problem": problem, "method": method}).isel(step=slice(0, len(steps)))
        for index, rate in enumerate(far.learning_rate.values):
            for order, line in ((1, "--"), (2, "-")):
                values = lanes[f"manifold_{order}"].sel(learning_rate=rate).values
                label = f"h = {rate:g}, formula of order {order}"
                panel.semilogy(steps, values, line, color=LINE_COLORS[index % 6], label=label)
        start = float(lanes["manifold_2"].isel(learning_rate=-1, step=0))
        floor = float(lanes["manifold_2"].min()) / 3
        reach = steps[start * momentum**steps > floor]
        panel.semilogy(reach, start * momentum**reach, ":", color="#666666", label="m^n")
    _legend(figure, panels)
    return figure


def _draw_training(
    trained: "xarray.Dataset", runs: Mapping[str, tuple[str, float]], config: Any
) -> "Figure":
    networks = [str(name) for name in trained.network.values]
    width, height = panel_size(len(networks))
    figure = new_figure(width + 2, height + 1.5)
    panels = dict(zip(networks, figure.subplots(1, len(networks), squeeze=False)[0], strict=True))
    momenta = sorted({m for _, m in runs.values()})
    for network, panel in panels.items():
        times = trained.step.values * config[f"{network}_learning_rate"]
        for run, (method, m) in runs.items():
            values = trained.loss.sel(network=network, run=run).median("seed").values
            plain = method == "flow"
            line = "-" if plain else LINE_STYLES[1 + (method == "nesterov")]
            color = "#BBBBBB" if plain else LINE_COLORS[momenta.index(m) % 6]
            panel.semilogy(
                times[1:], values[1:], line, color=color, linewidth=4 if plain else 1.5, label=run
            )
        panel.set_title(network)
        panel.set_xlabel("t = n h / (1 - m)")
    panels[networks[0]].set_ylabel("training loss")
    _legend(figure, panels)
    return figure


def _legend(figure: Any, panels: Mapping[Any, Any]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
