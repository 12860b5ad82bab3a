"""driftlab's central flow beside central_flows_jax, and 64 lanes beside one.

    JAX_PLATFORMS=cpu python -m benchmarks.central_flows --peer=FOLDER --peer_python=PYTHON
    JAX_PLATFORMS=cpu python -m benchmarks.central_flows [--lanes=64] [--out=FILE.md]

FOLDER is a checkout of central_flows_jax, PYTHON an interpreter with what it needs (jax, jaxtyping,
cvxpy, cvxopt); without them driftlab is timed alone. Both follow the same network from the same
weights in float32, with the same substeps and eigenvectors, all five of which the peer puts into
its complementarity problem and so does driftlab. Compilation is not counted.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array

import driftlab
from benchmarks import central_flows_network as network
from benchmarks import report as reports
from driftlab.flows import preconditioning
from driftlab.flows.central import central_flow

_PEER = flags.DEFINE_string("peer", None, "A checkout of central_flows_jax.")
_PYTHON = flags.DEFINE_string("peer_python", None, "The interpreter of its environment.")
_STEPS = flags.DEFINE_integer("steps", 100, "Of a round.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "The median counts.", lower_bound=1)
_LANES = flags.DEFINE_integer("lanes", 64, "Lanes, a traced learning rate each.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")


class Warm(NamedTuple):
    """Lanes at the edge.

    Attributes:
        rates: a learning rate a lane; a number for one alone.
        states: of the flow.
        losses: on the way.
        eigenvalues: the largest, on the way.
    """

    rates: Array
    states: Any
    losses: Array
    eigenvalues: Array


def dynamics(rate: Any) -> driftlab.Dynamics:
    """The central flow of gradient descent on the network.

    Args:
        rate: the learning rate.

    Returns:
        It.
    """
    work = network.make()
    return central_flow(
        driftlab.Objective(lambda w, batch: network.loss(w, *batch), (work.inputs, work.targets)),
        preconditioning.gradient_descent(rate),
        eigenvectors=network.EIGENVECTORS,
        substeps=network.SUBSTEPS,
    )


def warm(rate: float) -> Warm:
    """Follows the flow to the edge.

    Args:
        rate: the learning rate.

    Returns:
        One lane, where it is then.
    """

    def begin(rate: Any) -> tuple[Any, tuple[Any, Any]]:
        flow = dynamics(rate)

        def step(state: Any, _: None) -> tuple[Any, Any]:
            snapshot = flow.observe(state)
            after = snapshot.next_state
            return after, (snapshot.value, after.inner.eigenvalues[0])

        state = flow.init(jnp.asarray(network.make().start), jax.random.key(0))
        return jax.lax.scan(step, state, None, length=network.WARM_UP)

    rates = jnp.asarray(rate, jnp.float32)
    state, found = jax.jit(begin)(rates)
    return Warm(rates, state, *found)


def seconds(work: Callable, arguments: tuple, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step.

    Args:
        work: of the arguments, some steps; compiled here.
        arguments: its.
        steps: how many.
        rounds: how often.

    Returns:
        `wall` and `cpu` of each round.
    """
    run = jax.jit(work)
    jax.block_until_ready(run(*arguments))
    found: dict[str, Any] = {"wall": [], "cpu": []}
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(*arguments))
        found["wall"].append((time.perf_counter() - wall) / steps)
        found["cpu"].append((time.process_time() - cpu) / steps)
    return found


