"""Timing of peers side by side: wall and processor time, round after round."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_GEMM_SIZE = 2048
_MOST_STEPS = 1_000_000
# A difference of two runs counts if it is at least this share of the longer one.
_LEAST_SHARE = 0.2
_TRIES = 10


class Seconds(NamedTuple):
    """Time on the wall and in the process, all threads counted."""

    wall: float
    cpu: float


class Peer(NamedTuple):
    """A way of doing the work.

    Attributes:
        name: how tables call it.
        run: `run(steps)` does that many steps of every lane and waits for the results.
        compiles_inside: whether each run compiles; it is then timed as the difference of a long
            run and one of a single step, in which all that does not grow with the steps cancels.
    """

    name: str
    run: Callable[[int], Any]
    compiles_inside: bool = False


class Rate(NamedTuple):
    """Work a second, one number a round.

    Attributes:
        wall: per second on the wall.
        cpu: per second of processor time.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def median(self, clock: str) -> float:
        """The median over rounds of `wall` or `cpu`."""
        return statistics.median(getattr(self, clock))

    def spread(self) -> float:
        """Half the range of the rounds' wall rates, as a share of the median."""
        return (max(self.wall) - min(self.wall)) / 2 / statistics.median(self.wall)

    def ratio(self, other: "Rate", clock: str) -> float:
        """The median over rounds of this rate over another one measured in the same rounds."""
        pairs = zip(getattr(self, clock), getattr(other, clock), strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def measure(run: Callable[[int], Any], steps: int) -> Seconds:
    """Times one run.

    Args:
        run: as of a `Peer`.
        steps: what it is called with.

    Returns:
        What it took.
    """
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def steady_rate(peer: Peer, steps: int, lanes: int) -> tuple[float, float]:
    """Lane-steps a second of a warmed-up peer.

    Args:
        peer: the peer.
        steps: of its run, more than 1.
        lanes: it advances.

    Returns:
        Lane-steps per second of wall and of processor time.

    Raises:
        RuntimeError: if other jobs' noise drowns the difference again and again.
    """
    if not peer.compiles_inside:
        spent = measure(peer.run, steps)
        return steps * lanes / spent.wall, steps * lanes / spent.cpu
    done = (steps - 1) * lanes
    for _ in range(_TRIES):
        short, long = measure(peer.run, 1), measure(peer.run, steps)
        spent = Seconds(long.wall - short.wall, long.cpu - short.cpu)
        if min(spent.wall / long.wall, spent.cpu / long.cpu) > _LEAST_SHARE:
            return done / spent.wall, done / spent.cpu
    raise RuntimeError(f"the machine is too busy to time {peer.name!r}: {spent} out of {long}")


def choose_steps(peer: Peer, seconds: float, period: int = 1) -> int:
    """Warms a peer up and finds how many steps it does in a given time.

    Args:
        peer: the peer; what it has to compile is compiled afterwards.
        seconds: how long a measurement should take, beyond what is subtracted.
        period: the steps beyond the first are a multiple of it.

    Returns:
        Steps: at least 2, and at least 4 where one of them is subtracted.
    """
    peer.run(1)
    fixed = min(_undisturbed(peer), _undisturbed(peer)) if peer.compiles_inside else 0.0
    enough = max(0.15 * seconds, 0.5 * fixed)
    probe = 2
    while True:
        peer.run(probe)
        spent = _undisturbed(peer, probe) - fixed
        if spent > enough or probe > _MOST_STEPS:
            break
        probe *= 8
    wanted = min(seconds * probe / max(spent, 1e-3), _MOST_STEPS)
    steps = 1 + period * max(3 if peer.compiles_inside else 1, round(wanted / period))
    if peer.compiles_inside:
        peer.run(steps)
    return steps


def _undisturbed(peer: Peer, steps: int = 1) -> float:
    """About the seconds of a run on an idle machine."""
    spent = measure(peer.run, steps)
    return min(spent) if jax.default_backend() == "cpu" else spent.wall


def compare(
    peers: Sequence[Peer], lanes: int, seconds: float, repeats: int, period: int = 1
) -> dict[str, Rate]:
    """Measures peers in rounds, each peer once a round, so that noise hits all alike.

    Args:
        peers: the peers.
        lanes: how many each advances.
        seconds: about how long a measurement takes.
        repeats: rounds.
        period: as of `choose_steps`.

    Returns:
        Lane-steps a second by the peers' names, and operations a second of a matrix product
        measured in the same rounds by the name `product`.
    """
    steps = [choose_steps(peer, seconds, period) for peer in peers]
    gemm, gemm_flops = _matrix_product(max(0.2, seconds / 4))
    rows: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
    rows["product"] = []
    for _ in range(repeats):
        spent = measure(lambda _: gemm(), 1)
        rows["product"].append((gemm_flops / spent.wall, gemm_flops / spent.cpu))
        for peer, count in zip(peers, steps, strict=True):
            rows[peer.name].append(steady_rate(peer, count, lanes))
    return {name: Rate(*zip(*pairs, strict=True)) for name, pairs in rows.items()}


def _matrix_product(seconds: float) -> tuple[Callable[[], Any], float]:
    """Square float32 products by XLA for about some seconds, and their operations."""
    matrix = jnp.full((_GEMM_SIZE, _GEMM_SIZE), 1.0 / _GEMM_SIZE, jnp.float32)
    product = jax.jit(lambda a, b: a @ b)

    def run(count: int) -> None:
        result = matrix
        for _ in range(count):
            result = product(result, matrix)
        jax.block_until_ready(result)

    run(2)
    count = max(2, round(seconds * 4 / measure(run, 4).wall))
    return lambda: run(count), count * 2.0 * _GEMM_SIZE**3
