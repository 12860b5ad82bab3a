"""Text: a variable's label with its unit, an axis' values, a point's name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

_DIMENSIONLESS = ("", "1", "dimensionless")


def variable_label(variable: "xarray.DataArray") -> str:
    """A variable's or a coordinate's label.

    Args:
      variable: what to name.

    Returns:
      Its `long_name`, or else its name in words; then its unit in brackets, where it has one.
    """
    name = variable.attrs.get("long_name") or str(variable.name).replace("_", " ")
    units = str(variable.attrs.get("units", ""))
    return name if units in _DIMENSIONLESS else f"{name} ({units})"


def step_label(step: "xarray.DataArray") -> str:
    """The label of the steps.

    Args:
      step: the coordinate.

    Returns:
      "iteration k", or the coordinate's label where its unit is not iterations.
    """
    counts_iterations = step.attrs.get("units", "iterations") == "iterations"
    return "iteration k" if counts_iterations else variable_label(step)


def name_list(coordinates: Mapping[str, Any], with_axes: bool = True) -> str:
    """A point's coordinates as text.

    Args:
      coordinates: axis name -> value.
      with_axes: whether to name the axes too.

    Returns:
      "optimizer sgd, batch size 32", or "sgd, 32".
    """
    return ", ".join(
        f"{axis.replace('_', ' ')} {number(value)}" if with_axes else number(value)
        for axis, value in coordinates.items()
    )


def number(value: Any) -> str:
    """A coordinate or a value as short text.

    Args:
      value: a number or a string.

    Returns:
      Four significant digits of a float; everything else as it is.
    """
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
