"""The 8 x 8 digits that scikit-learn ships: the data set that is always there."""

from typing import Any

import numpy as np

from driftlab.data.dataset import Source, image_batch
from driftlab.data.files import check_sha256
from driftlab.data.splits import stratified_split

TEST_SIZE = 360

# SHA-256 of the values as unsigned bytes, row by row.
IMAGES_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS_SHA256 = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def load_digits(*, verify_checksum: bool = True) -> Source:
    """Loads 1797 handwritten digits, 8 x 8 pixels with values from 0 to 16.

    The split into 1437 training and 360 test examples is stratified and never changes.

    Args:
        verify_checksum: whether to compare the arrays with the published ones.

    Returns:
        The raw data set.

    Raises:
        DataError: scikit-learn's arrays are not the published ones.

    Source: Alpaydin and Kaynak, 1998 (UCI, optical recognition of handwritten digits, test part).
    """
    # Imported here: scikit-learn takes a second, and most users of this package don't need it.
    from sklearn import datasets

    bunch: Any = datasets.load_digits()
    images = bunch.data.astype(np.uint8)
    labels = bunch.target.astype(np.uint8)
    if verify_checksum:
        check_sha256(images.tobytes(), IMAGES_SHA256, "sklearn.datasets.load_digits().data")
        check_sha256(labels.tobytes(), LABELS_SHA256, "sklearn.datasets.load_digits().target")
    images = images.reshape(-1, 8, 8, 1)
    train, test = stratified_split(labels, TEST_SIZE)
    return Source(
        name="digits",
        train=image_batch(images[train], labels[train]),
        test=image_batch(images[test], labels[test]),
        num_classes=10,
        maximum=16,
    )
