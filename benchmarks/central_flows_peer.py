"""The peer's central flow, in the peer's own environment; prints a line of JSON.

    PYTHON -m benchmarks.central_flows_peer FOLDER STEPS ROUNDS

FOLDER is a checkout of central_flows_jax, used as it is.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import central_flows_network as network


def main(arguments: list[str]) -> None:
    """Follows the flow to the edge, then times rounds of steps, each from the same place."""
    folder, steps, rounds = arguments[0], int(arguments[1]), int(arguments[2])
    sys.path.insert(0, f"{folder}/src")
    import central_flows_jax as peer  # pyright: ignore[reportMissingImports]

    work = network.make()
    optimizer = peer.GradientDescent(lr=network.LEARNING_RATE)
    state = optimizer.init(jnp.asarray(work.start))
    flow = peer.Flow(lambda w: network.loss(w, *map(jnp.asarray, work[:2])), optimizer)
    random = np.random.default_rng(1)
    basis = random.normal(size=(work.start.size, network.EIGENVECTORS)).astype(np.float32)
    carry = jnp.asarray(work.start), state, jnp.asarray(basis)
    losses, eigenvalues = [], []
    for _ in range(network.WARM_UP):
        carry, found = flow.central(*carry, substeps=network.SUBSTEPS)
        losses.append(float(found["L"]))
        eigenvalues.append(float(found["eigs"].max()))
    begin, seconds, cpu = carry, [], []
    for _ in range(rounds):
        carry = begin
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            carry, found = flow.central(*carry, substeps=network.SUBSTEPS)
        jax.block_until_ready(carry)
        seconds.append((time.perf_counter() - wall) / steps)
        cpu.append((time.process_time() - processor) / steps)
    result = {
        "wall": seconds, "cpu": cpu, "losses": losses, "eigenvalues": eigenvalues,
        "jax": jax.__version__,
    }  # fmt: skip
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
