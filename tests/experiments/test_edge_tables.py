"""Plateaus and claims, on records with known values."""

import ml_collections
import numpy as np
import pytest
import xarray

from experiments import edge_tables
from experiments.edge_methods import make_methods

SETTINGS = {"momentum": 0.9, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "optimizers": "gradient_descent"}


@pytest.fixture
def method():
    return make_methods(ml_collections.ConfigDict(SETTINGS))["gradient_descent"]


def dataset(ratios, rises, verdict_step=-1):
    """One lane at learning rate 0.5, whose threshold is 4."""
    ratios = np.array(ratios, float)
    lane = ("learning_rate", "seed", "step")
    return xarray.Dataset(
        {
            "sharpness": (lane, 4 * ratios[None, None]),
            "loss_rises": (lane, np.array(rises, float)[None, None]),
            "loss": (lane, np.linspace(1, 0.1, len(ratios))[None, None]),
            "verdict": (lane[:2], [["ok" if verdict_step < 0 else "diverged"]]),
            "verdict_step": (lane[:2], [[verdict_step]]),
        },
        {"learning_rate": [0.5], "seed": [0], "step": 10 * np.arange(len(ratios))},
    )


@pytest.mark.parametrize(
    ("ratios", "index"),
    [
        ([0.5, 0.8, 1.1, 0.9, 1.0], 2),
        ([1.9, 0.8, 0.9, 1.0], 3),  # a start above the edge is not a rise to it
        ([1.9, 0.8, 0.9], None),
        ([1.9, 1.1, 1.05], 0),  # never below
        ([0.5, 0.6], None),
        ([], None),
    ],
)
def test_the_edge_is_reached_by_rising_to_it(ratios, index):
    assert edge_tables.edge_index(np.array(ratios)) == index


def test_a_lane_on_the_edge(method):
    found = edge_tables.lanes(
        dataset([1.5, 0.5, 1.2, 1.3, 1.02, 1.01, 1.0], [1, 0, 1, 0, 1, 0, 0]), method
    )
    (lane,) = found
    assert lane.reached == 20
    assert lane.plateau == pytest.approx(1.01)
    assert lane.rises_before == 0  # the start above the threshold does not count
    assert lane.rises_after == pytest.approx(2 / 5)
    (row,) = edge_tables.lane_rows({"gradient_descent": found}, {"gradient_descent": method})
    assert row["plateau x rate"] == pytest.approx(2.02)
    assert row["threshold"] == 4
    assert row["outcome"] == "on the edge from 20"


def test_lanes_below_the_edge_and_diverged_ones_say_so(method):
    (below,) = edge_tables.lanes(dataset([1.5, 0.5, 0.8, 0.7], [1, 0, 0, 0]), method)
    (gone,) = edge_tables.lanes(
        dataset([0.5, 1.5, np.nan, np.nan], [0, 1, np.nan, np.nan], 15), method
    )
    rows = edge_tables.lane_rows({"gradient_descent": [below, gone]}, {"gradient_descent": method})
    assert rows[0]["outcome"] == "below the edge: at most 0.8 of it"
    assert rows[1]["outcome"] == "diverged at 15"
    assert rows[0]["ratio"] is None
    assert rows[1]["ratio"] is None


@pytest.mark.parametrize(
    ("plateau", "holds"), [(1.05, "yes"), (1.2, "no"), (0.85, "no"), (None, "-")]
)
def test_claims_hold_or_do_not(method, plateau, holds):
    end = [0.5] * 4 if plateau is None else [1.1] + [plateau] * 3
    found = {"gradient_descent": edge_tables.lanes(dataset([0.5, *end], [0, 0, 1, 0, 1]), method)}
    rows = edge_tables.claim_rows(found, {"gradient_descent": method}, [1.5], 0.1)
    assert rows[0]["holds"] == holds
    expected = "-" if plateau is None else "yes"
    assert [row["holds"] for row in rows[1:3]] == [expected] * 2
    assert rows[-1]["holds"] == expected
