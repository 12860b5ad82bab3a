"""Bits: what the lanes of a sweep do, and do not, depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab import Grid, sweep
from driftlab.sweep import engine, final_params, strategy

RATES = np.geomspace(0.01, 0.5, 7)
QUIET = {"progress": False}


def run(problems, lanes, rates=RATES, devices=1, **options):
    grid = Grid({"learning_rate": rates, **options.pop("axes", {})})
    options = {"steps": 23, "record_every": 4, "measures": problems.MEASURES} | options
    return sweep(problems.mlp, grid, lanes=lanes, devices=devices, **options, **QUIET)


@pytest.fixture(scope="module")
def reference(problems):
    return {lanes: run(problems, lanes) for lanes in ("map", "chunk:3", "vmap")}


def single_run(build, rate, steps, key):
    """The same run by hand: a compiled loop over `Dynamics.step`."""

    @jax.jit
    def loop(state, rate, first, last):
        dynamics, _ = build({"learning_rate": rate}, jax.random.fold_in(key, 0))
        return jax.lax.fori_loop(first, last, lambda _, state: dynamics.step(state), state)

    @jax.jit
    def start(rate):
        dynamics, params = build({"learning_rate": rate}, jax.random.fold_in(key, 0))
        return dynamics.init(params, jax.random.fold_in(key, 1))

    rate = jnp.asarray(rate)
    state, found = start(rate), []
    for first, last in zip((0, *steps), steps, strict=False):
        state = loop(state, rate, first, last)
        found.append(jax.flatten_util.ravel_pytree(state.params)[0])
    return np.array(found)


def assert_map_is_the_single_run(problems, dataset):
    key = jax.random.fold_in(jax.random.key(0), 0)
    for rate in RATES[[0, 3, 6]]:
        records = dataset.parameters.sel(learning_rate=rate).values
        by_hand = single_run(problems.mlp, rate, dataset.step.values.tolist(), key)
        assert records.dtype == by_hand.dtype
        np.testing.assert_array_equal(records, by_hand)


def test_map_is_bitwise_the_single_run(problems, reference):
    assert_map_is_the_single_run(problems, reference["map"])


def test_map_is_bitwise_the_single_run_in_float32(problems, float32):
    dataset = run(problems, "map")
    assert dataset.loss.dtype == np.float32
    assert_map_is_the_single_run(problems, dataset)


@pytest.mark.parametrize("lanes", ["chunk:3", "vmap"])
def test_strategies_agree_to_rounding(reference, lanes):
    for name in ("loss", "parameters", "gradient_norm"):
        np.testing.assert_allclose(
            reference[lanes][name].values, reference["map"][name].values, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("lanes", ["map", "chunk:3"])
@pytest.mark.parametrize(
    "rates",
    [RATES[::-1], RATES[[5, 0, 3, 1]], RATES[:2], RATES[[4]], [*RATES[2:5], 1e30, 0.3, *RATES[5:]]],
    ids=["reversed", "four", "fewer than a chunk", "one", "diverging neighbour"],
)
def test_a_lane_does_not_depend_on_the_others(problems, reference, lanes, rates):
    dataset = run(problems, lanes, rates)
    shared = [rate for rate in rates if rate in RATES]
    problems.assert_same_bits(
        dataset.sel(learning_rate=shared), reference[lanes].sel(learning_rate=shared)
    )


def test_a_diverging_lane_leaves_vmapped_neighbours_alone(problems):
    rates = RATES.copy()
    rates[3] = 1e30
    healthy, poisoned = run(problems, "vmap"), run(problems, "vmap", rates)
    assert poisoned.verdict.values[3] != "ok"
    others = np.arange(7) != 3
    problems.assert_same_bits(
        healthy.isel(learning_rate=others), poisoned.isel(learning_rate=others)
    )


@pytest.mark.parametrize("lanes", ["map", "chunk:3"])
def test_sharding_keeps_bits(problems, reference, lanes):
    problems.assert_same_bits(run(problems, lanes, devices=2), reference[lanes])


def test_sharding_keeps_bits_where_a_chunk_is_wider_than_a_devices_share(problems):
    one, two = (run(problems, "chunk:6", devices=devices) for devices in (1, 2))
    assert one.attrs["lanes"] == two.attrs["lanes"] == "chunk:6"
    problems.assert_same_bits(one, two)


def test_sharded_vmap_agrees_to_rounding(problems, reference):
    sharded = run(problems, "vmap", devices=jax.devices())
    np.testing.assert_allclose(
        sharded.loss.values, reference["vmap"].loss.values, rtol=1e-9, atol=1e-12
    )


def test_segments_keep_bits(problems, reference, monkeypatch):
    monkeypatch.setattr(engine, "_SEGMENT_SECONDS", 0.0)  # one record a segment
    problems.assert_same_bits(run(problems, "chunk:3"), reference["chunk:3"])
    monkeypatch.setattr(engine, "_SEGMENT_SECONDS", 1e9)  # as many as the buffer holds
    monkeypatch.setattr(engine, "_CAPACITY", 2)
    problems.assert_same_bits(run(problems, "chunk:3"), reference["chunk:3"])
    problems.assert_same_bits(run(problems, "map"), reference["map"])


def test_blocks_keep_bits(problems, reference, monkeypatch, tmp_path):
    monkeypatch.setattr(strategy, "_CPU_RESIDENT_BYTES", 1)  # one chunk a block
    problems.assert_same_bits(run(problems, "chunk:3", out=tmp_path), reference["chunk:3"])
    blocks = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert blocks == [f"point-0000-lanes-{a:07d}-{b:07d}" for a, b in ((0, 2), (3, 5), (6, 6))]
    lanes, params = final_params(tmp_path)
    np.testing.assert_array_equal(lanes, np.arange(7))
    assert len(params["bias"]) == 7


def test_final_params_are_the_last_records(problems, tmp_path):
    dataset = run(problems, "chunk:3", out=tmp_path, devices=2)
    _, final = final_params(tmp_path)
    flat = jax.vmap(lambda tree: jax.flatten_util.ravel_pytree(tree)[0])(final)
    np.testing.assert_array_equal(flat, dataset.parameters.values[:, -1])


def fragile(hparams, key):
    """Chaotic below a learning rate that a lane may exceed early, late or never."""
    del key

    def loss(x, batch):
        return jnp.sum(jnp.log(jnp.cosh(3 * x)) + 0.05 * jnp.tanh(x) ** 4) + jnp.prod(x)

    momentum = optax.trace(0.9)
    tx = optax.chain(momentum, optax.scale_by_learning_rate(hparams["learning_rate"]))
    return driftlab.descent(tx, driftlab.Objective(loss)), jnp.array([0.3, -0.2, 0.5])


FRAGILE = Grid({"learning_rate": np.geomspace(0.05, 1e3, 13)})
STAGGERED = {
    "steps": 400, "record_every": 5, "divergence_factor": 10.0,
    "measures": [driftlab.measures.loss], **QUIET,
}  # fmt: skip


@pytest.mark.parametrize(("lanes", "devices"), [("map", 1), ("chunk:2", 1), ("chunk:2", 2)])
def test_compaction_keeps_bits(problems, lanes, devices, monkeypatch):
    monkeypatch.setattr(engine, "_SEGMENT_SECONDS", 0.01)
    full, compacted = (
        sweep(fragile, FRAGILE, lanes=lanes, devices=devices, compact=compact, **STAGGERED)
        for compact in (False, True)
    )
    dead = full.verdict.values != "ok"
    assert 2 < dead.sum() < 13
    problems.assert_same_bits(full, compacted)


def test_compaction_under_vmap_is_deterministic(problems, monkeypatch):
    options = {"lanes": "vmap", "devices": 1, **STAGGERED}
    full = sweep(fragile, FRAGILE, **options)
    found = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(engine, "_SEGMENT_SECONDS", seconds)
        found.append(sweep(fragile, FRAGILE, compact=True, **options))
    problems.assert_same_bits(*found)
    np.testing.assert_allclose(found[0].loss.values[:, :4], full.loss.values[:, :4], rtol=1e-9)
    assert (found[0].verdict.values == full.verdict.values).mean() > 0.8


def test_keys_in_the_optimisers_state(problems, tmp_path, monkeypatch):
    def build(hparams, key):
        objective = driftlab.Objective(lambda x, batch: (x * x).sum())
        noise = optax.add_noise(1e-3, 0.55, jax.random.key(1, impl=hparams["impl"]))
        tx = optax.chain(noise, optax.sgd(hparams["learning_rate"]))
        return driftlab.descent(tx, objective), jnp.ones(3)

    grid = Grid({"learning_rate": [0.1, 0.2, 1e9, 0.3, 1e8]}, {"impl": ["threefry2x32", "rbg"]})
    options = {"measures": [problems.parameters], "lanes": "map", "devices": 1, **QUIET}
    plain = sweep(build, grid, 30, compact=False, **options)
    monkeypatch.setattr(engine, "_SEGMENT_SECONDS", 0.0)
    kept = sweep(build, grid, 30, out=tmp_path, checkpoint_seconds=0, **options)
    problems.assert_same_bits(plain, kept)
    assert not np.array_equal(plain.parameters.values[0, 0], plain.parameters.values[0, 1])


def test_x64_by_context_reaches_every_thread(problems):
    # JAX's precision is a thread's own; the pool's threads have the process'.
    jax.config.update("jax_enable_x64", False)
    try:
        with jax.enable_x64(True):
            dataset = run(problems, "map")
    finally:
        jax.config.update("jax_enable_x64", True)
    assert dataset.loss.dtype == np.float64
    problems.assert_same_bits(dataset, run(problems, "map"))
