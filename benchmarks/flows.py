"""`driftlab.flows` beside a bare loop and torchdiffeq: the same fields, in the same run.

    python -m benchmarks.flows [--sections=gradient,lanes] [--quick] [--out=FILE.md]

`gradient` is gradient flow in equal steps of the classical Runge-Kutta method and by the adaptive
default: what one evaluation of the field costs in each. `lanes` is the order-2 flow of 16 learning
rates with the lane strategy that is fastest here, against torchdiffeq one at a time. Run it on an
idle machine. Compilation is not counted, but reported.
"""

import datetime
import os
import platform
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports] (the extra bench)
from absl import app, flags
from jaxtyping import Array, PyTree

from benchmarks import flows_problem as problems
from benchmarks import report as reports
from benchmarks.curvature_problem import Compiler, Timed, rounds
from benchmarks.timing import measure
from driftlab import curvature
from driftlab.flows import Solved, gradient_descent_flow, gradient_flow, solve, solve_lanes

SECTIONS = ("gradient", "lanes")
_PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "numpy", "torch", "torchdiffeq")
_RTOL = 1e-5  # driftlab's own in float32, and atol a hundredth of it
_RATES, _QUICK_RATES = 16, 4
_OVERHEAD, _FASTER = 0.10, 3.0

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "Parts to run.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds; the median counts.", lower_bound=1)
_ITERATIONS = flags.DEFINE_integer(
    "iterations", 10, "Of each learning rate: the order-2 flow runs for as long.", lower_bound=1
)
_QUICK = flags.DEFINE_bool("quick", False, "500 examples, 4 rates, one round, to try it out.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")


def main(arguments: list[str]) -> None:
    """Runs the chosen sections and prints their tables and the claims."""
    if arguments[1:]:
        raise app.UsageError(f"arguments without a flag: {arguments[1:]}")
    unknown = set(_SECTIONS.value) - set(SECTIONS)
    if unknown:
        raise app.UsageError(f"no section {', '.join(sorted(unknown))}; known: {SECTIONS}")
    if jax.default_backend() != "cpu":
        raise app.UsageError("the peers run on the CPU: set JAX_PLATFORMS=cpu")
    quick = _QUICK.value
    repeats = 1 if quick else _REPEATS.value
    problem = problems.load(500 if quick else 5000)
    peer, compiler = problems.Torch(problem), Compiler()
    report = reports.Report(_OUT.value)
    report.write(_header(problem, repeats))
    threads = _fastest_threads(peer)
    if "gradient" in _SECTIONS.value:
        gradient(report, problem, peer, compiler, threads, repeats, 5 if quick else 25)
    if "lanes" in _SECTIONS.value:
        count = _QUICK_RATES if quick else _RATES
        lanes(report, problem, peer, compiler, threads, repeats, count)
    seconds = sorted(compiler.seconds.items(), key=lambda item: -item[1])
    report.table("Compilation, not counted above", ("program", "wall s"), seconds)
    report.finish()


