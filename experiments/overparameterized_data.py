"""Inputs of norm 1 without parallel pairs, real and random labels, and the kernels of both."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from driftlab import data
from driftlab.curvature.kernels import relu_kernel
from driftlab.curvature.two_layer_relu_kernel import parallel_rows, smallest_eigenvalue
from experiments import flags

SPHERE = "sphere"
LABELS = ("normal", "real", "random")


class Kernel(NamedTuple):
    """The tangent kernel at infinite width.

    Attributes:
      gram: `(n, n)`.
      values: its eigenvalues, ascending.
      vectors: its eigenvectors, in columns.
    """

    gram: Float[np.ndarray, "n n"]
    values: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n n"]


class Setting(NamedTuple):
    """Inputs, labels and kernels.

    Attributes:
      inputs: `(n, d)`, rows of norm 1, no two parallel.
      targets: kind of label -> `(n,)`.
      kernels: whether both layers are trained -> the limit kernel.
      least_eigenvalue: lambda_0, that of the hidden layer's kernel.
      removed: rows left out because they were parallel to an earlier one, or 0.
    """

    inputs: Float[np.ndarray, "n d"]
    targets: dict[str, Float[np.ndarray, " n"]]
    kernels: dict[bool, Kernel]
    least_eigenvalue: float
    removed: int


def make_setting(config: Any, data_dir: str | None = None) -> Setting:
    """The data of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/overparameterized.py.
      data_dir: folder of data sets that do not install.

    Returns:
      The setting.

    Raises:
      ValueError: if the config describes none, or the kernel is singular.
    """
    kinds = flags.parse_names(config.labels, "labels", LABELS)
    if config.data == SPHERE:
        if "real" in kinds:
            raise ValueError(f"labels={config.labels!r}: points on the sphere have no real labels.")
        draw = np.random.RandomState(config.seed)
        inputs, real = draw.randn(config.examples, config.dimension), None
    else:
        loaded = data.load(
            config.data,
            train_size=config.examples,
            normalization=config.normalization,
            labels=f"binary:{config.classes}",
            flatten=True,
            data_dir=data_dir,
        )
        inputs, real = np.asarray(loaded.train.inputs, float), np.asarray(loaded.train.targets)
    dropped = sorted({later for _, later in parallel_rows(jnp.asarray(inputs, float))})
    keep = np.setdiff1d(np.arange(len(inputs)), dropped)
    inputs = inputs[keep] / np.linalg.norm(inputs[keep], axis=1, keepdims=True)
    draw = np.random.RandomState(config.seed + 1)
    known = {
        "normal": draw.randn(len(keep)),
        "random": draw.choice([-1.0, 1.0], len(keep)),
        "real": None if real is None else real[keep],
    }
    kernels = {both: _kernel(inputs, both) for both in (False, True)}
    return Setting(
        inputs,
        {kind: np.asarray(known[kind], float) for kind in kinds},
        kernels,
        float(kernels[False].values[0]),
        len(dropped),
    )


def _kernel(inputs: Float[np.ndarray, "n d"], both_layers: bool) -> Kernel:
    """The limit kernel, in the precision of JAX's default type."""
    given = jnp.asarray(inputs, float)
    gram = relu_kernel(given, both_layers=both_layers)
    smallest_eigenvalue(gram, given)  # raises if it is 0
    # Decomposed on the host in 64 bits, once: the eigenvectors must be orthogonal to every digit.
    gram = np.asarray(gram, np.float64)
    return Kernel(gram, *np.linalg.eigh(gram))
