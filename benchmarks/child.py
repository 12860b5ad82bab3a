"""One peer in a fresh process; started by the sections of `fresh.py`, prints a line of JSON.

    python -m benchmarks.child PEER WORKLOAD STRATEGY LANES STEPS[,STEPS...] DATA STARTED

`STARTED` is `time.time()` just before the process was started.
"""

import json
import resource
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Runs the peer once for each number of steps and prints what that took."""
    peer_name, key, strategy, lanes, steps, data, started = arguments
    from benchmarks import peers_jax, timing, workload

    imported = time.time()
    work = workload.load_workloads(Path(data))[0][key]
    begun = time.time()
    if peer_name == peers_jax.DRIFTLAB:
        peer = peers_jax.driftlab(work, int(lanes), strategy)
    else:
        peer = peers_jax.by_hand(peer_name, work, int(lanes))
    runs = [timing.measure(peer.run, int(count)) for count in steps.split(",") if count]
    result = {
        "import_seconds": imported - float(started),
        "result_seconds": time.time() - begun,
        "runs": runs,
        "peak_mib": _peak_mib(),
    }
    print(json.dumps(result), flush=True)


def _peak_mib() -> float:
    """The most memory this program had at once."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        # Not on Linux: there this would count the parent, until the program was loaded over it.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1:])
