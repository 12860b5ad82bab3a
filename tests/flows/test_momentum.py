"""Momentum's notations, constants and flows, against the iterates of `optax.sgd`."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Objective
from driftlab.flows import observed_orders, solve
from driftlab.flows.momentum import (
    inertial_flow,
    modified_momentum_flow,
    modified_momentum_loss,
    rescaled_gradient_flow,
    transient_momentum_flow,
)
from driftlab.flows.momentum_notation import (
    correction_limit,
    inertia,
    initial_shift,
    modified_loss_coefficient,
    momentum_notations,
    stability_threshold,
    unified_points,
)
from driftlab.flows.vector_field import Flow

MOMENTUM = 0.8
NESTEROV = pytest.mark.parametrize("nesterov", [False, True], ids=["heavy_ball", "nesterov"])
START = {"a": np.array([1.0, -0.7, 0.9]), "b": np.array([-0.8, 0.6])}


def loss(params):
    """Five parameters, no symmetry, all derivatives; Hessian's eigenvalues 1.2 to 3.5 at START."""
    a, b = params["a"], params["b"]
    bowl = jnp.sum(jnp.array([1.0, 2.5, 0.6], a.dtype) * (a - 0.2) ** 2) / 2 + jnp.sum(b**2) / 2
    waves = 0.3 * jnp.sin(a[0] * b[0] + a[1]) + 0.3 * jnp.cos(b[0] - 2 * b[1])
    return bowl + waves + 0.1 * jnp.sum(a**4) + 0.2 * a[2] ** 2 * b[1] ** 2


def start(dtype=float):
    return {name: jnp.asarray(value, dtype) for name, value in START.items()}


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def descend(tx, steps):
    """Parameters and optax state after so many steps, which may be traced."""

    def body(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, body, (start(), tx.init(start())))


LEARNING_RATES = np.array([0.002, 0.001, 0.0005, 0.00025])
HORIZON = 0.4


def models(h, nesterov, momentum=MOMENTUM):
    plain = Flow(lambda t, y, args: y, lambda params: params, lambda y: y)
    return {
        "rescaled": plain._replace(field=rescaled_gradient_flow(loss, momentum)),
        "zero": inertial_flow(loss, h, momentum, nesterov, "zero"),
        "slow": inertial_flow(loss, h, momentum, nesterov, "slow"),
        "matched": inertial_flow(loss, h, momentum, nesterov),
        "shadow": modified_momentum_flow(loss, h, momentum, nesterov),
        "no shadow": modified_momentum_flow(loss, h, momentum, nesterov, shadow_start=False),
        "transient": plain._replace(field=transient_momentum_flow(loss, h, momentum, nesterov)),
    }


@cache
def errors(nesterov):
    """Distance of every model from the parameters of optax, and from Kovachki & Stuart's points."""

    def one(h_and_steps):
        h, steps = h_and_steps
        params, state = descend(optax.sgd(h, MOMENTUM, nesterov), steps)
        points, _ = unified_points(params, state[0].trace, h, MOMENTUM, nesterov)
        found, known = {}, models(h, nesterov)

        def field(t, y, args):
            return {name: model.field(t, y[name], args) for name, model in known.items()}

        # One solve for all: each of its own would have to be compiled.
        begin = {name: model.init(start()) for name, model in known.items()}
        ends = solve(field, begin, HORIZON, rtol=1e-11, atol=1e-13).y
        for name, model in known.items():
            end = flat(model.params(ends[name]))
            found[name] = jnp.linalg.norm(end - flat(params))
            found[name + ", points"] = jnp.linalg.norm(end - flat(points))
        return found

    counts = np.rint(HORIZON / LEARNING_RATES).astype(int)
    pairs = (jnp.asarray(LEARNING_RATES), jnp.asarray(counts))
    return jax.tree.map(np.asarray, jax.jit(lambda: jax.lax.map(one, pairs))())


def orders(nesterov, name):
    return observed_orders(LEARNING_RATES, errors(nesterov)[name])


