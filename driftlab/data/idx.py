"""The IDX format of the MNIST family: a magic number, big-endian sizes, then the values."""

import math
import os
import struct

import numpy as np
from jaxtyping import UInt8

from driftlab.data.dataset import DataError

_UNSIGNED_BYTE = 0x08


def parse_idx(
    content: bytes, num_dimensions: int, where: str | os.PathLike[str]
) -> UInt8[np.ndarray, "..."]:
    """Reads an IDX file of unsigned bytes.

    The file is `0, 0, 0x08, d`, then `d` sizes as big-endian 32-bit integers, then the values in
    row-major order (LeCun, Cortes and Burges, 1998).

    Args:
        content: the decompressed file.
        num_dimensions: the `d` that the file must have: 3 for images, 1 for labels.
        where: the file's path, for messages.

    Returns:
        A read-only uint8 array with `d` axes.

    Raises:
        DataError: the magic number is another one, or the number of bytes does not fit the sizes.
    """
    expected_magic = _UNSIGNED_BYTE << 8 | num_dimensions
    header_bytes = 4 + 4 * num_dimensions
    if len(content) < header_bytes:
        raise DataError(
            f"{where}: expected an IDX header of {header_bytes} bytes, found {len(content)} bytes "
            "in all. The file is truncated."
        )
    magic, *sizes = struct.unpack(f">{1 + num_dimensions}I", content[:header_bytes])
    if magic != expected_magic:
        raise DataError(
            f"{where}: expected the IDX magic number 0x{expected_magic:08x} "
            f"({num_dimensions} axes of unsigned bytes), found 0x{magic:08x}."
        )
    expected_bytes = header_bytes + math.prod(sizes)
    if len(content) != expected_bytes:
        raise DataError(
            f"{where}: expected {expected_bytes} bytes for shape {tuple(sizes)}, found "
            f"{len(content)}. The file is truncated or has something appended."
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(sizes)
