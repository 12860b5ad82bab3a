"""A variable at the end of training against an axis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from driftlab.plot.axes import (
    cell_edges,
    is_log_spaced,
    is_log_valued,
    log_ticks,
    note,
    tick_values,
)
from driftlab.plot.divergence import (
    DIVERGED_COLOR,
    diverged_patch,
    diverged_shares,
    draw_strip,
    shade,
)
from driftlab.plot.labels import name_list, number
from driftlab.plot.selection import (
    Selection,
    dead_fraction,
    final_values,
    median,
    select,
)
from driftlab.plot.style import (
    LINE_COLORS,
    LINE_STYLES,
    MISSING_COLOR,
    new_figure,
    style,
)

if TYPE_CHECKING:
    import xarray

Best = Literal["auto", "lowest", "highest", "none"]


class _Line(NamedTuple):
    """What is drawn of one point: all over the axis, NaN for nothing; `best` is an index."""

    name: str
    color: str
    line_style: Any
    seeds: Float[np.ndarray, "axis seed"]
    median: Float[np.ndarray, " axis"]
    quartiles: Float[np.ndarray, "2 axis"]
    diverged: Float[np.ndarray, " axis"]
    best: int | None


@style()
def final_value(
    dataset: "xarray.Dataset",
    variable: str,
    axis: str = "learning_rate",
    *,
    best: Best = "auto",
    title: str | None = None,
) -> Figure:
    """A variable at the last record against an axis: median, quartiles and every seed.

    Lanes that diverged have no final value. The line is the median over the seeds that survive,
    drawn where no more than half diverged; the strip below shows the share that did, a row a
    line, and is left out where all survived. Where every lane did, the panel is hatched.
    Each point of the remaining axes is a line.

    Args:
      dataset: a sweep's result.
      variable: a variable over the axes and `step`.
      axis: a numeric axis.
      best: which median gets a star: "lowest", "highest", "none", or "auto": the highest of an
        accuracy, the lowest of a loss or an error, none of anything else.
      title: the figure's title.

    Returns:
      The figure.

    Raises:
      ValueError: if the dataset lacks the variable or the axis, the axis is not numeric, or
        `best` is none of the above.
    """
    direction = _direction(best, variable)
    selection = select(dataset, variable, axis)
    step, finals = final_values(selection)
    lines = [_line(selection, i, final, direction) for i, final in enumerate(finals)]
    log = is_log_spaced(selection.axis)
    edges = cell_edges(selection.axis, log)

    figure, panel, strip = _layout(lines, title)
    for line in lines:
        _draw(panel, selection.axis, line)
    values = np.stack(finals)
    if is_log_valued(values, variable):
        panel.set_yscale("log")
        log_ticks(panel.yaxis)
    shares = np.stack([line.diverged for line in lines])
    if not np.isfinite(values).any():
        note(panel, "every lane diverged" if (shares >= 1).all() else "no value")
        panel.set_yticks([])
    shade(panel, edges, np.asarray((shares >= 1).all(0)))
    if strip is not None:
        draw_strip(strip, edges, shares, [line.name or "diverged" for line in lines])
    bottom = panel if strip is None else strip
    if log:
        panel.set_xscale("log")
    panel.set_xlim(edges[0], edges[-1])
    tick_values(panel.xaxis, selection.axis, log)
    bottom.set_xlabel(selection.axis_label)
    panel.set_ylabel(f"{selection.value_label} at iteration {step}")
    _legend(figure, selection, lines, shares)
    return figure


def _direction(best: str, variable: str) -> int:
    """-1, +1 or 0: whether the lowest, the highest or no value is the best."""
    if best == "auto":
        lower = "loss" in variable or "error" in variable
        best = "highest" if "accuracy" in variable else "lowest" if lower else "none"
    directions = {"lowest": -1, "highest": 1, "none": 0}
    if best not in directions:
        raise ValueError(f"best={best!r} must be 'auto', 'lowest', 'highest' or 'none'.")
    return directions[best]


def _line(selection: Selection, index: int, final: np.ndarray, direction: int) -> _Line:
    point = selection.points[index]
    diverged = dead_fraction(point.diverged, point.missing)
    middle = np.where(diverged > 0.5, np.nan, median(final))
    finite = np.isfinite(middle)
    filled = np.where(finite[:, None], final, 0.0)
    quartiles = np.where(finite, np.nanquantile(filled, [0.25, 0.75], axis=1), np.nan)
    best = int(np.nanargmax(direction * middle)) if direction and finite.any() else None
    return _Line(
        name=name_list(point.coordinates, with_axes=False),
        color=LINE_COLORS[index % len(LINE_COLORS)],
        line_style=LINE_STYLES[index // len(LINE_COLORS) % len(LINE_STYLES)],
        seeds=final,
        median=middle,
        quartiles=quartiles,
        diverged=diverged,
        best=best,
    )


def _layout(lines: Sequence[_Line], title: str | None) -> tuple[Figure, Axes, Axes | None]:
    """The figure, its main panel, and the strip below where a lane diverged or has not run."""
    if all((line.diverged == 0).all() for line in lines):
        figure = new_figure(8.6, 4.4, title)
        return figure, figure.add_subplot(), None
    height = 0.12 + 0.22 * len(lines)
    figure = new_figure(8.6, 4.6 + height, title)
    panel, strip = figure.subplots(2, 1, sharex=True, height_ratios=[3.8, height])
    return figure, panel, strip


def _draw(panel: Axes, axis: np.ndarray, line: _Line) -> None:
    if line.seeds.shape[1] > 1:
        panel.fill_between(
            axis,
            *line.quartiles,
            where=np.isfinite(line.median),
            color=line.color,
            alpha=0.2,
            linewidth=0,
        )
        panel.scatter(
            np.repeat(axis, line.seeds.shape[1]),
            line.seeds.ravel(),
            s=9,
            color=line.color,
            alpha=0.45,
            linewidths=0,
        )
    panel.plot(
        axis,
        line.median,
        color=line.color,
        linestyle=line.line_style,
        marker="o",
        markersize=3.5 if len(axis) > 16 else 5,
    )
    if line.best is not None:
        panel.plot(
            axis[line.best],
            line.median[line.best],
            color=line.color,
            marker="*",
            markersize=15,
            markeredgecolor="white",
            zorder=4,
            linestyle="none",
        )


def _legend(
    figure: Figure, selection: Selection, lines: Sequence[_Line], shares: np.ndarray
) -> None:
    seeds = lines[0].seeds.shape[1]
    handles: list[Artist] = []
    for line in lines:
        name = line.name or (f"median of {seeds} seeds" if seeds > 1 else selection.value_label)
        if not np.isfinite(line.median).any():
            name += " (no value)"
        handles.append(
            Line2D(
                [], [], color=line.color, linestyle=line.line_style, marker="o", ms=4, label=name
            )
        )
        if line.best is not None:
            value, at = line.median[line.best], selection.axis[line.best]
            label = f"best {number(value)} at {number(at)}"
            handles.append(
                Line2D([], [], color=line.color, marker="*", ms=11, linestyle="none", label=label)
            )
    if seeds > 1 and np.isfinite([line.median for line in lines]).any():
        color = lines[0].color if len(lines) == 1 else "#555555"
        handles.append(Patch(color=color, alpha=0.25, linewidth=0, label="quartiles over seeds"))
        handles.append(
            Line2D([], [], color=color, alpha=0.6, marker=".", linestyle="none", label="one seed")
        )
    if ((shares > 0) & (shares < 1)).any():
        handles.append(Patch(facecolor=diverged_shares()(0.5), label="some seeds diverged"))
    label = "all seeds diverged" if seeds > 1 else "diverged"
    if (shares >= 1).any() and len(lines) > 1:
        handles.append(Patch(facecolor=DIVERGED_COLOR, label=label))
        label = "no lane survived"
    if (shares >= 1).all(0).any():
        handles.append(diverged_patch(label))
    if np.isnan(shares).any():
        handles.append(Patch(facecolor=MISSING_COLOR, label="not run"))
    title = ", ".join(selection.points[0].coordinates).replace("_", " ") or None
    figure.legend(handles=handles, loc="outside right upper", title=title, alignment="left")
