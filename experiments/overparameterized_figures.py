"""Over-parameterised training in figures: residuals, widths, the kernel's smallest eigenvalue."""

from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.plot.axes import add_panels, log_ticks, panel_size, tick_values
from driftlab.plot.style import LINE_COLORS, LINE_STYLES, new_figure, sequential, style
from experiments.overparameterized_report import QUANTITIES, RATE, by_width, cases, largest_stable

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_TRAININGS = {
    "descent": "gradient descent",
    "flow": "gradient flow",
    "both_layers": "descent, both layers",
}
_GREY = "#666666"


@style()
def draw(outcome: "xarray.Dataset") -> dict[str, "Figure"]:
    """The figures.

    Args:
      outcome: from `overparameterized_report.outcomes`.

    Returns:
      File name without ending -> figure.
    """
    figures = {
        "overparameterized_residuals": _draw_residuals(outcome),
        "overparameterized_eigenvalue": _draw_eigenvalue(outcome),
    }
    if outcome.sizes["width"] > 1:
        figures["overparameterized_widths"] = _draw_widths(outcome)
    if outcome.sizes[RATE] > 1:
        figures["overparameterized_rates"] = _draw_rates(outcome)
    return figures


def _title(training: str, labels: str) -> str:
    return f"{_TRAININGS[training]}, {labels} labels"


def _panels(outcome: "xarray.Dataset", y_label: str) -> tuple["Figure", list[Any]]:
    found = list(cases(outcome))
    figure = new_figure(*panel_size(len(found)))
    titles = [_title(training, labels) for training, labels, _ in found]
    panels = add_panels(figure, titles, "iteration k", y_label)
    return figure, [(panel, lanes) for panel, (_, _, lanes) in zip(panels, found, strict=True)]


def _shown(values: "xarray.DataArray", floor: float = 1e-12) -> np.ndarray:
    """A curve without what a log scale cannot show, and float32 cannot tell from 0."""
    return values.where((values > floor) & np.isfinite(values)).values


def _colors(count: int) -> list[Any]:
    return [sequential()(value) for value in np.linspace(0.0, 0.85, count)]


def _legend(figure: "Figure", panel: Any, title: str | None = None) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title=title)


def _draw_residuals(outcome: "xarray.Dataset") -> "Figure":
    figure, panels = _panels(outcome, r"$|u_k - y|^2 / |u_0 - y|^2$")
    steps = outcome.step.values
    for panel, lanes in panels:
        at = lanes.sel({RATE: largest_stable(lanes)}).isel(seed=0)
        for width, color in zip(lanes.width.values, _colors(lanes.sizes["width"]), strict=True):
            curve = _shown(at["ratio"].sel(width=width))
            panel.semilogy(steps, curve, color=color, label=f"m = {width}")
        linear = _shown(at["linearized_ratio"].isel(width=-1))
        panel.semilogy(steps, linear, "k--", linewidth=1.2, label="linearised,\nlargest m")
        panel.semilogy(steps, at["bound"], color=_GREY, linestyle=":", label="bound")
    _legend(figure, panels[0][0])
    return figure


def _draw_rates(outcome: "xarray.Dataset") -> "Figure":
    figure, panels = _panels(outcome, r"$|u_k - y|^2 / |u_0 - y|^2$")
    steps = outcome.step.values
    for panel, lanes in panels:
        wide = lanes.isel(width=-1, seed=0)
        for index, value in enumerate(lanes[RATE].values):
            color, here = LINE_COLORS[index % len(LINE_COLORS)], wide.sel({RATE: value})
            label = rf"$h\lambda_\mathrm{{max}}$ = {float(here['scaled_rate']):.3g}"
            curve = _shown(here["ratio"])
            panel.semilogy(steps, curve, color=color, label=label)
            panel.semilogy(steps, here["bound"], color=color, linestyle=":")
            if str(here["verdict"].values) != "ok":
                last = np.flatnonzero(np.isfinite(curve))[-1]
                panel.plot(steps[last], curve[last], "x", color="#D55E00", markersize=8)
    _legend(figure, panels[0][0], "dotted: the bound\ncross: diverged")
    return figure


def _draw_eigenvalue(outcome: "xarray.Dataset") -> "Figure":
    figure, panels = _panels(outcome, r"$\lambda_\mathrm{min}$ of H(k), over its limit")
    for panel, lanes in panels:
        at = lanes.sel({RATE: largest_stable(lanes)}).isel(seed=0)
        for width, color in zip(lanes.width.values, _colors(lanes.sizes["width"]), strict=True):
            known = at["relative_eigenvalue"].sel(width=width).dropna("step")
            panel.plot(known.step, known, "o-", markersize=3, color=color, label=f"m = {width}")
        panel.axhline(1, color=_GREY, linewidth=1, label="limit")
        panel.axhline(0.75, color=_GREY, linestyle="--", linewidth=1, label="3/4, at k = 0")
        panel.axhline(0.5, color=_GREY, linestyle=":", linewidth=1, label="1/2, at all k")
    panels[0][0].set_ylim(bottom=0)  # of all: they share it
    _legend(figure, panels[0][0])
    return figure


def _draw_widths(outcome: "xarray.Dataset") -> "Figure":
    figure = new_figure(10.2, 6.0)
    panels = figure.subplots(2, 2, sharex=True)
    widths = outcome.width.values
    trainings, kinds = outcome.training.values.tolist(), outcome.labels.values.tolist()
    for panel, (quantity, name) in zip(panels.flat, QUANTITIES.items(), strict=True):
        top = 0.0
        for training, labels, lanes in cases(outcome):
            values = by_width(lanes, quantity).values
            color = LINE_COLORS[trainings.index(training)]
            line = LINE_STYLES[kinds.index(labels)]
            title = _title(training, labels)
            panel.loglog(
                widths, values.mean(1), color=color, linestyle=line, marker="o", markersize=4,
                label=title,
            )  # fmt: skip
            panel.loglog(widths, values, ".", markersize=3, color=color)
            top = max(top, float(np.nanmax(values.mean(1) * widths**0.5)))
        panel.loglog(
            widths, 1.2 * top * widths**-0.5, color=_GREY, linestyle=":", label=r"slope $-1/2$"
        )
        panel.set_title(name)
        panel.set_ylabel({"changed_patterns": "share of (example, unit)",
                          "unit_distance_max": r"$\max_r |w_r(k) - w_r(0)|$",
                          "relative_error": r"largest, over $|u_0 - y|$",
                          "kernel_error": "relative, Frobenius norm"}[quantity])  # fmt: skip
        tick_values(panel.xaxis, widths, log=True)
        log_ticks(panel.yaxis)
    for panel in panels[-1]:
        panel.set_xlabel("hidden units m")
    _legend(figure, panels.flat[0])
    return figure
