import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from driftlab import Objective, descent
from driftlab.flows.stochastic_adaptive import adam_sde, rmsprop_sde, square_root_scaling
from driftlab.flows.stochastic_solve import sde_flow, solve_sde
from driftlab.sampling import with_replacement

KEY = jax.random.key(0)
# f = RATE x^2 / 2 with gradients RATE x +- SPREAD: constant noise that outweighs the signal.
RATE, SPREAD, H = 0.1, 2.0, 0.05
CONSTANT = Objective(
    lambda x, push: RATE * x**2 / 2 - x * jnp.mean(push),
    jnp.array([SPREAD, -SPREAD]),
    with_replacement(1),
)
RANDOM = np.random.RandomState(0)
EXAMPLES = {"x": RANDOM.randn(12, 3), "y": RANDOM.randn(12)}
PARAMS = {"a": jnp.asarray(RANDOM.randn(3, 2)), "b": jnp.asarray(RANDOM.randn(2))}


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch["y"]) ** 2)


OBJECTIVE = Objective(network_loss, EXAMPLES, with_replacement(3))


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def moments():
    """The mean gradient and the covariance of one example's, example by example."""
    gradients = jax.vmap(
        lambda x, y: flat(jax.grad(network_loss)(PARAMS, {"x": x[None], "y": y[None]}))
    )(jnp.asarray(EXAMPLES["x"]), jnp.asarray(EXAMPLES["y"]))
    return gradients.mean(0), jnp.cov(gradients.T, bias=True)


def warm(tx, iterations=20, objective=OBJECTIVE, params=PARAMS):
    dynamics = descent(tx, objective)
    step = jax.jit(dynamics.step)
    state = dynamics.init(params, KEY)
    for _ in range(iterations):
        state = step(state)
    return state.inner


class TestFields:
    """Against the published formulas, spelt out on matrices."""

    @pytest.mark.parametrize("mean_in_squares", [False, True])
    def test_rmsprop(self, mean_in_squares):
        h, decay, eps = 0.02, 0.95, 0.3
        state = warm(optax.rmsprop(h, decay, eps, eps_in_sqrt=False))
        model = rmsprop_sde(OBJECTIVE, h, decay, eps, mean_in_squares=mean_in_squares)
        y = model.init(PARAMS, state)
        sigma, c2, u = 3**-0.5, (1 - decay) / h**2, flat(state[0].nu) * 3
        p = sigma * h * jnp.sqrt(u) + eps * h
        gradient, covariance = moments()
        rate = jax.jit(model.drift)(0.0, y, None)
        np.testing.assert_allclose(flat(rate.params), -gradient / p, rtol=1e-11)
        tends_to = jnp.diag(covariance) + (3 * gradient**2 if mean_in_squares else 0)
        np.testing.assert_allclose(flat(rate.squares), c2 * (tends_to - u), rtol=1e-11)
        operator = model.diffusion(0.0, y, None)
        rows = jax.vmap(lambda unit: flat(operator.mv(unit).params))(jnp.eye(12))
        expected = (sigma * h) ** 2 * covariance / p[:, None] / p[None]
        np.testing.assert_allclose(rows.T @ rows, expected, rtol=1e-10, atol=1e-14)
        assert float(jnp.abs(flat(operator.mv(jnp.ones(12)).squares)).max()) == 0
        assert model.step_time == h**2

    def test_adam(self):
        h, b1, b2, eps = 0.02, 0.8, 0.95, 0.3
        state = warm(optax.adam(h, b1, b2, eps), iterations=7)
        model = adam_sde(OBJECTIVE, h, b1, b2, eps)
        y = model.init(PARAMS, state)
        sigma, c1, c2 = 3**-0.5, (1 - b1) / h**2, (1 - b2) / h**2
        m, u = flat(state[0].mu), flat(state[0].nu) * 3
        np.testing.assert_allclose(y.age, 7 * h**2, rtol=1e-12)
        gamma1, gamma2 = 1 - np.exp(-c1 * y.age), 1 - np.exp(-c2 * y.age)
        p = sigma * h * jnp.sqrt(u) + eps * h * gamma2**0.5
        gradient, covariance = moments()
        rate = jax.jit(model.drift)(0.0, y, None)
        np.testing.assert_allclose(flat(rate.params), -(gamma2**0.5) / gamma1 * m / p, rtol=1e-11)
        np.testing.assert_allclose(flat(rate.mean), c1 * (gradient - m), rtol=1e-11)
        np.testing.assert_allclose(flat(rate.squares), c2 * (jnp.diag(covariance) - u), rtol=1e-11)
        assert rate.age == 1
        operator = model.diffusion(0.0, y, None)
        rows = jax.vmap(lambda unit: flat(operator.mv(unit).mean))(jnp.eye(12))
        np.testing.assert_allclose(
            rows.T @ rows, (sigma * h * c1) ** 2 * covariance, rtol=1e-10, atol=1e-12
        )
        assert float(jnp.abs(flat(operator.mv(jnp.ones(12)).params)).max()) == 0

    def test_hyper_parameters_may_be_lanes(self):
        state = warm(optax.adam(0.02, 0.8, 0.95), iterations=7)

        def speed(h, b1):
            model = adam_sde(OBJECTIVE, h, b1, 0.95)
            return flat(model.drift(0.0, model.init(PARAMS, state), None).params)

        rates, means = jnp.array([0.01, 0.02]), jnp.array([0.7, 0.8])
        found = jax.jit(jax.vmap(speed))(rates, means)
        np.testing.assert_allclose(found[1], speed(0.02, 0.8), rtol=1e-10)

    def test_float32_stays(self):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
        tx = optax.adam(0.02, 0.8, 0.95)
        found = tx.update(params, tx.init(params), params)[1]
        model = adam_sde(OBJECTIVE, jnp.float64(0.02), 0.8, 0.95)
        solved = jax.jit(
            lambda: solve_sde(model, model.init(params, found), 4e-4, key=KEY, steps=2)
        )()
        assert {leaf.dtype for leaf in jax.tree.leaves(solved.y)} == {jnp.dtype("float32")}
        assert solved.result == 0


