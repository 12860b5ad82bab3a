"""Every optimiser of optax goes through the same properties, alone and in a sweep.

`OPTIMIZERS` is checked against what optax offers, so that a new optimiser there fails a test here
until it is listed; what one of them cannot do is written down with the reason, as an expected
failure.
"""

import inspect
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, Objective, descent, measures, sweep

# Small, log-spaced; the four fill two devices with chunks of two lanes.
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
STEPS = 5

RANDOM = np.random.RandomState(0)
INPUTS = RANDOM.randn(8, 3)
TARGETS = RANDOM.randn(8, 2)
START = {"matrix": 0.5 * RANDOM.randn(3, 2), "vector": 0.5 * RANDOM.randn(2)}

OPTIMIZERS = (
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan",
    "amsgrad", "fromage", "lamb", "lars", "lbfgs", "lion", "nadam", "nadamw", "noisy_sgd",
    "novograd", "optimistic_adam", "optimistic_adam_v2", "optimistic_gradient_descent",
    "polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi",
    "contrib.acprop", "contrib.ademamix", "contrib.adopt", "contrib.cocob",
    "contrib.dadapt_adamw", "contrib.dog", "contrib.dowg", "contrib.galore", "contrib.madgrad",
    "contrib.momo", "contrib.momo_adam", "contrib.muon", "contrib.prodigy",
    "contrib.schedule_free", "contrib.schedule_free_adamw", "contrib.schedule_free_sgd",
    "contrib.simplified_ademamix", "contrib.sophia",
)  # fmt: skip

# Functions with an argument `learning_rate` that are no optimiser of a loss's gradient.
NOT_AN_OPTIMIZER = {
    "scale_by_backtracking_linesearch": "a step length; tests/test_dynamics.py has it",
    "scale_by_zoom_linesearch": "a step length; tests/test_dynamics.py has it",
    "scale_by_learning_rate": "a scaling, part of every optimiser here",
    "scale_by_polyak": "the transformation inside polyak_sgd",
    "scale_by_rprop": "the transformation inside rprop",
    "contrib.scale_by_madgrad": "the transformation inside madgrad",
    "contrib.dpsgd": "takes the gradient of every example, not of the batch",
}

# The argument that is swept, where it is not `learning_rate`, and arguments without a default.
LEARNING_RATE = {"polyak_sgd": "max_learning_rate"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "noisy_sgd": {"key": 0},
    "contrib.schedule_free": {"base_optimizer": optax.sgd(0.01)},
}

# What an optimiser cannot do, and why: expected failures, so that a repair shows.
CANNOT: dict[str, str] = {
    "contrib.sophia": "needs obj_fn as an extra argument, which optax's line searches refuse",
}
CANNOT_BE_SCHEDULED: dict[str, str] = {}
CANNOT_KEEP_TYPES: dict[str, str] = {}
CANNOT_IN_DOUBLE: dict[str, str] = {}


def make(name, learning_rate):
    *contrib, function = name.split(".")
    function = getattr(optax.contrib if contrib else optax, function)
    argument = LEARNING_RATE.get(name, "learning_rate")
    return function(**{argument: learning_rate}, **ARGUMENTS.get(name, {}))


def squared_error(params, batch):
    inputs, targets = batch
    outputs = inputs @ params["matrix"] + params["vector"][None]
    return jnp.mean((outputs - targets) ** 2)


def parameters(snapshot):
    return {f"params_{name}": leaf for name, leaf in snapshot.params.items()}


def problem():
    """Objective and start in JAX's current precision."""
    start = jax.tree.map(jnp.asarray, START)
    return Objective(squared_error, (INPUTS, TARGETS)), start


class Runs(NamedTuple):
    """A sweep, and some of its lanes alone with a learning rate that is a Python float."""

    dataset: Any
    alone: dict[int, Any]  # position in LEARNING_RATES -> params, (STEPS + 1, ...)


def swept(name, lanes):
    objective, start = problem()

    def build(hparams, key):
        return descent(make(name, hparams["learning_rate"]), objective), start

    return sweep(
        build,
        Grid({"learning_rate": LEARNING_RATES}),
        STEPS,
        measures=[measures.loss, parameters],
        lanes=lanes,
        progress=False,
    )


def alone(name, learning_rates):
    """The trajectories of single runs, one compiled program for all of them."""
    objective, start = problem()

    def run(learning_rate):
        dynamics = descent(make(name, learning_rate), objective)

        def one(state, _):
            return dynamics.step(state), state.params

        last, params = jax.lax.scan(one, dynamics.init(start, jax.random.key(0)), length=STEPS)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), params, last.params)

    return jax.jit(lambda: [run(learning_rate) for learning_rate in learning_rates])()


