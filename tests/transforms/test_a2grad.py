"""A2Grad against the paper's three sequences, printed values, its bounds, and the PyTorch ports."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.dynamics import eval_params
from driftlab.transforms.a2grad import A2GradState, a2grad

NAMES = ("uniform", "incremental", "exponential")
EIGENVALUES, LINEAR = np.array([10.0, 3.0, 1.0, 0.1]), np.array([1.0, -2.0, 0.5, 0.3])
MINIMIZER = LINEAR / EIGENVALUES


def three_sequences(gradient, start, steps, level, beta, squares_to_scale):
    """Algorithms 2 to 6 as they are printed, in NumPy: the y_k, xbar_k and x_k, k = 0 .. steps."""
    x, average = start.copy(), np.full_like(start, 123.0)  # xbar_0 has no say: alpha_0 = 1
    gradients, squares, paths = [], [], []
    for k in range(steps + 1):
        alpha = 2 / (k + 2)
        y = (1 - alpha) * average + alpha * x
        paths.append((y, average, x))
        gradients.append(gradient(y, k))
        squares.append((gradients[-1] - np.mean(gradients, axis=0)) ** 2)
        gamma = 2 * level / (k + 1)
        x = x - gradients[-1] / (gamma + beta * squares_to_scale(np.array(squares)))
        average = (1 - alpha) * average + alpha * x
    return [np.array(path) for path in zip(*paths, strict=True)]


def closed_form(variant, decay=0.9):
    """h_k of the squared deviations up to k, from its sum or maximum, not by a recursion."""

    def polynomial(squares, q):
        weights = np.arange(1, len(squares) + 1.0) ** q
        return np.sqrt(np.tensordot(weights, squares, 1) / weights[-1])

    def exponential(squares):
        averages = [squares[0]]
        for square in squares[1:]:
            averages.append(decay * averages[-1] + (1 - decay) * square)
        return np.sqrt(len(squares) * np.max(averages, axis=0))

    known = {"uniform": 0.0, "incremental": 2.0, "polynomial": 1.0}
    return exponential if variant == "exponential" else partial(polynomial, q=known[variant])


def iterate(tx, gradient, start, steps):
    """The y_k, xbar_k and x_k of the transformation, k = 0 .. steps."""

    def one(carry, k):
        params, state = carry
        here = params, eval_params(state, params), state.mirror
        updates, state = tx.update(gradient(params, k), state, params)
        return (optax.apply_updates(params, updates), state), here

    @jax.jit
    def run():
        params = jnp.asarray(start)
        return jax.lax.scan(one, (params, tx.init(params)), jnp.arange(steps + 1))[1]

    return run()


def noisy(noise):
    """The gradient of the quadratic plus given noise."""
    noise = jnp.asarray(noise)
    return lambda params, k: EIGENVALUES * params - LINEAR + noise[k]


def gap(params):
    """f - f* of the quadratic; any leading axes."""
    return 0.5 * np.sum(EIGENVALUES * (np.asarray(params) - MINIMIZER) ** 2, axis=-1)


class TestPublished:
    @pytest.mark.parametrize("variant", [*NAMES, "polynomial"])
    @pytest.mark.parametrize("beta", [0.3, 10.0])
    def test_are_the_three_sequences(self, variant, beta):
        """200 steps with noise: one sequence of the state and the params are all three."""
        noise = np.random.RandomState(3).randn(201, 4)
        extra = {"q": 1.0} if variant == "polynomial" else {}
        tx = a2grad(10.0, beta, variant, **extra)
        found = iterate(tx, noisy(noise), np.ones(4), 200)
        expected = three_sequences(
            lambda y, k: EIGENVALUES * y - LINEAR + noise[k],
            np.ones(4),
            200,
            10.0,
            beta,
            closed_form(variant),
        )
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[1][1:], expected[1][1:], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=1e-12)

    # f = 2 x^2, L = 4, beta = 1: printed in the reference to ten digits.
    @pytest.mark.parametrize(
        ("variant", "expected"),
        [
            ("uniform", [0.5, 0.1666666667, 0.0366619776, -0.0113533633, -0.0257872222]),
            ("incremental", [0.5, 0.1666666667, 0.0329432968, -0.0153650448, -0.0268694907]),
            ("exponential", [0.5, 0.1252335016, 0.0009084143, -0.0281755375, -0.0277323753]),
        ],
    )
    def test_are_the_printed_values(self, variant, expected):
        found = iterate(a2grad(4.0, 1.0, variant), lambda x, k: 4 * x, np.ones(1), 5)
        np.testing.assert_allclose(found[0][1:, 0], expected, rtol=0, atol=6e-11)
        if variant == "uniform":
            averages = [0.5, 0.2333333333, 0.0928537935, 0.0233823556, -0.0079073757]
            np.testing.assert_allclose(found[1][1:, 0], averages, rtol=0, atol=6e-11)

    # The end of the same run in torch-optimizer 0.3.0, `A2GradUni([p], beta=10, lips=10)` and so on
    # (rho=0.9), on a double-precision parameter p = (1, 1, 1, 1) with p.grad as below.
    @pytest.mark.parametrize(
        ("variant", "expected"),
        [
            ("uniform", 0.13993187966157375),
            ("incremental", 0.08453206708564069),
            ("exponential", 0.15650195859320437),
        ],
    )
    def test_one_scale_a_tensor_is_the_ports_method_and_does_worse(self, variant, expected):
        noise = 0.3 * np.random.RandomState(0).randn(501, 4)
        scalar = iterate(
            a2grad(10.0, 10.0, variant, per_coordinate=False), noisy(noise), np.ones(4), 500
        )
        np.testing.assert_allclose(gap(scalar[0][-1]), expected, rtol=1e-11)
        published = iterate(a2grad(10.0, 10.0, variant), noisy(noise), np.ones(4), 500)
        assert gap(published[0][-1]) < gap(scalar[0][-1]) / 4


class TestTheory:
    def test_without_noise_the_bound_of_acceleration_holds_at_every_step(self):
        """beta = 0: f(xbar_{K+1}) - f* <= 2 L |x_0 - x*|^2 / ((K + 1) (K + 2))."""
        found = iterate(a2grad(10.0, 0.0), noisy(np.zeros((1001, 4))), np.ones(4), 1000)
        k = np.arange(1000)
        bound = 2 * 10 * np.sum((1 - MINIMIZER) ** 2) / ((k + 1) * (k + 2))
        ratio = gap(found[1][1:]) / bound
        assert ratio.argmax() == 17
        np.testing.assert_allclose(ratio.max(), 0.165, atol=5e-4)

    @pytest.mark.parametrize("variant", NAMES)
    def test_the_scale_times_its_step_never_falls(self, variant):
        """(k + 1) h_k, which the theorems need; and the recursions are the sums."""
        noise = np.random.RandomState(1).randn(300, 3) * np.exp(
            2 * np.random.RandomState(2).randn(300, 3)
        )
        tx, squares = a2grad(1.0, 1.0, variant), noise**2
        update = jax.jit(tx.update)
        params = jnp.zeros(3)
        state, scales = tx.init(params), []
        for k, row in enumerate(noise):
            _, state = update(jnp.asarray(row), state, params, exact_gradient=jnp.zeros(3))
            factor = k + 1 if variant == "exponential" else 1
            scales.append(np.sqrt(factor * np.asarray(state.accumulator)))
        form = closed_form(variant)
        expected = [form(squares[: k + 1]) for k in range(300)]
        np.testing.assert_allclose(scales, expected, rtol=1e-12)
        growing = np.arange(1, 301)[:, None] * np.array(scales)
        assert (np.diff(growing, axis=0) >= -1e-12 * growing[1:]).all()

    @pytest.mark.parametrize("variant", NAMES)
    def test_the_deterministic_and_the_noisy_part_are_slopes(self, variant):
        """f(xbar_k) - f* is O(L / k^2) + O(sigma / sqrt(k)): each of the two by itself.

        A quadratic with as many eigenvalues in every decade below L and x_0 - x* = 1 in each: what
        is not fitted at k are the eigenvalues below L / k^2, or below beta sigma / sqrt(k), so that
        the bound's rate shows, not the exponential one of strong convexity. With beta = 10 the
        noise displaces x by little, as the bound on |x_k - x*| asks for.
        """
        eigenvalues, sigmas, steps = np.geomspace(1.0, 1e-6, 31), [0.0, 0.01, 0.02], 3000

        def gaps(sigma, seed):
            tx, key = a2grad(1.0, 10.0, variant), jax.random.key(seed)

            def one(carry, k):
                params, state = carry
                exact = eigenvalues * params
                noise = sigma * jax.random.normal(jax.random.fold_in(key, k), params.shape)
                updates, state = tx.update(exact + noise, state, params, exact_gradient=exact)
                params = params + updates
                value = 0.5 * jnp.sum(eigenvalues * state.eval_params(params) ** 2)
                return (params, state), value

            params = jnp.ones(31)
            return jax.lax.scan(one, (params, tx.init(params)), jnp.arange(steps))[1]

        lanes = jax.vmap(jax.vmap(gaps, (None, 0)), (0, None))
        found = np.mean(jax.jit(lanes)(jnp.array(sigmas), jnp.arange(8)), axis=1)

        def slope(curve, first, last):
            k = np.unique(np.geomspace(first, last, 40).astype(int))
            return np.polyfit(np.log(k), np.log(curve[k - 1]), 1)[0]

        np.testing.assert_allclose(slope(found[0], 30, 300), -2, atol=0.05)
        for curve in found[1:]:
            np.testing.assert_allclose(slope(curve, 200, steps), -0.5, atol=0.06)
        ratios = found[2, 200:] / found[1, 200:]
        np.testing.assert_allclose(np.log2(ratios).mean(), 1, atol=0.15)

    def test_projection_keeps_all_sequences_in_the_set(self):
        """The minimiser over a box, with the bound where the free one lies outside."""
        low, high = -0.5, 0.05

        def box(point, metric):
            chex.assert_trees_all_equal_shapes(point, metric)
            return jnp.clip(point, low, high)

        start = np.full(4, -0.5)
        found = iterate(a2grad(10.0, 0.1, projection=box), noisy(np.zeros((801, 4))), start, 800)
        for path in found:
            assert ((path >= low - 1e-12) & (path <= high + 1e-12)).all()
        expected = np.clip(MINIMIZER, low, high)
        np.testing.assert_allclose(found[1][-1], expected, atol=2e-3)


class TestTransformation:
    def test_a_scalar_scale_s_metric_reaches_the_projection_in_full(self):
        shapes = []

        def keep(point, metric):
            shapes.append(jax.tree.map(jnp.shape, metric))
            return point

        params = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
        tx = a2grad(per_coordinate=False, projection=keep)
        jax.eval_shape(tx.update, params, tx.init(params), params)
        assert shapes == [{"w": (2, 3), "b": ()}]

    def test_lanes_of_l_and_beta_are_single_runs_and_schedules(self):
        noise = np.random.RandomState(5).randn(31, 4)

        def last(level, beta, variant="uniform", **extra):
            return iterate(a2grad(level, beta, variant, **extra), noisy(noise), np.ones(4), 30)[1][
                -1
            ]

        levels, betas = jnp.array([1.0, 10.0]), jnp.array([0.5, 20.0])
        lanes = jax.vmap(last)(levels, betas)
        alone = [last(1.0, 0.5), last(lambda k: 10.0, lambda k: 20.0)]
        np.testing.assert_allclose(lanes, alone, rtol=1e-12)
        polynomial = jax.vmap(lambda q: last(1.0, 0.5, "polynomial", q=q))(jnp.array([0.0, 2.0]))
        ends = [last(1.0, 0.5, name) for name in ("uniform", "incremental")]
        np.testing.assert_allclose(polynomial, ends, rtol=1e-12)
        decays = jax.vmap(lambda d: last(1.0, 0.5, "exponential", decay=d))(jnp.array([0.5]))
        alone = last(1.0, 0.5, "exponential", decay=0.5)
        np.testing.assert_allclose(decays[0], alone, rtol=1e-12)
        followed = last(lambda k: 1.0 + k, 0.5)
        assert np.abs(followed - alone).max() > 1e-3

    def test_inject_hyperparams_makes_them_entries_of_the_state(self):
        noise = np.random.RandomState(5).randn(6, 4)
        injected = optax.inject_hyperparams(a2grad)(lipschitz=2.0, beta=3.0)
        state = injected.init(jnp.ones(4))
        assert {"lipschitz", "beta"} <= set(state.hyperparams)
        params, plain = jnp.ones(4), a2grad(2.0, 3.0)
        other, ours = params, plain.init(params)
        for row in noise:
            updates, state = injected.update(params + row, state, params)
            params = params + updates
            updates, ours = plain.update(other + row, ours, other)
            other = other + updates
        np.testing.assert_allclose(params, other, rtol=1e-12)
        np.testing.assert_allclose(eval_params(state, params), ours.eval_params(other), rtol=1e-12)

    def test_weight_decay_before_it_is_the_penalty_s_gradient(self):
        noise = np.random.RandomState(6).randn(41, 4)
        chained = optax.chain(optax.add_decayed_weights(0.3), a2grad(10.0, 1.0))
        plain = a2grad(10.0, 1.0)

        def run(tx, gradient):
            def one(carry, k):
                params, state = carry
                updates, state = tx.update(gradient(params, k), state, params)
                return (params + updates, state), None

            params = jnp.ones(4)
            (params, state), _ = jax.lax.scan(one, (params, tx.init(params)), jnp.arange(40))
            return params, eval_params(state, params)

        found = run(chained, noisy(noise))
        penalized = run(plain, lambda p, k: noisy(noise)(p, k) + 0.3 * p)
        np.testing.assert_allclose(found, penalized, rtol=1e-12)

    def test_snapshots_see_the_average(self):
        objective = driftlab.Objective(lambda p, batch: jnp.sum(p["w"] ** 2) + p["b"] ** 2)
        start = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
        dynamics = driftlab.descent(optax.chain(optax.clip(1e3), a2grad(2.0, 1.0)), objective)
        state = dynamics.init(start, jax.random.key(0))
        chex.assert_trees_all_equal(dynamics.observe(state).eval_params, start)
        for _ in range(3):
            state = dynamics.step(state)
        found = dynamics.observe(state).eval_params
        ours = next(s for s in state.inner if isinstance(s, A2GradState))
        k = 3
        expected = jax.tree.map(lambda y, x: ((k + 2) * y - 2 * x) / k, state.params, ours.mirror)
        chex.assert_trees_all_close(found, expected, rtol=1e-13)
        assert float(jnp.abs(found["w"] - state.params["w"]).max()) > 1e-3

    def test_some_leaves_only(self):
        """Masked: the rest is evaluated where it stands."""
        params = {"w": jnp.ones(2), "b": jnp.ones(3)}
        tx = optax.masked(a2grad(1.0, 1.0), {"w": True, "b": False})
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        found = eval_params(state, params)
        np.testing.assert_array_equal(found["b"], params["b"])
        assert (found["w"] != params["w"]).all()

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_its_memory_is_in_single_precision_at_least(self, dtype):
        params = jnp.ones(3, dtype)
        tx = a2grad(2.0, 1.0, "exponential")
        state = tx.init(params)
        updates, state = tx.update(params, state, params)
        assert updates.dtype == state.eval_params(params).dtype == dtype
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
        assert kinds == {"float32", "int32"}

    def test_params_may_be_donated(self):
        params = jnp.ones(3)
        state = a2grad().init(params)
        assert state.mirror.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()

    @pytest.mark.parametrize("variant", NAMES)
    def test_nan_in_nan_out(self, variant):
        params = jnp.ones(2)
        tx = a2grad(variant=variant)
        updates, state = tx.update(jnp.full(2, jnp.nan), tx.init(params), params)
        assert np.isnan(updates).all()
        updates, _ = tx.update(jnp.ones(2), state, params)
        assert np.isnan(updates).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lipschitz": 0.0}, r"lipschitz=0.0 must be positive"),
        ({"lipschitz": float("inf")}, r"lipschitz=inf must be positive and finite"),
        ({"beta": -1.0}, r"beta=-1.0 must be 0 or more"),
        ({"beta": np.ones(2)}, r"beta must be a scalar; got shape \(2,\).*lane axis"),
        ({"decay": 1.0}, r"decay=1.0 must be at least 0 and below 1"),
        ({"decay": lambda k: 0.5}, r"decay must be a number, not a schedule"),
        ({"variant": "uni"}, r"variant='uni' must be one of \('uniform'"),
        ({"variant": "polynomial"}, r"variant='polynomial', q=None: give a q"),
        ({"q": 1.0}, r"variant='uniform', q=1.0: give a q"),
        ({"variant": "polynomial", "q": 2.5}, r"q=2.5 must be from 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        a2grad(**arguments)


def test_bad_params_are_refused():
    tx = a2grad()
    with pytest.raises(ValueError, match="needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(TypeError, match=r"parameter \['steps'\] has dtype int32"):
        tx.init({"w": jnp.ones(2), "steps": jnp.zeros((), jnp.int32)})
