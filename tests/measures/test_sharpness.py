import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, Objective, curvature, descent, dynamics, sweep, with_replacement
from driftlab.measures import every, initial_memory, loss, record
from driftlab.measures.sharpness import gradient_alignment, preconditioned_sharpness, sharpness
from driftlab.objective import regularized

KEY = jax.random.key(0)
MEASURES = (
    sharpness(3, tolerance=1e-8),
    preconditioned_sharpness(2, or_identity=True, tolerance=1e-8),
)


@pytest.fixture(scope="module")
def network():
    """A 4-6-3 tanh network on 40 examples: `(objective, params)`."""
    rng = np.random.RandomState(0)
    inputs, labels = rng.standard_normal((40, 4)), rng.randint(0, 3, 40)
    params = {"first": rng.standard_normal((4, 6)), "second": rng.standard_normal((6, 3))}

    def objective_loss(params, batch):
        logits = jnp.tanh(batch[0] @ params["first"]) @ params["second"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    objective = Objective(objective_loss, (inputs, labels))
    return objective, jax.tree.map(jnp.asarray, params)


def dense(objective, params, data=None):
    """The Hessian, `(n, n)`, and the gradient, `(n,)`."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    batch = objective.data if data is None else data

    def value(vector):
        return objective.value(unravel(vector), batch)[0]

    return np.asarray(jax.hessian(value)(flat)), np.asarray(jax.grad(value)(flat))


def snapshot_of(objective, params, tx=None, steps=0):
    run = descent(optax.sgd(0.1) if tx is None else tx, objective)
    state = run.init(params, KEY)
    for _ in range(steps):
        state = run.step(state)
    return run.observe(state)


def test_equals_the_dense_eigenvalues(network):
    eigenvalues = np.linalg.eigvalsh(dense(*network)[0])[::-1]
    values = MEASURES[0](snapshot_of(*network))
    np.testing.assert_allclose(values["hessian_eigenvalues"], eigenvalues[:3], rtol=1e-8)
    np.testing.assert_allclose(values["sharpness"], eigenvalues[0], rtol=1e-8)
    assert values["sharpness_residual"] <= 1e-8


def test_is_of_all_the_data_and_of_what_is_minimised(network):
    objective, params = network
    sampled = Objective(objective.loss, objective.data, with_replacement(8))
    decayed = regularized(sampled, lambda p, _: optax.tree.norm(p, squared=True) / 2, 0.3)
    shifted = np.linalg.eigvalsh(dense(objective, params)[0])[-1] + 0.3
    snapshot = snapshot_of(decayed, params)
    whole = sharpness(tolerance=1e-8)(snapshot)["sharpness"]
    np.testing.assert_allclose(whole, shifted, rtol=1e-8)
    batched = sharpness(tolerance=1e-8, batch_size=7)(snapshot)["sharpness"]
    np.testing.assert_allclose(batched, shifted, rtol=1e-8)
    step = sharpness(tolerance=1e-8, data="step")(snapshot)["sharpness"]
    expected = np.linalg.eigvalsh(dense(decayed, params, snapshot.batch)[0])[-1]
    np.testing.assert_allclose(step, expected, rtol=1e-8)
    assert abs(step - whole) > 1e-3


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad"])
def test_preconditioned_by_what_the_update_divided_by(network, name):
    objective, params = network
    snapshot = snapshot_of(objective, params, getattr(optax, name)(1e-2), steps=3)
    hessian, _ = dense(objective, snapshot.params)
    if name == "adam":  # P from the update itself: u = -learning_rate m_hat / P
        moment = optax.tree.bias_correction(snapshot.next_state.inner[0].mu, 0.9, 4)
    else:
        moment = snapshot.gradient
    ratio = jax.tree.map(lambda m, u: -1e-2 * m / u, moment, snapshot.updates)
    root = np.sqrt(jax.flatten_util.ravel_pytree(ratio)[0])
    expected = np.linalg.eigvalsh(hessian / root / root[:, None])[::-1][:2]
    values = preconditioned_sharpness(2, tolerance=1e-9)(snapshot)
    np.testing.assert_allclose(values["preconditioned_eigenvalues"], expected, rtol=1e-7)


def test_without_second_moments_it_asks_or_takes_the_identity(network):
    snapshot = snapshot_of(*network)
    with pytest.raises(ValueError, match="no second moment"):
        preconditioned_sharpness()(snapshot)
    plain = sharpness(tolerance=1e-8)(snapshot)["sharpness"]
    same = preconditioned_sharpness(or_identity=True, tolerance=1e-8)(snapshot)
    np.testing.assert_allclose(same["preconditioned_sharpness"], plain, rtol=1e-10)


def test_the_preconditioner_may_be_ones_own(network):
    snapshot = snapshot_of(*network)
    halved = preconditioned_sharpness(
        tolerance=1e-8, preconditioner=lambda state: jax.tree.map(lambda p: 2 + 0 * p, network[1])
    )(snapshot)["preconditioned_sharpness"]
    plain = sharpness(tolerance=1e-8)(snapshot)["sharpness"]
    np.testing.assert_allclose(2 * halved, plain, rtol=1e-8)


def test_gradient_alignment_is_the_share_in_the_eigenspace(network):
    hessian, gradient = dense(*network)
    _, vectors = np.linalg.eigh(hessian)
    values = gradient_alignment(4, tolerance=1e-10)(snapshot_of(*network))
    share = np.sum((vectors[:, -4:].T @ gradient) ** 2) / (gradient @ gradient)
    np.testing.assert_allclose(values["gradient_alignment"], share, rtol=1e-8)
    everything = gradient_alignment(len(gradient), tolerance=1e-10)(snapshot_of(*network))
    np.testing.assert_allclose(everything["gradient_alignment"], 1, rtol=1e-10)


def test_starts_from_the_last_record(network):
    objective, params = network
    run = descent(optax.sgd(0.05), objective)
    measure = sharpness(tolerance=1e-6)

    @jax.jit
    def observed(state, memory):
        snapshot = run.observe(state)
        values, memory = record([measure], snapshot, memory)
        pairs, _ = curvature.tracked_eigenpairs(
            curvature.hessian(
                lambda p, b: objective.value(p, b)[0], snapshot.params, objective.data
            ),
            memory[0],
            tolerance=1e-6,
        )
        return snapshot.next_state, values, memory, pairs.products

    state, memory = run.init(params, KEY), initial_memory([measure], params)
    for _ in range(5):
        expected = np.linalg.eigvalsh(dense(objective, state.params)[0])[-1]
        state, values, memory, products = observed(state, memory)
        np.testing.assert_allclose(values["sharpness"], expected, rtol=1e-10)
        assert products == 2  # from its own vectors: one for each of the two rows, no iteration


def test_on_every_lane_of_a_sweep_under_each_strategy(network):
    objective, params = network

    def build(hparams, key):
        return descent(optax.adam(hparams["learning_rate"]), objective), params

    grid = Grid({"learning_rate": [1e-3, 1e-2, 3e-2]})
    options = {"steps": 12, "record_every": 3, "measures": [loss, *MEASURES], "progress": False}
    mapped, vmapped = (
        sweep(build, grid, lanes=lanes, devices=1, **options) for lanes in ("map", "vmap")
    )
    for lane, rate in enumerate(grid.lanes["learning_rate"]):
        run = descent(optax.adam(rate), objective)
        state = run.init(params, KEY)
        for index in range(5):
            expected = np.linalg.eigvalsh(dense(objective, state.params)[0])[::-1][:3]
            for result in (mapped, vmapped):
                found = result.hessian_eigenvalues.values[lane, index]
                np.testing.assert_allclose(found, expected, rtol=1e-7)
            for _ in range(3):
                state = run.step(state)


def test_params_that_are_not_finite_give_nan_at_once(network):
    objective, params = network
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    values, memory = record([sharpness()], snapshot_of(objective, broken))
    assert np.isnan(values["sharpness"])
    assert np.isfinite(memory[0]).all()  # so that the lane's next good record is good
    assert np.isnan(gradient_alignment()(snapshot_of(objective, broken))["gradient_alignment"])


def test_spaced_out_it_is_missing_in_between(network):
    values, _ = record([every(sharpness(), 2)], snapshot_of(*network), index=1)
    assert np.isnan(values["sharpness"])


def test_a_quadratics_sharpness_in_float32(float32):
    eigenvalues = jnp.array([10.0, 4.0, 1.0, -3.0])
    objective = Objective(lambda x, _: jnp.sum(eigenvalues * x**2) / 2)
    values = sharpness(2)(snapshot_of(objective, jnp.ones(4)))
    np.testing.assert_allclose(values["hessian_eigenvalues"], [10.0, 4.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(sharpness, 0), "k must be"),
        (functools.partial(sharpness, guards=-1), "guards must be"),
        (functools.partial(sharpness, tolerance=0), "tolerance must be positive"),
        (functools.partial(sharpness, data="test"), 'data must be "full" or "step"'),
        (functools.partial(preconditioned_sharpness, max_iterations=0), "max_iterations must be"),
    ],
)
def test_refuses_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_says_what_it_lacks(network):
    with pytest.raises(ValueError, match="more than the 42 parameters"):
        sharpness(43)(snapshot_of(*network))
    snapshot = snapshot_of(*network)._replace(objective=None)
    with pytest.raises(ValueError, match="sharpness needs a dynamics with an objective"):
        sharpness()(snapshot)


def test_from_step_has_it_too(network):
    objective, params = network
    run = dynamics.from_step(
        lambda p, key: dynamics.State(p, (), jnp.zeros((), jnp.int32), key),
        lambda state: state._replace(step=state.step + 1),
        objective,
    )
    values = sharpness(tolerance=1e-8)(run.observe(run.init(params, KEY)))
    expected = np.linalg.eigvalsh(dense(objective, params)[0])[-1]
    np.testing.assert_allclose(values["sharpness"], expected, rtol=1e-8)
