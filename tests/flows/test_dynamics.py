from functools import partial

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from driftlab import Grid, Objective, data, descent, measures, shuffled_epochs, sweep
from driftlab.flows import (
    NONFINITE,
    SMALLEST_STEP,
    SOLVED,
    STEP_LIMIT,
    Flow,
    flow,
    gradient_flow,
    preconditioned_gradient_flow,
    solve,
)

KEY = jax.random.key(0)
BANANA = data.problems.perturbed_rosenbrock()
OBJECTIVE = Objective(BANANA.loss)
FIELD = gradient_flow(OBJECTIVE)
QUADRATIC = data.problems.quadratic((1.0, 3.0, 20.0), jax.random.key(3))
HESSIAN = np.asarray(jax.hessian(QUADRATIC.loss)(QUADRATIC.initial_params))


@partial(jax.jit, static_argnums=0)
def run(dynamics, params, steps):
    """The state after `steps` steps; compiled once for all numbers of steps."""
    return jax.lax.fori_loop(
        0, steps, lambda _, state: dynamics.step(state), dynamics.init(params, KEY)
    )


@partial(jax.jit, static_argnums=0)
def step(dynamics, state):
    """The state after one more."""
    return dynamics.step(state)


@jax.jit
def banana_flow(duration, rtol):
    """The end of gradient flow from the start, solved at once."""
    return solve(FIELD, BANANA.initial_params, duration, rtol=rtol, atol=rtol / 100).y


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def coordinates(snapshot):
    return {f"x{i}": snapshot.params[i] for i in range(3)}


def inner(snapshot):
    names = ("time", "result", "steps", "evaluations", "next_step")
    return {name: getattr(snapshot.state.inner, name) for name in names}


class TestAgainstTheExactFlow:
    def test_every_recorded_step_of_a_sweep_is_the_exponential(self):
        objective = Objective(QUADRATIC.loss)
        times = [0.01, 0.1, 0.5]

        def build(hparams, key):
            return flow(gradient_flow(objective), hparams["h"], objective), QUADRATIC.initial_params

        result = sweep(
            build,
            Grid({"h": times}),
            steps=10,
            record_every=3,
            measures=[measures.loss, coordinates, inner],
            progress=False,
        )
        assert result.verdict.values.tolist() == ["ok"] * 3
        assert result.step.values.tolist() == [0, 3, 6, 9, 10]
        # The default tolerance bounds the error of a step, 1e-8 of the parameters' size, of which
        # the slow direction adds up a few dozen.
        for h in times:
            for k in result.step.values:
                exact = scipy.linalg.expm(-k * h * HESSIAN) @ QUADRATIC.initial_params
                found = [float(result[f"x{i}"].sel(h=h, step=k)) for i in range(3)]
                np.testing.assert_allclose(found, exact, atol=3e-7)
                np.testing.assert_allclose(float(result.time.sel(h=h, step=k)), k * h, rtol=1e-12)

    def test_many_steps_are_one_solve(self):
        last = run(flow(FIELD, 0.05, OBJECTIVE), BANANA.initial_params, 40)
        whole = banana_flow(2.0, 1e-12)
        np.testing.assert_allclose(last.params, whole, rtol=1e-7)
        assert last.step == 40

    def test_late_steps_keep_the_digits_of_their_length(self):
        # In float32 the difference of two times near 100,000 steps has three digits left.
        params = BANANA.initial_params.astype(jnp.float32)
        dynamics = flow(lambda t, y, args: jnp.ones_like(y), 1e-3, OBJECTIVE)
        state, late = dynamics.init(params, KEY), jnp.int32(100_000)
        state = state._replace(step=late, inner=state.inner._replace(step=late))
        after = step(dynamics, state).params
        assert after.dtype == jnp.float32
        np.testing.assert_allclose(after - params, 1e-3, rtol=2e-4)

    @pytest.mark.usefixtures("float32")
    def test_in_single_precision(self):
        last = run(flow(FIELD, 0.1, OBJECTIVE), jnp.asarray([0.3, -0.4]), 10)
        assert last.params.dtype == last.inner.time.dtype == jnp.float32
        with jax.enable_x64(True):
            exact = banana_flow(1.0, 1e-8)
        np.testing.assert_allclose(last.params, exact, rtol=1e-4)


