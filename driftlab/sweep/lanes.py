"""Many lanes of one program: vmap, single lanes or chunks, on every device.

A *chunk* is the lanes that a device advances together under `vmap`; the lane strategies differ
only in its width (`map`: 1, `chunk:k`: k, `vmap`: all the lanes that fit). A call of a compiled
program advances one chunk on each device, by `jax.shard_map` over a mesh named "lanes".
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from driftlab.sweep.lane import Lane, LaneProgram

_BY_LANE, _REPLICATED = PartitionSpec("lanes"), PartitionSpec()


class Chunks(NamedTuple):
    """A lane program compiled for chunks of one width, one chunk a device.

    Attributes:
      width: lanes a call: the chunk's width times the number of devices.
      place: `(hparams, keys) -> arguments` on the devices, for the two programs; lanes placed by
        it keep their meaning in any thread (JAX's precision is a thread's own setting).
      place_lanes: `lanes -> lanes` on the devices.
      initialize: `(arguments) -> Lane`, every leaf with a leading axis of `width` lanes.
      advance: `(arguments, lanes, first, count) -> (lanes, records)`; consumes `lanes`.
      lanes: the types of what `initialize` gives.
      call_bytes: device memory that one call takes, by the compiler's account.
    """

    width: int
    place: Callable[[Mapping[str, np.ndarray], PRNGKeyArray], tuple]
    place_lanes: Callable[[PyTree], Lane]
    initialize: Callable[[tuple], Lane]
    advance: Callable[..., tuple[Lane, dict[str, Array]]]
    lanes: Lane
    call_bytes: int


def compile_chunks(
    program: LaneProgram,
    hparams: Mapping[str, Array | np.ndarray],
    keys: PRNGKeyArray,
    chunk_width: int,
    devices: Sequence[jax.Device],
) -> Chunks:
    """Compiles a lane program for chunks of `chunk_width` lanes on each of the devices.

    A width of 1 compiles the lane's program without `vmap`, so that its bits are those of a
    single run. Arrays that the user's functions close over (the data) become arguments of the
    program: they are neither copied into it nor part of the compilation cache's key.

    Args:
      program: the lane program.
      hparams: lane hyper-parameters, arrays `(lanes,)`; only their types count here.
      keys: lane keys, shape `(lanes,)`, or `()` for one key shared by all.
      chunk_width: lanes a device advances together.
      devices: the devices; the lanes of a call are split evenly over them.

    Returns:
      The compiled program.
    """
    width = chunk_width * len(devices)
    key_axis = 0 if keys.ndim else None
    mesh = Mesh(np.asarray(devices), ("lanes",), axis_types=(AxisType.Auto,))
    by_lane, replicated = NamedSharding(mesh, _BY_LANE), NamedSharding(mesh, _REPLICATED)
    # Both programs close over the same data, which is placed once. The original is kept beside the
    # copy: an identity means something only as long as its object lives.
    placed: dict[int, tuple[Any, Array]] = {}

    def over_lanes(function: Callable, axes: tuple[int | None, ...]) -> Callable:
        if chunk_width > 1:
            return jax.vmap(function, axes, axis_size=chunk_width)

        def single(*args):
            args = [
                arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
                for arg, axis in zip(args, axes, strict=True)
            ]
            return jax.tree.map(lambda leaf: leaf[None], function(*args))

        return single

    def lowered(
        function: Callable, axes: tuple[int | None, ...], args: tuple, donate: tuple[int, ...] = ()
    ) -> tuple[Any, list[Array]]:
        specs = tuple(_REPLICATED if axis is None else _BY_LANE for axis in axes)
        local = [
            arg if axis is None else _with_lanes(arg, chunk_width)
            for arg, axis in zip(args, axes, strict=True)
        ]
        found, function = hoist_constants(over_lanes(function, axes), *local)
        for constant in found:
            if id(constant) not in placed:
                placed[id(constant)] = (constant, jax.device_put(constant, replicated))
        constants = [placed[id(constant)][1] for constant in found]
        sharded = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(_REPLICATED, *specs),
            out_specs=_BY_LANE,
            check_vma=False,
        )
        jitted = jax.jit(
            sharded,
            in_shardings=(replicated, *(NamedSharding(mesh, spec) for spec in specs)),
            out_shardings=by_lane,
            donate_argnums=tuple(index + 1 for index in donate),
        )
        return jitted.lower(constants, *args), constants

    wide_hparams = _with_lanes(dict(hparams), width)
    wide_keys = jax.ShapeDtypeStruct((width,) if keys.ndim else (), keys.dtype)
    lanes = jax.eval_shape(
        jax.vmap(program.initialize, (0, key_axis), axis_size=width), wide_hparams, wide_keys
    )
    index = jax.ShapeDtypeStruct((), np.dtype("int32"))
    start, start_constants = lowered(program.initialize, (0, key_axis), (wide_hparams, wide_keys))
    step, step_constants = lowered(
        program.advance,
        (0, key_axis, 0, None, None),
        (wide_hparams, wide_keys, lanes, index, index),
        donate=(2,),
    )
    with ThreadPoolExecutor(2) as pool:  # XLA compiles without holding Python's lock
        initialize, advance = pool.map(lambda lowering: lowering.compile(), (start, step))
    return Chunks(
        width=width,
        place=lambda hparams, keys: jax.device_put(
            (dict(hparams), keys), (by_lane, by_lane if keys.ndim else replicated)
        ),
        place_lanes=lambda lanes: jax.device_put(lanes, by_lane),
        initialize=lambda arguments: initialize(start_constants, *arguments),
        advance=lambda arguments, lanes, first, count: advance(
            step_constants, *arguments, lanes, first, count
        ),
        lanes=lanes,
        call_bytes=_call_bytes(advance),
    )


def hoist_constants(function: Callable, *args: PyTree) -> tuple[list[Array], Callable]:
    """Makes the arrays that a function closes over its first argument.

    Args:
      function: a function of arrays, traced once.
      *args: arguments of the types it will be called with (shapes and dtypes suffice).

    Returns:
      `(constants, f)` with `f(constants, *args) == function(*args)`.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    structure = jax.tree.structure(shapes)

    def hoisted(constants: list[Array], *args: PyTree) -> PyTree:
        leaves = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(*jax.tree.leaves(args))
        return jax.tree.unflatten(structure, leaves)

    return list(closed.consts), hoisted


def _with_lanes(tree: PyTree, lanes: int) -> PyTree:
    """The types of a tree with `lanes` lanes on its leading axis."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape[1:]), leaf.dtype), tree
    )


def _call_bytes(executable: Any) -> int:
    memory = executable.memory_analysis()
    if memory is None:  # some backends give no account
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
