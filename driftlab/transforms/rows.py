"""Updates of the touched rows of a table alone, for any optimiser that treats rows alike."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from driftlab.objective import Params

Indices = Int[Array, "..."]


class RowState(NamedTuple):
    """What a row optimiser remembers.

    Attributes:
      inner: the optimiser's state for the whole table.
      scratch: zeros in the shape of the table, where gradients of repeated rows are summed.
    """

    inner: PyTree
    scratch: Params


class RowOptimizer(NamedTuple):
    """An optimiser of tables that is told which rows it touches.

    Attributes:
      init: `init(table) -> RowState`.
      update: `update(gradients, state, table, indices) -> (table, RowState)`, the table after the
        step; `gradients` are those of the rows `table[indices]`, `(*indices.shape, *row)`, and a
        row that is named more than once gets their sum.
    """

    init: Callable[[Params], RowState]
    update: Callable[[Params, RowState, Params, Indices], tuple[Params, RowState]]


def by_row(tx: optax.GradientTransformation) -> RowOptimizer:
    """The optimiser, at a cost in proportion to the rows of a batch, not of the table.

    Rows and what the state holds of them are gathered, updated and scattered back. Rows that a
    batch does not name stay as they are, their moments too: "lazy" updates, which differ from the
    dense ones of an optimiser with momentum or decaying moments. The count of iterations, and with
    it schedules and bias corrections, is that of the table, as in geoopt and torch.

    Args:
      tx: an optimiser that updates each row by its own gradient and state alone, such as
        `riemannian_adam` or `optax.adam`; not one that clips by the whole tree's norm.

    Returns:
      The row optimiser, of an array or a tree of arrays with the same number of rows. Its init
      raises ValueError for others.
    """

    def init(table: Params) -> RowState:
        table = jax.tree.map(jnp.asarray, table)
        shapes = [leaf.shape for leaf in jax.tree.leaves(table)]
        if () in shapes or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(f"a table's arrays need the same number of rows; got shapes {shapes}.")
        return RowState(tx.init(table), jax.tree.map(jnp.zeros_like, table))

    def update(
        gradients: Params, state: RowState, table: Params, indices: Indices
    ) -> tuple[Params, RowState]:
        at = indices.reshape(-1)
        has_rows = _has_rows(tx, table)

        def gathered(leaf: Array) -> Array:
            return leaf[at]

        def flat(gradient: Array) -> Array:
            return gradient.reshape(at.shape + gradient.shape[indices.ndim :])

        gradients = jax.tree.map(flat, gradients)
        summed = jax.tree.map(lambda s, g: s.at[at].add(g), state.scratch, gradients)
        gradients = jax.tree.map(gathered, summed)
        scratch = jax.tree.map(lambda s: s.at[at].set(jnp.zeros((), s.dtype)), summed)

        rows = jax.tree.map(gathered, table)
        inner = jax.tree.map(lambda leaf, r: leaf[at] if r else leaf, state.inner, has_rows)
        updates, inner = tx.update(gradients, inner, rows)
        rows = optax.apply_updates(rows, updates)
        # A row that is named twice is computed twice, with the same result.
        table = jax.tree.map(lambda whole, new: whole.at[at].set(new), table, rows)
        inner = jax.tree.map(
            lambda whole, new, r: whole.at[at].set(new) if r else new, state.inner, inner, has_rows
        )
        return table, RowState(inner, scratch)

    return RowOptimizer(init, update)


def _has_rows(tx: optax.GradientTransformation, table: Params) -> PyTree[bool]:
    """Which leaves of the state grow with the table: those have a row for each of its rows."""

    def taller(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((leaf.shape[0] + 1, *leaf.shape[1:]), leaf.dtype)

    here = jax.eval_shape(tx.init, table)
    other = jax.eval_shape(tx.init, jax.tree.map(taller, table))
    return jax.tree.map(lambda a, b: a.shape != b.shape, here, other)
