"""What the fluctuation-dissipation relations need of every step, kept in the optimiser's state.

f is what is minimised, so that weight decay belongs into the objective (`driftlab.regularized`),
not into the chain.
Source: Yaida (2019), "Fluctuation-dissipation relations for stochastic gradient descent".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from driftlab.hyperparameters import check_range
from driftlab.measures.blocking import BLOCKS, Blocks, add_to_blocks, empty_blocks
from driftlab.measures.hessian import vector_dtype
from driftlab.objective import Params

LEFT, RIGHT, SQUARED_NORM = range(3)


class FluctuationDissipationState(NamedTuple):
    """An optimiser's state, with what the relations need.

    Attributes:
      inner: the wrapped optimiser's state.
      window: the stream of `relation_terms` since the learning rate last changed.
      count: iterations done, over all windows.
      drops: how often the learning rate was lowered by the transformation itself.
      learning_rate: that of the next iteration; None if it was not told.
      momentum: mu, or None for the general form.
      dampening: nu.
    """

    inner: PyTree
    window: Blocks
    count: Int[Array, ""]
    drops: Int[Array, ""]
    learning_rate: PyTree[Array]
    momentum: PyTree[Array]
    dampening: Float[Array, ""]


def relation_terms(
    params: Params,
    gradient: Params,
    updates: Params,
    learning_rate: Array | None = None,
    momentum: Array | None = None,
    dampening: Array | float = 0.0,
) -> Float[Array, "3"]:
    """Both sides of the first relation at one step, and the squared norm of the weights.

    With momentum mu and dampening nu, for `v' = mu v - (1 - nu) g`, `u = eta v'`:
    left `theta.g`, right `(1 + mu) eta |v'|^2 / (2 (1 - nu))`. Without mu (None), for the update u
    of any optimiser: left `-theta.u / eta`, right `|u|^2 / (2 eta)`, for which
    `left - right = -(|theta + u|^2 - |theta|^2) / (2 eta)` exactly; plain SGD has both forms alike.

    Args:
      params: theta.
      gradient: g, of what is minimised, on the step's batch.
      updates: u.
      learning_rate: eta; None for 1.
      momentum: mu, or None.
      dampening: nu.

    Returns:
      `(left, right, |theta|^2)`: loss, loss and parameter^2 (without eta: loss * learning rate).

    Cost: three passes over the parameters.
    """
    dtype = vector_dtype(params)
    params, gradient, updates = (optax.tree.cast(t, dtype) for t in (params, gradient, updates))
    rate = jnp.asarray(1.0 if learning_rate is None else learning_rate, dtype)
    squared = optax.tree.norm(updates, squared=True)
    if momentum is None:
        left = -jnp.asarray(optax.tree.vdot(params, updates)) / rate
        right = squared / (2 * rate)
    else:
        factor = (1 + jnp.asarray(momentum, dtype)) / (1 - jnp.asarray(dampening, dtype))
        left = jnp.asarray(optax.tree.vdot(params, gradient))
        right = factor * squared / (2 * rate)
    return jnp.stack([left, right, optax.tree.norm(params, squared=True)])


def track_fluctuation_dissipation(
    tx: optax.GradientTransformation,
    learning_rate: ArrayLike | optax.Schedule | None = None,
    momentum: ArrayLike | None = None,
    dampening: ArrayLike = 0.0,
    *,
    every: int = 1,
    blocks: int = BLOCKS,
) -> optax.GradientTransformationExtraArgs:
    """The optimiser, which accumulates both sides of the first relation as it goes.

    Its trajectory is that of tx. The relation is Yaida's where momentum is given, and else the
    general one, which holds for every optimiser; see `relation_terms`. Read it with
    `first_relation()`.

    Args:
      tx: any optax chain.
      learning_rate: eta of tx, or its schedule, or None. A relation is about a window in which it
        is constant.
      momentum: mu of tx, the decay of `optax.trace`; 0 for plain SGD; None for the general form
        (Nesterov, Adam, decoupled weight decay).
      dampening: nu: tx multiplies gradients by 1 - nu before they are accumulated. `optax.sgd` has
        0, `optax.ema` (normalised momentum) has nu = mu.
      every: steps from one that is accumulated to the next. The means are those of fewer steps, and
        no longer telescope exactly; the cost falls with them where lanes advance one at a time
        (under vmap a condition computes both of its sides).
      blocks: how many block sums are kept, see `empty_blocks`.

    Returns:
      The transformation; its update needs params. What tx takes beyond them it is given.

    Raises:
      ValueError: for an argument out of range, or momentum without a learning rate.

    Cost: three passes over the parameters and `3 blocks` numbers; no gradient.
    """
    check_minimum("every", every, 1)
    if not callable(learning_rate) and learning_rate is not None:
        check_range("learning_rate", learning_rate, "positive", lambda value: value > 0)
    if momentum is not None:
        if learning_rate is None:
            raise ValueError(
                "track_fluctuation_dissipation: momentum is given but learning_rate is not; the "
                "relation with momentum needs both. Without momentum it takes the general form."
            )
        check_range("momentum", momentum, "at least 0 and below 1", lambda value: 0 <= value < 1)
    check_range("dampening", dampening, "at least 0 and below 1", lambda value: 0 <= value < 1)
    empty_blocks(3, blocks)
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> FluctuationDissipationState:
        rate = learning_rate(jnp.zeros((), jnp.int32)) if callable(learning_rate) else learning_rate
        return initial_state(tx.init(params), params, rate, momentum, dampening, blocks)

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, FluctuationDissipationState]:
        if params is None:
            raise ValueError(
                "track_fluctuation_dissipation needs params: call update(grads, state, params)."
            )
        moves, inner = tx.update(updates, state.inner, params, **extra)

        def added(window: Blocks) -> Blocks:
            eta, mu, nu = state.learning_rate, state.momentum, state.dampening
            return add_to_blocks(window, relation_terms(params, updates, moves, eta, mu, nu))

        if every == 1:
            window = added(state.window)
        else:
            due = state.count % every == 0
            window = jax.lax.cond(due, added, lambda window: window, state.window)
        state = state._replace(inner=inner, window=window, count=state.count + 1)
        if callable(learning_rate):
            rate = jnp.asarray(learning_rate(state.count), state.learning_rate.dtype)
            state = state._replace(learning_rate=rate)
        return moves, state

    return optax.GradientTransformationExtraArgs(init, update)


def tracked_state(inner: PyTree, name: str) -> FluctuationDissipationState:
    """The one state in an optimiser's that has a window of the relations.

    Args:
      inner: an optax state, however deeply chained.
      name: who asks, for the error.

    Returns:
      The state.

    Raises:
      ValueError: if there is none, or more than one.
    """

    def is_tracked(node: Any) -> bool:
        return isinstance(node, FluctuationDissipationState)

    found = [node for node in jax.tree.leaves(inner, is_leaf=is_tracked) if is_tracked(node)]
    if len(found) != 1:
        raise ValueError(
            f"{name} needs an optimiser that keeps one window of the relations, this one keeps "
            f"{len(found)}: wrap the whole chain once, track_fluctuation_dissipation(tx, "
            "learning_rate, momentum)."
        )
    return found[0]


def initial_state(
    inner: PyTree,
    params: Params,
    learning_rate: ArrayLike | None,
    momentum: ArrayLike | None,
    dampening: ArrayLike,
    blocks: int,
) -> FluctuationDissipationState:
    """The state before the first step, with numbers in the parameters' precision.

    Args:
      inner: the wrapped optimiser's state.
      params: theta_0.
      learning_rate: eta, or None.
      momentum: mu, or None.
      dampening: nu.
      blocks: how many block sums are kept.

    Returns:
      The state.
    """
    dtype = vector_dtype(params)
    zero = jnp.zeros((), jnp.int32)
    return FluctuationDissipationState(
        inner=inner,
        window=empty_blocks(3, blocks, dtype),
        count=zero,
        drops=zero,
        learning_rate=None if learning_rate is None else jnp.asarray(learning_rate, dtype),
        momentum=None if momentum is None else jnp.asarray(momentum, dtype),
        dampening=jnp.asarray(dampening, dtype),
    )


def check_minimum(name: str, value: int | None, least: int) -> None:
    """Refuses what is neither None nor a whole number of some size.

    Args:
      name: the argument.
      value: what was given.
      least: the smallest value that is accepted.

    Raises:
      ValueError: naming them.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):
        raise ValueError(f"{name} must be a whole number, {least} or more; got {value!r}.")
