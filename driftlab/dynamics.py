"""The one idea: an optimiser and its continuous-time model are both a `Dynamics`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from driftlab.checks import check_params
from driftlab.objective import Batch, Objective, Params


class State(NamedTuple):
    """Where a dynamics stands.

    Attributes:
      params: the parameters theta_k, any pytree of floating-point arrays.
      inner: the dynamics' own state: an optax state, a flow's time and solver state.
      step: k, the iterations done; int32 scalar.
      key: the run's key. A step draws with `fold_in(key, step)` and leaves the key as it is, so
        that step k is a pure function of (params, inner, k, key).
    """

    params: Params
    inner: PyTree
    step: Int[Array, ""]
    key: PRNGKeyArray


class Snapshot(NamedTuple):
    """What a step sees and computes at theta_k, for the measures to look at.

    It holds by-products of the step, so that a measure which only reads it costs no gradient;
    what no measure reads, the compiler removes.

    Attributes:
      state: the state at theta_k.
      next_state: the state at theta_{k+1}.
      objective: what is minimised; None for a dynamics without one.
      batch: the examples of step k.
      value: loss plus regulariser at theta_k on that batch (what is minimised); scalar.
      loss: the loss alone, likewise; scalar.
      gradient: the gradient of `value` at theta_k; the structure of params.
      eval_params: the parameters at which the method wants to be evaluated (theta_k itself but
        for methods that average, such as schedule-free).
      dynamics: what made the snapshot, for measures that look a step ahead:
        `dynamics.observe(next_state)`; None if it does not say.
      initial_params: theta_0; filled in by whoever runs the dynamics, else None.
    """

    state: State
    next_state: State
    objective: Objective | None
    batch: Batch
    value: Float[Array, ""]
    loss: Float[Array, ""]
    gradient: Params
    eval_params: Params
    dynamics: "Dynamics | None" = None
    initial_params: Params | None = None

    @property
    def params(self) -> Params:
        """theta_k."""
        return self.state.params

    @property
    def updates(self) -> Params:
        """theta_{k+1} - theta_k as the arithmetic of the parameters' dtype gives it."""
        return jax.tree.map(jnp.subtract, self.next_state.params, self.state.params)


class Dynamics(NamedTuple):
    """A discrete-time map, be it an optimiser or a flow sampled once an iteration.

    Attributes:
      init: `init(params, key) -> State`, pure.
      step: `step(state) -> State`: one optimiser iteration, or one learning rate's worth of flow
        time. It leaves `state.key` as it is.
      observe: `observe(state) -> Snapshot`: the same step with its by-products;
        `observe(state).next_state` equals `step(state)`.
    """

    init: Callable[[Params, PRNGKeyArray], State]
    step: Callable[[State], State]
    observe: Callable[[State], Snapshot]


