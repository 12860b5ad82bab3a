"""DAL: its rule against dense Hessians, its published behaviour, and what a chain asks of it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import transforms
from driftlab.data import problems
from driftlab.transforms.dal import dal, scale_by_dal

POWERS = (0.0, 0.5, 0.75, 1.0)
BANANA = problems.perturbed_rosenbrock()


def updated(tx, loss, params, state=None):
    """One update, with what `descent` passes: `(updates, state)`."""
    grad = jax.grad(loss)(params)
    state = tx.init(params) if state is None else state
    return tx.update(grad, state, params, value_fn=loss, grad=grad)


def curvature(loss, params):
    """v from the dense Hessian: the independent route."""
    grad = jax.grad(loss)(params)
    return jnp.linalg.norm(jax.hessian(loss)(params) @ grad) / jnp.linalg.norm(grad)


def trajectory(tx, loss, params, steps):
    """Losses and learning rates of `steps` iterations of an unchained or chained DAL."""

    def step(carry, _):
        params, state = carry
        updates, state = updated(tx, loss, params, state)
        rate = optax.tree.get(state, "learning_rate")
        return (optax.apply_updates(params, updates), state), (loss(params), rate, params)

    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    return jax.jit(run)(params)


class TestRule:
    @pytest.mark.parametrize("power", POWERS)
    def test_the_rate_is_the_formula_of_the_dense_hessian(self, power):
        params = BANANA.initial_params
        v = curvature(BANANA.loss, params)
        for cap in (0.3, 5.0, np.inf):
            updates, state = updated(scale_by_dal(power, 2.0, cap), BANANA.loss, params)
            np.testing.assert_allclose(state.learning_rate, min(2 / v**power, cap), rtol=1e-12)
            expected = state.learning_rate * jax.grad(BANANA.loss)(params)
            np.testing.assert_allclose(updates, expected, rtol=1e-14)
        np.testing.assert_allclose(state.curvature, v, rtol=1e-12)

    def test_power_zero_is_scaling_by_the_constant_and_one_is_the_identity(self):
        params = BANANA.initial_params
        grad = jax.grad(BANANA.loss)(params)
        updates, _ = updated(scale_by_dal(0.0, 1.0), BANANA.loss, params)
        np.testing.assert_array_equal(updates, grad)
        updates, _ = updated(scale_by_dal(0.0, 0.37), BANANA.loss, params)
        np.testing.assert_array_equal(
            updates, optax.scale(0.37).update(grad, optax.EmptyState())[0]
        )

    def test_dal_of_power_zero_is_sgd(self):
        for options in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
            ours = trajectory(dal(0.1, 0.0, **options), BANANA.loss, BANANA.initial_params, 20)[2]
            sgd = optax.with_extra_args_support(optax.sgd(0.1, **options))
            params, state = BANANA.initial_params, sgd.init(BANANA.initial_params)
            for expected in ours:
                np.testing.assert_allclose(params, expected, rtol=1e-13)
                updates, state = sgd.update(jax.grad(BANANA.loss)(params), state, params)
                params = optax.apply_updates(params, updates)

    @pytest.mark.parametrize("power", POWERS)
    @pytest.mark.parametrize("factor", [0.01, 7.0])
    def test_a_loss_c_times_as_large_gives_rates_over_c_to_the_power(self, power, factor):
        tx = scale_by_dal(power, 2.0, np.inf)
        _, plain = updated(tx, BANANA.loss, BANANA.initial_params)
        _, scaled = updated(tx, lambda p: factor * BANANA.loss(p), BANANA.initial_params)
        expected = factor**-power * plain.learning_rate
        np.testing.assert_allclose(scaled.learning_rate, expected, rtol=1e-12)

    def test_finite_differences_are_wrong_by_the_displacement(self):
        params = BANANA.initial_params
        exact = curvature(BANANA.loss, params)
        errors = []
        for displacement in (1e-2, 1e-3, 1e-4):
            tx = scale_by_dal(method="finite_difference", displacement=displacement)
            _, state = updated(tx, BANANA.loss, params)
            errors.append(abs(float(state.curvature / exact) - 1))
        assert errors[0] < 1e-2  # 7e-3 at 0.01 in the reference
        np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 10, rtol=0.1)
        # On a quadratic the gradient is linear: only rounding is left.
        problem = problems.quadratic((10.0, 3.0, 1.0, 0.3))
        tx = scale_by_dal(method="finite_difference", displacement=0.5)
        _, state = updated(tx, problem.loss, problem.initial_params)
        expected = curvature(problem.loss, problem.initial_params)
        np.testing.assert_allclose(state.curvature, expected, rtol=1e-13)

    def test_finite_differences_take_a_gradient_where_none_is_given(self):
        tx, params = scale_by_dal(method="finite_difference"), BANANA.initial_params
        grad = jax.grad(BANANA.loss)(params)
        _, given = tx.update(grad, tx.init(params), params, value_fn=BANANA.loss, grad=grad)
        _, found = tx.update(grad, tx.init(params), params, value_fn=BANANA.loss)
        np.testing.assert_allclose(given.curvature, found.curvature, rtol=1e-14)

    def test_finite_differences_serve_a_loss_with_a_reverse_rule_only(self):
        @jax.custom_vjp
        def square(x):
            return x**2

        square.defvjp(lambda x: (x**2, x), lambda x, ct: (2 * x * ct,))

        def loss(params):
            return jnp.sum(jnp.array([1.0, 4.0]) * square(params)) / 2

        _, state = updated(scale_by_dal(method="finite_difference"), loss, jnp.ones(2))
        np.testing.assert_allclose(state.curvature, np.sqrt(257 / 17), rtol=1e-9)

    def test_a_gradient_of_zero_gives_no_update_and_no_nan(self):
        problem = problems.quadratic((10.0, 1.0))
        for method in ("hvp", "finite_difference"):
            tx = scale_by_dal(1.0, 2.0, np.inf, method=method)
            updates, _ = updated(tx, problem.loss, problem.minimizer)
            np.testing.assert_array_equal(updates, np.zeros(2))
        _, state = updated(scale_by_dal(), problem.loss, problem.minimizer)
        assert state.learning_rate == 5.0

    def test_gradients_whose_squares_underflow_have_a_direction(self, float32):
        loss = functools.partial(lambda scale, p: scale * jnp.sum(p**2) / 2, jnp.float32(1e-25))
        _, state = updated(scale_by_dal(0.5, 1e-13, 5.0), loss, jnp.ones(3))
        np.testing.assert_allclose(state.curvature, 1e-25, rtol=1e-5)
        np.testing.assert_allclose(state.learning_rate, 1e-13 / np.sqrt(1e-25), rtol=1e-5)

    def test_params_that_are_not_finite_give_nan(self):
        updates, state = updated(scale_by_dal(), BANANA.loss, jnp.array([np.nan, 1.0]))
        assert np.isnan(updates).all()
        assert np.isnan(state.learning_rate)

    def test_the_window_is_strict_on_both_sides(self):
        tx = scale_by_dal(0.0, 0.25, start=1, stop=4, inactive_learning_rate=0.5)
        rates = trajectory(tx, BANANA.loss, BANANA.initial_params, 6)[1]
        np.testing.assert_array_equal(rates, [0.5, 0.5, 0.25, 0.25, 0.5, 0.5])
        # 0 is an iteration like any other.
        rates = trajectory(scale_by_dal(0.0, 0.25, start=0), BANANA.loss, BANANA.minimizer, 3)[1]
        np.testing.assert_array_equal(rates, [1.0, 0.25, 0.25])

    def test_the_constant_may_be_a_schedule(self):
        tx = scale_by_dal(0.0, optax.linear_schedule(0.0, 0.2, 2))
        rates = trajectory(tx, BANANA.loss, BANANA.initial_params, 4)[1]
        # optax evaluates a schedule of an int32 count in float32.
        np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.2], rtol=1e-7)


class TestPublishedBehaviour:
    def test_on_a_quadratic_it_stalls_at_the_edge(self):
        """The reference's sequence; DAL(1) is at 2 / lambda_max or above, by design."""
        problem = problems.quadratic((10.0, 3.0, 1.0, 0.3))
        losses, rates, _ = trajectory(dal(), problem.loss, problem.initial_params, 400)
        np.testing.assert_allclose(rates[:3], [0.2090, 0.2015, 0.2005], atol=5e-5)
        assert (rates >= 0.2 * (1 - 1e-12)).all()
        np.testing.assert_allclose(losses[0], 7.15, rtol=1e-12)
        np.testing.assert_allclose(losses[-1], 6.315, atol=1e-3)
        np.testing.assert_allclose(losses[-1], losses[-100], rtol=1e-6)
        # The drift a half of the step: it converges.
        losses, _, _ = trajectory(dal(1.0), problem.loss, problem.initial_params, 201)
        assert 1e-13 < losses[-1] < 1e-10  # 6e-12 in the reference

    def test_on_a_quadratic_of_curvature_above_one_a_power_of_a_half_diverges(self):
        problem = problems.quadratic((10.0, 3.0, 1.0, 0.3))
        losses, rates, _ = trajectory(dal(power=0.5), problem.loss, problem.initial_params, 10)
        np.testing.assert_allclose(rates[0], 0.6465, atol=5e-5)
        assert (np.diff(losses) > 0).all()
        assert losses[-1] > 1e6 * losses[0]

    def test_a_tanh_network_is_held_at_the_edge(self):
        """h lambda_0 near 2 along DAL(1); a tenth of that rate lets the sharpness rise."""
        random = np.random.RandomState(0)
        inputs = jnp.asarray(random.randn(40, 4))
        targets = jnp.asarray(np.sin(2 * inputs[:, :1]) + 2 * np.asarray(inputs[:, 1:2]))
        start = {
            "hidden": jnp.asarray(random.randn(4, 12)) * 0.7,
            "output": jnp.asarray(random.randn(12, 1)) * 0.5,
        }

        def loss(params):
            return jnp.mean((jnp.tanh(inputs @ params["hidden"]) @ params["output"] - targets) ** 2)

        flat, unflatten = jax.flatten_util.ravel_pytree(start)

        def sharpness(params):
            return jnp.linalg.eigvalsh(jax.hessian(lambda p: loss(unflatten(p)))(params))[-1]

        flat_loss = lambda p: loss(unflatten(p))  # noqa: E731
        losses, rates, path = trajectory(dal(), flat_loss, flat, 200)
        late = jax.jit(jax.vmap(sharpness))(path[50::10])
        scaled = np.asarray(rates[50::10] * late)
        assert losses[-1] < 0.3 * losses[0]
        # ||H g|| <= lambda_max ||g||: at 2 or above, and not far, for long.
        assert np.median(scaled) < 2.5
        assert (scaled > 2 * (1 - 1e-9)).all()
        assert (scaled < 4).all()


