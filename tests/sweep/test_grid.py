import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Grid
from driftlab.sweep.grid import canonical


def test_product_last_axis_fastest():
    grid = Grid({"learning_rate": [0.1, 0.2], "seed": 3}, {"width": [8, 16]})
    assert grid.shape == (2, 2, 3)
    assert list(grid.axes) == ["width", "learning_rate", "seed"]
    assert grid.num_lanes == 6
    values = grid.lane_values()
    np.testing.assert_array_equal(values["learning_rate"], [0.1, 0.1, 0.1, 0.2, 0.2, 0.2])
    np.testing.assert_array_equal(values["seed"], [0, 1, 2, 0, 1, 2])
    assert repr(grid) == "Grid(width: 2, learning_rate: 2, seed: 3)"


def test_static_points_last_axis_fastest():
    grid = Grid({"seed": 1}, {"optimizer": ["sgd", "adam"], "width": (1, 2)})
    assert list(grid.static_points()) == [
        {"optimizer": "sgd", "width": 1},
        {"optimizer": "sgd", "width": 2},
        {"optimizer": "adam", "width": 1},
        {"optimizer": "adam", "width": 2},
    ]
    assert list(Grid({"seed": 1}).static_points()) == [{}]


def test_a_grid_without_lane_axes_has_one_lane():
    grid = Grid({}, {"width": [1, 2]})
    assert grid.num_lanes == 1
    assert grid.lane_values() == {}


@pytest.mark.parametrize(
    "values", [[1e-3, 1e-2], (1e-3, 1e-2), np.array([1e-3, 1e-2]), jnp.array([1e-3, 1e-2])]
)
def test_lane_axis_takes_any_sequence(values):
    np.testing.assert_array_equal(Grid({"learning_rate": values}).lanes["learning_rate"], values)


def test_seeds_as_a_number_or_a_list():
    np.testing.assert_array_equal(Grid({"seed": 4}).lanes["seed"], [0, 1, 2, 3])
    np.testing.assert_array_equal(Grid({"seed": [7, 3]}).lanes["seed"], [7, 3])


def test_canonical_follows_jaxs_precision():
    assert canonical(np.array([0.1])).dtype == np.float64
    assert canonical(np.array([1])).dtype == np.int32
    with jax.enable_x64(False):
        assert canonical(np.array([0.1])).dtype == np.float32
        assert canonical(np.array([1])).dtype == np.int32


@pytest.mark.parametrize(
    ("lanes", "static", "message"),
    [
        ({"a": []}, None, "non-empty"),
        ({"a": 0.1}, None, "non-empty 1-D"),
        ({"a": [[0.1], [0.2]]}, None, "1-D"),
        ({"a": ["x", "y"]}, None, "needs numbers.*static"),
        ({"a": "sgd"}, None, "needs numbers"),
        ({"a": [True, False]}, None, "needs numbers"),
        ({"a": [0.1, float("nan")]}, None, "finite"),
        ({"a": [0.1, float("inf")]}, None, "finite"),
        ({"a": [1j]}, None, "real"),
        ({"a": [0.1, 0.2, 0.1]}, None, "0.1 more than once"),
        ({"seed": 0}, None, "non-empty"),
        ({"seed": [0.5]}, None, "integers in \\[0, 2"),
        ({"seed": [-1]}, None, "integers in \\[0, 2"),
        ({"seed": [1, 1]}, None, "more than once"),
        ({"step": [1]}, None, "'step' is not usable"),
        ({"learning rate": [1]}, None, "not usable"),
        ({1: [1]}, None, "not usable"),
        ({"a": [1]}, {"a": [1]}, "both lane and static"),
        ({"a": [1]}, {"b": []}, "non-empty"),
        ({"a": [1]}, {"b": "adam"}, "non-empty list"),
        ({"a": [1]}, {"b": [[1, 2]]}, "hashable"),
        ({"a": [1]}, {"b": ["x", "x"]}, "'x' more than once"),
        ({"a": [1]}, {"step": [1]}, "not usable"),
    ],
)
def test_axes_that_are_refused(lanes, static, message):
    with pytest.raises(ValueError, match=message):
        Grid(lanes, static)


def test_adding_lanes_or_seeds_keeps_old_keys():
    key = jax.random.key(3)

    def keys(grid):
        data = np.asarray(jax.random.key_data(grid.lane_keys(key)))
        values = grid.lane_values()
        points = zip(*[values[name].tolist() for name in sorted(values)], strict=True)
        return dict(zip(points, map(tuple, data.tolist()), strict=True))

    small = keys(Grid({"learning_rate": [0.1, 0.2], "seed": 2}))
    large = keys(Grid({"learning_rate": [0.3, 0.2, 0.1], "seed": [5, 1, 0, 2]}))
    assert len(large) == 12
    assert all(large[point] == value for point, value in small.items())
    assert len(set(large.values())) == 4  # lanes that differ in anything else share their key


def test_without_seeds_all_lanes_share_one_key():
    key = jax.random.key(0)
    shared = Grid({"learning_rate": [0.1, 0.2]}).lane_keys(key)
    assert shared.shape == ()
    seeded = Grid({"seed": 1}).lane_keys(key)
    assert (jax.random.key_data(seeded[0]) == jax.random.key_data(shared)).all()
