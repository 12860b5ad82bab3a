"""Whether an optax chain's updates jump while its gradient and memory move smoothly."""

from typing import Any

import jax
import jax.numpy as jnp

from driftlab.flows.optimizer_memory import Chain
from driftlab.flows.optimizer_probe import (
    STAND_INS,
    STEPS,
    first_steps,
    made_up_gradient,
    places,
    tried_out,
)
from driftlab.flows.solve import time_dtype
from driftlab.objective import Params

# A line from state to state is cut into so many parts, and the one with most change halved so
# often. What is left there, over a typical entry, is a jump.
_GRID, _NEAR, _HALVINGS, _JUMP = 64, 3, 18, 0.05


def probe_jumps(chain: Chain, params: Params) -> bool:
    """Whether the updates or memory jump while gradient and memory move along a line.

    Along two lines, from one made-up state to another and over six decades of its size, a random
    combination of all that a step gives is followed, and the part of a line in which it changes
    most is halved again and again. A clip or a maximum loses its change with the width; a mask
    keeps it.

    Args:
      chain: the optimiser.
      params: parameters.

    Returns:
      What was seen; with stand-ins for traced hyper-parameters. Cost: 200 elementwise updates.
    """
    with jax.ensure_compile_time_eval():
        place, initial = places(chain, params)
        jump = jax.jit(lambda p, m: _largest_jump(tried_out(chain, STAND_INS[0], m), p))
        return float(jump(place, initial)) > _JUMP


def _largest_jump(chain: Chain, params: Params) -> Any:
    """What is left of the largest change along two lines, over a typical entry."""
    clock = time_dtype(params)
    one = jnp.ones((), clock)
    clocks = {name: 1000 * one for name in chain.clocks}
    here = made_up_gradient(params)
    there = jax.tree.map(lambda g: 3 * g, made_up_gradient(params, 1))
    # Memory of other gradients, so that each sign of one is met with each sign of the other; and
    # as they leave it, so that variances stay positive in between.
    memories = []
    for seed in (2, 3):
        past = made_up_gradient(params, seed)
        history = first_steps(chain, params, past, past)[0]
        memories.append({name: leaf[STEPS - 1] for name, leaf in history.items()})
    weights = made_up_gradient((params, memories[0]), 4)

    def followed(s: Any) -> Any:
        """A random combination of the entries of each part of a step, and their size."""

        def between(a: Any, b: Any) -> Any:
            share = jnp.minimum(s, 1).astype(a.dtype)
            size = 10 ** (6 * jnp.maximum(s - 1, 0)).astype(a.dtype)
            return (a + share * (b - a)) * size

        gradient = jax.tree.map(between, here, there)
        memory = jax.tree.map(between, *memories)
        found = chain.step(gradient, one, params, memory, clocks)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(weights), strict=True)
        parts = [(x, w) for x, w in pairs if x.size]
        mixed = [jnp.sum(w * x).astype(clock) for x, w in parts]
        sizes = [jnp.sqrt(jnp.mean(x**2)).astype(clock) for x, _ in parts]
        return jnp.stack(mixed), jnp.stack(sizes)

    edges = jnp.linspace(0, 2, 2 * _GRID + 1, dtype=clock)
    mixed, sizes = jax.lax.map(followed, edges)
    changes = jnp.nan_to_num(abs(jnp.diff(mixed, axis=0)))
    at = jnp.argmax(changes, axis=0)

    def left_over(part: Any) -> Any:
        first = at[part]
        # Of the neighbourhood: at a kink on one side of which there is nothing, the size is 0.
        near = abs(jnp.arange(len(edges)) - first) <= _NEAR
        size = jnp.max(jnp.where(near, sizes[:, part], 0))

        def halve(carry: Any, _: None) -> Any:
            low, high, below, above = carry
            middle = (low + high) / 2
            value = followed(middle)[0][part]
            left = abs(value - below) > abs(above - value)
            return (
                jnp.where(left, low, middle),
                jnp.where(left, middle, high),
                jnp.where(left, below, value),
                jnp.where(left, value, above),
            ), None

        start = (edges[first], edges[first + 1], mixed[first, part], mixed[first + 1, part])
        _, _, below, above = jax.lax.scan(halve, start, None, length=_HALVINGS)[0]
        return abs(above - below) / jnp.where(size > 0, size, 1)

    return jnp.max(jnp.nan_to_num(jax.lax.map(left_over, jnp.arange(changes.shape[1]))))
