"""What the convergence experiment compares: an explicit list of flows with what each models.

A new flow is one more `Case` in `CASES`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import driftlab
from driftlab import flows
from driftlab.flows.batch_order import batch_order_loss, shuffled_epoch_loss
from driftlab.flows.gradient_descent import gradient_descent_flow
from driftlab.flows.modified import modified_flow
from driftlab.flows.momentum import (
    inertial_flow,
    modified_momentum_flow,
    rescaled_gradient_flow,
)
from driftlab.flows.one_step import log_map_flow, step_sequence
from driftlab.flows.principal import principal_flow
from driftlab.regularizers import squared_gradient_norm
from experiments.convergence_problems import BATCHES, Problem

ONE_STEP, FIXED_TIME = "one step", "fixed time"
MOMENTUM = 0.5
CHAIN_MOMENTUM, CHAIN_DECAY = 0.8, 0.9


class Model(NamedTuple):
    """An iteration and the flow that models it, at one learning rate.

    Attributes:
      init: `params -> state` of the iteration.
      step: `state -> state`.
      read: `state -> params`.
      flow: the flow; its state is its own.
      step_time: the flow's time of one iteration.
    """

    init: Callable[[Any], PyTree]
    step: Callable[[PyTree], PyTree]
    read: Callable[[PyTree], Any]
    flow: flows.Flow
    step_time: Any


class Case(NamedTuple):
    """One line of the table.

    Attributes:
      name: the flow, and what it models.
      group: the panel that it is drawn in.
      order: P, so that the error is O(h^{P+1}) after one step and O(h^P) after a fixed time.
      build: `(problem, learning_rate) -> Model`; the learning rate is traced.
      compared: after `ONE_STEP`, or after a `FIXED_TIME`, which is for iterations with memory: a
        step from rest says little of them.
      terms: modified-equation terms, for the config's limits; an expensive program has more.
      expansion: learning rates are divided by it, as the flow is an expansion in `expansion h` (see
        `expansion_of_momentum`); 1 where no memory is eliminated.
    """

    name: str
    group: str
    order: int
    build: Callable[[Problem, Any], Model]
    compared: str = ONE_STEP
    terms: int = 1
    expansion: float = 1.0


def descent(problem: Problem, field: Any, learning_rate: Any) -> Model:
    """Gradient descent, beside a field or flow in the papers' time."""
    return maps(problem, field, learning_rate, _gradient_step(problem.loss, learning_rate))


def maps(problem: Problem, field: Any, step_time: Any, step: Callable[[Any], Any]) -> Model:
    """A map of the parameters, beside a field or flow in which it takes `step_time`."""
    del problem
    return Model(lambda params: params, step, lambda params: params, _as_flow(field), step_time)


def optimizer(
    problem: Problem, field: Any, step_time: Any, tx: optax.GradientTransformation
) -> Model:
    """An optax chain, beside a field or flow in which its iteration takes `step_time`."""

    def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
        params, inner = state
        updates, inner = tx.update(jax.grad(problem.loss)(params), inner, params)
        return optax.apply_updates(params, updates), inner

    def init(params: Any) -> tuple[Any, Any]:
        return params, tx.init(params)

    return Model(init, step, lambda state: state[0], _as_flow(field), step_time)


def _gradient_flow(problem: Problem, h: Any) -> Model:
    return descent(problem, flows.gradient_flow(problem.loss), h)


def _terms(order: int, route: str) -> Case:
    def build(problem: Problem, h: Any) -> Model:
        return descent(problem, gradient_descent_flow(problem.loss, h, order, route=route), h)

    return Case(f"{order} terms, {route.replace('_', ' ')}", _GROUPS[route], order, build,
                terms=order)  # fmt: skip


