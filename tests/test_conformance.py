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

from driftlab import Grid, Objective, descent, measures, sweep, transforms

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
    "novograd", "optimistic_adam_v2", "optimistic_gradient_descent",
    "polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi",
    "contrib.acprop", "contrib.ademamix", "contrib.adopt", "contrib.cocob",
    "contrib.dadapt_adamw", "contrib.dog", "contrib.dowg", "contrib.galore", "contrib.madgrad",
    "contrib.momo", "contrib.momo_adam", "contrib.muon", "contrib.prodigy",
    "contrib.schedule_free", "contrib.schedule_free_adamw", "contrib.schedule_free_sgd",
    "contrib.simplified_ademamix", "contrib.sophia",
    "driftlab.a2grad", "driftlab.fluctuation_dissipation_sgd", "driftlab.sasa",
)  # fmt: skip

# Functions with an argument `learning_rate` that are no optimiser of a loss's gradient.
NOT_AN_OPTIMIZER = {
    "scale_by_backtracking_linesearch": "a step length; tests/test_dynamics.py has it",
    "scale_by_zoom_linesearch": "a step length; tests/test_dynamics.py has it",
    "scale_by_learning_rate": "a scaling, part of every optimiser here",
    "scale_by_polyak": "the transformation inside polyak_sgd",
    "scale_by_rprop": "the transformation inside rprop",
    "contrib.scale_by_madgrad": "the transformation inside madgrad",
    "optimistic_adam": "deprecated in favour of optimistic_adam_v2",
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
CANNOT_BE_SCHEDULED = {
    "polyak_sgd": "takes its cap on the step as a number",
    "rprop": "takes the initial step length of each parameter as a number",
    "sm3": "negates its learning rate, which is a number",
    "driftlab.fluctuation_dissipation_sgd": "makes its own schedule",
    "driftlab.sasa": "makes its own schedule",
}
CANNOT_EQUAL_A_PYTHON_FLOAT_IN_DOUBLE = {
    "contrib.madgrad": "multiplies by sqrt of an int32 count, float32 unless the rate is an array",
}
IGNORES_DECAY = {
    "lbfgs": "its line search chooses the step's length",
    "contrib.schedule_free": "its rate only weighs the average, by the largest rate so far",
}


def a2grad_of(learning_rate):
    """`1 / (2 lipschitz)`, its first step, in the place of the learning rate that it has not."""
    if callable(learning_rate):
        return transforms.a2grad(lambda count: 0.5 / learning_rate(count), 1.0)
    return transforms.a2grad(0.5 / learning_rate, 1.0)


def make(name, learning_rate):
    if name == "driftlab.a2grad":
        return a2grad_of(learning_rate)
    if name.startswith("driftlab."):
        return getattr(transforms, name.removeprefix("driftlab."))(learning_rate)
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
    dtype = jnp.result_type(float)
    start, data = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (START, (INPUTS, TARGETS)))
    return Objective(squared_error, data), start


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


def trajectory(name, learning_rate):
    """The parameters of a single run, `(STEPS + 1, ...)`."""
    objective, start = problem()
    dynamics = descent(make(name, learning_rate), objective)

    def one(state, _):
        return dynamics.step(state), state.params

    last, params = jax.lax.scan(one, dynamics.init(start, jax.random.key(0)), length=STEPS)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), params, last.params)


def alone(name, learning_rates):
    """The trajectories of single runs, one compiled program for all of them."""
    return jax.jit(lambda: [trajectory(name, rate) for rate in learning_rates])()


def marked():
    """The optimisers as parameters, with an expected failure where there is a reason for it."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=CANNOT[name], strict=True))
        if name in CANNOT
        else name
        for name in OPTIMIZERS
    ]


def expect_failure(request, name, reasons):
    """Marks a test of one property as an expected failure where there is a reason for it."""
    if name in reasons:
        request.applymarker(pytest.mark.xfail(reason=reasons[name], strict=True))


# The fixtures are shared by the tests of an optimiser: pytest groups the tests by them.
@pytest.fixture(scope="module", params=marked())
def double(request):
    name, positions = request.param, (0, 3)  # on different devices, at either end of a chunk
    runs = alone(name, [LEARNING_RATES[position] for position in positions])
    return name, Runs(swept(name, "chunk:2"), dict(zip(positions, runs, strict=True)))


def assert_equal(actual, expected, tolerance, what):
    scale = np.abs(expected).max()
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max() / scale
    assert error <= tolerance, f"{what}: relative error {error:.1e}"


def arguments_of(function):
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:  # a type alias, which can be called but has no signature
        return set()


def test_list_is_complete():
    public = {}
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, function in inspect.getmembers(module, callable):
            if not name.startswith("_") and not inspect.isclass(function):
                public[prefix + name] = function
    swept_arguments = {"learning_rate", "max_learning_rate"}
    found = {name for name, function in public.items() if swept_arguments & arguments_of(function)}
    ours = {name for name in OPTIMIZERS if name.startswith("driftlab.")}
    listed = {*OPTIMIZERS, *NOT_AN_OPTIMIZER} - ours
    assert found - listed == set(), (
        "optax has optimisers that are not tested here: add them to OPTIMIZERS, or to "
        "NOT_AN_OPTIMIZER with the reason."
    )
    assert listed - found == set(), "optax has lost these: remove them here."


class TestDouble:
    def test_lane_equals_a_run_with_a_python_learning_rate(self, double, request):
        name, runs = double
        expect_failure(request, name, CANNOT_EQUAL_A_PYTHON_FLOAT_IN_DOUBLE)
        for position, params in runs.alone.items():
            for leaf, expected in params.items():
                lane = runs.dataset[f"params_{leaf}"].isel(learning_rate=position).values
                assert_equal(lane, expected, 1e-12, f"{leaf} at {LEARNING_RATES[position]}")

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

    def test_takes_a_schedule(self, double, request):
        """A constant schedule is a constant, and one that decays is followed."""
        name, runs = double
        expect_failure(request, name, CANNOT_BE_SCHEDULED)
        position, constant = next(reversed(runs.alone.items()))
        rate = LEARNING_RATES[position]
        schedules = optax.constant_schedule(rate), optax.exponential_decay(rate, 1, 0.5)
        scheduled, decaying = alone(name, schedules)
        for leaf, expected in constant.items():
            assert_equal(scheduled[leaf], expected, 1e-12, leaf)
        path, other = constant["matrix"], decaying["matrix"]
        followed = np.abs(other - path).max() > 1e-3 * np.abs(path - path[:1]).max()
        assert followed == (name not in IGNORES_DECAY)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", marked())
def test_single_precision_lanes_equal_runs_with_a_python_learning_rate(name):
    @jax.jit
    def both(learning_rates):
        lanes = jax.vmap(lambda rate: trajectory(name, rate))(learning_rates)
        return lanes, trajectory(name, LEARNING_RATES[-1])

    lanes, expected = both(jnp.array(LEARNING_RATES))
    for leaf, values in expected.items():
        assert values.dtype == lanes[leaf].dtype == jnp.float32
        assert_equal(lanes[leaf][-1], values, 2e-6, leaf)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", marked())
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
