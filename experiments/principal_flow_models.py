"""What the experiment compares: flows of orders 1 to 3 and the principal flow, and what it records.

A field of order P holds the first P terms of gradient descent's modified equation:
`-g - (h/2) H g - h^2 (H^2 g / 3 + T[g, g] / 12)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import driftlab
from driftlab.dynamics import Snapshot
from driftlab.flows.discretization_drift import per_iteration_drift
from driftlab.flows.instability import instability_prediction
from driftlab.flows.principal import principal_flow
from driftlab.flows.principal_complex import real_neighborhood
from driftlab.flows.vector_field import Field, Flow
from driftlab.measures.norms import effective_learning_rate

# Name in a dataset -> in a table and figure.
TITLES = {
    "gradient_flow": "gradient flow",
    "order_2": "order 2 (IGR)",
    "order_3": "order 3",
    "principal_real": "principal, real part",
    "principal": "principal",
}
# Relative to the parameters; a step is a hundredth of them, and its error less.
TOLERANCES = {"rtol": 1e-6, "atol": 1e-8, "max_steps": 300}


def modified_field(loss: Any, learning_rate: Any, order: int) -> Field:
    """The modified equation of gradient descent, closed form, of up to three terms.

    Args:
      loss: `loss(params)`, or an objective.
      learning_rate: h.
      order: terms, 1 to 3.

    Returns:
      The field, in the papers' time.
    """

    def field(t: Any, y: Any, args: Any) -> Any:
        del t, args
        near, h = real_neighborhood(loss, y), learning_rate
        g = near.gradient
        slope = -g
        if order >= 2:
            once = near.product(g)
            slope = slope - h / 2 * once
        if order >= 3:
            slope = slope - h**2 * (near.product(once) / 3 + near.third(g, g) / 12)
        return near.unflatten(slope)

    return field


def make_flows(loss: Any, learning_rate: Any, config: Any) -> dict[str, Flow]:
    """The flows that are compared.

    Args:
      loss: `loss(params)`, or an objective.
      learning_rate: h; may be traced.
      config: with `products` and `continuation`.

    Returns:
      Name -> flow, in the order of `TITLES`.
    """

    def plain(field: Field) -> Flow:
        return Flow(field, lambda params: params, lambda y: y)

    options = {"products": config.products}
    return {
        "gradient_flow": plain(modified_field(loss, learning_rate, 1)),
        "order_2": plain(modified_field(loss, learning_rate, 2)),
        "order_3": plain(modified_field(loss, learning_rate, 3)),
        "principal_real": principal_flow(loss, learning_rate, state="real", **options),
        "principal": principal_flow(
            loss, learning_rate, continuation=config.continuation, **options
        ),
    }


def step_errors(loss: Any, params: Any, after: Any, learning_rate: Any, config: Any) -> dict:
    """How far each flow ends from an iterate, as a share of the step.

    Args:
      loss: `loss(params)`, or an objective.
      params: theta_k.
      after: theta_{k+1}.
      learning_rate: h.
      config: as `make_flows`.

    Returns:
      Name -> `||theta_{k+1} - y(h)|| / ||theta_{k+1} - theta_k||`; NaN where a solve failed.
    """
    pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, after)
    step = optax.tree.norm(jax.tree.map(jnp.subtract, after, params))
    return {
        name: per_iteration_drift(flow, pair, learning_rate, **TOLERANCES)[0] / step
        for name, flow in make_flows(loss, learning_rate, config).items()
    }


def predictions(config: Any) -> Callable[[Snapshot], dict[str, Array]]:
    """A measure of what each flow says the next step does to the loss.

    Args:
      config: with `top` and `products`.

    Returns:
      A measure of `scaled_sharpness` (h lambda_1), `sharp_share` (of ||g||^2 along u_1),
      `loss_change` of the step, and `rate_*`, each flow's `h dL/dt` (order 2 from its two terms).
    """

    def predictions(snapshot: Snapshot) -> dict[str, Array]:
        objective = _objective(snapshot)
        h = effective_learning_rate(snapshot)
        found = instability_prediction(objective, h, top=config.top, products=config.products)(
            snapshot.params
        )
        near = real_neighborhood(objective, snapshot.params)
        g = near.gradient
        squared = jnp.sum(g**2)
        after = objective.value(snapshot.next_state.params, objective.data)[0]
        return {
            "scaled_sharpness": h * found.eigenvalues[0],
            "sharp_share": found.squares[0] / squared,
            "loss_change": after - snapshot.value,
            "rate_gradient_flow": -h * squared,
            "rate_order_2": -h * (squared + h / 2 * jnp.sum(g * near.product(g))),
            "rate_principal": h * found.loss_rate,
        }

    return predictions


def errors(config: Any) -> Callable[[Snapshot], dict[str, Array]]:
    """A measure of the errors of one step of every flow.

    Args:
      config: as `make_flows`.

    Returns:
      A measure of `error_*`, as `step_errors`.
    """

    def errors(snapshot: Snapshot) -> dict[str, Array]:
        found = step_errors(
            _objective(snapshot),
            snapshot.params,
            snapshot.next_state.params,
            effective_learning_rate(snapshot),
            config,
        )
        return {f"error_{name}": value for name, value in found.items()}

    return errors


def _objective(snapshot: Snapshot) -> driftlab.Objective:
    if snapshot.objective is None:
        raise ValueError("this measure needs a dynamics with an objective.")
    return snapshot.objective
