"""The problems of linear_alignment: separable data, deep linear networks, and what is recorded."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

import driftlab
from driftlab import data, measures, models
from driftlab.data.dataset import Batch
from driftlab.data.separation import MaxMargin, max_margin
from driftlab.dynamics import Snapshot
from driftlab.measures.layer_balance import balancedness, balancedness_source
from driftlab.measures.recording import Tracker
from driftlab.measures.singular_alignment import layer_alignment, normalized_margin
from driftlab.models.margin_losses import log_logistic
from experiments import flags

PLANE, IMAGES = "plane", "images"


class Separable(NamedTuple):
    """Separable data, scaled to norms of at most 1.

    Attributes:
      examples: rows and signs.
      oracle: their max-margin direction.
    """

    examples: Batch
    oracle: MaxMargin


class Network(NamedTuple):
    """A linear network on separable data.

    Attributes:
      objective: the logistic risk.
      log_objective: its logarithm.
      initialize: `key -> params`, with a risk of at most that of f = 0.
    """

    objective: driftlab.Objective
    log_objective: driftlab.Objective
    initialize: Callable[[PRNGKeyArray], Any]


def plane(examples: int, gap: float, seed: int) -> Separable:
    """Points of the unit disc on both sides of a line through 0, at least `gap` from it.

    Args:
      examples: how many.
      gap: a lower bound of the margin, below 1.
      seed: of the points.

    Returns:
      The data; the widest gap is a little wider, and its direction another.

    Raises:
      ValueError: for a gap outside (0, 1).
    """
    if not 0 < gap < 1:
        raise ValueError(f"gap={gap} must be between 0 and 1, the radius of the disc.")
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    across, along = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    signs = np.where(np.arange(examples) % 2 == 0, 1.0, -1.0)
    distance = rng.uniform(gap, 1, examples)
    side = rng.uniform(-1, 1, examples) * np.sqrt(1 - distance**2)
    inputs = np.outer(signs * distance, across) + np.outer(side, along)
    return _separable(inputs, signs, "the points of the plane")


def images(config: Any) -> Separable:
    """Two classes of a real data set.

    Args:
      config: an `ml_collections.ConfigDict` with `data`, `labels`, `train_size`.

    Returns:
      The data.

    Raises:
      ValueError: if the labels are not those of two classes, or the classes are not separable.
    """
    if not config.labels.startswith("binary:"):
        raise ValueError(f"labels={config.labels!r} must be two classes, 'binary:a,b'.")
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        labels=config.labels,
        normalization="unit",
        flatten=True,
        data_dir=flags.DATA_DIR.value,
    )
    return _separable(
        np.asarray(loaded.train.inputs, float),
        np.asarray(loaded.train.targets, float),
        f"{config.data} with labels={config.labels!r}",
    )


def _separable(inputs: Any, signs: Any, name: str) -> Separable:
    inputs = inputs / np.linalg.norm(inputs, axis=1).max()
    return Separable(Batch(inputs, signs), max_margin(inputs, signs, name))


def widths(text: str) -> tuple[int, ...]:
    """Inner widths of a network.

    Args:
      text: a comma list.

    Returns:
      The widths.
    """
    return tuple(int(width) for width in text.split(","))


def network(separable: Separable, inner: Sequence[int], scale: float) -> Network:
    """A deep linear network.

    Args:
      separable: the data.
      inner: inner widths; none for one layer.
      scale: multiplies the initial matrices.

    Returns:
      The network.
    """
    inputs = jnp.asarray(separable.examples.inputs, float)
    signs = jnp.asarray(separable.examples.targets, float)
    batch = Batch(inputs, signs)
    model = models.DeepLinear(tuple(inner), 1, scale=scale)
    apply = models.apply_function(model)
    last = f"layer_{len(inner)}"

    def initialize(key: PRNGKeyArray) -> Any:
        params = models.initialize(model, key, inputs)
        # The side on which the risk is below that of f = 0, for a start as small as this.
        side = jnp.sign(jnp.vdot(apply(params, inputs)[:, 0], signs))
        return {**params, last: {"kernel": side * params[last]["kernel"]}}

    return Network(
        driftlab.Objective(models.logistic(apply), batch),
        driftlab.Objective(log_logistic(apply), batch),
        initialize,
    )


def alignment_measures(separable: Separable, networks: Sequence[Network]) -> list[Any]:
    """What is recorded of training: log-risk, margin, and `layer_alignment`.

    Args:
      separable: the data.
      networks: those of a sweep, whose depths may differ: what one lacks is NaN.

    Returns:
      Measures.
    """
    tracker = layer_alignment(separable.oracle.direction)
    log_risk = networks[0].log_objective

    def names(net: Network) -> set[str]:
        found = jax.eval_shape(
            lambda key: _fresh(tracker, net, net.initialize(key)), jax.random.key(0)
        )
        return set(found)

    every = set().union(*map(names, networks))

    def update(snapshot: Snapshot, memory: Any) -> tuple[dict[str, Array], Any]:
        values, memory = tracker.update(snapshot, memory)
        assert isinstance(values, dict)
        missing = every - set(values)
        return {**values, **{name: jnp.full((), jnp.nan, float) for name in missing}}, memory

    def log_risk_of(snapshot: Snapshot) -> dict[str, Array]:
        matrices = [layer["kernel"] for layer in snapshot.params.values()]
        predictor = matrices[0]
        for matrix in matrices[1:]:
            predictor = predictor @ matrix
        outputs = log_logistic(lambda w, inputs: inputs @ w)
        norms = jnp.stack([jnp.sum(matrix**2) for matrix in matrices])
        return {
            "log_risk": outputs(predictor, log_risk.data),
            "largest_norm": jnp.sqrt(norms.max()),
            "predictor_norm": jnp.linalg.norm(predictor),
        }

    return [
        measures.loss,
        log_risk_of,
        normalized_margin(separable.oracle.margin),
        Tracker(tracker.name, tracker.init, update),
    ]


def _fresh(tracker: Tracker, net: Network, params: Any) -> Any:
    zero = jnp.zeros(())
    state = driftlab.State(params, (), jnp.zeros((), jnp.int32), jax.random.key(0))
    return tracker(
        Snapshot(state, state, net.objective, net.objective.data, zero, zero, params, params)
    )


def balance_entries(snapshot: Snapshot) -> dict[str, Float[Array, " entries"]]:
    """All entries of all `B_k`, and of the `D_k` at the gradient.

    Args:
      snapshot: what the step saw.

    Returns:
      `balance` and `source`, `(entries,)`.
    """

    def flat(matrices: Any) -> Array:
        return jnp.concatenate([jnp.ravel(matrix) for matrix in matrices])

    return {
        "balance": flat(balancedness(snapshot.params)),
        "source": flat(balancedness_source(snapshot.gradient)),
    }


def with_dense_norm(params: Any, key: PRNGKeyArray, norm: float) -> Any:
    """Params whose dense kernels are Gaussian, each of one Frobenius norm.

    Args:
      params: of any network.
      key: randomness.
      norm: of every parameter with two axes.

    Returns:
      The params, the others as they were.
    """
    leaves, structure = jax.tree.flatten(params)
    drawn = []
    for index, leaf in enumerate(leaves):
        if leaf.ndim == 2:
            gaussian = jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
            leaf = norm * gaussian / jnp.linalg.norm(gaussian)
        drawn.append(leaf)
    return jax.tree.unflatten(structure, drawn)
