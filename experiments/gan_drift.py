"""Discretisation drift in a GAN on real images: what cancelling it does, against other play.

    python -m experiments.gan_drift --data_dir=FOLDER
    python -m experiments.gan_drift --config=configs/gan_drift_small.py

Two networks in the zero-sum (saturating) game of Goodfellow et al. (2014), played simultaneously,
in turn, simultaneously with the interaction terms of the drift cancelled or its self terms
strengthened, with symplectic gradient adjustment, consensus optimisation, by Runge-Kutta, and in
turn with Adam. Learning rates, ratios of the players' rates and seeds are lanes of one compiled
program a method. Samples are scored by a classifier that is trained first, on the same images.
Source: Rosca, Wu, Dherin, Barrett (2021), "Discretization drift in two-player games", sections 5
and 6.
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
from driftlab import data, measures, models, sampling
from driftlab.dynamics import Dynamics, Snapshot
from driftlab.game import Game, Players, corrected
from driftlab.measures.samples import (
    SampleScorer,
    reference_values,
    sample_quality,
    sample_scorer,
)
from driftlab.models.gan import GANNetworks, dcgan, mlp_gan, sngan
from driftlab.models.gan_losses import DISCRIMINATOR, GENERATOR, gan_draw, gan_losses
from driftlab.play import alternating, runge_kutta, simultaneous
from driftlab.regularizers.games import (
    consensus_optimization,
    drift_correction,
    symplectic_gradient_adjustment,
)
from driftlab.regularizers.spectral_norm import spectrally_normalized
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import parse_shard
from driftlab.transforms.parameter_average import average_parameters
from experiments import flags, gan_drift_report, report
from experiments.gan_classifier import require_accuracy, train_classifier

if TYPE_CHECKING:
    import xarray

METHODS = (
    "simultaneous",
    "alternating",
    "cancelled",
    "self_strengthened",
    "sga",
    "consensus",
    "rk4",
    "adam",
)
_SHOWN = 16  # samples kept of every lane


class Problem(NamedTuple):
    """A game, where it starts, and how its samples are judged.

    Attributes:
      game: of "discriminator" and "generator".
      initialize: `key -> params` of both.
      sample: `(params, count) -> images`, from the same latents for everyone.
      scorer: of samples.
      ends: "real" and "noise" -> scores; and "accuracy", that of the classifier.
      images: some real ones, for the figure.
    """

    game: Game
    initialize: Callable[[PRNGKeyArray], Players]
    sample: Callable[[Players, int], Array]
    scorer: SampleScorer
    ends: dict[str, Any]
    images: Float[np.ndarray, "n height width channels"]


def make_networks(config: Any, image_shape: tuple[int, ...]) -> GANNetworks:
    """The networks of a config.

    Args:
      config: an `ml_collections.ConfigDict` with `networks`, `width`, `widths`, `normalization`.
      image_shape: of the data.

    Returns:
      The networks.

    Raises:
      ValueError: if there are no such networks.
    """
    if config.networks == "mlp":
        return mlp_gan(image_shape, tuple(int(width) for width in config.widths.split(",")))
    if config.networks == "dcgan":
        return dcgan(image_shape, config.width, config.normalization)
    if config.networks == "sngan":
        return sngan(image_shape, config.width, config.normalization)
    raise ValueError(f"networks={config.networks!r} must be 'mlp', 'dcgan' or 'sngan'.")


def make_problem(config: Any) -> Problem:
    """The data, the trained classifier and the game of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/gan_drift.py.

    Returns:
      The problem.

    Raises:
      ValueError: if a name in the config does not exist, or the classifier is not good enough.
    """
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        normalization="unit",
        data_dir=flags.DATA_DIR.value,
    )
    train, test = (
        part._replace(inputs=jnp.asarray(2 * part.inputs - 1, float))
        for part in (loaded.train, loaded.test)
    )
    networks = make_networks(config, train.inputs.shape[1:])
    classifier = train_classifier(
        train,
        test,
        loaded.num_classes,
        steps=config.classifier_steps,
        num_features=config.num_features,
        key=jax.random.key(config.seed),
    )
    features = require_accuracy(classifier, config.classifier_accuracy)
    scorer = sample_scorer(features, train.inputs, config.splits)
    count = min(config.num_samples, len(test.inputs)) // config.splits * config.splits
    ends = jax.tree.map(
        float, reference_values(scorer, test.inputs[:count], jax.random.key(config.seed))
    )
    generator = models.apply_function(networks.generator)
    discriminator = models.apply_function(networks.discriminator)
    if config.spectral_iterations:
        discriminator = spectrally_normalized(discriminator, config.spectral_iterations)
    game = Game(
        gan_losses(
            discriminator,
            generator,
            config.loss,
            config.gradient_penalty,
        ),
        train.inputs,
        sampling.shuffled_epochs(config.batch_size),
        gan_draw(config.batch_size, config.latent_size, config.loss == "wasserstein"),
    )

    def initialize(key: PRNGKeyArray) -> Players:
        first, second = jax.random.split(key)
        latents = jnp.zeros((1, config.latent_size), float)
        return {
            DISCRIMINATOR: models.initialize(networks.discriminator, first, train.inputs),
            GENERATOR: models.initialize(networks.generator, second, latents),
        }

    def sample(params: Players, count: int) -> Array:
        key = jax.random.key(config.seed + 1)
        latents = jax.random.normal(key, (config.num_samples, config.latent_size), float)
        return generator(params[GENERATOR], latents[:count])

    return Problem(
        game,
        initialize,
        sample,
        scorer,
        {**ends, "accuracy": classifier.accuracy},
        np.asarray(test.inputs[:_SHOWN]),
    )


def play(method: str, config: Any, game: Game, rates: dict[str, Any]) -> Dynamics:
    """A way to play a game.

    Args:
      method: one of `METHODS`.
      config: its coefficients: `self_multiplier`, `sga_weight`, `consensus_weight`, `estimator`,
        `adam_factor`, `average_decay`.
      game: the game.
      rates: player -> learning rate; Adam's are `adam_factor` times that.

    Returns:
      The dynamics. Simultaneous but for `alternating` and `adam`, where the discriminator moves
      first and each player has a batch of its own.
    """

    def averaged(tx: optax.GradientTransformation, player: str) -> Any:
        if player == DISCRIMINATOR or not config.average_decay:
            return tx
        return average_parameters(tx, config.average_decay)

    descents = {player: averaged(optax.sgd(rate), player) for player, rate in rates.items()}
    if method == "adam":
        return alternating(
            {
                player: averaged(optax.adam(config.adam_factor * rate, b1=0.5), player)
                for player, rate in rates.items()
            },
            game,
        )
    if method == "alternating":
        return alternating(descents, game)
    if method == "rk4":
        return runge_kutta(rates, game)
    correction = None
    if method in ("cancelled", "self_strengthened"):
        own, other = (0.0, -1.0) if method == "cancelled" else (config.self_multiplier, 0.0)
        correction = drift_correction(
            game, rates, own, other, simultaneous=True, estimator=config.estimator
        )
    elif method == "sga":
        correction = symplectic_gradient_adjustment(game, config.sga_weight)
    elif method == "consensus":
        correction = consensus_optimization(game, config.consensus_weight, config.estimator)
    return simultaneous(descents, game if correction is None else corrected(game, correction))


def make_grid(config: Any) -> driftlab.Grid:
    """The lanes of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/gan_drift.py.

    Returns:
      The grid.

    Raises:
      ValueError: if the config's text does not describe one.
    """
    methods = tuple(config.methods.split(","))
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(
            f"methods={config.methods!r}: there is no {unknown}; choose from {METHODS}."
        )
    if config.average_decay and "rk4" in methods:
        raise ValueError("average_decay: Runge-Kutta has no average; leave rk4 out of methods.")
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    ratios = flags.parse_values(config.ratios, "ratios", positive=True)
    seeds = flags.parse_seeds(config.seeds)
    return driftlab.Grid(
        {"learning_rate": rates, "ratio": ratios, "seed": seeds}, {"play": methods}
    )


def gradient_norms(snapshot: Snapshot) -> dict[str, Array]:
    """The gradient norm of each player, corrections included. Cost: none.

    Args:
      snapshot: what the step saw.

    Returns:
      `discriminator_gradient_norm` and `generator_gradient_norm`.
    """
    return {
        f"{player}_gradient_norm": optax.tree.norm(gradient)
        for player, gradient in snapshot.gradient.items()
    }


def run(config: Any, problem: Problem, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Runs the sweep of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/gan_drift.py.
      problem: from `make_problem`.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      Its dataset.

    Raises:
      ValueError: if the config describes no sweep.
    """

    def build(hparams: HParams, key: PRNGKeyArray) -> tuple[Dynamics, Players]:
        rate = hparams["learning_rate"]
        rates = {DISCRIMINATOR: rate, GENERATOR: hparams["ratio"] * rate}
        return play(hparams["play"], config, problem.game, rates), problem.initialize(key)

    def samples(snapshot: Snapshot) -> Array:
        return problem.sample(snapshot.eval_params, _SHOWN)

    quality = sample_quality(problem.scorer, lambda p: problem.sample(p, config.num_samples))
    rarely = config.steps // config.record_every + 2  # at the first record and the last
    return driftlab.sweep(
        build,
        make_grid(config),
        config.steps,
        measures=[quality, gradient_norms, measures.every(samples, rarely)],
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
    make_grid(config)  # refused before data are read
    out = flags.run_folder(config, "gan_drift")
    parse_shard(flags.SHARD.value)
    problem = make_problem(config)
    dataset = flags.run_shard(partial(run, config, problem), out)
    if dataset is None:
        return
    found = gan_drift_report.tables(dataset, problem.ends)
    figures = gan_drift_report.draw(dataset, problem.ends, problem.images)
    report.write_report(out, "Drift in a GAN", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("gan_drift.py")
    absl_flags.adopt_module_key_flags(flags)
    flags.run(lambda: main(CONFIG.value))