def both(name, positions):
    runs = alone(name, [LEARNING_RATES[position] for position in positions])
    return Runs(swept(name, "chunk:2"), dict(zip(positions, runs, strict=True)))


def marked(*reasons):
    """The optimisers as parameters, with an expected failure where there is a reason for it."""
    cases = []
    for name in OPTIMIZERS:
        reason = next((given[name] for given in reasons if name in given), None)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        cases.append(pytest.param(name, marks=marks))
    return cases


# The fixtures are shared by the tests of an optimiser: pytest groups the tests by them.
@pytest.fixture(scope="module", params=marked(CANNOT, CANNOT_IN_DOUBLE))
def double(request):
    # Lanes on different devices, at different places of their chunks.
    return request.param, both(request.param, (0, 3))


@pytest.fixture(scope="module", params=marked(CANNOT))
def single(request):
    with jax.enable_x64(False):
        return both(request.param, (3,))


def assert_equal(actual, expected, tolerance, what):
    scale = np.abs(expected).max()
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max() / scale
    assert error <= tolerance, f"{what}: relative error {error:.1e}"


def assert_lanes_equal(runs, tolerance):
    for position, params in runs.alone.items():
        for name, expected in params.items():
            lane = runs.dataset[f"params_{name}"].isel(learning_rate=position).values
            assert_equal(lane, expected, tolerance, f"{name} at {LEARNING_RATES[position]}")


def test_list_is_complete():
    public = {}
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, function in inspect.getmembers(module, callable):
            if not name.startswith("_") and not inspect.isclass(function):
                public[prefix + name] = function
    swept_arguments = {"learning_rate", "max_learning_rate"}
    found = {
        name
        for name, function in public.items()
        if swept_arguments & set(inspect.signature(function).parameters)
    }
    listed = {*OPTIMIZERS, *NOT_AN_OPTIMIZER}
    assert found - listed == set(), (
        "optax has optimisers that are not tested here: add them to OPTIMIZERS, or to "
        "NOT_AN_OPTIMIZER with the reason."
    )
    assert listed - found == set(), "optax has lost these: remove them here."


class TestDouble:
    def test_lane_equals_a_run_with_a_python_learning_rate(self, double):
        _, runs = double
        assert_lanes_equal(runs, 1e-12)

    def test_is_finite_and_ok_at_small_rates(self, double):
        _, (dataset, _) = double
        assert dataset.sizes["learning_rate"] == len(LEARNING_RATES)
        assert dataset.sizes["step"] == STEPS + 1
        assert (dataset.verdict == "ok").all()
        assert np.isfinite(dataset.loss).all()

    def test_moves_every_parameter(self, double):
        _, (dataset, _) = double
        last = dataset.isel(step=-1)
        for name, start in START.items():
            assert (last[f"params_{name}"].values != start).all()

    def test_keeps_the_precision_of_params(self, double):
        _, (dataset, _) = double
        for name in START:
            assert dataset[f"params_{name}"].dtype == np.float64
        assert dataset.loss.dtype == np.float64

    def test_lanes_mapped_equal_lanes_in_chunks(self, double):
        name, (dataset, _) = double
        mapped = swept(name, "map")
        for variable in ("loss", "params_matrix", "params_vector"):
            assert_equal(mapped[variable].values, dataset[variable].values, 1e-12, variable)


class TestSingle:
    def test_lane_equals_a_run_with_a_python_learning_rate(self, single):
        assert_lanes_equal(single, 2e-6)

    def test_keeps_the_precision_of_params(self, single):
        for name in ("params_matrix", "params_vector", "loss"):
            assert single.dataset[name].dtype == np.float32


@pytest.mark.parametrize("name", marked(CANNOT, CANNOT_BE_SCHEDULED))
def test_takes_a_schedule(name):
    """A constant schedule is a constant, and one that decays is followed."""
    rate = LEARNING_RATES[-1]
    schedules = optax.constant_schedule(rate), optax.exponential_decay(rate, 1, 0.5)
    constant, scheduled, decaying = alone(name, (rate, *schedules))
    chex.assert_trees_all_close(scheduled, constant, rtol=1e-12)
    assert not np.allclose(decaying["matrix"][-1], constant["matrix"][-1], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", marked(CANNOT, CANNOT_KEEP_TYPES))
def test_state_keeps_its_types(name, dtype):
    """So that a step compiles once: also for params narrower than JAX's default precision."""
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), START)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (INPUTS, TARGETS))
    dynamics = descent(make(name, 0.01), Objective(squared_error, data))
    first = jax.eval_shape(dynamics.init, start, jax.random.key(0))
    second = jax.eval_shape(dynamics.step, first)
    third = jax.eval_shape(dynamics.step, second)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, second, third)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(third.params))
