"""The joint mode: parameters and memory move together, by the logarithm of the optimiser's step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab.flows.one_step import log_map_flow
from driftlab.flows.optimizer_memory import Chain, Clocks, Memory
from driftlab.flows.vector_field import Field
from driftlab.objective import Params


class OptimizerState(NamedTuple):
    """The state of an ODE in which memory moves beside the parameters.

    Attributes:
      params: theta.
      memory: the optimiser's dynamic memory by its name in the optax state, such as
        `"[0].mu['w']"`.
      clocks: its counters likewise, as floats that go up by 1 a unit of time.
    """

    params: Params
    memory: Memory
    clocks: Clocks


def joint_field(
    chain: Chain,
    gradient: Callable[[Params], Params],
    value: Callable[[Params], Float[Array, ""]],
    order: int,
) -> Field:
    """The log-map of the step `z = (theta, s, n) -> (theta + u, S(g, s, theta), n + 1)`.

        dz/dt = sum_{k=1}^{order} (-1)^{k+1} / k  Delta^k z,

    Delta^k being forward differences of `order` successive steps of the optimiser, in iteration
    time. Nothing is differentiated through the chain and there is no fixed point. A mode of memory
    of decay b has `|1 - b|^{order+1} / (order + 1)` left out a unit of time; what varies slowly,
    `O(h^{order+1})` whatever b is.

    Args:
      chain: the optimiser.
      gradient: `gradient(params)`.
      value: the loss, for chains that use it.
      order: P.

    Returns:
      `field(t, y, args)` for y an `OptimizerState`; t is ignored, as the clocks are in y.

    Source: momentum as more state, Kovachki & Stuart (2021); the logarithm of a map, Hairer,
    Lubich & Wanner, Geometric Numerical Integration, 2006, IX. Cost: `order` gradients.
    """

    def increment(y: OptimizerState) -> OptimizerState:
        grads = gradient(y.params)
        loss = value(y.params) if chain.uses_value else _no_value(y.params)
        updates, memory = chain.step(grads, loss, y.params, y.memory, y.clocks)
        return OptimizerState(
            updates,
            jax.tree.map(jnp.subtract, memory, y.memory),
            jax.tree.map(jnp.ones_like, y.clocks),
        )

    inner = log_map_flow(increment, order, increments=True)

    def field(t: Any, y: OptimizerState, args: Any) -> OptimizerState:
        del args
        return inner(t, y, None)

    return field


def _no_value(params: Params) -> Float[Array, ""]:
    return jnp.zeros((), jax.tree.leaves(params)[0].dtype)
