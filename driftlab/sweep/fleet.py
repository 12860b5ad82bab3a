"""The lanes of one block while they run: on device in chunks, and gathered on the host.

Gathering to the host and placing on the devices again is the one mechanism behind checkpoints,
resuming and compaction, so the three cannot disagree.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from driftlab.sweep.lane import OK, Lane
from driftlab.sweep.lanes import Chunks


@dataclasses.dataclass(eq=False)
class _Group:
    """The lanes of one call. Padded at the end by copies of its last lane."""

    positions: np.ndarray  # places in the block
    arguments: tuple  # hyper-parameters and keys, on the devices
    lanes: Lane | None  # None while a call consumes them


class Fleet:
    """A block's lanes.

    Args:
      chunks: the compiled program.
      hparams: lane hyper-parameters of the block, arrays `(n,)`.
      keys: lane keys of the block, `(n,)`, or one shared key.
      workers: threads that call the program: on a CPU, XLA leaves cores idle that a second
        chunk can use.
    """

    def __init__(
        self, chunks: Chunks, hparams: Mapping[str, np.ndarray], keys: PRNGKeyArray, workers: int
    ):
        self._chunks, self._hparams, self._keys = chunks, hparams, keys
        self._size = len(next(iter(hparams.values()))) if hparams else 1
        self._groups: list[_Group] = []
        self._pool = ThreadPoolExecutor(workers)
        self.host = jax.tree.map(
            lambda leaf: np.zeros((self._size, *leaf.shape[1:]), leaf.dtype),
            jax.eval_shape(_storable, chunks.lanes),
        )

    @property
    def width(self) -> int:
        """Lanes a call."""
        return self._chunks.width

    def initialize(self) -> None:
        """Puts every lane at step 0."""

        def start(group: _Group) -> None:
            group.lanes = jax.block_until_ready(self._chunks.initialize(group.arguments))

        self._groups = [
            _Group(positions, self._arguments(_padded(positions, self.width)), None)
            for positions in self._split(np.arange(self._size))
        ]
        list(self._pool.map(start, self._groups))

    def advance(
        self, first: int, count: int
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Makes records `first .. first+count-1` on every lane that is on the devices.

        Args:
          first: the first record.
          count: how many.

        Yields:
          For each call: the lanes' places in the block, the records' buffers, verdicts and
          the iterates at which they fell.
        """

        def call(group: _Group):
            # The lanes go into the call alone, so that their memory can be reused in it.
            lanes, group.lanes = group.lanes, None
            group.lanes, records = self._chunks.advance(
                group.arguments, lanes, np.int32(first), np.int32(count)
            )
            n = len(group.positions)
            host = jax.device_get((records, group.lanes.verdict, group.lanes.verdict_step))
            records, verdict, verdict_step = jax.tree.map(lambda leaf: leaf[:n], host)
            return group.positions, records, verdict, verdict_step

        yield from self._pool.map(call, self._groups)

    def gather(self) -> PyTree:
        """Copies the lanes on the devices to their places on the host.

        Returns:
          All lanes of the block, NumPy arrays with a leading axis of lanes.
        """
        for group in self._groups:
            self._retire(group)
        return self.host

    def place(self, host: PyTree, chunks: Chunks | None = None) -> None:
        """Puts the lanes that are alive on the devices, in full chunks.

        Args:
          host: all lanes of the block, as `gather` gives them.
          chunks: another compiled width, or None to keep it.
        """
        self.host = host
        self._chunks = chunks or self._chunks
        alive = np.flatnonzero(np.asarray(host.verdict) == OK)
        self._groups = []
        for positions in self._split(alive):
            padded = _padded(positions, self._chunks.width)
            stored = jax.tree.map(lambda leaf, padded=padded: leaf[padded], host)
            lanes = self._chunks.place_lanes(_restored(stored, self._chunks.lanes))
            self._groups.append(_Group(positions, self._arguments(padded), lanes))

    def compact(self, alive: np.ndarray, narrower: Callable[[int], Chunks] | None) -> None:
        """Drops dead lanes where that saves calls.

        Args:
          alive: which lanes of the block have no verdict, `(n,)` booleans.
          narrower: gives the program for that many lanes; None keeps the width, and with it the
            bits of every other lane.
        """
        dead = [group for group in self._groups if not alive[group.positions].any()]
        for group in dead:
            self._retire(group)
            self._groups.remove(group)
        living = int(alive.sum())
        if not living:
            return
        if narrower is not None and living <= self._chunks.width // 2:
            self.place(self.gather(), narrower(living))
        elif -(-living // self._chunks.width) <= len(self._groups) // 2:
            self.place(self.gather())

    def close(self) -> None:
        """Ends the threads, without the calls that are still to come."""
        self._pool.shutdown(cancel_futures=True)

    def _arguments(self, padded: np.ndarray) -> tuple:
        hparams = {name: values[padded] for name, values in self._hparams.items()}
        keys = self._keys[padded] if self._keys.ndim else self._keys
        return self._chunks.place(hparams, keys)

    def _split(self, positions: np.ndarray) -> list[np.ndarray]:
        width = self._chunks.width
        return [positions[i : i + width] for i in range(0, len(positions), width)]

    def _retire(self, group: _Group) -> None:
        n = len(group.positions)
        stored = jax.device_get(_storable(group.lanes))

        def put(whole: np.ndarray, part: np.ndarray) -> None:
            whole[group.positions] = part[:n]

        jax.tree.map(put, self.host, stored)


def _padded(positions: np.ndarray, width: int) -> np.ndarray:
    return np.pad(positions, (0, width - len(positions)), mode="edge")


def _storable(tree: PyTree) -> PyTree:
    """Keys as their data, which NumPy and orbax can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _restored(tree: PyTree, template: PyTree) -> PyTree:
    def restore(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> Array | np.ndarray:
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=_key_implementation(like))

    return jax.tree.map(restore, tree, template)


def _key_implementation(like: jax.ShapeDtypeStruct) -> Any:
    """The generator of a key's type; JAX tells it of keys alone, so one is traced."""
    found = []

    def look(key: PRNGKeyArray) -> Array:
        found.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    jax.eval_shape(look, like)
    return found[0]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
