"""CIFAR-10 from the files of its binary version."""

import os
from pathlib import Path

import numpy as np

from driftlab.data.dataset import Batch, DataError, Source, image_batch
from driftlab.data.files import candidate_folders, find_files, read_bytes

NUM_CLASSES = 10

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)

# A record is one label, then 32 x 32 red, green and blue values, each channel row by row.
RECORD_BYTES = 1 + 3 * 32 * 32
OFFICIAL_RECORDS = 10_000

HOW_TO_GET = (
    "Unpack the binary version, cifar-10-binary.tar.gz of Krizhevsky's CIFAR-10 page at the "
    "University of Toronto, in a folder and name that folder with --data_dir, data_dir= or the "
    "environment variable DRIFTLAB_DATA_DIR."
)


def load_cifar10(
    data_dir: str | os.PathLike[str] | None = None, *, verify_checksum: bool = True
) -> Source:
    """Loads 50000 training and 10000 test colour images, 32 x 32 pixels from 0 to 255.

    Args:
        data_dir: folder with the `.bin` files, or with the folder `cifar-10-batches-bin` of the
            archive. The folder in the environment variable `DRIFTLAB_DATA_DIR` is tried next.
        verify_checksum: whether to insist on the published layout. No digest of the single files
            is published, so this checks what is: 10000 records a file, and 5000 training and 1000
            test images of each class. False allows any number of records.

    Returns:
        The raw data set, channels last.

    Raises:
        FileNotFoundError: a file is in none of the folders.
        DataError: a file is truncated, or has labels or counts that CIFAR-10 does not.

    Source: Krizhevsky, 2009.
    """
    folders = candidate_folders(data_dir, "cifar-10-batches-bin")
    paths = find_files("cifar10", TRAIN_FILES + TEST_FILES, folders, how_to_get=HOW_TO_GET)
    train = _part([paths[name] for name in TRAIN_FILES], verify_checksum)
    test = _part([paths[name] for name in TEST_FILES], verify_checksum)
    return Source("cifar10", train, test, num_classes=NUM_CLASSES, maximum=255)


def _part(paths: list[Path], verify: bool) -> Batch:
    """Reads the files of one part and joins them."""
    records = np.concatenate([_records(path, verify) for path in paths])
    labels = records[:, 0]
    if verify:
        counts = np.bincount(labels, minlength=NUM_CLASSES)
        expected = len(records) // NUM_CLASSES
        if not np.all(counts == expected):
            raise DataError(
                f"{', '.join(map(str, paths))}: expected {expected} images of each class, found "
                f"{counts.tolist()}. The files are not those of CIFAR-10."
            )
    channels_first = records[:, 1:].reshape(-1, 3, 32, 32)
    return image_batch(channels_first.transpose(0, 2, 3, 1), labels)


def _records(path: Path, verify: bool) -> np.ndarray:
    """Reads one file as an array of records, `(n, 3073)` bytes."""
    content = read_bytes(path)
    if verify and len(content) != OFFICIAL_RECORDS * RECORD_BYTES:
        raise DataError(
            f"{path}: expected {OFFICIAL_RECORDS * RECORD_BYTES} bytes ({OFFICIAL_RECORDS} records "
            f"of {RECORD_BYTES}), found {len(content)}. The file is truncated or another one."
        )
    if not content or len(content) % RECORD_BYTES:
        raise DataError(
            f"{path}: expected a positive multiple of {RECORD_BYTES} bytes (one record), found "
            f"{len(content)}. The file is truncated or of the Python version of CIFAR-10."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    if records[:, 0].max() >= NUM_CLASSES:
        raise DataError(
            f"{path}: labels must be below {NUM_CLASSES}, found {records[:, 0].max()}. CIFAR-100 "
            "files have two label bytes a record and are not read."
        )
    return records
