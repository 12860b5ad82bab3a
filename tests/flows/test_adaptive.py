"""Modified flows of Adam and RMSProp, against the memory and the iterates of optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows import observed_orders, solve
from driftlab.flows.adaptive import (
    adam_flow,
    memory_lag,
    perturbed_one_norm,
    rmsprop_flow,
    rmsprop_start,
)

START = {"a": np.array([1.0, -0.7, 0.9]), "b": np.array([-0.8, 0.6])}
B1, B2 = 0.8, 0.9


def loss(params):
    """Five parameters, no symmetry, all derivatives."""
    a, b = params["a"], params["b"]
    bowl = jnp.sum(jnp.array([1.0, 2.5, 0.6], a.dtype) * (a - 0.2) ** 2) / 2 + jnp.sum(b**2) / 2
    waves = 0.3 * jnp.sin(a[0] * b[0] + a[1]) + 0.3 * jnp.cos(b[0] - 2 * b[1])
    return bowl + waves + 0.1 * jnp.sum(a**4) + 0.2 * a[2] ** 2 * b[1] ** 2


def start(dtype=float):
    return {name: jnp.asarray(value, dtype) for name, value in START.items()}


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def with_memory(tx, direction, iteration):
    """What a transform with unit learning rate adds to a frozen gradient field, by derivatives.

    Its update after gradients `g + h k N`, k iterations back, differentiated in h at 0; and Euler's
    -1/2 times the derivative of the frozen update along itself. Everything optax's, by autodiff.
    """
    gradient = jax.grad(loss)
    params = start()

    def hessian_times(vector):
        return jax.jvp(gradient, (params,), (vector,))[1]

    back = hessian_times(jax.tree.map(jnp.negative, direction))

    def final_update(gradients_of):
        def body(state, k):
            updates, state = tx.update(gradients_of(k), state)
            return state, updates

        _, updates = jax.lax.scan(body, tx.init(params), jnp.arange(iteration, -1.0, -1.0))
        return jax.tree.map(lambda leaf: leaf[-1], updates)

    def of(h):
        g = gradient(params)
        return final_update(lambda k: jax.tree.map(lambda x, n: x + h * k * n, g, back))

    leading, memory = jax.jvp(of, (0.0,), (1.0,))

    def frozen(params):
        g = gradient(params)
        return final_update(lambda k: g)

    _, along = jax.jvp(frozen, (params,), (leading,))
    return jax.tree.map(lambda m, e: m - e / 2, memory, along)


SETTINGS = {
    "inside": {"eps": 0.0, "eps_root": 0.1},
    "outside": {"eps": 1e-3, "eps_root": 0.0},
    "both": {"eps": 0.05, "eps_root": 0.02},
    "neither": {"eps": 0.0, "eps_root": 0.0},
}
EPSILONS = pytest.mark.parametrize("epsilons", SETTINGS.values(), ids=SETTINGS)


class TestFormulas:
    @EPSILONS
    @pytest.mark.parametrize("iteration", [0, 3, 400])
    def test_adam_is_optax_s_memory_and_euler_s_term(self, epsilons, iteration):
        h = 0.01
        tx = optax.adam(1.0, B1, B2, **epsilons)
        field = adam_flow(loss, h, B1, B2, **epsilons)
        # At 400 iterations 0.9^400 is below rounding: the long run.
        stationary = adam_flow(loss, h, B1, B2, **epsilons, stationary=True)

        @jax.jit
        def both():
            g = jax.grad(loss)(start())
            leading = jax.tree.map(
                lambda x: -x / (jnp.sqrt(x**2 + epsilons["eps_root"]) + epsilons["eps"]), g
            )
            correction = with_memory(tx, leading, iteration)
            expected = jax.tree.map(lambda v, c: v + h * c, leading, correction)
            found = field((iteration + 0.5) * h, start(), None)
            return flat(found), flat(expected), flat(stationary(0.0, start(), None)), flat(leading)

        found, expected, settled, leading = both()
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        # The first step without eps is a sign, whatever the learning rate: nothing to correct.
        a_sign = iteration == 0 and not any(epsilons.values())
        assert (np.abs(found - leading).max() > 1e-5) != a_sign
        if iteration == 400:
            np.testing.assert_allclose(settled, expected, rtol=1e-10)

    @pytest.mark.parametrize("eps_in_sqrt", [True, False])
    def test_rmsprop_is_optax_s_memory_and_euler_s_term(self, eps_in_sqrt):
        h, eps = 0.01, 0.05
        options = {"decay": B2, "eps": eps, "eps_in_sqrt": eps_in_sqrt}
        tx = optax.rmsprop(1.0, **options, bias_correction=True)
        field = rmsprop_flow(loss, h, **options)

        @jax.jit
        def both(iteration=7):
            g = jax.grad(loss)(start())
            inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)
            leading = jax.tree.map(lambda x: -x / (jnp.sqrt(x**2 + inside) + outside), g)
            correction = with_memory(tx, leading, iteration)
            expected = jax.tree.map(lambda v, c: v + h * c, leading, correction)
            return flat(field((iteration + 0.5) * h, start(), None)), flat(expected)

        np.testing.assert_allclose(*both(), rtol=1e-10)

    def test_inside_the_root_is_the_published_form(self):
        h, eps = 0.01, 0.1
        field = adam_flow(loss, h, B1, B2, 0.0, eps, stationary=True)
        g = jax.grad(loss)(start())
        norm = lambda p: perturbed_one_norm(jax.grad(loss)(p), eps)  # noqa: E731
        n, g = flat(jax.grad(norm)(start())), flat(g)
        r = np.sqrt(g**2 + eps)
        first, second = (1 + B1) / (1 - B1), (1 + B2) / (1 - B2)
        bracket = first - second + second * eps / r**2
        expected = -(g / r + h / (2 * r) * n * bracket)
        np.testing.assert_allclose(flat(field(0.0, start(), None)), expected, rtol=1e-12)

    def test_large_eps_is_gradient_descent_with_momentum_and_small_is_its_opposite(self):
        """The bracket is (1 + b) / (1 - b) at large eps; with r > b it is negative at small."""
        g = flat(jax.grad(loss)(start()))
        for eps, expected in ((1e8, 9.0), (1e-12, 9.0 - 19.0)):
            # Far from rounding: a learning rate at which the correction is all there is.
            h = 1e12
            correction = flat(adam_flow(loss, h, B1, B2, 0.0, eps, True)(0.0, start(), None))
            root = np.sqrt(g**2 + eps)
            n = flat(jax.grad(lambda p, e=eps: perturbed_one_norm(jax.grad(loss)(p), e))(start()))
            np.testing.assert_allclose(-2 * correction * root / (h * n), expected, rtol=1e-6)

    def test_lag_is_the_mean_age_of_an_average(self):
        for decay in (0.0, 0.5, 0.999):
            for n in (0, 1, 10):
                weights = decay ** np.arange(n + 1.0)
                expected = weights @ np.arange(n + 1.0) / weights.sum()
                np.testing.assert_allclose(memory_lag(decay, n), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(memory_lag(0.9), 9)

    @pytest.mark.usefixtures("float32")
    def test_lag_keeps_its_digits_in_single_precision(self):
        decay = jnp.float32(0.999)
        found = [memory_lag(decay, jnp.float32(n)) for n in (1, 3)]
        np.testing.assert_allclose(found, [0.999 / 1.999, 1.49875], rtol=1e-3)


RATES = np.array([0.008, 0.004, 0.002, 0.001])
TIME = 0.32


def errors(tx, *models):
    """After a fixed time, for each learning rate and each `model(h) -> (field, start)`."""

    def one(pair):
        h, steps = pair

        def body(_, carry):
            params, state = carry
            updates, state = tx(h).update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        last, _ = jax.lax.fori_loop(0, steps, body, (start(), tx(h).init(start())))
        found = []
        for model in models:
            field, at = model(h)
            y = solve(field, at, TIME, rtol=1e-9, atol=1e-11).y
            found.append(jnp.linalg.norm(flat(y) - flat(last)))
        return found

    pairs = (jnp.asarray(RATES), jnp.asarray(np.rint(TIME / RATES).astype(int)))
    return [np.asarray(e) for e in jax.jit(lambda: jax.lax.map(one, pairs))()]


class TestOrders:
    @pytest.mark.parametrize("name", ["inside", "outside"])
    def test_adam(self, name):
        epsilons = SETTINGS[name] | ({"eps": 0.3} if name == "outside" else {})

        def leading(h):
            # The flow's first term: the correction is proportional to h.
            return adam_flow(loss, 1e-12 * h, B1, B2, **epsilons, stationary=True), start()

        young, settled, first = errors(
            lambda h: optax.adam(h, B1, B2, **epsilons),
            lambda h: (adam_flow(loss, h, B1, B2, **epsilons), start()),
            lambda h: (adam_flow(loss, h, B1, B2, **epsilons, stationary=True), start()),
            leading,
        )
        np.testing.assert_allclose(observed_orders(RATES, young)[-1], 2, atol=0.2)
        np.testing.assert_allclose(observed_orders(RATES, settled)[-1], 2, atol=0.3)
        np.testing.assert_allclose(observed_orders(RATES, first)[-1], 1, atol=0.2)
        assert young[-1] < settled[-1] < first[-1]

    def test_rmsprop_without_bias_correction_needs_its_start(self):
        def model(h):
            return rmsprop_flow(loss, h, B2, 0.1, stationary=True)

        shifted, raw = errors(
            lambda h: optax.rmsprop(h, B2, 0.1),
            lambda h: (model(h), rmsprop_start(loss, h, B2, 0.1)(start())),
            lambda h: (model(h), start()),
        )
        np.testing.assert_allclose(observed_orders(RATES, shifted)[-1], 2, atol=0.2)
        np.testing.assert_allclose(observed_orders(RATES, raw)[-1], 1, atol=0.2)

    def test_rmsprop_with_bias_correction(self):
        (found,) = errors(
            lambda h: optax.rmsprop(h, B2, 0.1, bias_correction=True),
            lambda h: (rmsprop_flow(loss, h, B2, 0.1), start()),
        )
        np.testing.assert_allclose(observed_orders(RATES, found)[-1], 2, atol=0.2)


class TestEdges:
    def test_a_gradient_of_zero_gives_no_velocity_and_no_nan(self):
        for epsilons in SETTINGS.values():
            field = adam_flow(lambda p: jnp.sum(p[:1] ** 2), 0.1, **epsilons)
            found = field(0.0, jnp.array([1.0, 3.0]), None)
            assert np.isfinite(found).all()
            assert found[1] == 0

    def test_small_gradients_keep_their_sign_in_single_precision(self):
        field = adam_flow(lambda p: 1e-25 * jnp.sum(p), 0.1, eps=0.0)
        np.testing.assert_allclose(field(0.0, jnp.ones(2, jnp.float32), None), -1)

    @pytest.mark.parametrize("traced", [False, True])
    def test_single_precision_stays(self, traced):
        def slopes(h, b1, b2, eps):
            field = adam_flow(loss, h, b1, b2, eps)
            shifted = rmsprop_start(loss, h, b2, eps, terms=3)(start(jnp.float32))
            return field(jnp.float32(0.1), start(jnp.float32), None), shifted

        found = (jax.jit(slopes) if traced else slopes)(0.1, 0.9, 0.99, 1e-3)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}

    def test_hyper_parameters_are_lanes(self):
        def slope(b2, eps):
            return flat(adam_flow(loss, 0.01, B1, b2, eps)(0.1, start(), None))

        decays, epsilons = jnp.array([0.0, 0.9]), jnp.array([0.0, 0.1])
        lanes = jax.jit(jax.vmap(slope))(decays, epsilons)
        for lane, b2, eps in zip(lanes, decays, epsilons, strict=True):
            np.testing.assert_allclose(lane, slope(float(b2), float(eps)), rtol=1e-12)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: adam_flow(loss, 0.0), r"learning_rate=0.0 must be positive"),
            (lambda: adam_flow(loss, 0.1, b1=1.0), r"b1=1.0 must be at least 0 and less than 1"),
            (lambda: adam_flow(loss, 0.1, b2=-0.1), r"b2=-0.1"),
            (lambda: adam_flow(loss, 0.1, eps=-1e-8), r"eps=-1e-08"),
            (lambda: rmsprop_flow(loss, 0.1, decay=2.0), r"decay=2.0"),
            (lambda: rmsprop_start(loss, -0.1), r"learning_rate=-0.1"),
        ],
    )
    def test_bad_input_is_refused_by_name(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
