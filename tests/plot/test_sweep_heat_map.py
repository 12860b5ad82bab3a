"""The heat map: cells, edges, colours, and the hatched region."""

import numpy as np
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import LogNorm, Normalize

from driftlab.plot import heat_map
from driftlab.plot.selection import majority_median, select


def mesh_of(panel):
    return next(item for item in panel.collections if isinstance(item, QuadMesh))


def hatched(panel):
    return [c for c in panel.collections if isinstance(c, PolyCollection) and c.get_hatch()]


def test_cells_are_medians_masked_where_the_majority_diverged(sweep):
    panel = heat_map(sweep, "loss").axes[0]
    array = mesh_of(panel).get_array()
    expected = majority_median(select(sweep, "loss", "learning_rate").points[0])
    np.testing.assert_array_equal(np.ma.getmaskarray(array), np.isnan(expected))
    np.testing.assert_allclose(array.filled(np.nan), expected)
    assert np.ma.getmaskarray(array).sum() == 2


def test_edges_are_geometric_across_learning_rates(sweep):
    panel = heat_map(sweep, "loss").axes[0]
    coordinates = mesh_of(panel).get_coordinates()
    np.testing.assert_allclose(coordinates[:, 0, 1], 10 ** np.array([-2.5, -1.5, -0.5, 0.5]))
    np.testing.assert_allclose(coordinates[0, :, 0], [0, 5, 15, 25, 35, 40])
    assert panel.get_yscale() == "log"


def test_hatched_region_is_where_more_than_half_the_seeds_diverged(sweep, texts):
    figure = heat_map(sweep, "loss")
    (region,) = hatched(figure.axes[0])
    paths = region.get_paths()
    for step, learning_rate, inside in (
        (30, 1.0, True),
        (39, 2.0, True),
        (20, 1.0, False),
        (30, 0.1, False),
        (30, 0.01, False),
    ):
        assert any(path.contains_point((step, learning_rate)) for path in paths) is inside
    assert texts(figure.legends[0]) == ["more than half the seeds diverged"]


def test_no_region_nor_legend_where_every_lane_survived(make_sweep):
    figure = heat_map(make_sweep(np.ones((3, 2, 4))), "loss")
    assert not hatched(figure.axes[0])
    assert not figure.legends


def test_the_colour_scale_spans_what_survivors_reach(make_sweep):
    values = np.array([[1.0, 0.5, 0.1], [1.0, 0.2, 0.01], [1.0, 1e6, 1e9]])
    dataset = make_sweep(values, [-1, -1, 15], {"learning_rate": [0.01, 0.1, 1.0]})
    figure = heat_map(dataset, "loss")
    norm = mesh_of(figure.axes[0]).norm
    assert isinstance(norm, LogNorm)
    assert (norm.vmin, norm.vmax) == (0.01, 1.0)
    assert figure.axes[1]._colorbar.extend == "max"
    assert figure.axes[1].get_ylabel() == "loss"


def test_colours_are_linear_where_values_are_not_positive_or_an_accuracy(make_sweep):
    values = np.linspace(-1, 1, 24).reshape(3, 2, 4)
    assert type(mesh_of(heat_map(make_sweep(values), "loss").axes[0]).norm) is Normalize
    dataset = make_sweep(values + 1.1, variable="accuracy")
    assert type(mesh_of(heat_map(dataset, "accuracy").axes[0]).norm) is Normalize


def test_one_panel_a_point_on_one_colour_scale(make_sweep):
    axes = {"optimizer": ["a", "b"], "learning_rate": [0.1, 1.0, 10.0]}
    values = np.arange(1.0, 25.0).reshape(2, 3, 4)
    first, second, _ = heat_map(make_sweep(values, axes=axes), "loss").axes
    assert mesh_of(first).norm is mesh_of(second).norm
    np.testing.assert_array_equal(mesh_of(second).get_array(), values[1])
    assert (first.get_ylabel(), second.get_ylabel()) == ("learning rate", "")


def test_lanes_not_run_have_a_legend_entry(sweep, texts):
    sweep["verdict"][0] = "missing"
    sweep["loss"][0] = np.nan
    figure = heat_map(sweep, "loss")
    assert np.ma.getmaskarray(mesh_of(figure.axes[0]).get_array())[0].all()
    assert "no record" in texts(figure.legends[0])
