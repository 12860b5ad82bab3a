"""Where games of two numbers are stable: a map over the two learning rates, beside theory's.

    python -m experiments.bilinear_quadratic_games
    python -m experiments.bilinear_quadratic_games --config.games=bilinear --steps=1000

A bilinear game, quadratic ones and one of common payoff, played simultaneously, in turns and in
turns of one update to two, at every pair of learning rates: 64 x 64 lanes of one compiled program.
Measured growth beside the boundaries of the round's Jacobian (exact) and of the modified flow's
(small rates). In float64, but for --nox64. Source: Rosca, Wu, Dherin & Barrett (2021),
"Discretization drift in two-player games", section 4.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from absl import flags as absl_flags
from jaxtyping import Array, PRNGKeyArray

import driftlab
from driftlab.dynamics import Snapshot
from driftlab.sweep.lane import HParams
from experiments import (
    bilinear_quadratic_games_figures,
    bilinear_quadratic_games_report,
    flags,
    report,
)
from experiments.linear_games import GAMES, PLAYS, make_play, start, with_peak

if TYPE_CHECKING:
    import xarray

# A lane is frozen here; what it minimises is |xi|^2 / 2.
DIVERGENCE_FACTOR = 1e12


def size(snapshot: Snapshot) -> Array:
    """The largest `sqrt(phi^2 / a + theta^2 / b)` of the rounds since the last record.

    Args:
      snapshot: what the step of `linear_games.with_peak` saw.

    Returns:
      The scalar.
    """
    return snapshot.state.inner[1]


def run(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Plays every game in every way at every pair of learning rates.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/bilinear_quadratic_games.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      The sweep's dataset, with `size`.

    Raises:
      ValueError: if the config describes no sweep.
    """
    if config.growth <= 1:
        raise ValueError(f"growth={config.growth} must be more than 1.")
    if config.steps < 8 * config.record_every:
        raise ValueError(
            f"steps={config.steps} with record_every={config.record_every}: growth needs 8 records."
        )
    axes = {
        "phi_rate": flags.parse_values(config.learning_rates, "learning_rates", positive=True),
        "theta_rate": flags.parse_values(config.theta_rates, "theta_rates", positive=True),
    }
    static = {
        "game": flags.parse_names(config.games, "games", GAMES),
        "play": flags.parse_names(config.plays, "plays", PLAYS),
    }

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        rates = {"phi": hparams["phi_rate"], "theta": hparams["theta_rate"]}
        params = {player: value.astype(jnp.result_type(float)) for player, value in start().items()}
        play = make_play(hparams["game"], hparams["play"], rates)
        return with_peak(play, rates, config.record_every), params

    return driftlab.sweep(
        build,
        driftlab.Grid(axes, static),
        config.steps,
        measures=[size],
        record_every=config.record_every,
        seed=config.seed,
        divergence_factor=DIVERGENCE_FACTOR,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag in (flags.LEARNING_RATES, flags.STEPS, flags.RECORD_EVERY):
        if flag.value is not None:
            config[flag.name] = flag.value
    if flags.SEEDS.value is not None:
        raise ValueError("--seeds has no effect here: nothing is random.")
    out = flags.run_folder(config, "bilinear_quadratic_games")
    dataset = flags.run_shard(partial(run, config), out)
    if dataset is None:
        return
    measured = bilinear_quadratic_games_report.growth(dataset, config.growth, DIVERGENCE_FACTOR)
    found = bilinear_quadratic_games_report.tables(measured)
    figures = bilinear_quadratic_games_figures.draw(measured)
    report.write_report(out, "Stability of linear games", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("bilinear_quadratic_games.py")
    absl_flags.adopt_module_key_flags(flags)
    absl_flags.set_default(flags.X64, True)
    # Two numbers a lane: thousands together cost what one does.
    absl_flags.set_default(flags.LANES, "vmap")
    flags.run(lambda: main(CONFIG.value))
