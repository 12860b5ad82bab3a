from typing import NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from driftlab import Objective, State, descent, regularized, shuffled_epochs
from driftlab.dynamics import Params, eval_params, from_step

KEY = jax.random.key(0)
RANDOM = np.random.RandomState(0)
INPUTS = RANDOM.randn(12, 3)
TARGETS = np.tanh(INPUTS @ RANDOM.randn(3, 2))
PARAMS = {"kernel": jnp.asarray(RANDOM.randn(3, 2)), "bias": jnp.zeros(2)}


def predict(params, inputs):
    return inputs @ params["kernel"] + params["bias"][None]


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((predict(params, inputs) - targets) ** 2)


REGRESSION = Objective(squared_error, (INPUTS, TARGETS))
MINIBATCHES = Objective(squared_error, (INPUTS, TARGETS), shuffled_epochs(5))


def run(dynamics, params, steps, key=KEY):
    """The states of `steps` steps, stacked, and the last one."""

    def one(state, _):
        return dynamics.step(state), state

    last, states = jax.jit(lambda: jax.lax.scan(one, dynamics.init(params, key), length=steps))()
    return states, last


def by_hand(tx, objective, params, steps, update):
    """What an optax user writes: gradient, `update`, apply; the last params and state."""

    def one(carry, step):
        params, opt_state = carry
        batch = objective.batch(KEY, step)

        def value_fn(params):
            return objective.loss(params, batch)

        value, gradient = jax.value_and_grad(value_fn)(params)
        updates, opt_state = update(gradient, opt_state, params, value, value_fn)
        return (optax.apply_updates(params, updates), opt_state), None

    carry = (params, tx.init(params))
    return jax.jit(lambda: jax.lax.scan(one, carry, jnp.arange(steps)))()[0]


