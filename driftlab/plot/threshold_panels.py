"""A variable along training against a threshold: one panel a value of an axis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from driftlab.plot.axes import note, panel_size
from driftlab.plot.divergence import DIVERGED_COLOR
from driftlab.plot.labels import number
from driftlab.plot.selection import Selection, median, select
from driftlab.plot.style import LINE_COLORS, new_figure, style

if TYPE_CHECKING:
    import xarray

_COLUMNS = 3
_THRESHOLD_COLOR = "#222222"
_COMPARISON_COLOR = "#BDBDBD"
_CROSS: Any = {
    "color": DIVERGED_COLOR, "marker": "x", "markeredgewidth": 1.6, "linestyle": "none",
}  # fmt: skip


class Comparison(NamedTuple):
    """A curve of another run, to be seen behind a panel's own.

    Attributes:
      steps: where it has values, in the panel's iterations.
      values: the values there.
    """

    steps: Float[np.ndarray, " record"]
    values: Float[np.ndarray, " record"]


@style()
def threshold_panels(
    dataset: "xarray.Dataset",
    variable: str,
    thresholds: Sequence[float],
    axis: str = "learning_rate",
    *,
    threshold_label: str = "threshold",
    comparisons: Sequence[Comparison] | None = None,
    comparison_label: str = "",
    title: str | None = None,
) -> Figure:
    """A variable against the iteration, a panel a value of the axis, with that value's threshold.

    Every panel has its own y axis, from 0 to what shows the threshold and the run; a comparison may
    leave it at the top. A lane that diverges ends at a cross.

    Args:
      dataset: a sweep's result, over the axis and `seed` alone.
      variable: a variable over the axes and `step`.
      thresholds: one a value of the axis, in the dataset's order.
      axis: a numeric axis.
      threshold_label: what the legend calls them.
      comparisons: one a value of the axis, likewise, drawn in grey.
      comparison_label: what the legend calls them.
      title: the figure's title.

    Returns:
      The figure.

    Raises:
      ValueError: if the dataset lacks the variable or the axis or has others, or the numbers of
        thresholds or comparisons are not the axis' length.
    """
    selection = select(dataset, variable, axis)
    if len(selection.points) > 1:
        raise ValueError(
            f"the dataset has further axes {list(selection.points[0].coordinates)}; select one "
            "point of them."
        )
    for name, given in (("thresholds", thresholds), ("comparisons", comparisons)):
        if given is not None and len(given) != len(selection.axis):
            raise ValueError(f"{name} needs {len(selection.axis)} entries, one a value of {axis}.")
    order = np.argsort(dataset[axis].values)

    figure = new_figure(*panel_size(len(selection.axis)), title)
    panels = _panels(figure, selection)
    for index, (panel, at) in enumerate(zip(panels, order, strict=True)):
        comparison = None if comparisons is None else comparisons[at]
        _draw(panel, selection, index, float(thresholds[at]), comparison)
    panels[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.legend(
        handles=_handles(selection, threshold_label, comparison_label if comparisons else ""),
        loc="outside lower center",
        ncols=4,
    )
    return figure


def _panels(figure: Figure, selection: Selection) -> list[Axes]:
    """A panel a value of the axis, with a common x axis and a y axis each."""
    count = len(selection.axis)
    columns = 2 if count == 4 else min(count, _COLUMNS)
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for unused in grid.flat[count:]:
        unused.remove()
    panels = list(grid.flat[:count])
    for index, (panel, value) in enumerate(zip(panels, selection.axis, strict=True)):
        panel.set_title(f"{selection.axis_label} {number(value)}")
        if index + columns >= count:
            panel.set_xlabel(selection.step_label)
            panel.tick_params(labelbottom=True)
        if index % columns == 0:
            panel.set_ylabel(selection.value_label)
    return panels


def _draw(
    panel: Axes, selection: Selection, index: int, threshold: float, comparison: Comparison | None
) -> None:
    point = selection.points[0]
    values, diverged = point.values[index], point.diverged[index]
    if comparison is not None:
        panel.plot(*comparison, color=_COMPARISON_COLOR, linewidth=2.6, zorder=1.9)
    top = _top(values, threshold, comparison)
    seeds = len(values)
    for lane, died in zip(values, diverged, strict=True):
        good = np.flatnonzero(np.isfinite(lane))
        panel.plot(
            selection.steps[good],
            lane[good],
            color=LINE_COLORS[0],
            linewidth=1.4 if seeds == 1 else 0.6,
            alpha=1.0 if seeds == 1 else 0.6,
        )
        if died and good.size:
            panel.plot(
                selection.steps[good[-1]],
                min(lane[good[-1]], 0.97 * top),  # on the panel, though the value may not be
                **_CROSS,
                zorder=4,
                clip_on=False,
            )
    if seeds > 1:
        panel.plot(selection.steps, median(values[None])[0], color=LINE_COLORS[0])
    panel.axhline(threshold, color=_THRESHOLD_COLOR, linestyle="--", linewidth=1.2, zorder=3)
    panel.set_xlim(selection.steps[0], selection.steps[-1])
    panel.set_ylim(0, top)
    if np.isfinite(values).sum() <= seeds:
        note(panel, "diverged at once" if diverged.any() else "no record")


def _top(values: np.ndarray, threshold: float, comparison: Comparison | None) -> float:
    """The end of a y axis: the threshold, the run but for a spike or two, most of a comparison."""
    finite = values[np.isfinite(values)]
    high = float(np.quantile(finite, 0.99)) if finite.size else 0.0
    beyond = 0.0 if comparison is None else float(np.nanmax(comparison.values, initial=0.0))
    return 1.1 * max(min(high, 4 * threshold), min(beyond, 2.5 * threshold), 1.15 * threshold)


def _handles(selection: Selection, threshold_label: str, comparison_label: str) -> list[Artist]:
    point = selection.points[0]
    seeds = point.values.shape[1]
    label = selection.value_label + (f", median and each of {seeds} seeds" if seeds > 1 else "")
    handles: list[Artist] = [
        Line2D([], [], color=LINE_COLORS[0], label=label),
        Line2D([], [], color=_THRESHOLD_COLOR, linestyle="--", label=threshold_label),
    ]
    if comparison_label:
        handles.append(
            Line2D([], [], color=_COMPARISON_COLOR, linewidth=2.6, label=comparison_label)
        )
    if point.diverged.any():
        handles.append(Line2D([], [], **_CROSS, label="diverged"))
    return handles
