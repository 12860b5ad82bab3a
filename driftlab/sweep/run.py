"""`sweep` and `open_run`: the two names a user needs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from driftlab.measures import DEFAULT, Measure
from driftlab.sweep.engine import Engine
from driftlab.sweep.folder import (
    CONFIG,
    PROGRESS,
    FolderError,
    environment,
    opened,
    read_json,
    refuse_unusable,
)
from driftlab.sweep.grid import Grid
from driftlab.sweep.journal import Journal
from driftlab.sweep.lane import Build
from driftlab.sweep.launch import WHOLE, Shard, is_finished
from driftlab.sweep.plan import make_plan, run_identity
from driftlab.sweep.progress import stop_on_signals
from driftlab.sweep.results import METRICS, Records, read_zarr

if TYPE_CHECKING:
    import xarray


def sweep(
    build: Build,
    grid: Grid,
    steps: int,
    *,
    measures: Iterable[Measure] = DEFAULT,
    record_every: int = 1,
    lanes: str = "auto",
    devices: int | Sequence[jax.Device] | None = None,
    seed: int = 0,
    divergence_factor: float = 1e3,
    compact: bool | None = None,
    shard: str | Shard = WHOLE,
    out: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool = True,
) -> "xarray.Dataset":
    """Runs every lane of a grid in as few compiled programs as it has static points.

    Args:
      build: `build(hparams, key) -> (Dynamics, params)`: called under `vmap` with the lane's
        hyper-parameters (name -> traced scalar; static axes -> their Python value) and key. It
        must not branch in Python on a traced value.
      grid: the axes.
      steps: iterations of every lane.
      measures: what is recorded (see `driftlab.measures`).
      record_every: iterations a record; step 0 and the last step are always recorded.
      lanes: how many lanes advance together on a device: "auto" (a deterministic rule from
        shapes and backend), "vmap" (all), "map" (one: bitwise equal to single runs), "chunk:k".
      devices: how many of JAX's devices, or which; all by default.
      seed: of the sweep's key; the lane axis `seed` is folded into it.
      divergence_factor: a lane has diverged once what it minimises exceeds its value at step
        0 by this many times that value's size. It is then frozen at its last good record, its
        later records are NaN, and no other lane's bits change.
      compact: drop dead lanes from the programs. By default where that leaves the other
        lanes' bits alone (`map`, `chunk:k`); under "vmap" it changes their rounding.
      shard: run the k-th of n shares of the sweep's chunks ("k/n"; `merge` of
        `driftlab.sweep` joins
        them).
      out: the run's folder; None keeps everything in memory. The same call with the same
        folder continues an interrupted run, bit for bit.
      config: what the user wants on record; a folder of another config is refused.
      checkpoint_seconds: at most this long between checkpoints (segments permitting).
      progress: show a progress bar (a line every ten seconds where there is no terminal).

    Returns:
      A dataset with one dimension per axis and `step`: the measures, `verdict` and
      `verdict_step`; config, versions, devices and wall time in its attrs.

    Raises:
      ValueError: for an argument out of range, before anything is compiled or written.
      FolderError: if the folder cannot be used (a ValueError that says why).
      Interrupted: after SIGTERM or SIGINT, with everything on disk. A segment ends at a record
        of all lanes, so with a long `record_every` this takes that long; a second signal acts
        at once.
    """
    if out is not None:  # before a minute is spent on tracing
        refuse_unusable(Path(out))
    plan = make_plan(
        build, grid, steps, measures, record_every, lanes, devices, seed, divergence_factor,
        compact, shard,
    )  # fmt: skip
    identity = run_identity(plan, config or {})
    attrs = {
        "config": json.dumps(identity, default=str),
        "environment": json.dumps(environment()),
        "static_axes": json.dumps(list(grid.static)),
        "lanes": ", ".join(sorted(set(identity["lanes"]))),
        "seed": seed,
    }
    records = Records(grid, plan.schedule.record_steps, attrs)
    if out is None:
        with stop_on_signals() as stop:
            return Engine(plan, records, None, checkpoint_seconds, progress, stop).run()
    out = Path(out) if plan.shard == WHOLE else Path(out) / plan.shard.folder_name
    with opened(out, identity) as folder, stop_on_signals() as stop:
        if is_finished(folder):
            return open_run(folder)
        try:
            journal = Journal(folder, records)
            return Engine(plan, records, journal, checkpoint_seconds, progress, stop).run()
        except OSError as error:
            raise FolderError(
                f"writing in {folder} failed ({error.strerror or error}); what was written "
                "before is intact: make room and repeat the command to continue."
            ) from error


def open_run(folder: Path | str) -> "xarray.Dataset":
    """The result of a run, finished or not, from its folder.

    Args:
      folder: the run's folder.

    Returns:
      The dataset that `sweep` returned, or as much of it as there is (NaN and "missing" else).

    Raises:
      FolderError: if the folder holds no run, or one that has not recorded anything yet.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise FolderError(f"{folder} holds no run (no {CONFIG}).")
    if not (folder / METRICS).exists():
        raise FolderError(f"the run in {folder} has not recorded anything yet.")
    dataset = read_zarr(folder / METRICS)
    if (folder / PROGRESS).exists():
        progress = read_json(folder / PROGRESS)
        dataset.attrs |= {k: v for k, v in progress.items() if v is not None}
    return dataset
