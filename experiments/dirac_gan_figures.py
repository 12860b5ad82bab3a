"""Figures of the Dirac GAN: phase portraits, radii and orders."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.ticker import NullLocator

from driftlab.flows.saving import solve_at
from driftlab.plot.axes import add_panels
from driftlab.plot.style import LINE_COLORS, LINE_STYLES, new_figure, style
from experiments.dirac_gan_models import (
    ADJUSTMENTS,
    MULTIPLIERS,
    PLAIN_ORDERS,
    TURNS,
    Errors,
    make_field,
    start,
)

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# What the radii's panels hold.
PLAIN = ("simultaneous", *TURNS, "optimistic", "extragradient", "rk4")
CORRECTED = (*MULTIPLIERS, *ADJUSTMENTS)
# These lie on others.
_DASHED = ("extragradient", "rk4", "drift_cancelled", "consensus")
# Points of a flow's path a round.
_POINTS = 12


def draw(
    dataset: "xarray.Dataset",
    ratios: Float[np.ndarray, " ratios"],
    rates: Float[np.ndarray, " rates"],
    errors: dict[str, Errors],
) -> dict[str, "Figure"]:
    """The figures.

    Args:
      dataset: the sweep's result.
      ratios: of the slopes.
      rates: likewise.
      errors: play -> errors, `(ratios, rates)`.

    Returns:
      File name without ending -> figure.
    """
    figures = {
        "dirac_gan_radius": _radii(dataset),
        "dirac_gan_orders": _orders(ratios, rates, errors),
    }
    turns = [name for name in ("simultaneous", *TURNS) if name in dataset.model.values]
    if turns:
        figures["dirac_gan_portraits"] = _portraits(dataset, turns)
        figures["dirac_gan_ratios"] = _ratios(dataset, turns)
    return figures


def _equal(dataset: "xarray.Dataset") -> "xarray.Dataset":
    return dataset.sel(ratio=1.0, method="nearest")


@style()
def _portraits(dataset: "xarray.Dataset", names: list[str]) -> "Figure":
    """The largest learning rate, where the drift shows, for three turns."""
    rate = float(dataset.learning_rate.max())
    steps = int(min(3 * 4 * np.pi / rate, dataset.step.values[-1]))
    lanes = _equal(dataset).sel(learning_rate=rate, step=slice(0, steps))
    figure = new_figure(11, 4.2, f"both learning rates {rate:g}, {steps} rounds from (1, 1)")
    known = {name: f"alternating, {order[0]} first" for name, order in TURNS.items()}
    titles = [known.get(name, _label(name)) for name in names]
    panels = add_panels(figure, titles, r"$\phi$", r"$\theta$")
    for panel, name in zip(panels, names, strict=True):
        for model, label, color in (
            ("gradient_flow", "gradient flow", LINE_COLORS[1]),
            (f"{name}_flow", "modified flow", LINE_COLORS[0]),
        ):
            phi, theta = _path(model, rate, steps)
            panel.plot(phi, theta, label=label, color=color)
        lane = lanes.sel(model=name)
        panel.plot(lane.phi, lane.theta, "o", color="black", ms=2.5, label="rounds")
        panel.plot(0, 0, marker="+", color="#444444", ms=8)
        panel.plot(1, 1, marker="D", color="#CC3311", ms=5, linestyle="none", label="start")
        panel.set_aspect("equal")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _path(model: str, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A flow's phi and theta, finer than once a round."""
    field = make_field(model, {"phi": rate, "theta": rate})
    times = np.linspace(0, steps, _POINTS * steps + 1)[1:]
    values = jax.jit(lambda y: solve_at(field, y, times).values)(start())
    return values["phi"][:, 0], values["theta"][:, 0]


