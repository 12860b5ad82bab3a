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
    normalization,
    note,
    panel_size,
)
from driftlab.plot.selection import Point, Selection, majority_median, name_list, number, select
from driftlab.plot.style import new_figure, sequential, style

if TYPE_CHECKING:
    import xarray


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
    diverged. A cross marks the last good record of each lane that diverges, at its own value.
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
    drawn = np.concatenate([*(m.ravel() for m in medians), *(c[2] for c in crosses)])
    colors = ScalarMappable(
        normalization(selection.axis, is_log_spaced(selection.axis)), sequential()
    )

    figure = new_figure(*panel_size(len(medians)), title)
    titles = [name_list(point.coordinates) for point in selection.points]
    panels = add_panels(figure, titles, selection.step_label, selection.value_label)
    if is_log_valued(drawn, variable):
        panels[0].set_yscale("log")
    for panel, point, median, cross in zip(panels, selection.points, medians, crosses, strict=True):
        _draw(panel, selection, point, median, cross, colors)
    panels[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))

    handles = []
    if len(selection.axis) > 1:
        add_color_bar(figure, colors, panels, selection.axis_label, selection.axis)
    else:
        label = f"{selection.axis_label} {number(selection.axis[0])}"
        handles.append(Line2D([], [], color=colors.to_rgba(selection.axis[0]), label=label))
    if any(cross[0].size for cross in crosses):
        label = "last good record of a lane that diverged"
        handles.append(Line2D([], [], color="#333333", marker="x", mew=1.5, ls="none", label=label))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _last_good_records(
    point: Point, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each diverged lane with a good record: its axis index, step and value there."""
    good = np.isfinite(point.values)
    index, seed = np.nonzero(point.diverged & good.any(-1))
    last = good.shape[-1] - 1 - np.argmax(good[index, seed, ::-1], axis=-1)
    return index, steps[last], point.values[index, seed, last]


def _draw(
    panel: Axes,
    selection: Selection,
    point: Point,
    median: np.ndarray,
    cross: tuple[np.ndarray, np.ndarray, np.ndarray],
    colors: ScalarMappable,
) -> None:
    for value, curve in zip(selection.axis, median, strict=True):
        finite = np.isfinite(curve)
        panel.plot(
            selection.steps[finite],
            curve[finite],
            color=colors.to_rgba(value),
            linewidth=1.2,
            marker="o" if finite.sum() == 1 else None,
            markersize=4,
        )
    index, step, value = cross
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
