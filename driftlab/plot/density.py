"""The Hessian's spectral density along training, as a grid of panels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from driftlab import curvature
from driftlab.plot.labels import name_list
from driftlab.plot.style import LINE_COLORS, new_figure, style

if TYPE_CHECKING:
    import xarray

_BULK, _OUTLIER = LINE_COLORS[0], LINE_COLORS[1]
_WIDTH = 1 / 150  # of the smoothing, of a row's range


@style()
def spectra(
    dataset: "xarray.Dataset",
    dimensions: Sequence[int],
    rows: str,
    outliers: "xarray.DataArray | None" = None,
    *,
    steps: Sequence[int] | None = None,
    title: str | None = None,
) -> Figure:
    """Eigenvalues per unit of eigenvalue, `n rho(lambda)`, on a log axis; a column a record.

    Below the density, a tick for each of the top eigenvalues; those counted as outliers are longer
    and of another colour. A row shares its axes and its smoothing, a Gaussian of 1/150 of the
    row's range: an eigenvalue alone shows as a bell of area 1.

    Args:
      dataset: with `density_nodes` and `density_weights` (see `measures.spectral_density`) and
        `hessian_eigenvalues`, over `rows` and `step`; NaN where a record has none.
      dimensions: the number of parameters n, one a row.
      rows: the axis whose values are the rows.
      outliers: how many of the top eigenvalues are outliers, over `rows` and `step`.
      steps: the recorded iterations to show; None for all that have a spectrum.
      title: the figure's title.

    Returns:
      The figure.

    Raises:
      ValueError: if no record has a spectrum, or `dimensions` is not one a row.
    """
    if len(dimensions) != dataset.sizes[rows]:
        raise ValueError(
            f"dimensions has {len(dimensions)} entries, but there are {dataset.sizes[rows]} rows."
        )
    has = np.isfinite(dataset["density_nodes"].transpose("step", ...).values)
    recorded = dataset.step.values[has.reshape(len(has), -1).any(1)]
    shown = recorded if steps is None else np.intersect1d(recorded, steps)
    if not shown.size:
        raise ValueError(f"no spectrum at steps={steps}; there are some at {recorded.tolist()}.")
    count = dataset.sizes[rows]
    figure = new_figure(2.5 * len(shown) + 0.9, 1.75 * count + 1.1)
    figure.suptitle(title or "", x=0.01, ha="left")
    panels = figure.subplots(count, len(shown), sharex="row", sharey="row", squeeze=False)
    for i, (line, dimension) in enumerate(zip(panels, dimensions, strict=True)):
        row = dataset.isel({rows: i})
        chosen = row.sel(step=shown)
        low, high = _range(chosen)
        peak = 1.0
        for panel, step in zip(line, shown, strict=True):
            number = None if outliers is None else outliers.isel({rows: i}).sel(step=step)
            drawn = _draw(panel, row.sel(step=step), dimension, (low, high), number)
            peak = max(peak, drawn)
        line[0].set_ylabel(name_list({rows: dataset[rows].values[i]}))
        margin = 0.04 * (high - low)
        line[0].set_xlim(low - margin, high + margin)
        line[0].set_yscale("log")
        line[0].set_ylim(1e-2, 10 * peak)
    for panel, step in zip(panels[0], shown, strict=True):
        panel.set_title(f"k = {step}")
    for panel in panels[-1]:
        panel.set_xlabel("eigenvalue")
    figure.supylabel("eigenvalues of the Hessian per unit", fontsize=11)
    handles = [Line2D([], [], color=_BULK, label="density"), _tick("#777777", "top eigenvalues")]
    if outliers is not None:
        handles.append(_tick(_OUTLIER, "outliers, down to the largest gap"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _tick(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker="|", ms=9, mew=1.6, linestyle="none", label=label)


def _range(chosen: "xarray.Dataset") -> tuple[float, float]:
    nodes, weights = chosen["density_nodes"].values, chosen["density_weights"].values
    nodes = nodes[np.isfinite(nodes) & (weights > 0)]
    return float(nodes.min()), float(nodes.max())


def _draw(
    panel: Axes, record: Any, dimension: int, limits: tuple[float, float], outliers: Any
) -> float:
    """Draws one record; returns the density's maximum."""
    low, high = limits
    width = _WIDTH * (high - low)
    nodes, weights = record["density_nodes"].values, record["density_weights"].values
    if not np.isfinite(nodes).all():
        return 0.0
    grid = np.linspace(low - 4 * width, high + 4 * width, 1200, dtype=nodes.dtype)
    density = curvature.spectral_density(
        curvature.Quadrature(nodes, weights, dimension), grid=grid, width=width
    )
    curve = dimension * np.asarray(density.values)
    panel.fill_between(grid, curve, 1e-9, color=_BULK, alpha=0.25, linewidth=0)
    panel.plot(grid, curve, color=_BULK, linewidth=1)
    top = record["hessian_eigenvalues"].values
    number = 0 if outliers is None else int(outliers)
    across = panel.get_xaxis_transform()
    panel.vlines(top[number:], 0, 0.08, "#777777", linewidth=0.9, transform=across)
    panel.vlines(top[:number], 0, 0.2, _OUTLIER, linewidth=1.6, transform=across)
    if outliers is not None:
        plural = "outlier" if number == 1 else "outliers"
        panel.text(
            0.97, 0.93, f"{number} {plural}", transform=panel.transAxes, ha="right", va="top",
            fontsize=9,
        )  # fmt: skip
    return float(curve.max())
