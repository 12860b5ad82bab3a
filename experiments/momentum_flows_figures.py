"""What momentum did beside its flows, in figures: errors, the manifold, training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.plot.axes import add_panels, panel_size, tick_values
from driftlab.plot.style import LINE_COLORS, LINE_STYLES, new_figure, style
from experiments.momentum_flows_report import MODELS, at_time, loss_distance, method_name

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


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
        "momentum_flows_errors": _draw_errors(far, config.time),
        "momentum_flows_manifold": _draw_manifold(far, config.momentum),
        "momentum_flows_training": _draw_training(trained, runs, config),
    }


def _cases(far: "xarray.Dataset") -> list[tuple[str, str]]:
    # Row by row a method, as there are at most three problems to a row.
    return [(str(p), str(m)) for m in far.method.values for p in far.problem.values]


def _panels(far: "xarray.Dataset", x_label: str, y_label: str) -> tuple[Any, Any]:
    cases = _cases(far)
    titles = [f"{problem}, {method_name(method)}" for problem, method in cases]
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
            # These lie under others: a larger, hollow mark shows that there are two.
            under = name in ("slow", "modified")
            hollow = {"markersize": 7, "markerfacecolor": "none"} if under else {}
            panel.loglog(
                rates,
                values,
                "--" if order == 1 else "-",
                color=color,
                label=f"{title} (order {order})",
                **{"marker": "o", "markersize": 3} | hollow,
            )
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
    figure = new_figure(width + 2, 2 * height + 1.5)
    grid = figure.subplots(2, len(networks), sharex="col", squeeze=False)
    panels = dict(zip(networks, grid[0], strict=True))
    momenta = sorted({m for _, m in runs.values()})
    for network, (panel, below) in zip(networks, grid.T, strict=True):
        times = trained.step.values * config[f"{network}_learning_rate"]
        losses = trained.loss.sel(network=network)
        for run, (method, m) in runs.items():
            mine = losses.sel(run=run)
            plain = method == "flow"
            line = "-" if plain else LINE_STYLES[1 + (method == "nesterov")]
            color = "#BBBBBB" if plain else LINE_COLORS[momenta.index(m) % 6]
            values, width = mine.median("seed").values, 4 if plain else 1.5
            panel.semilogy(times[1:], values[1:], line, color=color, linewidth=width, label=run)
            if not plain:
                apart = loss_distance(mine, losses.sel(run="gradient flow")).median("seed").values
                below.semilogy(times[1:], apart[1:], line, color=color, linewidth=width)
        panel.set_title(network)
        below.set_xlabel("t = n h / (1 - m)")
    grid[0, 0].set_ylabel("training loss")
    grid[1, 0].set_ylabel("|log(loss / gradient flow's)|")
    _legend(figure, panels)
    return figure


def _legend(figure: Any, panels: Mapping[Any, Any]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
