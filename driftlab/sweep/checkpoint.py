"""Checkpoints of a sweep's lanes, by orbax: written whole or not at all."""

import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from driftlab.sweep.strategy import tree_bytes

CHECKPOINTS, FINAL = "checkpoints", "final"


class Checkpoints:
    """The checkpoints of one block of lanes: the newest record's, then the final parameters.

    A block's lanes are stored in the order of the grid whatever chunks or devices ran them. Orbax
    writes to a temporary name and renames.

    Args:
      folder: the run's folder.
      block: the block's name.
    """

    def __init__(self, folder: Path, block: str):
        import orbax.checkpoint as ocp

        self.folder = (folder / CHECKPOINTS / block).absolute()
        self._checkpointer = ocp.StandardCheckpointer()

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends orbax's background threads."""
        self._checkpointer.close()

    def save(self, record: int, width: int, lanes: PyTree) -> None:
        """Stores the lanes as they stand before `record`, then drops older checkpoints.

        Args:
          record: the next record to make.
          width: the chunk width they run at.
          lanes: NumPy arrays with a leading axis of lanes.
        """
        self._save(f"record-{record:08d}", {"width": np.asarray(width), "lanes": lanes})

    def finish(self, lanes: np.ndarray, params: PyTree) -> None:
        """Stores the lanes' final parameters; the block's other checkpoints are dropped.

        Args:
          lanes: lane numbers, `(n,)`.
          params: NumPy arrays with a leading axis of lanes.
        """
        self._save(FINAL, {"lanes": lanes, "params": params})

    def restore(self, template: PyTree) -> tuple[int, int, PyTree] | None:
        """The newest checkpoint.

        Args:
          template: NumPy arrays of the lanes' shapes and types.

        Returns:
          `(record, width, lanes)`, or None where there is no checkpoint.
        """
        # A save that was killed leaves a folder with a longer name.
        names = sorted(p.name for p in self._entries() if re.fullmatch(r"record-\d+", p.name))
        if not names:
            return None
        saved = self._checkpointer.restore(
            self.folder / names[-1], {"width": np.asarray(0), "lanes": template}
        )
        record = int(names[-1].removeprefix("record-"))
        return record, int(saved["width"]), jax.tree.map(np.array, saved["lanes"])

    def _save(self, name: str, tree: PyTree) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.folder).free, tree_bytes(tree)
        if free < needed:
            raise OSError(
                f"checkpoint {name} needs {needed / 2**20:.1f} MiB, the disk has "
                f"{free / 2**20:.1f} MiB left"
            )
        # Orbax logs a failed write with its traceback, then raises; the exception is enough.
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            self._checkpointer.save(self.folder / name, tree, force=True)
            self._checkpointer.wait_until_finished()
        except ValueError as error:
            if "os_error_code" not in str(error):
                raise
            reason = str(error).rsplit(": ", 1)[-1]  # tensorstore's
            raise OSError(f"checkpoint {name}: {reason}") from error
        finally:
            logger.setLevel(level)
        for path in self._entries():
            if path.name != name:
                shutil.rmtree(path)

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if path.is_dir()]


def block_name(point: int, lanes: np.ndarray) -> str:
    """The name of a block, which says what it holds: another division finds no checkpoint of it.

    Args:
      point: the static point's number.
      lanes: its lane numbers, `(n,)`.

    Returns:
      The name; names sort as the grid does.
    """
    return f"point-{point:04d}-lanes-{lanes[0]:07d}-{lanes[-1]:07d}"


def is_finished(folder: Path, block: str) -> bool:
    """Whether a block's final parameters are on disk.

    Args:
      folder: the run's folder.
      block: the block's name.
    """
    return (folder / CHECKPOINTS / block / FINAL).exists()


def final_params(folder: Path | str, point: int = 0) -> tuple[np.ndarray, PyTree]:
    """The final parameters of a static point's lanes.

    Args:
      folder: the run's folder.
      point: the static point's number, in the order of `Grid.static_points`.

    Returns:
      `(lanes, params)`: lane numbers in the grid's order (the last axis fastest; all of them, but
      for a shard's folder), and the parameters with a leading axis of those lanes, in dicts and
      lists where the model had other containers. A lane with a verdict has those of its last
      good record.

    Raises:
      FileNotFoundError: if the run holds none.
    """
    import orbax.checkpoint as ocp

    pattern = f"point-{point:04d}-*/{FINAL}"
    paths = sorted((Path(folder) / CHECKPOINTS).absolute().glob(pattern))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no final parameters of static point {point}; has the sweep finished?"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        blocks = [checkpointer.restore(path) for path in paths]
    lanes = np.concatenate([block["lanes"] for block in blocks])
    order = np.argsort(lanes)
    params = jax.tree.map(
        lambda *parts: np.concatenate(parts)[order], *(block["params"] for block in blocks)
    )
    return lanes[order], params
