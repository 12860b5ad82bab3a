"""Flows on manifolds against the optimisers they model: measured orders, with and without terms."""

import itertools
from typing import Any, NamedTuple

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import flows, manifolds
from driftlab.flows.gradient_descent import gradient_descent_flow
from driftlab.flows.momentum import modified_momentum_flow
from driftlab.flows.riemannian import (
    riemannian_adam_flow,
    riemannian_descent_flow,
    riemannian_gradient_flow,
    riemannian_shuffled_epoch_flow,
)
from driftlab.transforms.riemannian import riemannian_adam, riemannian_sgd
from tests.flows.problems import toy

RATES = jnp.array([0.02, 0.01, 0.005])
TIME = 0.6
BALL, SPHERE = manifolds.poincare_ball(), manifolds.sphere()
RANDOM = np.random.default_rng(2)
WEIGHTS = jnp.asarray(RANDOM.normal(size=(3, 4, 2)))
MIXED = {"ball": BALL, "sphere": SPHERE, "frame": manifolds.stiefel(retraction="polar")}


def smooth(x):
    """A loss of a few numbers that nothing makes simple, of any shape of up to 4 by 2 points."""
    a = WEIGHTS[..., : x.shape[0], 0] if x.ndim == 1 else WEIGHTS[:, : x.shape[0], : x.shape[1]]
    axes = tuple(range(1, a.ndim))
    inside = jnp.sum(a * x[None], axis=axes)
    return jnp.sum(jnp.sin(2 * inside)) + jnp.sum(inside**2) / 2


def hyperbolic(manifold, targets):
    """Squared distances to two points, which make the metric matter."""

    def loss(x):
        one, two = (manifold.distance(x, a) ** 2 for a in targets)
        return one / 4 + 3 * two / 4

    return loss


def mixed_loss(params):
    parts = [smooth(leaf) for leaf in params.values()]
    return sum(parts, params["flat"][0] * params["sphere"][1] * params["ball"][0])


class Case(NamedTuple):
    name: str
    manifolds: Any
    start: Any
    loss: Any
    method: str
    # Of the modified flow without the retraction's own term: 1 where that is not 0.
    without: int = 2


def drawn(manifold, *shape):
    return manifold.random(jax.random.key(5), shape, jnp.float64)


TARGETS = jnp.array([[-0.3, 0.5], [0.1, -0.6]])
CURVED = manifolds.hyperboloid()
LIFTED = manifolds.ball_to_hyperboloid(TARGETS)
START = jnp.array([0.5, 0.4])
TREE = {
    "ball": START,
    "flat": jnp.array([0.3, -0.2]),
    "frame": drawn(MIXED["frame"], 3, 2),
    "sphere": drawn(SPHERE, 3),
}

CASES = [
    Case("ball exp", BALL, START, hyperbolic(BALL, TARGETS), "exp"),
    Case("ball x + v", BALL, START, hyperbolic(BALL, TARGETS), "retraction", 1),
    Case(
        "hyperboloid exp",
        CURVED,
        manifolds.ball_to_hyperboloid(START),
        hyperbolic(CURVED, LIFTED),
        "exp",
    ),
    Case(
        "hyperboloid x_0 anew",
        CURVED,
        manifolds.ball_to_hyperboloid(START),
        hyperbolic(CURVED, LIFTED),
        "retraction",
        1,
    ),
    Case("sphere exp", SPHERE, drawn(SPHERE, 4), smooth, "exp"),
    Case("sphere normalize", SPHERE, drawn(SPHERE, 4), smooth, "retraction"),
    Case("mixed exp", MIXED, TREE, mixed_loss, "exp"),
    Case("mixed retraction", MIXED, TREE, mixed_loss, "retraction", 1),
]
for metric, retraction in itertools.product(("embedded", "canonical"), ("qf", "polar", "cayley")):
    frames = manifolds.stiefel(metric, retraction)
    second = (metric, retraction) in {("embedded", "polar"), ("canonical", "cayley")}
    CASES.append(
        Case(
            f"stiefel {metric} {retraction}",
            frames,
            drawn(frames, 4, 2),
            smooth,
            "retraction",
            2 if second else 1,
        )
    )
    if retraction == "qf":
        CASES.append(Case(f"stiefel {metric} exp", frames, drawn(frames, 4, 2), smooth, "exp"))


def iterates(tx, loss, start, count):
    def iterate(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, count, iterate, (start, tx.init(start)))[0]


def end(flow, start, time, steps=60):
    """Runge and Kutta's method: a tenth of diffrax's program, and 1e-9 from the solution."""
    dt = time / steps

    def stage(carry, weights):
        y, total, slope = carry
        node, weight = weights
        middle = jax.tree.map(lambda a, k: a + node * dt * k, y, slope)
        slope = flow.field(0.0, middle, None)
        total = jax.tree.map(lambda s, k: s + weight * dt * k, total, slope)
        return (y, total, slope), None

    def step(_, y):
        zero = jax.tree.map(jnp.zeros_like, y)
        weights = (jnp.array([0, 0.5, 0.5, 1]), jnp.array([1, 2, 2, 1]) / 6)
        return jax.lax.scan(stage, (y, y, zero), weights)[0][1]

    return flow.params(jax.lax.fori_loop(0, steps, step, flow.init(start)))


