"""`load`: any data set by name, preprocessed and cut to size."""

import os

import numpy as np

from driftlab.data.cifar10 import load_cifar10
from driftlab.data.dataset import Batch, Dataset, Source
from driftlab.data.digits import load_digits
from driftlab.data.fashion_mnist import load_fashion_mnist
from driftlab.data.mnist5k import load_mnist5k
from driftlab.data.preprocessing import (
    NORMALIZATIONS,
    Normalization,
    apply_normalization,
    encode_labels,
    fit_normalization,
)
from driftlab.data.splits import balanced_subset
from driftlab.suggestions import nearest

_EMBEDDED = {"digits": load_digits, "mnist5k": load_mnist5k}
_IN_FILES = {"fashion_mnist": load_fashion_mnist, "cifar10": load_cifar10}


def names() -> tuple[str, ...]:
    """Lists the data sets that `load` knows.

    Returns:
        Their names; the first two install with packages, the others are read from files.
    """
    return (*_EMBEDDED, *_IN_FILES)


def load(
    name: str,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    normalization: str = "standard",
    labels: str = "classes",
    flatten: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verify_checksum: bool = True,
) -> Dataset:
    """Loads a data set of images from this machine. Nothing is ever downloaded.

    Normalisation is fitted to the whole training part, before labels are chosen and subsets are
    drawn: the same image has the same pixels whatever `train_size`, `labels` and `seed` are.

    Args:
        name: one of `names()`.
        train_size: training examples to keep; None keeps all. Subsets hold the classes (for binary
            labels: the two signs) in equal numbers where possible, and for one seed a smaller
            subset is part of a larger one.
        test_size: test examples to keep, in the same way.
        normalization: `standard` (mean 0, variance 1 over all pixels), `unit` (from 0 to 1),
            `per_feature` (each pixel by itself) or `none` (raw values).
        labels: `classes` (int32), `one_hot` (float32), `binary` (-1 for the first half of the
            classes, +1 for the rest) or `binary:a,b` (only classes a and b, as -1 and +1).
        flatten: whether images become rows `(n, features)` instead of
            `(n, height, width, channels)`.
        data_dir: folder of the sets that are read from files.
        seed: seed of the subsets, not negative. The split into training and test never changes.
        verify_checksum: whether to insist on the published content.

    Returns:
        The data set, inputs in float32.

    Raises:
        ValueError: an argument is not one of the above, or more examples are asked for than there
            are.
        FileNotFoundError: a file is missing; the message says which, where and how to get it.
        ImportError: the package that ships the data is missing.
        DataError: a file is corrupt, truncated or not the published one.

    Examples:
        >>> from driftlab import data
        >>> digits = data.load("digits", train_size=500, flatten=True)
        >>> digits.train.inputs.shape, digits.test.inputs.shape
        ((500, 64), (360, 64))
    """
    # Everything that can be wrong about the arguments is said before a file is opened.
    if name not in names():
        raise ValueError(f"there is no data set {name!r}: {nearest(name, names())}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization={normalization!r} is not known; choose from {', '.join(NORMALIZATIONS)}"
        )
    if seed < 0:
        raise ValueError(f"seed={seed} is negative")
    source = _source(name, data_dir, verify_checksum)
    affine = fit_normalization(np.asarray(source.train.inputs), source.maximum, normalization)
    parts = {}
    for stream, (part, size) in enumerate([("train", train_size), ("test", test_size)]):
        batch = source.train if part == "train" else source.test
        parts[part], num_classes = _prepare(
            batch,
            size,
            labels=labels,
            num_classes=source.num_classes,
            affine=affine,
            flatten=flatten,
            seed=(seed, stream),
            what=(name, part),
        )
    return Dataset(name, parts["train"], parts["test"], num_classes)


def _source(name: str, data_dir: str | os.PathLike[str] | None, verify_checksum: bool) -> Source:
    """Loads the raw data set."""
    if name in _EMBEDDED:
        return _EMBEDDED[name](verify_checksum=verify_checksum)
    return _IN_FILES[name](data_dir, verify_checksum=verify_checksum)


def _prepare(
    batch: Batch,
    size: int | None,
    *,
    labels: str,
    num_classes: int,
    affine: Normalization,
    flatten: bool,
    seed: tuple[int, int],
    what: tuple[str, str],
) -> tuple[Batch, int]:
    """Encodes, subsets and normalises one part, and returns it with the number of targets."""
    encoded = encode_labels(np.asarray(batch.targets), num_classes, labels)
    images, targets = np.asarray(batch.inputs)[encoded.keep], encoded.targets
    if size is not None:
        name, part = what
        if not 0 < size <= len(images):
            raise ValueError(
                f"{part}_size={size}, but the {part} part of {name!r} with labels={labels!r} has "
                f"{len(images)} examples: choose from 1 to {len(images)}"
            )
        chosen = balanced_subset(encoded.groups, size, seed)
        images, targets = images[chosen], targets[chosen]
    inputs = apply_normalization(images, affine)
    if flatten:
        inputs = inputs.reshape(len(inputs), int(np.prod(inputs.shape[1:])))
    return Batch(inputs, targets), encoded.num_classes
