"""Sections whose runs need a fresh process each: first result, memory, one core against two."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import peers_jax
from benchmarks.report import Claim, Report

_FIRST_RESULT_LANES, _FIRST_RESULT_STEPS = 64, 100
_ROOT = Path(__file__).parents[1]


def child(
    peer: str, workload: str, lanes: int, steps: str, data: Path,
    *, strategy: str = "auto", cache: str = "", cores: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Runs `benchmarks.child` and reads its answer.

    Args:
        peer: a name of `peers_jax`.
        workload: a key of `load_workloads`.
        lanes: how many learning rates.
        steps: numbers of steps, one run each, separated by commas.
        data: the workloads' arrays.
        strategy: driftlab's lane strategy.
        cache: folder of JAX's compilation cache; none by default.
        cores: which cores it may use, as `taskset -c` takes them; all by default.

    Returns:
        What the child printed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    pinned = ["taskset", "-c", cores] if cores else []
    arguments = [peer, workload, strategy, str(lanes), steps, str(data), str(time.time())]
    command = [*pinned, sys.executable, "-m", "benchmarks.child", *arguments]
    done = subprocess.run(
        command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def first_result(report: Report, data: Path, repeats: int) -> None:
    """How long until 64 rates are done, with imports and compilation, in a fresh process."""
    peers = (peers_jax.DRIFTLAB, peers_jax.TRACED, peers_jax.BAKED)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for peer in peers:
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    answer = child(
                        peer, "mini_batch", _FIRST_RESULT_LANES, str(_FIRST_RESULT_STEPS), data,
                        cache=cache,
                    )  # fmt: skip
                    found.setdefault((state, peer), []).append(answer)
    rows, totals = [], {}
    for (state, peer), answers in sorted(found.items()):
        imports, result = (
            statistics.median(answer[name] for answer in answers)
            for name in ("import_seconds", "result_seconds")
        )
        totals[state, peer] = imports + result
        rows.append([state, peer, imports, result, imports + result])
    for row in rows:
        row.append(row[-1] / totals[row[0], peers_jax.DRIFTLAB])
    report.table(
        f"First result of {_FIRST_RESULT_LANES} rates, {_FIRST_RESULT_STEPS} steps, batch 128",
        ("cache", "peer", "imports s", "compile + run s", "total s", "x driftlab"), rows,
    )  # fmt: skip
    share = totals["cold", peers_jax.DRIFTLAB] / totals["cold", peers_jax.BAKED]
    text = "first result of 64 rates in < 1/3 of the recompiling loop's time"
    report.claims.append(Claim(text, f"{share:.2f} of it", share < 1 / 3))


def memory(report: Report, data: Path, sizes: list[int]) -> None:
    """Peak resident memory by number of lanes."""
    nothing = child(peers_jax.DRIFTLAB, "mini_batch", 1, "", data)["peak_mib"]
    rows = []
    for workload, steps in (("full_batch", 2), ("mini_batch", 10)):
        for strategy in ("auto", "map", "chunk:8", "vmap"):
            peaks = [
                child(
                    peers_jax.DRIFTLAB, workload, lanes, str(steps), data, strategy=strategy
                )["peak_mib"]
                for lanes in sizes
            ]  # fmt: skip
            rows.append([workload, strategy, *map(round, peaks)])
            if strategy == "auto" and len(sizes) > 1:
                report.claims.append(
                    Claim(
                        f"memory of auto is flat in S, {workload} (lanes themselves: 1.6 MiB each)",
                        f"{peaks[0]:.0f} MiB at S={sizes[0]}, {peaks[-1]:.0f} at S={sizes[-1]}",
                        peaks[-1] < 2 * peaks[0],
                    )
                )
    report.table(
        f"Peak resident memory, MiB ({nothing:.0f} with imports and data alone)",
        ("workload", "lanes", *(f"S={lanes}" for lanes in sizes)), rows,
    )  # fmt: skip


def cores(report: Report, data: Path, lanes: int, repeats: int) -> None:
    """The wall clock of `driftlab.sweep` on one core against that on all."""
    available = sorted(os.sched_getaffinity(0))
    rows = []
    for workload, steps in (("full_batch", 5), ("mini_batch", 150)):
        rates: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as cache:
            for _ in range(repeats):
                for used in (str(available[0]), ",".join(map(str, available))):
                    answer = child(
                        peers_jax.DRIFTLAB, workload, lanes, f"1,{steps},1,{steps}", data,
                        cache=cache, cores=used,
                    )  # fmt: skip
                    # The first pair may compile.
                    short, long = (wall for wall, _ in answer["runs"][2:])
                    rates.setdefault(used, []).append((steps - 1) * lanes / (long - short))
        one, several = rates.values() if len(rates) == 2 else [*rates.values()] * 2
        ratio = statistics.median(b / a for a, b in zip(one, several, strict=True))
        rows.append([workload, lanes, statistics.median(one), statistics.median(several), ratio])
        report.claims.append(
            Claim(
                f"{len(available)} cores >= 1.8x one core, {workload}, S={lanes}",
                f"{ratio:.2f}x",
                ratio >= 1.8,
            )
        )
    columns = ("workload", "S", "one core", f"{len(available)} cores", "ratio")
    report.table("Lane-steps per second of wall by cores", columns, rows)
