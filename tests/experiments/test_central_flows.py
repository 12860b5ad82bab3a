"""The models of the edge of stability: what is compared, the tables, and the binary's refusals."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags as absl_flags

import driftlab
from configs import central_flows_small
from driftlab.flows import preconditioning
from experiments import central_flows, central_flows_figures, central_flows_models
from experiments import central_flows_report as found_report
from experiments.objective import make_objective

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = central_flows_small.get_config()
    config.train_size = 20
    config.model_args = "widths=(3,),activation='tanh'"
    config.steps = 12
    config.window = 3
    config.eigenvectors = 1
    return config


MODELS = {
    "gradient_descent": ("optimizer", "rod", "stable"),
    "scalar_rmsprop": ("optimizer", "central"),
}


@pytest.fixture(scope="module")
def results(config):
    """Some of the models: each costs seconds to compile."""
    problem = make_objective(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(central_flows_models, "MODELS", MODELS)
        return some_results(config, problem)


def some_results(config, problem):
    return {name: central_flows.run(config, name, problem, progress=False) for name in MODELS}


def test_models_start_where_the_optimiser_is_and_stay_near(results, config):
    for name, dataset in results.items():
        assert dataset["model"].values.tolist() == list(MODELS[name])
        assert (dataset["verdict"] == "ok").all()
        losses = dataset["loss"].isel(step=0, seed=0, learning_rate=0)
        # Rod and edge flow start at a centre, which is not the iterate.
        same = [losses.sel(model=model).item() for model in MODELS[name] if model != "rod"]
        np.testing.assert_allclose(same, same[0], rtol=1e-6)
        last = dataset.isel(step=-1, seed=0, learning_rate=0)
        assert (last["distance"] < 0.5 * last["distance_moved"]).all()
        other = last["distance"].sel(model="optimizer")
        assert other <= last["distance"].max()


def test_the_optimiser_beside_a_model_is_the_optimiser(config):
    objective, initialize = make_objective(config)
    build = central_flows_models.make_build(config, "gradient_descent", objective, initialize)
    key = jax.random.key(0)
    dynamics, params = build({"learning_rate": 0.5, "model": "stable"}, key)
    state = dynamics.init(params, key)
    step = jax.jit(dynamics.step)
    for _ in range(3):
        state = step(state)
    alone = driftlab.descent(optax.sgd(0.5), objective)
    expected = alone.init(initialize(key), key)
    for _ in range(config.warm_up_steps + 3):
        expected = alone.step(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        state.inner.reference.params,
        expected.params,
    )


def test_smoothed_and_tables(results, config):
    curve = np.array([1.0, 2.0, 6.0, 4.0, 2.0])
    found = found_report.smoothed(curve, 3)
    np.testing.assert_allclose(found, [np.nan, 3, 4, 4, np.nan])
    assert np.isnan(found_report.smoothed(curve, 7)).all()

    # With every lane declared to have arrived, all claims are made, and counted right.
    raised = {name: data.copy(deep=True) for name, data in results.items()}
    for data in raised.values():
        data["preconditioned_sharpness"] = (
            data["preconditioned_sharpness"] * 0 + 1.99 / data["learning_rate"]
        )
    tables = found_report.tables(raised, config.window)
    claims = {row["claim"]: row for row in tables["Claims"]}
    assert claims["the stable flow's passes it"]["holds"] == "no"
    assert "0 of 1 lanes" in claims["the stable flow's passes it"]["measured"]
    rows = {(row["optimizer"], row["model"]): row for row in tables["Every lane"]}
    assert len(rows) == 5
    column = "error of smoothed loss"
    ratio = rows["gradient_descent", "rod"][column] / rows["gradient_descent", "stable"][column]
    text = claims[f"rod flow's {column} is below stable flow's"]["measured"]
    assert text.endswith(f"ratio {ratio:.3g} (median)")
    figures = central_flows_figures.draw(results, config.window)
    names = {"gradient_descent", "scalar_rmsprop", "scalar_rmsprop_variance"}
    assert set(figures) == {f"central_flows_{name}" for name in names}
    assert jnp.isfinite(rows["scalar_rmsprop", "central"][column])


def test_scalar_rmsprop_is_the_library_s_model_of_it():
    rate, b2 = 0.1, 0.9
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    gradient = jax.tree.map(lambda leaf: 3 * leaf, params)
    tx = optax.chain(central_flows_models.scale_by_scalar_rms(b2), optax.scale(-rate))
    updates, _ = tx.update(gradient, tx.init(params), params)
    length = float(optax.tree.norm(gradient))
    np.testing.assert_allclose(updates["b"], -rate * gradient["b"] / length, rtol=1e-12)
    read = preconditioning.from_optax(tx, rate)
    own = preconditioning.scalar_rmsprop(rate, b2, 0.0)
    memory, nu = read.init(params, gradient), own.init(params, gradient)
    double = jax.tree.map(lambda leaf: 2 * leaf, gradient)
    for found, expected in (
        (read.diagonal(memory), own.diagonal(nu)),
        (read.rate(memory, double), own.rate(nu, double)),
    ):
        for leaf in jax.tree.leaves(found):
            np.testing.assert_allclose(leaf, jnp.broadcast_to(expected, leaf.shape), rtol=1e-12)


def test_bad_arguments_are_refused(config):
    with pytest.raises(ValueError, match="optimizers='adam': there are gradient_descent, scalar"):
        central_flows.run(config, "adam", None)


def test_the_binary_refuses_flags_that_do_nothing():
    command = [
        sys.executable, "-m", "experiments.central_flows",
        "--config=configs/central_flows_small.py", "--learning_rates=1",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--learning_rates and --record_every do not apply" in done.stderr
