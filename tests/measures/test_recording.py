import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import Grid, Objective, descent, measures, sweep
from driftlab.measures import every, record

KEY = jax.random.key(0)


def make_snapshot(start=2.0):
    dynamics = descent(optax.sgd(0.1), Objective(lambda params, _: 0.5 * params**2))
    return dynamics.observe(dynamics.init(jnp.asarray(start), KEY))


def moments(snapshot):
    """Two numbers of one measure."""
    return {"square": snapshot.params**2, "cubes": snapshot.params ** jnp.array([3, 3])}


def recorded_over(chosen, count):
    """The records `0 .. count-1` in one compiled loop, as a sweep makes them."""
    snapshot = make_snapshot()

    def one(index):
        return record(chosen, snapshot, index=index, is_last=index == count - 1)[0]

    return jax.jit(lambda: jax.lax.map(one, jnp.arange(count)))()


class TestEvery:
    @pytest.mark.parametrize(
        ("interval", "kept"), [(1, range(8)), (2, [0, 2, 4, 6, 7]), (3, [0, 3, 6, 7]), (50, [0, 7])]
    )
    def test_keeps_every_nth_record_and_the_last(self, interval, kept):
        values = recorded_over([every(measures.loss, interval)], 8)["loss"]
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(values)), list(kept))
        np.testing.assert_allclose(values[np.array(kept)], 2.0)

    def test_intervals_multiply(self):
        nested = every(every(measures.loss, 2), 3)
        assert nested.interval == 6
        values = recorded_over([nested], 9)["loss"]
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(values)), [0, 6, 8])

    def test_a_measure_of_many_names_is_missing_as_a_whole(self):
        values = recorded_over([measures.loss, every(moments, 2)], 4)
        assert not np.isnan(values["loss"]).any()
        np.testing.assert_array_equal(values["square"], [4.0, np.nan, 4.0, 4.0])
        assert values["cubes"].shape == (4, 2)
        assert np.isnan(values["cubes"][1]).all()

    def test_leaves_the_measure_itself_alone(self):
        spaced = every(moments, 4)
        assert not hasattr(moments, "interval")
        assert spaced.__name__ == "moments"
        assert spaced.__doc__ == moments.__doc__

    def test_is_not_evaluated_in_between_under_vmap_over_lanes(self):
        """The index is the same for every lane: a branch stays a branch, not a select."""

        def lane(start, index):
            return record([every(measures.gradient_norm, 2)], make_snapshot(start), index=index)[0]

        jaxpr = jax.make_jaxpr(jax.vmap(lane, (0, None)))(jnp.ones(3), jnp.int32(1))
        assert "cond" in {equation.primitive.name for equation in jaxpr.eqns}

    # Was once broken for True: booleans are ints.
    @pytest.mark.parametrize("interval", [0, -2, 1.5, "2", None, True])
    def test_refuses_what_is_no_interval(self, interval):
        with pytest.raises(ValueError, match="interval must be a positive integer of records"):
            every(measures.loss, interval)


class TestRecord:
    def test_names_come_from_functions_and_dicts(self):
        class Curvature:
            def __call__(self, snapshot):
                return jnp.ones(())

        recorded = record([measures.loss, moments, Curvature()], make_snapshot())[0]
        assert set(recorded) == {"loss", "square", "cubes", "Curvature"}
        np.testing.assert_allclose(recorded["cubes"], [8.0, 8.0])

    def test_by_default_records_are_due(self):
        assert record([every(measures.loss, 5)], make_snapshot())[0]["loss"] == 2.0

    @pytest.mark.parametrize(
        "value", [3, True, np.int8(3), jnp.arange(2), jnp.array([True, False])]
    )
    def test_integers_and_booleans_become_floats(self, value):
        def measure(snapshot):
            return value

        recorded = record([every(measure, 2)], make_snapshot(), index=0)[0]["measure"]
        assert recorded.dtype == jnp.float64
        np.testing.assert_array_equal(recorded, np.asarray(value, float))
        assert np.isnan(record([every(measure, 2)], make_snapshot(), index=1)[0]["measure"]).all()

    @pytest.mark.parametrize(
        ("dtype", "kept"),
        [("bfloat16", "float32"), ("float16", "float32"), ("float32",) * 2, ("complex64",) * 2],
    )
    def test_precisions_of_32_bits_and_more_are_kept(self, dtype, kept):
        def measure(snapshot):
            return jnp.ones((), dtype)

        assert record([measure], make_snapshot())[0]["measure"].dtype == kept

    def test_two_measures_of_one_name_are_refused(self):
        def square(snapshot):
            return snapshot.params

        with pytest.raises(ValueError, match=r"more than one measure records \['square'\]"):
            record([moments, square], make_snapshot())
        with pytest.raises(ValueError, match=r"\['loss'\]; rename"):
            record([measures.loss, every(measures.loss, 2)], make_snapshot())

    def test_an_error_of_a_measure_passes_through(self):
        def broken(snapshot):
            raise KeyError("my own mistake")

        for measure in (broken, every(broken, 2)):
            with pytest.raises(KeyError, match="my own mistake"):
                record([measure], make_snapshot())

    # Was once broken: a partial's name is "partial", so that two of them collide.
    def test_a_partial_is_called_after_its_function(self):
        def power(snapshot, exponent):
            return snapshot.params**exponent

        recorded = record([functools.partial(power, exponent=3)], make_snapshot())[0]
        assert set(recorded) == {"power"}


