"""Descent on a table of which each batch touches a few rows: embeddings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from driftlab.checks import check_params
from driftlab.dynamics import Dynamics, Snapshot, State
from driftlab.objective import Params
from driftlab.transforms.rows import by_row

Draw = Callable[[PRNGKeyArray, Int[Array, ""]], tuple[Int[Array, "..."], Any]]


def row_descent(
    tx: optax.GradientTransformation,
    loss: Callable[[Params, Any], Float[Array, ""]],
    draw: Draw,
) -> Dynamics:
    """The dynamics of an optimiser on a table, at the cost of the rows that its batches name.

    `(i, batch) = draw(key, k)`, `g = grad loss(table[i], batch)`, and the rows `i` of the table
    and of the optimiser's state are updated (see `driftlab.transforms.by_row`).

    Args:
      tx: an optimiser that updates each row by itself; its hyper-parameters may be traced.
      loss: `loss(rows, batch) -> scalar` of `rows = table[i]`, `(*i.shape, *row)`.
      draw: `draw(key, k) -> (i, batch)`, pure: which rows step k touches, and what else the loss
        needs, such as a mask.

    Returns:
      The dynamics. Its snapshots have no objective; their `gradient` is that of the whole table,
      and costs its size only if a measure reads it.

    Raises:
      TypeError: from `init`, if the table is not of floating-point numbers.
    """
    optimizer = by_row(tx)

    def init(params: Params, key: PRNGKeyArray) -> State:
        check_params(params)
        params = jax.tree.map(jnp.asarray, params)
        return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)

    def observe(state: State) -> Snapshot:
        indices, batch = draw(state.key, state.step)
        rows = jax.tree.map(lambda table: table[indices], state.params)
        value, gradients = jax.value_and_grad(loss)(rows, batch)
        params, inner = optimizer.update(gradients, state.inner, state.params, indices)
        return Snapshot(
            state=state,
            next_state=State(params, inner, state.step + 1, state.key),
            objective=None,
            batch=(indices, batch),
            value=value,
            loss=value,
            gradient=jax.tree.map(
                lambda table, g: jnp.zeros_like(table).at[indices].add(g), state.params, gradients
            ),
            eval_params=state.params,
            dynamics=dynamics,
        )

    dynamics = Dynamics(init, lambda state: observe(state).next_state, observe)
    return dynamics
