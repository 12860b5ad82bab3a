"""What a hyper-parameter may be, checked before anything is compiled: traced ones pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer


def check_range(
    name: str,
    value: Any,
    accepted: str,
    holds: Callable[[Any], bool],
    *,
    infinite: bool = False,
) -> None:
    """Raises where a hyper-parameter is no scalar, or known and out of range.

    Args:
      name: of the argument.
      value: what was given; of a traced one only the shape is checked.
      accepted: the range in words.
      holds: `float -> bool`, the range.
      infinite: whether it may be infinite.

    Raises:
      ValueError: naming the argument, its value and the range.
    """
    if not _is_known(name, value):
        return
    number = float(value)
    if not holds(number) or not (infinite or np.isfinite(number)):
        raise ValueError(f"{name}={value!r} must be {accepted}.")


def check_positive(name: str, value: Any) -> None:
    """Raises where a hyper-parameter is known and not one positive, finite number.

    Args:
      name: of the argument.
      value: a scalar; a traced one passes, if it has no axes.

    Raises:
      ValueError: naming it.
    """
    if _is_known(name, value) and not (np.isfinite(float(value)) and float(value) > 0):
        raise ValueError(f"{name}={float(value)} must be positive and finite.")


def check_decay(name: str, value: Any) -> None:
    """Raises where a decay is known and outside [0, 1).

    Args:
      name: of the argument.
      value: a scalar; a traced one passes, if it has no axes.

    Raises:
      ValueError: naming it.
    """
    if _is_known(name, value) and not 0 <= float(value) < 1:
        raise ValueError(
            f"{name}={float(value)} must be at least 0 and less than 1: from 1 on the memory of "
            "gradients does not fade, and no flow of the parameters alone describes it."
        )


def _is_known(name: str, value: Any) -> bool:
    if callable(value):
        raise ValueError(f"{name} must be a number, not a schedule; got {value!r}.")
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be a scalar; got shape {np.shape(value)}. Several make a lane axis: "
            "jax.vmap, or driftlab.sweep."
        )
    return not isinstance(value, Tracer)
