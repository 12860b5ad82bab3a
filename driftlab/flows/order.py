"""Orders of convergence: how an error falls with the learning rate."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def observed_orders(
    learning_rates: ArrayLike, errors: ArrayLike
) -> Float[np.ndarray, " n_minus_1"]:
    """The order between neighbours, `log(e_i / e_{i+1}) / log(h_i / h_{i+1})`.

    An error `C h^p (1 + O(h))` gives p as h goes to 0. A model of a step with a local error
    `O(h^{P+1})` has a global one `O(h^P)` after a fixed time.

    Args:
      learning_rates: h, in any order without repetitions; positive.
      errors: one a learning rate; an error of 0 or one that is not finite gives NaN.

    Returns:
      One order less than learning rates, from the largest h to the smallest.

    Raises:
      ValueError: if the lengths differ, there are fewer than two, or a learning rate is not
        positive or given twice.
    """
    steps, errors = _sorted(learning_rates, errors)
    return np.diff(np.log(errors)) / np.diff(np.log(steps))


def fitted_order(learning_rates: ArrayLike, errors: ArrayLike) -> float:
    """The slope of the straight line through (log h, log error), by least squares.

    Args:
      learning_rates: as in `observed_orders`; over a decade or more.
      errors: one a learning rate, likewise.

    Returns:
      The slope; NaN if an error is 0 or not finite.

    Raises:
      ValueError: as `observed_orders`.
    """
    steps, errors = _sorted(learning_rates, errors)
    if not np.isfinite(np.log(errors)).all():
        return float("nan")
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def _sorted(learning_rates: ArrayLike, errors: ArrayLike) -> Sequence[np.ndarray]:
    steps, found = np.asarray(learning_rates, float), np.asarray(errors, float)
    if steps.ndim != 1 or steps.shape != found.shape or len(steps) < 2:
        raise ValueError(
            "learning_rates and errors must be two sequences of the same length, 2 or more; got "
            f"shapes {steps.shape} and {found.shape}."
        )
    if not (steps > 0).all() or len(set(steps.tolist())) < len(steps):
        raise ValueError(f"learning_rates must be positive and differ; got {steps.tolist()}.")
    order = np.argsort(-steps)
    found = np.where(np.isfinite(found) & (found > 0), found, np.nan)
    return steps[order], found[order]
