import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import Grid, Objective, measures, sweep
from driftlab.flows import NONFINITE, SOLVED
from driftlab.flows.stochastic import covariance_factor, sgd_sde
from driftlab.flows.stochastic_solve import sde_flow, solve_sde
from driftlab.sampling import with_replacement

KEY = jax.random.key(5)
GAMMAS = Objective(
    lambda x, gamma: jnp.mean(gamma) * x**2 / 2, jnp.array([0.5, 1.5]), with_replacement(1)
)
RANDOM = np.random.RandomState(0)
EXAMPLES = {"x": RANDOM.randn(12, 3), "y": RANDOM.randn(12)}
PARAMS = {"a": jnp.asarray(RANDOM.randn(3, 2)), "b": jnp.asarray(RANDOM.randn(2))}


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch["y"]) ** 2)


OBJECTIVE = Objective(network_loss, EXAMPLES, with_replacement(3))


def keys(count):
    return jax.random.split(KEY, count)


class TestInLaw:
    @pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
    def test_moments_of_vmapped_paths_are_those_of_the_equation(self, calculus):
        # dx = -x dt + s x dW, s^2 = h Var(gamma): E x = exp(-t), E x^2 = exp((-2 + s^2) t).
        h, time, count = 0.8, 1.0, 4000
        model = sgd_sde(GAMMAS, h, calculus=calculus)

        @jax.jit
        def paths():
            return jax.vmap(lambda key: solve_sde(model, jnp.ones(()), time, key=key, steps=100).y)(
                keys(count)
            )

        x = np.asarray(paths())
        # Euler's own bias at 100 steps is 0.5 % of E x, a third of a standard error.
        for power, exact in ((1, np.exp(-time)), (2, np.exp((-2 + h / 4) * time))):
            error = (x**power).mean() - exact
            assert abs(error) < 3 * (x**power).std() / count**0.5
        assert x.std() > 0.1

    def test_a_step_of_euler_is_sgd_with_normal_noise(self):
        # E and Cov of one step of h from PARAMS: the first two moments of SGD's own.
        h, count = 0.05, 4000
        model = sgd_sde(OBJECTIVE, h)

        @jax.jit
        def ends():
            found = jax.vmap(lambda key: solve_sde(model, PARAMS, h, key=key, steps=1).y)(
                keys(count)
            )
            return found["b"]

        moved = (np.asarray(ends()) - np.asarray(PARAMS["b"])) / h
        gradients = jax.jit(
            jax.vmap(lambda x, y: jax.grad(network_loss)(PARAMS, {"x": x[None], "y": y[None]})["b"])
        )(jnp.asarray(EXAMPLES["x"]), jnp.asarray(EXAMPLES["y"]))
        np.testing.assert_allclose(
            moved.mean(0), -gradients.mean(0), atol=3.5 * moved.std(0).max() / count**0.5
        )
        covariance = np.cov(np.asarray(gradients).T, bias=True) / 3
        # A sample variance has a standard error of sqrt(2 / count): 2.2 %.
        np.testing.assert_allclose(np.cov(moved.T), covariance, atol=0.08 * covariance.max())


class TestOnePath:
    def test_both_calculi_converge_to_one_solution(self):
        # The two columns of noise commute on this problem, so that Heun's strong order is 1.
        count, tree = 100, {"path_tolerance": 1e-2}

        def ends(calculus, steps):
            model = sgd_sde(GAMMAS, 0.8, calculus=calculus)

            def end(key):
                return solve_sde(model, jnp.ones(()), 1.0, key=key, steps=steps, **tree).y

            return jax.jit(jax.vmap(end))(keys(count))

        exact = ends("stratonovich", 64)
        for calculus, order in (("ito", 0.5), ("stratonovich", 1.0)):
            errors = [float(jnp.sqrt(jnp.mean((ends(calculus, n) - exact) ** 2))) for n in (2, 16)]
            assert np.log(errors[0] / errors[1]) / np.log(8) > order - 0.1
            assert errors[1] < 0.03

    def test_is_a_pure_function_of_the_key(self):
        model = sgd_sde(OBJECTIVE, 0.1)
        one = jax.jit(lambda key: solve_sde(model, PARAMS, 0.5, key=key, steps=5).y["b"])
        np.testing.assert_array_equal(one(KEY), one(KEY))
        assert jnp.abs(one(KEY) - one(jax.random.key(6))).min() > 1e-6

    def test_keeps_the_state_s_type(self):
        model = sgd_sde(OBJECTIVE, jnp.float64(0.1), 2)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
        solved = jax.jit(lambda: solve_sde(model, params, 0.5, key=KEY, steps=5))()
        assert {leaf.dtype for leaf in jax.tree.leaves(solved.y)} == {jnp.dtype("float32")}
        assert solved.time.dtype == jnp.float32
        assert (solved.time, solved.steps, solved.evaluations) == (0.5, 5, 5)

    def test_no_callback_to_the_host(self):
        model = sgd_sde(GAMMAS, 0.1)
        lowered = jax.jit(
            lambda y: solve_sde(model, y, 1.0, key=KEY, steps=3).y
        ).lower(jnp.ones(()))  # fmt: skip
        assert "callback" not in lowered.as_text()

    @pytest.mark.parametrize("strategy", [jax.vmap, lambda f: lambda *x: jax.lax.map(f, *x)])
    def test_a_lane_that_blows_up_leaves_the_others_alone(self, strategy):
        quartic = Objective(lambda x, a: jnp.mean(a) * x**4, jnp.array([0.5, 1.5]))
        model = sgd_sde(quartic, 0.1, batch_size=1)
        run = jax.jit(
            strategy(lambda x: solve_sde(model, x, 200.0, key=KEY, steps=100))
        )  # fmt: skip
        starts = jnp.array([0.1, 3.0, 0.05])
        solved = run(starts)
        np.testing.assert_array_equal(solved.result, [SOLVED, NONFINITE, SOLVED])
        healthy = run(starts.at[1].set(0.2))
        np.testing.assert_array_equal(solved.y[::2], healthy.y[::2])
        assert run(starts.at[1].set(jnp.nan)).steps[1] == 0


