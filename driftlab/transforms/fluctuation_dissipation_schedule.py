"""Learning rates that fall by themselves, once training is stationary at the one in force.

Source: Yaida (2019), "Fluctuation-dissipation relations for stochastic gradient descent".
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from driftlab.hyperparameters import check_range
from driftlab.measures.blocking import BLOCKS, add_to_blocks, empty_blocks, last_half
from driftlab.measures.fluctuation_tracking import (
    FluctuationDissipationState,
    check_minimum,
    initial_state,
    relation_terms,
)
from driftlab.measures.stationarity import IsStationary, norm_trend_test, ratio_test, residual_test
from driftlab.objective import Params

TESTS = ("ratio", "residual", "norm_trend")


def lower_at_stationarity(
    direction: optax.GradientTransformation,
    learning_rate: ArrayLike,
    is_stationary: IsStationary,
    *,
    momentum: ArrayLike | None = None,
    dampening: ArrayLike = 0.0,
    interval: ArrayLike = 1000,
    factor: ArrayLike = 0.9,
    minimum_steps: int | None = None,
    min_learning_rate: ArrayLike = 0.0,
    restart_direction: bool = False,
    blocks: int = BLOCKS,
) -> optax.GradientTransformationExtraArgs:
    """Moves by `-eta_k` times a direction, and lowers eta_k where a test finds stationarity.

    Every `interval` steps, if the window since the last change is long enough and
    `is_stationary(last half of the window)`: `eta <- max(factor eta, min_learning_rate)`, and the
    window restarts. Everything is arrays in the state, so that lanes of a sweep each follow their
    own schedule.

    Args:
      direction: what makes the direction of the gradient: `optax.identity()` for SGD,
        `optax.trace(0.9)` for momentum, `optax.scale_by_adam()`, ...; without a learning rate.
      learning_rate: the first eta, positive.
      is_stationary: `window -> bool`, such as `ratio_test()`; see
        `driftlab.measures.stationarity`.
      momentum: mu of the direction, for Yaida's form of the relation; None for the general form,
        which holds for every direction. See `relation_terms`.
      dampening: nu of the direction.
      interval: steps from one test to the next: an epoch as published.
      factor: what eta is multiplied by, in (0, 1).
      minimum_steps: no test in a window of fewer; by default two for each block that is kept, 128.
      min_learning_rate: where eta stops.
      restart_direction: whether the direction's own state starts anew with a lower eta.
      blocks: how many block sums are kept, see `empty_blocks`.

    Returns:
      The optimiser. Its state is a `FluctuationDissipationState`, whose `learning_rate` is that of
      the next step; `driftlab.measures.first_relation()` records it.

    Raises:
      ValueError: for an argument out of range; from update, without params.

    Cost: three passes over the parameters and `O(blocks)` numbers a step; no gradient.
    """
    check_range("learning_rate", learning_rate, "positive", lambda value: value > 0)
    check_range("factor", factor, "above 0 and below 1", lambda value: 0 < value < 1)
    check_range("min_learning_rate", min_learning_rate, "0 or more", lambda value: value >= 0)
    if momentum is not None:
        check_range("momentum", momentum, "at least 0 and below 1", lambda value: 0 <= value < 1)
    check_range("dampening", dampening, "at least 0 and below 1", lambda value: 0 <= value < 1)
    _check_interval(interval)
    check_minimum("minimum_steps", minimum_steps, 2)
    fresh = empty_blocks(3, blocks)
    needed = 2 * blocks if minimum_steps is None else minimum_steps
    direction = optax.with_extra_args_support(direction)

    def init(params: Params) -> FluctuationDissipationState:
        return initial_state(
            direction.init(params), params, learning_rate, momentum, dampening, blocks
        )

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, FluctuationDissipationState]:
        if params is None:
            raise ValueError(
                "lower_at_stationarity needs params: call update(grads, state, params)."
            )
        rate = state.learning_rate
        gradient = updates
        updates, inner = direction.update(gradient, state.inner, params, **extra)
        # A traced momentum of more precision than the parameters would raise that of both.
        inner = jax.tree.map(_in_type_of, inner, state.inner)
        updates = jax.tree.map(_in_type_of, updates, gradient)
        updates = jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, updates)
        terms = relation_terms(params, gradient, updates, rate, state.momentum, state.dampening)
        window, count = add_to_blocks(state.window, terms), state.count + 1
        lowered = jnp.maximum(rate * jnp.asarray(factor, rate.dtype), min_learning_rate)
        due = (count % interval == 0) & (window.count >= needed) & (lowered < rate)
        lower = due & is_stationary(last_half(window))

        def chosen(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(lower, _in_type_of(a, b), b), new, old)

        if restart_direction:
            inner = chosen(direction.init(params), inner)
        following = FluctuationDissipationState(
            inner=inner,
            window=chosen(fresh, window),
            count=count,
            drops=state.drops + lower,
            learning_rate=chosen(lowered, rate),
            momentum=state.momentum,
            dampening=state.dampening,
        )
        return updates, following

    return optax.GradientTransformationExtraArgs(init, update)


def fluctuation_dissipation_sgd(
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
    dampening: ArrayLike = 0.0,
    *,
    interval: ArrayLike = 1000,
    test: str | IsStationary = "ratio",
    tolerance: ArrayLike = 0.01,
    decrease: ArrayLike = 0.1,
    minimum_steps: int | None = None,
    min_learning_rate: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD with Yaida's adaptive schedule of the learning rate.

    Every `interval` steps, if `|<left> / <right> - 1| < tolerance` over the last half of the window
    since the last change: `eta <- (1 - decrease) eta`. The velocity is kept, and is not scaled by
    eta: `v' = momentum v - (1 - dampening) g`, `theta' = theta + eta v'`.

    Args:
      learning_rate: the first eta; a number or a traced array.
      momentum: mu.
      dampening: nu.
      interval: steps from one test to the next: an epoch as published, 1000 in the released code.
      test: "ratio", as published; "residual", a t-test on left - right (SASA's statistic);
        "norm_trend", a t-test on the trend of `|theta|^2`; or a function of the window.
      tolerance: X of the ratio test; 0.01 as published. The other named tests don't use it.
      decrease: Y; 0.1 as published (the released code has 0.9).
      minimum_steps: as in `lower_at_stationarity`.
      min_learning_rate: likewise.

    Returns:
      The optimiser; see `lower_at_stationarity`. Weight decay belongs into the objective. Without
      it, cross-entropy never becomes stationary and eta never falls.

    Raises:
      ValueError: for an argument out of range, or a test that does not exist.
    """
    check_range("decrease", decrease, "above 0 and below 1", lambda value: 0 < value < 1)
    if callable(test):
        is_stationary = test
    elif test not in TESTS:
        raise ValueError(f"test={test!r} must be one of {TESTS}, or a function of the window.")
    else:
        tests = {"residual": residual_test, "norm_trend": norm_trend_test}
        is_stationary = ratio_test(tolerance) if test == "ratio" else tests[test]()
    return lower_at_stationarity(
        damped_momentum(momentum, dampening),
        learning_rate,
        is_stationary,
        momentum=momentum,
        dampening=dampening,
        interval=interval,
        factor=1 - jnp.asarray(decrease),
        minimum_steps=minimum_steps,
        min_learning_rate=min_learning_rate,
    )


def damped_momentum(momentum: ArrayLike, dampening: ArrayLike) -> optax.GradientTransformation:
    """The direction `d' = momentum d + (1 - dampening) g`, from 0.

    Args:
      momentum: mu; may be traced.
      dampening: nu; may be traced. Equal to mu it is normalised momentum.

    Returns:
      The transformation.
    """
    if isinstance(momentum, int | float) and momentum == 0:  # else it keeps a velocity of its own
        return optax.scale(1 - dampening)  # type: ignore[arg-type]
    return optax.chain(optax.scale(1 - dampening), optax.trace(momentum))  # type: ignore[arg-type]


def _in_type_of(new: Array, old: Array) -> Array:
    return new if new.dtype == old.dtype else new.astype(old.dtype)


def _check_interval(interval: Any) -> None:
    check_range("interval", interval, "a whole number of steps, 1 or more", lambda n: n >= 1)
    if not isinstance(interval, Tracer) and int(interval) != interval:
        raise ValueError(f"interval={interval!r} must be a whole number of steps, 1 or more.")