class TestDescent:
    @pytest.mark.parametrize("tx", [optax.sgd(0.1, 0.9), optax.adam(0.1)], ids=["sgd", "adam"])
    @pytest.mark.parametrize("objective", [REGRESSION, MINIBATCHES], ids=["full", "batches"])
    def test_is_the_loop_that_one_writes_with_optax(self, tx, objective):
        _, last = run(descent(tx, objective), PARAMS, 10)
        params, opt_state = by_hand(
            tx, objective, PARAMS, 10, lambda g, s, p, value, value_fn: tx.update(g, s, p)
        )
        chex.assert_trees_all_equal((last.params, last.inner), (params, opt_state))
        assert last.step == 10

    def test_step_is_the_next_state_of_observe(self):
        dynamics = descent(optax.adam(0.1), MINIBATCHES)
        state = run(dynamics, PARAMS, 3)[1]
        stepped, observed = jax.jit(
            lambda state: (dynamics.step(state), dynamics.observe(state).next_state)
        )(state)
        chex.assert_trees_all_equal(stepped.params, observed.params)
        chex.assert_trees_all_equal(stepped.inner, observed.inner)
        assert stepped.step == observed.step == 4
        assert stepped.step.dtype == jnp.int32
        assert (jax.random.key_data(stepped.key) == jax.random.key_data(KEY)).all()

    def test_snapshot_holds_what_the_step_computed(self):
        objective = regularized(MINIBATCHES, lambda params, _: jnp.sum(params["kernel"] ** 2), 0.3)
        dynamics = descent(optax.sgd(0.1), objective)
        state = dynamics.init(PARAMS, KEY)._replace(step=jnp.int32(4))
        snapshot = dynamics.observe(state)
        batch = objective.batch(KEY, jnp.int32(4))
        chex.assert_trees_all_equal(snapshot.batch, batch)
        loss = squared_error(PARAMS, batch)
        np.testing.assert_allclose(snapshot.loss, loss, rtol=1e-14)
        np.testing.assert_allclose(
            snapshot.value, loss + 0.3 * (PARAMS["kernel"] ** 2).sum(), rtol=1e-14
        )
        gradient = jax.grad(squared_error)(PARAMS, batch)
        gradient["kernel"] += 0.6 * PARAMS["kernel"]
        chex.assert_trees_all_close(snapshot.gradient, gradient, rtol=1e-12)
        chex.assert_trees_all_close(
            snapshot.updates, jax.tree.map(lambda g: -0.1 * g, gradient), rtol=1e-10
        )
        assert snapshot.objective is objective
        assert snapshot.params is snapshot.state.params
        chex.assert_trees_all_equal(snapshot.eval_params, PARAMS)

    def test_hyperparameters_may_be_traced(self):
        def final(learning_rate):
            return run(descent(optax.sgd(learning_rate), REGRESSION), PARAMS, 5)[1].params

        swept = jax.vmap(final)(jnp.array([0.01, 0.1]))
        for lane, learning_rate in enumerate([0.01, 0.1]):
            alone = final(learning_rate)
            chex.assert_trees_all_close(
                jax.tree.map(lambda leaf, lane=lane: leaf[lane], swept), alone, rtol=1e-12
            )

    def test_python_numbers_are_parameters(self):
        dynamics = descent(optax.adam(0.1), Objective(lambda params, _: (params["x"] - 1.0) ** 2))
        state = run(dynamics, {"x": 3.0}, 2)[1]
        np.testing.assert_allclose(state.params["x"], 2.8, atol=1e-3)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"w": jnp.ones(2), "n": jnp.arange(2)}, r"parameter \['n'\] has dtype int64"),
            (jnp.ones(2, bool), "parameter params has dtype bool"),
            ([jnp.ones(2) * 1j], r"parameter \[0\] has dtype complex128.*floating-point"),
            ({}, "params hold no array"),
            ({"none": None}, "params hold no array"),
            ({"key": jax.random.key(0)}, r"parameter \['key'\] has dtype key"),
        ],
    )
    def test_refuses_what_has_no_gradient(self, params, message):
        with pytest.raises(TypeError, match=message):
            descent(optax.sgd(0.1), REGRESSION).init(params, KEY)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2, param_dtype=jnp.float64)(nn.tanh(nn.Dense(4)(inputs)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.out(self.dropout(jnp.tanh(self.hidden(inputs)), deterministic=True))


def bare_model():
    return PARAMS["kernel"], lambda params: lambda inputs: inputs @ params


def linen_model():
    model = Linen()
    params = model.init(KEY, INPUTS)
    return params, lambda params: lambda inputs: model.apply(params, inputs)


def nnx_model():
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    return params, lambda params: nnx.merge(graph, params, rest)


def equinox_model():
    params, static = eqx.partition(eqx.nn.MLP(3, 2, 4, 1, key=KEY), eqx.is_inexact_array)
    assert None in jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)
    return params, lambda params: jax.vmap(eqx.combine(params, static))


@pytest.mark.parametrize("make", [bare_model, linen_model, nnx_model, equinox_model])
def test_params_of_every_library_train(make):
    params, function = make()

    def loss(params, batch):
        inputs, targets = batch
        return jnp.mean((function(params)(inputs) - targets) ** 2)

    objective = Objective(loss, (INPUTS, TARGETS))
    dynamics = descent(optax.adam(0.03), objective)

    def measured(state, _):
        snapshot = dynamics.observe(state)
        return snapshot.next_state, (snapshot.loss, snapshot.gradient)

    start = dynamics.init(params, KEY)
    assert jax.tree.structure(start.params) == jax.tree.structure(params)
    last, (losses, gradients) = jax.jit(lambda s: jax.lax.scan(measured, s, length=60))(start)
    assert jax.tree.structure(last.params) == jax.tree.structure(params)
    assert losses[-1] < 0.5 * losses[0]
    expected = jax.jit(jax.grad(loss))(start.params, objective.data)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[0], gradients), expected, rtol=1e-6, atol=1e-12
    )


