"""Every flow of a learning rate with the optimiser it models: the rows of the matrix.

`build(loss, learning_rate, params)` gives a field, or a `Flow` whose state is more than parameters,
and `step_time(learning_rate)` the time of one iteration. From the first step of
`descent(learning_rate)` on, the distance after a fixed time n h falls like h to the `order`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from driftlab import flows, manifolds
from driftlab.flows import preconditioning
from driftlab.transforms import riemannian_adam, riemannian_sgd


def papers_time(learning_rate):
    return learning_rate


def iteration_time(learning_rate):
    return jnp.ones_like(learning_rate)


class Case(NamedTuple):
    name: str
    build: Callable[..., Any]
    descent: Callable[..., optax.GradientTransformation]
    # None where the theorem is not about the iterates one by one: its own test says what is.
    order: int | None
    step_time: Callable[..., Any] = papers_time


heavy_ball = partial(optax.sgd, momentum=0.5)
nesterov = partial(optax.sgd, momentum=0.5, nesterov=True)
# A large eps_root: the papers' formulas need it (momentum_flows.md, 5.6).
adam = partial(optax.adam, b1=0.5, b2=0.6, eps=0.0, eps_root=0.5)
# Without a bias correction, whose end the flow of eliminated memory would have to wait for.
rmsprop = partial(optax.rmsprop, decay=0.6, eps=0.5)
# On a line the ball is flat, but not in its coordinate: the metric and x + v both matter.
CURVED = {"x": manifolds.poincare_ball(-0.05)}


def descent_case(order, route):
    def build(loss, h, params):
        return flows.gradient_descent_flow(loss, h, order, route=route)

    return Case(f"gradient_descent_flow {order} {route}", build, optax.sgd, order)


def modified_case(name, descent, order, memory):
    def build(loss, h, params):
        return flows.modified_flow(descent(h), loss, params, order, memory)

    return Case(f"modified_flow {name} {order} {memory}", build, descent, order, iteration_time)


CASES = [
    Case("gradient_flow", lambda loss, h, params: flows.gradient_flow(loss), optax.sgd, 1),
    descent_case(2, "log_map"),
    descent_case(3, "log_map"),
    descent_case(3, "closed_form"),
    descent_case(3, "recurrence"),
    Case("principal_flow", lambda loss, h, params: flows.principal_flow(loss, h), optax.sgd, 2),
    Case(
        "principal_flow with the extra term",
        lambda loss, h, params: flows.principal_flow(loss, h, extra_term=True, state="real"),
        optax.sgd,
        3,
    ),
    Case(
        "rescaled_gradient_flow",
        lambda loss, h, params: flows.rescaled_gradient_flow(loss, 0.5),
        heavy_ball,
        1,
    ),
    Case(
        "inertial_flow",
        lambda loss, h, params: flows.inertial_flow(loss, h, 0.5),
        heavy_ball,
        2,
    ),
    Case(
        "inertial_flow nesterov",
        lambda loss, h, params: flows.inertial_flow(loss, h, 0.5, nesterov=True),
        nesterov,
        2,
    ),
    Case(
        "modified_momentum_flow",
        lambda loss, h, params: flows.modified_momentum_flow(loss, h, 0.5),
        heavy_ball,
        2,
    ),
    Case(
        "modified_momentum_flow nesterov",
        lambda loss, h, params: flows.modified_momentum_flow(loss, h, 0.5, nesterov=True),
        nesterov,
        2,
    ),
    Case(
        "adam_flow",
        lambda loss, h, params: flows.adam_flow(
            loss, h, 0.5, 0.6, eps=0.0, eps_root=0.5, stationary=True
        ),
        adam,
        2,
    ),
    modified_case("sgd", optax.sgd, 3, "joint"),
    modified_case("heavy ball", heavy_ball, 1, "eliminate"),
    modified_case("heavy ball", heavy_ball, 2, "eliminate"),
    modified_case("nesterov", nesterov, 2, "eliminate"),
    modified_case("rmsprop", rmsprop, 2, "eliminate"),
    Case(
        "rmsprop_flow",
        lambda loss, h, params: flows.rmsprop_flow(loss, h, 0.6, eps=0.5),
        partial(optax.rmsprop, decay=0.6, eps=0.5, bias_correction=True),
        2,
    ),
    Case(
        "transient_momentum_flow",
        lambda loss, h, params: flows.transient_momentum_flow(loss, h, 0.5),
        heavy_ball,
        2,
    ),
    Case(
        "stable_flow",
        lambda loss, h, params: flows.stable_flow(loss, preconditioning.gradient_descent(h)),
        optax.sgd,
        1,
        iteration_time,
    ),
    Case(
        "su_boyd_candes_flow",
        lambda loss, h, params: flows.su_boyd_candes_flow(loss),
        optax.sgd,
        None,
        jnp.sqrt,
    ),
    Case(
        "bregman_flow", lambda loss, h, params: flows.bregman_flow(loss), optax.sgd, None, jnp.sqrt
    ),
    Case(
        "high_resolution_heavy_ball_flow",
        lambda loss, h, params: flows.high_resolution_heavy_ball_flow(loss, h, 0.5),
        optax.sgd,
        None,
        jnp.sqrt,
    ),
    Case(
        "high_resolution_nesterov_flow",
        lambda loss, h, params: flows.high_resolution_nesterov_flow(loss, h, 0.5),
        optax.sgd,
        None,
        jnp.sqrt,
    ),
    Case(
        "high_resolution_convex_flow",
        lambda loss, h, params: flows.high_resolution_convex_flow(loss, h),
        optax.sgd,
        None,
        jnp.sqrt,
    ),
    Case("rod_flow", lambda loss, h, params: flows.rod_flow(loss, h), optax.sgd, None),
    Case("edge_flow", lambda loss, h, params: flows.edge_flow(loss, h), optax.sgd, None),
    Case(
        "riemannian_gradient_flow",
        lambda loss, h, params: flows.riemannian_gradient_flow(loss, CURVED),
        partial(riemannian_sgd, manifolds=CURVED),
        1,
    ),
    Case(
        "riemannian_descent_flow",
        lambda loss, h, params: flows.riemannian_descent_flow(loss, h, CURVED),
        partial(riemannian_sgd, manifolds=CURVED),
        2,
    ),
    Case(
        "riemannian_descent_flow exp heavy ball",
        lambda loss, h, params: flows.riemannian_descent_flow(loss, h, CURVED, 0.5, "exp"),
        partial(riemannian_sgd, manifolds=CURVED, momentum=0.5, method="exp"),
        2,
    ),
    Case(
        "riemannian_adam_flow",
        lambda loss, h, params: flows.riemannian_adam_flow(loss, CURVED, eps=0.5),
        partial(riemannian_adam, manifolds=CURVED, b1=0.5, b2=0.6, eps=0.5),
        1,
    ),
    Case(
        "a2grad_flow",
        lambda loss, h, params: flows.a2grad_flow(loss, 1.0),
        optax.sgd,
        None,
        jnp.sqrt,
    ),
    Case(
        "a2grad_flow exponential",
        lambda loss, h, params: flows.a2grad_flow(loss, 1.0, "exponential"),
        optax.sgd,
        None,
        jnp.sqrt,
    ),
]


def as_flow(found):
    """A bare field's state is the parameters."""
    if isinstance(found, flows.Flow):
        return found
    return flows.Flow(found, lambda params: params, lambda y: y)
