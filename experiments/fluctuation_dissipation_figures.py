"""Figures of the fluctuation-dissipation runs."""

from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.plot.axes import log_ticks, normalization, tick_values
from driftlab.plot.labels import number
from driftlab.plot.style import LINE_COLORS, new_figure, sequential, style
from experiments.fluctuation_dissipation_models import CONSTANT

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#666666"
_POINTS = 120


def of_schedule(dataset: "xarray.Dataset", name: str) -> "xarray.Dataset":
    """The lanes of one schedule.

    Args:
      dataset: the sweep's result.
      name: the schedule.

    Returns:
      Them, over learning_rate, seed and step.
    """
    lanes = dataset.sel(schedule=name) if "schedule" in dataset.dims else dataset
    return lanes.transpose("learning_rate", "seed", "step")


def best_rate(lanes: "xarray.Dataset") -> float | None:
    """The first learning rate at which a schedule ends with the lowest training loss.

    Args:
      lanes: the schedule's.

    Returns:
      The rate, by the median over seeds; None if every lane diverged.
    """
    final = lanes.training_loss.isel(step=-1).median("seed", skipna=False).values
    if not np.isfinite(final).any():
        return None
    return float(lanes.learning_rate.values[np.nanargmin(final)])


@style()
def draw(dataset: "xarray.Dataset", config: Any) -> dict[str, "Figure"]:
    """The figures of a run.

    Args:
      dataset: the sweep's result.
      config: an `ml_collections.ConfigDict` with the fields of configs/fluctuation_dissipation.py.

    Returns:
      File name without ending -> figure.
    """
    schedules = [str(name) for name in np.atleast_1d(dataset.schedule.values)]
    figures = {}
    if CONSTANT in schedules:
        lanes = of_schedule(dataset, CONSTANT)
        figures["fluctuation_dissipation_first"] = _first(lanes)
        if config.second_relation:
            figures["fluctuation_dissipation_second"] = _second(lanes)
    if len(schedules) > 1:
        figures["fluctuation_dissipation_schedules"] = _schedules(dataset, schedules)
    return figures


def _log(panel: "Axes", axes: str) -> None:
    for name in axes:
        getattr(panel, f"set_{name}scale")("log")
        log_ticks(getattr(panel, f"{name}axis"))


def _first(lanes: "xarray.Dataset") -> "Figure":
    """Both sides, and their ratio, along training."""
    figure = new_figure(10, 4.6)
    left, right = figure.subplots(1, 2)
    rates = lanes.learning_rate.values
    # As many records as a log axis can show.
    steps = lanes.step.values
    wanted = np.geomspace(max(1, steps[1]), steps[-1], _POINTS)
    few = lanes.isel(step=np.unique(np.abs(steps[:, None] - wanted[None, :]).argmin(0)), seed=0)
    color_of = normalization(rates, True)
    colors = sequential()
    for index, rate in enumerate(rates):
        lane = few.isel(learning_rate=index)
        color = colors(color_of(rate))
        sides = (lane.first_relation_left, lane.first_relation_right)
        for values, line in zip(sides, ("-", "--"), strict=True):
            left.plot(few.step, values.where(values > 0), color=color, linestyle=line)
        ratio = lane.first_relation_ratio
        right.plot(few.step, ratio.where(ratio > 0), color=color, label=rf"$\eta$ = {number(rate)}")
    label = r"left, $\langle\theta\cdot g\rangle$"
    right.plot([], [], color=_GREY, label=label)
    label = r"right, $\langle|v|^2\rangle\,\eta(1+\mu)/2(1-\nu)$"
    right.plot([], [], color=_GREY, linestyle="--", label=label)
    left.set_ylabel("half-running mean (loss)")
    right.set_ylabel("left / right")
    right.axhline(1, color=_GREY, linestyle=":", linewidth=1.2)
    for panel in (left, right):
        panel.set_xlabel("iteration k")
        _log(panel, "xy")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _second(lanes: "xarray.Dataset") -> "Figure":
    """G against the learning rate with 95% bars, and over it, with the smallest rate's line."""
    figure = new_figure(10.5, 4.3)
    left, right = figure.subplots(1, 2)
    last = lanes.isel(step=-1)
    rates = last.learning_rate.values
    for index, (name, label) in enumerate(
        [
            ("second_relation_left", r"left, $G(\eta)$"),
            ("second_relation_right", r"right, $\langle v'Hv'\rangle\,\eta/2$"),
        ]
    ):
        values = last[name].mean("seed").values
        errors = np.sqrt((last[f"{name}_error"] ** 2).sum("seed").values) / last.sizes["seed"]
        color, marker = LINE_COLORS[index], "os"[index]
        for panel, factor in ((left, np.ones_like(rates)), (right, 2 / rates)):
            panel.errorbar(
                rates * 1.03**index,
                values * factor,
                2 * errors * factor,
                color=color,
                marker=marker,
                markersize=4,
                linestyle="none",
                capsize=2,
                label=label,
            )
    value = last.second_relation_left.mean("seed").values
    known = np.flatnonzero(np.isfinite(value))
    if known.size:
        slope = value[known[0]] / rates[known[0]]
        line = {"color": _GREY, "linestyle": "--", "linewidth": 1.2}
        left.plot(rates, slope * rates, label="line through the smallest rate", **line)
        right.axhline(2 * slope, **line)
    left.set_ylabel(r"$G$ (loss$^2$ / parameter$^2$)")
    right.set_ylabel(
        r"$2 G / \eta$, which tends to $\frac{(1 - \nu)^2}{1 - \mu^2} \mathrm{Tr}(HC)$"
    )
    for panel in (left, right):
        panel.set_xlabel(r"learning rate $\eta$")
        _log(panel, "xy")
        tick_values(panel.xaxis, rates, True)
    left.legend()
    return figure


def _schedules(dataset: "xarray.Dataset", schedules: list[str]) -> "Figure":
    """Training loss, accuracy and learning rate of each schedule at its best first rate."""
    figure = new_figure(12.5, 4.2)
    panels = figure.subplots(1, 3)
    names = ("training_loss", "evaluation_accuracy", "learning_rate_in_force")
    titles = ("training loss (nats)", "test accuracy", r"learning rate in force $\eta$")
    for index, schedule in enumerate(schedules):
        lanes = of_schedule(dataset, schedule)
        rate = best_rate(lanes)
        if rate is None:
            continue
        lane = lanes.sel(learning_rate=rate).median("seed")
        for panel, name in zip(panels, names, strict=True):
            known = np.isfinite(lane[name].values)
            panel.plot(
                lane.step.values[known],
                lane[name].values[known],
                color=LINE_COLORS[index % len(LINE_COLORS)],
                label=f"{schedule}, from {rate:g}",
                linewidth=1.3,
            )
    for panel, title in zip(panels, titles, strict=True):
        panel.set_xlabel("iteration k")
        panel.set_ylabel(title)
    _log(panels[0], "y")
    _log(panels[2], "y")
    accuracy = dataset.evaluation_accuracy.isel(step=-1).max()
    panels[1].set_ylim(float(accuracy) - 0.06, float(accuracy) + 0.01)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
