"""Figures of a sweep's result: divergence is drawn as what it is, never as a gap.

Every function takes the `xarray.Dataset` of a sweep and returns a `matplotlib.figure.Figure`
that no global state knows of: nothing to close, safe in threads.
"""

from driftlab.plot.files import save
from driftlab.plot.style import style
from driftlab.plot.sweep_curves import curves
from driftlab.plot.sweep_final import final_value
from driftlab.plot.sweep_heat_map import heat_map
from driftlab.plot.threshold_panels import Comparison, threshold_panels

__all__ = [
    "Comparison",
    "curves",
    "final_value",
    "heat_map",
    "save",
    "style",
    "threshold_panels",
]
