"""The first fluctuation-dissipation relation of SGD: what balances once training is stationary.

`track_fluctuation_dissipation` accumulates it at every step, inside the optimiser's state; the
measures read what it has accumulated.
Source: Yaida (2019), "Fluctuation-dissipation relations for stochastic gradient descent".
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.dynamics import Snapshot
from driftlab.measures.blocking import Window, last_half, standard_error, trend
from driftlab.measures.fluctuation_tracking import (
    LEFT,
    RIGHT,
    SQUARED_NORM,
    check_minimum,
    relation_terms,
    tracked_state,
)
from driftlab.measures.recording import Measure


def first_relation(minimum_steps: int | None = None) -> Measure:
    """A measure of the first relation over the last half of the window so far.

    `<theta.g> = (1 + mu) eta <|v|^2> / (2 (1 - nu))` at stationarity, with the averages that
    `track_fluctuation_dissipation` (or a schedule of `driftlab.transforms` built on it) keeps. The
    difference of the sides is a difference of weight norms at the ends of the window and nothing
    else, so a ratio of 1 says that `|theta|^2` has become stationary: necessary, not sufficient.

    Args:
      minimum_steps: a window of fewer steps gives NaN; by default two for each block that is kept,
        128 steps.

    Returns:
      A measure of, all scalars,
      - `first_relation_left`, `first_relation_right` (loss), and `..._error` of each: standard
        errors by blocking;
      - `first_relation_ratio`, left over right, and `first_relation_ratio_error`. Left - right
        telescopes, so that the ends of the blocks, which cancel in the window, stay in the error
        bars: those of the ratio, and of the left side, are upper bounds;
      - `weight_norm`, the window's mean of `|theta|^2`, and `weight_norm_trend`: the change of its
        trend line over the window in units of that change's standard error, a t statistic;
      - `first_relation_steps`, the steps averaged over (0 at the start);
      - `learning_rate_in_force` (NaN if unknown) and `learning_rate_drops`.
      It raises a ValueError on a dynamics whose state has no such window.

    Raises:
      ValueError: if minimum_steps is not a whole number, 2 or more.

    Source: Yaida (2019), the first relation with momentum. Cost: none worth naming.
    """
    check_minimum("minimum_steps", minimum_steps, 2)

    def first_relation(snapshot: Snapshot) -> dict[str, Array]:
        state = tracked_state(snapshot.state.inner, "first_relation")
        window = last_half(state.window)
        needed = 2 * len(window.complete) if minimum_steps is None else minimum_steps
        rate = jnp.nan if state.learning_rate is None else state.learning_rate
        found = _values(window)
        ready = window.total >= needed
        return {name: jnp.where(ready, value, jnp.nan) for name, value in found.items()} | {
            "first_relation_steps": window.count,
            "learning_rate_in_force": jnp.asarray(rate),
            "learning_rate_drops": state.drops,
        }

    return first_relation


def _values(window: Window) -> dict[str, Float[Array, ""]]:
    """What a window of `relation_terms` says about the first relation.

    Args:
      window: from `last_half`.

    Returns:
      The values of `first_relation`, by name, without the state's.
    """
    ratio = window.mean[LEFT] / window.mean[RIGHT]
    residual = window.block_means[:, LEFT] - ratio * window.block_means[:, RIGHT]
    ratio_error = standard_error(residual[:, None], window.complete)[0] / window.mean[RIGHT]
    change, error = trend(window, SQUARED_NORM)
    return {
        "first_relation_left": window.mean[LEFT],
        "first_relation_left_error": window.error[LEFT],
        "first_relation_right": window.mean[RIGHT],
        "first_relation_right_error": window.error[RIGHT],
        "first_relation_ratio": ratio,
        "first_relation_ratio_error": ratio_error,
        "weight_norm": window.mean[SQUARED_NORM],
        "weight_norm_trend": change / error,
    }


def weight_norm_balance(snapshot: Snapshot) -> dict[str, Float[Array, ""]]:
    """The two parts of one step's change of `|theta|^2`, for any dynamics.

    `|theta + u|^2 - |theta|^2 = |u|^2 - (-2 theta.u)`, exactly: the push outwards by the length of
    the step, and the pull inwards. Their averages over a window differ by a difference of norms at
    its ends; they agree where training is stationary. Cost: two passes over the parameters.

    Args:
      snapshot: what the step saw.

    Returns:
      `weight_norm_pull = -2 theta.u` and `weight_norm_push = |u|^2`, in parameter^2.
    """
    left, right, _ = relation_terms(snapshot.params, snapshot.gradient, snapshot.updates)
    return {"weight_norm_pull": 2 * left, "weight_norm_push": 2 * right}
