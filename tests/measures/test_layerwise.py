import dataclasses

import chex
import equinox
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import driftlab
from driftlab import measures
from driftlab.measures import Tracker, every, record
from driftlab.measures.gradient_noise import gradient_covariance_trace, update_cosine
from driftlab.measures.layerwise import layer_names, layerwise
from tests.sweep import problems

KEY = jax.random.key(0)
RANDOM = np.random.RandomState(0)
DATA = (RANDOM.standard_normal((12, 3)), RANDOM.randint(0, 2, 12))
PARAMS = jax.tree.map(
    RANDOM.standard_normal,
    {"params": {"Dense_0": {"kernel": (3, 4), "bias": 4}, "Dense_1": {"kernel": (4, 2)}}},
    is_leaf=lambda node: not isinstance(node, dict),
)
PARAMS["params"]["scale"] = np.array(1.5)
PARAMS = jax.tree.map(jnp.asarray, PARAMS)
LAYERS = {"Dense_0": slice(0, 16), "Dense_1": slice(16, 24), "scale": slice(24, 25)}


def loss(params, batch):
    inputs, labels = batch
    first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = jnp.tanh(inputs @ first["kernel"] + first["bias"][None])
    logits = params["params"]["scale"] * (hidden @ second["kernel"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


OBJECTIVE = driftlab.Objective(
    loss,
    DATA,
    driftlab.with_replacement(5),
    evaluation_data=DATA,
    metrics={"half": lambda params, batch: loss(params, batch) / 2},
    regularizer=lambda params, batch: optax.tree.norm(params, squared=True) ** 2,
)


def snapshot_of(objective=OBJECTIVE, tx=None, params=PARAMS):
    dynamics = driftlab.descent(tx or optax.adam(0.01), objective)
    state = dynamics.step(dynamics.init(params, KEY))
    return dynamics.observe(state)._replace(initial_params=params)


def hessian(snapshot):
    """The dense Hessian of what is minimised over the data, in the snapshot's parameters."""
    flat, unravel = ravel_pytree(snapshot.params)
    objective = snapshot.objective
    return jax.jit(jax.hessian(lambda x: objective.value(unravel(x), objective.data)[0]))(flat)


@pytest.mark.parametrize(
    "measure",
    [measures.gradient_norm, measures.parameter_norm, measures.distance_from_initialization],
)
def test_squared_norms_of_the_layers_sum_to_the_whole(measure):
    snapshot = snapshot_of()
    values = layerwise(measure)(snapshot)
    assert values.keys() == {f"{measure.__name__}_{layer}" for layer in LAYERS}
    total = sum(value**2 for value in values.values())
    np.testing.assert_allclose(total, measure(snapshot) ** 2, rtol=1e-14)


def test_covariance_traces_of_the_layers_sum_to_the_whole():
    snapshot = snapshot_of()
    values = layerwise(gradient_covariance_trace())(snapshot)
    total = gradient_covariance_trace()(snapshot)["gradient_covariance_trace"]
    np.testing.assert_allclose(sum(values.values()), total, rtol=1e-13)


def test_the_hessian_of_a_layer_is_the_diagonal_block():
    snapshot = snapshot_of()
    whole, blocks = hessian(snapshot), layerwise(hessian)(snapshot)
    for layer, part in LAYERS.items():
        np.testing.assert_allclose(
            blocks[f"hessian_{layer}"], whole[part, part], rtol=1e-12, atol=1e-14
        )


def test_every_field_is_the_layers():
    seen = {}

    def look(snapshot):
        seen["it"] = snapshot
        return jnp.zeros(())

    snapshot = snapshot_of()
    layerwise(look, ["Dense_1"])(snapshot)
    part = seen["it"]

    def expected(tree):
        layer = {"kernel": tree["params"]["Dense_1"]["kernel"]}
        none = {"kernel": None, "bias": None}
        return {"params": {"Dense_0": none, "Dense_1": layer, "scale": None}}

    for name in ("params", "gradient", "eval_params", "initial_params", "updates"):
        chex.assert_trees_all_equal(getattr(part, name), expected(getattr(snapshot, name)))
    for name in ("state", "next_state"):
        state, whole = getattr(part, name), getattr(snapshot, name)
        chex.assert_trees_all_equal(state.params, expected(whole.params))
        adam = state.inner[0]
        chex.assert_trees_all_equal(adam.mu, expected(whole.inner[0].mu))
        chex.assert_trees_all_equal(adam.nu, expected(whole.inner[0].nu))
        assert adam.count is whole.inner[0].count
        assert state.key is whole.key
        assert state.step is whole.step
    assert part.batch is snapshot.batch
    assert part.value is snapshot.value
    assert part.loss is snapshot.loss
    ours, whole = part.objective, snapshot.objective
    assert ours.loss(part.params, DATA) == whole.loss(snapshot.params, DATA)
    assert ours.regularizer(part.params, DATA) == whole.regularizer(snapshot.params, DATA)
    assert ours.metrics["half"](part.params, DATA) == whole.metrics["half"](snapshot.params, DATA)
    gradient = jax.grad(lambda p: ours.value(p, part.batch)[0])(part.params)
    chex.assert_trees_all_close(gradient, part.gradient, rtol=1e-12)


def test_without_objective_dynamics_or_start():
    snapshot = snapshot_of()._replace(objective=None, dynamics=None, initial_params=None)
    values = layerwise(measures.update_norm)(snapshot)
    assert len(values) == 3


class TestLookingAhead:
    def test_all_layers_move(self):
        """The layer's part of the true next update, not of one with the others held."""
        snapshot = snapshot_of()
        following = snapshot.dynamics.observe(snapshot.next_state)
        values = layerwise(update_cosine)(snapshot)
        first = ravel_pytree(snapshot.updates)[0]
        second = ravel_pytree(following.updates)[0]
        for layer, part in LAYERS.items():
            a, b = first[part], second[part]
            expected = a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
            np.testing.assert_allclose(values[f"update_cosine_{layer}"], expected, rtol=1e-12)

    def test_steps_on_steps(self):
        def third_step(snapshot):
            following = snapshot.dynamics.observe(snapshot.next_state)
            state = snapshot.dynamics.step(following.next_state)
            chex.assert_trees_all_equal(state, following.dynamics.step(following.next_state))
            again = snapshot.dynamics.observe(snapshot.state)
            chex.assert_trees_all_equal(again.updates, snapshot.updates)
            return state.params

        snapshot = snapshot_of()
        state = snapshot.next_state
        for _ in range(2):
            state = snapshot.dynamics.step(state)

        def measure(snapshot):
            return ravel_pytree(third_step(snapshot))[0]

        values = layerwise(measure)(snapshot)
        whole = ravel_pytree(state.params)[0]
        for layer, part in LAYERS.items():
            np.testing.assert_array_equal(values[f"measure_{layer}"], whole[part])

    def test_refuses_states_that_it_does_not_know(self):
        def elsewhere(snapshot):
            return snapshot.dynamics.observe(snapshot.state._replace(step=7)).loss

        def afresh(snapshot):
            return snapshot.dynamics.init(snapshot.params, KEY).step

        with pytest.raises(ValueError, match="snapshot.state or snapshot.next_state"):
            layerwise(elsewhere)(snapshot_of())
        with pytest.raises(ValueError, match="cannot start"):
            layerwise(afresh)(snapshot_of())


def track(snapshot, memory):
    """Counts its records, and remembers the last gradient."""
    count, gradient = memory
    turn = optax.tree.vdot(gradient, snapshot.gradient)
    return {"count": count, "turn": turn}, (count + 1, snapshot.gradient)


TRACKER = Tracker("tracked", lambda params: (0, optax.tree.zeros_like(params)), track)


class TestTracker:
    def test_each_layer_remembers_by_itself(self):
        tracker = layerwise(every(TRACKER, 3))
        assert isinstance(tracker, Tracker)
        assert tracker.interval == 3
        snapshot = snapshot_of()
        memory = tracker.init(snapshot.params)
        values, memory = tracker.update(snapshot, memory)
        assert set(values) == {f"{name}_{layer}" for name in ("count", "turn") for layer in LAYERS}
        assert all(values[f"turn_{layer}"] == 0 for layer in LAYERS)
        values, memory = tracker.update(snapshot, memory)
        gradient = ravel_pytree(snapshot.gradient)[0]
        for layer, part in LAYERS.items():
            assert values[f"count_{layer}"] == 1
            np.testing.assert_allclose(
                values[f"turn_{layer}"], gradient[part] @ gradient[part], rtol=1e-14
            )
        assert set(tracker(snapshot)) == set(values)

    def test_an_array_takes_the_trackers_name(self):
        plain = dataclasses.replace(TRACKER, update=lambda snapshot, memory: (jnp.ones(()), memory))
        assert layerwise(plain, ["scale"])(snapshot_of()).keys() == {"tracked_scale"}


class TestLayers:
    def test_selection(self):
        values = layerwise(measures.gradient_norm, ["scale", "Dense_0"])(snapshot_of())
        assert list(values) == ["gradient_norm_scale", "gradient_norm_Dense_0"]

    def test_unknown_layers_are_named_with_those_there_are(self):
        for measure in [measures.gradient_norm, TRACKER]:
            with pytest.raises(ValueError, match=r"\['Dense_7'\].*Dense_0.*Dense_1.*scale"):
                layerwise(measure, ["Dense_0", "Dense_7"])(snapshot_of())

    @pytest.mark.parametrize("layers", ["Dense_0", [], ()])
    def test_refuses_what_is_no_sequence_of_names(self, layers):
        with pytest.raises(ValueError, match="sequence of layers' names"):
            layerwise(measures.gradient_norm, layers)

    def test_names(self):
        one = jnp.ones(1)
        dense = {"kernel": one, "bias": one}
        for params, expected in [
            ({"params": {"a": dense, "b": dense}}, ["a", "b"]),
            ({"params": {"a": dense}}, ["a"]),
            ({"params": dense}, ["params"]),
            (dense, ["bias", "kernel"]),
            ({"a": dense, "b": one}, ["a", "b"]),
            ([dense, {"inner": [dense, dense]}], ["0", "1_inner_0", "1_inner_1"]),
            ({"net": {"block 1/a": dense, "b": {"c": dense}}}, ["b_c", "block_1_a"]),
            (one, ["params"]),
            ((one, one), ["0", "1"]),
        ]:
            assert list(layer_names(params)) == expected
        assert layer_names({"b": dense, "a": one}) == {"a": (0,), "b": (1, 2)}

    def test_two_layers_with_one_name(self):
        dense = {"kernel": jnp.ones(1)}
        with pytest.raises(ValueError, match=r"\['a_b'\].*rename"):
            layer_names({"a_b": dense, "a": {"b": dense}})


def linen_model():
    model = flax.linen.Sequential([flax.linen.Dense(4), jnp.tanh, flax.linen.Dense(2)])
    return model.init(KEY, jnp.ones((1, 3))), model.apply, ["layers_0", "layers_2"]


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.second = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, inputs):
            return self.second(jnp.tanh(self.first(inputs)))

    graph, params = nnx.split(Model(nnx.Rngs(0)))
    return params, lambda p, x: nnx.merge(graph, p)(x), ["first", "second"]


def equinox_model():
    model = equinox.nn.MLP(3, 2, 4, 1, key=KEY)
    params, static = equinox.partition(model, equinox.is_inexact_array)
    return params, lambda p, x: jax.vmap(equinox.combine(p, static))(x), ["0", "1"]


@pytest.mark.parametrize("make", [linen_model, nnx_model, equinox_model])
def test_models_of_every_library(make):
    params, apply, layers = make()

    def loss(params, batch):
        inputs, labels = batch
        logits = apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    snapshot = snapshot_of(driftlab.Objective(loss, DATA), params=params)
    names = {f"gradient_norm_{layer}" for layer in layers}
    values = layerwise(measures.gradient_norm)(snapshot)
    assert values.keys() == names
    assert all(value > 0 for value in values.values())
    blocks = layerwise(hessian)(snapshot)
    whole, start = hessian(snapshot), 0
    for layer in layers:
        block = blocks[f"hessian_{layer}"]
        part = slice(start, start := start + len(block))
        np.testing.assert_allclose(block, whole[part, part], rtol=1e-5, atol=1e-7)
    assert start == len(whole)


def test_in_a_sweep_at_its_own_interval():
    """Trackers and plain measures, on every lane under vmap; `every` inside or around."""
    result = driftlab.sweep(
        problems.mlp,
        driftlab.Grid({"learning_rate": [0.01, 0.1]}),
        steps=4,
        measures=[
            measures.gradient_norm,
            layerwise(measures.gradient_norm),
            layerwise(every(measures.update_norm, 2), ["bias"]),
            every(layerwise(TRACKER, ["first"]), 2),
            every(layerwise(update_cosine, ["second"]), 4),
        ],
        record_every=1,
    ).transpose("learning_rate", "step", ...)
    total = sum(result[f"gradient_norm_{layer}"] ** 2 for layer in ("first", "bias", "second"))
    np.testing.assert_allclose(total, result.gradient_norm**2, rtol=1e-12)
    due = [True, False, True, False, True]
    np.testing.assert_array_equal(np.isfinite(result.update_norm_bias), [due] * 2)
    np.testing.assert_array_equal(result.count_first[:, ::2], [[0, 1, 2]] * 2)
    assert np.isfinite(result.update_cosine_second[:, [0, 4]]).all()


def test_recorded_like_any_measure():
    values, _ = record([layerwise(measures.gradient_norm)], snapshot_of())
    assert set(values) == {f"gradient_norm_{layer}" for layer in LAYERS}
