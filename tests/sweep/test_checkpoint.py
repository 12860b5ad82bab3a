import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.sweep.checkpoint import Checkpoints, block_name, final_params, is_finished
from driftlab.sweep.lane import Lane

BLOCK = block_name(0, np.arange(3))


@pytest.fixture
def lanes():
    params = {"w": np.arange(6.0).reshape(3, 2), "b": np.ones((3, 1), jnp.bfloat16)}
    inner = (params["w"] + 1, np.arange(3, dtype=np.int32))
    return Lane(
        params,
        inner,
        (params, inner),
        params,
        np.ones(3),
        np.int8([0, 1, 0]),
        np.int32([-1, 4, -1]),
    )


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_round_trip_keeps_the_newest(tmp_path, lanes):
    with Checkpoints(tmp_path, BLOCK) as checkpoints:
        template = jax.tree.map(np.zeros_like, lanes)
        assert checkpoints.restore(template) is None
        checkpoints.save(9, 4, lanes)
        checkpoints.save(10, 4, lanes._replace(initial_value=np.full(3, 2.0)))
        record, width, restored = checkpoints.restore(template)
    assert (record, width) == (10, 4)
    assert_same(restored, lanes._replace(initial_value=np.full(3, 2.0)))
    assert all(leaf.flags.writeable for leaf in jax.tree.leaves(restored))
    assert [path.name for path in (tmp_path / "checkpoints" / BLOCK).iterdir()] == [
        "record-00000010"
    ]


@pytest.mark.parametrize("leftover", ["record-00000012", "final"])
def test_what_a_killed_save_leaves_is_ignored_and_cleared(tmp_path, lanes, leftover):
    with Checkpoints(tmp_path, BLOCK) as checkpoints:
        checkpoints.save(10, 4, lanes)
        half = tmp_path / "checkpoints" / BLOCK / f"{leftover}.orbax-checkpoint-tmp"
        half.mkdir()
        (half / "data").write_text("half")
        assert not is_finished(tmp_path, BLOCK)
        record, _, restored = checkpoints.restore(lanes)
        assert record == 10
        assert_same(restored, lanes)
        checkpoints.save(12, 4, lanes)
        assert checkpoints.restore(lanes)[0] == 12
    assert [path.name for path in (tmp_path / "checkpoints" / BLOCK).iterdir()] == [
        "record-00000012"
    ]


def test_a_save_over_an_older_one_of_the_same_record(tmp_path, lanes):
    # A resumed run may stop again before its next record.
    with Checkpoints(tmp_path, BLOCK) as checkpoints:
        checkpoints.save(3, 4, lanes)
        checkpoints.save(3, 4, lanes)
        assert checkpoints.restore(lanes)[0] == 3


def test_final_params_joins_the_blocks_of_a_point_in_the_grids_order(tmp_path, lanes):
    parts = {0: [np.array([0, 4, 5]), np.array([1, 2, 3])], 1: [np.array([0, 1, 2])]}
    for point, blocks in parts.items():
        for numbers in blocks:
            name = block_name(point, numbers)
            with Checkpoints(tmp_path, name) as checkpoints:
                checkpoints.save(3, 4, lanes)
                checkpoints.finish(numbers, {"w": 10.0 * numbers[:, None] + point})
            assert is_finished(tmp_path, name)
    for point, count in ((0, 6), (1, 3)):
        numbers, params = final_params(tmp_path, point)
        np.testing.assert_array_equal(numbers, np.arange(count))
        np.testing.assert_array_equal(params["w"][:, 0], 10.0 * np.arange(count) + point)
    with pytest.raises(FileNotFoundError, match="static point 2"):
        final_params(tmp_path, 2)


def test_final_params_of_a_bare_array(tmp_path):
    with Checkpoints(tmp_path, BLOCK) as checkpoints:
        checkpoints.finish(np.arange(3), np.arange(3.0))
    np.testing.assert_array_equal(final_params(tmp_path)[1], np.arange(3.0))


def test_no_final_params(tmp_path):
    with pytest.raises(FileNotFoundError, match="has the sweep finished"):
        final_params(tmp_path)
