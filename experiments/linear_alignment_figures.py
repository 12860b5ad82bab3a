"""Alignment and drift of linear networks, in figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from driftlab.measures.layer_balance import momentum_balancedness_factor
from driftlab.plot.style import LINE_COLORS, LINE_STYLES, new_figure, style
from experiments.linear_alignment_report import dense_ranks, drifts, layers

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_RISK = r"$\log_{10}$ risk"


@style()
def draw(results: Mapping[str, "xarray.Dataset"], config: Any) -> dict[str, "Figure"]:
    """The figures.

    Args:
      results: part -> dataset, of the parts that were run; the first two figures need the first
        three of them.
      config: an `ml_collections.ConfigDict` with the fields of configs/linear_alignment.py.

    Returns:
      File name without ending -> figure.
    """
    figures = {}
    if {"plane", "images", "flow"} <= set(results):
        figures["linear_alignment_layers"] = _draw_layers(results)
        figures["linear_alignment_direction"] = _draw_direction(results)
    if "drift" in results:
        figures["linear_alignment_drift"] = _draw_drift(results["drift"], config)
    if "cnn" in results:
        figures["linear_alignment_cnn"] = _draw_cnn(results["cnn"], config)
    return figures


def _panels(titles: list[str], x_label: str, y_label: str = "") -> tuple["Figure", list[Any]]:
    """Panels with axes of their own, two a row."""
    rows = -(-len(titles) // 2)
    width, height = (6.2, 4.4) if len(titles) == 1 else (8.4, 3.1)
    figure = new_figure(width, height * rows)
    panels = list(figure.subplots(rows, min(len(titles), 2), squeeze=False).flat)
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title)
        panel.set_xlabel(x_label)
        panel.set_ylabel(y_label)
    return figure, panels[: len(titles)]


def _flow(results: Mapping[str, "xarray.Dataset"], problem: str) -> "xarray.Dataset":
    """The flow's first seed at the tightest tolerance."""
    lanes = results["flow"].sel(problem=problem)
    return lanes.sel({"tolerance": lanes.tolerance.values.min()}).isel(seed=0)


def _risk(lane: "xarray.Dataset") -> Any:
    return lane.log_risk.values / np.log(10)


def _draw_layers(results: Mapping[str, "xarray.Dataset"]) -> "Figure":
    """Ratios and alignments of the layers against the risk: the flow, and gradient descent."""
    problems = [str(name) for name in results["flow"].problem.values]
    titles = [f"{problem}: {what}" for what in ("rank one", "aligned") for problem in problems]
    figure, panels = _panels(titles, _RISK)
    for index, panel in enumerate(panels):
        problem, aligned = problems[index % 2], index >= 2
        flow = _flow(results, problem)
        names = layers(flow)
        if aligned:
            names = sorted(str(n) for n in flow.data_vars if str(n).startswith("alignment_layer"))
        descent = results[problem].sel(step_size="constant").isel(depth=-1, seed=0)
        # From the first record after the start, from which that is far.
        half = len(descent.learning_rate) // 2
        descent = descent.isel(learning_rate=half, step=slice(1, None))
        for place, name in enumerate(names):
            color = LINE_COLORS[place]
            label = f"layers {place + 1}, {place + 2}" if aligned else f"layer {place + 1}"
            panel.plot(_risk(flow), flow[name], color=color, label=label)
            panel.plot(_risk(descent), descent[name], color=color, linestyle=":", linewidth=2.2)
        panel.set_ylabel(
            r"$|\langle v_{k+1}, u_k\rangle|$" if aligned else r"$\|W_k\|_2 / \|W_k\|_F$"
        )
        panel.axhline(1, color="#444444", linewidth=0.8)
        panel.invert_xaxis()
        handles, _ = panel.get_legend_handles_labels()
        rate = float(descent.learning_rate)
        handles += [
            Line2D([], [], color="#444444", label="gradient flow"),
            Line2D([], [], color="#444444", linestyle=":", label=f"gradient descent, h = {rate:g}"),
        ]
        panel.legend(handles=handles, loc="lower right", fontsize=8)
    return figure


