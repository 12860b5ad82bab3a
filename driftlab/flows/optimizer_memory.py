"""An optax chain taken apart: its float memory, its clocks, and what is neither."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from driftlab.flows.dependencies import (
    Reach,
    evaluate_known,
    is_counter,
    levels,
    reaches,
    stand_ins,
)
from driftlab.flows.solve import time_dtype
from driftlab.objective import Params

Memory = dict[str, Array]
Clocks = dict[str, Float[Array, ""]]

# "For ever" to a bias correction: b^SETTLED is 0 for every b below 1 - 1e-6, and so is
# SETTLED * b^SETTLED where infinity would give NaN.
SETTLED = 1e9
_MOVING, _CLOCK, _CONSTANT = "moving", "clock", "constant"


class Chain(NamedTuple):
    """What there is to know of an optax chain before anything is computed.

    Attributes:
      step: `step(gradient, value, params, memory, clocks) -> (updates, memory)`: one update. The
        clocks are floats and stay as they are.
      concrete_step: `concrete_step(number)` is a step whose traced hyper-parameters, if there are
        any, all stand at that number, so that something can be tried out inside vmap or jit.
      split: `split(opt_state) -> (memory, clocks)`.
      memory: names of the floating-point leaves of the optimiser's state, in its order.
      constant: those of them that the update never changes.
      clocks: names of the counters.
      corrected: for each clock the memory whose bias it corrects; none for that of a schedule.
      levels: the changing memory that reaches the updates, in an order in which it can be solved
        for: each list needs earlier lists and itself.
      coupled: names of memory whose own decay is not elementwise.
      jumping_updates: whether the updates jump when the gradient or new memory moves (a sign).
      jumping_memory: names of memory whose recurrence does.
      jumping_clocks: names of the clocks at some number of which the updates jump.
      choosing: whether the gradient or memory decides between two things somewhere (a clip, a
        mask), so that it takes a trial to know whether they jump.
      traced: whether a hyper-parameter is traced.
      uses_value: whether the chain asks for the loss.
      initial: the memory of `tx.init(params)`.
    """

    step: Callable[..., tuple[Params, Memory]]
    concrete_step: Callable[[Any], Callable[..., tuple[Params, Memory]]]
    split: Callable[[PyTree], tuple[Memory, Clocks]]
    memory: tuple[str, ...]
    constant: tuple[str, ...]
    clocks: tuple[str, ...]
    corrected: dict[str, tuple[str, ...]]
    levels: tuple[tuple[str, ...], ...]
    coupled: frozenset[str]
    jumping_updates: bool
    jumping_memory: tuple[str, ...]
    jumping_clocks: tuple[str, ...]
    choosing: bool
    traced: bool
    uses_value: bool
    initial: Memory


def take_apart(
    tx: optax.GradientTransformation,
    params: Params,
    loss: Callable[[Params], Array],
    extra_args: Sequence[str] = ("value", "grad", "value_fn"),
) -> Chain:
    """Finds out what an optax chain keeps, from one abstract trace of its update.

    Floating-point leaves of the state are memory. An integer that goes up by 1 every step is a
    clock, that of a bias correction if there is memory beside it in the same state, else that of
    a schedule. What never changes is a constant, and a flag that settles after one step counts as
    settled. Nothing of the chain is run, so its hyper-parameters may be traced.

    Args:
      tx: the chain.
      params: parameters, whose values do not matter here.
      loss: what a chain that asks for `value_fn` is given.
      extra_args: which extra arguments it is given, as in `driftlab.descent`.

    Returns:
      The chain's parts.

    Raises:
      TypeError: if a leaf of the state is complex, or of less than 32 bits.
      ValueError: if the update cannot be traced with these arguments, or a leaf of the state is
        none of the above: it is random, periodic or counts something else; naming the leaf.
    """
    names = _names(tx, params, extra_args)
    # What is known stays known where this is called inside jit.
    with jax.ensure_compile_time_eval():
        start = tx.init(params)
    flat, treedef = jax.tree_util.tree_flatten_with_path(start)
    paths = [path for path, _ in flat]
    leaf_names = [jax.tree_util.keystr(path) or "state" for path in paths]
    leaves = [jnp.asarray(leaf) for _, leaf in flat]
    _check_dtypes(leaf_names, leaves)

    def update(gradient: Params, value: Any, params: Params, leaves: Sequence[Any]) -> Any:
        known = {
            "value": value,
            "grad": gradient,
            "value_fn": loss,
            "obj_fn": loss,
        }
        state = jax.tree.unflatten(treedef, leaves)
        extra = {name: known[name] for name in names}
        updates, following = tx.update(gradient, state, params, **extra)
        found, structure = jax.tree.flatten(following)
        if structure != treedef:
            raise ValueError(f"the optimizer's state changes its structure to {structure}.")
        return jax.tree.leaves(updates), found

    clock = time_dtype(params)
    value = jax.ShapeDtypeStruct((), clock)
    try:
        closed = jax.make_jaxpr(update)(params, value, params, leaves)
    except Exception as error:
        raise ValueError(
            f"the chain's update failed when given params and {list(names) or 'nothing else'}: "
            f"{type(error).__name__}: {error} If it needs an argument, name it in extra_args: "
            "there are value, grad, value_fn and obj_fn; if it does not take one, leave it out."
        ) from error

    count = len(jax.tree.leaves(params))
    state_at = 2 * count + 1
    reach = reaches(closed)
    of_updates, of_state = reach[:count], reach[count:]
    kinds = []
    for i, (name, leaf) in enumerate(zip(leaf_names, leaves, strict=True)):
        same = closed.jaxpr.outvars[count + i] is closed.jaxpr.invars[state_at + i]
        settles = of_state[i].inputs == 0
        if same or (settles and not jnp.issubdtype(leaf.dtype, jnp.floating)):
            kinds.append(_CONSTANT)
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            kinds.append(_MOVING)
        elif jnp.issubdtype(leaf.dtype, jnp.integer) and is_counter(
            closed, count + i, state_at + i
        ):
            kinds.append(_CLOCK)
        else:
            raise ValueError(_neither(name, leaf))
    settled = _settled(closed, count, kinds, leaves)

    memory = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    clocks = [i for i, kind in enumerate(kinds) if kind == _CLOCK]
    _check_periodic(leaf_names, clocks, of_updates + of_state, state_at)
    moving = [i for i in memory if kinds[i] == _MOVING]
    memory_dtypes = {leaf_names[i]: leaves[i].dtype for i in memory}

    def step(
        gradient: Params, value: Any, params: Params, memory: Memory, clocks: Clocks
    ) -> tuple[Params, Memory]:
        given = {**memory, **clocks}
        filled = [given.get(name, settled[i]) for i, name in enumerate(leaf_names)]
        updates, following = update(gradient, value, params, filled)
        moved = {
            name: following[leaf_names.index(name)].astype(leaf.dtype)
            for name, leaf in memory.items()
        }
        updates = [u.astype(p.dtype) for u, p in zip(updates, jax.tree.leaves(params), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(params), updates), moved

    def concrete_step(number: Any) -> Callable[..., tuple[Params, Memory]]:
        consts = stand_ins(closed, number)

        def step(
            gradient: Params, value: Any, params: Params, memory: Memory, clocks: Clocks
        ) -> tuple[Params, Memory]:
            given = {**memory, **clocks}
            filled = [
                jnp.asarray(given.get(name, settled[i]), leaves[i].dtype)
                for i, name in enumerate(leaf_names)
            ]
            arguments = jax.tree.leaves((gradient, value, params, filled))
            found = evaluate_known(closed, arguments, consts=consts)
            moved = {name: found[count + leaf_names.index(name)] for name in memory}
            return jax.tree.unflatten(jax.tree.structure(params), found[:count]), moved

        return step

    def split(opt_state: PyTree) -> tuple[Memory, Clocks]:
        found, structure = jax.tree.flatten(opt_state)
        if structure != treedef:
            raise ValueError(
                f"opt_state is not a state of this chain: its structure is {structure}, that of "
                f"tx.init(params) is {treedef}."
            )
        for i, kind in enumerate(kinds):
            if kind == _CONSTANT and i not in memory:
                _check_settled(leaf_names[i], found[i], settled[i])
        kept = {leaf_names[i]: jnp.asarray(found[i], memory_dtypes[leaf_names[i]]) for i in memory}
        return kept, {leaf_names[i]: jnp.asarray(found[i], clock) for i in clocks}

    tainted = (1 << count) - 1  # the gradient's leaves
    for i in moving:
        tainted |= 1 << (state_at + i)
    smooth = Reach()
    for found in reaches(closed, range(count, len(reach)))[:count]:
        smooth = smooth | found
    total = Reach()
    for found in of_updates:
        total = total | found
    solved, coupled = _levels(moving, of_state, total, state_at)
    value_bit = 1 << count
    wanted = total
    for found in of_state:
        wanted = wanted | found
    return Chain(
        step=step,
        concrete_step=concrete_step,
        split=split,
        memory=tuple(leaf_names[i] for i in memory),
        constant=tuple(leaf_names[i] for i in memory if kinds[i] == _CONSTANT),
        clocks=tuple(leaf_names[i] for i in clocks),
        corrected=_corrected(start, paths, leaf_names, moving, clocks),
        levels=tuple(tuple(leaf_names[i] for i in level) for level in solved),
        coupled=frozenset(leaf_names[i] for i in coupled),
        jumping_updates=bool(smooth.jumps & tainted),
        jumping_memory=tuple(leaf_names[i] for i in moving if of_state[i].jumps & tainted),
        jumping_clocks=tuple(leaf_names[i] for i in clocks if total.stairs >> (state_at + i) & 1),
        choosing=bool(wanted.chosen & tainted),
        traced=any(isinstance(c, Tracer) for c in closed.consts),
        uses_value=bool(wanted.inputs & value_bit),
        initial={leaf_names[i]: leaves[i] for i in memory},
    )


def _names(
    tx: optax.GradientTransformation, params: Params, extra_args: Sequence[str]
) -> tuple[str, ...]:
    unknown = sorted(set(extra_args) - {"value", "grad", "value_fn", "obj_fn"})
    if unknown:
        raise ValueError(f"extra_args={unknown}: there are value, grad, value_fn and obj_fn.")
    del params
    takes = isinstance(tx, optax.GradientTransformationExtraArgs)
    return tuple(extra_args) if takes else ()


def _check_dtypes(names: Sequence[str], leaves: Sequence[Array]) -> None:
    for name, leaf in zip(names, leaves, strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"state leaf {name} is {leaf.dtype}; flows of real memory only.")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32:
            raise TypeError(
                f"state leaf {name} is {leaf.dtype}: what a flow lives on, the change from step to "
                "step, is lost in its rounding. Keep memory and parameters in float32 or float64."
            )


def _neither(name: str, leaf: Array) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or jnp.issubdtype(leaf.dtype, np.uint32):
        return (
            f"state leaf {name} is a random key: the updates are random, and no ODE follows them. "
            "See driftlab.flows for stochastic equations."
        )
    return (
        f"state leaf {name} ({leaf.dtype}{list(leaf.shape)}) is neither memory nor a plain "
        "counter: it is periodic, or depends on the gradient. No memory mode serves; flow the "
        "optimizer inside of it (accumulated gradients: the inner optimizer on the whole batch)."
    )


def _check_periodic(
    names: Sequence[str], clocks: Sequence[int], reach: Sequence[Reach], state_at: int
) -> None:
    for i in clocks:
        if any(found.periodic >> (state_at + i) & 1 for found in reach):
            raise ValueError(
                f"the update depends on state leaf {names[i]} modulo a period, or draws random "
                "numbers with it: it does something else from step to step, which no smooth flow "
                "follows. No memory mode serves."
            )


def _settled(closed: Any, count: int, kinds: Sequence[str], leaves: Sequence[Array]) -> list[Any]:
    """The values of constants and flags after a step."""
    settled: list[Any] = list(leaves)
    with jax.ensure_compile_time_eval():
        after = evaluate_known(closed, [None] * len(closed.in_avals))[count:]
        for i, kind in enumerate(kinds):
            if kind == _CONSTANT and after[i] is not None:
                settled[i] = jnp.asarray(after[i], leaves[i].dtype)
    return settled


def _check_settled(name: str, found: Any, settled: Any) -> None:
    if isinstance(found, Tracer) or isinstance(settled, Tracer):
        return
    if not np.array_equal(np.asarray(found), np.asarray(settled)):
        raise ValueError(
            f"state leaf {name} is {found}, and {settled} from the first step on: start the flow "
            "after one step of the optimizer, init(params_1, opt_state_1)."
        )


def _levels(
    moving: Sequence[int], reach: Sequence[Reach], total: Reach, state_at: int
) -> tuple[list[list[int]], set[int]]:
    needs = {i: reach[i].inputs >> state_at for i in moving}
    wanted, frontier = set(), total.inputs >> state_at
    while True:
        found = {i for i in moving if frontier >> i & 1} - wanted
        if not found:
            break
        wanted |= found
        for i in found:
            frontier |= needs[i]
    order = sorted(wanted)
    place = {i: k for k, i in enumerate(order)}
    bits = [sum(1 << place[j] for j in order if needs[i] >> j & 1) for i in order]
    solved = [[order[k] for k in level] for level in levels(bits)]
    coupled = set()
    for level in solved:
        for i in level:
            others = any(j != i and needs[i] >> j & 1 for j in level)
            if others or reach[i].mixed >> (state_at + i) & 1:
                coupled.add(i)
    return solved, coupled


def _corrected(
    state: PyTree,
    paths: Sequence[Any],
    names: Sequence[str],
    moving: Sequence[int],
    clocks: Sequence[int],
) -> dict[str, tuple[str, ...]]:
    """For each clock the memory beside it, in the same state and no state of its own inside."""
    homes = {i: paths[i][:-1] for i in clocks}
    found = {}
    for i, home in homes.items():
        schedules = type(_at(state, home)).__name__.startswith("Inject")
        beside = []
        for j in moving:
            inside = [other for other in homes.values() if paths[j][: len(other)] == other]
            deepest = max(inside, key=len, default=None)
            if deepest == home and not schedules:
                beside.append(names[j])
        found[names[i]] = tuple(beside)
    return found


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        if hasattr(key, "name"):
            tree = getattr(tree, key.name)
        elif hasattr(key, "idx"):
            tree = tree[key.idx]
        else:
            tree = tree[key.key]
    return tree
