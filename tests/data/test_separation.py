"""The max-margin oracle: known answers, optimality, and what it refuses."""

import numpy as np
import pytest

from driftlab import data
from driftlab.data.separation import NotSeparableError, max_margin


def test_two_support_vectors_give_the_answer_by_hand():
    # The closest point to 0 of the segment from (2, 0) to (0, 1) is (0.4, 0.8).
    inputs = np.array([[2.0, 0.0], [0.0, -1.0], [5.0, 5.0]])
    found = max_margin(inputs, [1, -1, 1])
    np.testing.assert_allclose(found.direction, np.array([1, 2]) / 5**0.5, rtol=1e-14)
    np.testing.assert_allclose(found.margin, 0.8**0.5, rtol=1e-14)
    assert found.support.tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_inputs_does_not_matter(scale):
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(60, 5))
    truth = rng.normal(size=5)
    signs = np.sign(inputs @ truth)
    found = max_margin(scale * inputs, signs)
    towards = signs[:, None] * inputs
    np.testing.assert_allclose(found.margin / scale, (towards @ found.direction).min(), rtol=1e-12)
    # Optimal: the direction is a combination of its support vectors with positive weights.
    weights, *_ = np.linalg.lstsq(towards[found.support].T, found.direction, rcond=None)
    assert (weights > 0).all()
    assert np.linalg.norm(towards[found.support].T @ weights - found.direction) < 1e-9
    # And no other direction nearby does better.
    for step in 1e-3 * rng.normal(size=(200, 5)):
        other = found.direction + step
        assert (towards @ other).min() / np.linalg.norm(other) <= found.margin / scale


def test_images_are_flattened_and_separable():
    digits = data.load("digits", labels="binary:0,1", normalization="unit")
    found = max_margin(digits.train.inputs, digits.train.targets)
    rows = np.asarray(digits.train.inputs, float).reshape(len(digits.train.targets), -1)
    margins = digits.train.targets * (rows @ found.direction)
    assert found.margin > 0
    np.testing.assert_allclose(margins.min(), found.margin, rtol=1e-12)
    np.testing.assert_allclose(margins[found.support], found.margin, rtol=1e-6)


def test_data_that_are_not_separable_are_refused_by_name():
    corners = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(NotSeparableError, match=r"the corners cannot be separated.* of 3 examples"):
        max_margin(corners, [1, 1, 1], "the corners")
    rng = np.random.default_rng(0)
    with pytest.raises(NotSeparableError, match="of 100 examples"):
        max_margin(rng.normal(size=(100, 3)), rng.choice([-1, 1], 100))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"same first axis"):
        max_margin(np.ones((3, 2)), [1, -1])
    with pytest.raises(ValueError, match=r"signs must be -1 or \+1; got \[0.0, 1.0\]"):
        max_margin(np.ones((2, 2)), [0, 1])
    with pytest.raises(ValueError, match="finite"):
        max_margin([[np.nan, 1.0]], [1])
    with pytest.raises(ValueError, match="must not all be 0"):
        max_margin(np.zeros((3, 2)), [1, 1, -1])
