"""`driftlab.sweep` beside its peers: the same work, in the same run, in interleaved rounds.

    python -m benchmarks.sweep [--sections=throughput,memory] [--sizes=1,8,64] [--out=FILE.md]

Run it on an idle machine: torch with two threads collapses beside another job. Rates are
lane-steps a second: one gradient step of one learning rate's network. Runs of `driftlab.sweep`
compile, so they are timed as the difference of a long run and one of a single step, with JAX's
compilation cache on. On an accelerator the claims about a CPU are left out.
"""

import os

# JAX would take most of a GPU's memory at once and leave none to torch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import tempfile
from pathlib import Path

import jax
from absl import app, flags

from benchmarks import fresh, throughput, workload
from benchmarks.report import Report, header

SECTIONS = ("throughput", "measures", "first_result", "memory", "cores", "calibration")

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "Parts to run.")
_SIZES = flags.DEFINE_list("sizes", ["1", "8", "64", "256"], "Numbers of learning rates.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; the median counts.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.5, "About how long a measurement takes.")
_QUICK = flags.DEFINE_bool("quick", False, "Few short rounds of few lanes, to try it out.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")


def main(arguments: list[str]) -> None:
    """Runs the chosen sections and prints their tables and the claims."""
    if arguments[1:]:
        raise app.UsageError(f"arguments without a flag: {arguments[1:]}")
    unknown = set(_SECTIONS.value) - set(SECTIONS)
    if unknown:
        raise app.UsageError(f"no section {', '.join(sorted(unknown))}; known: {SECTIONS}")
    sizes = [int(size) for size in _SIZES.value]
    repeats, seconds = _REPEATS.value, _SECONDS.value
    if _QUICK.value:
        sizes, repeats, seconds = [size for size in sizes if size <= 8] or [8], 2, 0.5
    middle = min(64, max(sizes))
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu:  # neither side in TensorFloat-32
        jax.config.update("jax_default_matmul_precision", "float32")
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        data = Path(folder) / "data.npz"
        workloads, images = workload.load_workloads(data)
        report = Report(_OUT.value)
        report.write(header(images, repeats))
        for section in SECTIONS:
            if section not in _SECTIONS.value:
                continue
            if section == "throughput":
                throughput.agreement(report, workloads["full_batch"])
                throughput.throughput(report, workloads, sizes, middle, seconds, repeats)
            elif section == "measures":
                throughput.measures(report, workloads, middle, seconds, repeats)
            elif section == "calibration":
                throughput.calibration(report, workloads, middle, seconds, repeats)
            elif section == "first_result":
                fresh.first_result(report, data, min(repeats, 3))
            elif section == "memory" and on_cpu:
                fresh.memory(report, data, sizes)
            elif section == "cores" and on_cpu:
                fresh.cores(report, data, middle, repeats)
        report.finish()


if __name__ == "__main__":
    app.run(main)