@style()
def _radii(dataset: "xarray.Dataset") -> "Figure":
    rates = dataset.learning_rate.values
    rate = float(rates[np.argmin(abs(rates - 0.1))])
    lanes = _equal(dataset).sel(learning_rate=rate)
    figure = new_figure(11, 5.4, f"both learning rates {rate:g}")
    titles = ("ways to play, with modified flows", "simultaneous play with corrections")
    panels = figure.subplots(1, 2)
    for panel, names, title in zip(panels, (PLAIN, CORRECTED), titles, strict=True):
        panel.set_title(title)
        panel.set_xlabel("round")
        for index, name in enumerate(name for name in names if name in lanes.model.values):
            lane, color = lanes.sel(model=name), _color(index)
            dashes = "--" if name in _DASHED else "-"
            distance = np.hypot(lane.phi, lane.theta)
            panel.plot(lane.step, distance, color=color, linestyle=dashes, label=_label(name))
            if f"{name}_flow" in lanes.model.values:
                lane = lanes.sel(model=f"{name}_flow").isel(step=slice(0, None, 40))
                panel.plot(
                    lane.step,
                    np.hypot(lane.phi, lane.theta),
                    linestyle="none",
                    marker="o",
                    ms=4,
                    mfc="none",
                    color=color,
                    label=f"{_label(name)}: modified flow",
                )
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    panels[0].set_ylabel("distance from the equilibrium")
    panels[0].set_ylim(bottom=0)
    panels[1].set_yscale("log")
    return figure


@style()
def _ratios(dataset: "xarray.Dataset", names: list[str]) -> "Figure":
    """The radius that the gradient flow conserves, at the largest learning rate."""
    rate = float(dataset.learning_rate.max())
    lanes = dataset.sel(learning_rate=rate)
    figure = new_figure(11, 4.4, f"phi's learning rate {rate:g}")
    titles = [
        rf"theta's / phi's learning rate $\rho$ = {ratio:g}" for ratio in dataset.ratio.values
    ]
    label = r"$\sqrt{2(\rho\,\phi^2 + \theta^2)/(1 + \rho)}$"
    panels = add_panels(figure, titles, "round", label)
    for panel, ratio in zip(panels, dataset.ratio.values, strict=True):
        for index, name in enumerate(names):
            for model in (name, f"{name}_flow"):
                lane = lanes.sel(model=model, ratio=ratio).isel(step=slice(0, 201))
                radius = np.sqrt(2 * (ratio * lane.phi**2 + lane.theta**2) / (1 + ratio))
                flow = model != name
                panel.plot(
                    lane.step,
                    radius,
                    color="black" if flow else LINE_COLORS[index],
                    linestyle=":" if flow else "-",
                    linewidth=1.2 if flow else 1.8,
                    label="modified flows" if flow and index == 0 else "" if flow else _label(name),
                )
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "modified flows")
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


@style()
def _orders(
    ratios: Float[np.ndarray, " ratios"],
    rates: Float[np.ndarray, " rates"],
    errors: dict[str, Errors],
) -> "Figure":
    figure = new_figure(11, 5.8, f"after a fixed time, ratio of the learning rates {ratios[-1]:g}")
    titles = ["from the gradient flow", "from the flow of order 2"]
    panels = add_panels(figure, titles, "learning rate h of phi", "distance to the iterates")
    for index, (name, found) in enumerate(errors.items()):
        looks: dict[str, Any] = {
            "color": _color(index),
            "linestyle": LINE_STYLES[index // 6],
            "marker": "o",
            "ms": 3.5,
        }
        for panel, values in zip(panels, found, strict=True):
            if np.isfinite(values[-1]).all():
                panel.plot(rates, values[-1], label=_label(name), **looks)
    orders = (sorted({1, *(PLAIN_ORDERS[name] for name in PLAIN_ORDERS)}), [2])
    for panel, slopes in zip(panels, orders, strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        for slope in slopes:
            # Beside the lines, not on them.
            line = 2.0 * (rates / rates[-1]) ** slope * {1: 1.5, 2: 2e-4, 4: 2e-9}[slope]
            panel.plot(rates, line, color="#888888", lw=3, alpha=0.4)
            # Above the first, below the others, where nothing else is.
            shift = (8, 8) if slope == 1 else (-52, -24)
            at = (rates[0], line[0]) if slope == 1 else (rates[-1], line[-1])
            panel.annotate(f"slope {slope}", at, shift, textcoords="offset points")
        panel.set_xticks(rates, [f"{rate:.3g}" for rate in rates])
        panel.xaxis.set_minor_locator(NullLocator())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _color(index: int) -> str:
    return LINE_COLORS[index % len(LINE_COLORS)]


def _label(name: str) -> str:
    return name.replace("_", " ")
