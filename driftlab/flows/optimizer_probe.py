"""What an optax chain does when tried out: how fast its memory decays, and what fails."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from driftlab.flows import slow_manifold
from driftlab.flows.optimizer_memory import Chain, Clocks, Memory
from driftlab.flows.solve import time_dtype
from driftlab.objective import Params

# 1 - decay below which memory counts as kept for ever.
KEPT = 1e-6
# Two stand-ins for traced hyper-parameters: what differs between them is not known.
STAND_INS = (0.5, 0.25)
_NEWTON = (1, 4)
STEPS = 4
_MEMORY_STEPS = 64
# Spans of memory after which its bias is corrected to e^-40.
_SPANS = 40


class Probe(NamedTuple):
    """What was seen of a chain's memory on a made-up gradient.

    Attributes:
      decays: the decay of each changing memory: the largest over entries and directions; 1 is
        memory that never forgets. None where it depends on a traced hyper-parameter.
      newton: Newton steps after which the frozen fixed point is found, or None if it is not.
      vanishing: memory a hundredth of which changes the updates by half at the fixed point,
        where a variance that they divide by has vanished.
      scheduling: clocks beside memory that still change the updates when every bias has long
        been corrected.
    """

    decays: dict[str, float | None]
    newton: int | None
    vanishing: tuple[str, ...]
    scheduling: tuple[str, ...]


class Start(NamedTuple):
    """What was seen of a chain's first updates on a made-up gradient.

    Attributes:
      climbs: whether they go up the gradient.
      stands_still: whether they are 0.
      not_finite: whether they are not finite.
    """

    climbs: bool
    stands_still: bool
    not_finite: bool


def probe_start(chain: Chain, params: Params) -> Start:
    """Tries a chain out for a few steps on a random gradient, early and late in its schedule.

    Args:
      chain: the optimiser.
      params: parameters.

    Returns:
      What was seen; nothing is held against a chain with traced hyper-parameters.
    """
    known = jax.tree.leaves((params, chain.initial))
    if chain.traced or any(isinstance(leaf, Tracer) for leaf in known):
        return Start(False, False, False)

    def seen(params: Params) -> Any:
        # The difference of two runs leaves out what the gradient has no part in: a projection, a
        # decay of weights.
        gradient = made_up_gradient(params)
        _, up, size = first_steps(chain, params, gradient, gradient)
        down = jax.tree.map(jnp.negative, gradient)
        return up - first_steps(chain, params, down, gradient)[1], size

    with jax.ensure_compile_time_eval():
        progress, size = (float(value) for value in jax.jit(seen)(params))
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
    return Start(progress > 0, size == 0, finite and not math.isfinite(size))


def probe_memory(chain: Chain, params: Params) -> Probe:
    """Finds out by trial how the memory of a chain decays; nothing of the loss is computed.

    Memory is pushed up and down by a tenth from two states, after a few steps and at its frozen
    fixed point, and must come back by itself: a running maximum is found out from above.

    Args:
      chain: the optimiser.
      params: parameters; where they are traced, only their shapes and types count.

    Returns:
      What was seen. Cost: some twenty elementwise updates, compiled once.
    """
    with jax.ensure_compile_time_eval():
        place, initial = places(chain, params)
        tried = jax.jit(lambda p, m, x: _try(tried_out(chain, x, m), p, chain.coupled))
        seen = [
            jax.tree.map(np.asarray, tried(place, initial, number))
            for number in (STAND_INS if chain.traced else STAND_INS[:1])
        ]
    first, last = seen[0], seen[-1]
    decays: dict[str, float | None] = {}
    for name, low in first["decays"].items():
        high = last["decays"][name]
        same = np.isclose(low, high, atol=1e-9) or min(low, high) > 1 - KEPT
        decays[name] = float(low) if same else None
    tolerance = 1e3 * float(jnp.finfo(time_dtype(params)).eps)
    found = [n for n, gap in zip(_NEWTON, first["gaps"], strict=True) if gap <= tolerance]
    scheduling = tuple(name for name, late in first["scheduling"].items() if late)
    if chain.coupled:
        # Not tried: what couples is solved for iteratively, which takes long to compile.
        return Probe(decays, _NEWTON[-1], (), scheduling)
    worst = max((int(level) for level in first["vanishing"].values()), default=0)
    vanishing = tuple(n for n, level in first["vanishing"].items() if worst and level == worst)
    newton = found[0] if found else None
    return Probe(decays, newton, vanishing if found else (), scheduling)


def places(chain: Chain, params: Params) -> tuple[Params, Memory]:
    """Parameters and first memory to try a chain out at: 0 where they are traced.

    Args:
      chain: the optimiser.
      params: parameters.

    Returns:
      Both, concrete.
    """
    initial = {name: _concrete(leaf) for name, leaf in chain.initial.items()}
    return jax.tree.map(_concrete, params), initial


def tried_out(chain: Chain, number: Any, initial: Memory) -> Chain:
    """A chain that can be run inside vmap or jit.

    Args:
      chain: the optimiser.
      number: what stands in for its traced hyper-parameters.
      initial: its first memory.

    Returns:
      The chain, with all memory taken as elementwise.
    """
    step = chain.concrete_step(number)
    return chain._replace(step=step, coupled=frozenset(), initial=initial)


def _concrete(leaf: Any) -> Any:
    """Traced values are tried at 0."""
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, Tracer) else jnp.asarray(leaf)


def made_up_gradient(params: Params, seed: int = 0) -> Params:
    """A gradient of normal entries of size 1.

    Args:
      params: what it is of.
      seed: which one.

    Returns:
      The gradient.
    """
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), p.dtype), params)


def first_steps(chain: Chain, params: Params, gradient: Params, along: Params) -> Any:
    """Some steps under one gradient, early and late in a schedule.

    Args:
      chain: the optimiser.
      params: parameters, which stay.
      gradient: the gradient, likewise.
      along: a direction.

    Returns:
      Memory after each of the steps, progress along the direction, the largest update.
    """
    clock = time_dtype(params)

    def one_step(memory: Memory, k: Any) -> Any:
        clocks = {name: jnp.asarray(k, clock) for name in chain.clocks}
        one = jnp.ones((), clock)
        updates, moved = chain.step(gradient, one, params, memory, clocks)
        return {**memory, **moved}, (_dot(updates, along), _size(updates), moved)

    # From the start, and again where a schedule that warms up from 0 has done so.
    counts = jnp.arange(STEPS, dtype=clock)
    counts = jnp.concatenate([counts, counts + 1000])
    _, (progress, size, history) = jax.lax.scan(one_step, chain.initial, counts)
    return history, jnp.sum(progress), jnp.max(size)


def _try(chain: Chain, params: Params, coupled: Collection[str]) -> dict[str, Any]:
    clock = time_dtype(params)
    gradient, one = made_up_gradient(params), jnp.ones((), clock)
    history = first_steps(chain, params, gradient, gradient)[0]
    at_first, memory = ({n: leaf[k] for n, leaf in history.items()} for k in (0, STEPS - 1))

    reduced = slow_manifold.reduce(chain, (), 1)
    running = {name: 1000 * one for name in reduced.running}
    point = slow_manifold.Point(gradient, one, params, {}, running)
    clocks = _clocks(chain, running, clock)
    gaps, psi = [], {}
    for newton in _NEWTON:
        psi = slow_manifold.fixed_point(reduced._replace(newton=newton), point)
        after = slow_manifold.step(reduced, point, psi)[1]
        gaps.append(_size(jax.tree.map(jnp.subtract, after, psi)) / _size(psi))
    vanishing, decays = {}, {}
    for level in chain.levels:
        vanishing |= _vanishing(reduced, point, psi, at_first, level)
        transient, settled = (
            _response(chain, point, clocks, state, level) for state in (memory, {**memory, **psi})
        )
        decays |= {name: jnp.fmax(transient[name], settled[name]) for name in level}
        if any(name in coupled for name in level):
            remembered = _remembered(chain, point, clocks, memory, level)
            decays |= {name: remembered for name in level if name in coupled}
    known = [jnp.zeros(()), *(jnp.asarray(decay, float) for decay in decays.values())]
    slowest = jnp.max(jnp.stack(known))
    late = jnp.minimum(_SPANS / jnp.maximum(1 - slowest, KEPT), 1 / KEPT)
    scheduling = {
        name: _changes_after(chain, point, clocks, memory, name, late)
        for name in chain.clocks
        if name not in running
    }
    return {"decays": decays, "gaps": gaps, "vanishing": vanishing, "scheduling": scheduling}


def _changes_after(
    chain: Chain, point: Any, clocks: Clocks, memory: Memory, name: str, late: Any
) -> Any:
    """Whether a step at a late number of a clock is another than at its end."""

    def step(clocks: Clocks) -> Any:
        return chain.step(point.gradient, point.value, point.params, memory, clocks)

    settled = step(clocks)
    other = step({**clocks, name: late.astype(clocks[name].dtype)})
    changes = [
        _size(a - b) > 1e-5 * _size(a)
        for a, b in zip(jax.tree.leaves(settled), jax.tree.leaves(other), strict=True)
    ]
    return jnp.any(jnp.stack(changes))


def _clocks(chain: Chain, running: Clocks, clock: Any) -> Clocks:
    settled = jnp.asarray(slow_manifold.SETTLED, clock)
    return {name: running.get(name, settled) for name in chain.clocks}


def _response(
    chain: Chain, point: Any, clocks: Clocks, memory: Memory, level: Sequence[str]
) -> dict[str, Any]:
    """The largest share of a push of a tenth, up or down, that is left after a step."""
    here = {name: memory[name] for name in level}
    push = {
        name: 0.1 * abs(leaf) + 0.1 * jnp.mean(abs(leaf)) + jnp.asarray(1e-6, leaf.dtype)
        for name, leaf in here.items()
    }

    def after(sign: Any) -> Memory:
        pushed = {name: here[name] + sign.astype(push[name].dtype) * push[name] for name in level}
        moved = chain.step(point.gradient, point.value, point.params, {**memory, **pushed}, clocks)[
            1
        ]
        return {name: moved[name] for name in level}

    down, stay, up = (
        {name: leaf[i] for name, leaf in jax.vmap(after)(jnp.array([-1.0, 0.0, 1.0])).items()}
        for i in range(3)
    )
    found = {}
    for name in level:
        if here[name].size == 0:
            found[name] = jnp.zeros(())
            continue
        shares = jnp.stack([up[name] - stay[name], down[name] - stay[name]]) / push[name][None]
        share = jnp.nanmax(abs(shares))
        # 1 to rounding is 1.
        rounding = 1e3 * jnp.finfo(share.dtype).eps
        found[name] = jnp.where(abs(share - 1) <= rounding, 1, share)
    return found


def _remembered(
    chain: Chain, point: Any, clocks: Clocks, memory: Memory, level: Sequence[str]
) -> Any:
    """The decay of memory whose entries mix: what is left of a push after many steps.

    In one step such memory may grow by a rotation alone.
    """

    def one_step(given: Memory, _: None) -> tuple[Memory, None]:
        full = {**memory, **given}
        moved = chain.step(point.gradient, point.value, point.params, full, clocks)[1]
        return {name: moved[name] for name in level}, None

    here = {name: memory[name] for name in level}
    push = {name: 0.1 * abs(leaf) + jnp.asarray(1e-3, leaf.dtype) for name, leaf in here.items()}
    pushed = jax.tree.map(jnp.add, here, push)
    left = jax.tree.map(
        jnp.subtract,
        *(jax.lax.scan(one_step, s, None, length=_MEMORY_STEPS)[0] for s in (pushed, here)),
    )
    share = (_dot(left, left) / _dot(push, push)) ** (0.5 / _MEMORY_STEPS)
    rounding = 1e3 * jnp.finfo(share.dtype).eps
    return jnp.where(abs(share - 1) <= rounding, 1, share)


def _vanishing(
    reduced: Any, point: Any, psi: Memory, transient: Memory, level: Sequence[str]
) -> dict[str, Any]:
    """1 where the updates hang on a hundredth of memory, 2 if it is 0: they divide by nothing."""
    found = {}
    updates = slow_manifold.step(reduced, point, psi)[0][0]
    for name in level:
        is_zero = _size(psi[name]) <= 1e-9 * _size(transient[name])
        nudge = 0.01 * jnp.where(is_zero, abs(transient[name]), abs(psi[name]))
        nudged = {**psi, name: psi[name] + nudge}
        other = slow_manifold.step(reduced, point, nudged)[0][0]
        change = _size(jax.tree.map(jnp.subtract, updates, other))
        # Not finite counts as changed.
        changed = ~(change <= 0.5 * _size(updates))
        found[name] = changed.astype(int) * jnp.where(is_zero, 2, 1)
    return found


def _size(tree: PyTree) -> Any:
    sizes = [jnp.max(abs(leaf), initial=0).astype(float) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes), initial=0) if sizes else jnp.zeros(())


def _dot(a: Params, b: Params) -> Any:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return sum(jax.tree.leaves(products))