class TestAgainstGradientDescent:
    def test_one_euler_step_is_gradient_descent(self):
        euler = flow(FIELD, 0.03, OBJECTIVE, solver=diffrax.Euler(), steps=1)
        flowed = run(euler, BANANA.initial_params, 50)
        descended = run(descent(optax.sgd(0.03), OBJECTIVE), BANANA.initial_params, 50)
        np.testing.assert_allclose(flowed.params, descended.params, rtol=1e-13)
        assert flowed.inner.evaluations == 50

    def test_descent_minus_flow_after_a_fixed_time_has_order_one(self):
        counts = np.array([160, 320, 640])
        exact = banana_flow(1.0, 1e-11)

        @jax.jit
        def descended(h, n):
            return run(descent(optax.sgd(h), OBJECTIVE), BANANA.initial_params, n).params

        errors = [jnp.linalg.norm(descended(1 / n, n) - exact) for n in counts]
        assert abs(slope(1 / counts, np.array(errors)) - 1) < 0.05

    def test_the_drift_of_one_step_is_the_hessian_times_the_gradient(self):
        """Descent minus flow is -h^2/2 H g + O(h^3)."""
        params = BANANA.initial_params
        gradient = jax.grad(BANANA.loss)(params)
        leading = -jax.hessian(BANANA.loss)(params) @ gradient / 2
        hs = np.array([0.02, 0.01, 0.005])
        options = {"rtol": 1e-13, "atol": 1e-15}

        @jax.jit
        def flowed(h):
            return run(flow(FIELD, h, OBJECTIVE, **options), params, 1).params

        drifts = [params - h * gradient - flowed(h) for h in hs]
        sizes = np.array([jnp.linalg.norm(drift) for drift in drifts])
        rest = [
            jnp.linalg.norm(drift - h**2 * leading) for h, drift in zip(hs, drifts, strict=True)
        ]
        # At h times sharpness 0.12 the next order is a tenth of the leading one.
        assert abs(slope(hs, sizes) - 2) < 0.1
        assert abs(slope(hs, np.array(rest)) - 3) < 0.1


class TestDynamics:
    def test_observe_steps_as_step_does_and_reads_the_objective(self):
        dynamics = flow(FIELD, 0.1, OBJECTIVE, solver=diffrax.Heun(), steps=1)
        state = run(dynamics, BANANA.initial_params, 2)
        snapshot = dynamics.observe(state)
        chex.assert_trees_all_equal(snapshot.next_state, dynamics.step(state))
        np.testing.assert_allclose(snapshot.loss, BANANA.loss(state.params))
        np.testing.assert_allclose(snapshot.gradient, jax.grad(BANANA.loss)(state.params))
        np.testing.assert_allclose(snapshot.gradient, -FIELD(0.0, state.params, None))

    def test_the_step_size_is_carried(self):
        """A stiff step (h * sharpness = 200) costs as much as its part of one long solve."""
        rates = jnp.array([0.1, 200.0])
        objective = Objective(lambda y, batch: jnp.sum(rates * y**2) / 2)
        steps, start = 20, jnp.ones(2)
        carried = run(flow(gradient_flow(objective), 1.0, objective), start, steps)
        whole = jax.jit(lambda: solve(gradient_flow(objective), start, float(steps)))()
        assert carried.inner.steps < 1.3 * whole.steps
        assert 0 < carried.inner.next_step < 0.1
        np.testing.assert_allclose(carried.params[0], np.exp(-0.1 * steps), rtol=1e-6)

    def test_the_field_may_take_the_batch_of_the_step(self):
        inputs = jnp.asarray(np.random.RandomState(0).randn(12, 2))
        objective = Objective(lambda p, x: jnp.mean((x @ p - 1) ** 2), inputs, shuffled_epochs(4))

        def field(t, y, batch):
            return -jax.grad(objective.loss)(y, batch)

        dynamics = flow(
            field, 0.1, objective, args=lambda state: objective.batch(state.key, state.step),
            solver=diffrax.Euler(), steps=1,
        )  # fmt: skip
        flowed = run(dynamics, jnp.zeros(2), 7)
        descended = run(descent(optax.sgd(0.1), objective), jnp.zeros(2), 7)
        np.testing.assert_allclose(flowed.params, descended.params, rtol=1e-13)

    def test_the_state_of_the_ode_may_hold_more_than_params(self):
        """A harmonic oscillator: a velocity beside the position."""

        def field(t, y, args):
            return {"x": y["v"], "v": -y["x"]}

        objective = Objective(lambda p, batch: jnp.sum(p**2) / 2)
        dynamics = flow(
            field, 0.1, objective,
            to_state=lambda p: {"x": p, "v": jnp.zeros_like(p)}, to_params=lambda y: y["x"],
        )  # fmt: skip
        last = run(dynamics, jnp.array([1.0, 2.0]), 10)
        np.testing.assert_allclose(last.params, np.cos(1.0) * np.array([1.0, 2.0]), rtol=1e-6)
        np.testing.assert_allclose(
            last.inner.y["v"], -np.sin(1.0) * np.array([1.0, 2.0]), rtol=1e-6
        )

    def test_a_preconditioner_may_be_a_lane_axis(self):
        objective, scales = Objective(QUADRATIC.loss), np.array([1.0, 2.0])

        def after_a_step(scale):
            dynamics = flow(preconditioned_gradient_flow(objective, scale), 0.1, objective)
            return dynamics.step(dynamics.init(QUADRATIC.initial_params, KEY)).params

        found = jax.jit(jax.vmap(after_a_step))(scales)
        for params, scale in zip(found, scales, strict=True):
            exact = scipy.linalg.expm(-0.1 / scale * HESSIAN) @ QUADRATIC.initial_params
            np.testing.assert_allclose(params, exact, rtol=1e-6, atol=1e-7)