# Each takes extra arguments, and is written out as its own documentation has it.
SEARCHES = {
    "backtracking": (
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)),
        lambda value, grad, value_fn: {"value": value, "grad": grad, "value_fn": value_fn},
    ),
    "zoom": (
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(10)),
        lambda value, grad, value_fn: {"value": value, "grad": grad, "value_fn": value_fn},
    ),
    "lbfgs": (
        optax.lbfgs,
        lambda value, grad, value_fn: {"value": value, "grad": grad, "value_fn": value_fn},
    ),
    "polyak_sgd": (
        lambda: optax.polyak_sgd(max_learning_rate=0.2),
        lambda value, grad, value_fn: {"value": value},
    ),
    "reduce_on_plateau": (
        lambda: optax.chain(
            optax.sgd(2.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        ),
        lambda value, grad, value_fn: {"value": value},
    ),
    "momo": (lambda: optax.contrib.momo(), lambda value, grad, value_fn: {"value": value}),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_extra_arguments_reach_who_asks_for_them(name):
    make, extra = SEARCHES[name]
    tx = make()
    dynamics = descent(tx, REGRESSION)
    states, last = run(dynamics, PARAMS, 6)
    params, opt_state = by_hand(
        tx, REGRESSION, PARAMS, 6,
        lambda g, s, p, value, value_fn: tx.update(g, s, p, **extra(value, g, value_fn)),
    )  # fmt: skip
    chex.assert_trees_all_close(last.params, params, rtol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(last.inner, opt_state)
    losses = jax.vmap(squared_error, (0, None))(states.params, REGRESSION.data)
    if name != "reduce_on_plateau":  # which is given a rate too large on purpose
        assert losses[-1] < losses[0]


def test_reduce_on_plateau_sees_the_values():
    tx, _ = SEARCHES["reduce_on_plateau"]
    _, last = run(descent(tx(), REGRESSION), PARAMS, 6)
    assert last.inner[1].scale < 1


def test_line_searches_see_the_regularized_batch():
    """`value_fn` is what is minimised on the step's own batch, not the bare loss on all data."""
    seen = {}

    def update(updates, state, params, *, value, grad, value_fn, **_):
        seen.update(value=value, grad=grad, at_params=value_fn(params))
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    objective = regularized(MINIBATCHES, lambda params, _: jnp.sum(params["bias"] + 3.0))
    dynamics = descent(optax.chain(optax.scale(-0.1), tx), objective)
    snapshot = dynamics.observe(dynamics.init(PARAMS, KEY))
    np.testing.assert_allclose(seen["value"], snapshot.loss + 6.0, rtol=1e-12)
    np.testing.assert_allclose(seen["at_params"], snapshot.value, rtol=1e-12)
    # The gradient itself, though the chain has scaled the updates by then.
    chex.assert_trees_all_equal(seen["grad"], snapshot.gradient)


def test_a_plain_transformation_is_given_nothing_extra():
    tx = optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (jax.tree.map(lambda g: -0.1 * g, updates), state),
    )
    _, last = run(descent(tx, REGRESSION), PARAMS, 3)
    _, sgd = run(descent(optax.sgd(0.1), REGRESSION), PARAMS, 3)
    chex.assert_trees_all_close(last.params, sgd.params, rtol=1e-12)


SCHEDULE_FREE = {
    "bare": lambda: optax.contrib.schedule_free_sgd(0.1),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.contrib.schedule_free_sgd(0.1)),
    "nested chain": lambda: optax.chain(
        optax.identity(), optax.chain(optax.contrib.schedule_free_adamw(0.1))
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        optax.contrib.schedule_free_sgd, static_args=("warmup_steps", "weight_decay", "state_dtype")
    )(learning_rate=0.1),
    "partition": lambda: optax.masked(optax.contrib.schedule_free_sgd(0.1), True),
}


