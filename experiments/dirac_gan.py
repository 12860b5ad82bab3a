"""The Dirac GAN: how it is played decides whether it spirals out, circles, or comes to rest.

    python -m experiments.dirac_gan
    python -m experiments.dirac_gan --config=configs/dirac_gan_small.py --learning_rates=0.1,0.5

`L_theta = softplus(phi theta) = -L_phi`, whose gradient flow circles the equilibrium 0:
simultaneous and alternating play in both orders, with the drift cancelled or regularised,
optimistic, extragradient and Runge-Kutta, at several learning rates and ratios of the players';
modified flows beside the iterates, and the fitted orders in h of both. In float64, but for --nox64.
Source: Rosca, Wu, Dherin & Barrett (2021), "Discretization drift in two-player games", with its
released notebook; Mescheder, Geiger & Nowozin (2018).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import flags as absl_flags
from jaxtyping import Array, PRNGKeyArray

import driftlab
from driftlab.dynamics import Snapshot
from driftlab.suggestions import nearest
from driftlab.sweep.lane import HParams
from driftlab.sweep.launch import is_finished
from experiments import dirac_gan_report, flags, report
from experiments.dirac_gan_models import (
    FLOWS,
    PLAYS,
    Errors,
    dirac_game,
    make_field,
    make_play,
    measure_errors,
    start,
)

if TYPE_CHECKING:
    import xarray


def position(snapshot: Snapshot) -> dict[str, Array]:
    """Phi and theta.

    Args:
      snapshot: what the step saw.

    Returns:
      Name -> scalar.
    """
    return {player: value[0] for player, value in snapshot.params.items()}


def plays(config: Any) -> tuple[str, ...]:
    """The ways to play of a config.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dirac_gan.py.

    Returns:
      Some of `PLAYS`, in that order.

    Raises:
      ValueError: for a name that is none.
    """
    names = [name.strip() for name in config.plays.split(",") if name.strip()]
    for name in names:
        if name not in PLAYS:
            raise ValueError(f"plays: there is no {name!r}: {nearest(name, PLAYS)}")
    return tuple(name for name in PLAYS if name in names or not names)


def models(config: Any) -> tuple[str, ...]:
    """Plays and flows.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dirac_gan.py.

    Returns:
      The plays, the gradient flow, and the modified flows of those plays that have one of `FLOWS`.
    """
    chosen = plays(config)
    wanted = {"gradient_flow", *(f"{name}_flow" for name in chosen)}
    return (*chosen, *(name for name in FLOWS if name in wanted))


def run(config: Any, out: Path | None = None, **options: Any) -> "xarray.Dataset":
    """Plays the game in all ways, and follows the flows, at all rates.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dirac_gan.py.
      out: the run's folder, or None.
      **options: further arguments of `driftlab.sweep`.

    Returns:
      The sweep's dataset, with `phi` and `theta`.

    Raises:
      ValueError: if the config describes no sweep.
    """
    rates = flags.parse_values(config.learning_rates, "learning_rates", positive=True)
    ratios = flags.parse_values(config.ratios, "ratios", positive=True)
    if config.weight <= 0:
        raise ValueError(f"weight={config.weight} must be positive.")

    def build(hparams: HParams, _: PRNGKeyArray) -> tuple[driftlab.Dynamics, Any]:
        phi_rate = hparams["learning_rate"]
        each = {"phi": phi_rate, "theta": hparams["ratio"] * phi_rate}
        name = hparams["model"]
        if name in FLOWS:
            field = make_field(name, each)
            # Hundreds of rounds: what a round's error may be.
            accuracy = 1e-10 if jax.config.jax_enable_x64 else None  # pyright: ignore
            return driftlab.flow(field, 1.0, dirac_game().objective, rtol=accuracy), start()
        return make_play(name, each, config.weight), start()

    return driftlab.sweep(
        build,
        driftlab.Grid({"learning_rate": rates, "ratio": ratios}, {"model": models(config)}),
        config.steps,
        measures=[position],
        seed=config.seed,
        # Spiralling out is what is looked at.
        divergence_factor=1e9,
        out=out,
        config=flags.as_json(config),
        **options,
    )


def fitted_rates(config: Any) -> np.ndarray:
    """The learning rates of the slopes, `duration / n` each.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dirac_gan.py.

    Returns:
      Ascending.

    Raises:
      ValueError: if there are fewer than two.
    """
    given = flags.parse_values(config.fitted_rates, "fitted_rates", positive=True)
    counts = np.unique(np.round(config.duration / given))
    if len(counts) < 2 or counts[0] < 1:
        raise ValueError(
            f"fitted_rates={config.fitted_rates!r} with duration={config.duration}: slopes need "
            "two different numbers of rounds duration / h, 1 or more."
        )
    return config.duration / counts[::-1]


def slopes(config: Any) -> dict[str, Errors]:
    """Distances between plays and their models after a fixed time, in 64 bits.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/dirac_gan.py.

    Returns:
      Play -> errors at the `fitted_ratios` and `fitted_rates`.

    Raises:
      ValueError: as `fitted_rates`.
    """
    rates = fitted_rates(config)
    ratios = flags.parse_values(config.fitted_ratios, "fitted_ratios", positive=True)
    with jax.enable_x64(True):
        return measure_errors(plays(config), rates, ratios, config.duration, config.weight)


def main(config: Any) -> None:
    """Runs the experiment that the flags describe.

    Args:
      config: that of `--config`, with its overrides.
    """
    for flag in (flags.LEARNING_RATES, flags.STEPS):
        if flag.value is not None:
            config[flag.name] = flag.value
    for flag in (flags.SEEDS, flags.RECORD_EVERY):
        if flag.value is not None:
            raise ValueError(f"--{flag.name} has no effect here: nothing is random, all recorded.")
    flags.refuse_shard()
    rates = fitted_rates(config)
    ratios = flags.parse_values(config.fitted_ratios, "fitted_ratios", positive=True)
    out = flags.run_folder(config, "dirac_gan")
    finished = is_finished(out)
    dataset = run(
        config,
        out,
        **flags.engine_options(),
    )
    flags.announce(out, finished)
    errors = slopes(config)
    found = dirac_gan_report.tables(dataset, ratios, rates, errors, config.weight)
    figures = dirac_gan_report.draw(dataset, ratios, rates, errors)
    report.write_report(out, "The Dirac GAN", dataset, found, figures)
    report.print_tables(out, found)


if __name__ == "__main__":
    # Here, not at import: tests import several experiments, each with a --config of its own.
    CONFIG = flags.define_config("dirac_gan.py")
    absl_flags.adopt_module_key_flags(flags)
    absl_flags.set_default(flags.X64, True)
    flags.run(lambda: main(CONFIG.value))
