"""Errors of modified flows against the optax chains that they model, one lane a learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from driftlab.flows import solve
from driftlab.flows.modified import modified_flow

RATES = (0.008, 0.004, 0.002, 0.001)
START = {"a": jnp.array([0.6, -0.4, 0.9]), "b": jnp.array([[0.5, -0.8]])}


class Errors(NamedTuple):
    """The largest difference between flow and iterates, and how far they went; one a rate."""

    errors: jax.Array
    moved: jax.Array


def loss(params):
    """Five parameters, coupled and far from quadratic; the Hessian is positive around the start."""
    x = jnp.concatenate([params["a"], params["b"][0]])
    chain = jnp.sum((x[1:] - x[:-1] ** 2) ** 2) / 2
    return chain + jnp.sum(jnp.cosh(x - jnp.arange(5.0) / 4)) / 2 + jnp.sum(jnp.sin(x)) / 5


def errors(make, order, memory, *, rates=RATES, time=1.0, burn_in=0.0, start=None, **options):
    """The flow of `make(h)` after a time `time / h` against as many iterations, for each h.

    The flow starts after `burn_in / h` iterations. The chain is built inside vmap from a traced
    learning rate.
    """

    def lane(rate):
        tx = make(rate)
        first = jax.tree.map(jnp.asarray, START if start is None else start)

        def step(_, carry):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            extra = {"value": value, "grad": grads, "value_fn": loss}
            takes = isinstance(tx, optax.GradientTransformationExtraArgs)
            updates, state = tx.update(grads, state, params, **(extra if takes else {}))
            return jax.tree.map(jnp.add, params, updates), state

        warm = jnp.round(burn_in / rate).astype(int)
        count = jnp.round(time / rate).astype(int)
        params, state = jax.lax.fori_loop(0, warm, step, (first, tx.init(first)))
        flow = modified_flow(tx, loss, first, order, memory, **options)
        y = flow.init(params, state)
        solved = solve(
            flow.field, y, count.astype(float), t0=warm.astype(float), rtol=1e-11, atol=1e-13,
            max_steps=20_000,
        )  # fmt: skip
        end, _ = jax.lax.fori_loop(0, count, step, (params, state))
        reached = jax.tree.map(lambda x: jnp.where(solved.failed, jnp.nan, x), solved.y)
        gap = jax.tree.map(lambda x, y: jnp.max(abs(x - y)), flow.params(reached), end)
        moved = jax.tree.map(lambda x, y: jnp.max(abs(x - y)), end, params)
        return Errors(*(jnp.max(jnp.stack(jax.tree.leaves(tree))) for tree in (gap, moved)))

    return jax.jit(jax.vmap(lane))(jnp.asarray(rates))
