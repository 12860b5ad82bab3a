"""The final-value figure: what is drawn, where, and how divergence shows."""

import matplotlib.colors
import numpy as np
import pytest

from driftlab.plot import final_value
from driftlab.plot.divergence import DIVERGED_COLOR, diverged_shares


def by_marker(panel, marker):
    return [line for line in panel.lines if line.get_marker() == marker]


def hatched(panel):
    return [(p.get_x(), p.get_x() + p.get_width()) for p in panel.patches if p.get_hatch()]


def test_median_quartiles_seeds_and_best(sweep):
    figure = final_value(sweep, "loss", title="a title")
    panel, _ = figure.axes
    unit = 10.0 ** (1 - np.array([0.01, 0.1]) - 4)
    (line,) = by_marker(panel, "o")
    np.testing.assert_allclose(line.get_xdata(), [0.01, 0.1, 1.0])
    np.testing.assert_allclose(line.get_ydata(), [unit[0] * 2.5, unit[1] * 3, np.nan])
    band, dots = panel.collections
    vertices = band.get_paths()[0].vertices
    for x, low, high in ((0.01, unit[0] * 1.75, unit[0] * 3.25), (0.1, unit[1] * 2, unit[1] * 3.5)):
        at = vertices[np.isclose(vertices[:, 0], x), 1]
        np.testing.assert_allclose([at.min(), at.max()], [low, high])
    offsets = np.asarray(dots.get_offsets().filled(np.nan))
    expected = sweep.loss.values[:, :, -1].ravel()
    np.testing.assert_allclose(offsets[:, 1], expected)
    drawn = np.isfinite(expected)
    np.testing.assert_allclose(offsets[drawn, 0], np.repeat([0.01, 0.1, 1.0], 4)[drawn])
    (star,) = by_marker(panel, "*")
    np.testing.assert_allclose([*star.get_xdata(), *star.get_ydata()], [0.1, unit[1] * 3])
    assert figure.get_suptitle() == "a title"


def test_strip_shows_the_share_that_diverged(sweep):
    panel, strip = final_value(sweep, "loss").axes
    mesh = strip.collections[0]
    np.testing.assert_allclose(mesh.get_array().ravel(), [0, 0.25, 0.75])
    np.testing.assert_allclose(
        mesh.get_coordinates()[0, :, 0], 10 ** np.array([-2.5, -1.5, -0.5, 0.5])
    )
    assert not hatched(panel)
    assert panel.get_xscale() == "log"
    assert panel.get_shared_x_axes().joined(panel, strip)


def test_no_strip_where_every_lane_survived(make_sweep, texts):
    figure = final_value(make_sweep(np.ones((3, 2, 4))), "loss")
    assert len(figure.axes) == 1
    assert not any("diverged" in text for text in texts(figure.legends[0]))


def test_hatched_where_every_seed_of_every_line_diverged(make_sweep, texts):
    axes = {"optimizer": ["sgd", "adam"], "learning_rate": [0.01, 0.1, 1.0], "seed": [0, 1]}
    verdicts = [[[-1, -1], [-1, -1], [5, 5]], [[-1, -1], [5, 5], [5, 5]]]
    figure = final_value(make_sweep(np.ones((2, 3, 2, 4)), verdicts, axes), "loss")
    panel, strip = figure.axes
    np.testing.assert_allclose(hatched(panel), [(10**-0.5, 10**0.5)])
    np.testing.assert_allclose(strip.collections[0].get_array(), [[0, 0, 1], [0, 1, 1]])
    assert [label.get_text() for label in strip.get_yticklabels()] == ["sgd", "adam"]
    assert {"all seeds diverged", "no lane survived"} <= set(texts(figure.legends[0]))
    assert figure.legends[0].get_title().get_text() == "optimizer"


def test_colours_of_shares_tell_none_some_and_all_apart():
    colors = [
        matplotlib.colors.to_hex(diverged_shares()(share)) for share in (0.0, 0.01, 0.99, 1.0)
    ]
    assert colors[0] == "#ffffff"
    assert colors[3] == DIVERGED_COLOR.lower()
    assert len(set(colors)) == 4


def test_labels_and_legend(sweep, texts):
    figure = final_value(sweep, "loss")
    panel, strip = figure.axes
    assert panel.get_ylabel() == "training loss (nats) at iteration 40"
    assert strip.get_xlabel() == "learning rate"
    entries = texts(figure.legends[0])
    assert entries[0] == "median of 4 seeds"
    assert entries[1].startswith("best 0.002383 at 0.1")
    assert "some seeds diverged" in entries


def test_y_is_log_where_values_span_a_decade_only(make_sweep):
    flat = np.array([1.0, 2.0, 3.0])[:, None, None] * np.ones((3, 2, 4))
    assert final_value(make_sweep(flat), "loss").axes[0].get_yscale() == "linear"
    assert final_value(make_sweep(flat**4), "loss").axes[0].get_yscale() == "log"
    assert final_value(make_sweep(2 - flat**4), "loss").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("variable", "best", "expected"),
    [
        ("loss", "auto", 0.01),
        ("evaluation_accuracy", "auto", 1.0),
        ("gradient_norm", "auto", None),
        ("gradient_norm", "highest", 1.0),
        ("loss", "none", None),
    ],
)
def test_best(variable, best, expected, make_sweep):
    values = np.array([0.2, 0.3, 0.4])[:, None, None] * np.ones((3, 2, 4))
    panel = final_value(make_sweep(values, variable=variable), variable, best=best).axes[0]
    assert [line.get_xdata()[0] for line in by_marker(panel, "*")] == (
        [expected] if expected else []
    )


def test_best_is_never_where_most_seeds_diverged(sweep):
    sweep["loss"][2, 3, 4] = 1e-9
    (star,) = by_marker(final_value(sweep, "loss").axes[0], "*")
    assert star.get_xdata()[0] == 0.1


def test_refuses_an_unknown_best(sweep):
    with pytest.raises(ValueError, match="best='min' must be"):
        final_value(sweep, "loss", best="min")


def test_without_a_seed_axis_there_is_neither_band_nor_dots(sweep, texts):
    figure = final_value(sweep.isel(seed=3, drop=True), "loss")
    assert not figure.axes[0].collections
    assert len(by_marker(figure.axes[0], "o")[0].get_ydata()) == 3
    assert texts(figure.legends[0])[0] == "training loss (nats)"


def test_points_not_run_are_named_and_greyed(sweep, texts):
    sweep["verdict"][0] = "missing"
    sweep["loss"][0] = np.nan
    figure = final_value(sweep, "loss")
    assert np.ma.getmaskarray(figure.axes[1].collections[0].get_array()).ravel().tolist() == [
        True,
        False,
        False,
    ]
    assert "not run" in texts(figure.legends[0])
