"""The types a data set is made of, and nothing else."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Num, Shaped, UInt8


class DataError(ValueError):
    """A data file that is not what its name says: corrupt, truncated or a different data set."""


class Batch(NamedTuple):
    """Inputs and targets that belong together: a whole data set or a part of one.

    Attributes:
        inputs: examples along the first axis; images are `(n, height, width, channels)`.
        targets: one target an example: class numbers `(n,)`, one-hot rows `(n, classes)`, signs
            `(n,)` or regression targets.
    """

    inputs: Num[np.ndarray | Array, "n ..."]
    targets: Shaped[np.ndarray | Array, "n ..."]


class Dataset(NamedTuple):
    """A data set that is ready for training, as NumPy arrays on the host.

    Attributes:
        name: the name it was loaded by.
        train: the training part; `inputs` float32.
        test: the test part, preprocessed with the statistics of the training part.
        num_classes: the number of different targets (2 for binary labels).
    """

    name: str
    train: Batch
    test: Batch
    num_classes: int


class Source(NamedTuple):
    """A data set as its files hold it, before any preprocessing.

    Attributes:
        name: the name it is loaded by.
        train: `inputs` uint8 `(n, height, width, channels)`, `targets` int32 class numbers `(n,)`.
        test: the same for the test part.
        num_classes: class numbers run from 0 to `num_classes - 1`.
        maximum: the largest value a pixel can take (16 or 255), the unit of the raw values.
    """

    name: str
    train: Batch
    test: Batch
    num_classes: int
    maximum: int


def image_batch(
    images: UInt8[np.ndarray, "n height width channels"], labels: Num[np.ndarray, " n"]
) -> Batch:
    """Pairs raw images with their class numbers in the types that a `Source` promises.

    Args:
        images: pixel values, integers from 0 to the source's `maximum`.
        labels: class numbers of any numeric type.

    Returns:
        A `Batch` of uint8 images and int32 class numbers.
    """
    return Batch(np.ascontiguousarray(images, dtype=np.uint8), labels.astype(np.int32))
