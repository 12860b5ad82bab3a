"""Panels against a threshold."""

import numpy as np
import pytest

from driftlab.plot.threshold_panels import Comparison, threshold_panels


def test_a_panel_a_value_with_its_threshold_and_comparison(sweep):
    comparisons = [Comparison(np.array([0.0, 40.0]), np.array([1.0, 2.0]))] * 3
    figure = threshold_panels(
        sweep, "loss", [3.0, 2.0, 1.0], comparisons=comparisons, comparison_label="flow"
    )
    assert len(figure.axes) == 3
    for panel, threshold in zip(figure.axes, [3.0, 2.0, 1.0], strict=True):
        dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert [line.get_ydata()[0] for line in dashed] == [threshold]
        assert panel.get_ylim()[0] == 0
        assert panel.get_ylim()[1] > threshold
    assert figure.axes[0].get_title() == "learning rate 0.01"
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[1:] == ["threshold", "flow", "diverged"]
    crosses = [sum(line.get_marker() == "x" for line in panel.lines) for panel in figure.axes]
    assert crosses == [0, 1, 3]


def test_thresholds_follow_an_unsorted_axis(sweep):
    figure = threshold_panels(sweep.isel(learning_rate=[2, 0, 1]), "loss", [1.0, 3.0, 2.0])
    found = [
        line.get_ydata()[0]
        for panel in figure.axes
        for line in panel.lines
        if line.get_linestyle() == "--"
    ]
    assert found == [3.0, 2.0, 1.0]


def test_wrong_counts_and_further_axes_are_refused(sweep):
    with pytest.raises(ValueError, match="thresholds needs 3 entries"):
        threshold_panels(sweep, "loss", [1.0])
    with pytest.raises(ValueError, match="further axes"):
        threshold_panels(sweep.expand_dims(optimizer=["a", "b"]), "loss", [1.0, 2.0, 3.0])
