"""The flow of any optax chain, derived from its own update."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from driftlab.flows import slow_manifold
from driftlab.flows.augmented import check_eliminated, choose_dynamic
from driftlab.flows.joint import OptimizerState, joint_field
from driftlab.flows.one_step import check_order
from driftlab.flows.optimizer_jumps import probe_jumps
from driftlab.flows.optimizer_memory import Chain, Clocks, Memory, take_apart
from driftlab.flows.optimizer_probe import Probe, probe_memory, probe_start
from driftlab.flows.solve import time_dtype
from driftlab.flows.vector_field import Flow, Loss, check_real, gradient_function, loss_function
from driftlab.objective import Objective, Params

MEMORY = ("joint", "eliminate", "augment", "auto")
_HIGHEST = 12
# A bias correction counts as over when it changes by less than this a step.
_SETTLING = 0.05


def modified_flow(
    tx: optax.GradientTransformation,
    loss: Loss | Objective,
    params: Params,
    order: int = 2,
    memory: str = "joint",
    *,
    dynamic: Sequence[str] | None = None,
    shadow_start: bool = True,
    newton: int | None = None,
    extra_args: Sequence[str] = ("value", "grad", "value_fn"),
    batch_size: int | None = None,
) -> Flow:
    """The ODE that an optax chain follows on a loss, to a stated order in the learning rate.

    It is derived from the chain's own update, in iteration time: iteration n is `t = n`, and no
    learning rate has to be known. `order` counts terms: order 1 is the leading field, order P has
    an error O(h^P) after a fixed time h n.

    Where the optimiser's memory goes:

    - `joint`: it stays in the ODE, y is an `OptimizerState`, and the field is the logarithm of the
      step: `order` gradients, nothing differentiated through tx. It follows what the others
      cannot: slow or undecaying memory, default Adam. Start it where the iterates stand,
      `init(params_n, opt_state_n)`.
    - `eliminate`: it is solved for, y is params, and the field is that of the papers on modified
      equations (implicit gradient regularisation, momentum, Adam). One gradient, and at order 2
      one Hessian-vector product. It asks that memory decay much faster than the gradient changes:
      for momentum b and sharpness s, `h s < 2 (1 - b)^2 / (1 + b)`.
    - `augment`: the memory named by `dynamic` stays, the rest is solved for.
    - `auto`: as augment, and memory with `1 - decay <= 0.3` stays.

    Clocks: in `joint`, and in `augment` where they correct memory that stays, they are part of y.
    In `eliminate` a schedule's clock is t, so solve from `t0 = n`, and a bias correction counts as
    over.

    Args:
      tx: any chain; its hyper-parameters may be traced, so that it can be built inside vmap.
      loss: `loss(params) -> scalar`, or an `Objective`, taken over all its data.
      params: parameters, for their structure, shapes and types.
      order: the number of terms: 1 to 12 for joint, 1 or 2 for the others.
      memory: one of `joint`, `eliminate`, `augment`, `auto`.
      dynamic: for augment, parts of the names of the memory that stays, such as `["nu"]`.
      shadow_start: whether `init` moves the start so that the flow meets the iterates after their
        initial layer (not for joint, which follows them through it). Without it order 2 has
        order 1 for any chain that starts with empty memory that is not bias-corrected.
      newton: Newton steps a frozen fixed point; None tries how many are needed.
      extra_args: what a chain that takes extra arguments is given; as `driftlab.descent`.
      batch_size: with an objective, the examples of one gradient evaluation; None for all.

    Returns:
      `Flow(field, init, params)`: `field(t, y, args)` ignores args; `init(params, opt_state=None)`
      is the state at a given iterate and optimiser state (that of `tx.init` by default);
      `params(y)` the iterate back. It warns of a schedule that jumps, at which orders above 1 are
      lost. `init` warns where it can see that the bias correction is not
      over, with the step from which the flow holds.

    Raises:
      TypeError: if a parameter is not a real floating-point array, or memory is complex or of low
        precision.
      ValueError: if order or memory is out of range; or if no such flow exists: the chain is random
        or periodic, its updates jump, its memory has no slow manifold, it goes up the gradient,
        does not move at all, or needs an argument that it is not given. The message names the
        leaf of the state and the mode that serves.

    Source: Cattaneo & Shigida (2025) for memory; Kovachki & Stuart (2021) and Cattaneo, Klusowski
    & Shigida (2024) for the cases known by hand; Hairer, Lubich & Wanner (2006), IX, for the
    logarithm. Cost an evaluation, in gradients: joint `order`; the others 1 at order 1 and about
    2.7 at order 2.
    """
    _check_arguments(order, memory, dynamic)
    params = jax.tree.map(jnp.asarray, params)
    _check_params(params)
    gradient, value = gradient_function(loss, batch_size), loss_function(loss)
    chain = take_apart(tx, params, value, extra_args)
    _check_updates(chain, params)
    _warn_jumping_clocks(chain, order, memory)
    if memory == "joint":
        return _joint(tx, chain, gradient, value, params, order)
    found = probe_memory(chain, params)
    kept = (
        ()
        if memory == "eliminate"
        else choose_dynamic(chain, found, dynamic if memory == "augment" else None)
    )
    check_eliminated(chain, found, kept)
    reduced = slow_manifold.reduce(chain, kept, newton or found.newton or 1)
    return _reduced(tx, reduced, gradient, value, params, order, found, memory, shadow_start)


def _joint(tx: Any, chain: Chain, gradient: Any, value: Any, params: Params, order: int) -> Flow:
    def init(start: Params, opt_state: PyTree | None = None) -> OptimizerState:
        start = jax.tree.map(jnp.asarray, start)
        memory, clocks = chain.split(tx.init(start) if opt_state is None else opt_state)
        _warn_joint(chain, params, clocks)
        return OptimizerState(start, memory, clocks)

    return Flow(joint_field(chain, gradient, value, order), init, lambda y: y.params)


def _reduced(
    tx: Any,
    reduced: slow_manifold.Reduced,
    gradient: Callable[[Params], Params],
    value: Callable[[Params], Float[Array, ""]],
    params: Params,
    order: int,
    found: Probe,
    memory: str,
    shadow_start: bool,
) -> Flow:
    chain = reduced.chain

    def rate(params: Params, slow: Memory, running: Clocks) -> slow_manifold.Moving:
        terms = slow_manifold.terms(reduced, gradient, value, params, slow, running, order)
        if terms.second is None:
            return terms.leading
        return jax.tree.map(jnp.add, terms.leading, terms.second)

    def start_at(start: Params, opt_state: PyTree | None) -> Any:
        start = jax.tree.map(jnp.asarray, start)
        memory, clocks = chain.split(tx.init(start) if opt_state is None else opt_state)
        _check_constants(chain, memory)
        _warn_eliminated(reduced, found, clocks)
        slow = {name: memory[name] for name in reduced.dynamic}
        if shadow_start:
            fast = {name: memory[name] for level in reduced.levels for name in level}
            start, slow = slow_manifold.shadow_start(
                reduced, gradient, value, start, slow, fast, clocks, order
            )
        return start, slow, {name: clocks[name] for name in reduced.running}

    def field(t: Any, y: Params, args: Any) -> Params:
        del args
        now = jnp.asarray(t, time_dtype(y))
        return rate(y, {}, {name: now for name in reduced.running})[0]

    def init(start: Params, opt_state: PyTree | None = None) -> Params:
        return start_at(start, opt_state)[0]

    def augmented_field(t: Any, y: OptimizerState, args: Any) -> OptimizerState:
        del t, args
        moved, slow = rate(y.params, y.memory, y.clocks)
        return OptimizerState(moved, slow, jax.tree.map(jnp.ones_like, y.clocks))

    def augmented_init(start: Params, opt_state: PyTree | None = None) -> OptimizerState:
        return OptimizerState(*start_at(start, opt_state))

    if memory == "eliminate":
        return Flow(field, init, lambda y: y)
    return Flow(augmented_field, augmented_init, lambda y: y.params)


def _check_arguments(order: Any, memory: Any, dynamic: Any) -> None:
    if memory not in MEMORY:
        raise ValueError(f"memory={memory!r} must be one of {', '.join(MEMORY)}.")
    check_order(order, f"it costs {order} gradients an evaluation")
    if memory == "joint" and order > _HIGHEST:
        raise ValueError(
            f"order={order} would cost {order} gradients an evaluation and amplify rounding by "
            f"2^{order} / {order}; memory='joint' goes to {_HIGHEST}, and 4 is the most that pays."
        )
    if memory != "joint" and order > 2:
        raise ValueError(
            f"order={order}: memory={memory!r} has orders 1 and 2; memory='joint' has more."
        )
    if (memory == "augment") != (dynamic is not None):
        raise ValueError(
            f"dynamic={dynamic!r} with memory={memory!r}: memory='augment' needs the names of the "
            "memory that stays, such as dynamic=['nu'], and nothing else takes them; "
            "memory='auto' measures."
        )


def _check_params(params: Params) -> None:
    check_real(params)
    if not jax.tree.leaves(params):
        raise TypeError("params hold no array: there is nothing to move.")


def _check_updates(chain: Chain, params: Params) -> None:
    jumps = chain.jumping_memory if not chain.jumping_updates else ("the updates",)
    try:
        start = probe_start(chain, params)
        if not jumps and chain.choosing and probe_jumps(chain, params):
            jumps = ("the updates or memory",)
    except TypeError as error:
        raise ValueError(
            f"the chain's update failed when given its counters {list(chain.clocks)} as floating-"
            f"point numbers: {error}. A flow is between the iterations; a table of learning rates, "
            "for one, must be interpolated (jnp.interp)."
        ) from error
    if jumps:
        raise ValueError(
            f"{jumps[0]} of this chain jump with the sign (or a rounding, or a mask) of the "
            "gradient or of memory: once a coordinate passes there the iterates chatter, and an "
            "ODE would stand still there. No memory mode serves; smooth it, as in "
            "g / sqrt(g^2 + eps) for a sign."
        )
    if start.not_finite:
        raise ValueError(
            "the first updates are not finite on a made-up gradient of entries of size 1: is the "
            "learning rate NaN or infinite?"
        )
    if start.climbs:
        raise ValueError(
            "the updates go up the gradient: is the learning rate negative? Optimizers here "
            "minimise; for the flow backwards in time negate the field."
        )
    if start.stands_still:
        raise ValueError(
            "the updates are 0, at steps 0 to 3 and 1000 to 1003: is the learning rate 0, or does "
            "its schedule reach 0 at once? There is no flow to derive."
        )


def _warn_jumping_clocks(chain: Chain, order: int, memory: str) -> None:
    # Without memory the eliminated field is that of one step, and right on both sides.
    if order == 1 or not chain.jumping_clocks or (memory == "eliminate" and not chain.levels):
        return
    warnings.warn(
        f"the updates jump at some number of {chain.jumping_clocks[0]} (a schedule in stairs?): a "
        "flow that passes a jump is off by O(h) there, as at order 1. Follow each stair by itself, "
        "or take a smooth schedule.",
        stacklevel=3,
    )


def _check_constants(chain: Chain, memory: Memory) -> None:
    for name in chain.constant:
        found, built = memory[name], chain.initial[name]
        if isinstance(found, Tracer) or isinstance(built, Tracer):
            continue
        if not np.array_equal(np.asarray(found), np.asarray(built)):
            raise ValueError(
                f"state leaf {name} never changes, but opt_state holds another value than "
                "tx.init(params) did when the flow was built. Build it with the same params, or "
                "take memory='joint'."
            )


def _warn_joint(chain: Chain, params: Params, clocks: Clocks) -> None:
    """Warns where a bias correction still changes by more than 5% a step."""
    early = _early(chain, clocks)
    if not early:
        return
    decays = probe_memory(chain, params).decays
    for clock, names in early.items():
        # |c(n+1) / c(n) - 1| for c = 1 - b^n is b^n (1 - b) / (1 - b^n).
        steps = {
            name: math.log1p((1 - b) / _SETTLING) / -math.log(b)
            for name in names
            if (b := decays.get(name)) is not None and 0 < b < 1
        }
        _warn(clock, clocks[clock], steps, "changes by less than 5% a step")


def _warn_eliminated(reduced: slow_manifold.Reduced, found: Probe, clocks: Clocks) -> None:
    """Warns where memory was not full yet, three times its span into the run."""
    for clock, names in _early(reduced.chain, clocks).items():
        steps = {
            name: 3 / (1 - b)
            for name in names
            if name not in reduced.dynamic and (b := found.decays.get(name)) is not None and b < 1
        }
        _warn(clock, clocks[clock], steps, "is over, to 5%")


def _early(chain: Chain, clocks: Clocks) -> dict[str, tuple[str, ...]]:
    return {
        clock: names
        for clock, names in chain.corrected.items()
        if names and not isinstance(clocks[clock], Tracer)
    }


def _warn(clock: str, count: Any, steps: dict[str, float], what: str) -> None:
    last = max(steps, key=lambda name: steps[name], default=None)
    if last is None:
        return
    needed = math.ceil(steps[last] - 1e-6)
    if float(count) < needed:
        warnings.warn(
            f"the flow starts at step {float(count):g} of {clock}, while the bias of state leaf "
            f"{last} is still being corrected; the correction {what} from step {needed} on: run "
            f"the optimizer that far and start from init(params_{needed}, opt_state_{needed}).",
            stacklevel=4,
        )
