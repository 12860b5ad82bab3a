"""Embeddings of relations: things near what they are related to, far from the rest.

Source: Nickel, Kiela (2017), "Poincare embeddings for learning hierarchical representations",
section 4; Becigneul, Ganea (2019), "Riemannian adaptive optimization methods", section 5.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from driftlab.data.relations import Relations, ancestors_table
from driftlab.manifolds import Manifold
from driftlab.sampling import Sampling

REDUCTIONS = ("mean", "sum")

Draw = Callable[[PRNGKeyArray, Int[Array, ""]], tuple[Int[Array, "b n"], Bool[Array, "b m"]]]


def relation_loss(
    manifold: Manifold, reduction: str = "mean"
) -> Callable[[Array, Bool[Array, "b m"]], Float[Array, ""]]:
    """How unlikely the related thing is among those drawn beside it.

    `-log( exp(-d(u, v)) / sum_{v'} exp(-d(u, v')) )`, where v' runs over v and the negatives.

    Args:
      manifold: whose distance d is.
      reduction: "mean" or "sum" over the pairs of a batch: the learning rates of SGD for the two
        differ by the batch size, those of Adam not.

    Returns:
      `loss(rows, mask)` of the points of `(u, v, negatives...)`, `(b, 2 + K, dimension)`, and of
      which of the `1 + K` others count.

    Raises:
      ValueError: for another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} must be one of {REDUCTIONS}.")
    reduce = jnp.mean if reduction == "mean" else jnp.sum

    def loss(rows: Array, mask: Bool[Array, "b m"]) -> Float[Array, ""]:
        at = jnp.broadcast_to(rows[:, :1], rows[:, 1:].shape)
        scores = jnp.where(mask, -manifold.distance(at, rows[:, 1:]), -jnp.inf)
        return -reduce(jax.nn.log_softmax(scores, axis=1)[:, 0])

    return loss


def draw_relations(
    relations: Relations,
    sampling: Sampling,
    negatives: int,
    degree_power: float = 0.0,
) -> Draw:
    """Batches of pairs, each with things that its first is not related to.

    Args:
      relations: what is trained on.
      sampling: how the pairs of a step are drawn, such as `driftlab.sampling.shuffled_epochs`.
      negatives: K, drawn with replacement beside each pair. What happens to be the thing itself or
        related to it is masked, not drawn again.
      degree_power: negatives are drawn in proportion to `degree ** degree_power`, a thing's
        degree being the pairs it is in; 0 for uniformly.

    Returns:
      `draw(key, step) -> (i, mask)`, with `i` the indices of `(u, v, negatives...)`, `(batch, 2 +
      K)`, and which of `(v, negatives...)` count; for `driftlab.row_descent`.

    Raises:
      ValueError: if negatives is not positive, or the sampling takes all pairs.
    """
    if negatives < 1:
        raise ValueError(f"negatives={negatives} must be 1 or more.")
    if sampling.batch_size is None:
        raise ValueError("sampling must draw batches; full_batch() has none.")
    size, things = len(relations.pairs), len(relations.names)
    pairs = jnp.asarray(relations.pairs)
    above = jnp.asarray(ancestors_table(relations)[1])
    cumulative = jnp.asarray(_cumulative(relations, degree_power))

    def draw(key: PRNGKeyArray, step: Int[Array, ""]) -> tuple[Array, Array]:
        chosen = pairs[sampling.indices(key, step, size)]
        here = jax.random.fold_in(jax.random.fold_in(key, step), 1)
        shape = (len(chosen), negatives)
        if degree_power == 0:
            drawn = jax.random.randint(here, shape, 0, things, jnp.int32)
        else:
            # Below the last entry, whatever rounding makes of it.
            level = jax.random.uniform(here, shape, cumulative.dtype) * cumulative[-1]
            drawn = jnp.searchsorted(cumulative, level, side="right").astype(jnp.int32)
            drawn = jnp.minimum(drawn, things - 1)
        first = chosen[:, :1]
        # The table is padded with the thing itself.
        related = (drawn[:, :, None] == above[chosen[:, 0]][:, None, :]).any(axis=2)
        counts = ~related & (drawn != first)
        mask = jnp.concatenate([jnp.ones((len(chosen), 1), bool), counts], axis=1)
        return jnp.concatenate([chosen, drawn], axis=1), mask

    return draw


def initial_table(
    manifold: Manifold, key: PRNGKeyArray, things: int, entries: int, scale: ArrayLike = 1e-3
) -> Float[Array, "things entries"]:
    """Points close to the centre of a hyperbolic space, or anywhere near 0.

    Args:
      manifold: of points with one axis.
      key: a random key.
      things: how many points.
      entries: of one point: the dimension; one more on the hyperboloid.
      scale: coordinates are uniform in [-scale, scale].

    Returns:
      The table, in JAX's default precision.
    """
    points = jax.random.uniform(key, (things, entries), float, -1, 1) * jnp.asarray(scale, float)
    return manifold.project(points)


def _cumulative(relations: Relations, power: float) -> np.ndarray:
    degree = np.bincount(relations.pairs.ravel(), minlength=len(relations.names))
    return np.cumsum(degree.astype(float) ** power)
