"""The curvature benchmark's peers: PyHessian and curvlinops in torch, matfree in JAX."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

with warnings.catch_warnings():  # what they import is deprecated by what that imports
    warnings.simplefilter("ignore")
    import curvlinops  # pyright: ignore[reportMissingImports] (the extra bench)
    import pyhessian  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from matfree import decomp, eig, stochtrace  # pyright: ignore[reportMissingImports]
    from pyhessian.utils import hessian_vector_product  # pyright: ignore[reportMissingImports]
from scipy.sparse.linalg import aslinearoperator, eigsh

from benchmarks.curvature_problem import Problem, rounds

DEFAULT_THREADS = torch.get_num_threads()
_CROSS_ENTROPY = torch.nn.CrossEntropyLoss()


class _Counting(NamedTuple):
    """What scipy takes for a linear operator."""

    shape: tuple[int, int]
    dtype: np.dtype
    matvec: Callable[[np.ndarray], np.ndarray]


class Torch:
    """The same network, weights and data in torch, and what its two peers do with them.

    Every method makes the peer's operator anew, as the JAX programs linearise anew; curvlinops'
    optional check that the data are deterministic is left out. PyHessian adds its gradient to what
    the model already holds (three operators in a row find three times the eigenvalues), so the
    model's gradients are cleared for it.
    """

    def __init__(self, problem: Problem):
        layers: list[Any] = []
        for layer in (problem.params[f"layer_{i}"] for i in range(len(problem.params))):
            linear = torch.nn.Linear(*layer["kernel"].shape)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(np.array(layer["kernel"].T)))
                linear.bias.copy_(torch.tensor(np.array(layer["bias"])))
            layers += [linear, torch.nn.ReLU()]
        self.model = torch.nn.Sequential(*layers[:-1])
        self.params = list(self.model.parameters())
        inputs, targets = (torch.tensor(np.array(array)) for array in problem.data)
        self.data = inputs, targets.long()

    def loss(self) -> float:
        """The loss, to see that it is the same."""
        with torch.no_grad():
            return float(_CROSS_ENTROPY(self.model(self.data[0]), self.data[1]))

    def gradient(self) -> Any:
        """One gradient."""
        value = _CROSS_ENTROPY(self.model(self.data[0]), self.data[1])
        return torch.autograd.grad(value, self.params)

    def pyhessian(self) -> Any:
        """PyHessian's operator: the gradient's graph, kept."""
        self.model.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # of the cycle that create_graph makes
            warnings.simplefilter("ignore")
            return pyhessian.hessian(self.model, _CROSS_ENTROPY, data=self.data, cuda=False)

    def curvlinops(self) -> Any:
        """The operator of curvlinops: the whole data set in one batch."""
        return curvlinops.HessianLinearOperator(
            self.model, _CROSS_ENTROPY, self.params, [self.data], check_deterministic=False
        )

    def pyhessian_products(self, count: int) -> Any:
        """Products from one kept graph."""
        operator = self.pyhessian()
        vector = [torch.ones_like(param) for param in self.params]
        for _ in range(count):
            product = hessian_vector_product(operator.gradsH, operator.params, vector)
        return product

    def curvlinops_products(self, count: int) -> Any:
        """Products, each of which starts from the parameters."""
        operator = self.curvlinops()
        vector = torch.ones(operator.shape[1])
        for _ in range(count):
            product = operator @ vector
        return product

    def pyhessian_eigenpairs(self, k: int, tolerance: float) -> tuple[np.ndarray, PyTree, int]:
        """Power iteration with deflation: descending values, vectors, products."""
        operator, counted = self.pyhessian(), []
        operator.gradsH[0].register_hook(lambda _: counted.append(1))
        values, vectors = operator.eigenvalues(tol=tolerance, top_n=k)
        flat = [torch.cat([part.ravel() for part in vector]).numpy() for vector in vectors]
        order = np.argsort(values)[::-1]
        return np.asarray(values)[order], self._tree(np.stack(flat)[order]), len(counted)

    def curvlinops_eigenpairs(self, k: int, tolerance: float) -> tuple[np.ndarray, PyTree, int]:
        """ARPACK, by scipy: descending values, vectors, products."""
        operator, counted = self.curvlinops().to_scipy(), []

        def product(vector: np.ndarray) -> np.ndarray:
            counted.append(1)
            return operator @ vector

        counting = aslinearoperator(_Counting(operator.shape, operator.dtype, product))
        values, vectors = eigsh(counting, k=k, which="LA", tol=tolerance)  # pyright: ignore
        return values[::-1], self._tree(vectors.T[::-1]), len(counted)

    def pyhessian_trace(self, products: int) -> tuple[float, float]:
        """Hutchinson's estimate and its standard error, without the early stop."""
        samples = self.pyhessian().trace(maxIter=products, tol=-np.inf)
        if len(samples) != products:
            raise RuntimeError(f"{len(samples)} samples, not {products}")
        return float(np.mean(samples)), float(np.std(samples, ddof=1) / products**0.5)

    def curvlinops_trace(self, method: str, products: int) -> tuple[float, None]:
        """An estimate by "hutchinson", "hutch++" or "xtrace"; none says its standard error."""
        function = {
            "hutchinson": curvlinops.hutchinson_trace,
            "hutch++": curvlinops.hutchpp_trace,
            "xtrace": curvlinops.xtrace,
        }[method]
        return float(function(self.curvlinops(), products)), None

    def pyhessian_density(self, steps: int) -> str:
        """One probe; version 0.1 dies after the products, where torch.eig was: says how."""
        try:
            self.pyhessian().density(iter=steps, n_v=1)
        except RuntimeError as error:
            return f"crashes: {str(error).split('.')[0]}"
        return "works"

    def curvlinops_density(
        self, steps: int, boundaries: tuple[float, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One probe: grid and density; without boundaries it finds them by ARPACK first."""
        grid, values = curvlinops.lanczos_approximate_spectrum(
            self.curvlinops(), steps, boundaries=boundaries
        )
        return grid.numpy(), values.numpy()

    def cheaper_threads(self, counts: Sequence[int]) -> int:
        """The number of threads at which products take the least processor time."""

        def products() -> None:
            self.pyhessian_products(3)
            self.curvlinops_products(3)

        products()  # the first one of a process takes seconds
        runs = {str(count): threaded(products, count) for count in counts}
        timed = rounds(runs, 3)
        return min(counts, key=lambda count: timed[str(count)].median("cpu"))

    def _tree(self, flat: np.ndarray) -> PyTree[np.ndarray]:
        """Rows in torch's order of parameters, as a tree of JAX's."""
        tree: dict[str, dict[str, np.ndarray]] = {}
        ends = np.cumsum([param.numel() for param in self.params])
        parts = np.split(flat, ends[:-1], axis=1)
        for index in range(len(parts) // 2):
            weight, bias = parts[2 * index : 2 * index + 2]
            shape = tuple(self.params[2 * index].shape)
            kernel = weight.reshape(-1, *shape).transpose(0, 2, 1)
            tree[f"layer_{index}"] = {"kernel": kernel, "bias": bias}
        return tree


def threaded(run: Callable[[], Any], threads: int) -> Callable[[int], Any]:
    """A torch peer as `rounds` takes it, on a number of threads of torch's own pool.

    Args:
      run: what it does.
      threads: how many.

    Returns:
      The peer.
    """

    def peer(_: int) -> Any:
        torch.set_num_threads(threads)
        return run()

    return peer


def matfree_eigenpairs(
    product: Callable[[PyTree], PyTree], like: PyTree, k: int, products: int, key: Array
) -> tuple[Array, PyTree]:
    """A partial eigendecomposition by matfree, without any sign of convergence.

    Args:
      product: `vector -> H vector`.
      like: a tree of parameters.
      k: pairs to keep.
      products: Lanczos steps.
      key: of the first vector.

    Returns:
      Descending values and vectors.
    """
    decompose = eig.eigh_partial(decomp.tridiag_sym(products, custom_vjp=False))
    values, vectors = decompose(product, random_tree(like, key))
    return values[-k:][::-1], jax.tree.map(lambda leaf: leaf[-k:][::-1], vectors)


def matfree_trace(
    product: Callable[[PyTree], PyTree], like: PyTree, products: int, key: Array
) -> tuple[Array, Array]:
    """Hutchinson's estimate by matfree, one product at a time, and its standard error.

    Args:
      product: `vector -> H vector`.
      like: a tree of parameters.
      products: random vectors.
      key: of the vectors.

    Returns:
      `(estimate, standard error)`.
    """
    sampler = stochtrace.sampler_signs(like, num=1)
    estimate = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler)
    samples = jax.lax.map(lambda k: estimate(product, k), jax.random.split(key, products))
    return samples.mean(), samples.std(ddof=1) / products**0.5


def random_tree(like: PyTree[Array], key: Array) -> PyTree[Array]:
    """Standard normal numbers in the shapes of a tree.

    Args:
      like: the tree.
      key: draws them.

    Returns:
      The tree of numbers.
    """
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, leaf.shape, jnp.result_type(leaf))
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)
