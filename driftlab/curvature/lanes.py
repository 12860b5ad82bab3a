"""Functions that take the lanes of a vmap one at a time on a CPU.

There, lanes in step gain nothing: matrix products are as fast one by one, every branch is computed
for all, and each loop lasts as long as its slowest lane. Measured for eigenpairs of networks with
1,200 to 25,000 parameters, 16 lanes under a plain vmap cost 1.5 to 2.3 times 16 single calls, and
one at a time 0.8 to 1.0 times. On an accelerator vmap stays what it is.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from driftlab.curvature.vectors import FlatOperator


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; under `jax.vmap` on a CPU, a loop over lanes.

    Args:
      function: of pytrees of arrays, closing over no traced array.

    Returns:
      The same function of them.
    """
    safe = jax.custom_batching.custom_vmap(function)

    @safe.def_vmap
    def in_lanes(size: int, batched: list[Any], *args: Any) -> tuple[Any, Any]:
        del size
        leaves, structure = jax.tree.flatten(args)
        flags = jax.tree.leaves(batched)

        def call(lanes: list[Array], shared: list[Array], inner: Callable) -> Any:
            lane, common = iter(lanes), iter(shared)
            merged = [next(lane) if flag else next(common) for flag in flags]
            return inner(*jax.tree.unflatten(structure, merged))

        def loop(lanes: list[Array], shared: list[Array]) -> Any:
            return jax.lax.map(lambda lane: call(lane, shared, safe), lanes)

        def together(lanes: list[Array], shared: list[Array]) -> Any:
            # The bare function: a vmap over `safe` would come here again.
            return jax.vmap(lambda lane: call(lane, shared, function))(lanes)

        values = jax.lax.platform_dependent(
            [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag],
            [leaf for leaf, flag in zip(leaves, flags, strict=True) if not flag],
            cpu=loop,
            default=together,
        )
        return values, jax.tree.map(lambda _: True, values)

    return safe


def solve_in_lanes(solve: Callable[..., Any], flat: FlatOperator, *arrays: PyTree[Array]) -> Any:
    """`solve(flat, *arrays)`, lanes one at a time on a CPU.

    Args:
      solve: of the operator and arrays; it sees traced values always.
      flat: the operator.
      *arrays: pytrees of arrays.

    Returns:
      What it returns: a pytree of arrays.
    """
    # What the operator closes over becomes arguments, so that a lane has its own.
    like = jax.ShapeDtypeStruct((flat.size,), flat.dtype)
    apply = eqx.filter_closure_convert(flat.apply, like)
    values, rest = eqx.partition(apply, eqx.is_array)

    def run(values: Any, *arrays: Any) -> Any:
        return solve(flat._replace(apply=eqx.combine(values, rest)), *arrays)

    return one_at_a_time(run)(values, *arrays)
