"""What is selected, reduced and refused."""

import numpy as np
import pytest

from driftlab.plot.selection import dead_fraction, final_values, majority_median, median, select


def test_arranges_axis_seed_and_step_whatever_the_order(sweep):
    shuffled = sweep.transpose("step", "seed", "learning_rate").isel(learning_rate=[2, 0, 1])
    one, other = select(sweep, "loss", "learning_rate"), select(shuffled, "loss", "learning_rate")
    np.testing.assert_array_equal(one.axis, [0.01, 0.1, 1.0])
    np.testing.assert_array_equal(other.axis, one.axis)
    np.testing.assert_array_equal(other.points[0].values, one.points[0].values)
    np.testing.assert_array_equal(other.points[0].diverged, one.points[0].diverged)
    assert one.points[0].values.shape == (3, 4, 5)


def test_dead_records_begin_at_the_verdict(sweep):
    point = select(sweep, "loss", "learning_rate").points[0]
    np.testing.assert_array_equal(point.dead[1, 1], [False, False, False, True, True])
    np.testing.assert_array_equal(point.dead[2, 0], [False, True, True, True, True])
    assert not point.dead[0].any()
    np.testing.assert_array_equal(
        dead_fraction(point.dead, point.missing)[2], [0, 0.25, 0.5, 0.75, 0.75]
    )


def test_a_value_recorded_at_the_verdict_itself_does_not_count(sweep):
    sweep["loss"][1, 1, 3] = 1e30
    assert np.isnan(select(sweep, "loss", "learning_rate").points[0].values[1, 1, 3])


def test_majority_median_ends_once_more_than_half_the_seeds_have_diverged(sweep):
    selection = select(sweep, "loss", "learning_rate")
    expected = np.array(
        [
            10 ** (0.99 - np.arange(5)) * 2.5,
            10 ** (0.9 - np.arange(5)) * [2.5, 2.5, 2.5, 3, 3],
            [2.5, 0.3, 0.035, np.nan, np.nan],
        ]
    )
    np.testing.assert_allclose(majority_median(selection.points[0]), expected)


def test_median_of_no_seed_is_nan_without_a_warning():
    values = np.array([[[np.nan], [np.nan]], [[1.0], [np.nan]]])
    np.testing.assert_array_equal(median(values), [[np.nan], [1.0]])


def test_final_values_are_of_survivors_at_the_last_record(sweep):
    step, (final,) = final_values(select(sweep, "loss", "learning_rate"))
    assert step == 40
    assert np.isfinite(final[0]).all()
    np.testing.assert_array_equal(np.isfinite(final[1]), [True, False, True, True])
    np.testing.assert_array_equal(np.isfinite(final[2]), [False, False, False, True])
    np.testing.assert_array_equal(final[0], sweep.loss.values[0, :, -1])


def test_final_values_of_a_run_in_progress_are_all_at_the_same_step(sweep):
    sweep["loss"][..., 4] = np.nan
    sweep["loss"][0, :, 3] = np.nan
    step, (final,) = final_values(select(sweep, "loss", "learning_rate"))
    assert step == 30
    assert np.isnan(final[0]).all()
    assert np.isfinite(final[1, 0])


def test_records_without_a_value_are_left_out_but_not_those_after_divergence(make_sweep):
    values = np.ones((2, 2, 5))
    values[..., [1, 3]] = np.nan
    sparse = make_sweep(values, axes={"learning_rate": [0.1, 1.0], "seed": [0, 1]})
    np.testing.assert_array_equal(select(sparse, "loss", "learning_rate").steps, [0, 20, 40])
    dead = make_sweep(values, [[15, 5], [5, 5]], {"learning_rate": [0.1, 1.0], "seed": [0, 1]})
    np.testing.assert_array_equal(select(dead, "loss", "learning_rate").steps, [0, 20, 30, 40])