class TestOrders:
    @NESTEROV
    def test_rescaled_gradient_flow_has_order_one(self, nesterov):
        np.testing.assert_allclose(orders(nesterov, "rescaled")[1:], 1, atol=0.05)

    @NESTEROV
    def test_inertial_flow_from_the_matched_velocity_has_order_two(self, nesterov):
        np.testing.assert_allclose(orders(nesterov, "matched")[-1], 2, atol=0.05)

    @NESTEROV
    @pytest.mark.parametrize("velocity", ["zero", "slow"])
    def test_inertial_flow_from_another_velocity_has_order_one(self, nesterov, velocity):
        # From above or below: the part of order two has the sign it has.
        np.testing.assert_allclose(orders(nesterov, velocity)[-1], 1, atol=0.1)
        assert errors(nesterov)[velocity][-1] > 20 * errors(nesterov)["matched"][-1]

    @NESTEROV
    def test_modified_flow_has_order_two_and_one_without_the_shift_of_its_start(self, nesterov):
        np.testing.assert_allclose(orders(nesterov, "shadow")[1:], 2, atol=0.1)
        np.testing.assert_allclose(orders(nesterov, "no shadow")[-1], 1, atol=0.25)
        assert errors(nesterov)["no shadow"][-1] > 5 * errors(nesterov)["shadow"][-1]

    @NESTEROV
    def test_transient_flow_has_order_two_from_the_start_itself(self, nesterov):
        found = orders(nesterov, "transient")
        # The first iterations, whose coefficients are smoothed, are of the next order.
        np.testing.assert_allclose(found[-1], 2, atol=0.1)
        assert (np.diff(found) > 0).all()

    def test_nesterov_s_other_points_need_another_start(self):
        """Matched for optax's parameters, which are h m v from the points of the paper."""
        np.testing.assert_allclose(orders(True, "matched, points")[-1], 1, atol=0.1)


class TestConstants:
    @pytest.mark.parametrize(
        ("momentum", "heavy_ball", "nesterov"), [(0.5, 2, 1), (0.9, 90, 81), (0.99, 9900, 9801)]
    )
    def test_memory_of_a_constant_force_gives_the_row_of_the_step(
        self, momentum, heavy_ball, nesterov
    ):
        """Cattaneo & Shigida's sum over past steps, done term by term."""
        k = np.arange(1, 6000)
        lag = np.sum(momentum**k * k) / (1 - momentum)
        # k steps back is k b away; heavy ball weighs that with m^k, Nesterov with m^{k+1}.
        for is_nesterov, expected, total in (
            (False, heavy_ball, lag),
            (True, nesterov, momentum * lag),
        ):
            # In units of h^2 b H grad L, so one factor b of the displacement is left out.
            found = modified_loss_coefficient(momentum, is_nesterov, "step")
            np.testing.assert_allclose(found, expected, rtol=1e-12)
            np.testing.assert_allclose(total / (1 / (1 - momentum)), expected, rtol=1e-9)

    @NESTEROV
    def test_the_ode_s_coefficient_is_the_mean_of_the_others(self, nesterov):
        m = np.array([0.0, 0.3, 0.9, 0.99])
        flow_, step, velocity = (
            modified_loss_coefficient(m, nesterov, of) for of in ("flow", "step", "velocity")
        )
        np.testing.assert_allclose(flow_, (step + velocity) / 2, rtol=1e-13)
        np.testing.assert_allclose(flow_[0], 0.5)  # of gradient descent: h / 4 |grad L|^2
        gain = 1 / (1 - m)
        expected = (1 - m + 2 * m**2) / 2 if nesterov else (1 + m) / 2
        np.testing.assert_allclose(inertia(m, nesterov), expected, rtol=1e-14)
        if not nesterov:
            # Ghosh et al.: (h_eff / 4) (1 + m) / (1 - m), h_eff = h b.
            np.testing.assert_allclose(flow_ / 2, gain / 4 * (1 + m) / (1 - m), rtol=1e-13)

    @NESTEROV
    def test_initial_shift_is_what_the_first_iterations_lack(self, nesterov):
        tx, params = optax.sgd(1.0, 0.9, nesterov), jnp.zeros(())
        state = tx.init(params)
        for _ in range(400):  # 0.9^400 is below rounding
            updates, state = tx.update(jnp.ones(()), state)
            params = params + updates
        np.testing.assert_allclose(
            params + 400 / (1 - 0.9), initial_shift(0.9, nesterov), rtol=1e-10
        )

    @NESTEROV
    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    def test_stability_threshold_separates_convergence_from_divergence(self, nesterov, momentum):
        for factor, grows in ((0.99, False), (1.01, True)):
            curvature = factor * stability_threshold(0.1, momentum, nesterov)
            matrix = np.zeros((2, 2))
            tx = optax.sgd(0.1, momentum, nesterov)
            for column in range(2):
                params, trace = jnp.eye(2)[column]
                state = tx.init(params)
                state = (state[0]._replace(trace=trace), *state[1:])
                updates, state = tx.update(curvature * params, state)
                matrix[:, column] = params + updates, state[0].trace
            assert (np.abs(np.linalg.eigvals(matrix)).max() > 1) == grows

    def test_correction_limit_is_far_below_the_stability_threshold(self):
        np.testing.assert_allclose(correction_limit(1.0, 0.9), 2 * 0.1**2 / 1.9)
        assert 359 < stability_threshold(1.0, 0.9) / correction_limit(1.0, 0.9) < 363