def distances(tx, builds, loss, start, rates=RATES, time=TIME):
    """One row a flow: the distance of its end from the optimiser's, at each learning rate."""

    def errors(h):
        reached = iterates(tx(h), loss, start, jnp.round(time / h).astype(int))
        ends = [end(build(h), start, time) for build in builds]
        return jnp.stack(
            [optax.tree.norm(jax.tree.map(jnp.subtract, one, reached)) for one in ends]
        )

    return np.asarray(jax.jit(lambda many: jax.lax.map(errors, many))(rates)).T


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_descent_is_followed_to_second_order(case):
    def modified(method):
        return lambda h: riemannian_descent_flow(case.loss, h, case.manifolds, method=method)

    builds = [
        lambda h: riemannian_gradient_flow(case.loss, case.manifolds),
        modified(case.method),
        modified("exp"),
    ]
    errors = distances(
        lambda h: riemannian_sgd(h, case.manifolds, method=case.method),
        builds if case.without == 1 else builds[:2],
        case.loss,
        case.start,
    )
    orders = [flows.observed_orders(RATES, row)[-1] for row in errors]
    np.testing.assert_allclose(orders[0], 1, atol=0.1)
    assert orders[1] > 1.95, orders
    np.testing.assert_allclose(orders[1], 2, atol=0.1)
    if case.without == 1:  # without the retraction's acceleration nothing is gained
        assert 0.5 < orders[2] < 1.3, orders
        assert (errors[1] < errors[2]).all()


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ("ball exp", "ball x + v", "stiefel embedded qf")],
    ids=lambda case: case.name,
)
def test_heavy_ball_is_followed_to_second_order(case):
    def modified(h):
        return riemannian_descent_flow(case.loss, h, case.manifolds, 0.5, case.method)

    def unshifted(h):
        flow = modified(h)
        return flow._replace(init=lambda params: params)

    rates = RATES / 4
    errors = distances(
        lambda h: riemannian_sgd(h, case.manifolds, momentum=0.5, method=case.method),
        [modified, unshifted],
        case.loss,
        case.start,
        rates,
        TIME / 2,
    )
    orders = [flows.observed_orders(rates, row)[-1] for row in errors]
    assert orders[0] > 1.95, orders
    np.testing.assert_allclose(orders[0], 2, atol=0.1)
    # The trace that starts at 0 costs an order: the flow has to start where it ends up.
    assert orders[1] < 1.1, orders
    assert errors[0][-1] < errors[1][-1]


@pytest.mark.parametrize("method", ["exp", "retraction"])
def test_the_mean_of_shuffled_epochs_is_followed_to_third_order(method):
    targets = jnp.array([[-0.3, 0.5], [0.1, -0.6], [0.6, 0.2]])
    orders = jnp.asarray(list(itertools.permutations(range(3))))
    rates = jnp.array([0.02, 0.01, 0.005]) / 2

    def loss(x, target):
        return (1 + target[0]) * BALL.distance(x, target) ** 2

    def whole(x):
        return jnp.mean(jax.vmap(lambda a: loss(x, a))(targets))

    def errors(h):
        tx = riemannian_sgd(h, BALL, method=method)

        def epoch(order):
            x = START
            for i in range(3):
                grad = jax.grad(loss)(x, targets[order[i]])
                x = optax.apply_updates(x, tx.update(grad, tx.init(x), x)[0])
            return x

        mean = jax.vmap(epoch)(orders).mean(0)
        shuffled = riemannian_shuffled_epoch_flow(loss, targets, h, BALL, method)
        full = riemannian_descent_flow(whole, h, BALL, method=method)
        ends = [flows.solve(flow.field, START, 3 * h, solver=diffrax.Dopri8(), steps=2).y
                for flow in (shuffled, full)]  # fmt: skip
        return jnp.stack([jnp.linalg.norm(one - mean) for one in ends])

    rows = np.asarray(jax.jit(lambda many: jax.lax.map(errors, many))(rates)).T
    found = [flows.observed_orders(rates, row)[-1] for row in rows]
    np.testing.assert_allclose(found[0], 3, atol=0.1)
    # The full batch's own term is not the sum over batches.
    np.testing.assert_allclose(found[1], 2, atol=0.1)


@pytest.mark.parametrize("method", ["exp", "retraction"])
def test_adam_is_followed_by_the_normalized_flow_to_first_order(method):
    start = jnp.array([[0.5, 0.4], [-0.2, 0.6]])

    def loss(x):
        return hyperbolic(BALL, TARGETS)(x[0]) + jnp.sum(BALL.distance(x[1], x[0]) ** 2)

    rates = jnp.array([1 / 1600, 1 / 3200, 1 / 6400])
    errors = distances(
        lambda h: riemannian_adam(h, BALL, 0.5, 0.9, method=method),
        [lambda h: riemannian_adam_flow(loss, BALL)],
        loss,
        start,
        rates,
        0.3,
    )
    np.testing.assert_allclose(flows.observed_orders(rates, errors[0])[-1], 1, atol=0.05)
    assert errors[0][-1] < 5e-4
    flow = riemannian_adam_flow(loss, BALL)
    np.testing.assert_allclose(BALL.norm(start, flow.field(0.0, start, None)), 1, rtol=1e-6)