def descent(
    tx: optax.GradientTransformation,
    objective: Objective,
    eval_params: Callable[[PyTree, Params], Params] | None = None,
    extra_args: Sequence[str] = ("value", "grad", "value_fn"),
) -> Dynamics:
    """The dynamics of an optax optimiser on an objective.

    `g_k = grad L(theta_k; batch_k)`, `u_k, s_{k+1} = tx.update(g_k, s_k, theta_k)`,
    `theta_{k+1} = theta_k + u_k`. A transformation that takes extra arguments
    (`optax.GradientTransformationExtraArgs`) is given those named by `extra_args`, by default the
    ones that optax's line searches ask for.

    Args:
      tx: any optax chain; its hyper-parameters may be traced arrays.
      objective: what it minimises.
      eval_params: `eval_params(opt_state, params) -> params` at which to evaluate; by default
        `driftlab.dynamics.eval_params`, which knows optax's schedule-free state.
      extra_args: which of these the chain is given, if it takes any: `value` and `grad`, those of
        the step; `value_fn(params)`, the objective on the step's own batch, also under the name
        `obj_fn`, by which `optax.contrib.sophia` asks for it (and optax's line searches refuse
        it).

    Returns:
      The dynamics; its `State.inner` is the optax state.

    Raises:
      ValueError: if there is no such extra argument.
      TypeError: from `init`, if a parameter is not a floating-point array.
    """
    unknown = sorted(set(extra_args) - {"value", "grad", "value_fn", "obj_fn"})
    if unknown:
        raise ValueError(f"extra_args={unknown}: there are value, grad, value_fn and obj_fn.")
    wants_extra = isinstance(tx, optax.GradientTransformationExtraArgs)
    find_eval_params = globals()["eval_params"] if eval_params is None else eval_params

    def init(params: Params, key: PRNGKeyArray) -> State:
        check_params(params)
        params = jax.tree.map(jnp.asarray, params)
        return State(params, tx.init(params), jnp.zeros((), jnp.int32), key)

    def observe(state: State) -> Snapshot:
        batch = objective.batch(state.key, state.step)
        (value, loss), gradient = jax.value_and_grad(objective.value, has_aux=True)(
            state.params, batch
        )
        extra: dict[str, Any] = {}
        if wants_extra:

            def value_fn(params: Params) -> Float[Array, ""]:
                return objective.value(params, batch)[0]

            known = {"value": value, "grad": gradient, "value_fn": value_fn, "obj_fn": value_fn}
            extra = {name: known[name] for name in extra_args}
        updates, inner = tx.update(gradient, state.inner, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        return Snapshot(
            state=state,
            next_state=State(params, inner, state.step + 1, state.key),
            objective=objective,
            batch=batch,
            value=value,
            loss=loss,
            gradient=gradient,
            eval_params=find_eval_params(state.inner, state.params),
            dynamics=dynamics,
        )

    dynamics = Dynamics(init, lambda state: observe(state).next_state, observe)
    return dynamics


def from_step(
    init: Callable[[Params, PRNGKeyArray], State],
    step: Callable[[State], State],
    objective: Objective,
) -> Dynamics:
    """A dynamics from a bare step: its snapshot evaluates the objective where the state stands.

    For maps that are not an optax chain: a flow, a Runge-Kutta step, a user's own update. The
    gradient costs nothing unless a measure reads it.

    Args:
      init: `init(params, key) -> State`.
      step: `step(state) -> State`.
      objective: what the loss and gradient of the snapshot refer to.

    Returns:
      The dynamics.
    """

    def observe(state: State) -> Snapshot:
        batch = objective.batch(state.key, state.step)
        (value, loss), gradient = jax.value_and_grad(objective.value, has_aux=True)(
            state.params, batch
        )
        return Snapshot(
            state, step(state), objective, batch, value, loss, gradient, state.params, dynamics
        )

    dynamics = Dynamics(init, step, observe)
    return dynamics


def eval_params(opt_state: PyTree, params: Params) -> Params:
    """The parameters at which an optimiser wants to be evaluated.

    Looks through the optax state, however deeply it is chained, for a state that says so:
    optax's schedule-free state, or any state with a method `eval_params(params)`. Everything
    else is evaluated where the gradient is taken.

    Args:
      opt_state: an optax state.
      params: theta_k, where the gradient is taken.

    Returns:
      The evaluation point; the structure of params.

    Raises:
      ValueError: if two parts of the state each name an evaluation point.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_names_eval_params)
    found = [node for node in nodes if _names_eval_params(node)]
    if not found:
        return params
    if len(found) > 1:
        kinds = [type(node).__name__ for node in found]
        raise ValueError(
            f"the optimiser's state names {len(found)} evaluation points ({kinds}); pass "
            "descent(..., eval_params=...) to say which one counts."
        )
    if isinstance(found[0], optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(found[0], params)
    return found[0].eval_params(params)


def _names_eval_params(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState) or callable(
        getattr(node, "eval_params", None)
    )
