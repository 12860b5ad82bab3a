"""How many lanes a device advances together: the lane strategies and the rule behind `auto`."""

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from driftlab.sweep.lanes import hoist_constants

# Memory for lanes that wait between their turns; lanes beyond it are run block after block.
_CPU_RESIDENT_BYTES = 128 * 2**20
_ACCELERATOR_RESIDENT_SHARE = 0.25
_ACCELERATOR_RESIDENT_BYTES = 4 * 2**30  # where the backend does not say what it has


class StepCost(NamedTuple):
    """What one step of one lane takes, from shapes alone.

    Attributes:
      flops: floating-point operations, by XLA's account of the unoptimised program.
      lane_bytes: what a lane carries between records.
    """

    flops: float
    lane_bytes: int


def parse(lanes: str) -> str | int:
    """Reads a lane strategy.

    Args:
      lanes: "auto", "vmap", "map" or "chunk:k".

    Returns:
      "auto", "vmap", or the chunk's width (`map` is 1).

    Raises:
      ValueError: for anything else.
    """
    if not isinstance(lanes, str):
        lanes = repr(lanes)
    if lanes in ("auto", "vmap"):
        return lanes
    if lanes == "map":
        return 1
    match = re.fullmatch(r"chunk:(\d+)", lanes)
    if not match or int(match[1]) < 1:
        raise ValueError(
            f"lanes must be 'auto', 'vmap', 'map' or 'chunk:k' with k >= 1; got {lanes!r}."
        )
    return int(match[1])


def chunk_width(
    lanes: str,
    cost: StepCost,
    num_lanes: int,
    num_devices: int,
    backend: str,
    num_workers: int = 1,
) -> int:
    """The chunk width of a strategy; for `auto`, a deterministic rule.

    Args:
      lanes: the strategy.
      cost: of one step of one lane.
      num_lanes: lanes of a static point.
      num_devices: devices they are spread over.
      backend: "cpu", "gpu" or "tpu".
      num_workers: chunks a device runs side by side.

    Returns:
      Lanes a device advances together, at least 1. A width that was asked for is kept whatever
      the number of lanes (a chunk that they do not fill is padded): widths change rounding.
    """
    strategy = parse(lanes)
    share = -(-num_lanes // num_devices)
    if strategy == "vmap" or (strategy == "auto" and backend != "cpu"):
        fitting = max(1, resident_bytes(backend) // max(1, cost.lane_bytes))
        return min(share, fitting) if strategy == "auto" else share
    if isinstance(strategy, int):
        return strategy
    return min(_cpu_width(cost.flops), -(-share // num_workers))


def _cpu_width(flops: float) -> int:
    # Calibrated on two cores, 64 lanes (docs/results/sweep.md, "Calibration"): tiny steps are all
    # overhead, which wide chunks share; from about 1 GFLOP a step one lane fills a core, and
    # more of them only take memory.
    if flops < 2e6:
        return 32
    return 4 if flops < 1e9 else 1


def flops(step: Callable[..., PyTree], *args: PyTree) -> float:
    """Floating-point operations of a function by XLA's account, without compiling it.

    The account is of the unoptimised program, so it depends on the program alone.

    Args:
      step: the function.
      *args: arguments of the types it takes.

    Returns:
      Operations; 0 where XLA gives no account.
    """
    constants, hoisted = hoist_constants(step, *args)
    shapes = jax.tree.map(jax.typeof, constants)
    cost = jax.jit(hoisted).lower(shapes, *args).cost_analysis()
    return float((cost or {}).get("flops", 0.0))


def resident_bytes(backend: str) -> int:
    """How much memory the lanes of a block may take between their turns.

    Args:
      backend: "cpu", "gpu" or "tpu".

    Returns:
      Bytes.
    """
    if backend == "cpu":
        return _CPU_RESIDENT_BYTES
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return int(limit * _ACCELERATOR_RESIDENT_SHARE) if limit else _ACCELERATOR_RESIDENT_BYTES


def num_workers(devices: Sequence[jax.Device]) -> int:
    """Threads that call a program: a CPU device runs programs of several threads side by side.

    Args:
      devices: the devices; an accelerator queues its calls, several devices are called as one.

    Returns:
      The cores this process may use, or 1.
    """
    if len(devices) > 1 or devices[0].platform != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tree_bytes(tree: PyTree) -> int:
    """The bytes of a tree of arrays or of their types.

    Args:
      tree: arrays, or ShapeDtypeStructs.

    Returns:
      Bytes.
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
