"""How well distances recover relations: mean rank and mean average precision.

Source: Nickel, Kiela (2017), "Poincare embeddings for learning hierarchical representations",
section 4; the filtered ranks of Bordes et al. (2013), "Translating embeddings for modeling
multi-relational data".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Proximity = Callable[[Array, Array], Float[Array, "..."]]

# Things that are compared with all others at once.
BLOCK = 32


class Queries(NamedTuple):
    """Whose relations are ranked.

    Attributes:
      things: u, the things asked about, `(queries,)`.
      related: what each is related to and should be near, `(queries, most)`.
      ranked: which entries of `related` are ranked, likewise; the others are known and left out of
        the comparison, as the padding must be (with u itself).
    """

    things: Int[Array, " queries"]
    related: Int[Array, "queries most"]
    ranked: Bool[Array, "queries most"]


def reconstruction_queries(
    counts: Int[np.ndarray, " things"],
    table: Int[np.ndarray, "things most"],
    sample: int | None = None,
    seed: int = 0,
) -> Queries:
    """All relations of all things that have any.

    Args:
      counts: how many each thing has.
      table: which, padded (`driftlab.data.relations.ancestors_table`).
      sample: how many things to ask about, drawn at random; None for all.
      seed: of the draw.

    Returns:
      The queries.

    Raises:
      ValueError: if sample is not positive.
    """
    if sample is not None and sample < 1:
        raise ValueError(f"sample={sample} must be 1 or more, or None for all things.")
    things = np.flatnonzero(counts)
    if sample is not None and sample < len(things):
        things = np.sort(np.random.default_rng(seed).choice(things, sample, replace=False))
    ranked = np.arange(table.shape[1])[None, :] < counts[things][:, None]
    return Queries(jnp.asarray(things), jnp.asarray(table[things]), jnp.asarray(ranked))


def prediction_queries(
    counts: Int[np.ndarray, " things"],
    table: Int[np.ndarray, "things most"],
    held_out: Int[np.ndarray, "pairs 2"],
) -> Queries:
    """The relations that were held out, filtered: all others of the same thing are left out.

    Args:
      counts: how many relations each thing has, those held out among them.
      table: which, padded.
      held_out: pairs of a thing and what it is related to.

    Returns:
      The queries.

    Raises:
      ValueError: if there is none.
    """
    if not len(held_out):
        raise ValueError("held_out holds no pair.")
    things = np.unique(held_out[:, 0])
    keys = held_out[:, 0].astype(np.int64) * len(counts) + held_out[:, 1]
    here = things[:, None].astype(np.int64) * len(counts) + table[things]
    known = np.arange(table.shape[1])[None, :] < counts[things][:, None]
    ranked = np.isin(here, keys) & known
    return Queries(jnp.asarray(things), jnp.asarray(table[things]), jnp.asarray(ranked))


def ranks(
    proximity: Proximity, points: Float[Array, "things n"], queries: Queries
) -> Float[Array, "queries most"]:
    """`1 +` the number of unrelated things that are as near or nearer, for every ranked relation.

    The thing itself and all of `related` are left out. Equal distances count against: the table
    in which all points coincide gets the worst ranks, not the best.

    Args:
      proximity: `(x, y) ->` the distance along the last axis, or what grows with it and is
        cheaper.
      points: of all things.
      queries: whose relations.

    Returns:
      Ranks; NaN where nothing is ranked, and everywhere if a point is not finite. Cost: `queries *
      things` distances, and as many comparisons for each relation.
    """
    count = len(queries.things)
    blocks = -(-count // BLOCK)
    padded = jax.tree.map(
        lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], blocks * BLOCK - count, axis=0)]), queries
    )
    blocked = jax.tree.map(lambda a: a.reshape(blocks, BLOCK, *a.shape[1:]), padded)

    def one_block(block: Queries) -> Array:
        at = points[block.things]
        wide = (BLOCK, *points.shape)
        others = proximity(
            jnp.broadcast_to(at[:, None, :], wide), jnp.broadcast_to(points[None], wide)
        )
        # Looked up, not computed again: the same distance computed in another place may differ in
        # its last digit, and a thing would not be as near as itself.
        related = jnp.take_along_axis(others, block.related, axis=1)
        own = jnp.take_along_axis(others, block.things[:, None], axis=1)

        def nearer(column: Array) -> Array:
            """How many of all things are as near as one relation of each query."""
            return jnp.sum(others <= column[:, None], axis=1, dtype=jnp.int32)

        everything = jax.lax.map(nearer, related.T).T
        # Those left out: each related thing once, and the thing itself.
        left_out = jnp.sum(
            (related[:, None, :] <= related[:, :, None]) & _first_of_each(block)[:, None, :], axis=2
        )
        left_out += own <= related
        return 1.0 + everything - left_out

    found = jax.lax.map(one_block, blocked).reshape(blocks * BLOCK, -1)[:count]
    finite = jnp.isfinite(points).all()
    return jnp.where(queries.ranked & finite, found, jnp.nan)


def mean_rank(found: Float[Array, "queries most"]) -> Float[Array, ""]:
    """The mean over all ranked relations.

    Args:
      found: what `ranks` gives.

    Returns:
      1 at best; NaN if nothing was ranked.
    """
    return jnp.nanmean(found)


def mean_average_precision(found: Float[Array, "queries most"]) -> Float[Array, ""]:
    """The mean over things of `mean_k k / (r_k + k - 1)`, r_k their k-th smallest rank.

    `r_k + k - 1` is the position of the k-th relation in the list of all others by distance.

    Args:
      found: what `ranks` gives.

    Returns:
      1 at best; NaN if nothing was ranked.
    """
    ordered = jnp.sort(found, axis=1)  # NaN last
    position = jnp.arange(1.0, found.shape[1] + 1, dtype=found.dtype)[None, :]
    return jnp.nanmean(jnp.nanmean(position / (ordered + position - 1), axis=1))


def _first_of_each(block: Queries) -> Bool[Array, "b most"]:
    """Entries of `related` that are neither padding nor there already."""
    related = block.related
    earlier = jnp.tril(jnp.ones((related.shape[1],) * 2, bool), -1)
    repeated = ((related[:, :, None] == related[:, None, :]) & earlier[None]).any(axis=2)
    return ~repeated & (related != block.things[:, None])
