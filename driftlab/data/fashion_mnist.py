"""Fashion-MNIST from its four IDX files, compressed or not."""

import os
from collections.abc import Mapping
from pathlib import Path

from driftlab.data.dataset import Batch, DataError, Source, image_batch
from driftlab.data.files import candidate_folders, find_files, read_verified
from driftlab.data.idx import parse_idx

NUM_CLASSES = 10

SYSTEM_FOLDERS = ("/usr/share/datasets/fashion-mnist",)

# SHA-256 of the decompressed files, so that compressed and plain copies are checked alike.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

HOW_TO_GET = (
    "On Debian and Ubuntu `apt-get install dataset-fashion-mnist` installs them where they are "
    "found by themselves. Otherwise put the files of "
    "the Fashion-MNIST repository of Zalando Research in a folder and name it with --data_dir, "
    "data_dir= or the environment variable DRIFTLAB_DATA_DIR."
)


def load_fashion_mnist(
    data_dir: str | os.PathLike[str] | None = None, *, verify_checksum: bool = True
) -> Source:
    """Loads 60000 training and 10000 test images of clothes, 28 x 28 pixels from 0 to 255.

    Args:
        data_dir: folder with the files, or with a folder `fashion_mnist` that has them. The folder
            in the environment variable `DRIFTLAB_DATA_DIR` and the Debian package's are tried next.
        verify_checksum: whether to insist on the published files. False allows files of the same
            layout with other content, for example a handful of images in a test.

    Returns:
        The raw data set.

    Raises:
        FileNotFoundError: a file is in none of the folders.
        DataError: a file is corrupt, truncated or not the published one.

    Source: Xiao, Rasul and Vollgraf, 2017.
    """
    folders = candidate_folders(data_dir, "fashion_mnist", SYSTEM_FOLDERS)
    # .gz second: a plain copy beside the compressed one saves the second it takes to decompress.
    paths = find_files(
        "fashion_mnist", tuple(CHECKSUMS), folders, ("", ".gz"), how_to_get=HOW_TO_GET
    )
    contents = read_verified(paths, CHECKSUMS if verify_checksum else None)
    train = _part(contents, paths, "train")
    test = _part(contents, paths, "t10k")
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"{paths['t10k-images-idx3-ubyte']}: images of shape {test.inputs.shape[1:3]}, but the "
            f"training images have shape {train.inputs.shape[1:3]}."
        )
    return Source("fashion_mnist", train, test, num_classes=NUM_CLASSES, maximum=255)


def _part(contents: Mapping[str, bytes], paths: Mapping[str, Path], prefix: str) -> Batch:
    """Parses the images and labels of one part and checks that they fit each other."""
    images_name = f"{prefix}-images-idx3-ubyte"
    labels_name = f"{prefix}-labels-idx1-ubyte"
    images = parse_idx(contents[images_name], 3, paths[images_name])
    labels = parse_idx(contents[labels_name], 1, paths[labels_name])
    if len(images) != len(labels):
        raise DataError(
            f"{paths[labels_name]}: expected {len(images)} labels, one for each image in "
            f"{paths[images_name].name}, found {len(labels)}."
        )
    if len(images) == 0:
        raise DataError(f"{paths[images_name]}: holds no images.")
    if labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{paths[labels_name]}: labels must be below {NUM_CLASSES}, found {labels.max()}."
        )
    return image_batch(images[..., None], labels)
