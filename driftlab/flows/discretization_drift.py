"""Discretisation drift of a run: how far its iterates are from a flow, a step at a time and in all.

Times are those of the flow: `step_time = h` for a field in the papers' time, 1 for one in
iteration time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.solve import Field, solve
from driftlab.flows.vector_field import Flow
from driftlab.objective import Params

Iterates = PyTree[Float[Array, "n_plus_1 ..."]]


def per_iteration_drift(
    flow: Flow | Field, iterates: Iterates, step_time: ArrayLike, **options: Any
) -> Float[Array, " n"]:
    """The error of a flow that starts anew at each iterate, `||theta_{k+1} - y(h; theta_k)||`.

    Args:
      flow: a flow, or a field whose state is params.
      iterates: `theta_0 .. theta_n`, params with a leading axis.
      step_time: the flow's time of one iteration.
      **options: of `driftlab.flows.solve`. Its tolerances are relative to the parameters; a
        drift far below `rtol ||theta||` needs smaller ones.

    Returns:
      One distance an iteration, in the parameters' unit; NaN where the solve failed.

    Raises:
      ValueError: if there are fewer than two iterates; as `driftlab.flows.solve`.

    Source: Rosca et al. (2023), "On a continuous time model of gradient descent dynamics and
    instability in deep learning", per-iteration drift. Cost: one solve an iteration.
    """
    _check_iterates(iterates)
    flow = _as_flow(flow)

    def drift(pair: tuple[Params, Params]) -> Float[Array, ""]:
        here, there = pair
        solved = solve(flow.field, flow.init(here), step_time, **options)
        return jnp.where(solved.failed, jnp.nan, _distance(flow.params(solved.y), there))

    starts = jax.tree.map(lambda leaf: leaf[:-1], iterates)
    ends = jax.tree.map(lambda leaf: leaf[1:], iterates)
    return jax.lax.map(drift, (starts, ends))


def total_drift(
    flow: Flow | Field, iterates: Iterates, step_time: ArrayLike, **options: Any
) -> Float[Array, " n"]:
    """The error of a flow from the first iterate, `||theta_k - y(k h; theta_0)||`, k = 1 .. n.

    Args:
      flow: as in `per_iteration_drift`.
      iterates: likewise.
      step_time: likewise.
      **options: likewise.

    Returns:
      One distance an iteration; NaN from where a solve failed.

    Raises:
      ValueError: as `per_iteration_drift`.

    Source: as `per_iteration_drift`, total drift. Cost: one solve an iteration.
    """
    _check_iterates(iterates)
    flow = _as_flow(flow)

    def advance(y: PyTree, target: Params) -> tuple[PyTree, Float[Array, ""]]:
        solved = solve(flow.field, y, step_time, **options)
        y = jax.tree.map(lambda leaf: jnp.where(solved.failed, jnp.nan, leaf), solved.y)
        return y, _distance(flow.params(y), target)

    start = flow.init(jax.tree.map(lambda leaf: leaf[0], iterates))
    rest = jax.tree.map(lambda leaf: leaf[1:], iterates)
    return jax.lax.scan(advance, start, rest)[1]


def _as_flow(flow: Flow | Field) -> Flow:
    if isinstance(flow, Flow):
        return flow
    return Flow(flow, lambda params: params, lambda y: y)


def _distance(first: Params, second: Params) -> Float[Array, ""]:
    gaps = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), first, second)
    return jnp.sqrt(sum(jax.tree.leaves(gaps)))


def _check_iterates(iterates: Iterates) -> None:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(iterates)}
    if len(lengths) != 1 or () in lengths or min(lengths)[0] < 2:
        raise ValueError(
            "iterates must be params with one leading axis of two iterations or more in all "
            f"leaves; got leading axes {sorted(lengths)}."
        )
