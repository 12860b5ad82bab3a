"""The curves figure: medians, colours, and where diverged lanes end."""

import numpy as np
from matplotlib.colors import LogNorm

from driftlab.plot import curves


def medians(panel, count):
    """The curves of medians: those that are drawn first."""
    return [(line.get_xdata(), line.get_ydata()) for line in panel.lines[:count]]


def test_curves_are_medians_that_end_with_the_majority(sweep):
    panel = curves(sweep, "loss").axes[0]
    (x, y), (x1, y1), (x2, y2) = medians(panel, 3)
    np.testing.assert_array_equal(x, [0, 10, 20, 30, 40])
    np.testing.assert_allclose(y, np.median(sweep.loss.values[0], axis=0))
    np.testing.assert_array_equal(x1, x)
    np.testing.assert_allclose(y1[3:], np.median(sweep.loss.values[1, [0, 2, 3], 3:], axis=0))
    np.testing.assert_array_equal(x2, [0, 10, 20])
    np.testing.assert_allclose(y2, [2.5, 0.3, 0.035])


def test_crosses_at_the_last_good_record_of_diverged_lanes(sweep):
    panel = curves(sweep, "loss").axes[0]
    crosses = np.asarray(panel.collections[0].get_offsets())
    loss = sweep.loss.values
    expected = [[20, loss[1, 1, 2]], [0, loss[2, 0, 0]], [10, loss[2, 1, 1]], [20, loss[2, 2, 2]]]
    np.testing.assert_allclose(crosses, expected)
    lanes = panel.lines[3:]
    ends = [[line.get_xdata()[-1], line.get_ydata()[-1]] for line in lanes]
    np.testing.assert_allclose(ends, expected)
    assert all(line.get_linewidth() < panel.lines[0].get_linewidth() for line in lanes)


def test_colour_follows_the_axis_on_a_log_scale(sweep):
    figure = curves(sweep, "loss")
    panel, bar = figure.axes
    assert isinstance(bar._colorbar.norm, LogNorm)
    assert (bar._colorbar.norm.vmin, bar._colorbar.norm.vmax) == (0.01, 1.0)
    assert bar.get_ylabel() == "learning rate"
    expected = [bar._colorbar.mappable.to_rgba(value) for value in (0.01, 0.1, 1.0)]
    assert [line.get_color() for line in panel.lines[:3]] == expected
    np.testing.assert_allclose(panel.collections[0].get_edgecolors()[0], expected[1])
    np.testing.assert_allclose(panel.collections[0].get_edgecolors()[1:], [expected[2]] * 3)
    figure.draw_without_rendering()
    assert [t.get_text() for t in bar.get_yticklabels()] == ["0.01", "0.1", "1"]


def test_labels_scale_and_legend(sweep, texts):
    figure = curves(sweep, "loss")
    panel = figure.axes[0]
    assert panel.get_xlabel() == "iteration k"
    assert panel.get_ylabel() == "training loss (nats)"
    assert panel.get_yscale() == "log"
    assert texts(figure.legends[0]) == [
        "median of 4 seeds",
        "a lane that diverged, up to its last good record",
    ]


def test_sparse_records_join_up(make_sweep):
    values = np.arange(1.0, 31.0).reshape(3, 2, 5)
    values[..., [1, 2, 3]] = np.nan
    panel = curves(make_sweep(values, variable="evaluation_loss"), "evaluation_loss").axes[0]
    (x, y), *_ = medians(panel, 3)
    np.testing.assert_array_equal(x, [0, 40])
    np.testing.assert_allclose(y, [3.5, 7.5])


def test_one_panel_a_point_in_at_most_three_columns(make_sweep):
    axes = {"optimizer": ["a", "b", "c", "d"], "learning_rate": [0.1, 1.0]}
    values = np.arange(1.0, 25.0).reshape(4, 2, 3)
    figure = curves(make_sweep(values, axes=axes), "loss")
    *panels, _ = figure.axes
    assert [panel.get_title() for panel in panels] == [f"optimizer {name}" for name in "abcd"]
    assert panels[0].get_gridspec().get_geometry() == (2, 3)
    np.testing.assert_array_equal(panels[2].lines[1].get_ydata(), values[2, 1])
    assert panels[0].get_ylim() == panels[3].get_ylim()
    assert [bool(panel.get_xlabel()) for panel in panels] == [False, True, True, True]


def test_a_single_learning_rate_is_named_in_the_legend(make_sweep, texts):
    dataset = make_sweep(np.ones((1, 1, 3)), axes={"learning_rate": [0.1], "seed": [0]})
    figure = curves(dataset, "loss")
    assert len(figure.axes) == 1
    assert texts(figure.legends[0]) == ["learning rate 0.1"]


def test_a_lane_without_a_good_record_has_no_cross_but_is_told_of(make_sweep):
    dataset = make_sweep(np.ones((2, 3)), [0, 0], {"learning_rate": [0.1, 1.0]})
    panel = curves(dataset, "loss").axes[0]
    assert len(panel.collections[0].get_offsets()) == 0
    assert [text.get_text() for text in panel.texts] == ["every lane diverged at once"]
