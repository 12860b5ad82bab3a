"""Scales, ticks, cell edges and panels."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterSciNotation,
    MaxNLocator,
    NullLocator,
)

from driftlab.plot.labels import number

_MAX_COLUMNS = 3
_MAX_FIXED_TICKS = 6


class _LogFormatter(LogFormatterSciNotation):
    """Powers of ten on a long log axis, plain numbers on one of less than two decades."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        axis: Any = self.axis
        low, high = axis.get_view_interval()
        return number(float(x)) if text and high < 100 * low else text


def is_log_spaced(values: Num[np.ndarray, " axis"]) -> bool:
    """Whether an axis is better drawn on a log scale.

    Args:
      values: the axis' values, ascending.

    Returns:
      True where all are positive and their logarithms are spaced more evenly than they are
      themselves; with fewer than three values, where they span a decade.
    """
    if values[0] <= 0:
        return False
    if len(values) < 3:
        return bool(values[-1] >= 10 * values[0])
    plain, logarithmic = np.diff(values.astype(float)), np.diff(np.log(values.astype(float)))
    return bool(logarithmic.std() / logarithmic.mean() < plain.std() / plain.mean() - 1e-6)


def is_log_valued(values: Float[np.ndarray, "..."], variable: str, decades: float = 1.0) -> bool:
    """Whether a variable is better drawn on a log scale.

    Args:
      values: everything that is drawn; NaNs count for nothing.
      variable: the variable's name; an accuracy, which is a share, stays linear.
      decades: the span from which on a log scale pays.

    Returns:
      True where all values are positive and span more than `decades`.
    """
    values = values[np.isfinite(values)]
    if "accuracy" in variable or not values.size or values.min() <= 0:
        return False
    return bool(math.log10(values.max()) - math.log10(values.min()) > decades)


def cell_edges(values: Num[np.ndarray, " axis"], log: bool) -> Float[np.ndarray, " axis+1"]:
    """The edges of the cells around an axis' values: midpoints, geometric on a log scale.

    Args:
      values: the axis' values, ascending.
      log: whether the axis is on a log scale.

    Returns:
      One edge more than there are values; the outer cells are symmetric about their values.
    """
    centers = np.log(values.astype(float)) if log else values.astype(float)
    if len(centers) == 1:
        half = math.log(2.0) if log else abs(centers[0]) / 2 or 0.5
        edges = np.array([centers[0] - half, centers[0] + half])
    else:
        inner = (centers[1:] + centers[:-1]) / 2
        edges = np.concatenate([[2 * centers[0] - inner[0]], inner, [2 * centers[-1] - inner[-1]]])
    return np.exp(edges) if log else edges


def step_edges(steps: Num[np.ndarray, " step"]) -> Float[np.ndarray, " step+1"]:
    """The edges of the cells around records: midpoints, cut at the first and the last record.

    Args:
      steps: the recorded iterations, ascending.

    Returns:
      One edge more than there are records.
    """
    edges = cell_edges(steps, log=False) if len(steps) > 1 else steps[0] + np.array([-0.5, 0.5])
    return np.clip(edges, steps[0], steps[-1]) if len(steps) > 1 else edges


def normalization(values: Num[np.ndarray, "..."], log: bool) -> Normalize:
    """A colour scale's normalisation, also for a single value or none.

    Args:
      values: what is coloured; NaNs count for nothing.
      log: whether the scale is logarithmic.

    Returns:
      The normalisation over the values' range.
    """
    values = values[np.isfinite(values)].astype(float)
    low, high = (values.min(), values.max()) if values.size else (1.0, 1.0)
    if low == high:
        low, high = cell_edges(np.array([low]), log)
    return LogNorm(low, high) if log else Normalize(low, high)


def tick_values(axis: Axis, values: Num[np.ndarray, " axis"], log: bool) -> None:
    """Sets the ticks of a matplotlib axis: the values themselves where they are few.

    Args:
      axis: an x or y axis whose scale is set, or a colour bar's long axis.
      values: the sweep axis' values, ascending.
      log: whether the scale is logarithmic.
    """
    if len(values) <= _MAX_FIXED_TICKS:
        axis.set_major_locator(FixedLocator(values.astype(float).tolist()))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))
    elif not log and values.dtype.kind in "iu":
        axis.set_major_locator(MaxNLocator(integer=True))
    elif log:
        log_ticks(axis)


def log_ticks(axis: Axis) -> None:
    """Sets the labels of a matplotlib axis on a log scale.

    Args:
      axis: an x or y axis whose scale is set, or a colour bar's long axis.
    """
    axis.set_major_formatter(_LogFormatter())
    axis.set_minor_formatter(_LogFormatter())


def add_color_bar(
    figure: Figure,
    mappable: ScalarMappable,
    panels: list[Axes],
    label: str,
    values: np.ndarray | None = None,
    extend: str = "neither",
) -> Colorbar:
    """Adds one colour bar for all panels, at their right.

    Args:
      figure: the figure.
      mappable: what is coloured.
      panels: the panels it is for.
      label: its label.
      values: the values of a sweep axis, to put ticks at where they are few.
      extend: the ends beyond which there are values: "neither", "min", "max" or "both".

    Returns:
      The colour bar.
    """
    bar = figure.colorbar(mappable, ax=panels, label=label, aspect=30, pad=0.02, extend=extend)
    bar.outline.set_visible(False)
    log = isinstance(mappable.norm, LogNorm)
    if values is not None:
        tick_values(bar.ax.yaxis, values, log)
    elif log:
        log_ticks(bar.ax.yaxis)
    return bar


def panel_size(count: int) -> tuple[float, float]:
    """A figure's size for a number of panels.

    Args:
      count: how many panels.

    Returns:
      Width and height in inches, colour bar included.
    """
    columns = min(count, _MAX_COLUMNS)
    rows = -(-count // columns)
    each = (6.2, 4.4) if count == 1 else (3.7, 3.1)
    return columns * each[0] + 1.4, rows * each[1] + 0.5


def add_panels(figure: Figure, titles: list[str], x_label: str, y_label: str) -> list[Axes]:
    """Adds one panel a title, in at most three columns, with common axes.

    Args:
      figure: the figure.
      titles: a title a panel; "" for none.
      x_label: the label below each column.
      y_label: the label at the left of each row.

    Returns:
      The panels, row by row.
    """
    columns = min(len(titles), _MAX_COLUMNS)
    rows = -(-len(titles) // columns)
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.05, hspace=0.05)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.flat[len(titles) :]:
        unused.remove()
    panels = list(grid.flat[: len(titles)])
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        panel.set_title(title)
        if index + columns >= len(titles):
            panel.set_xlabel(x_label)
            panel.tick_params(labelbottom=True)
        if index % columns == 0:
            panel.set_ylabel(y_label)
    return panels


def note(panel: Axes, text: str) -> None:
    """Writes a remark in the middle of a panel that has nothing else to show.

    Args:
      panel: the panel.
      text: the remark.
    """
    panel.text(
        0.5,
        0.5,
        text,
        transform=panel.transAxes,
        ha="center",
        va="center",
        color="#444444",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 4},
    )
