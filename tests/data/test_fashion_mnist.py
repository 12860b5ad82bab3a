import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from driftlab.data import DataError, fashion_mnist, load
from driftlab.data.fashion_mnist import CHECKSUMS, SYSTEM_FOLDERS, load_fashion_mnist
from driftlab.data.files import candidate_folders, find_files

INSTALLED = Path(SYSTEM_FOLDERS[0])

IMAGES = np.random.RandomState(0).randint(0, 256, (6, 4, 5)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 9, 1, 0], np.uint8)


def idx(array):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture(autouse=True)
def _no_installed_files(monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDERS", ())
    monkeypatch.delenv("DRIFTLAB_DATA_DIR", raising=False)


@pytest.fixture
def folder(tmp_path):
    contents = {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES)),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS)),
        "t10k-images-idx3-ubyte": idx(IMAGES[:2]),
        "t10k-labels-idx1-ubyte": idx(LABELS[:2]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_reads_compressed_and_plain_files(folder):
    source = load_fashion_mnist(folder, verify_checksum=False)
    np.testing.assert_array_equal(source.train.inputs, IMAGES[..., None])
    np.testing.assert_array_equal(source.train.targets, LABELS)
    np.testing.assert_array_equal(source.test.inputs, IMAGES[:2, ..., None])
    assert source.train.targets.dtype == np.int32


def test_looks_in_the_subfolder_and_in_the_environment(folder, monkeypatch):
    inside = folder / "fashion_mnist"
    inside.mkdir()
    for path in list(folder.glob("*ubyte*")):
        path.rename(inside / path.name)
    assert len(load_fashion_mnist(folder, verify_checksum=False).train.targets) == 6
    monkeypatch.setenv("DRIFTLAB_DATA_DIR", str(folder))
    assert len(load_fashion_mnist(verify_checksum=False).train.targets) == 6


def test_missing_files_are_named_with_folders_and_a_remedy(folder, monkeypatch):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setenv("DRIFTLAB_DATA_DIR", "/nowhere/at/all")
    with pytest.raises(FileNotFoundError) as raised:
        load_fashion_mnist(folder)
    message = str(raised.value)
    assert f"{folder}: without t10k-labels-idx1-ubyte\n" in message
    assert f"{folder / 'fashion_mnist'}: no such folder" in message
    assert "apt-get install dataset-fashion-mnist" in message
    # A folder that was named is not passed over in silence for another one.
    assert "/nowhere/at/all" not in message
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all/fashion_mnist: no such folder"):
        find_files(
            "fashion_mnist", ["nothing"], candidate_folders(None, "fashion_mnist"), how_to_get=""
        )


def test_other_content_of_the_same_layout_fails_the_checksum(folder):
    with pytest.raises(DataError, match="SHA-256") as raised:
        load_fashion_mnist(folder)
    message = str(raised.value)
    assert str(folder / "train-images-idx3-ubyte.gz") in message
    assert hashlib.sha256(idx(IMAGES)).hexdigest() in message
    assert CHECKSUMS["train-images-idx3-ubyte"] in message


def test_truncated_gzip(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: the gzip stream"):
        load_fashion_mnist(folder, verify_checksum=False)


def test_corrupt_gzip(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the checksum of the gzip trailer
    path.write_bytes(content)
    with pytest.raises(DataError, match="train-labels.*truncated or corrupt"):
        load_fashion_mnist(folder, verify_checksum=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3-ubyte", idx(IMAGES[:2])[:-3], "expected 56 bytes .*found 53"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[:2])[:7], "header of 16 bytes, found 7"),
        ("t10k-images-idx3-ubyte", idx(LABELS) + b"12345678", "0x00000803.*found 0x00000801"),
        ("t10k-labels-idx1-ubyte", idx(LABELS[:3]), "expected 2 labels.*found 3"),
        ("t10k-labels-idx1-ubyte", idx(LABELS[:2] + 9), "below 10, found 10"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[:2, :3]), r"\(3, 5\).*\(4, 5\)"),
    ],
)
def test_broken_files_are_named_with_what_is_wrong(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        load_fashion_mnist(folder, verify_checksum=False)


def test_load_passes_the_folder_on(folder):
    dataset = load(
        "fashion_mnist",
        data_dir=folder,
        verify_checksum=False,
        flatten=True,
        labels="binary:0,1",
        train_size=2,
        normalization="unit",
    )
    assert dataset.train.inputs.shape == (2, 20)
    assert sorted(dataset.train.targets) == [-1, 1]
    np.testing.assert_allclose(dataset.test.inputs, IMAGES[:2].reshape(2, 20) / 255, rtol=1e-6)


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_installed_files_are_the_published_ones():
    source = load_fashion_mnist(INSTALLED)
    assert source.train.inputs.shape == (60000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(source.train.targets), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(source.test.targets), np.full(10, 1000))
    mean = source.train.inputs.mean(dtype=np.float64) / 255
    np.testing.assert_allclose(mean, 0.28604, atol=5e-6)
