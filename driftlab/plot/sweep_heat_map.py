"""A variable as an image over an axis and the iteration."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from driftlab.plot.axes import (
    add_color_bar,
    add_panels,
    cell_edges,
    is_log_spaced,
    is_log_valued,
    normalization,
    note,
    panel_size,
    step_edges,
    tick_values,
)
from driftlab.plot.divergence import HATCHED, diverged_patch
from driftlab.plot.labels import name_list
from driftlab.plot.selection import Selection, dead_fraction, majority_median, select
from driftlab.plot.style import (
    MISSING_COLOR,
    new_figure,
    sequential,
    style,
)

if TYPE_CHECKING:
    import xarray


@style()
def heat_map(
    dataset: "xarray.Dataset",
    variable: str,
    axis: str = "learning_rate",
    *,
    title: str | None = None,
) -> Figure:
    """The median over surviving seeds, as an image of the axis against the iteration.

    Where more than half the seeds have diverged there is no value but a hatched region. Each
    point of the remaining axes has a panel; all panels share one colour scale, which spans the
    values where runs survive: the last values before divergence may lie beyond its ends.

    Args:
      dataset: a sweep's result.
      variable: a variable over the axes and `step`.
      axis: a numeric axis.
      title: the figure's title.

    Returns:
      The figure. Colours are logarithmic where the values are positive, accuracies excepted.

    Raises:
      ValueError: if the dataset lacks the variable or the axis, or the axis is not numeric.
    """
    selection = select(dataset, variable, axis)
    medians = [majority_median(point) for point in selection.points]
    values = np.stack(medians)
    died = np.stack([dead_fraction(point.dead, point.missing) > 0.5 for point in selection.points])
    # What a run reaches on its way to divergence would leave the others no colours.
    surviving = values[~died.any(-1)]
    scaled = surviving if np.isfinite(surviving).any() else values
    norm = normalization(scaled, is_log_valued(values, variable, decades=0.0))
    log = is_log_spaced(selection.axis)

    figure = new_figure(*panel_size(len(medians)), title)
    titles = [name_list(point.coordinates) for point in selection.points]
    panels = add_panels(figure, titles, selection.step_label, selection.axis_label)
    meshes = []
    for panel, point, median, dead in zip(panels, selection.points, medians, died, strict=True):
        meshes.append(_draw(panel, selection, median, dead, norm, log))
        if point.missing.all():
            note(panel, "not run")
    if log:
        panels[0].set_yscale("log")
    tick_values(panels[0].yaxis, selection.axis, log)
    panels[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))

    if np.isfinite(values).any():
        add_color_bar(
            figure, meshes[0], panels, selection.value_label, extend=_extend(values, norm)
        )
    handles = []
    if died.any():
        seeds = selection.points[0].diverged.shape[1]
        handles.append(
            diverged_patch("more than half the seeds diverged" if seeds > 1 else "diverged")
        )
    if (~np.isfinite(values) & ~died).any():
        handles.append(Patch(facecolor=MISSING_COLOR, label="no record"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _extend(values: np.ndarray, norm: Normalize) -> str:
    """At which ends values lie beyond the colour scale, as a colour bar calls it."""
    below, above = bool((values < norm.vmin).any()), bool((values > norm.vmax).any())
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]


def _draw(
    panel: Axes,
    selection: Selection,
    median: np.ndarray,
    dead: np.ndarray,
    norm: Normalize,
    log: bool,
) -> QuadMesh:
    """One panel; returns its image. Once dead, a row stays so: its region is one bar."""
    across, along = step_edges(selection.steps), cell_edges(selection.axis, log)
    panel.grid(False)
    panel.set_facecolor(MISSING_COLOR)
    mesh = panel.pcolormesh(
        across, along, np.ma.masked_invalid(median), norm=norm, cmap=sequential()
    )
    first_dead = np.where(dead.any(1), dead.argmax(1), dead.shape[1])
    if dead.any():
        panel.fill_betweenx(
            np.repeat(along, 2)[1:-1],
            np.repeat(across[first_dead], 2),
            across[-1],
            **HATCHED,
        )
    panel.set_xlim(across[0], across[-1])
    panel.set_ylim(along[0], along[-1])
    return mesh