def counted(snapshot, memory):
    return {"seen": memory, "value": snapshot.value}, memory + 1


COUNTER = measures.Tracker("counter", lambda params: jnp.zeros((), jnp.int32), counted)


class TestTracker:
    def over(self, chosen, count):
        """The records `0 .. count-1`, handing the memory on."""
        snapshot = make_snapshot()

        def one(memory, index):
            values, memory = record(chosen, snapshot, memory, index, index == count - 1)
            return memory, values

        memory = measures.initial_memory(chosen, snapshot.params)
        return jax.jit(lambda: jax.lax.scan(one, memory, jnp.arange(count)))()

    def test_remembers_from_record_to_record(self):
        memory, values = self.over([measures.loss, COUNTER], 5)
        np.testing.assert_array_equal(values["seen"], np.arange(5))
        assert memory == ((), 5)

    def test_spaced_remembers_from_one_of_its_own_to_the_next(self):
        memory, values = self.over([every(every(COUNTER, 2), 2)], 7)
        np.testing.assert_array_equal(values["seen"], [0, *[np.nan] * 3, 1, np.nan, 2])
        assert memory == (3,)

    def test_called_like_a_measure_it_starts_afresh(self):
        assert COUNTER(make_snapshot()) == {"seen": 0, "value": 2.0}
        assert record([COUNTER], make_snapshot())[0]["seen"] == 0

    def test_an_array_is_recorded_under_the_name(self):
        named = measures.Tracker("mine", lambda params: (), lambda snapshot, m: (snapshot.value, m))
        assert record([named], make_snapshot())[0] == {"mine": 2.0}

    def test_in_a_sweep_each_lane_has_its_own(self, float32):
        def build(hparams, key):
            objective = Objective(lambda x, _: 5 * x**2)
            return descent(optax.sgd(hparams["learning_rate"]), objective), jnp.ones(())

        def compared(snapshot, memory):
            return snapshot.params / memory, snapshot.params

        ratio = measures.Tracker("ratio", jnp.asarray, compared)
        grid = Grid({"learning_rate": [0.01, 0.05, 0.25]})
        result = sweep(
            build, grid, steps=6, record_every=2, measures=[ratio, COUNTER], progress=False
        )
        expected = (1 - 10 * grid.lanes["learning_rate"]) ** 2
        np.testing.assert_allclose(result.ratio[:, 0], 1)
        np.testing.assert_allclose(
            result.ratio[:, 1:], np.tile(expected[:, None], (1, 3)), rtol=1e-4
        )
        np.testing.assert_array_equal(result.seen, np.tile(np.arange(4.0), (3, 1)))

    @pytest.mark.parametrize(
        ("memory", "message"),
        [(lambda m: (m, m), "keep the structure"), (lambda m: m.astype(float), "keep the type")],
    )
    def test_a_memory_that_changes_is_refused_before_anything_runs(self, memory, message):
        bad = measures.Tracker(
            "bad", lambda params: jnp.zeros((), jnp.int32), lambda s, m: (s.value, memory(m))
        )

        def build(hparams, key):
            return descent(optax.sgd(0.1), Objective(lambda x, _: x**2)), jnp.ones(())

        with pytest.raises(ValueError, match=f"measure bad must {message}"):
            sweep(build, Grid({"a": [1.0]}), steps=1, measures=[bad], progress=False)