class TestConstantNoise:
    """E x and E x^2 under the equation, from its fields, against those of the optimiser."""

    lanes, start = 4000, 1.5

    def iterates(self, tx, state, iterations):
        """The optimiser's own, vmapped over seeds, from one warm state."""
        dynamics = descent(tx, CONSTANT)

        @jax.jit
        def run(keys):
            def one(key):
                begun = dynamics.init(jnp.asarray(self.start), key)
                begun = begun._replace(inner=state)
                return jax.lax.fori_loop(0, iterations, lambda _, s: dynamics.step(s), begun)

            return jax.vmap(one)(keys).params

        return np.asarray(run(jax.random.split(KEY, self.lanes)))

    def moments(self, model, y, names, time):
        """Mean and variance of the linear equation that is left once the squares have settled."""

        def pack(values):
            return y._replace(**dict(zip(names, values, strict=True)))

        def rate(values):
            found = model.drift(0.0, pack(values), None)
            return jnp.stack([getattr(found, name) for name in names])

        start = jnp.stack([getattr(y, name) for name in names])
        jacobian = jax.jacfwd(rate)(start)
        np.testing.assert_allclose(rate(jnp.zeros_like(start)), 0, atol=1e-9)
        operator = model.diffusion(0.0, y, None)
        columns = [
            jnp.stack([getattr(operator.mv(unit), name) for name in names]) for unit in jnp.eye(2)
        ]
        noise = sum(jnp.outer(column, column) for column in columns)
        # The variance tends to that of J S + S J^T + N = 0, as the flow forgets its start.
        flow = scipy.linalg.expm(np.asarray(jacobian) * time)
        settled = scipy.linalg.solve_continuous_lyapunov(np.asarray(jacobian), -np.asarray(noise))
        return flow @ np.asarray(start), settled - flow @ settled @ flow.T

    def check(self, found, mean, variance):
        standard_error = found.std() / self.lanes**0.5
        assert abs(found.mean() - mean[0]) < 3 * standard_error
        assert abs(found.var() / variance[0, 0] - 1) < 3 * (2 / self.lanes) ** 0.5
        # The equation moves: from x = 1.5 at rate RATE / (H SPREAD) = 1 to a spread.
        assert mean[0] < 0.8
        assert variance[0, 0] > 0.2

    def test_rmsprop(self):
        decay, iterations = 0.99, 400
        tx = optax.rmsprop(H, decay, 1e-8, eps_in_sqrt=False)
        settled = tx.init(jnp.asarray(self.start))
        settled = (settled[0]._replace(nu=jnp.asarray(SPREAD**2)), *settled[1:])
        model = rmsprop_sde(CONSTANT, H, decay, 1e-8)
        y = model.init(jnp.asarray(self.start), settled)
        assert float(model.drift(0.0, y, None).squares) == pytest.approx(0, abs=1e-9)
        mean, variance = self.moments(model, y, ["params"], iterations * H**2)
        rate = RATE / (H * SPREAD)
        np.testing.assert_allclose(mean, self.start * np.exp(-rate * iterations * H**2))
        self.check(self.iterates(tx, settled, iterations), mean, variance)

    def test_adam(self):
        b1, b2, iterations = 0.9, 0.99, 400
        tx = optax.adam(H, b1, b2)
        settled = tx.init(jnp.asarray(self.start))
        # So late that the bias corrections are 1.
        settled = (
            settled[0]._replace(nu=jnp.asarray(SPREAD**2), count=jnp.asarray(10**5)), *settled[1:]
        )  # fmt: skip
        model = adam_sde(CONSTANT, H, b1, b2)
        y = model.init(jnp.asarray(self.start), settled)
        mean, variance = self.moments(model, y, ["params", "mean"], iterations * H**2)
        self.check(self.iterates(tx, settled, iterations), mean, variance)

    def test_paths_have_those_moments(self):
        model = rmsprop_sde(CONSTANT, H, 0.99, 1e-8)
        tx = optax.rmsprop(H, 0.99, 1e-8, eps_in_sqrt=False)
        settled = tx.init(jnp.asarray(self.start))
        settled = (settled[0]._replace(nu=jnp.asarray(SPREAD**2)), *settled[1:])
        dynamics = sde_flow(
            model, CONSTANT, steps=1, step_time=50 * H**2,
            to_state=lambda x: model.init(x, settled), solver=None,
        )  # fmt: skip

        @jax.jit
        def ends(keys):
            def one(key):
                begun = dynamics.init(jnp.asarray(self.start), key)
                return jax.lax.fori_loop(0, 8, lambda _, s: dynamics.step(s), begun).params

            return jax.vmap(one)(keys)

        # On 800,000 paths of other keys the variance is 0.15 % off, at a standard error of 0.16 %.
        lanes = 20_000
        found = np.asarray(ends(jax.random.split(KEY, lanes)))
        # Eight steps of Euler on dx = -x dt + dW, which they solve as an AR(1) of their own.
        span, shrink = 0.125, 0.875
        mean, variance = self.start * shrink**8, span * (1 - shrink**16) / (1 - shrink**2)
        assert abs(found.mean() - mean) < 3 * found.std() / lanes**0.5
        assert abs(found.var() / variance - 1) < 3 * (2 / lanes) ** 0.5


