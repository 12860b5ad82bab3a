"""Eliminated memory: the fields that papers derived by hand, orders of convergence, the start."""

import warnings

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows import observed_orders
from driftlab.flows.modified import modified_flow
from driftlab.flows.optimizer_memory import take_apart
from tests.flows.chains import RATES, START, errors, loss

RATE = 0.01
flat, unravel = jax.flatten_util.ravel_pytree(START)


def flat_loss(x):
    return loss(unravel(x))


GRADIENT, HESSIAN = jax.grad(flat_loss)(flat), jax.hessian(flat_loss)(flat)


def momentum_by_hand(momentum, nesterov):
    """momentum_flows.md, 1.1, third result: the modified ODE, in iteration time."""
    gain = 1 / (1 - momentum)
    inertia = (1 - momentum + 2 * momentum**2) / 2 if nesterov else (1 + momentum) / 2
    first = -RATE * gain * GRADIENT
    return first, -(RATE**2) * gain**3 * inertia * HESSIAN @ GRADIENT


def adam_by_hand(b, r, eps, inside):
    """momentum_flows.md, 2 (Cattaneo, Klusowski & Shigida 2024), bias correction over."""
    g = GRADIENT
    if inside:
        root = jnp.sqrt(g**2 + eps)
        norm = HESSIAN @ (g / root)
        lag = (1 + b) / (1 - b) - (1 + r) / (1 - r) + (1 + r) / (1 - r) * eps / root**2
        return -RATE * g / root, -(RATE**2) / (2 * root) * norm * lag
    root = abs(g) + eps
    norm = HESSIAN @ (g / root)
    lag = b / (1 - b) / root - r / (1 - r) * abs(g) / root**2
    return -RATE * g / root, -(RATE**2) * norm * lag - RATE**2 / 2 * norm * eps / root**2


HAND = {
    "sgd": (optax.sgd(RATE), (-RATE * GRADIENT, -(RATE**2) / 2 * HESSIAN @ GRADIENT)),
    **{
        f"{name} {b}": (optax.sgd(RATE, momentum=b, nesterov=name == "nesterov"),
                        momentum_by_hand(b, name == "nesterov"))
        for name in ("heavy ball", "nesterov") for b in (0.5, 0.9, 0.99)
    },
    "adam, eps inside": (optax.adam(RATE, eps=0.0, eps_root=1e-2),
                         adam_by_hand(0.9, 0.999, 1e-2, True)),
    "adam, eps outside": (optax.adam(RATE, eps=1e-2), adam_by_hand(0.9, 0.999, 1e-2, False)),
    "rmsprop, eps inside": (optax.rmsprop(RATE, eps=1e-2), adam_by_hand(0, 0.9, 1e-2, True)),
    "rmsprop, eps outside": (optax.rmsprop(RATE, eps=1e-2, eps_in_sqrt=False),
                             adam_by_hand(0, 0.9, 1e-2, False)),
    # The pitfall: built as adam with b1 = 0 it has the decays 0 and b2.
    "rmsprop as adam": (optax.adam(RATE, b1=0.0, b2=0.9, eps=1e-2),
                        adam_by_hand(0, 0.9, 1e-2, False)),
}  # fmt: skip


def relative(found, expected):
    return jnp.max(abs(found - expected)) / jnp.max(abs(expected))


@pytest.mark.parametrize("name", HAND)
def test_it_is_the_field_derived_by_hand(name):
    tx, (first, second) = HAND[name]
    one, two = (modified_flow(tx, flat_loss, flat, order, "eliminate") for order in (1, 2))
    leading, both = jax.jit(lambda x: (one.field(7.0, x, None), two.field(7.0, x, None)))(flat)
    assert relative(leading, first) < 1e-12
    # The difference of the two orders would lose the digits that it is asked for.
    assert jnp.max(abs(both - (first + second)) / abs(first + second)) < 1e-12
    assert relative(both - leading, second) < 1e-11


def test_it_costs_one_gradient_and_one_hessian_product():
    def flops(order):
        flow = modified_flow(optax.adam(RATE, eps=1e-2), big_loss, weights, order, "eliminate")
        compiled = jax.jit(lambda w: flow.field(0.0, w, None)).lower(weights).compile()
        return compiled.cost_analysis()["flops"]

    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(256, 32)))
    weights = {"in": jnp.asarray(random.normal(size=(32, 48)) / 6),
               "out": jnp.asarray(random.normal(size=(48, 8)) / 7)}  # fmt: skip

    def big_loss(w):
        return jnp.mean(jnp.square(jnp.tanh(rows @ w["in"]) @ w["out"]))

    def gradient_and_product(w):
        grads, product = jax.linearize(jax.grad(big_loss), w)
        return grads, product(grads)

    def cost(function):
        return jax.jit(function).lower(weights).compile().cost_analysis()["flops"]

    # What is elementwise on 1920 weights is a twentieth of the loss on 256 rows here.
    assert flops(1) < 1.1 * cost(jax.grad(big_loss))
    assert flops(2) < 1.1 * cost(gradient_and_product)


def adam(h):
    return optax.adam(h, b1=0.8, b2=0.9, eps=0.0, eps_root=0.1)


