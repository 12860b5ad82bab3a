"""Every flow of a learning rate with the optimiser it models: the rows of the matrix.

`build(loss, learning_rate)` gives a field, or a `Flow` whose state is more than parameters, and
`step_time(learning_rate)` the time of one iteration. From the first step of
`descent(learning_rate)` on, the distance after a fixed time n h falls like h to the `order`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from driftlab import flows


def papers_time(learning_rate):
    return learning_rate


def iteration_time(learning_rate):
    return jnp.ones_like(learning_rate)


class Case(NamedTuple):
    name: str
    build: Callable[..., Any]
    descent: Callable[..., optax.GradientTransformation]
    order: int
    step_time: Callable[..., Any] = papers_time


CASES = [
    Case("gradient_flow", lambda loss, h: flows.gradient_flow(loss), optax.sgd, 1),
]


def as_flow(found):
    """A bare field's state is the parameters."""
    if isinstance(found, flows.Flow):
        return found
    return flows.Flow(found, lambda params: params, lambda y: y)
