"""From raw pixels and class numbers to what a loss takes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num, UInt8

NORMALIZATIONS = ("standard", "unit", "per_feature", "none")

LABELS = ("classes", "one_hot", "binary", "binary:a,b")


class Normalization(NamedTuple):
    """An affine map of pixels, `(x - shift) / scale`.

    Attributes:
        shift: subtracted from every image, scalar or `(height, width, channels)`.
        scale: divides every image, positive, scalar or `(height, width, channels)`.
    """

    shift: Float[np.ndarray, "..."]
    scale: Float[np.ndarray, "..."]


class Labels(NamedTuple):
    """Encoded labels.

    Attributes:
        keep: which examples the encoding keeps.
        targets: the encoded labels of the examples that are kept.
        groups: for each of them the number or sign that subsets are balanced over.
        num_classes: the number of different targets.
    """

    keep: Bool[np.ndarray, " n"]
    targets: Num[np.ndarray, "kept ..."]
    groups: Int[np.ndarray, " kept"]
    num_classes: int


def fit_normalization(
    images: UInt8[np.ndarray, "n height width channels"], maximum: int, normalization: str
) -> Normalization:
    """Finds the affine map that a kind of normalisation means for some images.

    * `standard`: mean 0 and variance 1 over all pixels of all images together;
    * `unit`: from 0 to 1, x / maximum;
    * `per_feature`: mean 0 and variance 1 of each pixel over the images; a pixel that is the same
      in all of them becomes 0;
    * `none`: the raw values, from 0 to maximum.

    Args:
        images: the training images.
        maximum: the largest value a pixel can take.
        normalization: one of the names above.

    Returns:
        The map, in float64.

    Raises:
        ValueError: another name, or `standard` of images that are all one value.
    """
    if normalization == "none":
        return Normalization(np.array(0.0), np.array(1.0))
    if normalization == "unit":
        return Normalization(np.array(0.0), np.array(float(maximum)))
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization={normalization!r} is not known; choose from {', '.join(NORMALIZATIONS)}"
        )
    # Sums of integers are exact, so the difference of moments below loses nothing that matters,
    # and no copy of the images in floating point is needed.
    first = images.sum(axis=0, dtype=np.int64)
    second = np.einsum("n...,n...->...", images, images, dtype=np.int64, casting="safe")
    count = len(images)
    if normalization == "standard":
        # Python's integers: the square of a sum over millions of pixels does not fit in 64 bits.
        first, second, count = int(first.sum()), int(second.sum()), images.size
    mean = first / count
    deviation = np.sqrt(np.maximum(second / count - mean**2, 0.0))
    constant = second * count == first**2
    if normalization == "standard" and constant:
        raise ValueError("normalization='standard' needs images with more than one pixel value")
    return Normalization(np.asarray(mean), np.where(constant, 1.0, deviation))


def apply_normalization(
    images: UInt8[np.ndarray, "n height width channels"], normalization: Normalization
) -> Float32[np.ndarray, "n height width channels"]:
    """Applies `(x - shift) / scale`.

    Args:
        images: raw images.
        normalization: the map, of `fit_normalization`.

    Returns:
        The images in float32.
    """
    result = images.astype(np.float32)
    result -= normalization.shift.astype(np.float32)
    result /= normalization.scale.astype(np.float32)
    return result


def encode_labels(labels: Int[np.ndarray, " n"], num_classes: int, encoding: str) -> Labels:
    """Encodes class numbers.

    * `classes`: the numbers, int32 `(n,)`;
    * `one_hot`: rows with a single one, float32 `(n, num_classes)`;
    * `binary`: -1 for the first half of the classes (k < num_classes // 2), +1 for the others,
      float32 `(n,)`;
    * `binary:a,b`: keeps only the classes a (encoded -1) and b (+1), float32 `(kept,)`.

    Args:
        labels: class numbers from 0 to `num_classes - 1`.
        num_classes: the number of classes.
        encoding: one of the names above.

    Returns:
        The encoded labels and which examples they belong to.

    Raises:
        ValueError: another name, or a and b are not two different classes.
    """
    everything = np.ones(len(labels), dtype=bool)
    if encoding == "classes":
        return Labels(everything, labels.astype(np.int32), labels, num_classes)
    if encoding == "one_hot":
        one_hot = np.eye(num_classes, dtype=np.float32)[labels]
        return Labels(everything, one_hot, labels, num_classes)
    if encoding == "binary":
        signs = np.where(labels < num_classes // 2, -1, 1)
        return Labels(everything, signs.astype(np.float32), signs, 2)
    if encoding.startswith("binary:"):
        negative, positive = _class_pair(encoding, num_classes)
        keep = (labels == negative) | (labels == positive)
        signs = np.where(labels[keep] == positive, 1, -1)
        return Labels(keep, signs.astype(np.float32), signs, 2)
    raise ValueError(f"labels={encoding!r} is not known; choose from {', '.join(LABELS)}")


def _class_pair(encoding: str, num_classes: int) -> tuple[int, int]:
    """Reads the two class numbers of `binary:a,b`."""
    parts = encoding.removeprefix("binary:").split(",")
    try:
        negative, positive = (int(part) for part in parts)
    except ValueError:
        negative = positive = -1
    if negative == positive or not all(0 <= k < num_classes for k in (negative, positive)):
        raise ValueError(
            f"labels={encoding!r}: after 'binary:' come two different class numbers from 0 to "
            f"{num_classes - 1}, for example 'binary:3,8'"
        )
    return negative, positive
