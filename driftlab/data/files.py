"""Finding the files of a data set, reading them, and making sure that they are the right ones."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from driftlab.data.dataset import DataError

ENVIRONMENT_VARIABLE = "DRIFTLAB_DATA_DIR"

_GZIP_MAGIC = b"\x1f\x8b"


def candidate_folders(
    data_dir: str | os.PathLike[str] | None, subfolder: str, system: Sequence[str] = ()
) -> list[Path]:
    """Lists the folders where the files of a data set may be, in the order they are tried.

    Args:
        data_dir: the folder the user named, or None.
        subfolder: name of the data set's own folder inside a folder of data sets.
        system: absolute paths where packages of the operating system install the files.

    Returns:
        `data_dir` and its subfolder if it was named (and nothing else: other data than the user
        asked for must not be loaded in silence); otherwise the same two for the folder that the
        environment variable `DRIFTLAB_DATA_DIR` names, then `system`.
    """
    named = data_dir or os.environ.get(ENVIRONMENT_VARIABLE)
    root = Path(named).expanduser() if named else None
    folders = [root, root / subfolder] if root else []
    return folders if data_dir else [*folders, *(Path(folder) for folder in system)]


def find_files(
    name: str,
    filenames: Sequence[str],
    folders: Sequence[Path],
    suffixes: Sequence[str] = ("",),
    *,
    how_to_get: str,
) -> dict[str, Path]:
    """Finds the first folder that holds every file of a data set.

    Args:
        name: the data set's name, for the message.
        filenames: the files that are needed, without an optional suffix.
        folders: where to look, in order.
        suffixes: endings under which a file is accepted, in order of preference.
        how_to_get: one sentence that tells the user how to obtain the files.

    Returns:
        The path of each of `filenames`, all in one folder.

    Raises:
        FileNotFoundError: no folder holds them all; the message lists what is missing where.
    """
    report = []
    for folder in folders:
        found = {}
        for filename in filenames:
            paths = (folder / (filename + suffix) for suffix in suffixes)
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                found[filename] = path
        if len(found) == len(filenames):
            return found
        if not folder.is_dir():
            report.append(f"  {folder}: no such folder")
        else:
            missing = [filename for filename in filenames if filename not in found]
            report.append(f"  {folder}: without {', '.join(missing)}")
    endings = " or ".join(f"'{suffix}'" for suffix in suffixes if suffix)
    optional = f" (each may end in {endings})" if endings else ""
    looked = "\n".join(report) or f"  nowhere: no data_dir was given, {ENVIRONMENT_VARIABLE} unset"
    raise FileNotFoundError(
        f"The data set {name!r} needs the files {', '.join(filenames)}{optional}. "
        f"Looked in:\n{looked}\n{how_to_get}"
    )


def read_bytes(path: Path) -> bytes:
    """Reads a file, decompressing it when its content is gzip, whatever its name ends in.

    Args:
        path: the file.

    Returns:
        The decompressed content.

    Raises:
        DataError: the compressed stream is corrupt or ends early.
    """
    content = path.read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip stream is truncated or corrupt ({len(content)} compressed bytes; "
            f"{error}). Fetch the file again."
        ) from error


def check_sha256(content: bytes, expected: str, where: str | os.PathLike[str]) -> None:
    """Compares the SHA-256 digest of some content with the published one.

    Args:
        content: decompressed bytes.
        expected: hexadecimal digest.
        where: the file or array the content comes from, for the message.

    Raises:
        DataError: the digests differ; the message holds both.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{where}: SHA-256 of the decompressed content is {found}, expected {expected}. "
            "The file is corrupt, or of another data set with the same layout."
        )


def read_verified(
    paths: Mapping[str, Path], checksums: Mapping[str, str] | None
) -> dict[str, bytes]:
    """Reads several files and checks each against its published digest.

    Args:
        paths: where each file is.
        checksums: SHA-256 of each file's decompressed content, or None to check nothing.

    Returns:
        The decompressed content of each file.

    Raises:
        DataError: a file is corrupt, truncated or not the published one.
    """
    contents = {}
    for filename, path in paths.items():
        contents[filename] = read_bytes(path)
        if checksums is not None:
            check_sha256(contents[filename], checksums[filename], path)
    return contents
