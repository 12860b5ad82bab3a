"""The loss of related pairs, and how its batches are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import manifolds, sampling
from driftlab.data.relations import Relations
from driftlab.models.relation_embedding import draw_relations, initial_table, relation_loss

CHAIN = Relations(tuple("abcdef"), np.array([[0, 1], [0, 2], [1, 2], [3, 2], [4, 5]], np.int32))


def test_the_loss_is_the_negative_log_probability():
    ball = manifolds.poincare_ball()
    rows = ball.random(jax.random.key(0), (3, 5, 2), jnp.float64)
    mask = jnp.array([[True, True, False, True]] * 3)
    at = jnp.broadcast_to(rows[:, :1], rows[:, 1:].shape)
    weights = np.exp(-np.asarray(jax.jit(ball.distance)(at, rows[:, 1:]))) * np.asarray(mask)
    total = -np.log(weights[:, 0] / weights.sum(axis=1)).sum()
    for reduction, expected in {"sum": total, "mean": total / 3}.items():
        loss = jax.jit(relation_loss(ball, reduction))
        np.testing.assert_allclose(loss(rows, mask), expected, rtol=1e-13)
    # What is masked has no part in it, not even where it is the thing itself.
    moved = rows.at[:, 3].set(rows[:, 0])
    slope = jax.jit(jax.grad(relation_loss(ball)))(moved, mask)
    assert np.isfinite(slope).all()
    assert not slope[:, 3].any()


def test_batches_are_pairs_with_unrelated_things():
    draw = jax.jit(draw_relations(CHAIN, sampling.shuffled_epochs(5), 64))
    indices, mask = draw(jax.random.key(0), jnp.asarray(3))
    assert indices.shape == (5, 66)
    assert mask.shape == (5, 65)
    assert sorted(map(tuple, indices[:, :2].tolist())) == sorted(map(tuple, CHAIN.pairs.tolist()))
    related = {tuple(pair) for pair in CHAIN.pairs.tolist()}
    for row, counts in zip(indices.tolist(), mask.tolist(), strict=True):
        assert counts[0]
        for thing, count in zip(row[2:], counts[1:], strict=True):
            assert count == (thing != row[0] and (row[0], thing) not in related)


def test_negatives_follow_the_power_of_the_degree():
    draw = jax.jit(draw_relations(CHAIN, sampling.with_replacement(200), 50, degree_power=0.75))
    indices, _ = draw(jax.random.key(0), jnp.asarray(0))
    found = np.bincount(np.asarray(indices[:, 2:]).ravel(), minlength=6) / 10_000
    weights = np.array([2, 2, 3, 1, 1, 1]) ** 0.75
    np.testing.assert_allclose(found, weights / weights.sum(), atol=0.02)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="negatives=0"):
        draw_relations(CHAIN, sampling.with_replacement(2), 0)
    with pytest.raises(ValueError, match="full_batch"):
        draw_relations(CHAIN, sampling.full_batch(), 3)
    with pytest.raises(ValueError, match="reduction='max'"):
        relation_loss(manifolds.poincare_ball(), "max")


@pytest.mark.parametrize("entries", [2, 3])
def test_the_start_is_near_the_centre(entries):
    space = manifolds.poincare_ball() if entries == 2 else manifolds.hyperboloid()
    table = initial_table(space, jax.random.key(0), 10, entries, 1e-2)
    assert space.contains(table).all()
    assert np.abs(table[:, -2:]).max() <= 1e-2
