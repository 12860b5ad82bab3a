"""The eliminate mode: fast memory is solved for on its slow manifold, to second order.

The optimiser is a recurrence `s' = S(g, s, z)` with increments `z' = z + F(g, s, z)`, where z is
what stays in the ODE's state: the parameters and any memory that is kept dynamic. With `g = grad
L(theta)`, `H` its Hessian, and everything at the frozen fixed point `Psi0 = S(g, Psi0, z)`,

    V1   = F(g, Psi0, z)
    dPsi = (I - S_s)^{-1} (S_g H V1 + S_z V1 + S_t),   Psi1 = -(I - S_s)^{-1} dPsi
    V2   = F_s Psi1  -  (F_g H V1 + F_s dPsi + F_z V1 + F_t) / 2 :

the memory's lag behind the gradient, and the discretisation. In iteration time, dz/dt = V1 + V2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from driftlab.flows.optimizer_memory import SETTLED, Chain, Clocks, Memory
from driftlab.objective import Params

Moving = tuple[Params, Memory]

_KRYLOV = 24  # distinct decays of one coupled memory; GMRES is exact from their number on


class Reduced(NamedTuple):
    """An optimiser some of whose memory is eliminated.

    Attributes:
      chain: the optimiser.
      levels: the eliminated memory, in the order in which it is solved for.
      dynamic: names of the memory that stays.
      running: names of the clocks that advance; the others stand at `SETTLED`.
      newton: Newton steps a level of the fixed point; one is exact where S is affine in s.
    """

    chain: Chain
    levels: tuple[tuple[str, ...], ...]
    dynamic: tuple[str, ...]
    running: tuple[str, ...]
    newton: int


class Point(NamedTuple):
    """Where an optimiser is looked at.

    Attributes:
      gradient: of the loss.
      value: the loss.
      params: theta.
      slow: the dynamic memory.
      running: the clocks that advance.
    """

    gradient: Params
    value: Float[Array, ""]
    params: Params
    slow: Memory
    running: Clocks


class Terms(NamedTuple):
    """The terms of the reduced field.

    Attributes:
      leading: V1.
      second: V2, or None at order 1.
      fixed_point: Psi0.
      lag: Psi1, or None at order 1.
    """

    leading: Moving
    second: Moving | None
    fixed_point: Memory
    lag: Memory | None


def reduce(chain: Chain, dynamic: Sequence[str], newton: int) -> Reduced:
    """Eliminates all memory but the dynamic.

    A clock that corrects the bias of eliminated memory alone stands at infinity: that memory's
    transient is over on the slow manifold.

    Args:
      chain: the optimiser.
      dynamic: names of the memory that stays.
      newton: as in `Reduced`.

    Returns:
      What is left.
    """
    levels = tuple(
        level
        for level in (tuple(n for n in level if n not in dynamic) for level in chain.levels)
        if level
    )
    running = tuple(
        clock
        for clock in chain.clocks
        if not chain.corrected[clock] or any(n in dynamic for n in chain.corrected[clock])
    )
    return Reduced(chain, levels, tuple(dynamic), running, newton)


def step(reduced: Reduced, point: Point, fast: Memory, clocks: Clocks | None = None) -> Any:
    """One update with everything frozen but what it moves.

    Args:
      reduced: the optimiser.
      point: where.
      fast: the eliminated memory.
      clocks: all of its clocks; None for the point's, with the others at `SETTLED`.

    Returns:
      `((updates, increments of the dynamic memory), eliminated memory after it)`.
    """
    chain = reduced.chain
    if clocks is None:
        clock = jnp.result_type(point.value)
        clocks = {name: jnp.asarray(SETTLED, clock) for name in chain.clocks}
        clocks |= point.running
    # Memory that reaches no update may hold anything.
    memory = {**chain.initial, **point.slow, **fast}
    updates, moved = chain.step(point.gradient, point.value, point.params, memory, clocks)
    increments = {name: moved[name] - point.slow[name] for name in point.slow}
    return (updates, increments), {name: moved[name] for name in fast}


def fixed_point(reduced: Reduced, point: Point) -> Memory:
    """Psi0: what the eliminated memory tends to while everything else is frozen.

    Level by level, so that memory fed by other memory (adam, then an average) meets it converged:
    Newton's method from 0, which is exact at once where a level's recurrence is affine.

    Args:
      reduced: the optimiser.
      point: where.

    Returns:
      The memory; not finite where it does not decay.
    """
    fast: Memory = {
        name: jnp.zeros_like(reduced.chain.initial[name])
        for level in reduced.levels
        for name in level
    }
    for level in reduced.levels:
        recurrence = _recurrence(reduced, point, fast, level)
        for _ in range(reduced.newton):
            here = {name: fast[name] for name in level}
            after, decay = jax.jvp(recurrence, (here,), (_ones(here),))
            residual = jax.tree.map(jnp.subtract, after, here)
            change = _divide(reduced, recurrence, here, decay, residual)
            fast = {**fast, **jax.tree.map(_add_unless_rounding, here, change, decay)}
    return fast


def decays(reduced: Reduced, point: Point, fast: Memory) -> Memory:
    """The decays of the eliminated memory: `S_s` applied to ones, level by level.

    Args:
      reduced: the optimiser.
      point: where.
      fast: the eliminated memory there.

    Returns:
      Elementwise decays (row sums, for coupled memory).
    """
    found: Memory = {}
    for level in reduced.levels:
        here = {name: fast[name] for name in level}
        recurrence = _recurrence(reduced, point, fast, level)
        found |= jax.jvp(recurrence, (here,), (_ones(here),))[1]
    return found


def terms(
    reduced: Reduced,
    gradient: Callable[[Params], Params],
    value: Callable[[Params], Float[Array, ""]],
    params: Params,
    slow: Memory,
    running: Clocks,
    order: int,
) -> Terms:
    """V1 and V2, and what they are made of.

    Args:
      reduced: the optimiser.
      gradient: `gradient(params)`.
      value: the loss, for chains that use it.
      params: theta.
      slow: the dynamic memory.
      running: the clocks that advance.
      order: 1 or 2.

    Returns:
      The terms.

    Source: the memory's part, Cattaneo & Shigida (2025); for Adam and RMSProp, Cattaneo, Klusowski
    & Shigida (2024). Cost: one gradient; at order 2 one Hessian-vector product more.
    """
    if order == 1:
        grads, hessian_product = gradient(params), None
    else:
        grads, hessian_product = jax.linearize(gradient, params)
    loss = value(params) if reduced.chain.uses_value else _zero(params)
    point = Point(grads, loss, params, slow, running)
    psi = fixed_point(reduced, point)
    leading, _ = step(reduced, point, psi)
    if hessian_product is None:
        return Terms(leading, None, psi, None)

    along = hessian_product(leading[0])
    moved = Point(along, _vdot(grads, leading[0]), leading[0], leading[1], _ones(running))
    explicit, driven = jax.jvp(lambda p: step(reduced, p, psi), (point,), (moved,))[1]
    drift = _solve(reduced, point, psi, driven)
    lag = jax.tree.map(jnp.negative, _solve(reduced, point, psi, drift))
    tangent = jax.tree.map(lambda a, b: a - b / 2, lag, drift)
    from_memory = _through_memory(reduced, point, psi, tangent)
    second = jax.tree.map(lambda a, b: a - b / 2, from_memory, explicit)
    return Terms(leading, (_dead(second[0], grads, along), second[1]), psi, lag)


def shadow_start(
    reduced: Reduced,
    gradient: Callable[[Params], Params],
    value: Callable[[Params], Float[Array, ""]],
    params: Params,
    slow: Memory,
    fast: Memory,
    clocks: Clocks,
    order: int,
    max_steps: int = 20_000,
) -> Moving:
    """Where a flow must start to meet the iterates once the initial layer is over.

        z_0 + sum_k (F at step k of the memory, g and z frozen  -  V1)  -  F_s (I - S_s)^{-1} Psi1

    From empty memory it is a shift of O(h), without which the field of order 2 has order 1. The
    last term, O(h^2), leaves memory that is on its slow manifold already where it is. Of the same
    size is what the gradient changes by during the layer, which is left out.

    Args:
      reduced: the optimiser.
      gradient: `gradient(params)`.
      value: the loss.
      params: theta.
      slow: the dynamic memory.
      fast: the eliminated memory that the optimiser really has.
      clocks: its clocks.
      order: 1 or 2; at 1 the last term is left out.
      max_steps: the most steps of the sum; it ends when its terms are rounding.

    Returns:
      The parameters and dynamic memory to start from.
    """
    if not fast:
        return params, slow
    running = {name: clocks[name] for name in reduced.running}
    at_start = terms(reduced, gradient, value, params, slow, running, order)
    loss = value(params) if reduced.chain.uses_value else _zero(params)
    point = Point(gradient(params), loss, params, slow, running)

    def leading(running: Clocks) -> Moving:
        if not running:
            return at_start.leading
        here = point._replace(running=running)
        return step(reduced, here, fixed_point(reduced, here))[0]

    def body(carry: Any) -> Any:
        k, fast, total, _, _ = carry
        now = {name: clock + k for name, clock in clocks.items()}
        moved, fast = step(reduced, point, fast, now)
        flow = leading({name: now[name] for name in running})
        excess = jax.tree.map(jnp.subtract, moved, flow)
        total = jax.tree.map(jnp.add, total, excess)
        return k + 1, fast, total, _largest(excess), _largest(flow)

    def is_going(carry: Any) -> Array:
        k, _, _, excess, flow = carry
        # An update may be a difference of parameters, and exact to their rounding only.
        rounding = 4 * jnp.finfo(flow.dtype).eps * (flow + _largest((params, slow)))
        return (k < max_steps) & (excess > rounding)

    one = jnp.ones_like(_largest(params))
    nothing = jax.tree.map(jnp.zeros_like, (params, slow))
    start = (jnp.zeros_like(loss), fast, nothing, one, jnp.zeros_like(one))
    shift = jax.lax.while_loop(is_going, body, start)[2]
    if at_start.lag is not None:
        psi = at_start.fixed_point
        lag = _solve(reduced, point, psi, at_start.lag)
        lagged = _through_memory(reduced, point, psi, lag)
        shift = jax.tree.map(jnp.subtract, shift, lagged)
    return jax.tree.map(jnp.add, (params, slow), shift)


def _recurrence(
    reduced: Reduced, point: Point, fast: Memory, level: Sequence[str]
) -> Callable[[Memory], Memory]:
    def recurrence(part: Memory) -> Memory:
        moved = step(reduced, point, {**fast, **part})[1]
        return {name: moved[name] for name in level}

    return recurrence


def _solve(reduced: Reduced, point: Point, fast: Memory, right: Memory) -> Memory:
    """`(I - S_s)^{-1} right`, by substitution from level to level."""
    found: Memory = {}
    for level in reduced.levels:
        here = {name: fast[name] for name in level}
        recurrence = _recurrence(reduced, point, fast, level)
        decay = jax.jvp(recurrence, (here,), (_ones(here),))[1]
        wanted = {name: right[name] for name in level}
        if found:
            fed = {name: fast[name] for name in found}

            def feed(part: Memory, level: Any = level) -> Memory:
                moved = step(reduced, point, {**fast, **part})[1]
                return {name: moved[name] for name in level}

            wanted = jax.tree.map(jnp.add, wanted, jax.jvp(feed, (fed,), (found,))[1])
        found = {**found, **_divide(reduced, recurrence, here, decay, wanted)}
    return found


def _divide(
    reduced: Reduced,
    recurrence: Callable[[Memory], Memory],
    here: Memory,
    decay: Memory,
    right: Memory,
) -> Memory:
    """`(I - A)^{-1} right` in one level; elementwise unless its memory is coupled."""
    guess = jax.tree.map(lambda r, a: r / (1 - a), right, decay)
    if not any(name in reduced.chain.coupled for name in here):
        return guess

    def matrix(vector: Memory) -> Memory:
        moved = jax.jvp(recurrence, (here,), (vector,))[1]
        return jax.tree.map(jnp.subtract, vector, moved)

    size = min(_KRYLOV, sum(leaf.size for leaf in jax.tree.leaves(right)))
    return jax.scipy.sparse.linalg.gmres(
        matrix, right, tol=1e-14, restart=size, maxiter=10, solve_method="incremental"
    )[0]


def _through_memory(reduced: Reduced, point: Point, fast: Memory, tangent: Memory) -> Moving:
    return jax.jvp(lambda s: step(reduced, point, s)[0], (fast,), (tangent,))[1]


def _add_unless_rounding(here: Array, change: Array, decay: Array) -> Array:
    # A residual of rounding, divided by 1 - b, would cost the digits that the first step got right.
    rounding = 16 * jnp.finfo(here.dtype).eps * abs(here) / abs(1 - decay)
    return jnp.where(abs(change) <= rounding, here, here + change)


def _dead(second: Params, gradient: Params, along: Params) -> Params:
    """0 for a parameter that the loss does not see: sqrt'(0) * 0 is NaN in an adaptive method."""
    return jax.tree.map(
        lambda v, g, h: jnp.where((g == 0) & (h == 0) & jnp.isnan(v), 0, v),
        second, gradient, along,
    )  # fmt: skip


def _ones(tree: PyTree) -> Any:
    return jax.tree.map(jnp.ones_like, tree)


def _zero(params: Params) -> Float[Array, ""]:
    return jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))


def _vdot(a: Params, b: Params) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.asarray(sum(jax.tree.leaves(products)))


def _largest(tree: PyTree) -> Float[Array, ""]:
    sizes = [jnp.max(abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes))
