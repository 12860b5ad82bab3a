import numpy as np
import pytest
import xarray

from driftlab.sweep.summary import divergence_rate, final, learning_rate_summary


@pytest.fixture
def dataset():
    """Two optimisers, four rates (unsorted), three seeds; two records."""
    rates = np.array([0.1, 0.001, 1.0, 0.01])
    final_loss = {  # optimizer -> rate -> seeds
        "a": {0.001: [3, 3, 3], 0.01: [1, 2, 9], 0.1: [0.1, 4, 5], 1.0: [np.nan] * 3},
        "b": {0.001: [2, 2.5, 3], 0.01: [7, 7, 7], 0.1: [0.1, 0.1, np.nan], 1.0: [1, 1, 1]},
    }  # fmt: skip
    loss = np.full((2, 4, 3, 2), 5.0)
    loss[..., 1] = [[final_loss[o][r] for r in rates] for o in "ab"]
    verdict = np.where(np.isnan(loss[..., 1]), "diverged", "ok").astype("<U9")
    verdict[0, 2, 0] = "nonfinite"
    loss[0, 2, 0, 1] = -1e9  # what a failed lane holds must not count
    axes = ("optimizer", "learning_rate", "seed")
    return xarray.Dataset(
        {"loss": ((*axes, "step"), loss), "verdict": (axes, verdict)},
        {"optimizer": ["a", "b"], "learning_rate": rates, "seed": [0, 1, 2], "step": [0, 10]},
    )


def test_final_hides_lanes_that_failed(dataset):
    values = final(dataset, "loss").sel(learning_rate=1.0)
    assert np.isnan(values.sel(optimizer="a")).all()
    assert (values.sel(optimizer="b") == 1.0).all()


def test_divergence_rate_is_the_share_of_seeds(dataset):
    rates = divergence_rate(dataset)
    assert rates.sel(optimizer="b", learning_rate=0.1) == pytest.approx(1 / 3)
    assert rates.sel(optimizer="a", learning_rate=1.0) == 1
    assert float(rates.sum()) == pytest.approx(4 / 3)


def test_best_and_largest_stable(dataset):
    a, b = learning_rate_summary(dataset)
    assert (a["optimizer"], b["optimizer"]) == ("a", "b")
    assert (a["best"], a["best_value"], a["largest_stable"]) == (0.01, 2.0, 0.1)
    assert a["best_quartiles"] == [1.5, 5.5]
    # 0.1 lost a seed, so it is not best; 0.01 ends above its start, so it is not stable, and
    # neither is anything beyond it.
    assert (b["best"], b["best_value"], b["largest_stable"]) == (1.0, 1.0, 0.001)
    assert a["failed_share"] == pytest.approx(0.25)


def test_larger_is_better(dataset):
    rows = learning_rate_summary(dataset, larger_is_better=True)
    assert [row["best"] for row in rows] == [0.1, 0.01]


def test_without_seeds_and_with_nothing_left(dataset):
    alone = dataset.isel(optimizer=0, seed=0, drop=True)
    (row,) = learning_rate_summary(alone)
    assert (row["best"], row["largest_stable"]) == (0.1, 0.1)
    (row,) = learning_rate_summary(alone.sel(learning_rate=[1.0]))
    assert row["best"] is None
    assert row["largest_stable"] is None
    assert row["failed_share"] == 1
