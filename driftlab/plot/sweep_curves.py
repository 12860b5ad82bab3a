"""A variable along training, one curve a value of an axis."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from driftlab.plot.axes import (
    add_color_bar,
    add_panels,
    is_log_spaced,
    is_log_valued,
    log_ticks,
    normalization,
    note,
    panel_size,
)
from driftlab.plot.labels import name_list, number
from driftlab.plot.selection import Point, Selection, majority_median, select
from driftlab.plot.style import new_figure, sequential, style

if TYPE_CHECKING:
    import xarray

_THIN = 0.6
_Crosses = tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]


@style()
def curves(
    dataset: "xarray.Dataset",
    variable: str,
    axis: str = "learning_rate",
    *,
    title: str | None = None,
) -> Figure:
    """A variable against the iteration, one curve a value of the axis, coloured by it.

    A curve is the median over the seeds that survive, and ends once more than half of them have
    diverged. Each lane that diverges is drawn as well, thin, up to a cross at its last good record.
    Each point of the remaining axes has a panel.

    Args:
      dataset: a sweep's result.
      variable: a variable over the axes and `step`.
      axis: a numeric axis.
      title: the figure's title.

    Returns:
      The figure. The y axis is logarithmic where the values are positive and span a decade.

    Raises:
      ValueError: if the dataset lacks the variable or the axis, or the axis is not numeric.
    """
    selection = select(dataset, variable, axis)
    medians = [majority_median(point) for point in selection.points]
    crosses = [_last_good_records(point, selection.steps) for point in selection.points]
    lanes = [point.values[point.diverged].ravel() for point in selection.points]
    drawn = np.concatenate([*(median.ravel() for median in medians), *lanes])
    colors = ScalarMappable(
        normalization(selection.axis, is_log_spaced(selection.axis)), sequential()
    )

    figure = new_figure(*panel_size(len(medians)), title)
    titles = [name_list(point.coordinates) for point in selection.points]
    panels = add_panels(figure, titles, selection.step_label, selection.value_label)
    if is_log_valued(drawn, variable):
        panels[0].set_yscale("log")
        log_ticks(panels[0].yaxis)
    for panel, point, median, cross in zip(panels, selection.points, medians, crosses, strict=True):
        _draw(panel, selection, point, median, cross, colors)
    panels[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    margin = 0.04 * (selection.steps[-1] - selection.steps[0]) or 1
    panels[0].set_xlim(selection.steps[0] - margin, selection.steps[-1] + margin)

    handles = []
    seeds = selection.points[0].diverged.shape[1]
    if seeds > 1:
        label = f"median of {seeds} seeds"
        handles.append(Line2D([], [], color="#333333", label=label))
    if len(selection.axis) > 1:
        add_color_bar(figure, colors, panels, selection.axis_label, selection.axis)
    else:
        label = f"{selection.axis_label} {number(selection.axis[0])}"
        handles.append(Line2D([], [], color=tuple(colors.to_rgba(selection.axis[0])), label=label))
    if any(cross[1].size for cross in crosses):
        label = "a lane that diverged, up to its last good record"
        handles.append(Line2D([], [], color="#333333", lw=_THIN, marker="x", mew=1.5, label=label))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _last_good_records(point: Point, steps: np.ndarray) -> _Crosses:
    """For each diverged lane with a good record: its (axis, seed) index, step and value there."""
    good = np.isfinite(point.values)
    index, seed = np.nonzero(point.diverged & good.any(-1))
    last = good.shape[-1] - 1 - np.argmax(good[index, seed, ::-1], axis=-1)
    return (index, seed), steps[last], point.values[index, seed, last]


def _draw(
    panel: Axes,
    selection: Selection,
    point: Point,
    median: np.ndarray,
    cross: _Crosses,
    colors: ScalarMappable,
) -> None:
    for value, curve in zip(selection.axis, median, strict=True):
        finite = np.isfinite(curve)
        panel.plot(
            selection.steps[finite],
            curve[finite],
            color=colors.to_rgba(value),
            linewidth=1.4,
            marker="o" if finite.sum() == 1 else None,
            markersize=4,
        )
    (index, seed), step, value = cross
    for i, s in zip(index, seed, strict=True):
        good = np.isfinite(point.values[i, s])
        panel.plot(
            selection.steps[good],
            point.values[i, s, good],
            color=colors.to_rgba(selection.axis[i]),
            linewidth=_THIN,
            zorder=1.9,
        )
    panel.scatter(
        step,
        value,
        color=colors.to_rgba(selection.axis[index]),
        marker="x",
        s=26,
        linewidths=1.4,
        zorder=3,
    )
    if not np.isfinite(median).any() and not index.size:
        note(panel, "every lane diverged at once" if point.diverged.any() else "no record")
