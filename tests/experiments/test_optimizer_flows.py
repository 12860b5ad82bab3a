"""The survey of optimisers' flows: what it measures, what it refuses, and the binary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from configs import optimizer_flows_small
from driftlab.flows import observed_orders
from experiments import optimizer_cases, optimizer_flows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    config = optimizer_flows_small.get_config()
    config.optimizers = "sign_sgd"
    config.orders = 1
    config.by_hand = False
    config.digits_size = 20
    return config


def test_a_survey_has_order_two(config):
    found = optimizer_flows.survey("sgd", "joint", config)
    orders = observed_orders(found["rates"], found["errors"])
    np.testing.assert_allclose(orders, 2, atol=0.25)
    assert min(found["moved"]) > 0.1


def test_a_survey_keeps_the_reason(config):
    found = optimizer_flows.survey("adagrad", "eliminate", config)
    assert "does not forget" in found["refused"]
    assert "random" in optimizer_flows.survey("noisy_sgd", "joint", config)["refused"]


def test_every_optimizer_of_optax_is_listed():
    # What an upgrade of optax adds is to be listed in experiments/optimizer_cases.py.
    assert optimizer_cases.published() == set(optimizer_cases.OPTIMIZERS)
    assert {"adam", "nadamw", "polyak_sgd", "contrib.muon"} <= optimizer_cases.published()


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_every_optimizer_of_optax_can_be_made():
    params = jax.tree.map(jnp.asarray, optimizer_cases.TOY)
    for make in optimizer_cases.OPTIMIZERS.values():
        jax.eval_shape(make(0.1).init, params)


def test_eliminated_fields_are_those_derived_by_hand(config):
    # The gradient must cost more than what is elementwise on 1210 parameters.
    larger = config.copy_and_resolve_references()
    larger.digits_size = 500
    found = optimizer_flows.identities(larger)
    assert set(found) == {"gradient descent", "heavy ball", "Nesterov", "RMSProp", "Adam"}
    for gap, cost in found.values():
        assert gap < 1e-12
        assert cost < 1.1


def test_a_reason_is_one_line():
    long = "state leaf [0].nu['w'] | holds\nnothing; and more. Then something else."
    assert optimizer_flows._one_line(long) == "state leaf [0].nu['w'] / holds"
    assert len(optimizer_flows._one_line("x" * 400)) == 160


def test_a_run_and_its_tables(config):
    dataset = optimizer_flows.run(config)
    found = optimizer_flows.tables(dataset)
    survey, joint, claims = found.values()
    assert [row["optimizer"] for row in survey] == ["sign_sgd"]
    assert survey[0]["joint"] == survey[0]["eliminate"] == "no"
    assert "jump with the sign" in survey[0]["why not"]
    assert [row["chain"] for row in joint] == [row.name for row in optimizer_cases.rows()]
    assert all(0 < row["order 1"] < 0.1 * row["moved"] for row in joint)
    # The reference's distances are those on 500 images; here there are 20.
    assert [row["claim"] for row in claims] == [
        "digits, float64: distances of the reference within a factor of two"
    ]
    assert set(optimizer_flows.draw(dataset)) == {"optimizer_flows_digits"}


def test_bad_arguments_are_refused(config):
    other = config.copy_and_resolve_references()
    other.optimizers = "adamm"
    with pytest.raises(ValueError, match=r"optimizers='adamm': no optimizer has that"):
        optimizer_flows.run(other)


def test_the_binary_leaves_a_run(tmp_path):
    command = [
        sys.executable, "-m", "experiments.optimizer_flows",
        "--config=configs/optimizer_flows_small.py", "--config.optimizers=lion",
        "--config.networks=", "--config.by_hand=false", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 1
    assert "lion" in (tmp_path / "run" / "report.md").read_text()
