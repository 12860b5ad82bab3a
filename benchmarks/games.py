"""The cost of regularising a game: all three terms for both players beside the plain step.

    python -m benchmarks.games [--networks=mlp,dcgan] [--quick] [--out=FILE.md]

One step of simultaneous play of a GAN, every player with its self norm, its other norm and its
interaction term, in four ways: `plain`, without them; `driftlab`, by corrections that share the
players' gradients and one Hessian-vector product for the self and the interaction term; `separate
terms`, the way of the published implementation, each of the six terms as the gradient of a dot
product of two gradients, in one program; `separate programs`, the same without a common program.
All but the first take the same step, which is checked. Compilation is not counted.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import report as reports
from driftlab import models
from driftlab.game import Game, Players, corrected
from driftlab.models.gan import GANNetworks, dcgan, mlp_gan
from driftlab.models.gan_losses import DISCRIMINATOR, GENERATOR, gan_losses
from driftlab.regularizers.games import gradient_norm_correction, weighted_correction

_NETWORKS = flags.DEFINE_list("networks", ["mlp", "dcgan"], "Which networks.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; the median counts.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "Steps a round, of the smallest.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Five steps, one round, to try it out.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write as well.")

_BATCH, _LATENT, _RATE = 64, 32, 0.01
_SELF, _OTHER, _INTERACTION = 0.03, 0.02, -0.01
_PAIR = {DISCRIMINATOR: GENERATOR, GENERATOR: DISCRIMINATOR}
Step = Callable[[Players], Players]


def main(arguments: list[str]) -> None:
    """Times the four ways on each of the networks and prints a table."""
    if arguments[1:]:
        raise app.UsageError(f"arguments without a flag: {arguments[1:]}")
    known = {
        "mlp": (mlp_gan(), (8, 8, 1), 1),
        "dcgan": (dcgan(width=0.25), (28, 28, 1), 20),
    }
    unknown = set(_NETWORKS.value) - set(known)
    if unknown:
        raise app.UsageError(f"no networks {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    report = reports.Report(_OUT.value)
    report.write(f"jax {jax.__version__}, {jax.devices()}, batch {_BATCH}, float32\n")
    for name in _NETWORKS.value:
        networks, shape, slower = known[name]
        steps = 5 if _QUICK.value else max(5, _STEPS.value // slower)
        rows = timed(networks, shape, steps, 1 if _QUICK.value else _REPEATS.value)
        columns = ("step", "wall ms", "times plain", "count of gradients says")
        report.table(f"{name}, {steps} steps a round", columns, rows)
    report.finish()


def timed(
    networks: GANNetworks, shape: tuple[int, ...], steps: int, repeats: int
) -> list[tuple[str, float, float, float]]:
    """The rows of one pair of networks.

    Args:
      networks: the networks.
      shape: of their images.
      steps: a round.
      repeats: rounds.

    Returns:
      (way, milliseconds a step, ratio to plain, ratio that a count of gradients gives).

    Raises:
      RuntimeError: if two ways do not take the same step.
    """
    game, params = _problem(networks, shape)
    # A gradient of a player counts 1. The tangent of one, and the gradient of a dot product with
    # one, count 2 beyond the gradient itself.
    ways: dict[str, tuple[Step, float]] = {
        "plain": (_plain(game), 2),
        "driftlab": (_together(game), 2 + 4 * 2),
        "separate terms": (jax.jit(_terms(game, jit=False)), 2 + 6 * (1 + 3)),
        "separate programs": (_terms(game, jit=True), 2 + 6 * (1 + 3)),
    }
    found = {name: step(params) for name, (step, _) in ways.items()}
    for name in list(ways)[2:]:
        pairs = zip(*(jax.tree.leaves(found[way]) for way in ("driftlab", name)), strict=True)
        apart = max(float(jnp.abs(a - b).max()) for a, b in pairs)
        if not apart < 1e-5:
            raise RuntimeError(f"{name} is {apart} away from driftlab's step.")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (step, _) in ways.items():
            start, here = time.perf_counter(), params
            for _ in range(steps):
                here = step(here)
            jax.block_until_ready(here)
            seconds[name].append((time.perf_counter() - start) / steps)
    rows = []
    for name, (_, count) in ways.items():
        pairs = zip(seconds[name], seconds["plain"], strict=True)
        ratio = statistics.median(mine / plain for mine, plain in pairs)
        rows.append((name, 1e3 * statistics.median(seconds[name]), ratio, count / 2))
    return rows


def _problem(networks: GANNetworks, shape: tuple[int, ...]) -> tuple[Game, Players]:
    random = np.random.RandomState(0)
    images = jnp.asarray(random.uniform(-1, 1, (_BATCH, *shape)), jnp.float32)
    latents = jnp.asarray(random.randn(_BATCH, _LATENT), jnp.float32)
    losses = gan_losses(
        models.apply_function(networks.discriminator),
        models.apply_function(networks.generator),
        "saturating",
    )
    # One fixed batch: what is timed is the step.
    batch = (images, {"latents": latents})
    fixed = {
        name: (lambda params, _, loss=loss: loss(params, batch)) for name, loss in losses.items()
    }
    key = jax.random.key(0)
    params = jax.jit(
        lambda: {
            DISCRIMINATOR: models.initialize(networks.discriminator, key, images),
            GENERATOR: models.initialize(networks.generator, key, latents),
        }
    )()
    return Game(fixed), params


def _moved(params: Players, gradients: Players) -> Players:
    return jax.tree.map(lambda p, g: p - _RATE * g, params, gradients)


def _plain(game: Game) -> Step:
    return jax.jit(lambda params: _moved(params, game.gradients(params, ())))


def _together(game: Game) -> Step:
    weights = {p: {p: _SELF, q: _INTERACTION} for p, q in _PAIR.items()}
    norms = {p: {q: _OTHER} for p, q in _PAIR.items()}
    regularized = corrected(game, weighted_correction(game, weights))
    regularized = corrected(regularized, gradient_norm_correction(game, norms))

    def step(params: Players) -> Players:
        correction = regularized.correction
        assert correction is not None
        gradients = {
            p: jax.tree.map(jnp.add, gradient, correction(p, params, ()))
            for p, gradient in game.gradients(params, ()).items()
        }
        return _moved(params, gradients)

    return jax.jit(step)


def _terms(game: Game, jit: bool) -> Step:
    """Six gradients of dot products, the second factor held fixed."""

    def gradient(loss: str, by: str, params: Players) -> Any:
        return jax.grad(lambda own: game.losses[loss]({**params, by: own}, ()))(params[by])

    def term(player: str, first: str, second: str, by: str, params: Players) -> Any:
        """`grad_player (grad_by L_first . [grad_by L_second])`."""
        fixed = gradient(second, by, params)

        def dot(own: Any) -> Any:
            found = gradient(first, by, {**params, player: own})
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(fixed), strict=True)
            return jnp.stack([jnp.vdot(a, b) for a, b in pairs]).sum()

        return jax.grad(dot)(params[player])

    wrap = jax.jit if jit else (lambda function, static_argnums=(): function)
    gradient_program = wrap(gradient, static_argnums=(0, 1))
    term_program = wrap(term, static_argnums=(0, 1, 2, 3))
    add = wrap(
        lambda params, gradients, terms: _moved(
            params,
            {
                p: jax.tree.map(
                    lambda g, s, i, o: g + _SELF * s + _INTERACTION * i + _OTHER * o,
                    gradients[p],
                    *terms[p],
                )
                for p in gradients
            },
        )
    )

    def step(params: Players) -> Players:
        gradients = {p: gradient_program(p, p, params) for p in _PAIR}
        terms = {
            p: (
                term_program(p, p, p, p, params),
                term_program(p, p, q, q, params),
                term_program(p, q, q, q, params),
            )
            for p, q in _PAIR.items()
        }
        return add(params, gradients, terms)

    return step


if __name__ == "__main__":
    app.run(main)
