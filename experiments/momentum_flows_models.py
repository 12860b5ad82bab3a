"""What the experiment compares: momentum with every flow of it beside it, and on which problems."""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import driftlab
from driftlab import data, models
from driftlab.data.dataset import Batch
from driftlab.dynamics import Snapshot, State, from_step
from driftlab.flows.invariant_manifold import distance_to_manifold
from driftlab.flows.momentum import (
    inertial_flow,
    modified_momentum_flow,
    rescaled_gradient_flow,
    transient_momentum_flow,
)
from driftlab.flows.vector_field import Flow
from driftlab.suggestions import nearest
from experiments import flags

METHODS = ("heavy_ball", "nesterov")
Problem = tuple[driftlab.Objective, Callable[[PRNGKeyArray], Any]]


class Beside(NamedTuple):
    """The inner state of an optimiser with its flows beside it.

    Attributes:
      optimizer: the optax state.
      flows: the `State` of one flow, whose ODE holds all of them: name -> state.
      errors: name -> distance of the flow from the parameters.
      manifold: order of the formula -> distance of the optimiser's state to the manifold.
    """

    optimizer: Any
    flows: State
    errors: dict[str, Float[Array, ""]]
    manifold: dict[int, Float[Array, ""]]


def beside(objective: driftlab.Objective, h: Any, m: float, nesterov: bool) -> driftlab.Dynamics:
    """`optax.sgd` with every flow of it, all at the same iteration.

    Args:
      objective: what is minimised.
      h: learning rate.
      m: momentum.
      nesterov: which method.

    Returns:
      A dynamics whose params are the optimiser's, and whose inner state is a `Beside`.
    """
    descended = driftlab.descent(optax.sgd(h, m, nesterov), objective)
    plain = Flow(rescaled_gradient_flow(objective, m), lambda params: params, lambda y: y)
    found = {
        "rescaled": plain,
        "zero": inertial_flow(objective, h, m, nesterov, "zero"),
        "slow": inertial_flow(objective, h, m, nesterov, "slow"),
        "inertial": inertial_flow(objective, h, m, nesterov),
        "modified": modified_momentum_flow(objective, h, m, nesterov),
        "unshifted": modified_momentum_flow(objective, h, m, nesterov, shadow_start=False),
        "transient": plain._replace(field=transient_momentum_flow(objective, h, m, nesterov)),
    }

    def field(t: Any, y: dict[str, Any], args: Any) -> dict[str, Any]:
        return {name: model.field(t, y[name], args) for name, model in found.items()}

    # One solve for all: each of its own would have to be compiled. Two steps of order 5 an
    # iteration are far more exact than any of the flows is.
    flows = driftlab.flow(
        field,
        h,
        objective,
        to_state=lambda params: {name: model.init(params) for name, model in found.items()},
        to_params=lambda y: found["rescaled"].params(y["rescaled"]),
        steps=2,
    )
    distances = {order: distance_to_manifold(objective, h, m, nesterov, order) for order in (1, 2)}

    def seen(params: Any, optimizer: Any, flowed: State) -> Beside:
        def apart(name: str) -> Array:
            other = found[name].params(flowed.inner.y[name])
            return optax.tree.norm(jax.tree.map(jnp.subtract, other, params))

        off = {order: find(params, optimizer[0].trace) for order, find in distances.items()}
        return Beside(optimizer, flowed, {name: apart(name) for name in found}, off)

    def init(params: Any, key: PRNGKeyArray) -> State:
        state = descended.init(params, key)
        return state._replace(inner=seen(params, state.inner, flows.init(params, key)))

    def step(state: State) -> State:
        after = descended.step(state._replace(inner=state.inner.optimizer))
        return after._replace(inner=seen(after.params, after.inner, flows.step(state.inner.flows)))

    return from_step(init, step, objective)


def errors(snapshot: Snapshot) -> dict[str, Array]:
    """`error_NAME`, the distance of each flow from the iterate, and `manifold_ORDER`."""
    inner: Any = snapshot.state.inner
    found = {f"error_{name}": value for name, value in inner.errors.items()}
    return found | {f"manifold_{order}": value for order, value in inner.manifold.items()}


def make_problems(config: Any) -> dict[str, Problem]:
    """The problems of part 1, by name.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      Name -> (objective, `initialize(key) -> params`).

    Raises:
      ValueError: if there is no such problem.
    """

    def quadratic() -> Problem:
        known = data.problems.quadratic(np.array([0.3, 0.7, 1.5, 3.0, 5.0]), jax.random.key(1))
        return driftlab.Objective(known.loss), lambda key: known.initial_params

    def banana() -> Problem:
        known = data.problems.perturbed_rosenbrock()
        return driftlab.Objective(known.loss), lambda key: known.initial_params

    def network() -> Problem:
        loaded = data.load(
            "digits", train_size=config.network_size, normalization="unit", flatten=True
        )
        return _network(loaded.train, (16,), 10, models.cross_entropy)

    known = {"quadratic": quadratic, "banana": banana, "network": network}
    return {name: known[name]() for name in _names(config.problems, known, "problem")}


def make_networks(config: Any) -> dict[str, Problem]:
    """The networks of part 2, by name.

    Args:
      config: an `ml_collections.ConfigDict` with the fields of configs/momentum_flows.py.

    Returns:
      Name -> (objective, `initialize(key) -> params`).

    Raises:
      ValueError: if there is no such network, or the data do not exist.
    """
    known = {
        "classifier": (config.classifier_widths, models.cross_entropy),
        "autoencoder": (config.autoencoder_widths, models.squared_error),
    }
    names = _names(config.networks, known, "network")
    loaded = data.load(
        config.data,
        train_size=config.train_size or None,
        normalization="unit",
        flatten=True,
        data_dir=flags.DATA_DIR.value,
    )
    found = {}
    for name in names:
        widths, loss = known[name]
        examples, outputs = loaded.train, loaded.num_classes
        if name == "autoencoder":
            # The mean image is not learned: it would be most of the loss and of the curvature.
            images = examples.inputs - examples.inputs.mean(0)[None]
            examples, outputs = Batch(images, images), images.shape[1]
        found[name] = _network(examples, ast.literal_eval(widths), outputs, loss)
    return found


def _network(examples: Batch, widths: tuple[int, ...], outputs: int, loss: Callable) -> Problem:
    inputs = jnp.asarray(examples.inputs, float)
    targets = jnp.asarray(examples.targets)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(float)
    model = models.create("mlp", outputs, widths=widths)
    objective = driftlab.Objective(loss(models.apply_function(model)), Batch(inputs, targets))
    return objective, lambda key: models.initialize(model, key, inputs)


def _names(text: str, known: Any, what: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}: {nearest(name, known)}")
    return names
