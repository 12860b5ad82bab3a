"""What a running sweep has on disk: records, checkpoints and status, in an order that survives.

Records are written before the checkpoint that follows them, so that whatever moment a run is
killed at, the newest checkpoint's records are all there; later ones are written again, with the
same bits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from driftlab.sweep.checkpoint import Checkpoints, is_finished
from driftlab.sweep.folder import FINISHED, INTERRUPTED, PROGRESS, RUNNING, read_json, write_json
from driftlab.sweep.results import MetricsStore, Records, read_zarr


class Journal:
    """The disk's side of a run.

    Args:
      folder: the run's folder.
      records: what the run records; filled from the folder if it holds an interrupted run.
    """

    def __init__(self, folder: Path, records: Records):
        self.folder, self._records = folder, records
        self._store = MetricsStore(folder)
        self._unwritten = 0  # the first record of the block that is not on disk
        if self._store.exists():
            records.load(read_zarr(self._store.path))

    @property
    def wall_seconds(self) -> float:
        """Seconds that earlier calls spent on this run."""
        path = self.folder / PROGRESS
        return read_json(path).get("wall_seconds", 0.0) if path.exists() else 0.0

    def open_block(self, block: str, template: PyTree) -> tuple[int, int, PyTree] | None:
        """Starts on a block of lanes.

        Args:
          block: the block's name.
          template: NumPy arrays of the lanes' shapes and types.

        Returns:
          `(record, width, lanes)` of its newest checkpoint, if there is one.
        """
        with Checkpoints(self.folder, block) as checkpoints:
            saved = checkpoints.restore(template)
        self._unwritten = saved[0] if saved else 0
        return saved

    def is_finished(self, block: str) -> bool:
        """Whether a block has run to its end.

        Args:
          block: the block's name.
        """
        return is_finished(self.folder, block)

    def checkpoint(
        self,
        block: str,
        point: int,
        record: int,
        width: int,
        lanes: PyTree,
        status: Mapping[str, Any],
    ) -> None:
        """Puts everything up to a record on disk.

        Args:
          block: the block's name.
          point: its static point.
          record: the next record to make.
          width: the chunk width its lanes run at.
          lanes: its lanes, NumPy arrays.
          status: wall time and the like.
        """
        self._store.write(self._records, self._unwritten, point)
        with Checkpoints(self.folder, block) as checkpoints:
            checkpoints.save(record, width, lanes)
        self._status(RUNNING, status)
        self._unwritten = record

    def close_block(
        self, block: str, point: int, lanes: np.ndarray, params: PyTree, status: Mapping[str, Any]
    ) -> None:
        """Puts a block's end on disk: all its records and its final parameters.

        Args:
          block: the block's name.
          point: its static point.
          lanes: its lane numbers, `(n,)`.
          params: its lanes' final parameters, NumPy arrays.
          status: wall time and the like.
        """
        self._store.write(self._records, self._unwritten, point)
        with Checkpoints(self.folder, block) as checkpoints:
            checkpoints.finish(lanes, params)
        self._status(RUNNING, status)

    def interrupt(self, status: Mapping[str, Any]) -> None:
        """Marks the run as one to be continued.

        Args:
          status: wall time and the like.
        """
        self._status(INTERRUPTED, status)

    def finish(self, status: Mapping[str, Any]) -> None:
        """Marks the run as finished.

        Args:
          status: wall time and the like.
        """
        self._status(FINISHED, status)

    def _status(self, status: str, more: Mapping[str, Any]) -> None:
        write_json(self.folder / PROGRESS, {"status": status, **more})
