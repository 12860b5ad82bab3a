import subprocess
import sys

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
import scipy.linalg
from jax.sharding import Mesh, PartitionSpec

from driftlab import data
from driftlab.flows import (
    NONFINITE,
    RESULTS,
    SMALLEST_STEP,
    SOLVED,
    STEP_LIMIT,
    gradient_flow,
    solve,
)

RANDOM = np.random.RandomState(0)
ROOT = RANDOM.randn(4, 4)
HESSIAN = ROOT @ ROOT.T + np.eye(4)
START = RANDOM.randn(4)


def decay(t, y, args):
    return -HESSIAN @ y


def square(t, y, args):
    return y**2


@jax.jit
def decayed(y, duration):
    """The solve that several tests look at, compiled once."""
    return solve(decay, y, duration)


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


class TestExact:
    def test_linear_decay_is_the_matrix_exponential(self):
        solved = decayed(jnp.asarray(START), 1.5)
        exact = scipy.linalg.expm(-1.5 * HESSIAN) @ START
        # rtol 1e-8 bounds the error of a step, of which there are a few dozen.
        np.testing.assert_allclose(solved.y, exact, rtol=1e-6, atol=1e-8)
        assert solved.result == SOLVED
        assert solved.time == 1.5
        assert not solved.failed

    def test_backwards_returns_to_the_start(self):
        move = jax.jit(lambda y, duration, t0: solve(square, y, duration, t0=t0))
        there = move(jnp.ones(2), 0.5, 0.0)
        back = move(there.y, -0.5, 0.5)
        np.testing.assert_allclose(back.y, 1.0, rtol=1e-7)
        assert back.time == 0.0

    def test_time_and_args_reach_the_field(self):
        solved = solve(lambda t, y, args: args["rate"] * t**2, jnp.zeros(()), 2.0, t0=1.0,
                       args={"rate": 3.0})  # fmt: skip
        np.testing.assert_allclose(solved.y, 3.0**3 - 1, rtol=1e-7)

    def test_trees_of_several_types_keep_them(self):
        y0 = {"a": jnp.ones(2, jnp.float32), "b": (jnp.ones(3, jnp.bfloat16),)}
        solved = jax.jit(lambda: solve(lambda t, y, args: jax.tree.map(jnp.negative, y), y0, 1.0))()
        chex.assert_trees_all_equal_shapes_and_dtypes(solved.y, y0)
        # x64 is on: times as Python floats would have made it float64, at twice the cost.
        assert solved.time.dtype == jnp.float32
        np.testing.assert_allclose(solved.y["a"], np.exp(-1), rtol=1e-5)
        np.testing.assert_allclose(solved.y["b"][0].astype(float), np.exp(-1), rtol=4e-3)

    def test_empty_subtrees_are_no_obstacle(self):
        # diffrax 0.7.2 raises on one inside a loop: optimisers have such states.
        y0 = {"a": jnp.ones(2), "b": (), "c": None}

        def field(t, y, args):
            return jax.tree.map(jnp.negative, y)

        solved = jax.jit(lambda: jax.lax.fori_loop(0, 3, lambda _, y: solve(field, y, 0.5).y, y0))()
        chex.assert_trees_all_equal_structs(solved, y0)
        np.testing.assert_allclose(solved["a"], np.exp(-1.5), rtol=1e-6)

    def test_complex_states(self):
        with pytest.warns(UserWarning, match="Complex dtype support"):
            solved = solve(lambda t, y, args: 1j * y, jnp.ones(1, complex), np.pi)
        np.testing.assert_allclose(solved.y, -1.0, rtol=1e-7)

    @pytest.mark.usefixtures("float32")
    def test_in_single_precision(self):
        solved = solve(decay, jnp.asarray(START), 1.0)
        assert solved.y.dtype == jnp.float32
        exact = scipy.linalg.expm(-HESSIAN) @ START
        np.testing.assert_allclose(solved.y, exact, rtol=1e-4, atol=1e-5)

    def test_an_implicit_solver_is_not_limited_by_stiffness(self):
        rates = jnp.array([1.0, 1e5])
        options = {"rtol": 1e-5, "atol": 1e-5, "max_steps": 500}
        solved = solve(lambda t, y, a: -rates * y, jnp.ones(2), 1.0, solver=diffrax.Kvaerno5(),
                       **options)  # fmt: skip
        np.testing.assert_allclose(solved.y, np.exp([-1.0, -1e5]), atol=1e-4)
        assert solved.evaluations == -1
        explicit = solve(lambda t, y, a: -rates * y, jnp.ones(2), 1.0, **options)
        assert explicit.result == STEP_LIMIT


