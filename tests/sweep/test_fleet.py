"""Lanes on the devices and on the host: every way there and back keeps every bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import Grid
from driftlab.sweep.fleet import Fleet
from driftlab.sweep.lane import Schedule, lane_program
from driftlab.sweep.lanes import compile_chunks
from driftlab.sweep.plan import lane_hparams

GRID = Grid({"learning_rate": np.linspace(0.01, 0.05, 7)})


def noisy(hparams, key):
    """A dynamics whose state holds a typed PRNG key and draws from it."""
    del key
    objective = driftlab.Objective(lambda x, batch: (x * x).sum())

    def update(updates, state, params=None):
        del params
        state, draw = jax.random.split(state)
        noise = 0.1 * jax.random.normal(draw, updates.shape)
        return updates + noise, state

    noise = optax.GradientTransformation(lambda params: jax.random.key(5), update)
    tx = optax.chain(optax.sgd(hparams["learning_rate"]), noise)
    return driftlab.descent(tx, objective), jnp.ones(3)


@pytest.fixture(scope="module")
def chunks():
    program = lane_program(noisy, {}, [driftlab.measures.loss], Schedule(60, 10), 1e3, 7)
    hparams, keys = lane_hparams(GRID), GRID.lane_keys(jax.random.key(0))

    def compiled(width, devices=1):
        return compile_chunks(program, hparams, keys, width, jax.devices()[:devices])

    return {"three": compiled(3), "two devices": compiled(3, 2)}


def fleet_of(chunks, workers=2):
    return Fleet(chunks, lane_hparams(GRID), GRID.lane_keys(jax.random.key(0)), workers)


def advanced(fleet, first, count):
    values = np.full((7, count), np.nan)
    for positions, records, verdict, verdict_step in fleet.advance(first, count):
        assert len(positions) == len(verdict) == len(verdict_step)
        values[positions] = records["loss"][:, :count]
    return values


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_gather_place_and_devices_keep_bits(chunks):
    straight = fleet_of(chunks["three"])
    straight.initialize()
    whole = advanced(straight, 0, 7)
    assert np.isfinite(whole).all()
    assert not np.array_equal(whole[:, 1:], whole[:, :-1])

    moved = fleet_of(chunks["two devices"])
    moved.initialize()
    first = advanced(moved, 0, 3)
    host = moved.gather()
    resumed = fleet_of(chunks["three"], workers=1)
    resumed.place(jax.tree.map(np.array, host))
    second = advanced(resumed, 3, 4)
    np.testing.assert_array_equal(np.hstack([first, second]), whole)
    assert_same(resumed.gather(), straight.gather())
    for fleet in (straight, moved, resumed):
        fleet.close()


def test_host_holds_numpy_arrays_of_every_lane_in_order(chunks):
    fleet = fleet_of(chunks["three"])
    fleet.initialize()
    host = fleet.gather()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))
    np.testing.assert_array_equal(host.params, np.ones((7, 3)))
    assert [leaf.shape for leaf in jax.tree.leaves(host.inner)] == [(7, 2)]  # the key's data
    fleet.close()


def kill(fleet, dead):
    for group in fleet._groups:
        verdict = dead[np.pad(group.positions, (0, 3 - len(group.positions)), mode="edge")]
        group.lanes = group.lanes._replace(verdict=jnp.asarray(verdict, jnp.int8))


@pytest.mark.parametrize("narrow", [False, True])
def test_compaction_drops_the_dead_and_keeps_the_living(chunks, narrow):
    straight = fleet_of(chunks["three"])
    straight.initialize()
    whole = advanced(straight, 0, 7)

    fleet = fleet_of(chunks["three"])
    fleet.initialize()
    first = advanced(fleet, 0, 2)
    dead = np.array([True, True, True, False, True, True, False])
    kill(fleet, dead)
    asked = []
    fleet.compact(~dead, (lambda n: asked.append(n) or chunks["three"]) if narrow else None)
    assert len(fleet._groups) == 1  # two lanes left of seven fit one call of three
    assert asked == []  # two are more than half of a call
    second = advanced(fleet, 2, 5)
    np.testing.assert_array_equal(first, whole[:, :2])
    np.testing.assert_array_equal(second[~dead], whole[~dead, 2:])
    assert np.isnan(second[dead]).all()
    for each in (straight, fleet):
        each.close()


def test_compaction_without_the_dead_changes_nothing(chunks):
    fleet = fleet_of(chunks["three"])
    fleet.initialize()
    before = list(fleet._groups)
    fleet.compact(np.ones(7, bool), None)
    assert fleet._groups == before
    kill(fleet, np.ones(7, bool))
    fleet.compact(np.zeros(7, bool), None)
    assert fleet._groups == []
    assert list(fleet.advance(0, 1)) == []
    fleet.close()
