"""One list of losses, and one of spectra, that every part of `curvature` is tested on.

All have 28 parameters (but Rosenbrock's function, with 2), so that compiled programs are shared.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from driftlab import models
from driftlab.curvature import symmetric_operator
from driftlab.data import problems

SIZE = 28

# Tests compile much and compute little.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """A loss `output_loss(model(params, batch), batch) + penalty(params)` at params, on data."""

    name: str
    params: Any
    data: Any = ()
    model: Callable | None = None
    output_loss: Callable | None = None
    family: str | None = None
    penalty: Callable = lambda params: 0.0
    direct: Callable | None = None  # the loss, where there is no model

    @property
    def loss(self) -> Callable:
        """`loss(params, batch) -> scalar`."""
        if self.direct is not None:
            return self.direct
        return lambda p, batch: self.output_loss(self.model(p, batch), batch) + self.penalty(p)

    @property
    def examples(self) -> int:
        """Examples in the data; 0 without."""
        leaves = jax.tree.leaves(self.data)
        return leaves[0].shape[0] if leaves else 0


def draw(seed, *shape):
    """Standard normal numbers, the same ones each time."""
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape))


def cross_entropy(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def squared_error(outputs, batch):
    return 0.5 * ((outputs - batch[1]) ** 2).sum(1).mean()


def labels(count, classes):
    return jnp.asarray(np.random.RandomState(7).randint(classes, size=count))


def flax_case(name, module, inputs, targets, output_loss, family, **others):
    """A network of driftlab's own, with biases moved away from zero."""
    params = models.initialize(module, jax.random.key(1), inputs[:1])
    params = jax.tree.map(lambda a: a + 0.3 * draw(a.size, *a.shape), params)
    apply = models.apply_function(module)
    return Case(
        name, params, (inputs, targets), lambda p, b: apply(p, b[0]), output_loss, family, **others
    )


def in_a_list(params, batch):
    """A two-layer network 3-3-4 whose params are a list of pairs."""
    (first, bias), (second, other) = params
    hidden = jnp.tanh(batch[0] @ first + bias[None])
    return hidden @ second + other[None]


def in_one_array(params, batch):
    """A linear classifier of 7 features, 4 classes."""
    return batch[0] @ params


def of_mixed_shapes(params, batch):
    """A scalar, a vector and a three-dimensional array; batch[0] is `(n, 4)`."""
    mixed = jnp.einsum("nd,abd->nab", batch[0], params["cube"])
    return jnp.sin(params["scale"] * mixed).sum(1) + params["shift"][None]


def linear_in_params(params, batch):
    """A loss whose Hessian is zero."""
    return (batch[0] @ params).mean()


def small_mlp(activation):
    return models.MLP(widths=(3,), num_outputs=4, activation=activation)


