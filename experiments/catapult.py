"""The catapult: learning rates between 2 and 4 over the kernel's top eigenvalue.

    python -m experiments.catapult
    python -m experiments.catapult --config=configs/catapult_small.py --seeds=4

Two networks of two layers in the neural-tangent parametrisation, squared error, gradient descent:
`f = u.v x / sqrt(m)` on one example, whose (f, curvature) obey a recursion exactly, and
`f = sqrt(2 / m) v.relu(W x / sqrt(d))` on real images of two classes. Every scaled learning rate
`h lambda_0` and seed is a lane, lambda_0 being the top eigenvalue of `J^T J / n` at the start.
Source: Lewkowycz, Bahri, Dyer, Sohl-Dickstein, Gur-Ari (2020), "The large learning rate phase of
deep learning: the catapult mechanism".
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags as absl_flags
from jaxtyping import Array, Float, PRNGKeyArray

import driftlab
from driftlab import curvature, data, measures, models
from driftlab.data.dataset import Batch
from driftlab.dynamics import Snapshot
from driftlab.measures.recording import Tracker
from driftlab.measures.sharpness import sharpness
from driftlab.sweep.lane import HParams
from experiments import catapult_report, flags, report

if TYPE_CHECKING:
    import xarray

LINEAR, RELU = "linear", "relu"


class Network(NamedTuple):
    """A network, its data, and where it starts.

    Attributes:
      objective: half the squared error over all examples.
      apply: `(params, inputs) -> outputs (n,)`.
      initialize: `key -> params`.
    """

    objective: driftlab.Objective
    apply: Callable[..., Array]
    initialize: Callable[[PRNGKeyArray], dict[str, Array]]


def linear_network(width: int, initial_output: float) -> Network:
    """`f = u.v x / sqrt(m)` on the example x = 1, y = 0, with a given start of curvature 2.

    Normal u and v, made exact: `|u|^2 = |v|^2 = m` and `f_0 = 2 initial_output`. f and the
    curvature decide the whole trajectory, so keys differ by rounding only.

    Args:
      width: m.
      initial_output: `|f_0| / lambda_0`; less than `sqrt(m) / 2`.

    Returns:
      The network, with params `{"left": u, "right": v}`.

    Raises:
      ValueError: if no two vectors of these norms have that product.
    """
    cosine = 2 * initial_output / width**0.5
    if not 0 < cosine < 1:
        raise ValueError(
            f"initial_output={initial_output} must be between 0 and sqrt(width) / 2 = "
            f"{width**0.5 / 2:.4g}."
        )

    def apply(params: dict[str, Array], inputs: Any) -> Float[Array, " n"]:
        return inputs[:, 0] * (params["left"] @ params["right"] / width**0.5)

    def initialize(key: PRNGKeyArray) -> dict[str, Array]:
        vectors = jax.random.normal(key, (2, width), float)
        left = vectors[0] / jnp.linalg.norm(vectors[0])
        other = vectors[1] - (left @ vectors[1]) * left
        other = other / jnp.linalg.norm(other)
        right = cosine * left + (1 - cosine**2) ** 0.5 * other
        return {"left": width**0.5 * left, "right": width**0.5 * right}

    example = Batch(jnp.ones((1, 1), float), jnp.zeros((1,), float))
    return Network(driftlab.Objective(models.squared_error(apply), example), apply, initialize)


def relu_network(width: int, examples: Any) -> Network:
    """`f = sqrt(2 / m) v.relu(W x / sqrt(d))`, both layers standard normal and both trained.

    Args:
      width: m.
      examples: a `data.Batch` of rows and signs.

    Returns:
      The network, with params `{"hidden": (d, m), "output": (m,)}`.
    """
    inputs, targets = (jnp.asarray(part, float) for part in examples)
    examples = examples._replace(inputs=inputs, targets=targets)
    dimension = examples.inputs.shape[1]

    def apply(params: dict[str, Array], inputs: Any) -> Float[Array, " n"]:
        hidden = jax.nn.relu(inputs @ params["hidden"] / dimension**0.5)
        return hidden @ params["output"] * (2 / width) ** 0.5

    def initialize(key: PRNGKeyArray) -> dict[str, Array]:
        hidden, output = jax.random.split(key)
        return {
            "hidden": jax.random.normal(hidden, (dimension, width), float),
            "output": jax.random.normal(output, (width,), float),
        }

    return Network(driftlab.Objective(models.squared_error(apply), examples), apply, initialize)


def make_networks(config: Any) -> dict[str, Network]:
    """The networks of a config, by name.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/catapult.py.

    Returns:
      Name -> network.

    Raises:
      ValueError: if the config asks for labels that are not signs, or data that do not exist.
    """
    if not config.labels.startswith("binary"):
        raise ValueError(f"labels={config.labels!r} must be 'binary' or 'binary:a,b'.")
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        labels=config.labels,
        flatten=True,
        data_dir=flags.DATA_DIR.value,
    )
    return {
        LINEAR: linear_network(config.width, config.initial_output),
        RELU: relu_network(config.width, loaded.train),
    }


def kernel_operator(network: Network, params: Any) -> curvature.Operator:
    """`J^T J / n`: the Gauss-Newton matrix, with the eigenvalues of the tangent kernel over n.

    Args:
      network: the network.
      params: where.

    Returns:
      A positive semidefinite operator on trees like params.
    """
    return curvature.gauss_newton(
        lambda p, batch: network.apply(p, batch.inputs),
        lambda outputs, batch: jnp.mean(jnp.square(outputs - batch.targets)) / 2,
        params,
        network.objective.data,
    )


def make_build(config: Any, networks: dict[str, Network], seeds: list[int]) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/catapult.py.
      networks: its networks.
      seeds: the seeds of the grid; each has an initialisation and a lambda_0 of its own.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`.
    """
    key = jax.random.key(config.seed)

    def start(network: Network, seed: Array) -> Any:
        return network.initialize(jax.random.fold_in(key, seed))

    def top_eigenvalue(network: Network, seed: Array) -> Array:
        return curvature.eigenpairs(kernel_operator(network, start(network, seed))).values[0]

    # lambda_0 once a seed, not once a lane and segment.
    tops = {
        name: jax.jit(lambda many, n=network: jax.lax.map(lambda s: top_eigenvalue(n, s), many))(
            jnp.asarray(seeds)
        )
        for name, network in networks.items()
    }

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        name, seed = hparams["network"], hparams["seed"]
        top = tops[name][jnp.argmax(jnp.asarray(seeds) == seed)]
        tx = optax.sgd(hparams["scaled_learning_rate"] / top)
        return driftlab.descent(tx, networks[name].objective), start(networks[name], seed)

    return build


