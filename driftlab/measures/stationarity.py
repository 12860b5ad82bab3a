"""Tests of stationarity on a window of the first fluctuation-dissipation relation.

Each makes `is_stationary(window) -> bool`, a pure function that a schedule calls inside the
compiled step. What they can and cannot see: the two sides differ by
`-(|theta_end|^2 - |theta_start|^2) / (2 eta steps)` (with momentum, up to the window's ends,
`(1 - mu) / (1 - nu)` times that), so all of them are about the weight norm.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from driftlab.hyperparameters import check_range
from driftlab.measures.blocking import BLOCKS, Window, standard_error, trend
from driftlab.measures.fluctuation_tracking import LEFT, RIGHT, SQUARED_NORM

IsStationary = Callable[[Window], Bool[Array, ""]]


def ratio_test(tolerance: ArrayLike = 0.01) -> IsStationary:
    """Stationary once `|left / right - 1| < tolerance`.

    A comparison without statistics: the change of `|theta|^2` over the window is below that share
    of the squared length of all its steps.

    Args:
      tolerance: X, positive; 0.01 as published. May be traced.

    Returns:
      The test.

    Raises:
      ValueError: if a known tolerance is not positive.

    Source: Yaida (2019).
    """
    check_range("tolerance", tolerance, "positive", lambda value: value > 0)

    def is_stationary(window: Window) -> Bool[Array, ""]:
        return jnp.abs(window.mean[LEFT] / window.mean[RIGHT] - 1) < tolerance

    return is_stationary


def residual_test(significance: float = 0.05, margin: ArrayLike | None = None) -> IsStationary:
    """Stationary once a t-test on the mean of left - right says so.

    Without a margin: once it cannot tell the mean from 0. With one: once the whole confidence
    interval lies within `margin |right|`, a test of equivalence, which little data does not pass.
    The variance is that of the means of blocks. The residual telescopes to a difference of weight
    norms, so its long-run variance is 0 and the estimate vanishes as blocks lengthen: without a
    margin the test leans on that.

    Args:
      significance: the two-sided level, in (0, 1); a number, not traced.
      margin: positive, or None. May be traced.

    Returns:
      The test.

    Raises:
      ValueError: if significance is traced or out of range, or a known margin is not positive.

    Source: Lang, Zhang & Xiao (2019).
    """
    quantile = t_quantile(significance)
    if margin is not None:
        check_range("margin", margin, "positive", lambda value: value > 0)

    def is_stationary(window: Window) -> Bool[Array, ""]:
        residual = window.block_means[:, LEFT] - window.block_means[:, RIGHT]
        number = window.complete.sum()
        mean = jnp.where(window.complete, residual, 0).sum() / number.astype(residual.dtype)
        width = quantile(number - 1) * standard_error(residual[:, None], window.complete)[0]
        if margin is None:
            return jnp.abs(mean) < width
        return jnp.abs(mean) + width < margin * jnp.abs(window.mean[RIGHT])

    return is_stationary


def norm_trend_test(significance: float = 0.05, tolerance: ArrayLike = 1.0) -> IsStationary:
    """Stationary once the squared weight norm has no trend over the window.

    The slope of a least-squares line through the block means of `|theta|^2`, against its standard
    error: the fluctuations of the norm set the scale, and their variance does not vanish. Memory
    longer than a block (about 1/48 of the steps so far) makes the error too small, and the
    test late, not early.

    Args:
      significance: the two-sided level, in (0, 1); a number, not traced.
      tolerance: the largest `|left / right - 1|` at which the test is asked at all; 1 so that no
        drop falls into the first rise of the norm, where a bend can have no slope. May be traced.

    Returns:
      The test.

    Raises:
      ValueError: if significance is traced or out of range, or a known tolerance not positive.
    """
    quantile = t_quantile(significance)
    near = ratio_test(tolerance)

    def is_stationary(window: Window) -> Bool[Array, ""]:
        change, error = trend(window, SQUARED_NORM)
        return near(window) & (jnp.abs(change) < quantile(window.complete.sum() - 2) * error)

    return is_stationary


def t_quantile(significance: float) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """The two-sided quantile of Student's t as a function of traced degrees of freedom.

    Args:
      significance: the two-sided level.

    Returns:
      `quantile(degrees)`; NaN, of which nothing is smaller, below one degree of freedom.

    Raises:
      ValueError: if significance is traced or not in (0, 1).
    """
    from scipy.special import stdtrit

    if isinstance(significance, Tracer):
        raise ValueError(
            "significance must be a number: the quantiles are tabulated before compiling. Several "
            "make a static axis of a sweep."
        )
    check_range("significance", significance, "above 0 and below 1", lambda value: 0 < value < 1)
    degrees: Any = range(1, 16 * BLOCKS)
    table = [float("nan"), *stdtrit(list(degrees), 1 - float(significance) / 2)]

    def quantile(degrees: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(table, float)[jnp.clip(degrees, 0, len(table) - 1)]

    return quantile
