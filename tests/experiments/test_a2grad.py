"""A2Grad's experiment: the digits table in small, its rows against the dataset, and the binary."""

import json

import numpy as np
import optax
import pytest

from configs import a2grad_small
from experiments import a2grad, a2grad_figures, a2grad_report


@pytest.fixture(scope="module")
def config():
    config = a2grad_small.get_config()
    config.optimizers = config.optimizers.removesuffix(",amsgrad,sgd")
    config.lipschitz = "0.1,1"
    config.beta = "1,10"
    config.learning_rates = "1e-3,1e-2"
    config.b2 = "0.999"
    config.seeds = "1"
    config.average_every = 50
    return config


@pytest.fixture(scope="module")
def results(config, parsed_flags):
    return a2grad.run_all(config, progress=False)


def best(results, method, grid=a2grad_report.WHOLE):
    found = a2grad_report.outcomes(results)
    return next(o for o in found if (o.method, o.grid) == (method, grid))


# The reference's table: logistic regression on digits, batch 64, 50 epochs, another split and seed.
@pytest.mark.parametrize(
    ("variant", "each", "one"),
    [("uniform", 0.026, 0.189), ("incremental", 0.0055, 0.120), ("exponential", 0.048, 0.226)],
)
def test_one_scale_a_tensor_costs_what_the_reference_measured(results, variant, each, one):
    published, scalar = best(results, variant), best(results, f"{variant} scalar")
    np.testing.assert_allclose(published.training_loss, each, rtol=0.35)
    np.testing.assert_allclose(scalar.training_loss, one, rtol=0.35)
    assert 4 < scalar.training_loss / published.training_loss < 30
    assert published.test_accuracy > 0.94


def test_outcomes_say_what_the_dataset_holds(results, config):
    lanes = results["logistic"]["a2grad"].sel({"optimizer": "uniform"})
    final = lanes.training_loss.isel(step=-1)
    outcome = best(results, "uniform")
    np.testing.assert_allclose(outcome.training_loss, final.min())
    at = final.where(final == final.min(), drop=True)
    assert outcome.setting == {name: at[name].item() for name in ("lipschitz", "beta")}
    assert outcome.epochs[-1] == config.logistic.epochs
    assert len(outcome.epochs) == config.logistic.epochs + 1
    # At the end of a run y and xbar have all but met; early on they have not.
    np.testing.assert_allclose(outcome.average_loss, outcome.training_loss, rtol=0.1)
    assert lanes.average_training_loss.isel(step=0).equals(lanes.training_loss.isel(step=0))
    # The paper searched no beta below 10.
    searched = best(results, "uniform", a2grad_report.PAPER)
    assert searched.setting["beta"] == 10
    assert searched.training_loss >= outcome.training_loss


def test_tables_and_figures(results):
    found = a2grad_report.outcomes(results)
    rows, methods, figure = a2grad_report.tables(found).values()
    assert {row["holds"] for row in rows} <= {"yes", "no"}
    assert len(rows) == 7
    assert len(methods) == 7 + 4
    assert [row["quantity"] for row in figure] == ["training loss", "test accuracy"]
    assert figure[0]["adam"].startswith("0.286: ")
    figures = a2grad_figures.draw(results, found)
    assert set(figures) == {"a2grad_curves_logistic", "a2grad_grid_logistic"}


def test_a_claim_that_fails_is_said_to():
    def outcome(method, loss):
        curve = np.array([1.0, loss])
        return a2grad_report.Outcome(
            "logistic", "whole", method, {}, loss, 0.9, None, None, loss, 0.0, curve, curve, curve
        )

    methods = (*a2grad_report.PUBLISHED, *a2grad_report.RIVALS)
    for losses, expected in (((1, 2, 3, 4, 5), "yes"), ((1, 2, 4.5, 4, 5), "no")):
        found = [outcome(*pair) for pair in zip(methods, losses, strict=True)]
        rows = a2grad_report.claims(found, "logistic")
        assert [row["holds"] for row in rows] == [expected, expected, "no"]


def test_methods_are_what_they_are_called():
    hparams = {"learning_rate": 0.1, "b2": 0.9, "momentum": 0.5, "lipschitz": 2.0, "beta": 1.0}
    states = {
        method: a2grad.optimizer(hparams | {"optimizer": method}, 0.9).init(np.ones((2, 3)))
        for family in a2grad.FAMILIES.values()
        for method in family
    }
    assert states["exponential"].accumulator.shape == (2, 3)
    assert states["exponential scalar"].moving_average.shape == ()
    assert states["uniform"].moving_average == ()
    assert optax.tree.get(states["amsgrad"], "nu_max") is not None
    assert optax.tree.get(states["sgd"], "trace") is not None


def test_bad_arguments_are_refused(config):
    other = config.copy_and_resolve_references()
    other.networks = "logistic,deep"
    with pytest.raises(ValueError, match=r"does not describe \['deep'\]"):
        a2grad.run_all(other)
    other = config.copy_and_resolve_references()
    other.optimizers = "uniform,adan"
    with pytest.raises(ValueError, match=r"\['adan'\] is none of \['uniform', 'incremental'"):
        a2grad.run_all(other)
    other = config.copy_and_resolve_references()
    other.beta = "0,1"
    with pytest.raises(ValueError, match=r"beta='0,1': every value must be positive"):
        a2grad.run_all(other)


def test_the_binary_leaves_a_run_and_redraws_it(run_experiment, tmp_path):
    arguments = [
        "--config=configs/a2grad_small.py", "--steps=4", "--record_every=2", "--seeds=1",
        "--config.lipschitz=1,10", "--config.beta=1,10", "--config.train_size=200",
        "--config.optimizers=uniform,adam", "--config.b2=0.999", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    for again in (False, True):
        done = run_experiment("a2grad", *arguments)
        assert done.returncode == 0, done.stderr
        assert ("its figures are drawn again" in done.stdout) == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["tables"]) == 3
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 2