class TestEqualSteps:
    @pytest.mark.parametrize(
        ("solver", "order", "stages"),
        [
            (diffrax.Euler(), 1, 1),
            (diffrax.Heun(), 2, 2),
            (diffrax.Dopri5(), 5, 6),
        ],
    )
    def test_converge_at_the_order_of_the_solver(self, solver, order, stages):
        counts, end = np.array([30, 80]), 2.0

        def field(t, y, args):
            return jnp.cos(t) * y

        runs = [
            jax.jit(lambda n=n: solve(field, jnp.ones(()), end, solver=solver, steps=int(n)))()
            for n in counts
        ]
        errors = np.array([abs(solved.y - np.exp(np.sin(end))) for solved in runs])
        assert abs(slope(1 / counts, errors) - order) < 0.2
        assert [int(solved.steps) for solved in runs] == counts.tolist()
        first_same_as_last = 1 if order > 2 else 0
        assert runs[0].evaluations == stages * counts[0] + first_same_as_last

    @pytest.mark.parametrize("steps", [1, 490])
    def test_of_euler_are_gradient_descent(self, steps):
        loss, start = data.problems.perturbed_rosenbrock()[1:3]
        tx = optax.sgd(0.03)

        def one(carry, _):
            params, opt_state = carry
            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        (descended, _), _ = jax.jit(
            lambda: jax.lax.scan(one, (start, tx.init(start)), length=steps)
        )()
        solved = jax.jit(
            lambda: solve(
                gradient_flow(loss), start, steps * 0.03, solver=diffrax.Euler(), steps=steps
            )
        )()
        np.testing.assert_allclose(solved.y, descended, rtol=1e-12)
        assert solved.steps == steps

    def test_of_an_implicit_solver_need_its_tolerances(self):
        finder = diffrax.VeryChord(rtol=1e-10, atol=1e-10, norm=optimistix.max_norm)
        solved = solve(
            lambda t, y, args: -y, jnp.ones(2), 1.0,
            solver=diffrax.ImplicitEuler(root_finder=finder), steps=10,
        )  # fmt: skip
        np.testing.assert_allclose(solved.y, 1.1**-10, rtol=1e-8)
        with pytest.raises(ValueError, match="equal ones have none"):
            solve(lambda t, y, args: -y, jnp.ones(2), 1.0, solver=diffrax.Kvaerno5(), steps=10)


class TestFailure:
    durations = jnp.array([0.5, 0.9, 2.0, 0.1])

    @pytest.mark.parametrize("equal", [False, True])
    @pytest.mark.parametrize("strategy", ["vmap", "map", "shard_map"])
    def test_a_blown_up_lane_is_flagged_and_leaves_the_others_alone(self, strategy, equal):
        options = {"solver": diffrax.Euler(), "steps": 200} if equal else {}

        def one(duration):
            return solve(square, jnp.ones(2), duration, **options)

        def run(durations):
            if strategy == "map":
                return jax.lax.map(one, durations)
            if strategy == "vmap":
                return jax.vmap(one)(durations)
            spec, mesh = PartitionSpec("lanes"), Mesh(np.array(jax.devices()), ("lanes",))
            return jax.shard_map(
                jax.vmap(one), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
            )(durations)

        assert len(jax.devices()) == 2
        compiled = jax.jit(run)
        solved = compiled(self.durations)
        np.testing.assert_array_equal(
            solved.result, [SOLVED, SOLVED, NONFINITE if equal else SMALLEST_STEP, SOLVED]
        )
        healthy = compiled(self.durations.at[2].set(0.2))
        keep = np.array([0, 1, 3])
        np.testing.assert_array_equal(solved.y[keep], healthy.y[keep])
        if not equal:
            exact = 1 / (1 - self.durations[keep])
            np.testing.assert_allclose(solved.y[keep], exact[:, None].repeat(2, 1), rtol=1e-6)
            assert jnp.isfinite(solved.y).all()
            np.testing.assert_allclose(solved.time[2], 1.0, atol=1e-3)
            # Cheap: not max_steps.
            assert solved.steps[2] < 250

    @pytest.mark.parametrize("options", [{}, {"first_step": 1.0}, {"steps": 3}])
    def test_a_start_that_is_not_finite_costs_no_step(self, options):
        run = jax.jit(lambda y, time: solve(decay, y, time, **options)) if options else decayed
        for bad in (np.nan, np.inf):
            solved = run(jnp.asarray(START).at[1].set(bad), 1.0)
            assert solved.result == NONFINITE
            assert solved.steps == 0
        assert run(jnp.asarray(START), 1.0).result == SOLVED

    def test_a_field_that_is_not_finite_does_not_hang(self):
        fields = [
            lambda t, y: y * np.nan,
            lambda t, y: y * np.inf,
            lambda t, y: jnp.exp(jnp.exp(50 * y)),
            lambda t, y: jnp.where(t > 0.5, np.nan, -y),
        ]

        @jax.jit
        def run(index):
            field = lambda t, y, args: jax.lax.switch(index, fields, t, y)  # noqa: E731
            return solve(field, jnp.ones(2), 1.0, first_step=1.0)

        for index in range(len(fields)):
            solved = run(index)
            assert solved.result == SMALLEST_STEP
            assert solved.steps < 50
            assert solved.time <= 0.5

    def test_nan_durations_do_not_hang(self):
        solved = decayed(jnp.asarray(START), jnp.nan)
        assert solved.failed
        assert solved.steps < 50

    def test_the_step_limit_is_reported(self):
        solved = solve(lambda t, y, args: -1e4 * y, jnp.ones(2), 1.0, max_steps=20)
        assert solved.result == STEP_LIMIT
        assert solved.steps == 20
        assert "step limit" in RESULTS[int(solved.result)]
        assert 0 < solved.time < 1

    def test_no_callback_to_the_host(self):
        # One would keep the program out of the persistent compilation cache.
        for options in ({}, {"solver": diffrax.Heun(), "steps": 3}):
            lowered = jax.jit(
                lambda d, options=options: solve(square, jnp.ones(2), d, **options)
            ).lower(0.5)
            assert "callback" not in lowered.as_text()


