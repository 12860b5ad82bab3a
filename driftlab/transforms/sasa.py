"""SASA: SGD that lowers its learning rate by ten where a t-test no longer rejects stationarity.

Source: Lang, Zhang & Xiao (2019), "Using statistics to automate stochastic optimization".
"""

import optax
from jaxtyping import ArrayLike

from driftlab.measures.stationarity import residual_test
from driftlab.transforms.fluctuation_dissipation_schedule import (
    damped_momentum,
    lower_at_stationarity,
)


def sasa(
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.9,
    *,
    significance: float = 0.2,
    margin: ArrayLike | None = 0.02,
    factor: ArrayLike = 0.1,
    interval: ArrayLike = 1000,
    minimum_steps: int = 1000,
    min_learning_rate: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD with normalised momentum and a SASA-style schedule, to compare Yaida's with.

    `d' = beta d + (1 - beta) g`, `theta' = theta - eta d'`, and the statistic
    `theta.g - eta (1 + beta) / (2 (1 - beta)) |d'|^2`, whose mean is 0 at stationarity: Yaida's
    relation with mu = nu = beta. Every `interval` steps: if the confidence interval of its mean
    over the last half of the window, with the variance of block means, lies within
    `margin <eta (1 + beta) / (2 (1 - beta)) |d'|^2>`, then `eta <- factor eta`, and the velocity
    and the window restart. With `margin=None` it is the simpler test, whether the interval holds 0;
    see `driftlab.measures.stationarity.residual_test` on what it leans on.

    Args:
      learning_rate: the first eta; a number or a traced array. It is to be 1 / (1 - beta) times
        that of `optax.sgd`.
      momentum: beta.
      significance: the two-sided level of the interval; a number.
      margin: how far from balance counts as balance, or None.
      factor: what eta is multiplied by.
      interval: steps from one test to the next.
      minimum_steps: no test in a shorter window.
      min_learning_rate: where eta stops.

    Returns:
      The optimiser; see `lower_at_stationarity`.

    Raises:
      ValueError: for an argument out of range.
    """
    return lower_at_stationarity(
        damped_momentum(momentum, momentum),
        learning_rate,
        residual_test(significance, margin),
        momentum=momentum,
        dampening=momentum,
        interval=interval,
        factor=factor,
        minimum_steps=minimum_steps,
        min_learning_rate=min_learning_rate,
        restart_direction=True,
    )