def test_in_flat_space_they_are_the_flows_of_gradient_descent_and_heavy_ball():
    flat, x = manifolds.euclidean(), toy.initial_params
    found = riemannian_descent_flow(toy.loss, 0.1, flat).field(0.0, x, None)
    expected = gradient_descent_flow(toy.loss, 0.1, 2, route="closed_form")(0.0, x, None)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    ours = riemannian_descent_flow(toy.loss, 0.1, flat, 0.7)
    theirs = modified_momentum_flow(toy.loss, 0.1, 0.7)
    np.testing.assert_allclose(ours.field(0.0, x, None), theirs.field(0.0, x, None), rtol=1e-13)
    np.testing.assert_allclose(ours.init(x), theirs.init(x), rtol=1e-13)


def test_the_field_is_the_gradient_of_the_modified_loss():
    """By the reverse derivative of the formula itself."""
    loss, h = hyperbolic(BALL, TARGETS), 0.3

    def modified(x):
        g = BALL.gradient(x, jax.grad(loss)(x))
        return loss(x) + h / 4 * BALL.inner(x, g, g)

    # In the ball's coordinates x + v is forward Euler on the gradient field.
    def slope(x):
        return BALL.gradient(x, jax.grad(loss)(x))

    @jax.jit
    def both(x):
        g, bent = jax.jvp(slope, (x,), (slope(x),))
        fields = [riemannian_descent_flow(loss, h, BALL, method=method).field(0.0, x, None)
                  for method in ("exp", "retraction")]  # fmt: skip
        return fields, [-BALL.gradient(x, jax.grad(modified)(x)), -g - h / 2 * bent]

    found, expected = both(START)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_ball_and_hyperboloid_flow_alike():
    field = riemannian_descent_flow(hyperbolic(BALL, TARGETS), 0.2, BALL, method="exp").field
    lifted = riemannian_descent_flow(hyperbolic(CURVED, LIFTED), 0.2, CURVED, method="exp").field
    there = manifolds.ball_to_hyperboloid
    found = lifted(0.0, there(START), None)
    expected = jax.jvp(there, (START,), (field(0.0, START, None),))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_a_solver_s_error_does_not_leave_the_manifold():
    flow = riemannian_gradient_flow(smooth, SPHERE)
    x = drawn(SPHERE, 4)
    # The field is tangent at the nearest point, also from beside the manifold.
    assert abs(jnp.vdot(1.3 * x, flow.field(0.0, 1.3 * x, None))) < 1e-14
    coarse = flows.solve(flow.field, x, 2.0, solver=diffrax.Euler(), steps=10).y
    assert not SPHERE.contains(coarse)
    assert SPHERE.contains(flow.params(coarse))


def test_float32_lanes_and_objectives():
    inputs = jnp.asarray(RANDOM.normal(size=(6, 3)), jnp.float32)
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), TREE)

    def loss(params, batch):
        turned = jnp.tanh(batch @ params["frame"])
        return jnp.mean(turned**2) + jnp.sum(params["ball"] ** 2) + params["sphere"][0]

    objective = driftlab.Objective(loss, inputs)

    def slope(h, loss, batch_size=None):
        flow = riemannian_descent_flow(loss, h, MIXED, 0.5, batch_size=batch_size)
        return flow.field(0.0, flow.init(tree), None)

    @jax.jit
    def slopes(rates):
        lanes = jax.vmap(lambda h: slope(h, objective, 2))(rates)
        return lanes, slope(rates[1], lambda params: loss(params, inputs))

    lanes, whole = slopes(jnp.array([0.1, 0.2]))
    chex.assert_trees_all_equal_dtypes(lanes, tree)
    one = jax.tree.map(lambda leaf: leaf[1], lanes)
    chex.assert_trees_all_close(one, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: riemannian_descent_flow(smooth, -0.1, BALL), "learning_rate=-0.1 must be"),
        (lambda: riemannian_descent_flow(smooth, 0.1, BALL, 1.0), "momentum=1.0 must be"),
        (lambda: riemannian_descent_flow(smooth, 0.1, BALL, method="log"), "method='log' must"),
        (lambda: riemannian_adam_flow(smooth, BALL, eps=0.0), "eps=0.0 must be positive"),
        (lambda: riemannian_shuffled_epoch_flow(smooth, (), 0.1, BALL), "hold no batch"),
        (lambda: riemannian_gradient_flow(smooth, BALL).init(jnp.array([0.9, 0.9])),
         "1 of 1 points are not on poincare_ball"),
        (lambda: riemannian_gradient_flow(smooth, {"w": BALL}).init({"x": START}),
         "'w', which is not there"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
