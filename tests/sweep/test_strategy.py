import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.sweep import strategy
from driftlab.sweep.strategy import StepCost, chunk_width, parse


def test_parse():
    assert [parse(lanes) for lanes in ("auto", "vmap", "map", "chunk:1", "chunk:12")] == [
        "auto", "vmap", 1, 1, 12,
    ]  # fmt: skip


@pytest.mark.parametrize("lanes", ["chunk", "chunk:0", "chunk:-1", "chunk:x", "pmap", "", 4])
def test_parse_refuses(lanes):
    with pytest.raises(ValueError, match=r"'chunk:k' with k >= 1; got"):
        parse(lanes)


def test_vmap_takes_a_devices_share():
    assert chunk_width("vmap", StepCost(1, 1), 10, 1, "cpu") == 10
    assert chunk_width("vmap", StepCost(1, 1), 10, 4, "gpu") == 3


def test_map_is_a_chunk_of_one():
    assert chunk_width("map", StepCost(1, 1), 10, 1, "cpu") == 1


@pytest.mark.parametrize(("num_lanes", "num_devices"), [(100, 1), (5, 1), (8, 4)])
def test_a_chunks_width_is_as_asked_whatever_the_lanes_and_devices(num_lanes, num_devices):
    # Widths change rounding, so this is what makes chunk:k independent of the rest of the sweep.
    assert chunk_width("chunk:4", StepCost(1, 1), num_lanes, num_devices, "cpu") == 4


def test_auto_on_a_cpu_narrows_as_steps_grow():
    widths = [chunk_width("auto", StepCost(f, 1), 10**6, 1, "cpu") for f in (1e3, 1e7, 1e12)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 1
    assert chunk_width("auto", StepCost(1e3, 1), 3, 1, "cpu") <= 3


def test_auto_on_an_accelerator_takes_what_fits(monkeypatch):
    monkeypatch.setattr(strategy, "resident_bytes", lambda backend: 1000)
    assert chunk_width("auto", StepCost(1e3, 100), 64, 1, "gpu") == 10
    assert chunk_width("auto", StepCost(1e3, 100), 64, 16, "gpu") == 4
    assert chunk_width("auto", StepCost(1e3, 10**6), 64, 1, "gpu") == 1


def test_flops_counts_a_product_without_its_data_in_the_program():
    data = np.ones((300, 200))
    assert strategy.flops(lambda x: data @ x, jnp.ones((200, 10))) == pytest.approx(
        2 * 300 * 200 * 10, rel=0.01
    )


def test_tree_bytes():
    tree = {"a": np.zeros((3, 2), np.float32), "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16)}
    assert strategy.tree_bytes(tree) == 24 + 10
