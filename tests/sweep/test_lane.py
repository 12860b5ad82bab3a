"""The lane's own rules: when records are made, when a lane has a verdict, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import Grid, sweep
from driftlab.dynamics import State, from_step
from driftlab.measures import every, loss
from driftlab.sweep import final_params
from driftlab.sweep.lane import Schedule

QUIET = {"progress": False, "devices": 1}


@pytest.mark.parametrize(
    ("steps", "record_every", "expected"),
    [(6, 2, [0, 2, 4, 6]), (7, 3, [0, 3, 6, 7]), (2, 5, [0, 2]), (1, 1, [0, 1])],
)
def test_record_steps(steps, record_every, expected):
    assert Schedule(steps, record_every).record_steps.tolist() == expected


def descend(function, start=1.0, dtype=None):
    def build(hparams, key):
        del key
        objective = driftlab.Objective(lambda x, batch: function(x))
        params = jnp.asarray(start, dtype)
        rate = jnp.asarray(hparams["learning_rate"], params.dtype)
        return driftlab.descent(optax.sgd(rate), objective), params

    return build


def theta(snapshot):
    return snapshot.params


def expected_verdicts(rates, steps, factor):
    """Gradient descent on 5 x^2 from 1, in NumPy: verdict and iterate of every lane."""
    found = []
    for rate in rates:
        x, verdict = 1.0, ("ok", -1)
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(steps + 1):
                value = np.float64(5) * x * x
                if not np.isfinite(value):
                    verdict = ("nonfinite", step)
                elif value > 5 + factor * 5:
                    verdict = ("diverged", step)
                if verdict[1] >= 0:
                    break
                x = x - rate * (10 * x)
        found.append(verdict)
    return found


@pytest.mark.parametrize("lanes", ["map", "chunk:3", "vmap"])
@pytest.mark.parametrize("factor", [1e3, float("inf")])
def test_verdicts_fall_at_the_exact_step(lanes, factor):
    rates = [0.19, 0.21, 0.25, 0.5, 1e30]
    dataset = sweep(
        descend(lambda x: 5 * x * x), Grid({"learning_rate": rates}), 400, lanes=lanes,
        measures=[theta, loss], record_every=10, divergence_factor=factor, **QUIET,
    )  # fmt: skip
    expected = expected_verdicts(rates, 400, factor)
    assert [str(v) for v in dataset.verdict.values] == [verdict for verdict, _ in expected]
    assert dataset.verdict_step.values.tolist() == [step for _, step in expected]
    # lr = 0.21 is finite throughout: only a threshold finds it.
    assert expected[1][0] == ("diverged" if factor == 1e3 else "ok")
    assert expected[3][0] == ("diverged" if factor == 1e3 else "nonfinite")
    steps = dataset.step.values
    for lane, (_, step) in enumerate(expected):
        values = dataset.theta.values[lane]
        after = steps >= step if step >= 0 else np.zeros(len(steps), bool)
        assert np.isnan(values[after]).all()
        assert np.isnan(dataset.loss.values[lane][after]).all()
        exact = (1 - 10 * rates[lane]) ** steps[~after].astype(float)
        # The problem itself amplifies the rounding of 1 - 10 lr in every one of its n steps.
        np.testing.assert_allclose(values[~after], exact, rtol=1e-12)


def test_float32_verdicts(float32):
    dataset = sweep(
        descend(lambda x: 5 * x * x), Grid({"learning_rate": [0.19, 0.21, 0.5]}), 400,
        measures=[loss], record_every=10, divergence_factor=float("inf"), **QUIET,
    )  # fmt: skip
    assert dataset.loss.dtype == np.float32
    assert dataset.verdict.values[2] == "nonfinite"
    assert dataset.verdict_step.values[2] == 32  # 5 * 16^n exceeds 3.4e38


def test_a_dead_lane_is_frozen_at_its_last_good_record(tmp_path):
    dataset = sweep(
        descend(lambda x: 5 * x * x), Grid({"learning_rate": [0.1, 0.5, 1e30]}), 47, out=tmp_path,
        measures=[theta], record_every=2, **QUIET,
    )  # fmt: skip
    _, final = final_params(tmp_path)
    records = dataset.theta.values
    assert final[0] == records[0, -1]
    assert final[1] == records[1][np.isfinite(records[1])][-1] == 16.0
    assert final[2] == 1.0


def test_the_initial_loss_is_not_finite():
    dataset = sweep(
        descend(lambda x: jnp.log(x), start=-1.0), Grid({"learning_rate": [0.1]}), 3,
        measures=[loss], **QUIET,
    )  # fmt: skip
    assert dataset.verdict.item() == "nonfinite"
    assert dataset.verdict_step.item() == 0
    assert np.isnan(dataset.loss.values).all()


def test_an_initial_loss_of_exactly_zero_never_counts_as_divergence():
    dataset = sweep(
        descend(lambda x: jnp.expm1(x), start=0.0), Grid({"learning_rate": [-0.1]}), 8,
        measures=[loss], **QUIET,
    )  # fmt: skip
    assert dataset.loss.values[0, 0] == 0
    assert dataset.loss.values[0, -1] > 0.5
    assert dataset.verdict.item() == "ok"


@pytest.mark.parametrize(("factor", "step"), [(3.0, 4), (1e3, -1)])
def test_negative_losses(factor, step):
    # The loss goes -1, 0, 1, 2, 3, ...: it exceeds -1 + 3 |-1| = 2 at step 4.
    dataset = sweep(
        descend(lambda x: x, start=-1.0), Grid({"learning_rate": [-1.0]}), 9, measures=[loss],
        record_every=2, divergence_factor=factor, **QUIET,
    )  # fmt: skip
    assert dataset.verdict_step.item() == step


def test_parameters_that_turn_nan_while_the_loss_ignores_them(tmp_path):
    def build(hparams, key):
        del key
        objective = driftlab.Objective(lambda x, batch: x["used"] ** 2)

        def init(params, key):
            return State(params, (), jnp.zeros((), jnp.int32), key)

        def step(state):
            x = state.params
            unused = jnp.where(state.step == 5, jnp.nan, x["unused"])
            params = {"used": x["used"] * (1 - hparams["learning_rate"]), "unused": unused}
            return State(params, (), state.step + 1, state.key)

        return from_step(init, step, objective), {"used": jnp.ones(()), "unused": jnp.ones(())}

    dataset = sweep(
        build, Grid({"learning_rate": [0.1]}), 20, measures=[loss], record_every=4, out=tmp_path,
        **QUIET,
    )  # fmt: skip
    assert dataset.verdict.item() == "nonfinite"
    assert dataset.verdict_step.item() == 8  # the first record at which it is seen
    np.testing.assert_array_equal(np.isfinite(dataset.loss.values[0]), [1, 1, 0, 0, 0, 0])
    _, final = final_params(tmp_path)
    assert final["unused"] == 1
    assert final["used"] == pytest.approx(0.9**4)


@pytest.mark.parametrize(("steps", "record_every"), [(6, 2), (7, 3), (2, 5)])
def test_records_are_made_at_the_recorded_steps(steps, record_every):
    dataset = sweep(
        descend(lambda x: x * x), Grid({"learning_rate": [0.1, 0.2]}), steps, measures=[theta],
        record_every=record_every, **QUIET,
    )  # fmt: skip
    expected = 0.8**dataset.step.values
    np.testing.assert_allclose(dataset.theta.values[0], expected, rtol=1e-14)
    assert dataset.step.values[-1] == steps


def test_a_vector_measure_has_a_dimension_of_its_own_and_integers_become_floats():
    def powers(snapshot):
        return snapshot.params ** jnp.arange(3)

    def iteration(snapshot):
        return {"iteration": snapshot.state.step, "positive": snapshot.params > 0}

    dataset = sweep(
        descend(lambda x: x * x), Grid({"learning_rate": [0.1, 0.2]}), 3,
        measures=[powers, iteration], **QUIET,
    )  # fmt: skip
    assert dataset.powers.dims == ("learning_rate", "step", "powers_0")
    assert dataset.powers.shape == (2, 4, 3)
    np.testing.assert_array_equal(dataset.iteration.values, [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(dataset.positive.values, 1)
    assert dataset.iteration.dtype == float


@pytest.mark.parametrize("lanes", ["map", "chunk:2"])
def test_every_leaves_nan_between_and_records_the_last(lanes):
    dataset = sweep(
        descend(lambda x: x * x), Grid({"learning_rate": [0.1, 0.2]}), 14,
        measures=[every(theta, 3), loss], record_every=2, lanes=lanes, **QUIET,
    )  # fmt: skip
    due = [True, False, False, True, False, False, True, True]
    np.testing.assert_array_equal(np.isfinite(dataset.theta.values), [due] * 2)
    np.testing.assert_allclose(dataset.theta.values[0, due], 0.8 ** dataset.step.values[due])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_low_precision_parameters(tmp_path, dtype):
    dataset = sweep(
        descend(lambda x: (x * x).sum(), [1.0, 2.0], dtype), Grid({"learning_rate": [0.25, 2.0]}),
        6, measures=[loss, theta], out=tmp_path, **QUIET,
    )  # fmt: skip
    np.testing.assert_array_equal(dataset.theta.values[0, :, 0].astype(float), 0.5 ** np.arange(7))
    assert dataset.verdict.values.tolist() == ["ok", "diverged"]
    assert final_params(tmp_path)[1].dtype == dtype


def broken(**changes):
    def build(hparams, key):
        dynamics, params = descend(lambda x: x * x)(hparams, key)

        def step(state):
            following = dynamics.step(state)
            return following._replace(**{name: f(following) for name, f in changes.items()})

        return from_step(dynamics.init, step, driftlab.Objective(lambda x, b: x * x)), params

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (broken(key=lambda state: jax.random.split(state.key)[0]), "return state.key itself"),
        (broken(params=lambda state: state.params.astype(jnp.float32)), "keep the type"),
        (broken(params=lambda state: jnp.stack([state.params] * 2)), "keep the type"),
        (broken(params=lambda state: {"x": state.params}), "keep the structure"),
        (broken(inner=lambda state: (1.0,)), "keep the structure"),
    ],
    ids=["key", "dtype", "shape", "structure", "inner"],
)
def test_a_step_that_does_not_fit_a_loop_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        sweep(build, Grid({"learning_rate": [0.1]}), 3, **QUIET)


def test_a_jitted_step_is_accepted_or_the_error_says_why():
    def build(hparams, key):
        dynamics, params = descend(lambda x: x * x)(hparams, key)
        step = jax.jit(dynamics.step)
        return from_step(dynamics.init, step, driftlab.Objective(lambda x, b: x * x)), params

    try:
        dataset = sweep(build, Grid({"learning_rate": [0.1]}), 3, measures=[theta], **QUIET)
    except ValueError as error:
        assert "jit" in str(error)  # noqa: PT017
    else:
        np.testing.assert_allclose(dataset.theta.values[0], 0.8 ** np.arange(4))


@pytest.mark.parametrize("result", [None, (1, 2), "dynamics"])
def test_a_build_that_returns_something_else(result):
    with pytest.raises(TypeError, match=r"must return \(Dynamics, params\); got"):
        sweep(lambda hparams, key: result, Grid({"learning_rate": [0.1]}), 3, **QUIET)