def gradient(
    report: reports.Report, problem: problems.Problem, peer: problems.Torch, compiler: Compiler,
    threads: int, repeats: int, steps: int,
) -> None:  # fmt: skip
    """Seconds an evaluation of gradient flow, by who calls it."""
    duration, solver = 0.05 * steps, problems.classical_solver()

    def field(batch: Any) -> Any:
        return gradient_flow(lambda params: problem.loss(params, batch))

    def alone(params: PyTree, batch: Any) -> PyTree:
        def step(params: PyTree, _: None) -> tuple[PyTree, None]:
            slope = field(batch)(0.0, params, None)
            return jax.tree.map(lambda p, f: p + duration / 4 / steps * f, params, slope), None

        return jax.lax.scan(step, params, None, length=4 * steps)[0]

    def by_hand(params: PyTree, batch: Any) -> PyTree:
        return problems.runge_kutta(field(batch), params, duration, steps)

    def diffrax_alone(params: PyTree, batch: Any) -> PyTree:
        import diffrax

        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field(batch)), solver, 0.0, duration, duration / steps, params
        )  # fmt: skip
        assert found.ys is not None
        return jax.tree.map(lambda leaf: leaf[0], found.ys)

    def equal(params: PyTree, batch: Any) -> PyTree:
        return solve(field(batch), params, duration, solver=solver, steps=steps).y

    def adaptive(params: PyTree, batch: Any) -> tuple[PyTree, Array]:
        found = solve(field(batch), params, duration)
        return found.y, found.evaluations

    programs = {
        "gradient descent, a bare scan": alone,
        "RK4, a bare scan": by_hand,
        "RK4, diffrax.diffeqsolve": diffrax_alone,
        "RK4, driftlab": equal,
        "Tsit5 adaptive, driftlab": adaptive,
    }
    runs = {}
    for name, program in programs.items():
        run = compiler(name, program, problem.params, problem.data)
        runs[name] = lambda _, run=run: run(problem.params, problem.data)
    peers = {"RK4, torchdiffeq": steps, "dopri5 adaptive, torchdiffeq": None}
    counts = dict.fromkeys(runs, 4 * steps)
    for name, count in peers.items():

        def run(_: int, count: int | None = count, name: str = name) -> Any:
            torch.set_num_threads(threads)
            found = peer.solve(None, duration, count, _RTOL, _RTOL / 100)
            counts[name] = peer.evaluations
            return found

        runs[name] = run
    timed = rounds(runs, repeats)
    end, evaluations = timed["Tsit5 adaptive, driftlab"].results[0]
    counts["Tsit5 adaptive, driftlab"] = int(evaluations)
    ends = {name: one.results[0] for name, one in timed.items()}
    ends["Tsit5 adaptive, driftlab"] = end
    base = timed["RK4, a bare scan"]
    rows, overheads = [], {}
    for name, one in timed.items():
        share = counts["RK4, a bare scan"] / counts[name]
        overheads[name] = [one.ratio(base, clock) * share for clock in ("cpu", "wall")]
        apart = problems.distance(ends[name], ends["RK4, a bare scan"], problem.params)
        rows.append([name, counts[name], *_each(one, counts[name]), *overheads[name], apart])
    report.table(
        f"Gradient flow for {duration:g}, an evaluation ({problem.name})",
        ("how", "evaluations", "CPU ms", "wall ms", "of bare RK4 CPU", "of wall", "from its end"),
        rows,
    )
    report.write(
        f"From its end: the distance to bare RK4's, of the way. torch: {threads} thread(s)."
    )
    for name, how in (("RK4, driftlab", "equal steps"), ("Tsit5 adaptive, driftlab", "adaptive")):
        cpu, wall = (100 * (ratio - 1) for ratio in overheads[name])
        report.claims.append(
            reports.Claim(
                f"gradient flow: a solve's overhead over bare RK4 < {100 * _OVERHEAD:.0f}% "
                f"an evaluation, {how}",
                f"CPU {cpu:+.1f}%, wall {wall:+.1f}%",
                max(cpu, wall) < 100 * _OVERHEAD,
            )
        )


