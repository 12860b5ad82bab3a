"""What a sweep runs, worked out and checked before anything is compiled or written."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from driftlab.measures import Measure
from driftlab.measures.recording import measure_name
from driftlab.sweep import strategy
from driftlab.sweep.grid import Grid, canonical
from driftlab.sweep.lane import Build, Schedule, lane_program
from driftlab.sweep.launch import Shard, parse_shard, shard_lanes
from driftlab.sweep.results import coordinate


class Plan(NamedTuple):
    """The arguments of `sweep`, checked and resolved."""

    build: Build
    grid: Grid
    schedule: Schedule
    measures: tuple[Measure, ...]
    divergence_factor: float
    seed: int
    devices: tuple[jax.Device, ...]
    widths: tuple[int, ...]  # of a chunk, by static point
    lane_bytes: tuple[int, ...]  # that a lane carries, by static point
    compact: bool
    keeps_bits: bool  # whether compaction leaves the other lanes' bits alone
    shard: Shard

    @property
    def key(self) -> PRNGKeyArray:
        """The sweep's key."""
        return jax.random.key(self.seed)


def make_plan(
    build: Build,
    grid: Grid,
    steps: int,
    measures: Iterable[Measure],
    record_every: int,
    lanes: str,
    devices: int | Sequence[jax.Device] | None,
    seed: int,
    divergence_factor: float,
    compact: bool | None,
    shard: str | Shard,
) -> Plan:
    """Checks the arguments and traces one lane, so that errors come before any compilation.

    Args:
      build: as of `sweep`, like all the others.
      grid: the axes.
      steps: iterations.
      measures: what is recorded.
      record_every: iterations a record.
      lanes: the lane strategy.
      devices: how many devices, or which.
      seed: of the sweep's key.
      divergence_factor: when a lane has diverged.
      compact: whether dead lanes are dropped.
      shard: which share.

    Returns:
      The plan.

    Raises:
      ValueError: for an argument out of range; whatever the user's functions raise is passed
        on, with the static point noted.
    """
    for name, value in (("steps", steps), ("record_every", record_every)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    if not divergence_factor > 0:
        raise ValueError(f"divergence_factor must be positive; got {divergence_factor!r}.")
    strategy.parse(lanes)
    shard = parse_shard(str(Shard(*shard)) if isinstance(shard, tuple) else shard)
    for name, values in lane_hparams(grid).items():
        if len(np.unique(values)) < len(np.unique(grid.lane_values()[name])):
            raise ValueError(
                f"lane axis {name!r} holds values that are equal in {values.dtype}; space them "
                "wider, or compute in 64 bits."
            )
    schedule = Schedule(int(steps), int(record_every))
    measures = tuple(measures)
    chosen = _devices(devices)
    if not isinstance(seed, int | np.integer):
        raise ValueError(f"seed must be an integer; got {seed!r}.")
    key = jax.random.key(int(seed))
    lane_key = jax.random.fold_in(key, 0)
    hparams = {name: jnp.asarray(values[0]) for name, values in lane_hparams(grid).items()}
    backend, widths, lane_bytes, recorded = chosen[0].platform, [], [], None
    for point in grid.static_points():
        program = lane_program(build, point, measures, schedule, divergence_factor, 1)
        try:
            lane = jax.eval_shape(program.initialize, hparams, lane_key)
            zero = jnp.zeros((), jnp.int32)
            _, records = jax.eval_shape(program.advance, hparams, lane_key, lane, zero, zero)
        except Exception as error:
            error.add_note(f"while tracing the lane program at the static point {point}")
            raise
        shapes = {name: (value.shape, value.dtype) for name, value in records.items()}
        _check_names(shapes, grid)
        if recorded not in (None, shapes):
            raise ValueError(
                f"measures must record the same at every static point; {point} records "
                f"{shapes}, the point before it {recorded}."
            )
        recorded = shapes
        cost = strategy.StepCost(
            flops=strategy.flops(program.step, hparams, lane_key, lane) if lanes == "auto" else 0,
            lane_bytes=strategy.tree_bytes(lane),
        )
        lane_bytes.append(cost.lane_bytes)
        widths.append(
            strategy.chunk_width(
                lanes, cost, grid.num_lanes, len(chosen), backend, strategy.num_workers(chosen)
            )
        )
    shard_lanes(grid, widths, shard)  # raises where there are too few chunks
    keeps_bits = lanes != "vmap" and (lanes != "auto" or backend == "cpu")
    return Plan(
        build, grid, schedule, measures, float(divergence_factor), int(seed), chosen,
        tuple(widths), tuple(lane_bytes),
        keeps_bits if compact is None else compact, keeps_bits, shard,
    )  # fmt: skip


def _check_names(recorded: Mapping[str, Any], grid: Grid) -> None:
    taken = sorted({*grid.axes, "step", "verdict", "verdict_step"} & recorded.keys())
    if taken:
        raise ValueError(
            f"a measure records {taken}, which a sweep's result uses itself; rename it."
        )


def _devices(devices: int | Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    available = jax.devices()
    if devices is None:
        return tuple(available)
    if not isinstance(devices, int):
        if not devices:
            raise ValueError("devices is empty; give a number, devices, or None for all.")
        return tuple(devices)
    if not 1 <= devices <= len(available):
        raise ValueError(
            f"devices={devices}, but JAX sees {len(available)} ({available[0].platform}); a CPU "
            "is made into several by jax_num_cpu_devices (a binary's --devices, up to its cores)."
        )
    return tuple(available[:devices])


def lane_hparams(grid: Grid) -> dict[str, np.ndarray]:
    """The lanes' hyper-parameters in JAX's precision: name -> `(num_lanes,)`."""
    return {name: canonical(values) for name, values in grid.lane_values().items()}


def run_identity(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's numbers: a folder that holds a run of another identity is refused.

    Args:
      plan: the sweep.
      config: what the user wants on record beside it.

    Returns:
      Values that JSON can hold.
    """
    return {
        "config": dict(config),
        "grid": {
            "lanes": {name: values.tolist() for name, values in plan.grid.lanes.items()},
            "static": {
                name: coordinate(values).tolist() for name, values in plan.grid.static.items()
            },
        },
        "steps": plan.schedule.steps,
        "record_every": plan.schedule.record_every,
        "measures": [_measure_name(measure) for measure in plan.measures],
        "lanes": [f"chunk:{width}" for width in plan.widths],
        "compact": plan.compact,
        "seed": plan.seed,
        "divergence_factor": plan.divergence_factor,
        "build": getattr(plan.build, "__qualname__", type(plan.build).__name__),
        "x64": jax.dtypes.canonicalize_dtype(float) == np.float64,
        "shard": str(plan.shard),
    }


def _measure_name(measure: Measure) -> str:
    name = measure_name(measure)
    interval = getattr(measure, "interval", 1)
    return name if interval == 1 else f"{name} every {interval}"