def make_cases():
    """Every case, by name."""
    three, four = draw(1, 11, 3), labels(11, 4)
    listed = [(draw(2, 3, 3), draw(3, 3)), (draw(4, 3, 4), draw(5, 4))]
    mixed = {"scale": jnp.asarray(0.7), "shift": draw(8, 3), "cube": draw(9, 2, 3, 4)}
    spectrum = np.concatenate([[50.0, 7.0, 7.0], np.linspace(-3, 2, SIZE - 3)])
    indefinite = problems.quadratic(spectrum, jax.random.key(0))
    rosenbrock = problems.rosenbrock(initial=(-1.2, 1.0))
    linear = problems.two_layer_linear(draw(14, 14), draw(15, 14))
    network = models.CNN(num_outputs=2, channels=(2,), kernel_size=2, strides=2, activation="tanh")
    cases = [
        Case("rosenbrock", rosenbrock.initial_params, direct=rosenbrock.loss),
        Case("indefinite_quadratic", indefinite.initial_params, direct=indefinite.loss),
        Case("two_layer_linear", linear.initial_params, direct=linear.loss),
        Case("zero_hessian", draw(10, SIZE), (draw(11, 9, SIZE),), direct=linear_in_params),
        flax_case(
            "tanh_cross_entropy", small_mlp("tanh"), three, four, cross_entropy, "categorical"
        ),
        flax_case(
            "relu_squared_error",
            small_mlp("relu"),
            three,
            draw(6, 11, 4),
            squared_error,
            "gaussian",
        ),
        flax_case("cnn", network, draw(12, 10, 4, 4, 1), labels(10, 2), cross_entropy,
                  "categorical"),
        flax_case(
            "rank_deficient",
            small_mlp("tanh"),
            three[:2],
            draw(6, 2, 4),
            squared_error,
            "gaussian",
        ),
        Case("list", listed, (three, four), in_a_list, cross_entropy, "categorical"),
        Case("array", draw(13, 7, 4), (draw(14, 9, 7), labels(9, 4)), in_one_array, cross_entropy,
             "categorical"),
        Case("mixed_shapes", mixed, (draw(16, 10, 4), draw(17, 10, 3)), of_mixed_shapes,
             squared_error, "gaussian"),
        Case("regularized", listed, (three, four), in_a_list, cross_entropy, "categorical",
             penalty=lambda p: 0.05 * optax.tree.norm(p, squared=True)),
    ]  # fmt: skip
    return {case.name: case for case in cases}


CASES = make_cases()
LARGE = [name for name in CASES if name != "rosenbrock"]

# Eigenvalues that solvers stumble over, 28 each.
SPECTRA = {
    "distinct": np.linspace(-1, 3, SIZE),
    "repeated_top": np.concatenate([[5.0] * 4, np.linspace(-2, 3, SIZE - 4)]),
    "repeated_both_ends": np.concatenate([[5.0] * 3, [-4.0] * 3, np.linspace(-2, 3, SIZE - 6)]),
    "two_values": np.array([2.0] * 14 + [-1.0] * 14),
    "identity": np.ones(SIZE),
    "zero": np.zeros(SIZE),
    "rank_two": np.array([4.0, 1.0] + [0.0] * (SIZE - 2)),
    "negative_definite": -np.geomspace(1e-2, 1e2, SIZE),
    "plus_and_minus": np.concatenate([np.linspace(1, 3, 14), -np.linspace(1, 3, 14)]),
    "outliers": np.concatenate([[100.0, 60.0, 59.9], np.geomspace(1e-6, 1, SIZE - 3)]),
    "clustered": 1 + 1e-7 * np.arange(SIZE),
    "tiny": 1e-12 * np.linspace(-1, 2, SIZE),
}


def matrix_with(eigenvalues, seed=0):
    """A dense symmetric matrix of given eigenvalues."""
    eigenvalues = np.asarray(eigenvalues, float)
    size = eigenvalues.size
    basis, _ = np.linalg.qr(np.random.RandomState(seed).standard_normal((size, size)))
    matrix = (basis * eigenvalues[None]) @ basis.T
    return jnp.asarray((matrix + matrix.T) / 2)


def dense_operator(matrix):
    """A matrix as an operator."""
    return symmetric_operator(lambda v: matrix @ v, matrix[0], probes=0)


def diagonal_operator(values):
    """A diagonal matrix as an operator."""
    return symmetric_operator(lambda v: values * v, values, probes=0)


@functools.cache
def _compiled(function, operator_of, settings):
    def call(array, *others):
        return function(operator_of(array), *others, **dict(settings))

    return quick_jit(call)


def run(function, array, *others, **settings):
    """A function of an operator, made of a matrix or a diagonal; equal programs are shared.

    Args:
      function: `function(operator, *others, **settings)`.
      array: a matrix, or the diagonal of one.
      *others: arrays.
      **settings: what the program depends on.
    """
    operator_of = diagonal_operator if array.ndim == 1 else dense_operator
    return _compiled(function, operator_of, tuple(sorted(settings.items())))(array, *others)