CHAINS = {
    "heavy ball": lambda h: optax.sgd(h, momentum=0.8),
    "adam, then an average": lambda h: optax.chain(
        optax.scale_by_adam(0.8, 0.9, eps=0.0, eps_root=0.1), optax.ema(0.7), optax.scale(-h)
    ),
    "rmsprop from empty memory": lambda h: optax.rmsprop(h, decay=0.9, eps=0.1),
    "defective: trace into trace": lambda h: optax.chain(
        optax.trace(0.5), optax.trace(0.7), optax.scale(-h)
    ),
}
# Its length is traced with h, which optax's own cosine refuses.
CHAINS["clip, adamw, cosine"] = lambda h: optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.scale_by_adam(0.8, 0.9, eps=0.0, eps_root=0.1),
    optax.add_decayed_weights(0.1),
    optax.scale_by_schedule(lambda count: -h * (1 + jnp.cos(jnp.pi * count * h / 2)) / 2),
)


@pytest.mark.filterwarnings("ignore:the flow starts at step")
@pytest.mark.parametrize("name", CHAINS)
def test_order_2_has_order_2(name):
    found = errors(CHAINS[name], 2, "eliminate")
    orders = observed_orders(RATES, found.errors)
    # momentum_flows.md, 4.2: +-0.25 on the last two.
    np.testing.assert_allclose(orders[-2:], 2, atol=0.25)
    assert found.moved.min() > 0.4


def test_without_the_shadow_start_an_order_is_lost():
    found = errors(CHAINS["heavy ball"], 2, "eliminate", shadow_start=False)
    orders = observed_orders(RATES, found.errors)
    assert orders[-1] < 1.1
    with_it = errors(CHAINS["heavy ball"], 2, "eliminate")
    assert with_it.errors[-1] < found.errors[-1] / 3


def test_order_1_has_order_1():
    orders = observed_orders(RATES, errors(CHAINS["heavy ball"], 1, "eliminate").errors)
    np.testing.assert_allclose(orders[-2:], 1, atol=0.1)


@pytest.mark.parametrize(("nesterov", "shift"), [(False, 0.8 / 0.04), (True, 0.64 / 0.04)])
def test_the_shadow_start_is_that_of_the_reference(nesterov, shift):
    # momentum_flows.md, 1.2: theta_0 + h s g, s = b / (1 - b)^2 or b^2 / (1 - b)^2.
    tx = optax.sgd(RATE, momentum=0.8, nesterov=nesterov)
    flow = modified_flow(tx, flat_loss, flat, 1, "eliminate")
    np.testing.assert_allclose(flow.init(flat) - flat, RATE * shift * GRADIENT, rtol=1e-12)
    # And the lag, with Psi1 = h (1 - b)^{-3} H g.
    with_lag = modified_flow(tx, flat_loss, flat, 2, "eliminate").init(flat)
    lag = RATE**2 * shift / 0.04 * HESSIAN @ GRADIENT
    np.testing.assert_allclose(with_lag - flat, RATE * shift * GRADIENT + lag, rtol=1e-11)


def test_memory_on_its_slow_manifold_is_shifted_by_the_third_order_only():
    def shift(rate):
        tx = optax.sgd(rate, momentum=0.8)

        def step(_, carry):
            x, state = carry
            updates, state = tx.update(jax.grad(flat_loss)(x), state)
            return x + updates, state

        count = jnp.round(0.3 / rate).astype(int)
        x, state = jax.lax.fori_loop(0, count, step, (flat, tx.init(flat)))
        flow = modified_flow(tx, flat_loss, flat, 2, "eliminate")
        return jnp.max(abs(flow.init(x, state) - x)), jnp.max(abs(flow.init(flat) - flat))

    rates = jnp.array([0.001, 0.0005])
    settled, empty = jax.jit(jax.vmap(shift))(rates)
    assert observed_orders(rates, settled)[0] > 2.6
    np.testing.assert_allclose(observed_orders(rates, empty), 1, atol=0.1)


def test_adam_is_not_shifted_by_its_bias_correction():
    flow = modified_flow(adam(RATE), flat_loss, flat, 1, "eliminate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(flow.init(flat), flat, rtol=1e-13)


def test_coupled_memory_is_solved_for_by_krylov():
    # Three decays mixed by a rotation: nothing elementwise inverts I - A.
    basis = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).normal(size=(5, 5))))[0]
    matrix = basis @ jnp.diag(jnp.array([0.9, 0.5, 0.5, 0.2, 0.9])) @ basis.T

    def update(grads, memory, params=None):
        memory = matrix @ memory + grads
        return -RATE * memory, memory

    tx = optax.GradientTransformation(jnp.zeros_like, update)
    assert take_apart(tx, flat, flat_loss).coupled
    found = jax.jit(modified_flow(tx, flat_loss, flat, 2, "eliminate").field)(0.0, flat, None)
    inverse = jnp.linalg.inv(jnp.eye(5) - matrix)
    first = -RATE * inverse @ GRADIENT
    drift = inverse @ HESSIAN @ first
    second = RATE * matrix @ inverse @ drift + RATE / 2 * (HESSIAN @ first + matrix @ drift)
    np.testing.assert_allclose(found, first + second, rtol=1e-10)


def test_a_parameter_that_the_loss_does_not_see_stands_still():
    params = {"seen": jnp.array([0.4]), "dead": jnp.zeros(2)}
    flow = modified_flow(
        optax.adam(RATE), lambda p: jnp.sum(p["seen"] ** 4), params, 2, "eliminate"
    )
    slope = jax.jit(flow.field)(0.0, params, None)
    np.testing.assert_array_equal(slope["dead"], 0)
    assert jnp.isfinite(slope["seen"]).all()