def ours(lanes: Warm, strategy: str, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds a step of all lanes.

    Args:
        lanes: where they are.
        strategy: "single" (one lane alone) or "vmap".
        steps: of a round.
        rounds: how many.

    Returns:
        As `seconds`.
    """

    def advance(rate: Any, state: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda _, s: dynamics(rate).step(s), state)

    work = {"single": advance, "vmap": jax.vmap(advance)}[strategy]
    return seconds(work, (lanes.rates, lanes.states), steps, rounds)


def products(lanes: Warm, inner: str, rounds: int) -> dict[str, Any]:
    """Seconds of the products with the Hessian alone that a step of all lanes needs at the least.

    That is one an eigenvector and guard a substep: what the lanes cost if all else were free.

    Args:
        lanes: where they are.
        inner: "vmap" or "map": how the vectors of a lane go.
        rounds: how many.

    Returns:
        As `seconds`.
    """
    inputs, targets = map(jnp.asarray, network.make()[:2])

    def one(w: Any, block: Any) -> Any:
        gradient = jax.grad(lambda w: network.loss(w, inputs, targets))
        product = jax.linearize(gradient, w)[1]
        return jax.vmap(product)(block) if inner == "vmap" else jax.lax.map(product, block)

    def step(params: Any, blocks: Any) -> Any:
        def substep(_: int, blocks: Any) -> Any:
            # Divided by a bound, so that numbers stay finite.
            return jax.vmap(one)(params, blocks) / 100

        return jax.lax.fori_loop(0, network.SUBSTEPS, substep, blocks)

    return seconds(step, (lanes.states.params, lanes.states.inner.block), 1, rounds)


def theirs(folder: str, python: str, steps: int, rounds: int) -> dict[str, Any]:
    """The same of the peer, in a process of its own.

    Args:
        folder: its checkout.
        python: its interpreter.
        steps: of a round.
        rounds: how many.

    Returns:
        What `benchmarks.central_flows_peer` prints.

    Raises:
        UsageError: if it does not run.
    """
    command = [python, "-m", "benchmarks.central_flows_peer", folder, str(steps), str(rounds)]
    root = Path(__file__).parents[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise app.UsageError(f"the peer does not run:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Times all, and prints the tables."""
    if arguments[1:]:
        raise app.UsageError(f"arguments without a flag: {arguments[1:]}")
    if jax.default_backend() != "cpu":
        raise app.UsageError("the peer runs on the CPU: set JAX_PLATFORMS=cpu")
    folder, python = _PEER.value, _PYTHON.value
    if bool(folder) != bool(python):
        raise app.UsageError("--peer and --peer_python belong together.")
    report = reports.Report(_OUT.value)
    report.write(_header())
    steps, rounds, count = _STEPS.value, _ROUNDS.value, _LANES.value
    start = warm(network.LEARNING_RATE)
    single = ours(start, "single", steps, rounds)
    rows = [("driftlab, one lane", *_rates(single), "-")]
    peer_cpu = None
    if folder and python:
        peer = theirs(folder, python, max(2, steps // 5), rounds)
        peer_cpu = statistics.median(peer["cpu"])
        ratio = peer_cpu / statistics.median(single["cpu"])
        rows += [(f"central_flows_jax, jax {peer['jax']}", *_rates(peer), f"{ratio:.1f}")]
        gap = np.abs(np.subtract(start.losses, peer["losses"])).max()
        rows += [("largest difference of the losses on the way", "-", "-", f"{gap:.2e}")]
        ends = f"{start.eigenvalues[-1]:.5f}, {peer['eigenvalues'][-1]:.5f}"
        rows += [("largest eigenvalue when the clock starts, both", "-", "-", ends)]
    report.table(
        "One learning rate",
        ("what", "steps a second", "steps a CPU second", "driftlab over peer, CPU"),
        rows,
    )

    def over(name: str, found: dict[str, Any]) -> tuple[str, ...]:
        wall, cpu = (
            statistics.median(found[clock]) / statistics.median(single[clock])
            for clock in ("wall", "cpu")
        )
        beside = f"{statistics.median(found['cpu']) / peer_cpu:.1f}" if peer_cpu else "-"
        return name, f"{wall:.1f}", f"{cpu:.1f}", beside

    few, less = max(2, steps // 20), min(3, rounds)
    same = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), start)
    several = [over("the flow", ours(same, "vmap", few, less))]
    least = [products(same, inner, 3) for inner in ("vmap", "map")]
    least = min(least, key=lambda found: statistics.median(found["cpu"]))
    products_name = f"{network.EIGENVECTORS + 1} Hessian-vector products a substep, nothing else"
    several.append(over(products_name, least))
    report.table(
        f"{count} lanes under vmap: a step of all over a step of one",
        ("what", "wall", "CPU", "CPU, over one of the peer"),
        several,
    )
    report.finish()


def _rates(found: dict[str, Any]) -> tuple[str, str]:
    return tuple(f"{1 / statistics.median(found[clock]):.1f}" for clock in ("wall", "cpu"))  # type: ignore


def _header() -> str:
    packages = ("jax", "jaxlib", "numpy")
    versions = ", ".join(f"{name} {reports.version(name)}" for name in packages)
    sizes = "-".join(map(str, network.SIZES))
    lines = [
        "# Central flows beside central_flows_jax",
        "",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- machine: {reports.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} "
        "at the start",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- work: swish network {sizes}, {network.EXAMPLES} random examples, squared error, "
        f"{network.EIGENVECTORS} eigenvectors, {network.SUBSTEPS} substeps, float32, from step "
        f"{network.WARM_UP} on",
        f"- command: `python -m benchmarks.central_flows {' '.join(_shown(sys.argv[1:]))}`",
        f"- medians of {_ROUNDS.value} rounds; CPU is that of all threads of the process",
    ]
    return "\n".join(lines)


def _shown(arguments: list[str]) -> list[str]:
    """The arguments without the paths of this machine."""
    names = {"--peer": "FOLDER", "--peer_python": "PYTHON", "--out": "FILE.md"}
    pairs = (argument.partition("=") for argument in arguments)
    return [f"{name}={names.get(name, value)}" for name, _, value in pairs]


if __name__ == "__main__":
    app.run(main)