class TestChains:
    def test_scales_before_momentum(self):
        chain = optax.chain(scale_by_dal(), optax.trace(0.9), optax.scale(-1.0))
        _, rates, path = trajectory(chain, BANANA.loss, BANANA.initial_params, 12)
        _, same, other = trajectory(dal(momentum=0.9), BANANA.loss, BANANA.initial_params, 12)
        chex.assert_trees_all_equal((rates, path), (same, other))
        velocity = jnp.zeros(2)
        for rate, here, following in zip(rates, path, path[1:], strict=False):
            velocity = 0.9 * velocity + rate * jax.grad(BANANA.loss)(here)
            np.testing.assert_allclose(following, here - velocity, rtol=1e-12)

    def test_lanes_of_power_and_cap_equal_single_runs(self):
        objective = driftlab.Objective(BANANA.loss)

        def build(hparams, key):
            tx = dal(
                power=hparams["power"],
                momentum=hparams["momentum"],
                max_learning_rate=hparams["max_learning_rate"],
            )
            return driftlab.descent(tx, objective), BANANA.initial_params

        grid = driftlab.Grid(
            {"power": [0.5, 1.0], "max_learning_rate": [0.05, 0.1], "momentum": [0.0, 0.5]}
        )
        found = driftlab.sweep(build, grid, 10, progress=False)
        for power in (0.5, 1.0):
            lane = found.loss.sel(power=power, max_learning_rate=0.1, momentum=0.5)
            tx = dal(power=power, momentum=0.5, max_learning_rate=0.1)
            losses = trajectory(tx, BANANA.loss, BANANA.initial_params, 11)[0]
            np.testing.assert_allclose(lane.values, losses, rtol=1e-10)

    def test_sgd_takes_the_curvature_of_the_step_s_own_batch(self):
        inputs = jnp.asarray(np.random.RandomState(1).randn(16, 3))

        def loss(params, batch):
            return jnp.mean((batch @ params) ** 2) / 2

        objective = driftlab.Objective(loss, inputs, driftlab.sampling.with_replacement(4))
        dynamics = driftlab.descent(dal(), objective)
        snapshot = dynamics.observe(dynamics.init(jnp.ones(3), jax.random.key(0)))
        expected = curvature(lambda p: loss(p, snapshot.batch), snapshot.params)
        rate = optax.tree.get(snapshot.next_state.inner, "learning_rate")
        np.testing.assert_allclose(rate, 2 / expected, rtol=1e-12)
        recorded = driftlab.measures.effective_learning_rate(snapshot)
        np.testing.assert_allclose(recorded, rate, rtol=1e-12)

    def test_is_found_by_name(self):
        assert "dal" in transforms.names()
        factory = transforms.by_name("dal", momentum=0.9, power=0.5)
        ours = trajectory(factory(learning_rate=2.0), BANANA.loss, BANANA.initial_params, 5)
        expected = trajectory(dal(2.0, 0.5, 0.9), BANANA.loss, BANANA.initial_params, 5)
        chex.assert_trees_all_equal(ours, expected)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
    @pytest.mark.parametrize("method", ["hvp", "finite_difference"])
    def test_types_stay(self, dtype, method):
        params = {"a": jnp.ones((2, 3), dtype), "b": jnp.ones((), dtype)}
        tx = dal(
            jnp.asarray(2.0), jnp.asarray(1.0), 0.9, max_learning_rate=jnp.asarray(5.0),
            method=method,
        )  # fmt: skip
        objective = driftlab.Objective(lambda p, _: jnp.sum(p["a"] ** 2) * p["b"])
        dynamics = driftlab.descent(tx, objective)
        first = jax.eval_shape(dynamics.init, params, jax.random.key(0))
        second = jax.eval_shape(dynamics.step, first)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
        assert first.inner[0].learning_rate.dtype == jnp.promote_types(dtype, jnp.float32)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"power": -0.5}, r"power=-0.5 must be a number, 0 or more"),
            ({"power": np.nan}, r"power=nan must be a number"),
            ({"constant": 0.0}, r"constant=0.0 must be positive"),
            ({"max_learning_rate": -1.0}, r"max_learning_rate=-1.0 must be positive"),
            ({"max_learning_rate": [1.0, 2.0]}, r"must be a scalar; got shape \(2,\).*lane axis"),
            ({"displacement": np.inf}, r"displacement=inf must be positive"),
            ({"inactive_learning_rate": -1}, r"inactive_learning_rate=-1 must be 0 or more"),
            ({"method": "fd"}, r"method='fd' must be one of \('hvp', 'finite_difference'\)"),
            ({"start": 1.5}, r"start must be an iteration, a whole number; got 1.5"),
            ({"start": 3, "stop": 4}, r"start=3, stop=4: no iteration lies strictly between"),
            ({"stop": 0}, r"stop=0: no iteration"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            scale_by_dal(**arguments)

    def test_an_update_without_the_loss_says_how_to_pass_it(self):
        tx, params = dal(), jnp.ones(2)
        with pytest.raises(ValueError, match=r"value_fn=lambda params.*driftlab\.descent does"):
            tx.update(params, tx.init(params), params)
        with pytest.raises(ValueError, match=r"needs params"):
            tx.update(params, tx.init(params), value_fn=jnp.sum)
