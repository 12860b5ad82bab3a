"""Mean rank and mean average precision against a loop over sorted lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.data.relations import Relations, ancestors_table, transitive_closure
from driftlab.measures import ranking

THINGS = 70


def squared(x, y):
    return jnp.sum((x - y) ** 2, axis=-1)


@pytest.fixture(scope="module")
def tree():
    child = np.arange(1, THINGS)
    pairs = np.stack([child, child // 3], axis=1)
    return transitive_closure(Relations(tuple(map(str, range(THINGS))), pairs))


@pytest.fixture(scope="module")
def points():
    return jax.random.normal(jax.random.key(0), (THINGS, 3))


def by_sorting(points, pairs, ranked_pairs):
    """Ranks and precisions of the definition, from the sorted list of all others."""
    points, ranks, precisions = np.asarray(points), [], []
    for u in np.unique(ranked_pairs[:, 0]):
        known = set(pairs[pairs[:, 0] == u, 1].tolist())
        wanted = ranked_pairs[ranked_pairs[:, 0] == u, 1]
        order = [w for w in np.argsort(((points - points[u]) ** 2).sum(1)) if w != u]
        others = [w for w in order if w not in known]
        place = {w: order.index(w) for w in wanted}
        found = sorted(1 + sum(order.index(other) < place[w] for other in others) for w in wanted)
        ranks += found
        precisions.append(np.mean([k / (r + k - 1) for k, r in enumerate(found, 1)]))
    return np.mean(ranks), np.mean(precisions)


def test_reconstruction(tree, points):
    counts, table = ancestors_table(tree)
    queries = ranking.reconstruction_queries(counts, table)
    found = jax.jit(lambda p: ranking.ranks(squared, p, queries))(points)
    rank, precision = by_sorting(points, tree.pairs, tree.pairs)
    np.testing.assert_allclose(ranking.mean_rank(found), rank, rtol=1e-14)
    np.testing.assert_allclose(ranking.mean_average_precision(found), precision, rtol=1e-14)


def test_link_prediction_leaves_out_what_is_known(tree, points):
    counts, table = ancestors_table(tree)
    held_out = tree.pairs[::5]
    queries = ranking.prediction_queries(counts, table, held_out)
    found = ranking.ranks(squared, points, queries)
    assert int(np.isfinite(found).sum()) == len(held_out)
    rank, precision = by_sorting(points, tree.pairs, held_out)
    np.testing.assert_allclose(ranking.mean_rank(found), rank, rtol=1e-14)
    np.testing.assert_allclose(ranking.mean_average_precision(found), precision, rtol=1e-14)
    with pytest.raises(ValueError, match="no pair"):
        ranking.prediction_queries(counts, table, held_out[:0])


def test_a_perfect_embedding_of_a_star():
    star = Relations(("a", "b", "c", "d"), np.array([[1, 0], [2, 0], [3, 0]]))
    points = jnp.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.1], [0.0, 2.0]])
    found = ranking.ranks(squared, points, ranking.reconstruction_queries(*ancestors_table(star)))
    assert float(ranking.mean_rank(found)) == 1
    assert float(ranking.mean_average_precision(found)) == 1


def test_coinciding_points_rank_last_not_first(tree):
    counts, table = ancestors_table(tree)
    queries = ranking.reconstruction_queries(counts, table)
    found = ranking.ranks(squared, jnp.zeros((THINGS, 3)), queries)
    expected = np.repeat((THINGS - counts)[counts > 0], counts[counts > 0])
    np.testing.assert_array_equal(found[np.isfinite(found)], expected)


def test_a_point_that_is_not_finite_gives_nan(tree, points):
    queries = ranking.reconstruction_queries(*ancestors_table(tree))
    found = ranking.ranks(squared, points.at[5, 0].set(jnp.nan), queries)
    assert np.isnan(ranking.mean_rank(found))
    assert np.isnan(ranking.mean_average_precision(found))


def test_a_sample_is_part_of_the_whole(tree, points):
    counts, table = ancestors_table(tree)
    everything = ranking.reconstruction_queries(counts, table)
    some = ranking.reconstruction_queries(counts, table, 11, seed=3)
    whole, part = (ranking.ranks(squared, points, q) for q in (everything, some))
    at = np.searchsorted(everything.things, some.things)
    np.testing.assert_array_equal(part, whole[at])
    with pytest.raises(ValueError, match="sample=0"):
        ranking.reconstruction_queries(counts, table, 0)