def _drift(sign: int) -> Callable[[Problem, Any], Model]:
    """Descent less its drift beside gradient flow, or descent beside the flow with the drift."""

    def build(problem: Problem, h: Any) -> Model:
        objective = driftlab.Objective(lambda params, _: problem.loss(params))
        changed = driftlab.regularized(objective, squared_gradient_norm(objective), sign * h / 4)
        moved, followed = (objective, changed) if sign > 0 else (changed, objective)
        step = _gradient_step(lambda params: moved.value(params, ())[0], h)
        return maps(problem, flows.gradient_flow(followed), h, step)

    return build


def _runge_kutta(order: int | None) -> Callable[[Problem, Any], Model]:
    def build(problem: Problem, h: Any) -> Model:
        gradient = jax.grad(problem.loss)

        def moved(y: Any, slope: Any, time: Any) -> Any:
            return jax.tree.map(lambda leaf, g: leaf - time * g, y, slope)

        def step(y: Any) -> Any:
            k1 = gradient(y)
            k2 = gradient(moved(y, k1, h / 2))
            k3 = gradient(moved(y, k2, h / 2))
            k4 = gradient(moved(y, k3, h))
            total = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return moved(y, total, h)

        field = flows.gradient_flow(problem.loss) if order is None else log_map_flow(step, order, h)
        return maps(problem, field, h, step)

    return build


def _epoch(problem: Problem, h: Any) -> Callable[[Any], Any]:
    def step(y: Any, batch: Any) -> Any:
        return _gradient_step(lambda params: problem.batch_loss(params, batch), h)(y)

    return step_sequence(step, problem.batches)


def _batch_log_map(order: int) -> Callable[[Problem, Any], Model]:
    def build(problem: Problem, h: Any) -> Model:
        epoch, time = _epoch(problem, h), BATCHES * h
        return maps(problem, log_map_flow(epoch, order, time), time, epoch)

    return build


def _batch_order(problem: Problem, h: Any) -> Model:
    loss = batch_order_loss(problem.batch_loss, problem.batches, h, problem.params)
    return maps(problem, flows.gradient_flow(loss), BATCHES * h, _epoch(problem, h))


def _shuffled(problem: Problem, h: Any) -> Model:
    loss = shuffled_epoch_loss(problem.batch_loss, problem.batches, h)
    orders = jnp.asarray(list(itertools.permutations(range(BATCHES))))

    def mean_end(y: Any) -> Any:
        def end(order: Array) -> Any:
            batches = jax.tree.map(lambda leaf: leaf[order], problem.batches)
            return _epoch(problem._replace(batches=batches), h)(y)

        return jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(end, orders))

    return maps(problem, flows.gradient_flow(loss), BATCHES * h, mean_end)


def _principal(extra_term: bool) -> Callable[[Problem, Any], Model]:
    def build(problem: Problem, h: Any) -> Model:
        size = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
        # Below h lambda = 1 it is real; 8 products are exact to rounding below 0.1.
        flow = principal_flow(
            problem.loss, h, state="real", products=min(8, size), extra_term=extra_term
        )
        return descent(problem, flow, h)

    return build


def expansion_of_momentum(momentum: float) -> float:
    """How much smaller than those of gradient descent learning rates have to be: `1 / (1 - m)^2`.

    A flow without memory is an expansion in how far the parameters move while the memory lasts.
    That is `1 / (1 - m)` iterations, each `1 / (1 - m)` times as long as one of gradient descent.
    """
    return 1 / (1 - momentum) ** 2


def expansion_of_decay(decay: float) -> float:
    """The same of a second moment, `1 / (1 - b)`: it normalizes steps, so it makes none longer."""
    return 1 / (1 - decay)


def _momentum(make: Callable[..., Any], nesterov: bool) -> Callable[[Problem, Any], Model]:
    def build(problem: Problem, h: Any) -> Model:
        flow = make(problem.loss, h, MOMENTUM, nesterov)
        return optimizer(problem, flow, h, optax.sgd(h, MOMENTUM, nesterov))

    return build


