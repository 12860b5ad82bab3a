"""Stable flows: what an optimiser without momentum follows as long as nothing oscillates."""

from typing import Any

import jax
import jax.numpy as jnp

from driftlab.flows.preconditioning import Memory, Preconditioning
from driftlab.flows.vector_field import Flow, Loss, gradient_function
from driftlab.objective import Objective, Params


def stable_flow(
    loss: Loss | Objective, preconditioning: Preconditioning, batch_size: int | None = None
) -> Flow:
    """`dw/dt = -P(m)^{-1} grad L(w)`, `dm/dt = rate(m, grad L(w))`, in iteration time.

    Gradient flow for gradient descent (times h: one unit of time is one iteration). A central flow
    without its oscillation, so that their difference is what the oscillation does. It goes beyond
    the edge of stability, where it is stiff: an explicit solver takes about
    `max(3, eigenvalue of P^{-1} H)` steps an iteration.

    `driftlab.flow(stable_flow(...), 1.0, objective)` is its dynamics.

    Args:
      loss: what is minimised: `loss(params) -> scalar`, or an objective over all its data.
      preconditioning: the optimiser (see `driftlab.flows.preconditioning`).
      batch_size: with an objective, examples at once; None for all.

    Returns:
      The flow; its state is `(params, memory)`, or `(params,)` of an optimiser without memory.

    Raises:
      TypeError: as `driftlab.flows.gradient_flow`.
      ValueError: likewise.

    Source: Cohen et al. (2025), "stable flow". Cost: one gradient an evaluation.
    """
    gradient = gradient_function(loss, batch_size)

    # diffrax' loops in forward mode do not take an empty tuple for a part of the state.
    def joined(params: Params, memory: Memory) -> tuple:
        return (params, memory) if jax.tree.leaves(memory) else (params,)

    def init(params: Params) -> tuple:
        params = jax.tree.map(jnp.asarray, params)
        return joined(params, preconditioning.init(params, gradient(params)))

    def field(t: Any, y: tuple, args: Any) -> tuple:
        del t, args
        params, memory = y if len(y) == 2 else (y[0], ())
        slope = gradient(params)
        diagonal = preconditioning.diagonal(memory)
        if jax.tree.structure(diagonal) == jax.tree.structure(0):
            diagonal = jax.tree.map(lambda _: diagonal, slope)
        rates = jax.tree.map(lambda g, p: (-g / p).astype(g.dtype), slope, diagonal)
        return joined(rates, preconditioning.rate(memory, slope))

    return Flow(field, init, lambda y: y[0])
