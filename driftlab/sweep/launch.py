"""Shards of a sweep: which chunks each takes, and how their results are joined.

A sweep is a deterministic list of chunks. Shard k of n takes every n-th of them and writes a
folder of its own, so shards need nothing of each other: any launcher that starts the same command
with another `--shard` will do.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from driftlab.sweep.checkpoint import CHECKPOINTS, FINAL
from driftlab.sweep.folder import (
    CONFIG,
    FINISHED,
    PROGRESS,
    FolderError,
    differences,
    opened,
    read_json,
    write_json,
)
from driftlab.sweep.grid import Grid
from driftlab.sweep.results import METRICS, read_zarr, write_zarr

if TYPE_CHECKING:
    import xarray


class Shard(NamedTuple):
    """Share k of n, `1 <= k <= n` (as `parse_shard` makes sure)."""

    index: int
    count: int

    def __str__(self) -> str:
        """As the flag takes it: `k/n`."""
        return f"{self.index}/{self.count}"

    @property
    def folder_name(self) -> str:
        """The shard's sub-folder when shards share a folder."""
        return f"shard-{self.index}-of-{self.count}"


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """Reads `k/n`.

    Args:
      text: such as "2/8".

    Returns:
      The shard.

    Raises:
      ValueError: if the text is not two integers with 1 <= k <= n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"a shard is k/n with 1 <= k <= n, such as 2/8; got {text!r}.")
    return Shard(int(match[1]), int(match[2]))


def shard_lanes(grid: Grid, widths: Sequence[int], shard: Shard) -> list[tuple[int, np.ndarray]]:
    """The lanes a shard runs.

    Args:
      grid: the sweep's grid.
      widths: lanes a chunk, by static point.
      shard: which share.

    Returns:
      `(static point, its lane numbers)` for every static point of which the shard runs any.

    Raises:
      ValueError: if there are fewer chunks than shards.
    """
    chunks = [
        (point, np.arange(start, min(start + width, grid.num_lanes)))
        for point, width in enumerate(widths)
        for start in range(0, grid.num_lanes, width)
    ]
    if len(chunks) < shard.count:
        raise ValueError(
            f"the sweep has {len(chunks)} chunks of lanes, too few for {shard.count} shards; "
            "use --lanes=chunk:k with a smaller k, or fewer shards."
        )
    mine: dict[int, list[np.ndarray]] = {}
    for point, lanes in chunks[shard.index - 1 :: shard.count]:
        mine.setdefault(point, []).append(lanes)
    return [(point, np.concatenate(lanes)) for point, lanes in mine.items()]


def merge(folders: Sequence[Path | str], out: Path | str) -> "xarray.Dataset":
    """Joins the finished shards of one sweep.

    Args:
      folders: the shards' folders, or folders that hold `shard-k-of-n` sub-folders.
      out: the folder of the joined run.

    Returns:
      The joined dataset; `out` holds it as a finished run.

    Raises:
      FolderError: if a shard is missing or unfinished (named), if there is none, or if they are
        not shards of one sweep.
    """
    parts = {}
    for path in _shard_folders(folders):
        config = read_json(path / CONFIG)
        parts[parse_shard(config["run"]["shard"])] = (path, config)
    if not parts:
        raise FolderError(f"no shard's run in {[str(folder) for folder in folders]}.")
    first_path, first = next(iter(parts.values()))
    for path, config in parts.values():
        changed = differences({**first["run"], "shard": None}, {**config["run"], "shard": None})
        count = parse_shard(config["run"]["shard"]).count
        if count != parse_shard(first["run"]["shard"]).count:
            changed.append("the number of shards")
        if changed:
            raise FolderError(
                f"{first_path} and {path} are not shards of one sweep: {'; '.join(changed)}."
            )
    count = next(iter(parts)).count
    missing = [str(Shard(k, count)) for k in range(1, count + 1) if Shard(k, count) not in parts]
    unfinished = [
        f"{shard} in {path}" for shard, (path, _) in parts.items() if not is_finished(path)
    ]
    if missing or unfinished:
        raise FolderError(
            f"cannot merge: missing shards: {missing or 'none'}; unfinished: "
            f"{unfinished or 'none'}. Run them (again), then merge."
        )
    datasets = [read_zarr(path / METRICS) for _, (path, _) in sorted(parts.items())]
    merged = datasets[0]
    for dataset in datasets[1:]:
        # Every lane belongs to one shard: where it was not run it is "missing".
        ran = dataset["verdict"] != "missing"
        merged = merged.assign(
            {
                name: dataset[name].where(ran, merged[name]).astype(merged[name].dtype)
                for name in merged.data_vars
            }
        ).assign_attrs(merged.attrs)
    run = {**first["run"], "shard": str(WHOLE)}
    merged.attrs["config"] = json.dumps(run)
    with opened(Path(out), run) as folder:
        if is_finished(folder):
            return read_zarr(folder / METRICS)
        write_zarr(merged, folder / METRICS)
        for path, _ in parts.values():
            for block in (path / CHECKPOINTS).glob(f"*/{FINAL}"):
                target = folder / CHECKPOINTS / block.parent.name / FINAL
                temporary = target.with_name(f"{FINAL}.partial")
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.copytree(block, temporary)
                temporary.rename(target)
        progress = [read_json(path / PROGRESS) for path, _ in parts.values()]
        status = {
            "status": FINISHED,
            "merged_from": count,
            "wall_seconds": sum(part["wall_seconds"] for part in progress),
            "compile_seconds": sum(part["compile_seconds"] for part in progress),
            "call_bytes": max(part["call_bytes"] for part in progress),
        }
        write_json(folder / PROGRESS, status)
    return merged


def is_finished(folder: Path) -> bool:
    """Whether a run's folder holds a finished run.

    Args:
      folder: the folder.
    """
    progress = folder / PROGRESS
    return progress.exists() and read_json(progress).get("status") == FINISHED


def _shard_folders(folders: Sequence[Path | str]) -> list[Path]:
    found = []
    for folder in map(Path, folders):
        inside = sorted(folder.glob(f"shard-*/{CONFIG}"))
        if inside:
            found += [path.parent for path in inside]
        elif (folder / CONFIG).exists():
            found.append(folder)
        else:
            raise FolderError(f"{folder} holds no run (no {CONFIG}, no shard-k-of-n folder).")
    return found
