"""Convolutions inside `lax.scan`: shifted slices against XLA's convolution.

Trains the two-layer CNN of `models.CNN` (3 x 3, 16 and 32 channels, stride 2) on 64 images of
28 x 28 pixels with SGD, all steps in one `lax.scan`, alone and for 8 learning rates under `vmap`,
and prints model-steps per CPU-second: the median of five repeats after one that compiles.

    python -m benchmarks.convolution
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from driftlab import models

REPEATS = 5
BATCH_SIZE = 64
STEPS = {"shift": 200, "lax": 20}


def training_run(method: str, steps: int, lanes: int) -> Callable[[], jax.Array]:
    """Makes a compiled function that trains `lanes` models for some steps.

    Args:
        method: how convolutions are computed, `shift` or `lax`.
        steps: SGD steps.
        lanes: models with learning rates of their own, trained together under `vmap`.

    Returns:
        A function that returns the losses, `(steps,)` or `(lanes, steps)`.
    """
    random = np.random.RandomState(0)
    inputs = jnp.asarray(random.randn(BATCH_SIZE, 28, 28, 1), jnp.float32)
    targets = jnp.asarray(random.randint(0, 10, BATCH_SIZE))
    model = models.CNN(num_outputs=10, method=method)
    loss = models.cross_entropy(models.apply_function(model))
    params = models.initialize(model, jax.random.key(0), inputs)

    def train(learning_rate: jax.Array) -> jax.Array:
        def step(params, _):
            value, gradient = jax.value_and_grad(loss)(params, (inputs, targets))
            return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), value

        return jax.lax.scan(step, params, length=steps)[1]

    if lanes == 1:
        compiled = jax.jit(train)
        return lambda: compiled(jnp.float32(0.01))
    compiled = jax.jit(jax.vmap(train))
    return lambda: compiled(jnp.linspace(0.005, 0.02, lanes, dtype=jnp.float32))


def steps_per_cpu_second(method: str, lanes: int) -> float:
    """Measures the throughput of one method.

    Args:
        method: `shift` or `lax`.
        lanes: models trained together.

    Returns:
        Model-steps per second of processor time, all threads counted.
    """
    steps = max(STEPS[method] // (2 if lanes > 1 else 1), 1)
    run = training_run(method, steps, lanes)
    run().block_until_ready()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        run().block_until_ready()
        seconds.append(time.process_time() - start)
    return steps * lanes / statistics.median(seconds)


def main() -> None:
    """Prints the table."""
    print(f"SGD on a two-layer CNN inside lax.scan, backend {jax.default_backend()}, jax", end=" ")
    print(f"{jax.__version__}; model-steps per CPU-second, median of {REPEATS}")
    print(f"{'lanes':>5} {'shift':>8} {'lax':>8} {'ratio':>6}")
    for lanes in (1, 8):
        shift, reference = (steps_per_cpu_second(method, lanes) for method in ("shift", "lax"))
        print(f"{lanes:>5} {shift:>8.1f} {reference:>8.1f} {shift / reference:>6.1f}")


if __name__ == "__main__":
    main()
