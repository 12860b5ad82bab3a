"""One peer in a fresh process; started by the sections of `fresh.py`, prints a line of JSON.

    python -m benchmarks.child PEER WORKLOAD STRATEGY LANES STEPS[,STEPS...] DATA STARTED

`STARTED` is `time.time()` just before the process was started.
"""

import json
import resource
import sys
import time


def main(arguments: list[str]) -> None:
    """Runs the peer once for each number of steps and prints what that took."""
    peer_name, key, strategy, lanes, steps, data, started = arguments
    from pathlib import Path

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
        # Linux counts kibibytes, macOS bytes.
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
