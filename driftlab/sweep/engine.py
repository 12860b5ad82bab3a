"""The sweep's main loop: block after block, segment after segment."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlab.sweep import strategy
from driftlab.sweep.checkpoint import block_name
from driftlab.sweep.fleet import Fleet
from driftlab.sweep.folder import FINISHED
from driftlab.sweep.journal import Journal
from driftlab.sweep.lane import OK, LaneProgram, lane_program
from driftlab.sweep.lanes import Chunks, compile_chunks
from driftlab.sweep.launch import shard_lanes
from driftlab.sweep.plan import Plan, lane_hparams
from driftlab.sweep.progress import Interrupted, Progress, Stop
from driftlab.sweep.results import Records

if TYPE_CHECKING:
    import xarray

_CAPACITY = 128  # records a call can make at most
_SEGMENT_SECONDS = 1.0  # how often progress shows and a request to stop is honoured
_COMPACTIONS = 16  # under vmap, compaction is considered this often: at records fixed in advance


class Engine:
    """One call of `sweep`, after its arguments are checked.

    Args:
      plan: what to run.
      records: where the records go.
      journal: the run's folder, or None.
      checkpoint_seconds: at most this long between checkpoints.
      progress: whether to show progress.
      stop: whether the process was asked to stop.
    """

    def __init__(
        self,
        plan: Plan,
        records: Records,
        journal: Journal | None,
        checkpoint_seconds: float,
        progress: bool,
        stop: Stop,
    ):
        self.plan, self.records, self.journal, self.stop = plan, records, journal, stop
        self.checkpoint_seconds = checkpoint_seconds
        self.num_records = len(plan.schedule.record_steps)
        self.shares = shard_lanes(plan.grid, plan.widths, plan.shard)
        self.num_lanes = sum(len(lanes) for _, lanes in self.shares)
        self.progress = Progress(self.num_lanes * plan.schedule.steps, progress)
        self.started = time.monotonic() - (journal.wall_seconds if journal else 0.0)
        self.compile_seconds = 0.0
        self.call_bytes = 0

    def run(self) -> "xarray.Dataset":
        """Runs, or continues, every block of every static point.

        Returns:
          The result.

        Raises:
          Interrupted: if the process was asked to stop.
        """
        points = list(self.plan.grid.static_points())
        try:
            for point, lanes in self.shares:
                program = lane_program(
                    self.plan.build,
                    points[point],
                    self.plan.measures,
                    self.plan.schedule,
                    self.plan.divergence_factor,
                    min(_CAPACITY, self.num_records),
                )
                compiled: dict[int, Chunks] = {}
                for part in _blocks(lanes, self._block_lanes(point)):
                    if self.journal and self.journal.is_finished(block_name(point, part)):
                        self.progress.skip(len(part) * self.plan.schedule.steps)
                    else:
                        self._stop_if_asked()  # with a block still to run
                        self._run_block(block_name(point, part), point, part, program, compiled)
        finally:
            self.progress.close()
        status = self._status()
        if self.journal:
            self.journal.finish(status)
        dataset = self.records.dataset()
        dataset.attrs |= {"status": FINISHED, **status}
        return dataset

    def _run_block(
        self,
        block: str,
        point: int,
        lanes: np.ndarray,
        program: LaneProgram,
        compiled: dict[int, Chunks],
    ) -> None:
        """Runs some lanes of one static point to the end."""
        plan, width = self.plan, self.plan.widths[point]
        hparams = {name: values[lanes] for name, values in lane_hparams(plan.grid).items()}
        keys = plan.grid.lane_keys(plan.key)
        keys = keys[lanes] if keys.ndim else keys

        def chunks(lanes_together: int) -> Chunks:
            if lanes_together not in compiled:
                began = time.monotonic()
                compiled[lanes_together] = compile_chunks(
                    program, hparams, keys, lanes_together, plan.devices
                )
                self.compile_seconds += time.monotonic() - began
                self.call_bytes = max(self.call_bytes, compiled[lanes_together].call_bytes)
            return compiled[lanes_together]

        fleet = Fleet(chunks(width), hparams, keys, strategy.num_workers(plan.devices))
        try:
            self._advance_block(fleet, block, point, lanes, chunks)
        finally:
            fleet.close()

    def _advance_block(
        self,
        fleet: Fleet,
        block: str,
        point: int,
        lanes: np.ndarray,
        chunks: Callable[[int], Chunks],
    ) -> None:
        plan, records, width = self.plan, self.records, self.plan.widths[point]

        def narrower(alive: int) -> Chunks:
            share = -(-alive // len(plan.devices))
            return chunks(min(width, 1 << (share - 1).bit_length()))

        saved = self.journal.open_block(block, fleet.host) if self.journal else None
        record = 0
        if saved:
            record, saved_width, host = saved
            # Under vmap the width decides the bits, so it is the one the run had.
            fleet.place(host, None if plan.keeps_bits else chunks(saved_width))
            self.progress.skip(len(lanes) * int(plan.schedule.record_steps[record]))
        else:
            fleet.initialize()
        last_checkpoint, count = time.monotonic(), 1
        while record < self.num_records:
            began = time.monotonic()
            count = min(count, self.num_records - record, self._until_compaction(record))
            alive_before = records.verdict[point, lanes] <= OK
            for positions, values, verdict, verdict_step in fleet.advance(record, count):
                where = lanes[positions]
                records.write(point, where, record, count, values)
                records.verdict[point, where] = verdict
                records.verdict_step[point, where] = verdict_step
            record += count
            seconds = time.monotonic() - began
            self._show(alive_before, record, count, seconds)
            if record == self.num_records:
                break
            if plan.compact:
                alive = records.verdict[point, lanes] == OK
                if plan.keeps_bits:
                    fleet.compact(alive, None)
                elif self._until_compaction(record) == self._compaction_interval:
                    fleet.compact(alive, narrower)
            # Aims at segments of a second: short enough to stop soon, long enough to cost nothing.
            wanted = max(1, int(count * _SEGMENT_SECONDS / max(seconds, 1e-6)))
            count = min(wanted, 4 * count, _CAPACITY)
            due = time.monotonic() - last_checkpoint > self.checkpoint_seconds
            if self.journal and (due or self.stop.requested):
                chunk_width = fleet.width // len(plan.devices)
                lanes_now, status = fleet.gather(), self._status()
                self.journal.checkpoint(block, point, record, chunk_width, lanes_now, status)
                last_checkpoint = time.monotonic()
            self._stop_if_asked()
        if self.journal:
            params, _ = fleet.gather().good
            self.journal.close_block(block, point, lanes, params, self._status())

    @property
    def _compaction_interval(self) -> int:
        return -(-self.num_records // _COMPACTIONS)

    def _until_compaction(self, record: int) -> int:
        """Records to the next that may be followed by a change of width.

        Widths change bits under `vmap`, so there they must not depend on how fast the machine is.
        """
        if self.plan.keeps_bits or not self.plan.compact:
            return self.num_records
        return self._compaction_interval - record % self._compaction_interval

    def _block_lanes(self, point: int) -> int:
        """Lanes of a block: as many as may wait on the devices, in whole chunks."""
        devices = self.plan.devices
        budget = strategy.resident_bytes(devices[0].platform) * len(devices)
        call = self.plan.widths[point] * len(devices)
        return max(1, budget // (self.plan.lane_bytes[point] * call)) * call

    def _show(self, alive: np.ndarray, record: int, count: int, seconds: float) -> None:
        steps = self.plan.schedule.record_steps
        done = int(steps[min(record, self.num_records - 1)] - steps[record - count])
        dead = int((self.records.verdict > OK).sum())
        self.progress.skip(int((~alive).sum()) * done)
        text = f"{self.num_lanes - dead} of {self.num_lanes} lanes alive, {dead} diverged"
        self.progress.advance(int(alive.sum()) * done, seconds, text)

    def _status(self) -> dict[str, Any]:
        return {
            "wall_seconds": time.monotonic() - self.started,
            "compile_seconds": self.compile_seconds,
            "call_bytes": self.call_bytes,
        }

    def _stop_if_asked(self) -> None:
        if not self.stop.requested:
            return
        where = "nothing was kept (no folder was given)"
        if self.journal:
            self.journal.interrupt(self._status())
            where = f"everything is in {self.journal.folder}; the same command continues it"
        raise Interrupted(f"stopped by {self.stop.requested}: {where}.")


def _blocks(lanes: np.ndarray, size: int) -> list[np.ndarray]:
    return [lanes[start : start + size] for start in range(0, len(lanes), size)]
