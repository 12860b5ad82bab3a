"""`driftlab.curvature` beside its peers: the same work, in the same run, in interleaved rounds.

    python -m benchmarks.curvature [--sections=eigenvalues,trace] [--quick] [--out=FILE.md]

The peers are PyHessian and curvlinops (torch) and matfree (JAX), on one network with the same
weights and data. Run it on an idle machine: torch's threads wait for each other spinning, which
counts as processor time. So torch gets one thread or its default number, whichever takes less
processor time for a few products; the section `product` shows both. Compilation is not counted,
but reported. Of the sections, `density` takes longest: two minutes.
"""

import datetime
import os
import platform
import sys
import tempfile

import jax
from absl import app, flags

from benchmarks import curvature_costs as costs
from benchmarks import curvature_peers as peers
from benchmarks import curvature_problem as problems
from benchmarks import curvature_spectra as spectra
from benchmarks import report as reports

SECTIONS = ("product", "eigenvalues", "trace", "density", "recording", "lanes")
_PACKAGES = (
    "jax", "jaxlib", "numpy", "scipy", "matfree", "lineax", "torch", "pyhessian",
    "curvlinops-for-pytorch",
)  # fmt: skip

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "Parts to run.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds; the median counts.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "A small problem and a round of each, to try it out.")
_TORCH_THREADS = flags.DEFINE_integer(
    "torch_threads",
    None,
    "Threads of the torch peers; by default one or torch's own number, whichever is cheaper.",
    lower_bound=1,
)
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
    with tempfile.TemporaryDirectory() as cache:
        # Each run of a sweep compiles, and there are many in the section `recording`.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        _run(_QUICK.value, 1 if _QUICK.value else _REPEATS.value)


def _run(quick: bool, repeats: int) -> None:
    problem = problems.trained(problems.SMALL if quick else problems.LARGE, 5000, 220)
    if quick:
        inputs, targets = problem.data
        problem = problem._replace(data=(inputs[:500], targets[:500]))
    small = problems.trained(problems.SMALL, 1000, 220)
    torch, compiler = peers.Torch(problem), problems.Compiler()
    report = reports.Report(_OUT.value)
    report.write(_header(problem, torch, repeats))
    threads = tuple(sorted({1, peers.DEFAULT_THREADS}))
    best = _TORCH_THREADS.value or torch.cheaper_threads(threads)
    for section in SECTIONS:
        if section not in _SECTIONS.value:
            continue
        if section == "product":
            costs.product(report, problem, torch, compiler, threads, repeats)
        elif section == "eigenvalues":
            spectra.eigenvalues(report, problem, torch, compiler, best, repeats)
        elif section == "trace":
            spectra.trace(report, problem, torch, compiler, best, repeats, 30)
        elif section == "density":
            spectra.density(report, problem, torch, compiler, best, min(repeats, 2), 40)
        elif section == "recording":
            lanes, seconds = (4, 0.5) if quick else (64, 2.0)
            costs.recording(report, small, lanes, seconds, max(repeats, 2))
        elif section == "lanes":
            medium = problems.trained(problems.MEDIUM, 2000, 220)
            costs.lanes(report, [small] if quick else [small, medium], compiler, repeats)
    seconds = sorted(compiler.seconds.items(), key=lambda item: -item[1])
    if seconds:
        report.table("Compilation, not counted above", ("program", "wall s"), seconds)
    report.finish()


def _header(problem: problems.Problem, torch: peers.Torch, repeats: int) -> str:
    loss = float(jax.jit(problem.loss)(problem.params, problem.data))
    versions = ", ".join(f"{name} {reports.version(name)}" for name in _PACKAGES)
    lines = [
        "# driftlab.curvature beside its peers",
        "",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- machine: {reports.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} "
        "at the start",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- work: ReLU network {problem.name}, {problem.size} parameters, float32, trained to loss "
        f"{loss:.4f} (torch finds {torch.loss():.4f})",
        f"- command: `python -m benchmarks.curvature {' '.join(sys.argv[1:])}`".rstrip("` ") + "`",
        f"- every number is the median of {repeats} rounds (of the density 2 at most) in which "
        "each peer runs once; CPU is user and system time of all threads",
        "",
        "All peers have the same weights and data, and multiply with the exact Hessian over all "
        "examples in one batch. Each call makes its operator anew: driftlab linearises, PyHessian "
        "takes a gradient with its graph. matfree gets the product of its documentation (jvp of "
        "grad) and driftlab's own.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