def _chain(make: Callable[[Any], Any], order: int, memory: str) -> Callable[[Problem, Any], Model]:
    """A chain beside the flow that is derived from it, in iteration time."""

    def build(problem: Problem, h: Any) -> Model:
        tx = make(h)
        flow = modified_flow(tx, problem.loss, problem.params, order, memory)
        return optimizer(problem, flow, 1.0, tx)

    return build


def _heavy_ball(h: Any) -> optax.GradientTransformation:
    return optax.sgd(h, CHAIN_MOMENTUM)


def _smooth_adam(h: Any) -> optax.GradientTransformation:
    # A root that is no kink, and memory that is not all of the run.
    return optax.adam(h, 0.8, CHAIN_DECAY, eps_root=0.1)


def _rescaled(loss: Any, h: Any, momentum: float, nesterov: bool) -> Any:
    del h, nesterov
    return rescaled_gradient_flow(loss, momentum)


_CLOSED, _LOG, _MAPS = "modified equation", "log map", "other models"
_MEMORY, _CHAINS = "momentum", "derived from the optax chain"
_GROUPS = {"closed_form": _CLOSED, "log_map": _LOG}

CASES = (
    Case("gradient flow", _CLOSED, 1, _gradient_flow),
    *(_terms(order, "closed_form") for order in (2, 3, 4, 5)),
    *(_terms(order, "log_map") for order in (2, 3, 4, 5)),
    Case("4 batches as one map, 2 terms", _LOG, 2, _batch_log_map(2), terms=2),
    Case("4 batches as one map, 3 terms", _LOG, 3, _batch_log_map(3), terms=3),
    Case("Runge-Kutta 4, 2 terms", _LOG, 2, _runge_kutta(2), terms=2),
    Case("Runge-Kutta 4, gradient flow", _MAPS, 4, _runge_kutta(None)),
    Case("drift explicit", _MAPS, 2, _drift(1)),
    Case("drift cancelled", _MAPS, 2, _drift(-1)),
    Case("principal flow", _MAPS, 2, _principal(False)),
    Case("principal flow, extra term", _MAPS, 3, _principal(True)),
    Case("4 batches in order, frozen", _MAPS, 2, _batch_order),
    Case("4 batches shuffled, mean", _MAPS, 2, _shuffled),
    *(
        Case(
            f"{name}, {method}",
            _MEMORY,
            order,
            _momentum(make, nesterov),
            FIXED_TIME,
            expansion=expansion,
        )
        for nesterov, method in ((False, "heavy ball"), (True, "Nesterov"))
        for name, order, make, expansion in (
            ("rescaled gradient flow", 1, _rescaled, expansion_of_momentum(MOMENTUM)),
            ("inertial flow", 2, inertial_flow, 1.0),
            ("modified momentum flow", 2, modified_momentum_flow, expansion_of_momentum(MOMENTUM)),
        )
    ),
    *(
        Case(
            f"modified_flow, {name}, {memory}, {order} terms",
            _CHAINS,
            order,
            _chain(make, order, memory),
            FIXED_TIME,
            terms=order,
            expansion=expansion,
        )
        for name, make, memory, order, expansion in (
            ("heavy ball 0.8", _heavy_ball, "joint", 2, 1.0),
            ("heavy ball 0.8", _heavy_ball, "joint", 3, 1.0),
            *(
                (name, make, "eliminate", order, expansion)
                for name, make, expansion in (
                    ("heavy ball 0.8", _heavy_ball, expansion_of_momentum(CHAIN_MOMENTUM)),
                    ("smooth adam", _smooth_adam, expansion_of_decay(CHAIN_DECAY)),
                )
                for order in (1, 2)
            ),
        )
    ),
)


def _gradient_step(loss: Callable[[Any], Any], h: Any) -> Callable[[Any], Any]:
    def step(y: Any) -> Any:
        return jax.tree.map(lambda leaf, g: leaf - h * g, y, jax.grad(loss)(y))

    return step


def _as_flow(field: Any) -> flows.Flow:
    if isinstance(field, flows.Flow):
        return field
    return flows.Flow(field, lambda params: params, lambda y: y)
