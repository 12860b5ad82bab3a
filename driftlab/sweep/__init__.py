"""Sweeps: hundreds of runs in one compiled program, recorded, checkpointed, resumable."""

from driftlab.sweep.checkpoint import final_params
from driftlab.sweep.folder import FolderError
from driftlab.sweep.grid import Grid
from driftlab.sweep.launch import Shard, merge, parse_shard
from driftlab.sweep.progress import Interrupted
from driftlab.sweep.run import open_run, sweep

__all__ = [
    "FolderError",
    "Grid",
    "Interrupted",
    "Shard",
    "final_params",
    "merge",
    "open_run",
    "parse_shard",
    "sweep",
]
