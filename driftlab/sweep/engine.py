"""The sweep's main loop: block after block, segment after segment."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from driftlab.sweep import strategy
from driftlab.sweep.checkpoint import Checkpoints
from driftlab.sweep.fleet import Fleet
from driftlab.sweep.folder import FINISHED, INTERRUPTED, PROGRESS, RUNNING, read_json, write_json
from driftlab.sweep.lane import OK, LaneProgram, lane_program
from driftlab.sweep.lanes import Chunks, compile_chunks
from driftlab.sweep.launch import shard_lanes
from driftlab.sweep.plan import Plan, lane_hparams
from driftlab.sweep.progress import Interrupted, Progress, Stop
from driftlab.sweep.results import MetricsStore, Records, read_zarr

if TYPE_CHECKING:
    import xarray

_CAPACITY = 128  # records a call can make at most
_SEGMENT_SECONDS = 1.0  # how often progress shows and a request to stop is honoured
_COMPACTIONS = 16  # under vmap, compaction is considered this often: at records fixed in advance


class Engine:
    """One call of `sweep`, after its arguments are checked."""

    def __init__(
        self,
        plan: Plan,
        records: Records,
        folder: Path | None,
        checkpoint_seconds: float,
        progress: bool,
        stop: Stop,
    ):
        self.plan, self.records, self.folder, self.stop = plan, records, folder, stop
        self.checkpoint_seconds = checkpoint_seconds
        self.store = MetricsStore(folder) if folder else None
        self.num_records = len(plan.schedule.record_steps)
        self.shares = shard_lanes(plan.grid, plan.widths, plan.shard)
        self.progress = Progress(
            sum(len(lanes) for _, lanes in self.shares) * plan.schedule.steps, progress
        )
        self.seconds = 0.0
        self.compile_seconds = 0.0
        self.call_bytes = 0

    def run(self) -> "xarray.Dataset":
        """Runs, or continues, every block of every static point."""
        if self.store and self.store.exists():
            self.records.load(read_zarr(self.store.path))
            if (self.folder / PROGRESS).exists():
                self.seconds = read_json(self.folder / PROGRESS).get("wall_seconds", 0.0)
        self.started = time.monotonic()
        points = list(self.plan.grid.static_points())
        number = 0
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
                for block in _blocks(lanes, self._block_lanes(program, self.plan.widths[point])):
                    self._run_block(number, point, block, program, compiled)
                    number += 1
        finally:
            self.progress.close()
        status = self._status(FINISHED)
        if self.folder:
            self.store.write(self.records, 0)
            write_json(self.folder / PROGRESS, status)
        dataset = self.records.dataset()
        dataset.attrs |= status
        return dataset

    def _run_block(
        self,
        number: int,
        point: int,
        lanes: np.ndarray,
        program: LaneProgram,
        compiled: dict[int, Chunks],
    ) -> None:
        """Runs some lanes of one static point to the end."""
        plan, records, width = self.plan, self.records, self.plan.widths[point]
        checkpoints = Checkpoints(self.folder / "checkpoints", number) if self.folder else None
        if checkpoints and checkpoints.finished:
            self.progress.skip(len(lanes) * plan.schedule.steps)
            checkpoints.close()
            return
        hparams = {name: values[lanes] for name, values in lane_hparams(plan.grid).items()}
        keys = plan.grid.lane_keys(plan.key)
        keys = keys[lanes] if keys.ndim else keys

        def chunks(lanes: int) -> Chunks:
            if lanes not in compiled:
                began = time.monotonic()
                compiled[lanes] = compile_chunks(program, hparams, keys, lanes, plan.devices)
                self.compile_seconds += time.monotonic() - began
                self.call_bytes = max(self.call_bytes, compiled[lanes].call_bytes)
            return compiled[lanes]

        def narrower(alive: int) -> Chunks:
            return chunks(1 << (max(1, -(-alive // len(plan.devices))) - 1).bit_length())

        fleet = Fleet(chunks(width), hparams, keys, _workers(plan.devices))
        saved = checkpoints.restore(fleet.host) if checkpoints else None
        if saved:
            record, host = saved
            if plan.compact and not plan.keeps_bits:
                alive = int((host.verdict == OK).sum())
                fleet.place(host, narrower(alive) if alive <= width // 2 else None)
            else:
                fleet.place(host)
            self.progress.skip(len(lanes) * int(plan.schedule.record_steps[record]))
        else:
            record = 0
            fleet.initialize()
        first_unwritten, last_checkpoint, count = record, time.monotonic(), 1
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
            self._show(point, lanes, alive_before, record, count, seconds)
            alive = records.verdict[point, lanes] == OK
            if plan.compact and record < self.num_records:
                if plan.keeps_bits:
                    fleet.compact(alive, None)
                elif self._until_compaction(record) == self._compaction_interval:
                    fleet.compact(alive, narrower)
            # Aims at segments of a second: short enough to stop soon, long enough to cost nothing.
            wanted = max(1, int(count * _SEGMENT_SECONDS / max(seconds, 1e-6)))
            count = min(wanted, 4 * count, _CAPACITY)
            due = time.monotonic() - last_checkpoint > self.checkpoint_seconds
            if checkpoints and (due or self.stop.requested) and record < self.num_records:
                self.store.write(records, first_unwritten, point)
                checkpoints.save(record, fleet.gather())
                write_json(self.folder / PROGRESS, self._status(RUNNING))
                first_unwritten, last_checkpoint = record, time.monotonic()
            if self.stop.requested and record < self.num_records:
                self._interrupted()
        if checkpoints:
            self.store.write(records, first_unwritten, point)
            checkpoints.finish(fleet.gather().params)
            write_json(self.folder / PROGRESS, self._status(RUNNING))
            checkpoints.close()
        fleet.close()
        if self.stop.requested:
            self._interrupted()

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

    def _block_lanes(self, program: LaneProgram, width: int) -> int:
        """Lanes of a block: as many as may wait on the devices, in whole chunks."""
        values = lane_hparams(self.plan.grid)
        first = {name: array[0] for name, array in values.items()}
        key = jax.random.fold_in(self.plan.key, 0)
        lane = jax.eval_shape(program.initialize, first, key)
        budget = strategy.resident_bytes(self.plan.devices[0].platform)
        return max(1, budget // (strategy.tree_bytes(lane) * width)) * width

    def _show(
        self,
        point: int,
        lanes: np.ndarray,
        alive_before: np.ndarray,
        record: int,
        count: int,
        seconds: float,
    ) -> None:
        steps = self.plan.schedule.record_steps
        done = int(steps[min(record, self.num_records - 1)] - steps[record - count])
        verdicts = self.records.verdict
        dead = int((verdicts > OK).sum())
        total = sum(len(share) for _, share in self.shares)
        alive = int(alive_before.sum())
        self.progress.skip((len(lanes) - alive) * done)
        text = f"{total - dead} of {total} lanes alive, {dead} diverged"
        self.progress.advance(alive * done, seconds, text)

    def _status(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "wall_seconds": self.seconds + time.monotonic() - self.started,
            "compile_seconds": self.compile_seconds,
            "call_bytes": self.call_bytes,
        }

    def _interrupted(self) -> None:
        where = "nothing was kept (no folder was given)"
        if self.folder:
            write_json(self.folder / PROGRESS, self._status(INTERRUPTED))
            where = f"everything is in {self.folder}; the same command continues it"
        raise Interrupted(f"stopped by {self.stop.requested}: {where}.")


def _workers(devices: Sequence[jax.Device]) -> int:
    # A CPU device runs programs of several threads side by side; an accelerator queues them.
    if len(devices) > 1 or devices[0].platform != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blocks(lanes: np.ndarray, size: int) -> list[np.ndarray]:
    return [lanes[start : start + size] for start in range(0, len(lanes), size)]
