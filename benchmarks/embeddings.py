"""Embedding WordNet in the Poincare ball, beside gensim and geoopt.

    python -m benchmarks.embeddings [--sections=mammals,nouns] [--quick] [--out=FILE.md]

Mammals: epochs per second of processor time, on one core, with batches of 10 pairs and 10
negatives in 5 dimensions; then the quality after equal epochs, ranked by one evaluator. driftlab
trains row by row (`row_descent`), and with a dense gradient beside it, as geoopt does with and
without sparse gradients. Nouns: gensim and driftlab after equal epochs. Compilation is not
counted. WordNet's files are needed (Debian's wordnet-base).
"""

import logging
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import report as reports
from driftlab import manifolds, sampling, transforms
from driftlab.data import relations as data
from driftlab.data import wordnet
from driftlab.data.relations import Relations
from driftlab.measures import ranking
from driftlab.models.relation_embedding import draw_relations, initial_table, relation_loss
from driftlab.row_dynamics import row_descent

_SECTIONS = flags.DEFINE_list("sections", ["mammals", "nouns"], "Which sections.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; the median counts.", lower_bound=1)
_NOUN_EPOCHS = flags.DEFINE_integer("noun_epochs", 3, "After one of burn-in.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "One round of a part of an epoch, to try it out.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")

DIMENSION, NEGATIVES, BATCH = 5, 10, 10
RATE, BURN_IN_RATE = 0.3, 0.03
BALL = manifolds.poincare_ball()
# One round of work: (share of an epoch) -> points, or None where they are not wanted.
Run = Callable[[float], np.ndarray | None]


def main(arguments: list[str]) -> None:
    """Runs the sections and prints their tables."""
    if arguments[1:]:
        raise app.UsageError(f"arguments without a flag: {arguments[1:]}")
    unknown = set(_SECTIONS.value) - {"mammals", "nouns"}
    if unknown:
        raise app.UsageError(f"no sections {', '.join(sorted(unknown))}; known: mammals, nouns")
    if hasattr(os, "sched_setaffinity"):
        # Before JAX makes its threads: one core each, which XLA's small steps are faster on too.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    nouns = wordnet.load_wordnet()
    report = reports.Report(_OUT.value)
    report.write(
        f"jax {jax.__version__}, {jax.devices()}, {DIMENSION} dimensions, {NEGATIVES} negatives, "
        "driftlab and geoopt in float32, gensim in float64\n"
    )
    if "mammals" in _SECTIONS.value:
        _mammals(report, wordnet.mammals(nouns))
    if "nouns" in _SECTIONS.value:
        _nouns(report, nouns)
    report.finish()


def _mammals(report: reports.Report, found: Relations) -> None:
    import torch  # pyright: ignore[reportMissingImports] (the extra bench)

    torch.set_num_threads(1)
    share = 0.05 if _QUICK.value else 1.0
    peers: dict[str, tuple[Run, float]] = {
        # The share of an epoch that a round takes: about the same time for all.
        "driftlab, rows, RSGD x + v": (_driftlab(found, "rsgd", "retraction"), 20),
        "driftlab, rows, RSGD exp": (_driftlab(found, "rsgd", "exp"), 20),
        "driftlab, rows, RAdam exp": (_driftlab(found, "radam", "exp"), 20),
        "driftlab, rows, RSGD x + v, 8 rates": (_driftlab(found, "rsgd", "retraction", 8), 5),
        "driftlab, dense, RSGD x + v": (_driftlab_dense(found, "rsgd"), 10),
        "driftlab, dense, RAdam x + v": (_driftlab_dense(found, "radam"), 10),
        "gensim, RSGD x + v": (_gensim(found, 0), 1),
        "geoopt, dense, RSGD x + v": (_geoopt(found, "rsgd", sparse=False), 0.5),
        "geoopt, sparse, RSGD x + v": (_geoopt(found, "rsgd", sparse=True), 0.5),
        "geoopt, dense, RAdam x + v": (_geoopt(found, "radam", sparse=False), 0.5),
        "geoopt, sparse, RAdam x + v": (_geoopt(found, "radam", sparse=True), 0.5),
    }
    for run, epochs in peers.values():
        run(0.01 * epochs)  # compiles
    rounds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(1 if _QUICK.value else _REPEATS.value):
        for name, (run, epochs) in peers.items():
            start = time.process_time()
            run(epochs * share)
            rounds[name].append(epochs * share / (time.process_time() - start))
    speeds = {name: statistics.median(values) for name, values in rounds.items()}
    speeds["driftlab, rows, RSGD x + v, 8 rates"] *= 8  # models, not steps
    ours = speeds["driftlab, rows, RSGD x + v"]
    rows = [(name, speed, ours / speed) for name, speed in speeds.items()]
    title = f"Mammals: epochs of {len(found.pairs)} pairs per CPU-second, batch {BATCH}"
    report.table(title, ("way", "epochs / CPU s", "first / this"), rows)
    for peer in ("gensim, RSGD x + v", "geoopt, dense, RSGD x + v", "geoopt, sparse, RSGD x + v"):
        ratio = ours / speeds[peer]
        text = f"at least 10x the epochs per CPU-second of {peer}"
        report.claims.append(reports.Claim(text, f"{ratio:.1f}x", ratio >= 10))

    burn_in, epochs = (1, 2) if _QUICK.value else (20, 100)
    rows = []
    for name, rate in (("rsgd", RATE), ("radam", 0.01)):
        points, seconds = _trained(found, name, rate, burn_in, epochs)
        rows.append((f"driftlab, {name}, {rate}", *_scores(found, points), seconds))
    train = _gensim(found, burn_in)
    points, seconds = _timed(lambda: train(epochs))
    rows.append(("gensim, rsgd, 0.1", *_scores(found, points), seconds))
    columns = ("way", "mean rank", "mean average precision", "CPU s of training")
    report.table(f"Mammals after {burn_in} + {epochs} epochs", columns, rows)
    text = "no worse mean average precision than gensim after equal epochs, mammals"
    measured = f"{rows[0][2]:.3f} against {rows[2][2]:.3f}"
    report.claims.append(reports.Claim(text, measured, rows[0][2] >= rows[2][2]))


def _nouns(report: reports.Report, found: Relations) -> None:
    epochs, batch = (0.01, 50) if _QUICK.value else (_NOUN_EPOCHS.value, 50)
    burn_in = 0.01 if _QUICK.value else 1
    rows = []
    for rate in (0.1, 1.0):
        points, seconds = _trained(found, "rsgd", rate, burn_in, epochs, batch)
        rows.append((f"driftlab, rows, {rate}", *_scores(found, points, 1000), seconds))
    for rate in (0.1, 1.0):
        train = _gensim(found, 0 if _QUICK.value else 1, batch, rate)
        points, seconds = _timed(lambda train=train: train(epochs))
        rows.append((f"gensim, {rate}", *_scores(found, points, 1000), seconds))
    columns = ("RSGD x + v, rate", "mean rank", "mean average precision", "CPU s of training")
    report.table(f"Nouns after 1 + {epochs} epochs, batch {batch}, 1000 ranked", columns, rows)
    ratio = sum(row[3] for row in rows[2:]) / sum(row[3] for row in rows[:2])
    text = "at least 10x the epochs per CPU-second of gensim on all nouns"
    report.claims.append(reports.Claim(text, f"{ratio:.1f}x", ratio >= 10))
    ours, theirs = (max(row[2] for row in part) for part in (rows[:2], rows[2:]))
    text = "no worse mean average precision than gensim after equal epochs, best rate of two, nouns"
    report.claims.append(reports.Claim(text, f"{ours:.3f} against {theirs:.3f}", ours >= theirs))


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its processor time."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def _optimizer(name: str, rate: Any, method: str) -> Any:
    if name == "rsgd":
        return transforms.riemannian_sgd(rate, BALL, method=method)
    return transforms.riemannian_adam(rate, BALL, method=method)


def _start(found: Relations) -> jax.Array:
    return initial_table(BALL, jax.random.key(0), len(found.names), DIMENSION)


def _driftlab(found: Relations, name: str, method: str, lanes: int = 1) -> Run:
    draw = draw_relations(found, sampling.shuffled_epochs(BATCH), NEGATIVES)
    loss = relation_loss(BALL, "sum")
    rates = jnp.geomspace(0.01, RATE, lanes) if lanes > 1 else jnp.array([RATE])

    @jax.jit
    def advance(steps: Any) -> jax.Array:
        def one(rate: jax.Array) -> jax.Array:
            dynamics = row_descent(_optimizer(name, rate / 10, method), loss, draw)
            state = dynamics.init(_start(found), jax.random.key(1))
            return jax.lax.fori_loop(0, steps, lambda _, s: dynamics.step(s), state).params

        return jax.vmap(one)(rates) if lanes > 1 else one(rates[0])

    steps_per_epoch = len(found.pairs) // BATCH
    return lambda epochs: np.asarray(advance(round(epochs * steps_per_epoch)))


def _driftlab_dense(found: Relations, name: str) -> Run:
    draw = draw_relations(found, sampling.shuffled_epochs(BATCH), NEGATIVES)
    loss = relation_loss(BALL, "sum")
    tx = _optimizer(name, RATE / 10, "retraction")

    @jax.jit
    def advance(steps: Any) -> jax.Array:
        def step(k: Any, carry: Any) -> Any:
            table, state = carry
            indices, mask = draw(jax.random.key(1), k)
            gradient = jax.grad(lambda t: loss(t[indices], mask))(table)
            updates, state = tx.update(gradient, state, table)
            return table + updates, state

        start = _start(found)
        return jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0]

    steps_per_epoch = len(found.pairs) // BATCH
    return lambda epochs: np.asarray(advance(round(epochs * steps_per_epoch)))