class TestSquareRootScaling:
    def test_keeps_the_equation(self):
        # c_i, sigma_0, eps_0 are all that the equation depends on, with time n h^2.
        h, b1, b2, eps = 0.02, 0.9, 0.99, 0.1
        other, (c1, c2), small = square_root_scaling(4, h, (b1, b2), eps)
        tx = optax.adam(h, b1, b2)
        state = warm(tx, iterations=8)
        model = adam_sde(OBJECTIVE, h, b1, b2, eps)
        scaled = adam_sde(OBJECTIVE, other, c1, c2, small, batch_size=12)
        y = model.init(PARAMS, state)
        for field in (model.drift, scaled.drift):
            assert jnp.isfinite(flat(field(0.0, y, None))).all()
        np.testing.assert_allclose(
            flat(scaled.drift(0.0, y, None)), flat(model.drift(0.0, y, None)), rtol=1e-11
        )
        noise = jnp.arange(12.0)
        np.testing.assert_allclose(
            flat(scaled.diffusion(0.0, y, None).mv(noise)),
            flat(model.diffusion(0.0, y, None).mv(noise)),
            rtol=1e-10, atol=1e-12,
        )  # fmt: skip

    def test_has_an_end(self):
        with pytest.raises(ValueError, match=r"decay 0.9 to -0.6, below 0.*factor of 10 here"):
            square_root_scaling(16, 0.1, (0.9, 0.999), 1e-8)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: rmsprop_sde(OBJECTIVE, 0.1, 1.0), r"decay=1.0 must be at least 0 and below 1"),
            (lambda: adam_sde(OBJECTIVE, 0.1, b2=-0.1), r"b2=-0.1 must be at least 0"),
            (lambda: adam_sde(OBJECTIVE, 0.1, eps=-1.0), r"eps=-1.0 must be 0 or more"),
            (lambda: adam_sde(OBJECTIVE, 0.0), r"learning_rate=0.0 must be positive"),
            (lambda: adam_sde(Objective(network_loss, EXAMPLES), 0.1), "'full_batch'"),
        ],
    )
    def test_hyper_parameters(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_states_of_other_optimisers_and_of_the_start(self):
        model = adam_sde(OBJECTIVE, 0.1)
        with pytest.raises(ValueError, match=r"state of optax.adam.*mu, nu, count; found 0"):
            model.init(PARAMS, optax.sgd(0.1).init(PARAMS))
        with pytest.raises(ValueError, match="Adam's at its start"):
            model.init(PARAMS, optax.adam(0.1).init(PARAMS))
