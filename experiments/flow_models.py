"""The flows that an optimiser is compared with, by name, and a dynamics that runs all together."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import driftlab
from driftlab.dynamics import Snapshot, State, from_step
from driftlab.flows.gradient_descent import gradient_descent_flow
from driftlab.flows.modified import modified_flow
from driftlab.flows.principal import principal_flow
from driftlab.flows.solve import solve
from driftlab.flows.vector_field import Flow

OF_DESCENT = ("gradient_flow", "order_2", "order_3", "principal", "principal_extra")
OF_ANY = ("modified_1", "modified_2", "modified_3", "modified_4")
_FORMS = (
    "of gradient descent: gradient_flow, order_P, principal, principal_extra; of any optimiser: "
    "modified_P, eliminated_1, eliminated_2 (P terms); or auto"
)


class Model(NamedTuple):
    """A flow, ready to be followed.

    Attributes:
      flow: the field, and the way into its state and back.
      step_time: the time of an iteration: h, or 1 in iteration time.
      takes_memory: whether `flow.init` takes the optimiser's state as well.
    """

    flow: Flow
    step_time: Any
    takes_memory: bool


class Compared(NamedTuple):
    """The inner state of `compare`.

    Attributes:
      optimizer: the optax state.
      states: name -> the flow's state; NaN once its solve has failed.
      positions: name -> the parameters that it stands for.
    """

    optimizer: PyTree
    states: Mapping[str, PyTree]
    positions: Mapping[str, PyTree]


def parse_models(text: str, plain: bool) -> tuple[str, ...]:
    """The names of flows.

    Args:
      text: a comma list, or "auto".
      plain: whether the optimiser is gradient descent.

    Returns:
      Them; checked.

    Raises:
      ValueError: if one is not known, repeated, or of gradient descent for another optimiser.
    """
    if text.strip() == "auto":
        return OF_DESCENT if plain else OF_ANY
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in OF_DESCENT and not re.fullmatch(
            r"(order|modified)_[1-9]|eliminated_[12]", name
        ):
            raise ValueError(f"flows={text!r}: there is no flow {name!r}; give {_FORMS}.")
        if not plain and not is_of_any(name):
            raise ValueError(
                f"flows={text!r}: {name} is a flow of gradient descent (optimizer=sgd without "
                "arguments); another optimizer's are modified_P and eliminated_P."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"flows={text!r} names a flow twice.")
    return names


def is_of_any(name: str) -> bool:
    """Whether a flow models any optimiser rather than gradient descent.

    Args:
      name: of the flow.
    """
    return name.startswith(("modified", "eliminated"))


def expected_order(name: str) -> int:
    """The global order in h of a flow by name; its local order is one more.

    Args:
      name: of the flow.
    """
    fixed = {"gradient_flow": 1, "principal": 2, "principal_extra": 3}
    return fixed[name] if name in fixed else int(name.rpartition("_")[2])


def make_model(
    name: str,
    factory: Callable[..., optax.GradientTransformation],
    objective: driftlab.Objective,
    params: Any,
    learning_rate: Any,
    products: int | None,
) -> Model:
    """A flow by name.

    Args:
      name: as `parse_models` returns it.
      factory: `factory(learning_rate=h)`, the optimiser.
      objective: what is minimised, in full batches.
      params: parameters, for their shapes.
      learning_rate: h; may be traced.
      products: the Krylov dimension of the principal flow; None for the whole Hessian, on
        problems of few parameters.

    Returns:
      The model.
    """
    if name.startswith("principal"):
        where: Any = {"method": "dense"} if products is None else {"products": products}
        # Below h lambda = 1, where the flow is real, all continuations are one; beyond, the
        # holomorphic one leads to the singularities of the loss at complex parameters.
        flow = principal_flow(
            objective,
            learning_rate,
            continuation="linearized",
            extra_term=name == "principal_extra",
            **where,
        )
        return Model(flow, learning_rate, False)
    order = expected_order(name)
    if name.startswith(("order", "gradient")):
        field = gradient_descent_flow(objective, learning_rate, order)
        return Model(Flow(field, lambda params: params, lambda y: y), learning_rate, False)
    memory = "joint" if name.startswith("modified") else "eliminate"
    tx = factory(learning_rate=learning_rate)
    return Model(modified_flow(tx, objective, params, order, memory), 1.0, True)


def compare(
    factory: Callable[..., optax.GradientTransformation],
    objective: driftlab.Objective,
    params: Any,
    learning_rate: Any,
    names: Sequence[str],
    *,
    warm_up: int = 0,
    rtol: Any = 1e-12,
    products: int | None = None,
) -> driftlab.Dynamics:
    """An optimiser and its flows side by side, from the same start.

    Args:
      factory: `factory(learning_rate=h)`, the optimiser.
      objective: what is minimised, in full batches.
      params: parameters, for their shapes.
      learning_rate: h; may be traced.
      names: of the flows.
      warm_up: iterations of the optimiser before the flows start where it stands.
      rtol: of the flows' solver; may be traced.
      products: as in `make_model`.

    Returns:
      The dynamics: its params are the optimiser's, its inner state is a `Compared`.
    """
    tx = factory(learning_rate=learning_rate)
    optimizer = driftlab.descent(tx, objective)
    models = {
        name: make_model(name, factory, objective, params, learning_rate, products)
        for name in names
    }

    def start(model: Model, state: State) -> PyTree:
        given = (state.params, state.inner) if model.takes_memory else (state.params,)
        return model.flow.init(*given)

    def init(params: Any, key: Any) -> State:
        state = optimizer.init(params, key)
        state = jax.lax.fori_loop(0, warm_up, lambda _, s: optimizer.step(s), state)
        states = {name: start(model, state) for name, model in models.items()}
        positions = {name: models[name].flow.params(y) for name, y in states.items()}
        inner = Compared(state.inner, states, positions)
        return State(state.params, inner, jnp.zeros((), jnp.int32), key)

    def step(state: State) -> State:
        inner: Compared = state.inner
        count = state.step + warm_up
        descended = optimizer.step(State(state.params, inner.optimizer, count, state.key))
        states = {}
        for name, model in models.items():
            y = inner.states[name]
            # A flow in the papers' time does not depend on it; one in iteration time may.
            t0 = count * jnp.asarray(model.step_time)
            solved = solve(model.flow.field, y, model.step_time, t0=t0, rtol=rtol)
            states[name] = jax.tree.map(
                lambda leaf, failed=solved.failed: jnp.where(failed, jnp.nan, leaf), solved.y
            )
        positions = {name: models[name].flow.params(y) for name, y in states.items()}
        following = Compared(descended.inner, states, positions)
        return State(descended.params, following, state.step + 1, state.key)

    return from_step(init, step, objective)


def distances(snapshot: Snapshot) -> dict[str, Array]:
    """The distance from the optimiser to each flow, in parameter units. Cost: none.

    Args:
      snapshot: of a `compare`.

    Returns:
      `distance_NAME` for each flow; NaN once its solve has failed.
    """
    inner: Compared = snapshot.state.inner
    return {
        f"distance_{name}": optax.tree.norm(
            jax.tree.map(jnp.subtract, position, snapshot.state.params)
        )
        for name, position in inner.positions.items()
    }
