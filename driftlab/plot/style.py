"""The look of every figure: colours that the colour-blind tell apart, and an empty figure."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

# Okabe & Ito (2008), without yellow (faint on white) and vermilion (near the red of divergence).
LINE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
MISSING_COLOR = "#A6A6A6"

_PARAMETERS: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "font.size": 10,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.title_fontsize": 9.5,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "auto",
    "text.usetex": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
_LOCK = threading.RLock()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sets driftlab's matplotlib settings for a `with` block or a decorated function.

    matplotlib's settings are global, so only one thread at a time is inside; afterwards they are
    what they were before.

    Yields:
      Nothing.
    """
    with _LOCK, matplotlib.rc_context(_PARAMETERS):
        yield


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """An empty figure that pyplot does not know of.

    Args:
      width: in inches.
      height: in inches.
      title: drawn above everything, where given.

    Returns:
      The figure, with a layout that makes room for labels, legends and colour bars.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    return figure


def sequential() -> Colormap:
    """The colour scale of an axis or of values: viridis without its palest end.

    Returns:
      A colour map that is legible as lines on white.
    """
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.94, 256)))