def kernel_eigenvalue(networks: dict[str, Network]) -> Tracker:
    """The top eigenvalue of `J^T J / n` along a run, which is the sharpness once the loss is 0.

    Args:
      networks: whose; told apart by their params.

    Returns:
      A tracker of `kernel_eigenvalue`, in loss / parameter^2.
    """

    def init(params: Any) -> Array:
        return sharpness().init(params)

    def update(snapshot: Snapshot, block: Array) -> tuple[dict[str, Array], Array]:
        params = snapshot.state.params
        operator = kernel_operator(networks[LINEAR if "left" in params else RELU], params)
        pairs, block = curvature.tracked_eigenpairs(operator, block, 1, tolerance=1e-3)
        return {"kernel_eigenvalue": pairs.values[0]}, block

    return Tracker("kernel_eigenvalue", init, update)


def active_units(networks: dict[str, Network]) -> measures.Measure:
    """The share of hidden units that are not 0 on every example (1 for the linear network).

    Args:
      networks: whose; told apart by their params.

    Returns:
      A measure of `active_units`, and of `zero_loss`, the loss of the network f = 0.
    """

    def active_units(snapshot: Snapshot) -> dict[str, Array]:
        params = snapshot.state.params
        linear = "left" in params
        examples = networks[LINEAR if linear else RELU].objective.data
        active = jnp.ones((), float)
        if not linear:
            active = (examples.inputs @ params["hidden"] > 0).any(0).mean(dtype=float)
            finite = jnp.isfinite(params["hidden"]).all()
            active = jnp.where(finite, active, jnp.nan)
        return {"active_units": active, "zero_loss": jnp.mean(jnp.square(examples.targets)) / 2}

    return active_units


def run(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/catapult.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """
    seeds = flags.parse_seeds(config.seeds)
    scaled = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    scaled = np.union1d(scaled, list(catapult_report.REFERENCE))
    grid = driftlab.Grid(
        {"scaled_learning_rate": scaled, "seed": seeds}, {"network": (LINEAR, RELU)}
    )
    networks = make_networks(config)
    spaced = [sharpness(), kernel_eigenvalue(networks), active_units(networks)]
    return driftlab.sweep(
        make_build(config, networks, seeds),
        grid,
        config.steps,
        measures=[
            measures.loss,
            *(measures.every(measure, config.curvature_every) for measure in spaced),
        ],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=config.divergence_factor,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    config = flags.override(config)
    out = flags.run_folder(config, "catapult")
    dataset = flags.run_shard(partial(run, config), out)
    if dataset is None:
        return
    outcome = catapult_report.outcomes(dataset)
    found = catapult_report.tables(outcome, config.width, config.initial_output, config.steps)
    figures = catapult_report.draw(outcome)
    report.write_report(out, "The catapult", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("catapult.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
