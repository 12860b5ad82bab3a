"""The models of the edge of stability, each with the optimiser from the same start beside it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import driftlab
from driftlab.dynamics import Dynamics, State, from_step
from driftlab.flows import preconditioning
from driftlab.flows.central import central_flow
from driftlab.flows.dynamics import flow
from driftlab.flows.edge import edge_flow
from driftlab.flows.rod import rod_flow
from driftlab.flows.stable import stable_flow
from driftlab.sweep.lane import HParams

MODELS = {
    "gradient_descent": ("optimizer", "central", "rod", "edge", "stable"),
    "scalar_rmsprop": ("optimizer", "central", "stable"),
    "rmsprop": ("optimizer", "central", "stable"),
}


class Accompanied(NamedTuple):
    """The inner state of a model that carries the optimiser along.

    Attributes:
      model: the model's own inner state.
      reference: the optimiser's state at the same step.
      before: the optimiser's parameters one step earlier.
    """

    model: PyTree
    reference: State
    before: PyTree


def accompanied(model: Dynamics, reference: Dynamics, objective: driftlab.Objective) -> Dynamics:
    """A model, with the optimiser from the same start beside it.

    Args:
      model: what is observed.
      reference: the optimiser.
      objective: of both.

    Returns:
      The model's dynamics; its `State.inner` is an `Accompanied`.
    """

    def init(params: Any, key: Any) -> State:
        begun, beside = model.init(params, key), reference.init(params, key)
        return begun._replace(inner=Accompanied(begun.inner, beside, beside.params))

    def step(state: State) -> State:
        inner = state.inner
        moved = model.step(state._replace(inner=inner.model))
        # The sweep holds a lane that is over at its last state; so must be what is beside it.
        beside = inner.reference._replace(step=state.step)
        after = Accompanied(moved.inner, reference.step(beside), beside.params)
        return moved._replace(inner=after)

    return from_step(init, step, objective)


class ScalarRms(NamedTuple):
    """The state of RMSProp with one second moment for all parameters.

    Attributes:
      nu: the mean of |g|^2, the same number in every entry of a tree like params, which is what
        `driftlab.curvature.preconditioner` reads; 0 before the first gradient.
    """

    nu: PyTree[Array]

    def preconditioner(self) -> PyTree[Array]:
        """P without the learning rate: `sqrt(nu)`."""
        return jax.tree.map(jnp.sqrt, self.nu)


def scale_by_scalar_rms(b2: float) -> optax.GradientTransformation:
    """`g / sqrt(nu)`, nu a moving average of |g|^2 that starts at its first value.

    Args:
      b2: its decay.

    Returns:
      The transform.

    Source: Cohen et al. (2025), section 4, "scalar RMSProp", without eps.
    """

    def init(params: Any) -> ScalarRms:
        return ScalarRms(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ScalarRms]:
        del params
        square = optax.tree.norm(updates, squared=True)
        nu = jax.tree.map(
            lambda nu: jnp.where(nu == 0, square, b2 * nu + (1 - b2) * square), state.nu
        )
        return jax.tree.map(lambda g, nu: g / jnp.sqrt(nu), updates, nu), ScalarRms(nu)

    return optax.GradientTransformation(init, update)


def transform(config: Any, optimizer: str, rate: Any) -> optax.GradientTransformation:
    """The optax chain of an optimiser.

    Args:
      config: with `b2` and `eps`.
      optimizer: its name.
      rate: the learning rate.

    Returns:
      The chain.
    """
    if optimizer == "gradient_descent":
        return optax.sgd(rate)
    if optimizer == "scalar_rmsprop":
        return optax.chain(scale_by_scalar_rms(config.b2), optax.scale(-rate))
    return optax.rmsprop(rate, config.b2, config.eps, eps_in_sqrt=False, bias_correction=True)


def make_build(
    config: Any, optimizer: str, objective: driftlab.Objective, initialize: Callable
) -> Callable:
    """The function that a sweep calls for every lane.

    Args:
      config: the config.
      optimizer: its name.
      objective: what is minimised.
      initialize: `key -> params`.

    Returns:
      `build(hparams, key) -> (Dynamics, params)`; params are those after the warm-up.
    """
    reading = reading_of(config)

    def build(hparams: HParams, key: Any) -> tuple[Dynamics, Any]:
        rate, name = hparams["learning_rate"], hparams["model"]
        tx = transform(config, optimizer, rate)
        descended = driftlab.descent(tx, objective)
        start = descended.init(initialize(key), key)
        start = jax.lax.fori_loop(
            0, config.warm_up_steps, lambda _, state: descended.step(state), start
        )

        def resume(params: Any, key: Any) -> State:
            return State(params, start.inner, jnp.zeros((), jnp.int32), key)

        reference = descended._replace(init=resume)
        if optimizer == "gradient_descent":
            method = preconditioning.gradient_descent(rate)
        else:
            method = preconditioning.from_optax(tx, rate, opt_state=start.inner, **reading)
        if name == "optimizer":
            model = from_step(resume, descended.step, objective)
        elif name == "central":
            model = central_flow(
                objective, method, eigenvectors=config.eigenvectors, substeps=config.substeps
            )
        elif name == "stable":
            model = _followed(stable_flow(objective, method), 1.0, objective)
        else:
            field = {"rod": rod_flow, "edge": edge_flow}[name](objective, rate)
            model = _followed(field, rate, objective)
        return accompanied(model, reference, objective), start.params

    return build


def reading_of(config: Any) -> dict[str, Any]:
    """What `curvature.preconditioner` must be told of the optimiser.

    Args:
      config: with `b2` and `eps`.

    Returns:
      Its arguments.
    """
    return {"b2": config.b2, "eps": config.eps, "eps_in_sqrt": False}


def _followed(field: Any, step_time: Any, objective: driftlab.Objective) -> Dynamics:
    return flow(field, step_time, objective, rtol=1e-4, atol=1e-7)
