"""Directions of minibatch gradients: the networks, the tables on made-up records, the binary."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from configs import gradient_directions_small
from driftlab import models
from experiments import gradient_directions, gradient_directions_report
from experiments.gradient_directions_models import NETWORKS, make_network


@pytest.fixture
def config(parsed_flags):
    return gradient_directions_small.get_config()


def test_networks_differ_in_what_their_names_say(config):
    """Shapes alone: nothing is computed."""
    example, key = jnp.zeros((2, 8, 8, 1)), jax.random.key(0)
    shapes = {}
    for name in NETWORKS:
        network = make_network(name, config, 10)
        shapes[name] = jax.eval_shape(lambda n=network: models.initialize(n, key, example))
        outputs = jax.eval_shape(models.apply_function(network), shapes[name], example)
        assert outputs.shape == (2, 10)
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    assert sizes["mlp"] == 17610  # 64-100-100-10
    assert sizes["cnn_batch"] == sizes["cnn_layer"]
    # Scale and bias for bias.
    assert sizes["cnn_batch"] - sizes["cnn"] == 8 + 2 * (8 + 16 + 32)
    # Two shortcuts change their shape, by a 1 x 1 convolution.
    shortcuts = 8 * 16 + 16 + 16 * 32 + 32
    assert sizes["residual"] - sizes["cnn"] == shortcuts
    with pytest.raises(ValueError, match=r"there is no network 'cnn_bach'"):
        make_network("cnn_bach", config, 10)


def recorded():
    """Two lanes of five records at known values, one of which diverged."""
    steps = np.arange(0, 60, 10)
    b = np.array([4.0, 2.0, 1.0, 0.5, 0.3, np.nan])  # not due at the last one
    kappa = np.sqrt(b * (1 + b))
    dims = ("network", "learning_rate", "seed", "step")

    def lanes(values):
        return dims, np.stack([values, values])[None, :, None, :]

    norms = np.array([3.0, 3.1, 2.0, 2.5, 3.0, np.nan])
    return xarray.Dataset(
        {
            "minibatch_concentration": lanes(1.1 * kappa),
            "minibatch_concentration_unbiased": lanes(kappa),
            "minibatch_concentration_predicted": lanes(kappa),
            "minibatch_concentration_floor": lanes(0.1 + 0 * kappa),
            "minibatch_gradient_stochasticity": lanes(np.sqrt(b)),
            "minibatch_norm_stochasticity": lanes(norms),
            "evaluation_accuracy": lanes(np.linspace(0.1, 0.9, 6)),
            "verdict": (dims[:3], np.array([["ok"], ["diverged"]])[None]),
        },
        coords={
            "network": ["cnn"],
            "learning_rate": [0.1, 10.0],
            "seed": [0],
            "step": steps,
            "epoch": ("step", steps / 10),
            "dimension": ("network", [1000]),
        },
    )


def test_tables_of_known_records():
    found = gradient_directions_report.measured(recorded())
    assert found.sizes["step"] == 5
    lane = found.isel(network=0, learning_rate=0, seed=0)
    gs, kappa = (
        lane[f"minibatch_{name}"].values for name in ("gradient_stochasticity", "concentration")
    )
    norms = lane["minibatch_norm_stochasticity"].values
    np.testing.assert_allclose(lane["kappa_correlation"], np.corrcoef(gs, kappa)[0, 1], rtol=1e-12)
    np.testing.assert_allclose(
        lane["norm_correlation_trained"], np.corrcoef(gs[1:], norms[1:])[0, 1], rtol=1e-12
    )
    assert np.isnan(found["kappa_correlation"].isel(learning_rate=1)).all()
    claims, correlations, course, identity = gradient_directions_report.tables(found).values()
    assert {row["holds"] for row in claims} == {"yes"}
    assert all(row["measured"] == "1 of 1 lanes" for row in claims)
    assert correlations[0]["d"] == 1000
    assert [row["diverged"] for row in course] == [0, 1]
    assert np.isnan(course[1]["end"])
    np.testing.assert_allclose(course[0]["end, unbiased"], np.sqrt(0.3 * 1.3))
    assert [row["records"] for row in identity] == [5, 0]
    np.testing.assert_allclose(identity[0]["measured / predicted"], 1)
    assert identity[1]["measured / predicted"] is None
    # A run that contradicts the claims says so.
    other = recorded()
    for name in ("minibatch_concentration", "minibatch_concentration_unbiased"):
        other[name] = 1 / other[name]
    claims = next(iter(gradient_directions_report.tables(
        gradient_directions_report.measured(other)).values()))  # fmt: skip
    assert {row["holds"] for row in claims} == {"no"}


def test_batch_normalized_gradients_are_measured(config):
    config.networks = "cnn_batch"
    config.channels = (2, 3)
    config.update(steps=2, record_every=1, gradients=4, batch_size=8, seeds="1")
    config.directions_every = 2
    config.train_size = 40
    dataset = gradient_directions.run(config, progress=False)
    np.testing.assert_allclose(dataset["epoch"], dataset["step"] / 5)
    kappa = dataset["minibatch_concentration"].values.ravel()
    assert np.isfinite(kappa[[0, -1]]).all()
    assert np.isnan(kappa[1])
    np.testing.assert_allclose(dataset["minibatch_concentration_floor"][..., 0], 2 / 3, rtol=1e-6)


def test_the_binary_leaves_a_run_and_redraws_it(tmp_path, run_experiment):
    out = tmp_path / "run"
    command = [
        "gradient_directions", "--config=configs/gradient_directions_small.py", f"--out={out}",
        "--steps=44", "--config.networks=mlp", "--config.gradients=10",
        "--config.directions_every=1",
    ]  # fmt: skip
    for again in (False, True):
        done = run_experiment(*command)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["tables"]) == 4
    assert len(list((out / "figures").glob("*.png"))) == 3
    assert "gradient_directions_identity" in (out / "report.md").read_text()
