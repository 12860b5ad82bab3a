"""The optimisers of the edge of stability, and the sharpness at which each becomes unstable."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from driftlab import curvature, measures
from driftlab.measures.sharpness import preconditioned_sharpness, sharpness
from driftlab.suggestions import nearest

SHARPNESS, PRECONDITIONED = "sharpness", "preconditioned_sharpness"


class Method(NamedTuple):
    """An optimiser and its edge.

    Attributes:
      name: as in the config.
      title: as in a figure.
      transform: `transform(learning_rate) -> optax.GradientTransformation`.
      constant: c, such that the optimiser is unstable where `measure > c / learning_rate`.
      formula: c in words.
      variable: the measure's name.
      measure: `measure(batch_size=..., tolerance=...)`, the (preconditioned) sharpness.
      flow_time: gradient flow's time a unit of `iteration * learning_rate`; None where another
        flow is its limit.
    """

    name: str
    title: str
    transform: Callable[[Any], optax.GradientTransformation]
    constant: float
    formula: str
    variable: str
    measure: Callable[..., measures.Tracker]
    flow_time: float | None


def make_methods(config: Any) -> dict[str, Method]:
    """The methods that a config names.

    On a quadratic of curvature l (preconditioned: of P^{-1/2} H P^{-1/2}, at fixed P) each is a
    linear recurrence of the iterate, with x = learning_rate * l and momentum b:

    - gradient descent, RMSProp: `z = 1 - x`
    - heavy ball: `z^2 - (1 + b - x) z + b = 0`
    - Nesterov: `z^2 - (1 + b) (1 - x) z + b (1 - x) = 0`
    - Adam: heavy ball with `(1 - b1) x` in the place of x, for it averages gradients

    A root leaves the unit circle at z = -1, which gives the constants c = x there.

    Args:
      config: an `ml_collections.ConfigDict` with `optimizers`, `momentum`, `b1`, `b2`, `eps`.

    Returns:
      Name -> method, in the config's order.

    Raises:
      ValueError: for a name that is none of them, or a coefficient out of range.

    Source: Cohen et al. (2021), "Gradient descent on neural networks typically occurs at the edge
    of stability", section 2 and appendix B; Cohen et al. (2022), "Adaptive gradient methods at the
    edge of stability", section 3.
    """
    for name in ("momentum", "b1", "b2"):
        if not 0 <= config[name] < 1:
            raise ValueError(f"config.{name}={config[name]} must lie in [0, 1).")
    b, b1, b2, eps = config.momentum, config.b1, config.b2, config.eps
    diagonal = functools.partial(curvature.preconditioner, b2=b2, eps=eps, eps_in_sqrt=False)
    adaptive = functools.partial(preconditioned_sharpness, preconditioner=diagonal)
    known = [
        Method(
            "gradient_descent", "Gradient descent", optax.sgd, 2.0, "2", SHARPNESS, sharpness, 1.0
        ),
        Method(
            "heavy_ball",
            "Heavy ball",
            lambda rate: optax.sgd(rate, momentum=b),
            2 * (1 + b),
            "2 (1 + b)",
            SHARPNESS,
            sharpness,
            1 / (1 - b),
        ),
        Method(
            "nesterov",
            "Nesterov momentum",
            lambda rate: optax.sgd(rate, momentum=b, nesterov=True),
            2 * (1 + b) / (1 + 2 * b),
            "2 (1 + b) / (1 + 2 b)",
            SHARPNESS,
            sharpness,
            1 / (1 - b),
        ),
        Method(
            "rmsprop",
            "RMSProp",
            # Corrected for bias: else the first steps are 1 / sqrt(1 - b2) times too long.
            lambda rate: optax.rmsprop(
                rate, decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True
            ),
            2.0,
            "2",
            PRECONDITIONED,
            adaptive,
            None,
        ),
        Method(
            "adam",
            "Adam",
            lambda rate: optax.adam(rate, b1=b1, b2=b2, eps=eps),
            2 * (1 + b1) / (1 - b1),
            "2 (1 + b1) / (1 - b1)",
            PRECONDITIONED,
            adaptive,
            None,
        ),
    ]
    by_name = {method.name: method for method in known}
    chosen = [name.strip() for name in config.optimizers.split(",")]
    for name in chosen:
        if name not in by_name:
            raise ValueError(f"there is no optimizer {name!r}: {nearest(name, by_name)}")
    return {name: by_name[name] for name in chosen}
