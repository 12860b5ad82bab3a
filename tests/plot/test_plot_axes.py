"""Scales, edges, labels."""

import numpy as np
import pytest
import xarray
from matplotlib.colors import LogNorm

from driftlab.plot.axes import (
    cell_edges,
    is_log_spaced,
    is_log_valued,
    normalization,
    step_edges,
)
from driftlab.plot.labels import name_list, step_label, variable_label


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.geomspace(1e-3, 1, 9), True),
        (np.geomspace(0.1, 0.4, 3).astype(np.float32), True),
        ([16, 32, 64, 128], True),
        ([1e-3, 3e-3, 1e-2, 3e-2], True),
        (np.linspace(0.1, 0.9, 9), False),
        ([1, 2, 3, 4], False),
        ([0.0, 0.9, 0.99], False),
        ([-1.0, 0.1, 1.0], False),
        ([0.1], False),
        ([0.1, 0.2], False),
        ([0.1, 1.0], True),
    ],
)
def test_log_axis_where_it_is_spaced_so(values, expected):
    assert is_log_spaced(np.asarray(values)) is expected


@pytest.mark.parametrize(
    ("values", "variable", "expected"),
    [
        ([1.0, 20.0, np.nan], "loss", True),
        ([1.0, 9.0], "loss", False),
        ([0.0, 20.0], "loss", False),
        ([-1.0, 20.0], "loss", False),
        ([0.01, 1.0], "evaluation_accuracy", False),
        ([np.nan], "loss", False),
        ([5.0], "loss", False),
    ],
)
def test_log_values_where_positive_and_spanning_a_decade(values, variable, expected):
    assert is_log_valued(np.array(values), variable) is expected


def test_cell_edges():
    np.testing.assert_allclose(
        cell_edges(np.array([0.1, 1.0, 10.0]), True), 10 ** np.array([-1.5, -0.5, 0.5, 1.5])
    )
    np.testing.assert_allclose(cell_edges(np.array([-1.0, 0.0, 2.0]), False), [-1.5, -0.5, 1, 3])
    np.testing.assert_allclose(cell_edges(np.array([0.1]), False), [0.05, 0.15])
    np.testing.assert_allclose(cell_edges(np.array([0]), False), [-0.5, 0.5])


def test_step_edges_stop_at_the_first_and_last_record():
    np.testing.assert_allclose(step_edges(np.array([0, 10, 20, 25])), [0, 5, 15, 22.5, 25])
    np.testing.assert_allclose(step_edges(np.array([7])), [6.5, 7.5])


def test_normalization_of_one_value_or_none_is_not_degenerate():
    for values in (np.array([3.0, np.nan]), np.array([np.nan]), np.array([0.0])):
        norm = normalization(values, False)
        assert norm.vmin < norm.vmax
    norm = normalization(np.array([0.1, 10.0]), True)
    assert isinstance(norm, LogNorm)
    assert (norm.vmin, norm.vmax) == (0.1, 10.0)


def test_labels_carry_units_and_long_names():
    def array(name, **attrs):
        return xarray.DataArray(0.0, name=name, attrs=attrs)

    assert variable_label(array("gradient_norm")) == "gradient norm"
    assert variable_label(array("learning_rate", units="1")) == "learning rate"
    assert variable_label(array("loss", units="nats", long_name="test loss")) == "test loss (nats)"
    assert step_label(array("step", units="iterations", long_name="step")) == "iteration k"
    assert step_label(array("step", units="epochs")) == "step (epochs)"


def test_names_of_points():
    point = {"optimizer": "sgd", "batch_size": np.int64(32), "decay": np.float32(0.1)}
    assert name_list(point) == "optimizer sgd, batch size 32, decay 0.1"
    assert name_list(point, with_axes=False) == "sgd, 32, 0.1"
    assert name_list({}) == ""
