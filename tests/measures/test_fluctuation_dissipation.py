"""The relations against exact identities, Lyapunov equations and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import driftlab
from driftlab import sampling
from driftlab.measures.fluctuation_curvature import hessian_magnitude, second_relation
from driftlab.measures.fluctuation_dissipation import first_relation, weight_norm_balance
from driftlab.measures.fluctuation_tracking import (
    relation_terms,
    track_fluctuation_dissipation,
    tracked_state,
)

KEY = jax.random.key(1)
RANDOM = np.random.RandomState(4)
# Five cases of (learning rate, momentum, dampening).
CASES = [(0.1, 0.0, 0.0), (0.5, 0.0, 0.0), (0.1, 0.9, 0.0), (0.1, 0.9, 0.9), (0.3, 0.5, 0.2)]

# A quadratic whose batch gradient is H theta - z, z drawn from data of mean 0.
HESSIAN = np.array([[2.0, 0.4, 0.1], [0.4, 1.0, -0.3], [0.1, -0.3, 0.5]])
NOISE = RANDOM.standard_normal((64, 3)) * np.array([1.0, 0.5, 2.0])
NOISE -= NOISE.mean(0)
COVARIANCE = NOISE.T @ NOISE / 64


def quadratic(params, batch):
    return params @ jnp.asarray(HESSIAN, params.dtype) @ params / 2 - (batch @ params).mean()


QUADRATIC = driftlab.Objective(quadratic, NOISE, sampling.with_replacement(1))


def heavy_ball(learning_rate, momentum, dampening):
    """`v' = mu v - (1 - nu) g`, `theta' = theta + eta v'` as an optax chain."""
    return optax.chain(
        optax.scale(1 - dampening), optax.trace(momentum), optax.scale(-learning_rate)
    )


def stationary(learning_rate, momentum, dampening):
    """The stationary covariances (theta theta, theta v, v v), from the Lyapunov equation."""
    identity, share = np.eye(3), 1 - dampening
    step = np.block(
        [
            [identity - learning_rate * share * HESSIAN, learning_rate * momentum * identity],
            [-share * HESSIAN, momentum * identity],
        ]
    )
    enters = share * np.vstack([learning_rate * identity, identity])
    found = scipy.linalg.solve_discrete_lyapunov(step, enters @ COVARIANCE @ enters.T)
    return found[:3, :3], found[:3, 3:], found[3:, 3:]


def sides(learning_rate, momentum, dampening):
    """Both sides of both relations, exactly."""
    theta, mixed, velocity = stationary(learning_rate, momentum, dampening)
    share = 1 - dampening
    return {
        "first_relation_left": np.trace(HESSIAN @ theta),
        "first_relation_right": (1 + momentum) * learning_rate * np.trace(velocity) / (2 * share),
        "second_relation_left": share * np.trace(HESSIAN @ HESSIAN @ theta)
        - momentum * np.trace(HESSIAN @ mixed),
        "second_relation_right": learning_rate / 2 * np.trace(HESSIAN @ velocity),
    }


@pytest.mark.parametrize("case", CASES)
def test_the_relations_are_exact_on_a_quadratic(case):
    found = sides(*case)
    for name in ("first", "second"):
        left, right = (found[f"{name}_relation_{side}"] for side in ("left", "right"))
        np.testing.assert_allclose(left, right, rtol=1e-10)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_closed_forms_without_momentum(rate):
    curvatures, basis = np.linalg.eigh(HESSIAN)
    variances = np.diag(basis.T @ COVARIANCE @ basis)
    found = sides(rate, 0.0, 0.0)
    first = (rate * variances / (2 - rate * curvatures)).sum()
    second = (rate * curvatures * variances / (2 - rate * curvatures)).sum()
    np.testing.assert_allclose(found["first_relation_left"], first, rtol=1e-10)
    np.testing.assert_allclose(found["second_relation_left"], second, rtol=1e-10)


@pytest.fixture(scope="module")
def monte_carlo():
    """`case -> both relations on 32 lanes of driftlab's own descent`, one program for all cases."""

    @jax.jit
    def run(learning_rate, momentum, dampening):
        tx = track_fluctuation_dissipation(
            heavy_ball(learning_rate, momentum, dampening), learning_rate, momentum, dampening
        )
        dynamics = driftlab.descent(tx, QUADRATIC)
        second = second_relation()

        def lane(key):
            start = dynamics.init(jnp.zeros(3), key)

            def record(carry, _):
                state, memory = carry
                _, memory = second.update(dynamics.observe(state), memory)
                state = jax.lax.fori_loop(0, 20, lambda _, state: dynamics.step(state), state)
                return (state, memory), None

            first = (start, second.init(start.params))
            (state, memory), _ = jax.lax.scan(record, first, length=900)
            snapshot = dynamics.observe(state)
            return first_relation()(snapshot) | second.update(snapshot, memory)[0]

        return jax.vmap(lane)(jax.random.split(KEY, 32))

    return run


@pytest.mark.parametrize("case", CASES)
def test_descent_agrees_with_the_lyapunov_equation(case, monte_carlo):
    found = monte_carlo(*(jnp.asarray(x) for x in case))
    for name, exact in sides(*case).items():
        lanes = found[name]
        error = lanes.std(ddof=1) / len(lanes) ** 0.5
        # Four standard errors: 20 comparisons.
        np.testing.assert_allclose(lanes.mean(), exact, rtol=0, atol=4 * error, err_msg=name)
        # The error bars are those of the lanes' spread, to what 32 lanes and blocks of 512 steps
        # can tell. The first left side differs from the right by a telescoping sum, whose ends
        # every block has but the whole window has once: its bars are too long there.
        ratio = jnp.sqrt((found[f"{name}_error"] ** 2).mean()) / lanes.std(ddof=1)
        assert 0.65 < ratio < (3 if name == "first_relation_left" else 1.5), (name, ratio)
    # Every lane for itself within 2% of 1, in the linear regime.
    np.testing.assert_allclose(found["first_relation_ratio"], 1.0, atol=0.02)
    spread = found["first_relation_ratio"].std(ddof=1)
    assert (found["first_relation_ratio_error"] > 0.7 * spread).all()  # an upper bound
    np.testing.assert_array_equal(found["first_relation_steps"], 18000 - 17 * 512)


def curved(params, batch):
    """Not convex, with no symmetry, and with L2 in the loss."""
    hidden = jnp.tanh(batch @ params["matrix"])
    return jnp.mean((hidden @ params["vector"] - batch[:, 0]) ** 2) + 0.01 * optax.tree.norm(
        params, squared=True
    )


CURVED = driftlab.Objective(
    curved, RANDOM.standard_normal((20, 4)), sampling.shuffled_epochs(batch_size=5)
)
START = {"matrix": RANDOM.standard_normal((4, 3)), "vector": RANDOM.standard_normal(3)}
CHAINS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.05, 0.9),
    "nesterov": optax.sgd(0.05, 0.9, nesterov=True),
    "adam": optax.adam(0.02),
    "adamw": optax.adamw(0.02, weight_decay=0.1),
    "decay before": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9)),
    "clipped": optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.3)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_relation_telescopes_for_every_chain(name):
    dynamics = driftlab.descent(track_fluctuation_dissipation(CHAINS[name]), CURVED)

    @jax.jit
    def run(state):
        def step(state, _):
            snapshot = dynamics.observe(state)
            return snapshot.next_state, (snapshot.params, weight_norm_balance(snapshot))

        return jax.lax.scan(step, state, length=300)

    end, (path, balance) = run(dynamics.init(START, KEY))
    norms = np.array(
        [optax.tree.norm(jax.tree.map(lambda x, k=k: x[k], path), squared=True) for k in range(300)]
    )
    norms = np.append(norms, optax.tree.norm(end.params, squared=True))
    change = balance["weight_norm_push"] - balance["weight_norm_pull"]
    np.testing.assert_allclose(change, np.diff(norms), atol=1e-12)
    left, right, squared = tracked_state(end.inner, "test").window.sums.sum(0)
    np.testing.assert_allclose(left - right, -(norms[-1] - norms[0]) / 2, atol=1e-11)
    np.testing.assert_allclose(squared, norms[:-1].sum(), rtol=1e-12)
    plain = driftlab.descent(CHAINS[name], CURVED)
    bare = jax.jit(lambda s: jax.lax.fori_loop(0, 300, lambda _, s: plain.step(s), s))
    for ours, theirs in zip(
        jax.tree.leaves(end.params),
        jax.tree.leaves(bare(plain.init(START, KEY)).params),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("case", [*CASES, (0.05, 0.9, 0.0)])
def test_the_relation_with_momentum_telescopes_at_every_step(case):
    rate, momentum, dampening = case
    tx = heavy_ball(rate, momentum, dampening)

    @jax.jit
    def run():
        def step(carry, k):
            params, inner = carry
            gradient = jax.grad(CURVED.loss)(params, CURVED.batch(KEY, k))
            updates, inner = tx.update(gradient, inner, params)
            terms = relation_terms(
                params, gradient, updates, jnp.asarray(rate), jnp.asarray(momentum), dampening
            )
            return (optax.apply_updates(params, updates), inner), terms

        return jax.lax.scan(step, (START, tx.init(START)), jnp.arange(400))[1]

    left, right, norms = np.asarray(run()).T
    share = 1 - dampening
    squares = right * 2 * share / ((1 + momentum) * rate)  # |v'|^2
    before = np.append(0.0, squares[:-2])
    change = np.diff(norms)
    earlier = np.append(0.0, change[:-1])
    residual = left[:-1] - rate / (2 * share) * (squares[:-1] + momentum * before)
    expected = -(change - momentum * earlier) / (2 * rate * share)
    np.testing.assert_allclose(residual, expected, atol=1e-12)


def test_plain_sgd_has_both_forms_alike():
    gradient = jax.grad(CURVED.loss)(START, CURVED.data)
    updates = jax.tree.map(lambda g: -0.1 * g, gradient)
    rate = jnp.asarray(0.1)
    general = relation_terms(START, gradient, updates, rate)
    published = relation_terms(START, gradient, updates, rate, jnp.asarray(0.0))
    np.testing.assert_allclose(general, published, rtol=1e-13)


def runner(tx):
    """`observed(steps)`: the snapshot after any number of steps, of one program."""
    dynamics = driftlab.descent(tx, QUADRATIC)
    state = dynamics.init(jnp.ones(3), KEY)
    run = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda _, state: dynamics.step(state), state))
    return lambda steps: dynamics.observe(run(steps))


def observed(tx, steps):
    return runner(tx)(steps)


def test_short_windows_give_no_number_and_say_how_short():
    after = runner(track_fluctuation_dissipation(optax.sgd(0.1), 0.1, 0.0))
    found = first_relation()(after(127))
    numbers = {k: v for k, v in found.items() if "relation_" in k and "steps" not in k}
    assert len(numbers) == 6
    assert all(np.isnan(v) for v in numbers.values())
    assert np.isnan(found["weight_norm_trend"])
    assert found["first_relation_steps"] == 65
    assert found["learning_rate_in_force"] == 0.1
    assert np.isfinite(first_relation()(after(128))["first_relation_ratio"])
    assert np.isfinite(first_relation(8)(after(8))["first_relation_left"])
    values = second_relation()(after(3))
    assert np.isnan(values["second_relation_left"])
    assert values["second_relation_records"] == 1


def test_every_third_step_alone():
    def sums(**options):
        tx = track_fluctuation_dissipation(optax.sgd(0.1, 0.9), 0.1, 0.9, **options)
        return tracked_state(observed(tx, 30).state.inner, "test").window.sums

    # 30 steps: blocks of one step.
    np.testing.assert_allclose(sums(every=3)[:10], sums()[:30:3], rtol=1e-13)


def test_a_schedule_s_rate_is_that_of_the_step():
    schedule = optax.piecewise_constant_schedule(0.1, {10: 0.5})
    tx = track_fluctuation_dissipation(optax.sgd(schedule), schedule, 0.0)
    general = track_fluctuation_dissipation(optax.sgd(schedule))
    rates = np.where(np.arange(12) < 10, 0.1, 0.05)
    snapshot = observed(tx, 12)  # blocks of one step
    scaled = tracked_state(snapshot.state.inner, "test").window.sums
    bare = tracked_state(observed(general, 12).state.inner, "test").window.sums
    np.testing.assert_allclose(scaled[:12, 1] * rates, bare[:12, 1], rtol=1e-12)
    assert first_relation()(snapshot)["learning_rate_in_force"] == 0.05


def test_in_a_sweep_every_lane_has_its_own(float32):
    objective = driftlab.Objective(quadratic, NOISE, sampling.with_replacement(1))

    def build(hparams, key):
        rate = hparams["learning_rate"]
        tx = optax.chain(track_fluctuation_dissipation(optax.sgd(rate), rate, 0.0))
        return driftlab.descent(tx, objective), jnp.ones(3)

    grid = driftlab.Grid({"learning_rate": [0.05, 0.2]})
    measures = [first_relation(), second_relation(minimum_records=16)]
    found = driftlab.sweep(build, grid, 800, measures=measures, record_every=20, progress=False)
    assert found.first_relation_left.dtype == np.float32
    last = found.isel(step=-1)
    np.testing.assert_allclose(last.learning_rate_in_force, [0.05, 0.2], rtol=1e-6)
    np.testing.assert_allclose(last.first_relation_ratio, 1.0, atol=0.3)
    assert float(last.second_relation_left[1]) > float(last.second_relation_left[0]) > 0
    assert np.isnan(found.first_relation_ratio.values[:, :6]).all()


def test_hessian_magnitude_against_numpy_and_the_quadratic():
    rates = np.array([0.01, 0.02, 0.05, 0.1])
    errors = 0.02 * rates
    values = 0.7 * rates + 3.0 * rates**2 + errors * np.array([0.3, -1.0, 0.6, 0.2])
    fit = hessian_magnitude(rates, values, errors)
    design = np.stack([rates / 2, rates**2], 1) / errors[:, None]
    expected, squares, *_ = np.linalg.lstsq(design, values / errors, rcond=None)
    covariance = np.linalg.inv(design.T @ design)
    np.testing.assert_allclose([fit.trace, fit.curvature], expected, rtol=1e-9)
    np.testing.assert_allclose(
        [fit.trace_error, fit.curvature_error], np.sqrt(np.diag(covariance)), rtol=1e-9
    )
    np.testing.assert_allclose(fit.chi_squared, squares[0], rtol=1e-8)
    np.testing.assert_allclose(fit.anharmonicity, 2 * expected[1] / expected[0], rtol=1e-9)
    # On the quadratic 2 G / eta -> Tr(H C); G's own bend is that of 1 / (2 - eta h). With momentum
    # the velocity's variance is (1 - nu)^2 / (1 - mu^2) times the gradient's.
    small = np.array([1e-4, 2e-4])
    for momentum, dampening in ((0.0, 0.0), (0.0, 0.5), (0.9, 0.0), (0.9, 0.9)):
        exact = [sides(rate, momentum, dampening)["second_relation_left"] for rate in small]
        fit = hessian_magnitude(small, exact, small)
        gain = (1 - dampening) ** 2 / (1 - momentum**2)
        trace = gain * np.trace(HESSIAN @ COVARIANCE)
        np.testing.assert_allclose(fit.trace, trace, rtol=1e-5)


def test_the_second_relation_s_sides_of_one_record():
    tx = track_fluctuation_dissipation(optax.sgd(0.1), 0.1, 0.0)
    snapshot = observed(tx, 5)
    values, memory = second_relation(minimum_records=16).update(
        snapshot, second_relation().init(snapshot.params)
    )
    slope = HESSIAN @ snapshot.params
    np.testing.assert_allclose(memory.sums[0, 0], slope @ slope, rtol=1e-9)
    velocity = (snapshot.next_state.params - snapshot.params) / 0.1
    np.testing.assert_allclose(memory.sums[0, 1], 0.05 * velocity @ HESSIAN @ velocity, rtol=1e-9)
    assert values["second_relation_records"] == 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"learning_rate=-0.1 must be positive"):
        track_fluctuation_dissipation(optax.sgd(0.1), -0.1)
    with pytest.raises(ValueError, match=r"momentum=1.0 must be at least 0 and below 1"):
        track_fluctuation_dissipation(optax.sgd(0.1), 0.1, 1.0)
    with pytest.raises(ValueError, match=r"dampening=nan must be"):
        track_fluctuation_dissipation(optax.sgd(0.1), 0.1, 0.0, float("nan"))
    with pytest.raises(ValueError, match=r"momentum is given but learning_rate is not"):
        track_fluctuation_dissipation(optax.sgd(0.1), momentum=0.9)
    with pytest.raises(ValueError, match=r"learning_rate must be a scalar; got shape \(2,\)"):
        track_fluctuation_dissipation(optax.sgd(0.1), np.ones(2))
    tx = track_fluctuation_dissipation(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"needs params"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"minimum_steps must be a whole number, 2 or more"):
        first_relation(1)
    with pytest.raises(ValueError, match=r"minimum_records must be a whole number, 16 or more"):
        second_relation(minimum_records=4)
    with pytest.raises(ValueError, match=r"keeps one window of the relations, this one keeps 0"):
        first_relation()(observed(optax.sgd(0.1), 1))
    both = optax.chain(track_fluctuation_dissipation(optax.sgd(0.1)), optax.identity())
    twice = track_fluctuation_dissipation(both)
    assert first_relation()(observed(twice, 1))["first_relation_steps"] == 1
    pair = optax.chain(both, track_fluctuation_dissipation(optax.identity()))
    with pytest.raises(ValueError, match=r"this one keeps 2"):
        first_relation()(observed(pair, 1))
    with pytest.raises(ValueError, match=r"holds for SGD with momentum"):
        second_relation()(observed(twice, 1))
    with pytest.raises(ValueError, match=r"two or more learning rates; got shapes \(1,\)"):
        hessian_magnitude([0.1], [1.0], [0.1])
    with pytest.raises(ValueError, match=r"must be positive and all different"):
        hessian_magnitude([0.1, 0.1], [1.0, 1.0], [0.1, 0.1])
    with pytest.raises(ValueError, match=r"errors=.* must be positive"):
        hessian_magnitude([0.1, 0.2], [1.0, 1.0], [0.1, 0.0])