def _draw_direction(results: Mapping[str, "xarray.Dataset"]) -> "Figure":
    """The angle to the max-margin direction against the risk, for both depths."""
    problems = [str(name) for name in results["flow"].problem.values]
    figure, panels = _panels(problems, _RISK, r"$1 - \cos(w, \bar u)$")
    for panel, problem in zip(panels, problems, strict=True):
        dataset = results[problem].sel(step_size="constant").isel(seed=0, step=slice(1, None))
        for line, depth in zip(LINE_STYLES[1:], dataset.depth.values, strict=False):
            for place, rate in enumerate(dataset.learning_rate.values):
                lane = dataset.sel(depth=depth, learning_rate=rate)
                gap = np.maximum(1 - lane.direction_cosine.values, 1e-16)
                color = LINE_COLORS[place % len(LINE_COLORS)]
                panel.plot(_risk(lane), gap, color=color, linestyle=line, linewidth=1.3)
                alive = np.flatnonzero(np.isfinite(gap))
                if alive.size:
                    # A dot where a lane ends, which may be where it began; a cross if it diverged.
                    end, mark = alive[-1], "o" if str(lane.verdict.values) == "ok" else "x"
                    panel.plot(_risk(lane)[end], gap[end], mark, color=color, markersize=4)
        flow = _flow(results, problem)
        deep = int(dataset.depth.values[-1])
        panel.plot(_risk(flow), np.maximum(1 - flow.direction_cosine, 1e-16), color="#444444")
        panel.set_yscale("log")
        panel.invert_xaxis()
        handles = [Line2D([], [], color="#444444", label=f"gradient flow, depth {deep}")]
        handles += [
            Line2D([], [], color="#444444", linestyle=line, label=f"descent, depth {int(depth)}")
            for line, depth in zip(LINE_STYLES[1:], dataset.depth.values, strict=False)
        ]
        handles += [
            Line2D([], [], color=LINE_COLORS[place % len(LINE_COLORS)], label=f"h = {rate:g}")
            for place, rate in enumerate(dataset.learning_rate.values)
        ]
        panel.legend(handles=handles, fontsize=8, ncols=2, loc="best")
    return figure


def _draw_drift(dataset: "xarray.Dataset", config: Any) -> "Figure":
    """The drift of balancedness against the learning rate, with what is predicted."""
    problems = [str(name) for name in dataset.problem.values]
    label = rf"$\|B - B(0)\|_F$ at $n h = {config.drift_time:g}$"
    figure, panels = _panels(problems, "effective learning rate h", label)
    rates = dataset.learning_rate.values
    for panel, problem in zip(panels, problems, strict=True):
        found, integral = drifts(dataset, problem, config.drift_time)
        size = np.linalg.norm(integral)
        for place, (name, values) in enumerate(found.items()):
            if name == "gradient_flow":
                continue
            norms = np.linalg.norm(values, axis=1)
            marker = "" if name == "modified_flow" else "o"
            line = "--" if name == "modified_flow" else "-"
            color = LINE_COLORS[place % len(LINE_COLORS)]
            label = name.replace("_", " ")
            panel.plot(rates, norms, marker=marker, linestyle=line, color=color, label=label)
        for name, nesterov in (("heavy_ball", False), ("nesterov", True), ("", None)):
            factor = 1.0
            if nesterov is not None:
                factor = float(momentum_balancedness_factor(config.momentum, nesterov))
            if name in found or nesterov is None:
                panel.plot(rates, factor * rates * size, ":", color="#444444", linewidth=1.2)
        panel.plot([], [], ":", color="#444444", label="predicted, factor x h |I|")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
        panel.minorticks_off()
        panel.legend(fontsize=8)
    return figure


def _draw_cnn(dataset: "xarray.Dataset", config: Any) -> "Figure":
    """The dense layers' ratios along training, over their lower bounds."""
    starts = [str(start) for start in dataset.start.values]
    titles = [
        {"default": "default start", "norm_4": "Gaussian start, Frobenius norm 4"}[start]
        for start in starts
    ]
    figure, panels = _panels(titles, "iteration", r"$\|W\|_2 / \|W\|_F$")
    rates = dataset.learning_rate.values
    for panel, start in zip(panels, starts, strict=True):
        for place, (name, rank) in enumerate(dense_ranks(config).items()):
            color = LINE_COLORS[place]
            for line, rate in zip(LINE_STYLES, rates, strict=False):
                lane = dataset.sel(start=start, learning_rate=rate).median("seed")
                panel.plot(
                    dataset.step, lane[f"spectral_ratio_{name}"], color=color, linestyle=line
                )
            panel.axhline(rank**-0.5, color=color, linewidth=0.9, alpha=0.7)
            panel.plot([], [], color=color, label=f"{name}; bound {rank**-0.5:.3f}")
        for line, rate in zip(LINE_STYLES, rates, strict=False):
            panel.plot([], [], color="#444444", linestyle=line, label=f"h = {rate:g}")
        panel.set_ylim(0, 1)
        panel.legend(fontsize=8, ncols=2)
    return figure
