"""What the embedding of a hierarchy is made of: relations, methods, batches, measures."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import driftlab
from driftlab import manifolds, sampling, transforms
from driftlab.data import relations as data
from driftlab.data import wordnet
from driftlab.data.relations import Relations
from driftlab.dynamics import Snapshot
from driftlab.measures import ranking
from driftlab.models.relation_embedding import draw_relations, initial_table, relation_loss
from driftlab.row_dynamics import row_descent
from driftlab.suggestions import nearest
from driftlab.sweep.lane import HParams
from experiments import flags

OPTIMIZERS = ("rsgd", "radagrad", "radam", "ramsgrad")


class Task(NamedTuple):
    """What is embedded, and what it is judged by.

    Attributes:
      relations: all pairs.
      train: those trained on; the same names.
      held_out: the others.
      manifold: the ball.
      steps_per_epoch: batches that make a pass over `train`.
    """

    relations: Relations
    train: Relations
    held_out: Relations
    manifold: manifolds.Manifold
    steps_per_epoch: int


def make_task(config: Any) -> Task:
    """The task of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/wordnet_poincare.py.

    Returns:
      The task.

    Raises:
      ValueError: for a field out of range.
      FileNotFoundError: if WordNet or the edge list is not there.
      DataError: if it cannot be read.
    """
    found = load(config.relations, config.closure)
    train, held_out = data.hold_out(found, config.held_out, config.seed)
    if not 1 <= config.batch_size <= len(train.pairs):
        raise ValueError(
            f"batch_size={config.batch_size} must be between 1 and the {len(train.pairs)} pairs "
            "that are trained on."
        )
    for name in ("epochs", "record_epochs", "dimension"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]} must be 1 or more.")
    counts = ("burn_in_epochs", "ranked_things", "probed_pairs", "final_ranked_things")
    for name in (*counts, "disc_epochs"):
        if config[name] < 0:
            raise ValueError(f"{name}={config[name]} must be 0 or more.")
    manifold = manifolds.poincare_ball(config.curvature)
    return Task(found, train, held_out, manifold, len(train.pairs) // config.batch_size)


def load(name: str, closure: bool) -> Relations:
    """Relations by name, or from an edge list.

    Args:
      name: "nouns", "mammals" or a path.
      closure: whether an edge list is closed under transitivity.

    Returns:
      The relations.

    Raises:
      ValueError: for a name that is neither.
    """
    if name in ("nouns", "mammals"):
        nouns = wordnet.load_wordnet(flags.DATA_DIR.value)
        return nouns if name == "nouns" else wordnet.mammals(nouns)
    if not Path(name).is_file():
        raise ValueError(
            f"relations={name!r}: neither a file nor a set of relations: "
            f"{nearest(name, ('nouns', 'mammals'))}"
        )
    found = data.load_relations(name)
    return data.transitive_closure(found) if closure else found


def optimizer(
    method: str, move: str, learning_rate: Any, config: Any, manifold: manifolds.Manifold
) -> optax.GradientTransformation:
    """A Riemannian optimiser by name.

    Args:
      method: one of OPTIMIZERS.
      move: "retraction" or "exp".
      learning_rate: may be traced.
      config: for b1 and b2.
      manifold: of each row.

    Returns:
      The optimiser.

    Raises:
      ValueError: for another method.
    """
    if method == "rsgd":
        return transforms.riemannian_sgd(learning_rate, manifold, method=move)
    if method == "radagrad":
        return transforms.riemannian_adagrad(learning_rate, manifold, method=move)
    if method == "radam":
        return transforms.riemannian_adam(
            learning_rate, manifold, config.b1, config.b2, method=move
        )
    if method == "ramsgrad":
        return transforms.riemannian_amsgrad(
            learning_rate, manifold, config.b1, config.b2, method=move
        )
    raise ValueError(f"there is no optimizer {method!r}: {nearest(method, OPTIMIZERS)}")


def make_dynamics(
    config: Any, task: Task, tx: optax.GradientTransformation, power: float = 0.0
) -> driftlab.Dynamics:
    """Row by row descent on the loss of related pairs.

    Args:
      config: of the experiment.
      task: what is embedded.
      tx: the optimiser.
      power: of the degree in the draw of negatives.

    Returns:
      The dynamics.
    """
    batches = sampling.shuffled_epochs(config.batch_size)
    draw = draw_relations(task.train, batches, config.negatives, power)
    return row_descent(tx, relation_loss(task.manifold, config.reduction), draw)


def burned_in(
    config: Any, task: Task, dimension: int, seeds: Sequence[int]
) -> Float[Array, "seeds things dimension"]:
    """The tables after the burn-in, one a seed.

    Args:
      config: of the experiment.
      task: what is embedded.
      dimension: of the ball.
      seeds: which.

    Returns:
      The tables.
    """
    rate, things = config.burn_in_learning_rate, len(task.relations.names)
    tx = transforms.riemannian_sgd(rate, task.manifold)
    dynamics = make_dynamics(config, task, tx, config.burn_in_power)

    def start(seed: Array) -> Array:
        first, second = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed))
        table = initial_table(task.manifold, first, things, dimension, config.scale)
        return run_steps(dynamics, table, second, config.burn_in_epochs * task.steps_per_epoch)

    return jax.jit(lambda many: jax.lax.map(start, many))(jnp.asarray(seeds))


def run_steps(
    dynamics: driftlab.Dynamics, params: Array, key: PRNGKeyArray, steps: int
) -> Float[Array, "things dimension"]:
    """The parameters after some steps, nothing recorded.

    Args:
      dynamics: what is run.
      params: where it starts.
      key: of its draws.
      steps: how many.

    Returns:
      The parameters at the end.
    """
    state = dynamics.init(params, key)
    return jax.lax.fori_loop(0, steps, lambda _, s: dynamics.step(s), state).params


def make_build(
    config: Any, task: Task, seeds: Sequence[int]
) -> Callable[[HParams, PRNGKeyArray], tuple[driftlab.Dynamics, Array]]:
    """The function that a sweep calls for every lane.

    Args:
      config: of the experiment.
      task: what is embedded.
      seeds: of the grid; each has a burn-in of its own.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`.
    """
    starts = burned_in(config, task, config.dimension, seeds)

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Array]:
        name, move = hparams["optimizer"], hparams["move"]
        tx = optimizer(name, move, hparams["learning_rate"], config, task.manifold)
        start = starts[jnp.argmax(jnp.asarray(seeds) == hparams["seed"])]
        return make_dynamics(config, task, tx), start

    return build


def scores(config: Any, task: Task, sample: int) -> Callable[[Array], dict[str, Array]]:
    """Mean rank and mean average precision of a table: of its relations, of those held out.

    Args:
      config: of the experiment.
      task: what is embedded.
      sample: how many things are asked about; 0 for all. Held-out pairs are all ranked.

    Returns:
      `table -> {"mean_rank", "mean_average_precision", and "link_..." of both if any pair is held
      out}`.
    """
    counts, above = data.ancestors_table(task.relations)
    near = manifolds.ball_proximity(config.curvature)
    queries = {"": ranking.reconstruction_queries(counts, above, sample or None, config.seed)}
    if len(task.held_out.pairs):
        link = ranking.prediction_queries(counts, above, task.held_out.pairs)
        queries["link_"] = link
        # What is held out is no training relation, and does not count against one either.
        related = _is_pair(queries[""], task.held_out.pairs, len(counts))
        queries[""] = queries[""]._replace(ranked=queries[""].ranked & ~related)

    def score(table: Array) -> dict[str, Array]:
        found = {}
        for prefix, query in queries.items():
            ranked = ranking.ranks(near, table, query)
            found[f"{prefix}mean_rank"] = ranking.mean_rank(ranked)
            found[f"{prefix}mean_average_precision"] = ranking.mean_average_precision(ranked)
        return found

    return score


def relation_scores(config: Any, task: Task) -> Callable[[Snapshot], dict[str, Array]]:
    """The measure of the experiment: the scores, and the loss of a fixed set of pairs.

    Args:
      config: of the experiment.
      task: what is embedded.

    Returns:
      A measure of `probe_loss` (the mean of the loss over pairs that are the same at every
      record, with uniform negatives) and of the scores.
    """
    size = len(task.train.pairs)
    probed = min(config.probed_pairs or size, size)
    draw = draw_relations(task.train, sampling.with_replacement(probed), config.negatives)
    indices, mask = jax.jit(draw)(jax.random.key(config.seed), jnp.zeros((), jnp.int32))
    loss = relation_loss(task.manifold, "mean")
    score = scores(config, task, config.ranked_things)

    def relation_scores(snapshot: Snapshot) -> dict[str, Array]:
        table = snapshot.params
        return {"probe_loss": loss(table[indices], mask), **score(table)}

    return relation_scores


def embed_disc(config: Any, task: Task) -> Float[Array, "things 2"]:
    """An embedding in two dimensions, to be drawn.

    Args:
      config: of the experiment.
      task: what is embedded.

    Returns:
      Points of the disc: RSGD at the rate 0.3 on the mean of a batch, which is Nickel and Kiela's.
    """
    config = config.copy_and_resolve_references()
    config.reduction, config.negatives = "mean", 50
    start = burned_in(config, task, 2, [0])[0]
    tx = transforms.riemannian_sgd(0.3, task.manifold)
    steps = config.disc_epochs * task.steps_per_epoch
    run = jax.jit(partial(run_steps, make_dynamics(config, task, tx), steps=steps))
    return run(start, jax.random.key(config.seed))


def _is_pair(queries: ranking.Queries, pairs: np.ndarray, things: int) -> Array:
    keys = pairs[:, 0].astype(np.int64) * things + pairs[:, 1]
    at = np.asarray(queries.things)[:, None].astype(np.int64) * things
    return jnp.asarray(np.isin(at + np.asarray(queries.related), keys))
