"""How divergence is drawn, in every figure alike: red and hatched."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.patches import Patch

from driftlab.plot.style import MISSING_COLOR

DIVERGED_COLOR = "#B2182B"
HATCHED = {"facecolor": "#E6E6E6", "edgecolor": DIVERGED_COLOR, "hatch": "////", "linewidth": 0}


def diverged_shares() -> Colormap:
    """The colour scale of the share of seeds that diverged.

    Returns:
      White at 0, red at 1, and at every share between plainly neither white nor full red.
    """
    return LinearSegmentedColormap.from_list(
        "diverged", [(0, "white"), (1e-3, "#FBD9CC"), (0.999, "#E88A74"), (1, DIVERGED_COLOR)], 1001
    )


def diverged_patch(label: str) -> Patch:
    """A legend's entry for a region that stands for divergence.

    Args:
      label: the entry's text.

    Returns:
      The patch, which looks as the region does.
    """
    return Patch(**HATCHED, label=label)


def shade(
    panel: Axes, edges: Float[np.ndarray, " axis+1"], diverged: Bool[np.ndarray, " axis"]
) -> None:
    """Hatches the parts of an x axis where every lane diverged.

    Args:
      panel: the panel.
      edges: the edges of the cells around the axis' values.
      diverged: the cells to hatch.
    """
    changes = np.flatnonzero(np.diff(np.concatenate([[False], diverged, [False]])))
    for first, last in changes.reshape(-1, 2):
        panel.axvspan(float(edges[first]), float(edges[last]), **HATCHED, zorder=0.6)


def draw_strip(
    strip: Axes,
    edges: Float[np.ndarray, " axis+1"],
    shares: Float[np.ndarray, "line axis"],
    names: Sequence[str],
) -> None:
    """Draws the shares of seeds that diverged as rows of cells.

    Args:
      strip: a flat panel.
      edges: the edges of the cells around the axis' values.
      shares: the shares, NaN where no seed has run.
      names: the rows' names.
    """
    rows = np.arange(len(names) + 1)
    strip.grid(False)
    strip.set_facecolor(MISSING_COLOR)
    strip.pcolormesh(
        edges, rows, np.ma.masked_invalid(shares), cmap=diverged_shares(), vmin=0, vmax=1
    )
    strip.hlines(rows[1:-1], edges[0], edges[-1], color="white", linewidth=2)
    strip.set_ylim(len(names), 0)
    strip.set_yticks(rows[:-1] + 0.5, names)
    strip.tick_params(axis="y", length=0)
    if len(names) > 1:
        strip.set_title("share of lanes that diverged", loc="left", fontsize=10)
    for spine in strip.spines.values():
        spine.set_visible(True)