def _trained(
    found: Relations,
    name: str,
    rate: float,
    burn_in: float,
    epochs: float,
    batch: int = BATCH,
) -> tuple[np.ndarray, float]:
    """Points after a burn-in and some epochs, the loss summed over a batch; and processor time."""
    loss, batches = relation_loss(BALL, "sum"), sampling.shuffled_epochs(batch)
    table, seconds = _start(found), 0.0
    for tx, length in (
        (_optimizer("rsgd", BURN_IN_RATE, "retraction"), burn_in),
        (_optimizer(name, rate, "retraction"), epochs),
    ):
        # Negatives in proportion to degree, as gensim draws them.
        draw = draw_relations(found, batches, NEGATIVES, 1.0)
        dynamics = row_descent(tx, loss, draw)
        steps = jnp.asarray(round(length * (len(found.pairs) // batch)))
        state = dynamics.init(table, jax.random.key(1))
        step = dynamics.step
        advance = jax.jit(lambda s, n, f=step: jax.lax.fori_loop(0, n, lambda _, t: f(t), s))
        compiled = advance.lower(state, steps).compile()
        table, spent = _timed(lambda c=compiled, a=(state, steps): np.asarray(c(*a).params))
        seconds += spent
    return np.asarray(table), seconds


def _gensim(found: Relations, burn_in: int, batch: int = BATCH, rate: float = 0.1) -> Run:
    from gensim.models.poincare import PoincareModel  # pyright: ignore[reportMissingImports]

    logging.getLogger("gensim").setLevel(logging.WARNING)
    named = [(found.names[c], found.names[p]) for c, p in found.pairs.tolist()]

    def model_of(pairs: list[tuple[str, str]]) -> Any:
        return PoincareModel(
            pairs, size=DIMENSION, alpha=rate, negative=NEGATIVES, burn_in=burn_in,
            burn_in_alpha=BURN_IN_RATE, regularization_coeff=0.0, seed=0,
        )  # fmt: skip

    # Training with a burn-in is timed once: its model is made before.
    prepared = model_of(named) if burn_in else None

    def run(epochs: float) -> np.ndarray:
        # A part of an epoch is one of a part of the pairs.
        part = named if epochs >= 1 else named[: max(batch, round(epochs * len(named)))]
        model = model_of(part) if prepared is None else prepared
        # The burn-in comes first by itself.
        model.train(epochs=max(1, round(epochs)), batch_size=batch, print_every=10**9)
        if len(model.kv.index_to_key) < len(found.names):
            return np.zeros((0, DIMENSION))
        order = [model.kv.get_index(name) for name in found.names]
        return model.kv.vectors[order]

    return run


def _geoopt(found: Relations, name: str, sparse: bool) -> Run:
    import geoopt  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports] (the extra bench)

    pairs = torch.as_tensor(found.pairs, dtype=torch.long)
    steps_per_epoch = len(found.pairs) // BATCH
    space = geoopt.PoincareBall()

    def run(epochs: float) -> None:
        generator = torch.Generator().manual_seed(0)
        start = torch.rand(len(found.names), DIMENSION, generator=generator) * 2e-3 - 1e-3
        table = geoopt.ManifoldParameter(start, manifold=space)  # type: ignore[call-arg]
        optimizers = {
            ("rsgd", False): geoopt.optim.RiemannianSGD,
            ("rsgd", True): geoopt.optim.SparseRiemannianSGD,
            ("radam", False): geoopt.optim.RiemannianAdam,
            ("radam", True): geoopt.optim.SparseRiemannianAdam,
        }
        optimizer = optimizers[name, sparse]([table], lr=RATE / 10)
        for _ in range(round(epochs * steps_per_epoch)):
            chosen = pairs[torch.randint(len(pairs), (BATCH,), generator=generator)]
            others = torch.randint(len(table), (BATCH, NEGATIVES), generator=generator)
            rows = torch.nn.functional.embedding(
                torch.cat([chosen, others], dim=1), table, sparse=sparse
            )
            distance = space.dist(rows[:, :1], rows[:, 1:])
            loss = -torch.log_softmax(-distance, dim=1)[:, 0].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def _scores(found: Relations, points: Any, sample: int | None = None) -> tuple[float, float]:
    if len(points) < len(found.names):
        return float("nan"), float("nan")
    queries = ranking.reconstruction_queries(*data.ancestors_table(found), sample)

    near = manifolds.ball_proximity()
    ranks = jax.jit(lambda p: ranking.ranks(near, p, queries))(jnp.asarray(points, jnp.float32))
    return float(ranking.mean_rank(ranks)), float(ranking.mean_average_precision(ranks))


if __name__ == "__main__":
    app.run(main)
