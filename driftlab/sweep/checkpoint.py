"""Checkpoints of a sweep's lanes, by orbax: written whole or not at all."""

import logging
import shutil
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from driftlab.sweep.strategy import tree_bytes

CHECKPOINTS, FINAL = "checkpoints", "final"


class Checkpoints:
    """The checkpoints of one block of lanes: the newest record's, then the final parameters.

    A block's lanes are stored in the order of the grid whatever chunks or devices ran them, so a
    run may resume on another number of devices. Orbax writes to a temporary name and renames.

    Args:
      folder: the run's folder.
      block: the block's number.
    """

    def __init__(self, folder: Path, block: int):
        import orbax.checkpoint as ocp

        self.folder = (folder / CHECKPOINTS / f"block-{block:04d}").absolute()
        self._checkpointer = ocp.StandardCheckpointer()

    def __enter__(self) -> "Checkpoints":
        """The checkpoints themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends orbax's background threads."""
        self._checkpointer.close()

    @property
    def finished(self) -> bool:
        """Whether the block's final parameters are on disk."""
        return (self.folder / FINAL).exists()

    def save(self, record: int, width: int, lanes: PyTree) -> None:
        """Stores the lanes as they stand before `record`, then drops older checkpoints.

        Args:
          record: the next record to make.
          width: the chunk width they run at.
          lanes: NumPy arrays with a leading axis of lanes.
        """
        self._save(f"record-{record:08d}", {"width": np.int64(width), "lanes": lanes})

    def finish(self, params: PyTree) -> None:
        """Stores the lanes' final parameters; the block's other checkpoints are dropped.

        Args:
          params: NumPy arrays with a leading axis of lanes.
        """
        self._save(FINAL, params)

    def restore(self, template: PyTree) -> tuple[int, int, PyTree] | None:
        """The newest checkpoint.

        Args:
          template: NumPy arrays of the lanes' shapes and types.

        Returns:
          `(record, width, lanes)`, or None where there is no checkpoint.
        """
        names = sorted(path.name for path in self._entries() if path.name.startswith("record-"))
        if not names:
            return None
        saved = self._checkpointer.restore(
            self.folder / names[-1], {"width": np.int64(0), "lanes": template}
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
        except ValueError as error:  # tensorstore's, for every failure to write
            reason = str(error).rsplit(": ", 1)[-1]
            raise OSError(f"checkpoint {name}: {reason}") from error
        finally:
            logger.setLevel(level)
        for path in self._entries():
            if path.name != name:
                shutil.rmtree(path)

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if path.is_dir()]


def final_params(folder: Path | str) -> list[PyTree]:
    """The final parameters of a finished run's lanes, block by block.

    Args:
      folder: the run's folder.

    Returns:
      A list of trees with a leading axis of lanes, in the grid's order (static points, then
      lanes, the last axis fastest); a lane with a verdict has those of its last good record.

    Raises:
      FileNotFoundError: if the run holds no final parameters.
    """
    import orbax.checkpoint as ocp

    paths = sorted((Path(folder) / CHECKPOINTS).absolute().glob(f"block-*/{FINAL}"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no final parameters; has the sweep finished?")
    with ocp.StandardCheckpointer() as checkpointer:
        return [checkpointer.restore(path) for path in paths]
