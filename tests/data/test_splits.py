import numpy as np
import pytest

from driftlab.data.splits import balanced_subset, stratified_split

LABELS = np.repeat([0, 1, 2], [50, 30, 4])


def test_stratified_split_keeps_the_proportions_and_every_example_once():
    train, test = stratified_split(LABELS, 21)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(84))
    # 21 / 84 of 50, 30 and 4 are 12.5, 7.5 and 1: one of the two halves is rounded up.
    np.testing.assert_array_equal(np.bincount(LABELS[test]), [13, 7, 1])


def test_stratified_split_is_shuffled_and_deterministic():
    train, _ = stratified_split(LABELS, 21)
    again, _ = stratified_split(LABELS, 21)
    np.testing.assert_array_equal(train, again)
    assert not np.array_equal(train, stratified_split(LABELS, 21, seed=1)[0])


def test_every_stretch_of_a_split_has_the_proportions_of_the_whole():
    labels = np.tile(np.arange(10), 500)
    for part in stratified_split(labels, 1000):
        counts = np.bincount(labels[part[:300]], minlength=10)
        # 30 expected, standard deviation 5.
        assert counts.min() > 12
        assert counts.max() < 50


@pytest.mark.parametrize(
    ("size", "counts"), [(9, [3, 3, 3]), (10, [4, 3, 3]), (30, [13, 13, 4]), (84, [50, 30, 4])]
)
def test_subset_is_as_balanced_as_the_classes_allow(size, counts):
    chosen = balanced_subset(LABELS, size, (0, 0))
    assert len(np.unique(chosen)) == size
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), counts)


def test_subsets_of_one_seed_are_nested_and_of_another_are_not():
    small = set(balanced_subset(LABELS, 12, (3, 0)))
    assert small < set(balanced_subset(LABELS, 40, (3, 0)))
    assert not small <= set(balanced_subset(LABELS, 40, (4, 0)))
