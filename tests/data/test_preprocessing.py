import numpy as np
import pytest

from driftlab.data.preprocessing import apply_normalization, encode_labels, fit_normalization

IMAGES = np.random.RandomState(0).randint(0, 17, (40, 3, 3, 2)).astype(np.uint8)
IMAGES[:, 0, 0, 0] = 7


def normalize(kind, images=IMAGES):
    return apply_normalization(images, fit_normalization(images, 16, kind))


def test_standard_is_over_all_pixels_together():
    expected = (IMAGES - IMAGES.mean()) / IMAGES.std()
    result = normalize("standard")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_per_feature_gives_each_pixel_variance_one_and_constant_pixels_zero():
    result = normalize("per_feature").astype(np.float64)
    np.testing.assert_array_equal(result[:, 0, 0, 0], np.zeros(40))
    deviations = result.std(axis=0)
    deviations[0, 0, 0] = 1
    np.testing.assert_allclose(deviations, np.ones((3, 3, 2)), rtol=1e-6)
    np.testing.assert_allclose(result.mean(axis=0), np.zeros((3, 3, 2)), atol=1e-6)


def test_unit_divides_by_the_maximum_and_none_leaves_the_values():
    np.testing.assert_allclose(normalize("unit"), IMAGES / 16.0, rtol=1e-7)
    np.testing.assert_array_equal(normalize("none"), IMAGES)


def test_standard_survives_sums_beyond_64_bits():
    images = np.full((6000, 28, 28, 1), 255, np.uint8)
    images[:3000] = 0
    fitted = fit_normalization(images, 255, "standard")
    np.testing.assert_allclose([fitted.shift, fitted.scale], [127.5, 127.5], rtol=1e-12)


def test_standard_of_one_value_is_refused():
    with pytest.raises(ValueError, match="more than one pixel value"):
        normalize("standard", np.full((4, 2, 2, 1), 3, np.uint8))


def test_label_encodings():
    labels = np.array([0, 4, 5, 9, 3, 8], np.int32)
    classes = encode_labels(labels, 10, "classes")
    assert classes.targets.dtype == np.int32
    np.testing.assert_array_equal(classes.targets, labels)
    one_hot = encode_labels(labels, 10, "one_hot")
    assert one_hot.targets.dtype == np.float32
    np.testing.assert_array_equal(one_hot.targets.argmax(axis=1), labels)
    np.testing.assert_array_equal(one_hot.targets.sum(axis=1), np.ones(6))
    binary = encode_labels(labels, 10, "binary")
    assert binary.num_classes == 2
    np.testing.assert_array_equal(binary.targets, [-1, -1, 1, 1, -1, 1])
    pair = encode_labels(labels, 10, "binary:8,3")
    np.testing.assert_array_equal(pair.keep, [False, False, False, False, True, True])
    np.testing.assert_array_equal(pair.targets, [1, -1])


@pytest.mark.parametrize("encoding", ["binary:3", "binary:3,3", "binary:0,10", "binary:a,b"])
def test_bad_pairs_are_refused(encoding):
    with pytest.raises(ValueError, match="two different class numbers from 0 to 9"):
        encode_labels(np.arange(10), 10, encoding)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="'onehot'.*one_hot"):
        encode_labels(np.arange(10), 10, "onehot")
    with pytest.raises(ValueError, match="'zscore'.*per_feature"):
        normalize("zscore")
