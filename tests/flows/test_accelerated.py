"""Flows of accelerated methods, against their iterates, closed forms and Lyapunov functions."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from driftlab.flows import observed_orders, solve
from driftlab.flows.accelerated import (
    accelerated_momentum,
    bregman_flow,
    high_resolution_convex_flow,
    high_resolution_heavy_ball_flow,
    high_resolution_nesterov_flow,
    su_boyd_candes_flow,
)

CONVEXITY = 1.0
ROOTS = np.array([0.05, 0.025, 0.0125, 0.00625])
TIME = 3.0
START = np.array([1.0, 0.7])


def loss(x):
    """Strongly convex with mu = 1, not quadratic."""
    bowl = (x[0] ** 2 + 3 * x[1] ** 2) / 2
    return bowl + 0.3 * jax.nn.logsumexp(jnp.stack([x[0] - 2 * x[1], 2 * x[1] - x[0]]))


def flat_bottom(x):
    """Convex, not strongly: the rate of a flow shows."""
    return jnp.sum(x**4) / 4 + jax.nn.logsumexp(jnp.stack([x[0] - x[1], x[1] - x[0]])) - jnp.log(2)


def end(model, time=TIME, start=START, **options):
    options = {"rtol": 1e-10, "atol": 1e-12} | options
    solved = solve(model.field, model.init(jnp.asarray(start)), time, **options)
    return jax.tree.map(lambda leaf: jnp.where(solved.failed, jnp.nan, leaf), solved.y)


def fixed_momentum(s, steps, nesterov):
    tx = optax.sgd(s, accelerated_momentum(s, CONVEXITY), nesterov)

    def body(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return params + updates, state

    start = jnp.asarray(START)
    return jax.lax.fori_loop(0, steps, body, (start, tx.init(start)))[0]


def growing_momentum(s, steps):
    def body(k, carry):
        x, y = carry
        ahead = y - s * jax.grad(loss)(y)
        return ahead, ahead + k / (k + 3) * (ahead - x)

    start = jnp.asarray(START)
    return jax.lax.fori_loop(0, steps, body, (start, start))


@cache
def errors():
    def one(root_and_steps):
        root, steps = root_and_steps
        s = root**2
        x, y = growing_momentum(s, steps)
        nesterov, ball = (fixed_momentum(s, steps, flag) for flag in (True, False))
        ends = {
            "convex x": (high_resolution_convex_flow(loss, s), x),
            "convex y": (high_resolution_convex_flow(loss, s), y),
            "low x": (su_boyd_candes_flow(loss), x),
        }
        for start in ("matched", "published"):
            model = high_resolution_nesterov_flow(loss, s, CONVEXITY, start)
            ends[f"nesterov {start}"] = (model, nesterov)
            model = high_resolution_heavy_ball_flow(loss, s, CONVEXITY, start)
            ends[f"heavy ball {start}"] = (model, ball)
        return {
            name: jnp.linalg.norm(model.params(end(model)) - point)
            for name, (model, point) in ends.items()
        }

    counts = np.rint(TIME / ROOTS).astype(int)
    pairs = (jnp.asarray(ROOTS), jnp.asarray(counts))
    return jax.tree.map(np.asarray, jax.jit(lambda: jax.lax.map(one, pairs))())


class TestHighResolution:
    @pytest.mark.parametrize("name", ["nesterov published", "heavy ball published", "convex x"])
    def test_as_published_the_order_in_the_root_is_one(self, name):
        found = observed_orders(ROOTS, errors()[name])
        np.testing.assert_allclose(found[-1], 1, atol=0.1)

    def test_so_is_that_of_the_low_resolution_equation_with_a_larger_constant(self):
        np.testing.assert_allclose(observed_orders(ROOTS, errors()["low x"])[-1], 1, atol=0.05)
        assert (errors()["low x"] > 1.3 * errors()["convex x"]).all()

    @pytest.mark.parametrize("name", ["nesterov matched", "heavy ball matched", "convex y"])
    def test_matched_it_is_two(self, name):
        """The published start, or point, is half a step off: that is all that costs the order."""
        found = observed_orders(ROOTS, errors()[name])
        np.testing.assert_allclose(found[-1], 2, atol=0.06)

    def test_momentum_tends_to_one(self):
        np.testing.assert_allclose(accelerated_momentum(0.01, 1.0), 0.9 / 1.1)


class TestBregman:
    def test_of_order_two_is_su_boyd_and_candes(self):
        general, special = bregman_flow(loss, 2.0, 0.25), su_boyd_candes_flow(loss)
        x, speed, gradient = jnp.asarray(START), jnp.array([0.3, -0.2]), jax.grad(loss)(START)
        for t in (0.1, 2.0):
            velocity, rate = general.field(t, (x, speed), None)
            expected = special.field(t, (x, velocity), None)
            np.testing.assert_allclose(velocity, expected[0], rtol=1e-14)
            np.testing.assert_allclose(speed + t * rate, expected[1], rtol=1e-14)
        _, speed = general.init(START)
        at_rest = special.field(0.0, special.init(START), None)
        np.testing.assert_allclose(speed, at_rest[1], rtol=1e-14)
        np.testing.assert_allclose(speed, -gradient / 4, rtol=1e-14)
        np.testing.assert_allclose(end(general)[0], end(special)[0], rtol=1e-8)

    def test_on_a_quadratic_is_the_bessel_function(self):
        """X'' + (3 / t) X' + X = 0 has the solution 2 J_1(t) / t."""
        quadratic = su_boyd_candes_flow(lambda x: jnp.sum(x**2) / 2)
        for t in (0.5, 3.0, 10.0):
            x, _ = end(quadratic, t, np.array([1.0]))
            np.testing.assert_allclose(x, 2 * scipy.special.j1(t) / t, rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize("order", [2, 3, 4])
    def test_loss_falls_as_time_to_the_minus_order(self, order):
        constant, size = 0.25, np.sum(START**2) / 2
        model = bregman_flow(flat_bottom, order, constant)

        def lyapunov(y, t):
            x, speed = y
            value = flat_bottom(x)
            ahead = x + t**order / order * speed
            return jnp.sum(ahead**2) / 2 + constant * t**order * value, value

        times = jnp.array([0.5, 1.0, 2.0, 4.0, 8.0])
        energies, values = jax.jit(
            lambda: jax.lax.map(lambda t: lyapunov(end(model, t), t), times)
        )()
        # It never grows from D_w(x*, X_0), the bound of the loss is that.
        assert (np.diff(np.concatenate([[size], energies])) <= 1e-8).all()
        assert (values <= size / (constant * times**order)).all()

    def test_another_metric_is_another_flow(self):
        """w = sum d x^2 / 2: the Euclidean flow in the coordinates sqrt(d) x."""
        d = jnp.array([4.0, 0.5])
        metric = bregman_flow(loss, 3.0, 0.2, metric_solve=lambda point, vector: vector / d)
        scaled = bregman_flow(lambda z: loss(z / jnp.sqrt(d)), 3.0, 0.2)
        x, _ = end(metric)
        z, _ = end(scaled, start=START * np.sqrt(d))
        np.testing.assert_allclose(x, z / jnp.sqrt(d), rtol=1e-7)

    def test_one_curve_for_all_orders(self):
        """X_p(t) = X_2(t^{p/2}) with C_p = C_2: time-dilated, both start at rest."""
        fast, slow = bregman_flow(loss, 4.0, 0.25), bregman_flow(loss, 2.0, 0.25)
        np.testing.assert_allclose(end(fast, 1.5)[0], end(slow, 1.5**2)[0], rtol=1e-7)

    def test_single_precision_stays(self):
        start = jnp.asarray(START, jnp.float32)
        models = [
            su_boyd_candes_flow(loss),
            bregman_flow(loss, 3.0),
            high_resolution_convex_flow(loss, 0.01),
            high_resolution_nesterov_flow(loss, 0.01, 1.0),
        ]
        for model in models:
            y = model.init(start)
            slope = model.field(jnp.float32(0.0), y, None)
            assert {leaf.dtype for leaf in jax.tree.leaves((y, slope))} == {jnp.dtype(jnp.float32)}
            assert all(jnp.isfinite(leaf).all() for leaf in slope)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: su_boyd_candes_flow(loss, 0.0), r"friction=0.0 must be positive"),
        (lambda: bregman_flow(loss, 1.0), r"order=1.0 must be greater than 1"),
        (lambda: bregman_flow(loss, 2.0, -1.0), r"constant=-1.0"),
        (lambda: high_resolution_convex_flow(loss, -1.0), r"learning_rate=-1.0"),
        (lambda: high_resolution_nesterov_flow(loss, 0.1, 0.0), r"strong_convexity=0.0"),
        (lambda: high_resolution_heavy_ball_flow(loss, 0.1, 1.0, "rest"), r"'matched' or 'publ"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