class TestCarrying:
    def test_the_next_step_carries_on(self):
        first = decayed(jnp.asarray(START), 1.0)
        second = jax.jit(lambda y, step: solve(decay, y, 1.0, first_step=step))(
            first.y, first.next_step
        )
        anew = decayed(first.y, 1.0)
        assert second.evaluations <= anew.evaluations
        np.testing.assert_allclose(second.y, anew.y, rtol=1e-6)

    def test_the_first_step_is_found_from_the_field(self):
        # diffrax 0.7.2 starts at 0.01 whatever the field.
        run = jax.jit(lambda rate: solve(lambda t, y, args: -rate * y, jnp.ones(2), 1 / rate))
        for rate in (1e-3, 1e3):
            assert run(rate).steps < 20

    def test_a_solve_may_be_differentiated_forwards(self):
        def end(rate):
            return solve(lambda t, y, args: -rate * y, jnp.ones(()), 1.0).y

        found = jax.jit(lambda rate: jax.jvp(end, (rate,), (1.0,))[1])(2.0)
        np.testing.assert_allclose(found, -np.exp(-2.0), rtol=1e-6)

    def test_a_solve_may_be_differentiated_backwards_on_request(self):
        def end(rate):
            adjoint = diffrax.RecursiveCheckpointAdjoint()
            return solve(
                lambda t, y, args: -rate * y,
                jnp.ones(()),
                1.0,
                adjoint=adjoint,
                solver=diffrax.Euler(),
                steps=4,
            ).y

        # d/dr (1 - r/4)^4
        np.testing.assert_allclose(jax.jit(jax.grad(end))(2.0), -(0.5**3), rtol=1e-14)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"solver": diffrax.Euler()}, r"solver=Euler\(\) estimates no error.*steps=n"),
            ({"steps": 0}, "steps must be a positive integer; got 0"),
            ({"max_steps": None}, "max_steps must be a positive integer; got None"),
            ({"steps": 3, "rtol": 1e-3}, "rtol=0.001 has no effect on 3 equal steps"),
            ({"rtol": 0.0}, "rtol must be positive; got 0.0"),
            ({"smallest_step": 2.0}, "between 0 and 1; got 2.0"),
        ],
    )
    def test_numbers(self, options, message):
        with pytest.raises(ValueError, match=message):
            solve(decay, jnp.asarray(START), 1.0, **options)

    def test_solver(self):
        with pytest.raises(TypeError, match=r"must be a diffrax solver, such as diffrax.Tsit5\(\)"):
            solve(decay, jnp.asarray(START), 1.0, solver=diffrax.Tsit5)  # type: ignore

    def test_state(self):
        with pytest.raises(TypeError, match=r"y0\['n'\] has dtype int64"):
            solve(decay, {"n": jnp.arange(3)}, 1.0)
        with pytest.raises(TypeError, match="nothing to solve for"):
            solve(decay, {}, 1.0)
        with pytest.raises(TypeError, match="make it an array"):
            solve(decay, [1.0], 1.0)

    def test_field(self):
        with pytest.raises(ValueError, match="in the structure of y"):
            solve(lambda t, y, args: (y,), jnp.ones(2), 1.0)
        with pytest.raises(ValueError, match=r"float64\(2,\) it returned float64\(\)"):
            solve(lambda t, y, args: y.sum(), jnp.ones(2), 1.0)
        with pytest.raises(ValueError, match="it returned complex128"):
            solve(lambda t, y, args: 1j * y, jnp.ones(2), 1.0)


def test_importing_flows_leaves_diffrax_out():
    # It takes half a second to import, and only those who solve something need it.
    code = "import sys, driftlab.flows; print('diffrax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
