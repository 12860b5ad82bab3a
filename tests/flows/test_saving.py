import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from driftlab.flows import NONFINITE, SMALLEST_STEP, SOLVED, gradient_flow, solve
from driftlab.flows.saving import gradients_per_evaluation, solve_at
from tests.flows.problems import digits_network

ROOT = np.random.RandomState(0).randn(4, 4)
HESSIAN = ROOT @ ROOT.T + np.eye(4)
START = jnp.asarray(np.random.RandomState(1).randn(4))
TIMES = np.array([0.0, 0.3, 0.35, 1.0, 2.0])


def decay(t, y, args):
    return -HESSIAN @ y


def square(t, y, args):
    return y**2


class TestValues:
    @pytest.mark.parametrize("options", [{}, {"rtol": 1e-10}])
    def test_are_the_exponential_s_at_every_time(self, options):
        found = jax.jit(lambda y: solve_at(decay, y, TIMES, **options))(START)
        exact = np.stack([scipy.linalg.expm(-t * HESSIAN) @ START for t in TIMES])
        np.testing.assert_allclose(found.values, exact, atol=1e-7)
        assert found.solved.result == SOLVED
        assert found.solved.time == 2.0

    def test_are_reductions(self):
        def save(y):
            return {"norm": jnp.linalg.norm(y), "first": y[:1]}

        found = solve_at(decay, START, TIMES, save)
        whole = solve_at(decay, START, TIMES)
        np.testing.assert_array_equal(found.values["norm"], jnp.linalg.norm(whole.values, axis=1))
        assert found.values["first"].shape == (5, 1)

    def test_backwards_and_from_a_later_start(self):
        there = solve_at(square, jnp.ones(()), [1.3, 1.5], t0=1.0)
        np.testing.assert_allclose(there.values, 1 / (1 - np.array([0.3, 0.5])), rtol=1e-7)
        back = solve_at(square, there.solved.y, [1.2, 1.0], t0=1.5)
        np.testing.assert_allclose(back.values[-1], 1.0, rtol=1e-7)

    def test_cost_little_more_than_one_solve(self):
        whole = solve(decay, START, 2.0)
        few = solve_at(decay, START, [0.5, 1.0, 1.5, 2.0])
        # A step cut short a time, and at the start a few that find the first one by trying.
        assert few.solved.steps <= whole.steps + 4 + 4
        assert few.solved.evaluations <= whole.evaluations + 4 * 7 + 4 * 6

    def test_of_equal_steps(self):
        import diffrax

        found = solve_at(lambda t, y, a: -y, jnp.ones(2), [0.5, 1.0], solver=diffrax.Euler(),
                         steps=5)  # fmt: skip
        np.testing.assert_allclose(found.values[:, 0], [0.9**5, 0.9**10], rtol=1e-13)
        assert found.solved.steps == 10

    def test_keep_single_precision(self):
        found = solve_at(decay_32, START.astype(jnp.float32), jnp.asarray(TIMES))
        assert found.values.dtype == jnp.float32
        assert found.solved.time.dtype == jnp.float32


def decay_32(t, y, args):
    return -y


class TestFailure:
    def test_unsaved_slots_are_nan_and_cost_nothing(self):
        # diffrax leaves inf in them, and interpolates past the failure. 1 / (1 - t) at t = 1.
        times = [0.5, 0.9, 1.5, 2.0, 3.0]
        found = jax.jit(lambda y: solve_at(square, y, times))(jnp.ones(2))
        np.testing.assert_allclose(found.values[:2, 0], [2.0, 10.0], rtol=1e-6)
        assert jnp.isnan(found.values[2:]).all()
        assert found.solved.result == SMALLEST_STEP
        np.testing.assert_allclose(found.solved.time, 1.0, atol=1e-3)
        assert jnp.isfinite(found.solved.y).all()
        short = solve_at(square, jnp.ones(2), times[:3])
        assert found.solved.steps == short.solved.steps

    def test_one_lane_s_leaves_the_others_alone(self):
        run = jax.jit(jax.vmap(lambda y: solve_at(square, y, [0.5, 1.5])))
        found = run(jnp.array([0.1, 1.0, 0.2]))
        np.testing.assert_array_equal(found.solved.result, [SOLVED, SMALLEST_STEP, SOLVED])
        healthy = run(jnp.array([0.1, 0.3, 0.2]))
        np.testing.assert_array_equal(found.values[::2], healthy.values[::2])

    def test_a_start_that_is_not_finite(self):
        found = solve_at(square, jnp.array([jnp.nan]), [0.5, 1.0])
        assert found.solved.result == NONFINITE
        assert found.solved.steps == 0

    def test_no_callback_to_the_host(self):
        lowered = jax.jit(lambda y: solve_at(decay, y, TIMES, jnp.linalg.norm)).lower(START)
        assert "callback" not in lowered.as_text()


@pytest.mark.parametrize(
    ("times", "save", "message"),
    [
        ([0.5, 0.2], None, r"times must go from t0=0.0 on in order.*got \[0.5, 0.2\]"),
        ([0.5, -0.2], None, "times must go from"),
        (1.0, None, "times must be a sequence"),
        ([], None, "times must be a sequence"),
        ([1.0], lambda y: jnp.argmax(y), "dtype int64, which has no NaN"),
    ],
)
def test_what_cannot_be_saved_is_refused(times, save, message):
    with pytest.raises(ValueError, match=message):
        solve_at(decay, START, times, save)


def test_cost_is_counted_in_gradients():
    loss, params = digits_network()
    gradient = jax.grad(loss)

    def igr(t, y, args):
        # One gradient and one product with the Hessian, in one pass.
        g = gradient(y)
        _, bent = jax.jvp(gradient, (y,), (g,))
        return jax.tree.map(lambda g, hg: -(g + 0.1 * hg), g, bent)

    np.testing.assert_allclose(
        gradients_per_evaluation(gradient_flow(loss), loss, params), 1, atol=0.01
    )

    def twice(t, y, args):
        return gradient(gradient(y))

    np.testing.assert_allclose(gradients_per_evaluation(twice, loss, params), 2, atol=0.01)
    # The product is 2 gradients' operations here, and the gradient inside it is a third.
    assert 2 < gradients_per_evaluation(igr, loss, params) < 4.2
    with pytest.raises(ValueError, match="no floating-point operation"):
        gradients_per_evaluation(twice, lambda p: jnp.zeros(()), params)
