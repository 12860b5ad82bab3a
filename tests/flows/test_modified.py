"""modified_flow: what it refuses, in which words, and where it can be built."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import driftlab
from driftlab.flows.modified import modified_flow

PARAMS = {"w": jnp.array([[0.5, -0.3]]), "b": jnp.array([0.2, 0.1, -0.4])}


def loss(params):
    return jnp.sum(jnp.cosh(params["w"])) + jnp.sum(params["b"] ** 4 + params["b"] ** 2) / 2


def masked(choose):
    """Momentum whose updates are left out where they go against the gradient."""

    def update(grads, memory, params=None):
        memory = jax.tree.map(lambda m, g: 0.9 * m + g, memory, grads)
        return jax.tree.map(lambda m, g: -0.1 * choose(m * g > 0, m), memory, grads), memory

    return optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)


def drawn():
    def update(grads, count, params=None):
        key = jax.random.fold_in(jax.random.key(0), count)
        return jax.tree.map(lambda g: jax.random.uniform(key) * -g, grads), count + 1

    return optax.GradientTransformation(lambda p: jnp.zeros((), int), update)


def scheduled_inside(rate):
    """Momentum, and a schedule by a counter in the same state."""

    def update(grads, state, params=None):
        memory = jax.tree.map(lambda m, g: 0.5 * m + g, state["memory"], grads)
        moved = jax.tree.map(lambda m: -rate / (1 + 1e-3 * state["count"]) * m, memory)
        return moved, {"memory": memory, "count": state["count"] + 1}

    def init(params):
        return {"memory": jax.tree.map(jnp.zeros_like, params), "count": jnp.zeros((), int)}

    return optax.GradientTransformation(init, update)


TABLE = jnp.linspace(0.1, 0.01, 50)


def scaled(transform, rate=0.1):
    return optax.chain(transform, optax.scale(-rate))


def periodic():
    return optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()


REFUSED = {
    "sign_sgd": (optax.sign_sgd(0.1), "joint", r"the updates of this chain jump.*smooth it"),
    "lion": (optax.lion(0.1), "joint", r"the updates of this chain jump"),
    "rprop": (optax.rprop(0.1), "joint", r"jump with the sign"),
    "yogi": (optax.yogi(0.1), "joint", r"\[0\]\.nu\['b'\] of this chain jump"),
    "adagrad": (optax.adagrad(0.1), "eliminate", r"sum_of_squares.*forget.*memory='joint'"),
    "amsgrad": (optax.amsgrad(0.1), "eliminate", r"nu_max.*does not forget \(decay 1 a step\)"),
    "adabelief": (optax.adabelief(0.1), "eliminate", r"hundredth of state leaf \[0\]\.nu"),
    "centred rmsprop": (optax.rmsprop(0.1, centered=True), "eliminate", r"divide by something"),
    "accumulated": (periodic(), "joint", r"mini_step.*periodic.*the inner optimizer on the whole"),
    "apply_every": (optax.chain(optax.sgd(0.1), optax.apply_every(3)), "joint", "periodic"),
    "galore": (optax.contrib.galore(0.1), "joint", r"\[0\]\.count modulo a period"),
    "random": (scaled(optax.add_noise(0.1, 0.5, key=0)), "joint", "rng_key is a random key"),
    "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "joint", "the chain's update failed"),
    "mask": (masked(lambda keep, m: m * keep), "joint", "updates or memory of this chain jump"),
    "where": (masked(lambda keep, m: jnp.where(keep, m, m / 2)), "eliminate", "or a mask"),
    "drawn by count": (drawn(), "joint", "draws random numbers with it"),
    "table": (optax.sgd(lambda count: TABLE[count]), "joint", r"\[1\]\.count.*jnp\.interp"),
    "schedule inside": (scheduled_inside(0.1), "eliminate", "does more than correct its bias"),
    "no value": (optax.GradientTransformation(*optax.polyak_sgd()), "joint", "argument: 'value'"),
    "not a number": (optax.sgd(jnp.nan), "joint", "not finite.*is the learning rate NaN"),
    "sophia": (optax.contrib.sophia(0.1), "joint", r"obj_fn.*name it in extra_args"),
    "ascent": (optax.sgd(-0.1), "joint", "go up the gradient: is the learning rate negative"),
    "zero": (optax.sgd(0.0), "joint", r"the updates are 0.*is the learning rate 0"),
    "bfloat16": (scaled(optax.trace(0.9, accumulator_dtype=jnp.bfloat16)), "joint", "rounding"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_chain_without_a_flow_is_refused(name):
    tx, memory, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        modified_flow(tx, loss, PARAMS, 2, memory)


BAD = {
    "order below 1": ({"order": 0}, ValueError, r"order=0 must be 1 or more"),
    "order traced or a float": ({"order": 2.0}, TypeError, r"must be a Python integer"),
    "order too high": ({"order": 13}, ValueError, r"order=13 would cost 13 gradients"),
    "no third order": ({"order": 3, "memory": "eliminate"}, ValueError, r"memory='joint' has more"),
    "no such mode": ({"memory": "jont"}, ValueError, r"must be one of joint, eliminate, augment"),
    "nothing named": ({"memory": "augment"}, ValueError, r"needs the names of the memory"),
    "named in vain": ({"dynamic": ["mu"]}, ValueError, r"dynamic=\['mu'\] with memory='joint'"),
    "no such name": (
        {"memory": "augment", "dynamic": ["nv"]}, ValueError, r"no memory has 'nv'.*nu\['b'\]",
    ),
    "no such argument": ({"extra_args": ("hvp",)}, ValueError, r"extra_args=\['hvp'\]: there are"),
    "integer params": ({"params": {"w": jnp.arange(3)}}, TypeError, r"\['w'\] has dtype int"),
    "complex params": ({"params": jnp.ones(2) * 1j}, TypeError, "complex128"),
    "no params": ({"params": {}}, TypeError, "params hold no array"),
    "no loss": ({"loss": 3.0}, TypeError, "loss must be a function"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changed, kind, message = BAD[name]
    given = {"tx": optax.adam(0.1), "loss": loss, "params": PARAMS, **changed}
    with pytest.raises(kind, match=message):
        modified_flow(**given)


@pytest.mark.parametrize("memory", ["joint", "eliminate"])
def test_it_is_built_inside_jit(memory):
    def slope(inside):
        tx = optax.chain(optax.clip(0.1), optax.sgd(0.1, momentum=0.5))
        flow = modified_flow(tx, loss, PARAMS, 2, memory)
        y = flow.init(inside)
        return flow.params(flow.field(0.0, y, None))

    expected, found = slope(PARAMS), jax.jit(slope)(PARAMS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_choice_that_is_continuous_is_served():
    for transform in (optax.clip(0.1), optax.adaptive_grad_clip(0.1), optax.scale_by_trust_ratio()):
        modified_flow(scaled(transform), loss, PARAMS)
    # Negative parameters are lifted to 0, whatever the gradient: that is not going up.
    modified_flow(optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()), loss, PARAMS)


@pytest.mark.parametrize(
    "schedule",
    [
        optax.piecewise_constant_schedule(0.1, {30: 0.1}),
        optax.exponential_decay(0.1, 10, 0.5, staircase=True),
    ],
)
def test_a_schedule_in_stairs_warns(schedule):
    with pytest.warns(UserWarning, match=r"jump at some number of \[1\]\.count.*off by O\(h\)"):
        modified_flow(optax.sgd(schedule), loss, PARAMS, 2)
    # Order 1 has that error anyway, and without memory eliminate is right on both sides.
    modified_flow(optax.sgd(schedule), loss, PARAMS, 1)
    modified_flow(optax.sgd(schedule), loss, PARAMS, 2, "eliminate")


def test_a_schedule_beside_memory_runs_in_joint():
    joint = modified_flow(scheduled_inside(0.1), loss, PARAMS, 1)
    state = scheduled_inside(0.1).init(PARAMS) | {"count": jnp.asarray(1000)}
    slope = joint.field(0.0, joint.init(PARAMS, state), None)
    expected = jax.grad(loss)(PARAMS)["b"] * -0.05
    np.testing.assert_allclose(slope.params["b"], expected, rtol=1e-12)


@pytest.mark.parametrize("tx", [optax.adagrad, optax.amsgrad])
def test_memory_that_never_decays_is_found_inside_vmap_and_jit(tx):
    def build(rate):
        flow = modified_flow(tx(rate), loss, PARAMS, 1, "eliminate")
        return flow.field(0.0, PARAMS, None)["b"]

    with pytest.raises(ValueError, match="does not forget"):
        jax.vmap(build)(jnp.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="does not forget"):
        jax.jit(build)(0.1)


@pytest.mark.parametrize("memory", ["eliminate", "auto"])
def test_a_flag_that_settles_is_found_inside_jit(memory):
    def slope(rate):
        tx = optax.optimistic_gradient_descent(rate)
        flow = modified_flow(tx, loss, PARAMS, 1, memory)
        # The flag is up at the first step only.
        state = tx.update(jax.grad(loss)(PARAMS), tx.init(PARAMS), PARAMS)[1]
        return flow.params(flow.field(0.0, flow.init(PARAMS, state), None))["b"]

    np.testing.assert_allclose(jax.jit(slope)(0.01), slope(0.01), rtol=1e-10)


def test_a_state_of_another_chain_or_of_other_constants_is_refused():
    flow = modified_flow(optax.sgd(0.1, momentum=0.9), loss, PARAMS)
    with pytest.raises(ValueError, match="opt_state is not a state of this chain"):
        flow.init(PARAMS, optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"is_initial_step is True, and False from the first step"):
        modified_flow(optax.optimistic_gradient_descent(0.1), loss, PARAMS).init(PARAMS)
    make = optax.inject_hyperparams(optax.sgd, static_args=("momentum",))
    other = make(learning_rate=0.2, momentum=0.5).init(PARAMS)
    flow = modified_flow(make(learning_rate=0.1, momentum=0.5), loss, PARAMS, 2, "eliminate")
    with pytest.raises(ValueError, match=r"learning_rate.*holds another value"):
        flow.init(PARAMS, other)


def test_an_early_start_warns_with_the_step_from_which_the_flow_holds():
    tx = optax.adam(0.1, b1=0.8, b2=0.95)
    state = tx.init(PARAMS)
    # The correction changes by b^n (1 - b) / (1 - b^n) a step, and at b = .95 by 5% when b^n = 1/2.
    joint = modified_flow(tx, loss, PARAMS)
    with pytest.warns(UserWarning, match=r"step 0 of \[0\]\.count.*nu.*from step 14 on"):
        joint.init(PARAMS, state)
    eliminated = modified_flow(tx, loss, PARAMS, 1, "eliminate")
    with pytest.warns(UserWarning, match=r"nu.*from step 60 on"):
        eliminated.init(PARAMS, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settled = (state[0]._replace(count=jnp.asarray(60)), *state[1:])
        eliminated.init(PARAMS, settled)
        joint.init(PARAMS, settled)
        modified_flow(optax.sgd(0.1, momentum=0.9), loss, PARAMS).init(PARAMS)


@pytest.mark.parametrize("memory", ["joint", "eliminate", "auto"])
def test_float32_stays_float32_under_x64(memory):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    schedule = optax.cosine_decay_schedule(0.1, 50)
    flow = modified_flow(optax.sgd(schedule, momentum=0.5), loss, params, 2, memory)
    y = flow.init(params)
    slope = jax.jit(flow.field)(jnp.float32(3), y, None)
    assert jax.tree.structure(slope) == jax.tree.structure(y)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, slope))} == {jnp.dtype("float32")}


def test_in_float32(float32):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    flow = modified_flow(optax.adam(0.1, eps=0.1), loss, params, 2, "eliminate")
    assert {leaf.dtype for leaf in jax.tree.leaves(flow.field(0.0, params, None))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize("memory", ["joint", "eliminate"])
def test_where_a_schedule_has_reached_0_the_flow_stands_still(memory):
    tx = optax.sgd(optax.linear_schedule(0.1, 0.0, 20), momentum=0.5)
    flow = modified_flow(tx, loss, PARAMS, 2, memory, shadow_start=False)
    trace, _ = tx.init(PARAMS)
    y = flow.init(PARAMS, (trace, optax.ScaleByScheduleState(jnp.asarray(30))))
    slope = jax.jit(flow.field)(30.0, y, None)
    for leaf in jax.tree.leaves(flow.params(slope)):
        # linear_schedule ends at rounding.
        np.testing.assert_allclose(leaf, 0, atol=1e-16)


@pytest.mark.parametrize("memory", ["joint", "eliminate"])
def test_an_objective_is_taken_over_all_its_data(memory):
    rows = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
    objective = driftlab.Objective(lambda p, x: jnp.mean(jnp.cosh(x @ p)), rows)
    params, tx = jnp.array([0.4, -0.7]), optax.adam(0.1, eps=0.1)
    plain = modified_flow(tx, lambda p: objective.loss(p, rows), params, 2, memory)
    state = tx.init(params)
    state = (state[0]._replace(count=jnp.asarray(5000), nu=params**2), *state[1:])
    expected = plain.field(0.0, plain.init(params, state), None)
    for batch_size in (None, 3):
        flow = modified_flow(tx, objective, params, 2, memory, batch_size=batch_size)
        found = flow.field(0.0, flow.init(params, state), None)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_it_is_a_dynamics():
    objective = driftlab.Objective(lambda p, batch: loss(p))
    tx = optax.sgd(0.02, momentum=0.5)
    flow = modified_flow(tx, objective, PARAMS, order=4)
    dynamics = driftlab.flow(flow, 1, objective)
    descent = driftlab.descent(tx, objective)

    def run(which):
        state = which.init(PARAMS, jax.random.key(0))
        return jax.lax.fori_loop(0, 20, lambda _, s: which.step(s), state).params

    followed, iterates = jax.jit(lambda: (run(dynamics), run(descent)))()
    for a, b in zip(jax.tree.leaves(followed), jax.tree.leaves(iterates), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_nan_params_give_nan():
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    for memory in ("joint", "eliminate"):
        flow = modified_flow(optax.sgd(0.1, momentum=0.5), loss, PARAMS, 2, memory)
        slope = jax.jit(lambda p, f=flow: f.field(0.0, f.init(p), None))(params)
        assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(flow.params(slope)))
