import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.flows import SMALLEST_STEP, SOLVED, solve
from driftlab.flows.lanes import solve_lanes

RATES = jnp.array([3.0, 100.0, 0.1, 30.0, 1.0, 10.0, 300.0])


def solve_one(rate):
    return solve(lambda t, y, args: -rate * y, jnp.ones(2), 1.0, rtol=1e-6)


@pytest.fixture(scope="module")
def alone():
    one = jax.jit(solve_one)
    return [one(rate) for rate in RATES]


@pytest.mark.parametrize("strategy", ["auto", "map", "vmap", "chunk:3", "chunk:100"])
@pytest.mark.parametrize("stiffness", [None, RATES])
def test_every_strategy_gives_each_lane_its_own(strategy, stiffness, alone):
    found = jax.jit(lambda r: solve_lanes(solve_one, r, strategy, stiffness))(RATES)
    assert (found.result == SOLVED).all()
    np.testing.assert_array_equal(found.steps, [one.steps for one in alone])
    np.testing.assert_allclose(found.y, [one.y for one in alone], rtol=1e-9)
    if strategy in ("auto", "map"):
        np.testing.assert_array_equal(found.y, [one.y for one in alone])


def test_chunks_hold_lanes_of_like_stiffness():
    # Each lane of a chunk is handed the chunk's largest rate: pairs in the order of the rates.
    largest = jax.vmap(lambda rate: jax.lax.pmax(rate, "chunk"), axis_name="chunk")

    @jax.custom_batching.custom_vmap
    def of_chunk(rate):
        return rate

    @of_chunk.def_vmap
    def _(axis_size, in_batched, rates):
        return largest(rates), True

    found = jax.jit(lambda r: solve_lanes(of_chunk, r, "chunk:2", stiffness=r))(RATES[:6])
    np.testing.assert_array_equal(found, [10, 100, 1, 100, 1, 10])
    unsorted = jax.jit(lambda r: solve_lanes(of_chunk, r, "chunk:2"))(RATES[:6])
    np.testing.assert_array_equal(unsorted, [100, 100, 30, 30, 10, 10])


def test_a_lane_that_blows_up_costs_the_others_little():
    # 400 times as much where it ran to the step limit for everybody.
    def blow_up(start):
        return solve(lambda t, y, args: y**2, start[None], 1.0)

    run = jax.jit(lambda starts: solve_lanes(blow_up, starts, "vmap"))
    found = run(jnp.array([0.1, 0.5, 2.0]))
    np.testing.assert_array_equal(found.result, [SOLVED, SOLVED, SMALLEST_STEP])
    assert found.steps[2] < 250
    healthy = run(jnp.array([0.1, 0.5, 0.2]))
    np.testing.assert_array_equal(found.y[:2], healthy.y[:2])


def test_trees_of_lanes_and_their_errors():
    found = solve_lanes(lambda lane: lane["a"] * lane["b"].sum(),
                        {"a": jnp.arange(4.0), "b": jnp.ones((4, 2))}, "chunk:2",
                        stiffness=[3, 1, 2, 0])  # fmt: skip
    np.testing.assert_array_equal(found, [0, 2, 4, 6])
    for strategy in ("chunk", "chunk:0", "chunk:-1", "pmap", 3):
        with pytest.raises(ValueError, match="must be 'auto', 'vmap', 'map' or 'chunk:k'"):
            solve_lanes(solve_one, RATES, strategy)
    with pytest.raises(ValueError, match="needs one number for each of the 7 lanes"):
        solve_lanes(solve_one, RATES, "map", stiffness=[1.0])
    with pytest.raises(ValueError, match="one leading axis"):
        solve_lanes(solve_one, {"a": jnp.ones(3), "b": jnp.ones(2)})
