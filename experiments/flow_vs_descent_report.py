"""Slopes of the distances between an optimiser and its flows, and their figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import LogLocator

from driftlab.flows.order import fitted_order, observed_orders
from driftlab.plot.axes import add_panels, log_ticks
from driftlab.plot.style import LINE_COLORS, LINE_STYLES, new_figure, style
from experiments.flow_models import expected_order, is_of_any

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# A slope holds if it is this close to the theory's, at the two smallest rates.
TOLERANCE = 0.2
Rates = Float[np.ndarray, " fitted"]


def errors(
    dataset: "xarray.Dataset", name: str, fitted: Rates, duration: float
) -> tuple[Rates, Rates]:
    """The distances of a flow after one step and after a fixed time.

    Args:
      dataset: the sweep's result.
      name: of the flow.
      fitted: the learning rates, `duration / n` each.
      duration: the time.

    Returns:
      `(after one step, at time duration)`; NaN on lanes that did not end well.
    """
    after_one, after_all = [], []
    for rate in fitted:
        lane = dataset[f"distance_{name}"].sel(learning_rate=rate, method="nearest")
        after_one.append(float(lane.sel(step=1)))
        after_all.append(float(lane.sel(step=round(duration / rate))))
    return np.array(after_one), np.array(after_all)


def tables(
    dataset: "xarray.Dataset", names: Sequence[str], fitted: Rates, duration: float
) -> dict[str, list[dict[str, Any]]]:
    """The slopes, and the distances at every rate.

    Args:
      dataset: the sweep's result.
      names: of the flows.
      fitted: the learning rates of the slopes.
      duration: the time at which they are compared.

    Returns:
      Heading -> rows.
    """
    slopes, rows = [], []
    for name in names:
        local, whole = errors(dataset, name, fitted, duration)
        expected = expected_order(name)
        last = [_smallest(fitted, found) for found in (local, whole)]
        slopes.append(
            {
                "flow": name,
                "order of a step": f"{expected + 1}",
                "fitted ": _fitted(fitted, local),
                "at the smallest rates ": last[0],
                f"order at time {duration:g}": f"{expected}",
                "fitted": _fitted(fitted, whole),
                "at the smallest rates": last[1],
                # Memory has transients of its own, whose decay does not depend on h: no verdict.
                "holds": _verdict(last, (expected + 1, expected)) if not is_of_any(name) else "-",
            }
        )
        for index in np.argsort(fitted):
            rows.append(
                {
                    "flow": name,
                    "learning rate": float(fitted[index]),
                    "after a step": float(local[index]),
                    f"at time {duration:g}": float(whole[index]),
                }
            )
    return {"Distance to the optimiser: slopes": slopes, "Distances": rows}


def _fitted(rates: Rates, found: Rates) -> float | None:
    slope = fitted_order(rates, found)
    return None if np.isnan(slope) else slope


def _smallest(rates: Rates, found: Rates) -> float | None:
    """The slope between the two smallest rates whose distances are not rounding."""
    kept = found > 1e3 * np.finfo(float).eps
    if kept.sum() < 2:
        return None
    slope = float(observed_orders(rates[kept], found[kept])[-1])
    return None if np.isnan(slope) else slope


def _verdict(found: Sequence[float | None], expected: Sequence[int]) -> str:
    if any(value is None for value in found):
        return "-"  # nothing but rounding, or nothing at all
    near = [abs(float(a or 0) - b) <= TOLERANCE for a, b in zip(found, expected, strict=True)]
    return "yes" if all(near) else "no"


@style()
def draw(
    dataset: "xarray.Dataset",
    names: Sequence[str],
    fitted: Rates,
    duration: float,
    shown_steps: int,
) -> dict[str, "Figure"]:
    """Distances against the learning rate, and against the step.

    Args:
      dataset: the sweep's result.
      names: of the flows.
      fitted: the learning rates of the slopes.
      duration: the time at which they are compared.
      shown_steps: how many steps the second figure shows.

    Returns:
      File name without ending -> figure.
    """
    slopes = new_figure(9, 4.2)
    panels = add_panels(slopes, ["after one step", f"at time {duration:g}"], "learning rate h", "")
    panels[0].set_ylabel("distance to the optimiser")
    for index, name in enumerate(names):
        found = errors(dataset, name, fitted, duration)
        order = expected_order(name)
        for panel, values, theory in zip(panels, found, (order + 1, order), strict=True):
            line = {"color": _color(index), "linestyle": _dashes(index)}
            panel.plot(fitted, np.where(values > 0, values, np.nan), marker="o", ms=4, **line)
            slope = _smallest(fitted, values)
            label = f"{name}: {'-' if slope is None else f'{slope:.2f}'} ({theory})"
            panel.plot([], [], label=label, **line)
    for panel in panels:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.xaxis.set_minor_locator(LogLocator(subs=(3,)))
        log_ticks(panel.xaxis)
        panel.legend(title="slope at the smallest rates (theory)", fontsize=7.5, title_fontsize=8)
    return {
        "distance_against_learning_rate": slopes,
        "distance_against_step": _against_step(dataset, names, fitted, shown_steps),
    }


def _against_step(
    dataset: "xarray.Dataset", names: Sequence[str], fitted: Rates, shown_steps: int
) -> "Figure":
    """A panel for the largest fitted rate and for each further one."""
    rates = dataset.learning_rate.values
    shown = rates[(rates >= fitted.max() * (1 - 1e-6)) | ~_among(rates, fitted)]
    figure = new_figure(3.6 * min(len(shown), 3) + 1.8, 3.6 * -(-len(shown) // 3))
    titles = [f"h = {rate:.3g}" for rate in shown]
    panels = add_panels(figure, titles, "iteration n", "distance to the optimiser")
    for panel, rate in zip(panels, shown, strict=True):
        lane = dataset.sel(learning_rate=rate).isel(step=slice(1, shown_steps + 1))
        for index, name in enumerate(names):
            values = lane[f"distance_{name}"].values
            panel.plot(
                lane.step.values,
                np.where(values > 0, values, np.nan),
                color=_color(index),
                linestyle=_dashes(index),
                label=name,
            )
            gone = ~np.isfinite(values)
            if gone.any() and not gone.all():
                last = int(np.argmax(gone)) - 1
                panel.plot(lane.step.values[last], values[last], marker="x", color=_color(index))
        panel.set_yscale("log")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", title="a cross: the flow blew up")
    return figure


def _among(rates: np.ndarray, fitted: Rates) -> np.ndarray:
    return np.asarray(np.isclose(rates[:, None], fitted[None], rtol=1e-6).any(axis=1))


def _color(index: int) -> str:
    return LINE_COLORS[index % len(LINE_COLORS)]


def _dashes(index: int) -> Any:
    return LINE_STYLES[index // len(LINE_COLORS) % len(LINE_STYLES)]
