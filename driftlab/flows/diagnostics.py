"""How far the flow of an optax chain can be trusted where an optimiser stands."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from driftlab.flows import slow_manifold
from driftlab.flows.dependencies import evaluate_known
from driftlab.flows.modified import modified_flow
from driftlab.flows.optimizer_memory import Chain, take_apart
from driftlab.flows.vector_field import Loss, gradient_function, loss_function
from driftlab.objective import Objective, Params


class Diagnostics(NamedTuple):
    """What a chain does at some parameters.

    Attributes:
      modes: for joint, eliminate and auto why it does not serve, or "" where it does.
      decays: the smallest and the largest decay of each memory at the frozen fixed point of the
        true gradient, `(2,)`; empty where there is none. Up to 0.7 is fast; near 1, eliminate
        needs a gradient that hardly changes in `1 / (1 - decay)` steps.
      correction: `|V2| / |V1|` of eliminate, Euclidean: its own estimate of how far it is from the
        leading field. Of the size of 1, the expansion does not converge. NaN where eliminate does
        not serve.
      kinks: for each kind of comparison in the update that depends on the gradient or on memory
        (a clip, a maximum, an absolute value), how close its operands are in some entry: their
        difference relative to their sizes. At 0 the flow has a kink, and loses order 2.
    """

    modes: dict[str, str]
    decays: dict[str, Float[Array, "2"]]
    correction: Float[Array, ""]
    kinks: dict[str, Float[Array, ""]]


def diagnose(
    tx: optax.GradientTransformation,
    loss: Loss | Objective,
    params: Params,
    opt_state: PyTree | None = None,
    *,
    extra_args: Sequence[str] = ("value", "grad", "value_fn"),
    batch_size: int | None = None,
) -> Diagnostics:
    """Which memory modes serve a chain, how fast it forgets, and how good eliminate is here.

    Args:
      tx: any optax chain.
      loss: as in `modified_flow`.
      params: where the optimiser stands.
      opt_state: its state there; None for that of `tx.init`.
      extra_args: as in `modified_flow`.
      batch_size: as in `modified_flow`.

    Returns:
      The diagnostics; numbers may be traced.

    Raises:
      TypeError: if loss is neither a function nor an objective.

    Cost: two gradients and one Hessian-vector product.
    """
    modes = {}
    for memory in ("joint", "eliminate", "auto"):
        try:
            modified_flow(tx, loss, params, 2, memory, extra_args=extra_args, batch_size=batch_size)
            modes[memory] = ""
        except ValueError as error:
            modes[memory] = str(error)
    gradient, value = gradient_function(loss, batch_size), loss_function(loss)
    nothing = Diagnostics(modes, {}, jnp.full((), jnp.nan), {})
    try:
        chain = take_apart(tx, params, value, extra_args)
    except ValueError:
        return nothing
    memory, clocks = chain.split(tx.init(params) if opt_state is None else opt_state)
    grads = gradient(params)
    here = slow_manifold.Point(grads, value(params), params, {}, {})
    found = nothing._replace(kinks=_kinks(chain, here, memory, clocks))
    if modes["eliminate"]:
        return found
    reduced = slow_manifold.reduce(chain, (), 4)
    running = {name: clocks[name] for name in reduced.running}
    terms = slow_manifold.terms(reduced, gradient, value, params, {}, running, 2)
    decays = slow_manifold.decays(reduced, here._replace(running=running), terms.fixed_point)
    assert terms.second is not None
    return found._replace(
        decays={
            name: jnp.stack([jnp.min(decay), jnp.max(decay)])
            for name, decay in decays.items()
            if decay.size
        },
        correction=_norm(terms.second[0]) / _norm(terms.leading[0]),
    )


def _kinks(chain: Chain, here: slow_manifold.Point, memory: Any, clocks: Any) -> dict[str, Array]:
    """The closest comparison of each kind that the gradient or memory takes part in."""
    given = (here.gradient, here.value, here.params, memory)
    closed = jax.make_jaxpr(lambda given, clocks: chain.step(*given, clocks))(given, clocks)
    leaves = jax.tree.leaves((given, clocks))
    moving = len(jax.tree.leaves(given))
    fixed: set[int] = set()
    # What can be compared without the gradient, such as a counter, is no kink.
    evaluate_known(
        closed, [None] * moving + leaves[moving:], lambda equation, _: fixed.add(id(equation))
    )
    found: dict[str, Array] = {}

    def observe(equation: Any, operands: list[Any]) -> None:
        first, *others = (jnp.asarray(operand) for operand in operands)
        if id(equation) in fixed or not jnp.issubdtype(first.dtype, jnp.floating) or not first.size:
            return
        tiny = jnp.finfo(first.dtype).tiny
        if others:
            gap = abs(first - others[0]) / (abs(first) + abs(others[0]) + tiny)
        else:
            gap = abs(first) / (jnp.max(abs(first)) + tiny)
        name = equation.primitive.name
        closest = jnp.min(gap)
        found[name] = jnp.minimum(found[name], closest) if name in found else closest

    evaluate_known(closed, leaves, observe)
    return found


def _norm(tree: Params) -> Float[Array, ""]:
    return jnp.sqrt(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]).sum())
