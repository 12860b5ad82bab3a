"""The principal-flow experiment: its closed forms, and the binary with its tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from driftlab.flows import observed_orders, solve
from experiments import principal_flow_models
from tests.flows.problems import toy

ROOT = Path(__file__).parents[2]


def test_the_closed_form_has_its_order():
    """rosca.md, 1.4: the local error of P terms is O(h^{P+1})."""
    order = 3

    def error(h):
        field = principal_flow_models.modified_field(toy.loss, h, order)
        after = toy.initial_params - h * jax.grad(toy.loss)(toy.initial_params)
        return jnp.linalg.norm(solve(field, toy.initial_params, h, rtol=1e-12).y - after)

    rates = 0.025 / 2.0 ** np.arange(3)
    errors = jax.jit(lambda rates: jax.lax.map(error, rates))(rates)
    np.testing.assert_allclose(observed_orders(rates, errors)[-1], order + 1, atol=0.1)


def test_the_binary_leaves_a_run(tmp_path):
    overrides = {
        "train_size": 20,
        "model_args": "widths=(4,),activation='tanh',scale=0.7",
        "learning_rates": "0.1,0.6",
        "steps": 60,
        "record_every": 5,
        "errors_every": 6,
        "products": 6,
        "displaced_steps": 200,
        "displaced_scaled": "0.5,1.33",
    }
    command = [
        sys.executable, "-m", "experiments.principal_flow",
        "--config=configs/principal_flow_small.py", f"--out={tmp_path / 'run'}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")}
    kept |= {"XDG_CACHE_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/driftlab-test-xdg"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    claims, rises, along, displaced = json.loads((tmp_path / "run" / "summary.json").read_text())[
        "tables"
    ].values()
    # The quadratic's two, to 1e-6; what holds on networks takes larger ones.
    assert [row["holds"] for row in claims[:2]] == ["yes"] * 2
    assert sum(row["steps"] for row in rises) == 2 * 13
    assert sum(row["steps"] for row in along) == 2 * 3  # records 0, 6 and the last
    assert [row["h lambda_1"] for row in displaced] == [0.5, 1.33]
    small = displaced[0]
    assert small["principal"] < small["order 2 (IGR)"] < small["gradient flow"]
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 4
    assert "principal_flow_edge.png" in (tmp_path / "run" / "report.md").read_text()
