import numpy as np
import pytest

from driftlab.data import DataError, cifar10, load
from driftlab.data.cifar10 import RECORD_BYTES, TRAIN_FILES, load_cifar10


def records(labels, seed):
    pixels = np.random.RandomState(seed).randint(0, 256, (len(labels), 3072))
    return np.concatenate([np.reshape(labels, (-1, 1)), pixels], axis=1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DRIFTLAB_DATA_DIR", raising=False)
    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    for number, name in enumerate(TRAIN_FILES):
        (inside / name).write_bytes(records([0, 5, number], number).tobytes())
    (inside / "test_batch.bin").write_bytes(records([9, 8], 9).tobytes())
    return inside


def test_pixels_are_channels_last(folder):
    source = load_cifar10(folder.parent, verify_checksum=False)
    assert source.train.inputs.shape == (15, 32, 32, 3)
    assert source.train.targets.tolist() == [0, 5, 0, 0, 5, 1, 0, 5, 2, 0, 5, 3, 0, 5, 4]
    raw = records([9, 8], 9)[1, 1:]
    image = source.test.inputs[1]
    assert image[0, 0].tolist() == [raw[0], raw[1024], raw[2048]]
    assert image[2, 7, 1] == raw[1024 + 2 * 32 + 7]


def test_the_folder_itself_is_found_as_well(folder):
    dataset = load("cifar10", data_dir=folder, verify_checksum=False, normalization="none")
    assert dataset.test.inputs.shape == (2, 32, 32, 3)
    assert dataset.test.inputs.dtype == np.float32


def test_official_size_is_insisted_on(folder):
    with pytest.raises(DataError, match=r"data_batch_1\.bin: expected 30730000 bytes.*found 9219"):
        load_cifar10(folder)


def test_official_class_counts_are_insisted_on(folder, monkeypatch):
    monkeypatch.setattr(cifar10, "OFFICIAL_RECORDS", 3)
    with pytest.raises(DataError, match=r"each class, found \[6, 1, 1, 1, 1, 5, 0, 0, 0, 0\]"):
        load_cifar10(folder)


def test_truncated_file(folder):
    path = folder / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"data_batch_4\.bin.*{RECORD_BYTES}.*found 9218"):
        load_cifar10(folder, verify_checksum=False)


def test_labels_out_of_range(folder):
    (folder / "test_batch.bin").write_bytes(records([10], 0).tobytes())
    with pytest.raises(DataError, match=r"test_batch\.bin: labels must be below 10, found 10"):
        load_cifar10(folder, verify_checksum=False)


def test_missing_file(folder):
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"without data_batch_2\.bin\n(.|\n)*binary"):
        load("cifar10", data_dir=folder)
