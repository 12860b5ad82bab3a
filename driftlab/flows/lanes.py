"""Many solves at once: how lanes share the work when each chooses its own steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

# Lanes of like stiffness together on an accelerator, where a batch of them costs little more than
# one.
_BUCKET = 8


def solve_lanes(
    solve_one: Callable[[PyTree], PyTree],
    lanes: PyTree[Array],
    strategy: str = "auto",
    stiffness: ArrayLike | None = None,
) -> PyTree[Array]:
    """`solve_one(lane)` for every lane: adaptive solves, whose costs differ.

    Under vmap every lane takes as many steps as the one that needs most; one by one each takes its
    own. In chunks of lanes that need about as many, `stiffness` says which. For equal steps vmap
    loses nothing.

    Args:
      solve_one: `solve_one(lane) -> tree of arrays`, such as a `Solved`.
      lanes: a tree of arrays with one leading axis, one entry a lane.
      strategy: "map", one after the other, bitwise as alone; "vmap", all together; "chunk:k", k
        together; or "auto": "map" on a CPU, and "chunk:8" elsewhere.
      stiffness: what the lanes' steps grow with, one number a lane (a learning rate, a duration
        times a sharpness); chunks are made in its order. None leaves the order.

    Returns:
      What solve_one gave, with a leading axis, in the order of the lanes.

    Raises:
      ValueError: if there is no such strategy, lanes share no leading axis, or stiffness has
        another length.
    """
    size = _common_length(lanes)
    width = _width(strategy, size)
    if stiffness is not None and np.shape(stiffness) != (size,):
        raise ValueError(
            f"stiffness has shape {np.shape(stiffness)}; it needs one number for each of the "
            f"{size} lanes."
        )
    if width == 1:
        return jax.lax.map(solve_one, lanes)
    if width == size:
        return jax.vmap(solve_one)(lanes)
    if stiffness is None:
        return jax.lax.map(solve_one, lanes, batch_size=width)
    order = jnp.argsort(jnp.asarray(stiffness))
    back = jnp.argsort(order)
    found = jax.lax.map(solve_one, jax.tree.map(lambda a: a[order], lanes), batch_size=width)
    return jax.tree.map(lambda a: a[back], found)


def _width(strategy: Any, size: int) -> int:
    if strategy == "auto":
        strategy = "map" if jax.default_backend() == "cpu" else f"chunk:{_BUCKET}"
    if strategy == "vmap":
        return size
    if strategy == "map":
        return 1
    name, _, count = str(strategy).partition(":")
    if name != "chunk" or not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"strategy={strategy!r} must be 'auto', 'vmap', 'map' or 'chunk:k', k lanes together."
        )
    return min(int(count), size)


def _common_length(lanes: PyTree[Array]) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(lanes)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"lanes need one leading axis, one entry a lane; got shapes {shapes}.")
    return shapes[0][0]