class TestNotations:
    @staticmethod
    def run(step, state, count=20):
        for _ in range(count):
            state = step(state)
        return state

    @NESTEROV
    def test_kovachki_stuart_and_sutskever(self, nesterov):
        h, m = 0.03, 0.9
        gradient = jax.jit(jax.grad(loss))
        names = momentum_notations(h, m, nesterov)
        params, state = descend(optax.sgd(**names.optax), 20)
        points, velocity = unified_points(params, state[0].trace, h, m, nesterov)

        def unified(state, h, lam, a):
            u, v = state
            ahead = jax.tree.map(lambda x, y: x + h * a * y, u, v)
            v = jax.tree.map(lambda y, g: lam * y - g, v, gradient(ahead))
            return jax.tree.map(lambda x, y: x + h * y, u, v), v

        def sutskever(state, eps, mu):
            u, v = state
            ahead = jax.tree.map(lambda x, y: x + mu * y, u, v) if nesterov else u
            v = jax.tree.map(lambda y, g: mu * y - eps * g, v, gradient(ahead))
            return jax.tree.map(jnp.add, u, v), v

        rest = (start(), jax.tree.map(jnp.zeros_like, start()))
        u, v = self.run(lambda s: unified(s, **names.kovachki_stuart), rest)
        np.testing.assert_allclose(flat(u), flat(points), atol=4e-15, rtol=0)
        np.testing.assert_allclose(flat(v), flat(velocity), atol=4e-14, rtol=0)  # divided by h
        u, _ = self.run(lambda s: sutskever(s, **names.sutskever), rest)
        np.testing.assert_allclose(flat(u), flat(points), atol=4e-15, rtol=0)

    def test_averages_and_dampening(self):
        names = momentum_notations(0.03, 0.9)
        params, _ = descend(optax.sgd(**names.optax), 20)
        assert names.ema is not None
        assert names.dampened is not None
        averaged = optax.chain(
            optax.ema(names.ema["decay"], debias=False), optax.scale(-names.ema["learning_rate"])
        )
        np.testing.assert_allclose(flat(descend(averaged, 20)[0]), flat(params), atol=4e-15, rtol=0)

        def dampened(state, learning_rate, momentum, dampening):
            p, t = state
            g = jax.grad(loss)(p)
            t = jax.tree.map(lambda t, g: momentum * t + (1 - dampening) * g, t, g)
            return jax.tree.map(lambda p, t: p - learning_rate * t, p, t), t

        rest = (start(), jax.tree.map(jnp.zeros_like, start()))
        p, _ = self.run(jax.jit(lambda s: dampened(s, **names.dampened)), rest)
        np.testing.assert_allclose(flat(p), flat(params), atol=4e-15, rtol=0)
        np.testing.assert_allclose(names.effective_learning_rate, 0.3)
        nesterov = momentum_notations(0.03, 0.9, nesterov=True)
        assert nesterov.ema is None
        assert nesterov.dampened is None