def test_missing_lanes_count_for_nothing(sweep):
    sweep["verdict"][2, 3] = "missing"
    sweep["verdict"][0] = "missing"
    sweep["loss"][2, 3] = sweep["loss"][0] = np.nan
    point = select(sweep, "loss", "learning_rate").points[0]
    np.testing.assert_array_equal(dead_fraction(point.diverged, point.missing), [np.nan, 0.25, 1.0])


def test_nonfinite_lanes_have_diverged(sweep):
    sweep["verdict"] = sweep.verdict.astype("<U9")
    sweep["verdict"][0, 0], sweep["verdict_step"][0, 0] = "nonfinite", 12
    point = select(sweep, "loss", "learning_rate").points[0]
    assert point.diverged[0, 0]
    np.testing.assert_array_equal(
        np.isfinite(point.values[0, 0]), [True, True, False, False, False]
    )


def test_other_axes_make_points_in_order(make_sweep):
    axes = {"optimizer": ["sgd", "adam"], "learning_rate": [0.1, 1.0], "momentum": [0.0, 0.9]}
    dataset = make_sweep(np.arange(24.0).reshape(2, 2, 2, 3), axes=axes)
    points = select(dataset, "loss", "learning_rate").points
    assert [tuple(point.coordinates.values()) for point in points] == [
        ("sgd", 0.0),
        ("sgd", 0.9),
        ("adam", 0.0),
        ("adam", 0.9),
    ]
    np.testing.assert_array_equal(points[1].values[:, 0], dataset.loss.values[0, :, 1])


def test_the_extra_dimension_of_a_measure_makes_points(make_sweep):
    dataset = make_sweep(np.ones((2, 3)), [-1, 10], {"learning_rate": [0.1, 1.0]})
    dataset["spectrum"] = (
        ("learning_rate", "step", "spectrum_0"),
        np.arange(12.0).reshape(2, 3, 2),
    )
    points = select(dataset, "spectrum", "learning_rate").points
    assert [point.coordinates for point in points] == [{"spectrum_0": 0}, {"spectrum_0": 1}]
    np.testing.assert_array_equal(points[1].values[0, 0], [1, 3, 5])
    np.testing.assert_array_equal(points[1].diverged, [[False], [True]])


def test_seed_can_be_the_axis(sweep):
    selection = select(sweep, "loss", "seed")
    assert len(selection.points) == 3
    assert selection.points[0].values.shape == (4, 1, 5)


def test_the_dataset_is_left_as_it_was(sweep):
    before = sweep.copy(deep=True)
    select(sweep, "loss", "learning_rate").points[0].values[:] = 0
    assert sweep.identical(before)


@pytest.mark.parametrize(
    ("variable", "axis", "message"),
    [
        ("los", "learning_rate", "variable 'los' .*did you mean 'loss'.*There are: loss"),
        ("verdict", "learning_rate", "not recorded over 'step'.*There are: loss"),
        ("loss", "learning_rat", "axis 'learning_rat' .*did you mean 'learning_rate'.*seed"),
        ("loss", "step", "axis 'step' is not an axis.*learning_rate, seed"),
    ],
)
def test_refuses_unknown_names_and_lists_the_known(sweep, variable, axis, message):
    with pytest.raises(ValueError, match=message):
        select(sweep, variable, axis)


def test_refuses_an_axis_of_strings(make_sweep):
    axes = {"optimizer": ["sgd", "adam"], "learning_rate": [0.1, 1.0]}
    dataset = make_sweep(np.ones((2, 2, 3)), axes=axes)
    with pytest.raises(ValueError, match="'optimizer' does not hold numbers.*learning_rate"):
        select(dataset, "loss", "optimizer")


def test_refuses_a_dataset_without_verdicts(sweep):
    with pytest.raises(ValueError, match="variable 'verdict' is not in the dataset"):
        select(sweep.drop_vars("verdict"), "loss", "learning_rate")