class TestDynamics:
    def test_step_k_is_a_pure_function_of_key_and_k(self):
        model = sgd_sde(OBJECTIVE, 0.1)
        dynamics = sde_flow(model, OBJECTIVE, steps=2)
        step = jax.jit(dynamics.step)
        states = [dynamics.init(PARAMS, KEY)]
        for _ in range(4):
            states.append(step(states[-1]))
        again = step(step(states[2]))
        np.testing.assert_array_equal(again.params["b"], states[4].params["b"])
        np.testing.assert_allclose(states[4].inner.time, 0.4)
        assert states[4].inner.evaluations == 8
        # Other steps, other draws.
        first, second = (
            step(s._replace(params=PARAMS, step=s.step, inner=s.inner)).params["b"]
            for s in states[:2]
        )
        assert jnp.abs(first - second).min() > 1e-6

    def test_with_one_step_of_euler_is_gradient_descent_plus_its_noise(self):
        h = 0.1
        model = sgd_sde(OBJECTIVE, h)
        state = jax.jit(sde_flow(model, OBJECTIVE, steps=1).step)(
            sde_flow(model, OBJECTIVE, steps=1).init(PARAMS, KEY)
        )
        gradient = jax.grad(lambda p: network_loss(p, EXAMPLES))(PARAMS)
        kicked = jax.tree.map(lambda new, old, g: new - old + h * g, state.params, PARAMS, gradient)
        # What is left lies in the span of the covariance's factor, and is not nothing.
        flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
        factor = jax.jit(lambda weights: covariance_factor(OBJECTIVE, PARAMS, weights))
        columns = np.stack([flat(factor(e)) for e in np.eye(12)], 1)
        weights, *_ = np.linalg.lstsq(columns * (h * h / 3) ** 0.5, flat(kicked), rcond=1e-10)
        np.testing.assert_allclose(columns @ weights * (h * h / 3) ** 0.5, flat(kicked), rtol=1e-9)
        assert 0.2 < np.linalg.norm(weights) / 8**0.5 < 2.5

    def test_in_a_sweep(self):
        def build(hparams, key):
            model = sgd_sde(OBJECTIVE, hparams["learning_rate"], 2)
            return sde_flow(model, OBJECTIVE, steps=2), PARAMS

        grid = Grid({"learning_rate": [0.01, 0.02, 1e3], "seed": [0, 1]})
        found = sweep(build, grid, 20, measures=[measures.loss], record_every=20, progress=False)
        healthy = found.sel(learning_rate=[0.01, 0.02])
        assert (healthy.verdict == "ok").all()
        assert (found.sel(learning_rate=1e3).verdict != "ok").all()
        losses = healthy.loss.values
        assert (losses[..., -1] < losses[..., 0]).all()
        assert (losses[:, 0, -1] != losses[:, 1, -1]).all()


class TestErrors:
    @pytest.mark.parametrize(
        ("calculus", "solver", "message"),
        [
            ("ito", diffrax.Heun(), r"solver=Heun\(\).*other calculus.*diffrax.Euler\(\)"),
            ("ito", diffrax.EulerHeun(), r"solver=EulerHeun\(\).*other calculus"),
            ("stratonovich", diffrax.Euler(), r"solver=Euler\(\).*other calculus.*Heun\(\)"),
            ("ito", diffrax.Tsit5(), "no solver of stochastic equations"),
            ("stratonovich", diffrax.ShARK(), "noise that does not depend on the state"),
        ],
    )
    def test_solvers_that_would_solve_another_equation(self, calculus, solver, message):
        # diffrax takes them, and converges to another answer.
        model = sgd_sde(GAMMAS, 0.1, calculus=calculus)
        with pytest.raises(ValueError, match=message):
            solve_sde(model, jnp.ones(()), 1.0, key=KEY, steps=2, solver=solver)

    def test_numbers(self):
        model = sgd_sde(GAMMAS, 0.1)
        with pytest.raises(ValueError, match="steps must be a positive integer; got 0"):
            solve_sde(model, jnp.ones(()), 1.0, key=KEY, steps=0)
        with pytest.raises(ValueError, match="path_tolerance is a fraction"):
            solve_sde(model, jnp.ones(()), 1.0, key=KEY, steps=2, path_tolerance=2.0)
        with pytest.raises(ValueError, match=r"step_time=-1.0 must be positive"):
            sde_flow(model, GAMMAS, steps=1, step_time=-1.0)
        with pytest.raises(TypeError, match="must be a diffrax solver"):
            solve_sde(model, jnp.ones(()), 1.0, key=KEY, steps=2, solver=3)  # type: ignore