class TestFields:
    @NESTEROV
    def test_modified_flow_is_the_gradient_flow_of_the_modified_loss(self, nesterov):
        h, m = 0.1, 0.9
        for batch_size in (None, 2):
            data = jnp.asarray([[1.0, 2.0], [0.5, -1.0], [0.3, 0.2], [2.0, 0.1]])
            objective = Objective(
                lambda p, batch: (
                    loss(p) * jnp.mean(batch[:, 0]) + jnp.mean(batch[:, 1] * p["a"][0])
                ),
                data,
            )
            model = modified_momentum_flow(objective, h, m, nesterov, batch_size=batch_size)
            expected = jax.grad(modified_momentum_loss(objective, h, m, nesterov))(start())
            found = jax.jit(model.field)(0.0, start(), None)
            np.testing.assert_allclose(flat(found), -10 * flat(expected), rtol=1e-12)

    @NESTEROV
    @pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
    def test_transient_coefficients_are_the_sums(self, nesterov, momentum):
        """In the middle of an iteration, on a quadratic whose gradient and H grad L are apart."""
        h, weight = 0.1, momentum if nesterov else 1.0
        field = transient_momentum_flow(lambda p: p[0] ** 2 / 2 + p[1] ** 2, h, momentum, nesterov)
        params = jnp.array([1.0, 1.0])  # gradient (1, 2), H times it (1, 4)
        for n in (0, 1, 2, 7):
            c = [(1 - weight * momentum ** (j + 1)) / (1 - momentum) for j in range(n + 1)]
            past = [weight * momentum**k * sum(c[n - k : n]) for k in range(1, n + 1)]
            slope = -field((n + 0.5) * h, params, None)
            leading, correction = np.linalg.solve([[1, h], [2, 4 * h]], slope)
            np.testing.assert_allclose(correction, sum(past) + c[n] ** 2 / 2, rtol=1e-10)
            # c is the exponential whose mean over the iteration is c_n.
            nodes, weights = np.polynomial.legendre.leggauss(12)
            times = (n + 0.5 + nodes / 2) * h
            slopes = np.stack([-field(t, params, None) for t in times])
            across = np.linalg.solve([[1, h], [2, 4 * h]], slopes.T)[0]
            np.testing.assert_allclose(across @ weights / 2, c[n], rtol=1e-10)
            del leading

    def test_without_momentum_all_is_gradient_descent_s(self):
        h = 0.1
        gradient = flat(jax.grad(loss)(start()))
        rescaled = flat(rescaled_gradient_flow(loss, 0.0)(0.0, start(), None))
        np.testing.assert_array_equal(rescaled, -gradient)
        model = modified_momentum_flow(loss, h, 0.0)
        np.testing.assert_array_equal(flat(model.init(start())), flat(start()))
        implicit = jax.grad(lambda p: loss(p) + h / 4 * jnp.sum(flat(jax.grad(loss)(p)) ** 2))(
            start()
        )
        np.testing.assert_allclose(
            flat(model.field(0.0, start(), None)), -flat(implicit), rtol=1e-12
        )

    def test_hyper_parameters_are_lanes(self):
        def slopes(h, m):
            found = {}
            for name, model in models(h, True, m).items():
                y = model.init(start())
                found[name] = flat(y), flat(model.field(0.05, y, None))
            return found

        rates, momenta = jnp.array([0.01, 0.1]), jnp.array([0.0, 0.5])
        lanes = jax.jit(jax.vmap(slopes))(rates, momenta)
        for i, (h, m) in enumerate(zip(rates.tolist(), momenta.tolist(), strict=True)):
            for name, found in slopes(h, m).items():
                for lane, alone in zip(lanes[name], found, strict=True):
                    np.testing.assert_allclose(lane[i], alone, 1e-12, 1e-12, err_msg=name)

    @pytest.mark.parametrize("traced", [False, True])
    def test_single_precision_stays(self, traced):
        params = start(jnp.float32)

        def slopes(h, m):
            plain = [rescaled_gradient_flow(loss, m), transient_momentum_flow(loss, h, m)]
            flows = [inertial_flow(loss, h, m), modified_momentum_flow(loss, h, m)]
            states = [model.init(params) for model in flows]
            fields = [f(jnp.float32(0.1), params, None) for f in plain]
            return (
                fields,
                states,
                [f.field(0.1, y, None) for f, y in zip(flows, states, strict=True)],
            )

        found = jax.jit(slopes)(0.1, 0.9) if traced else slopes(0.1, 0.9)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        value = modified_momentum_loss(loss, 0.1, 0.9)(params)
        assert value.dtype == jnp.float32

    def test_not_a_number_stays_one(self):
        model = inertial_flow(loss, 0.1, 0.9)
        params = jax.tree.map(lambda leaf: jnp.nan * leaf, start())
        solved = solve(model.field, model.init(params), 1.0)
        assert solved.failed
        assert solved.steps == 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: rescaled_gradient_flow(loss, 1.0), r"momentum=1.0 must be .* less than 1"),
            (lambda: inertial_flow(loss, -0.1, 0.9), r"learning_rate=-0.1 must be positive"),
            (lambda: modified_momentum_flow(loss, np.nan, 0.9), r"learning_rate=nan"),
            (lambda: transient_momentum_flow(loss, 0.1, -0.2), r"momentum=-0.2"),
            (lambda: momentum_notations(0.1, 2.0), r"momentum=2.0"),
            (lambda: modified_momentum_loss(loss, np.ones(2), 0.9), r"scalar; got shape \(2,\)"),
            (lambda: inertial_flow(loss, 0.1, 0.9, initial_velocity="none"), r"'none' must be one"),
            (lambda: modified_loss_coefficient(0.9, of="ode"), r"of='ode' must be 'flow', 'step'"),
        ],
    )
    def test_is_refused_by_name(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_a_loss_that_is_none(self):
        with pytest.raises(TypeError, match="loss must be a function"):
            inertial_flow(3.0, 0.1, 0.9)
        integers = {"a": jnp.arange(3), "b": jnp.arange(2)}
        with pytest.raises(TypeError, match="dtype int"):
            modified_momentum_flow(loss, 0.1, 0.9).field(0.0, integers, None)