def lanes(
    report: reports.Report, problem: problems.Problem, peer: problems.Torch, compiler: Compiler,
    threads: int, repeats: int, size: int,
) -> None:  # fmt: skip
    """The order-2 flow of 16 learning rates, each for a number of its iterations."""
    sharpness, iterations = float(_sharpness(problem)), _ITERATIONS.value
    rates = np.geomspace(0.01, 2 / sharpness, size).astype(np.float32)

    def program(strategy: str, rtol: float) -> Any:
        def one(params: PyTree, batch: Any, rate: Array) -> Solved:
            loss = lambda params: problem.loss(params, batch)  # noqa: E731
            field = gradient_descent_flow(loss, rate, 2, route="closed_form")
            return solve(field, params, iterations * rate, rtol=rtol, atol=rtol / 100)

        def all_of_them(params: PyTree, batch: Any, rates: Array) -> Solved:
            return solve_lanes(lambda rate: one(params, batch, rate), rates, strategy, rates)

        arguments = problem.params, problem.data, jnp.asarray(rates)
        run = compiler(f"{strategy}, rtol {rtol:g}", all_of_them, *arguments)
        return lambda _: run(*arguments)

    tried = {strategy: program(strategy, _RTOL) for strategy in ("map", "chunk:4", "vmap")}
    first = rounds(tried, 1)
    chosen = min(first, key=lambda name: first[name].median("wall"))
    rows = [
        [f"driftlab, {name}", *_whole(one), int(np.asarray(one.results[0].evaluations).sum())]
        for name, one in first.items()
    ]
    report.table(f"The order-2 flow of {size} learning rates, one round to choose", _COLUMNS, rows)
    counts = np.zeros(size, int)

    def torch_one_by_one(_: int) -> list[PyTree]:
        torch.set_num_threads(threads)
        ends = []
        for lane, rate in enumerate(rates.tolist()):
            ends.append(peer.solve(rate, iterations * rate, None, _RTOL, _RTOL / 100))
            counts[lane] = peer.evaluations
        return ends

    timed = rounds({"driftlab": tried[chosen], "torchdiffeq": torch_one_by_one}, repeats)
    mine, theirs = timed["driftlab"], timed["torchdiffeq"]
    finer = rounds({"driftlab": program(chosen, _RTOL / 10)}, 1)["driftlab"]
    judge, errors = problems.Judge(problem), {}
    for lane in (0, size // 2, size - 1):
        end = judge.end(rates[lane], iterations * float(rates[lane]))
        found = [
            jax.tree.map(lambda leaf, lane=lane: leaf[lane], one.results[0].y)
            for one in (mine, finer)
        ]
        found.insert(1, theirs.results[0][lane])
        errors[lane] = [problems.distance(one, end, problem.params) for one in found]
    evaluations, more = (np.asarray(one.results[0].evaluations) for one in (mine, finer))
    rows = [
        [f"driftlab, {chosen}", *_whole(mine), int(evaluations.sum())],
        [f"torchdiffeq, {threads} thread(s)", *_whole(theirs), int(counts.sum())],
        [f"driftlab, {chosen}, a tenth of the tolerance", *_whole(finer), int(more.sum())],
    ]
    report.table(f"The same, medians of {repeats} round(s), one of the last row", _COLUMNS, rows)
    columns = ["learning rate", "h lambda"]
    for what in ("evaluations", "error"):
        columns += [what, f"{what}, torchdiffeq", f"{what}, a tenth"]
    report.table(
        "Lanes",
        columns,
        [
            [
                *(float(rate), float(rate) * sharpness),
                *(int(evaluations[k]), int(counts[k]), int(more[k])),
                *errors.get(k, [None] * 3),
            ]
            for k, rate in enumerate(rates)
        ],
    )
    report.write(
        f"Each for {iterations} iterations' time, rtol {_RTOL:g}, atol {_RTOL / 100:g}; lambda = "
        f"{sharpness:.3g} at the start. Error: the distance to a float64 solve at rtol 1e-7, of "
        "the way from the start. Evaluations of `-(g + (h/2) H g)`: a gradient and a "
        "Hessian-vector product, the product in torch by a second backward pass."
    )
    for one, how, index in ((mine, "the same tolerances", 0), (finer, "a tenth of its", 2)):
        # The tenth ran once, and is compared with the medians.
        paired = len(one.spent) == len(theirs.spent)
        cpu, wall = (
            theirs.ratio(one, clock) if paired else theirs.median(clock) / one.median(clock)
            for clock in ("cpu", "wall")
        )
        worst = [max(row[column] for row in errors.values()) for column in (index, 1)]
        report.claims.append(
            reports.Claim(
                f"{size} learning rates of the order-2 flow: >= {_FASTER:g}x torchdiffeq, {how}",
                f"{wall:.2f}x wall, {cpu:.2f}x CPU; largest error {worst[0]:.2g}, its "
                f"{worst[1]:.2g}",
                min(wall, cpu) >= _FASTER,
            )
        )


_COLUMNS = ("how", "CPU s", "wall s", "evaluations")


class _Clock(NamedTuple):
    threads: int
    wall: float


def _fastest_threads(peer: problems.Torch) -> int:
    """One of torch's threads or its own number: what evaluates the order-2 field sooner."""
    found = []
    for threads in sorted({1, problems.DEFAULT_THREADS}):
        torch.set_num_threads(threads)
        peer.modified(peer.start(), 0.1)
        walls = [
            measure(lambda _: [peer.modified(peer.start(), 0.1) for _ in range(3)], 0).wall
            for _ in range(3)
        ]
        found.append(_Clock(threads, min(walls)))
    return min(found, key=lambda one: one.wall).threads


def _each(timed: Timed, count: int) -> list[float]:
    return [1e3 * timed.median(clock) / count for clock in ("cpu", "wall")]


def _whole(timed: Timed) -> list[float]:
    return [timed.median(clock) for clock in ("cpu", "wall")]


def _sharpness(problem: problems.Problem) -> Array:
    operator = curvature.hessian(problem.loss, problem.params, problem.data)
    return curvature.eigenpairs(operator, 1).values[0]


def _header(problem: problems.Problem, repeats: int) -> str:
    versions = ", ".join(f"{name} {reports.version(name)}" for name in _PACKAGES)
    lines = [
        "# driftlab.flows beside a bare loop and torchdiffeq",
        "",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- machine: {reports.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} "
        "at the start",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- work: tanh network {problem.name}, cross-entropy in one batch, float32",
        f"- command: `python -m benchmarks.flows {' '.join(sys.argv[1:])}`".rstrip("` ") + "`",
        f"- every number is the median of {repeats} rounds in which each peer runs once; CPU is "
        "user and system time of all threads",
        "- torch gets one thread or its default number, whichever evaluates the field sooner",
        "- beside other work the wall favours whoever has more threads: claims of speed ask for "
        "both clocks",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