class TestEvalParams:
    @pytest.mark.parametrize("name", SCHEDULE_FREE)
    def test_finds_schedule_free(self, name):
        dynamics = descent(SCHEDULE_FREE[name](), REGRESSION)
        state = run(dynamics, PARAMS, 5)[1]
        (found,) = [
            node
            for node in jax.tree.leaves(state.inner, is_leaf=lambda node: hasattr(node, "z"))
            if hasattr(node, "z")
        ]
        # x = (y - (1 - b1) z) / b1 (Defazio et al. 2024, equation 2 solved for x).
        expected = jax.tree.map(
            lambda y, z: (y - (1 - found.b1) * z) / found.b1, state.params, found.z
        )
        observed = dynamics.observe(state)
        chex.assert_trees_all_close(observed.eval_params, expected, rtol=1e-12)
        chex.assert_trees_all_close(
            observed.eval_params,
            optax.contrib.schedule_free_eval_params(found, state.params),
            rtol=1e-12,
        )
        assert not np.allclose(observed.eval_params["kernel"], state.params["kernel"])

    def test_of_other_optimizers_are_the_params(self):
        opt_state = optax.adam(0.1).init(PARAMS)
        assert eval_params(opt_state, PARAMS) is PARAMS
        assert eval_params((), PARAMS) is PARAMS

    def test_two_schedule_free_states_are_ambiguous(self):
        tx = optax.partition(
            {name: optax.contrib.schedule_free_sgd(0.1) for name in ("kernel", "bias")},
            {"kernel": "kernel", "bias": "bias"},
        )
        with pytest.raises(ValueError, match=r"2 evaluation points .*ScheduleFreeState.*descent"):
            eval_params(tx.init(PARAMS), PARAMS)

    def test_of_any_state_that_names_them(self):
        class Averaging(NamedTuple):
            average: Params

            def eval_params(self, params):
                return jax.tree.map(lambda a, p: (a + p) / 2, self.average, params)

        average = jax.tree.map(jnp.zeros_like, PARAMS)
        opt_state = (optax.EmptyState(), {"deep": [Averaging(average)]})
        chex.assert_trees_all_close(
            eval_params(opt_state, PARAMS), jax.tree.map(lambda leaf: leaf / 2, PARAMS)
        )

    def test_may_be_given_by_hand(self):
        dynamics = descent(
            optax.sgd(0.1),
            REGRESSION,
            lambda opt_state, params: jax.tree.map(jnp.ones_like, params),
        )
        snapshot = dynamics.observe(dynamics.init(PARAMS, KEY))
        chex.assert_trees_all_equal(snapshot.eval_params, jax.tree.map(jnp.ones_like, PARAMS))


class TestFromStep:
    @staticmethod
    def implicit_euler():
        """`theta' = -theta` by implicit Euler with step 0.1: no gradient in it."""

        def init(params, key):
            return State(params, (), jnp.zeros((), jnp.int32), key)

        def step(state):
            return state._replace(params=state.params / 1.1, step=state.step + 1)

        return from_step(init, step, Objective(lambda params, _: 0.5 * jnp.sum(params**2)))

    def test_is_the_step(self):
        state = run(self.implicit_euler(), jnp.array([1.0, 2.0]), 4)[1]
        np.testing.assert_allclose(state.params, np.array([1.0, 2.0]) / 1.1**4, rtol=1e-12)

    def test_observes_the_objective_where_it_stands(self):
        dynamics = self.implicit_euler()
        state = dynamics.init(jnp.array([1.0, 2.0]), KEY)
        snapshot = dynamics.observe(state)
        assert snapshot.value == snapshot.loss == 2.5
        np.testing.assert_array_equal(snapshot.gradient, [1.0, 2.0])
        assert snapshot.eval_params is state.params
        chex.assert_trees_all_equal(snapshot.next_state.params, dynamics.step(state).params)
        np.testing.assert_allclose(snapshot.updates, -np.array([1.0, 2.0]) / 11, rtol=1e-12)

    def test_the_gradient_is_free_where_nobody_reads_it(self):
        def program(read):
            return jax.jit(lambda state: read(dynamics.observe(state))).lower(state).compile()

        plain = self.implicit_euler()
        loss = Objective(lambda params, _: jnp.sum(jnp.sin(params)))
        dynamics = from_step(plain.init, plain.step, loss)
        state = dynamics.init(jnp.ones(2), KEY)
        assert "sine" in program(lambda snapshot: snapshot.gradient).as_text()
        assert "sine" not in program(lambda snapshot: snapshot.next_state.params).as_text()
