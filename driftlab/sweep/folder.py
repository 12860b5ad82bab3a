"""A run's folder: what was asked for, who is writing, how far it came."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

CONFIG, PROGRESS, SUMMARY, LOCK = "config.json", "progress.json", "summary.json", ".lock"
RUNNING, INTERRUPTED, FINISHED = "running", "interrupted", "finished"
_VERSIONS = ("driftlab", "jax", "jaxlib", "optax", "flax", "numpy", "orbax-checkpoint", "zarr")


class FolderError(ValueError):
    """A run's folder that cannot be used, and what to do about it."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON to a temporary name beside the file, then renames.

    Args:
      path: the file to create or replace.
      content: what it holds.
    """
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run's folder.

    Args:
      path: the file.

    Returns:
      Its content.

    Raises:
      FolderError: if it is not JSON.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        content = error
    if not isinstance(content, dict) or not isinstance(content.get("run", {}), dict):
        raise FolderError(
            f"{path} is not the JSON that a run writes ({str(content)[:80]}); the folder is "
            "damaged, use another one."
        )
    return content


@contextlib.contextmanager
def opened(folder: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """Opens a folder for writing a run, or refuses before anything is changed.

    A folder that holds the same run is continued; the lock is the operating system's, so a
    killed process leaves none behind.

    Args:
      folder: the run's folder, created if missing.
      identity: what decides the run's numbers; a folder with another one is refused.

    Yields:
      The folder.

    Raises:
      FolderError: if the folder cannot be written, holds something else, holds a run of another
        config (the differing fields are named), or is in use by another process.
    """
    identity = json.loads(json.dumps(identity, default=str))
    refuse_unusable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderError(
                f"another process is writing in {folder}; wait for it or use another folder."
            ) from None
        for leftover in folder.glob("*.partial-*"):  # of a process that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        config = folder / CONFIG
        if config.exists():
            stored = read_json(config).get("run")
            if stored is None:
                raise FolderError(f"{config} names no run; the folder is damaged, use another one.")
            _refuse_other(folder, stored, identity)
        else:
            write_json(config, {"run": identity, "environment": environment()})
        yield folder


def refuse_unusable(folder: Path) -> None:
    """Refuses a folder that no run can be written in; changes nothing.

    Args:
      folder: the run's folder, there or not.

    Raises:
      FolderError: if it cannot be written, or holds something that is not a run.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise FolderError(
            f"cannot write in the output folder {folder} ({existing} is not a writable folder); "
            "choose another one."
        )
    if folder.exists() and not (folder / CONFIG).exists():
        foreign = sorted(path.name for path in folder.iterdir() if not _ours(path.name))
        if foreign:
            raise FolderError(
                f"the output folder {folder} is not empty and holds no run ({foreign[:5]}); use "
                "an empty or new folder."
            )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two nested configs differ.

    Args:
      ours: one config.
      theirs: the other.
      prefix: put before every field's name.

    Returns:
      One "field: ours / theirs" a difference.
    """
    found = []
    for name in sorted(set(ours) | set(theirs)):
        a, b = ours.get(name, "(unset)"), theirs.get(name, "(unset)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {_short(a)} / {_short(b)}")
    return found


def environment() -> dict[str, Any]:
    """What a run should say of where it ran: versions, devices, command, revision."""
    import jax

    return {
        "versions": {"python": platform.python_version(), **_installed()},
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "command": sys.argv,
        "git": _git_revision(),
        "platform": platform.platform(),
    }


def _installed() -> dict[str, str]:
    versions = {}
    for name in _VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git_revision() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    return None


def _refuse_other(folder: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    changed = differences(stored, identity)
    if changed:
        raise FolderError(
            f"{folder} holds a run of another config. Differing fields (there / here): "
            + "; ".join(changed)
            + ". Repeat that config to continue it, or use another folder."
        )


def _ours(name: str) -> bool:
    # Shards of one sweep may share a folder, one sub-folder each.
    return name == LOCK or name.startswith("shard-") or ".partial-" in name


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"
