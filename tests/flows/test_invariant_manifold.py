"""The invariant manifold, against the iterates and against the exact one of a quadratic."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows import observed_orders
from driftlab.flows.invariant_manifold import (
    attraction_rate,
    distance_to_manifold,
    manifold_velocity,
    mode_multipliers,
)
from driftlab.flows.momentum import modified_momentum_loss
from driftlab.flows.momentum_notation import stability_threshold, unified_points

MOMENTUM = 0.8
NESTEROV = pytest.mark.parametrize("nesterov", [False, True], ids=["heavy_ball", "nesterov"])
START = {"a": np.array([1.0, -0.7, 0.9]), "b": np.array([-0.8, 0.6])}
CURVATURES = np.array([0.3, 1.0, 2.0])


def loss(params):
    """Five parameters, no symmetry, all derivatives."""
    a, b = params["a"], params["b"]
    bowl = jnp.sum(jnp.array([1.0, 2.5, 0.6]) * (a - 0.2) ** 2) / 2 + jnp.sum(b**2) / 2
    waves = 0.3 * jnp.sin(a[0] * b[0] + a[1]) + 0.3 * jnp.cos(b[0] - 2 * b[1])
    return bowl + waves + 0.1 * jnp.sum(a**4) + 0.2 * a[2] ** 2 * b[1] ** 2


def quadratic(params):
    return jnp.sum(jnp.asarray(CURVATURES) * params**2) / 2


@cache
def distances(nesterov, order):
    """At every iteration up to slow time 0.48, for each learning rate: (steps + 1,) each."""

    def run(h, steps):
        tx = optax.sgd(h, MOMENTUM, nesterov)
        distance = distance_to_manifold(loss, h, MOMENTUM, nesterov, order)

        def body(carry, _):
            params, state = carry
            updates, after = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), after), distance(params, state[0].trace)

        start = jax.tree.map(jnp.asarray, START)
        return jax.lax.scan(body, (start, tx.init(start)), None, length=steps + 1)[1]

    # The longest for all: one program.
    longest = jax.jit(jax.vmap(lambda h: run(h, round(0.48 / RATES[-1]))))(jnp.asarray(RATES))
    return [np.asarray(row[: round(0.48 / h) + 1]) for h, row in zip(RATES, longest, strict=True)]


RATES = np.array([0.004, 0.002, 0.001, 0.0005])


class TestDistance:
    @NESTEROV
    @pytest.mark.parametrize("order", [1, 2])
    def test_plateau_has_the_order_of_the_formula(self, nesterov, order):
        ends = [row[-1] for row in distances(nesterov, order)]
        np.testing.assert_allclose(observed_orders(RATES, ends), order, atol=0.05)

    @NESTEROV
    def test_falls_by_the_momentum_an_iteration(self, nesterov):
        # While it is far above the plateau of the formula, which is about 0.8^30 of the start.
        first = distances(nesterov, 2)[-1][:12]
        np.testing.assert_allclose(first[1:] / first[:-1], MOMENTUM, rtol=0.02)

    def test_attraction_rate_is_that_per_time(self):
        np.testing.assert_allclose(np.exp(-attraction_rate(0.01, 0.8) * 0.01), 0.8, rtol=1e-14)
        assert attraction_rate(0.01, 0.0) == np.inf


class TestVelocity:
    @NESTEROV
    def test_is_the_gradient_of_the_modified_loss(self, nesterov):
        start = jax.tree.map(jnp.asarray, START)
        velocity = manifold_velocity(loss, 0.1, 0.9, nesterov)(start)
        expected = jax.grad(modified_momentum_loss(loss, 0.1, 0.9, nesterov, of="velocity"))(start)
        for name in START:
            np.testing.assert_allclose(velocity[name], -10 * expected[name], rtol=1e-12)

    @NESTEROV
    def test_approaches_the_exact_manifold_of_a_quadratic(self, nesterov):
        """The slow mode: `u_{n-1} = u_n / r`, so `v_n = (1 - 1 / r) u_n / h`."""
        params = jnp.ones(3)
        for order in (1, 2):
            errors = []
            for h in RATES:
                slow = mode_multipliers(h, MOMENTUM, CURVATURES, nesterov).slow
                np.testing.assert_array_equal(slow.imag, 0)
                exact = (1 - 1 / slow.real) / h
                found = manifold_velocity(quadratic, h, MOMENTUM, nesterov, order)(params)
                errors.append(np.linalg.norm(found - exact))
            np.testing.assert_allclose(observed_orders(RATES, errors)[-1], order, atol=0.1)


class TestMultipliers:
    @NESTEROV
    @pytest.mark.parametrize("h", [0.001, 0.1, 1.0])
    def test_are_the_eigenvalues_of_an_iteration_of_optax(self, nesterov, h):
        tx = optax.sgd(h, MOMENTUM, nesterov)
        found = mode_multipliers(h, MOMENTUM, CURVATURES, nesterov)
        for i, curvature in enumerate(CURVATURES):
            matrix = np.zeros((2, 2))
            for column in range(2):
                params, trace = jnp.eye(2)[column]
                state = tx.init(params)
                updates, state = tx.update(
                    curvature * params, (state[0]._replace(trace=trace), *state[1:])
                )
                matrix[:, column] = params + updates, state[0].trace
            expected = np.sort_complex(np.linalg.eigvals(matrix))
            both = np.sort_complex(np.array([found.slow[i], found.fast[i]]))
            np.testing.assert_allclose(both, expected, atol=1e-7)

    @NESTEROV
    def test_one_is_minus_one_at_the_stability_threshold(self, nesterov):
        top = stability_threshold(0.1, MOMENTUM, nesterov)
        np.testing.assert_allclose(mode_multipliers(0.1, MOMENTUM, top, nesterov).fast, -1)

    def test_no_manifold_beyond_the_curvature_where_they_meet(self):
        meet = (1 - MOMENTUM**0.5) ** 2
        inside = mode_multipliers(1.0, MOMENTUM, 0.99 * meet)
        outside = mode_multipliers(1.0, MOMENTUM, 1.01 * meet)
        assert inside.slow.imag == 0
        assert outside.slow.imag != 0
        np.testing.assert_allclose(abs(outside.slow), MOMENTUM**0.5)


def test_unified_points_are_those_of_the_scheme():
    """The backward difference of the recovered points is the recovered velocity."""
    h, tx = 0.05, optax.sgd(0.05, MOMENTUM, nesterov=True)
    params = jnp.array([1.0, -2.0, 0.5])
    state, before = tx.init(params), None
    for _ in range(5):
        points, velocity = unified_points(params, state[0].trace, h, MOMENTUM, True)
        if before is not None:
            np.testing.assert_allclose(velocity, (points - before) / h, atol=1e-13)
        before = points
        updates, state = tx.update(jax.grad(quadratic)(params), state)
        params = params + updates


def test_single_precision_stays():
    params = jnp.ones(3, jnp.float32)
    single = lambda p: jnp.sum(p**4) / 4  # noqa: E731
    distance = distance_to_manifold(single, 0.1, 0.9, nesterov=True)
    assert jax.jit(distance)(params, params).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: manifold_velocity(loss, 0.0, 0.9), r"learning_rate=0.0 must be positive"),
        (lambda: manifold_velocity(loss, 0.1, 1.5), r"momentum=1.5"),
        (lambda: distance_to_manifold(loss, 0.1, 0.9, order=3), r"order=3 must be 1 or 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
