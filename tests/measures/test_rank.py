import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.measures.rank import effective_rank, stable_rank

RANDOM = np.random.RandomState(0)
MEASURES = {"effective_rank": effective_rank, "stable_rank": stable_rank}


def snapshot_of(params):
    objective = driftlab.Objective(lambda p, _: optax.tree.norm(p, squared=True))
    dynamics = driftlab.descent(optax.sgd(0.1), objective)
    return dynamics.observe(dynamics.init(params, jax.random.key(0)))


def with_singular_values(values, rows=7, columns=4):
    left, _ = np.linalg.qr(RANDOM.standard_normal((rows, rows)))
    right, _ = np.linalg.qr(RANDOM.standard_normal((columns, columns)))
    return left[:, : len(values)] * np.asarray(values) @ right[: len(values)]


def ranks(matrix):
    snapshot = snapshot_of({"w": jnp.asarray(matrix)})
    return float(effective_rank()(snapshot)["effective_rank_w"]), float(
        stable_rank()(snapshot)["stable_rank_w"]
    )


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_equal_singular_values_count(rank, scale):
    found = ranks(with_singular_values([scale] * rank))
    # Zero singular values come out as 1e-16 of the others and add 40 times as much entropy.
    np.testing.assert_allclose(found, [rank, rank], rtol=1e-13)


def test_formulas():
    effective, stable = ranks(with_singular_values([4.0, 2.0, 1.0, 1.0]))
    # p = 1/2, 1/4, 1/8, 1/8 has 7/4 bits of entropy.
    np.testing.assert_allclose(effective, 2**1.75, rtol=1e-13)
    np.testing.assert_allclose(stable, 22 / 16, rtol=1e-13)


def test_zero_and_non_finite_matrices():
    assert ranks(np.zeros((3, 2))) == (0, 0)
    for bad in [np.nan, np.inf]:
        matrix = np.ones((3, 2))
        matrix[1, 1] = bad
        assert np.isnan(ranks(matrix)).all()


def test_a_convolutions_kernel_keeps_its_last_axis():
    kernel = RANDOM.standard_normal((3, 3, 2, 5))
    assert ranks(kernel) == ranks(kernel.reshape(18, 5))


@pytest.mark.parametrize("name", MEASURES)
def test_names(name):
    params = {
        "params": {
            "Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
            "attention": {"query": jnp.ones((2, 2)), "key": jnp.ones((2, 2))},
            "blocks": [{"kernel": jnp.ones((2, 2))}],
            "scale": jnp.ones(()),
            "table": jnp.ones((4, 2)),
        }
    }
    found = MEASURES[name]()(snapshot_of(params))
    layers = ["Dense_0", "attention_key", "attention_query", "blocks_0", "table"]
    assert sorted(found) == [f"{name}_{layer}" for layer in layers]
    assert all(key.isidentifier() for key in found)
    assert MEASURES[name]().__name__ == name


def test_a_bare_matrix():
    assert effective_rank()(snapshot_of(jnp.eye(3))).keys() == {"effective_rank_params"}


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision(dtype):
    params = {"w": jnp.eye(5, dtype=dtype)}
    found = effective_rank()(snapshot_of(params))["effective_rank_w"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 5, rtol=1e-6)


def test_lanes_under_vmap_do_not_touch_each_other():
    matrices = jnp.asarray(RANDOM.standard_normal((4, 5, 3)))
    matrices = matrices.at[1].set(0).at[2, 0, 0].set(jnp.nan)
    found = jax.jit(
        jax.vmap(lambda w: effective_rank()(snapshot_of({"w": w}))["effective_rank_w"])
    )(matrices)
    assert found[1] == 0
    assert np.isnan(found[2])
    for lane in (0, 3):
        np.testing.assert_allclose(found[lane], ranks(matrices[lane])[0], rtol=1e-13)


def test_needs_a_matrix():
    with pytest.raises(ValueError, match=r"two axes or more.*\[\(3,\)\]"):
        effective_rank()(snapshot_of({"w": jnp.ones(3)}))


def test_two_matrices_with_one_name():
    params = {"a_b": {"c": jnp.eye(2)}, "a": {"b": {"c": jnp.eye(2)}}}
    with pytest.raises(ValueError, match="rename"):
        effective_rank()(snapshot_of(params))
