"""driftlab's central flow beside central_flows_jax, and 64 learning rates beside one.

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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import driftlab
from benchmarks import central_flows_network as network
from benchmarks import report as reports
from driftlab.flows import preconditioning
from driftlab.flows.central import central_flow

_PEER = flags.DEFINE_string("peer", None, "A checkout of central_flows_jax.")
_PYTHON = flags.DEFINE_string("peer_python", None, "The interpreter of its environment.")
_STEPS = flags.DEFINE_integer("steps", 100, "Of a round.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "The median counts.", lower_bound=1)
_LANES = flags.DEFINE_integer("lanes", 64, "Learning rates in lanes.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")

# From the peer's on: the lanes are at their edges when the clock runs.
_RATES = (network.LEARNING_RATE, 2 * network.LEARNING_RATE)


def ours(rates: np.ndarray, strategy: str, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds a step of all lanes.

    Args:
        rates: a learning rate a lane.
        strategy: "single" (the first rate alone), "vmap" or "map".
        steps: of a round.
        rounds: how many.

    Returns:
        `wall` and `cpu` of each round, and the first lane's losses and eigenvalues on the way.
    """
    work = network.make()
    objective = driftlab.Objective(
        lambda w, batch: network.loss(w, *batch), (work.inputs, work.targets)
    )
    start = jnp.asarray(work.start)

    def dynamics(rate: Any) -> driftlab.Dynamics:
        return central_flow(
            objective,
            preconditioning.gradient_descent(rate),
            eigenvectors=network.EIGENVECTORS,
            substeps=network.SUBSTEPS,
        )

    def begin(rate: Any) -> tuple[Any, Any]:
        def step(state: Any, _: None) -> tuple[Any, Any]:
            after = dynamics(rate).step(state)
            value = objective.value(state.params, objective.data)[0]
            return after, (value, after.inner.eigenvalues[0])

        state = dynamics(rate).init(start, jax.random.key(0))
        return jax.lax.scan(step, state, None, length=network.WARM_UP)

    def advance(rate: Any, state: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda _, s: dynamics(rate).step(s), state)

    lanes = jnp.asarray(rates, jnp.float32)
    if strategy == "single":
        lanes = lanes[0]
        first, run = jax.jit(begin), jax.jit(advance)
    elif strategy == "vmap":
        first, run = jax.jit(jax.vmap(begin)), jax.jit(jax.vmap(advance))
    else:
        first = jax.jit(lambda rates: jax.lax.map(begin, rates))
        run = jax.jit(lambda rates, states: jax.lax.map(lambda two: advance(*two), (rates, states)))
    states, (losses, eigenvalues) = first(lanes)
    jax.block_until_ready(run(lanes, states))
    found: dict[str, Any] = {"wall": [], "cpu": []}
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        end = jax.block_until_ready(run(lanes, states))
        found["wall"].append((time.perf_counter() - wall) / steps)
        found["cpu"].append((time.process_time() - cpu) / steps)
    found["residual"] = float(jnp.max(end.inner.residual))
    found["losses"] = np.asarray(losses).reshape(-1, network.WARM_UP)[0].tolist()
    found["eigenvalues"] = np.asarray(eigenvalues).reshape(-1, network.WARM_UP)[0].tolist()
    return found


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
    if bool(_PEER.value) != bool(_PYTHON.value):
        raise app.UsageError("--peer and --peer_python belong together.")
    report = reports.Report(_OUT.value)
    report.write(_header())
    rates = np.geomspace(*_RATES, _LANES.value)
    single = ours(rates, "single", _STEPS.value, _ROUNDS.value)
    rows = [("driftlab, one lane", *_rates(single), "-")]
    if _PEER.value:
        peer = theirs(_PEER.value, _PYTHON.value, max(2, _STEPS.value // 5), _ROUNDS.value)
        ratio = statistics.median(peer["cpu"]) / statistics.median(single["cpu"])
        rows += [(f"central_flows_jax, jax {peer['jax']}", *_rates(peer), f"{ratio:.1f}")]
        gap = np.abs(np.subtract(single["losses"], peer["losses"])).max()
        rows += [("largest difference of the losses on the way", "-", "-", f"{gap:.2e}")]
        ends = [found["eigenvalues"][-1] for found in (single, peer)]
        rows += [
            (
                "largest eigenvalue when the clock starts, both",
                "-",
                "-",
                f"{ends[0]:.5f}, {ends[1]:.5f}",
            )
        ]
    report.table(
        "One learning rate",
        ("what", "steps a second", "steps a CPU second", "driftlab over peer, CPU"),
        rows,
    )
    several = []
    for strategy in ("vmap", "map"):
        found = ours(rates, strategy, max(2, _STEPS.value // 5), max(1, _ROUNDS.value // 2))
        wall, cpu = (
            statistics.median(found[clock]) / statistics.median(single[clock])
            for clock in ("wall", "cpu")
        )
        several.append((strategy, f"{wall:.1f}", f"{cpu:.1f}", f"{found['residual']:.1e}"))
    report.table(
        f"{_LANES.value} learning rates, a step of all over a step of one",
        ("lanes", "wall", "CPU", "worst residual"),
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