class TestFailure:
    def ascent(self, hparams, key):
        """`y' = y^2` from 1, which is infinite at t = 1; the loss stays small until just before."""
        objective = Objective(lambda y, batch: -jnp.sum(y**3) / 3)
        return flow(gradient_flow(objective), hparams["h"], objective), jnp.ones(2)

    def test_a_lane_that_blows_up_gets_a_verdict_and_leaves_the_others_alone(self):
        def verdicts(times):
            return sweep(
                self.ascent,
                Grid({"h": times}),
                steps=8,
                measures=[measures.parameter_norm, inner],
                lanes="vmap",
                divergence_factor=1e12,
                progress=False,
            )

        result, healthy = verdicts([0.1, 0.3, 0.05]), verdicts([0.1, 0.04, 0.05])
        assert result.verdict.values.tolist() == ["ok", "nonfinite", "ok"]
        # t = 0.9 is the last time that is reached.
        assert result.verdict_step.sel(h=0.3) == 4
        for h in (0.1, 0.05):
            np.testing.assert_array_equal(
                result.parameter_norm.sel(h=h), healthy.parameter_norm.sel(h=h)
            )
        norm = np.sqrt(2) / (1 - 0.1 * result.step.values)
        np.testing.assert_allclose(result.parameter_norm.sel(h=0.1), norm, rtol=1e-5)

    def test_what_failed_is_said_and_stays(self):
        dynamics, start = self.ascent({"h": 0.3}, None)
        for steps in (4, 6):
            last = run(dynamics, start, steps)
            assert last.inner.result == SMALLEST_STEP
            assert jnp.isnan(last.params).all()
            np.testing.assert_allclose(last.inner.time, 1.0, atol=1e-3)
        # Steps after the failure are free.
        assert run(dynamics, start, 6).inner.steps == run(dynamics, start, 4).inner.steps

    def test_a_state_held_back_while_steps_go_on_costs_nothing(self):
        """As a sweep holds a dead lane: it would blow up again at every step of the others."""
        dynamics, start = self.ascent({"h": 0.3}, None)
        held = run(dynamics, start, 3)
        after = step(dynamics, held._replace(step=held.step + 5))
        assert after.inner.steps == held.inner.steps
        assert jnp.isnan(after.params).all()
        assert step(dynamics, held).inner.steps > held.inner.steps + 50

    def test_a_start_of_nan_does_not_hang(self):
        last = run(flow(FIELD, 0.1, OBJECTIVE), jnp.array([jnp.nan, 1.0]), 3)
        assert last.inner.result == NONFINITE
        assert jnp.isnan(last.params).all()
        assert last.inner.steps == 0

    def test_the_step_limit_is_a_failure(self):
        stiff = data.problems.quadratic((1.0, 1e4))
        objective = Objective(stiff.loss)
        dynamics = flow(gradient_flow(objective), 1.0, objective, max_steps=16)
        last = run(dynamics, stiff.initial_params, 2)
        assert last.inner.result == STEP_LIMIT
        assert last.inner.steps == 16
        assert run(dynamics, stiff.initial_params, 0).inner.result == SOLVED

    @pytest.mark.parametrize("step_time", [0.0, -0.1, np.nan, np.inf])
    def test_a_step_takes_time(self, step_time):
        with pytest.raises(ValueError, match="must be positive and finite"):
            flow(FIELD, step_time, OBJECTIVE)

    def test_several_times_are_refused(self):
        with pytest.raises(ValueError, match=r"step_time must be a scalar; got shape \(2,\)"):
            flow(FIELD, np.array([0.1, 0.2]), OBJECTIVE)

    def test_both_ways_between_params_and_state_are_needed(self):
        with pytest.raises(ValueError, match="to_state and to_params are given together"):
            flow(FIELD, 0.1, OBJECTIVE, to_state=lambda params: params)
        whole = Flow(FIELD, lambda params: params, lambda y: y)
        with pytest.raises(ValueError, match="are those of the Flow that field is"):
            flow(whole, 0.1, OBJECTIVE, to_state=lambda params: params)

    def test_integer_params(self):
        with pytest.raises(TypeError, match="dtype int64"):
            flow(FIELD, 0.1, OBJECTIVE).init(jnp.arange(2), KEY)
