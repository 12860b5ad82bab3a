from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import curvature
from tests.curvature.cases import draw

PARAMS = {"first": {"w": draw(0, 3, 2), "b": draw(1, 2)}, "second": [draw(2, 4), draw(3)]}
STEPS = 4
GRADIENTS = [jax.tree.map(lambda a, t=t: draw(10 * t + a.size, *a.shape), PARAMS)
             for t in range(1, STEPS + 1)]  # fmt: skip


def after_steps(optimizer, gradients=GRADIENTS):
    """The last two updates and the last state, at fixed params."""
    state, updates = optimizer.init(PARAMS), [None]
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, PARAMS)
        updates.append(update)
    return updates[-2], updates[-1], state


def average(gradients, decay, power=1, start=0.0):
    """`(1 - decay) sum_s decay^(t - s) g_s^power + decay^t start`."""
    total = jax.tree.map(lambda a: start * jnp.ones_like(a), PARAMS)
    for gradient in gradients:
        total = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g**power, total, gradient)
    return total


def momentum(b1=0.9, start=0.0):
    """Adam's first moment, corrected for its bias."""
    return jax.tree.map(lambda m: m / (1 - b1**STEPS), average(GRADIENTS, b1, start=start))


def nesterov(b1=0.9):
    """NAdam's."""
    return jax.tree.map(
        lambda m, g: b1 * m / (1 - b1 ** (STEPS + 1)) + (1 - b1) * g / (1 - b1**STEPS),
        average(GRADIENTS, b1),
        GRADIENTS[-1],
    )


def adams(b2=0.999, eps=1e-8, eps_root=0.0, gradients=GRADIENTS):
    """Adam's P by its definition."""
    correction = 1 - b2 ** len(gradients)
    return jax.tree.map(
        lambda nu: np.sqrt(nu / correction + eps_root) + eps, average(gradients, b2, 2)
    )


def assert_trees_close(found, expected, rtol=1e-12):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected)


ALIKE = {"b2": 0.9, "eps": 1e-2}
# optimiser at learning rate 1, what the preconditioner is told, the averaged gradient.
BLACK_BOXES = {
    "adam": (optax.adam(1.0), {}, momentum()),
    "adam_options": (
        optax.adam(1.0, b1=0.5, b2=0.9, eps=1e-2, eps_root=0.1),
        {"b2": 0.9, "eps": 1e-2, "eps_root": 0.1},
        momentum(0.5),
    ),
    "adamw": (optax.adamw(1.0, weight_decay=0.0), {}, momentum()),
    "nadam": (optax.nadam(1.0), {}, nesterov()),
    "yogi": (optax.yogi(1.0), {"eps": 1e-3}, momentum(start=1e-6)),
    "adabelief": (optax.adabelief(1.0), {}, momentum()),
    "adabelief_options": (
        optax.adabelief(1.0, b2=0.9, eps=1e-2, eps_root=1e-3), ALIKE, momentum()
    ),
    "amsgrad": (optax.amsgrad(1.0), {}, momentum()),
    "amsgrad_options": (
        optax.amsgrad(1.0, eps=1e-2, eps_root=0.3), {"eps": 1e-2, "eps_root": 0.3}, momentum()
    ),
    "adagrad": (optax.adagrad(1.0), {}, GRADIENTS[-1]),
    "adagrad_options": (optax.adagrad(1.0, 0.0, eps=1e-2), {"eps": 1e-2}, GRADIENTS[-1]),
    "rmsprop": (optax.rmsprop(1.0), {}, GRADIENTS[-1]),
    "rmsprop_centered": (
        optax.rmsprop(1.0, decay=0.9, eps=1e-2, centered=True), ALIKE, GRADIENTS[-1]
    ),
    "rmsprop_corrected": (
        optax.rmsprop(1.0, decay=0.8, bias_correction=True), {"b2": 0.8}, GRADIENTS[-1]
    ),
    "rmsprop_both": (
        optax.rmsprop(1.0, decay=0.8, centered=True, bias_correction=True),
        {"b2": 0.8},
        GRADIENTS[-1],
    ),
    "rmsprop_eps_outside": (
        optax.rmsprop(1.0, eps=1e-2, eps_in_sqrt=False),
        {"eps": 1e-2, "eps_in_sqrt": False},
        GRADIENTS[-1],
    ),
    "rmsprop_started": (optax.rmsprop(1.0, initial_scale=0.5), {}, GRADIENTS[-1]),
    "chain": (
        optax.chain(optax.clip_by_global_norm(1e9), optax.scale_by_adam(), optax.scale(-1.0)),
        {},
        momentum(),
    ),
    "injected": (
        optax.inject_hyperparams(optax.adam)(1.0, b2=0.9, eps=1e-2, eps_root=0.1), {}, momentum()
    ),
    "injected_schedule": (
        optax.inject_hyperparams(optax.adam)(optax.constant_schedule(1.0), b2=0.9), {}, momentum()
    ),
    "injected_rmsprop": (
        optax.inject_hyperparams(optax.rmsprop)(
            1.0, decay=0.8, eps=1e-2, eps_in_sqrt=False, bias_correction=True
        ),
        {"eps_in_sqrt": False},
        GRADIENTS[-1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLACK_BOXES)
def test_the_update_is_the_averaged_gradient_over_it(name):
    optimizer, told, averaged = BLACK_BOXES[name]
    _, update, state = after_steps(optimizer)
    found = curvature.preconditioner(state, **told)
    expected = jax.tree.map(lambda m, u: -m / u, averaged, update)
    assert_trees_close(found, expected, rtol=1e-9)


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_with_momentum(centered):
    """Its momentum is of the scaled gradients, so the last one is a difference of updates."""
    before, update, state = after_steps(optax.rmsprop(1.0, momentum=0.9, centered=centered))
    scaled = jax.tree.map(lambda new, old: 0.9 * old - new, update, before)
    expected = jax.tree.map(lambda g, s: g / s, GRADIENTS[-1], scaled)
    assert_trees_close(curvature.preconditioner(state), expected, rtol=1e-9)


def test_adagrad_without_gradients_is_frozen():
    optimizer = optax.adagrad(1.0, initial_accumulator_value=0.0)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    _, update, state = after_steps(optimizer, [zero])
    found = curvature.preconditioner(state)
    assert all(np.isinf(leaf).all() for leaf in jax.tree.leaves(found))
    assert not any(leaf.any() for leaf in jax.tree.leaves(update))


def test_wrappers_are_looked_through():
    adam = optax.adam(0.1, b1=0.0)
    state = after_steps(optax.contrib.schedule_free(adam, 0.1))[2]
    assert_trees_close(curvature.preconditioner(state), adams())
    pairs = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADIENTS[i : i + 2]) for i in (0, 2)]
    state = after_steps(optax.MultiSteps(adam, 2))[2]
    # optax averages with weights in float32.
    assert_trees_close(curvature.preconditioner(state), adams(gradients=pairs), rtol=1e-7)
    state = after_steps(optax.apply_if_finite(adam, 3))[2]
    assert_trees_close(curvature.preconditioner(state), adams())
    state = after_steps(optax.chain(optax.identity(), optax.chain(adam, optax.scale(2.0))))[2]
    assert_trees_close(curvature.preconditioner(state), adams())


LABELS = {"first": {"w": "a", "b": "b"}, "second": ["b", "a"]}
PREFIX = {"first": "a", "second": "b"}


def expected_of(labels, choices):
    """A tree like the params, each leaf from the tree that its label says."""
    full = jax.tree.map(lambda label, leaf: jax.tree.map(lambda _: label, leaf), labels, PARAMS)
    pick = lambda label, *leaves: leaves[list(choices).index(label)]  # noqa: E731
    return jax.tree.map(pick, full, *choices.values())


@pytest.mark.parametrize("labels", [LABELS, PREFIX], ids=["full", "prefix"])
def test_groups(labels):
    """Also where labels are a prefix of the params, and a mask stands for a branch."""
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    injected = optax.inject_hyperparams(optax.adam)
    both = optax.partition(
        {"a": injected(0.1, b2=0.9, eps=1e-3), "b": injected(0.1, b2=0.99)}, labels
    )
    state = after_steps(both)[2]
    expected = expected_of(labels, {"a": adams(0.9, 1e-3), "b": adams(0.99)})
    assert_trees_close(curvature.preconditioner(state), expected)
    mixed = optax.partition({"a": optax.adam(0.1), "b": optax.rmsprop(0.1)}, labels)
    rms = jax.tree.map(lambda nu: np.sqrt(nu + 1e-8), average(GRADIENTS, 0.9, 2))
    expected = expected_of(labels, {"a": adams(), "b": rms})
    assert_trees_close(curvature.preconditioner(after_steps(mixed)[2]), expected)
    for partial in (
        optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, labels),
        optax.masked(optax.adam(0.1), jax.tree.map(lambda label: label == "a", labels)),
    ):
        state = after_steps(partial)[2]
        found = curvature.preconditioner(state, identity_like=PARAMS)
        assert_trees_close(found, expected_of(labels, {"a": adams(), "b": ones}))
        with pytest.raises(ValueError, match=r"0 second moments belong to parameter \['"):
            curvature.preconditioner(state)


def test_a_state_of_ones_own():
    class MyState(NamedTuple):
        scale: object

        def preconditioner(self):
            return self.scale

    found = curvature.preconditioner((optax.EmptyState(), MyState(PARAMS)))
    assert_trees_close(found, PARAMS)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, 0.9), optax.lion(0.1)], ids=["sgd", "lion"])
def test_without_a_second_moment(optimizer):
    state = after_steps(optimizer)[2]
    with pytest.raises(ValueError, match="no second moment.*pass identity_like=params"):
        curvature.preconditioner(state)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    assert_trees_close(curvature.preconditioner(state, identity_like=PARAMS), ones)


def test_two_second_moments_are_refused():
    state = after_steps(optax.chain(optax.scale_by_adam(), optax.scale_by_rms()))[2]
    with pytest.raises(ValueError, match=r"2 second moments belong to parameter \['first'\]\['b"):
        curvature.preconditioner(state)


def test_what_cannot_be_told_from_adam_is_documented():
    state = after_steps(optax.adamax(0.1))[2]
    assert curvature.preconditioner(state)["first"]["b"].shape == (2,)
    for name in ("Adamax", "Yogi", "RAdam"):
        assert name in curvature.preconditioner.__doc__


def test_lanes_of_hyper_parameters():
    """Decay and eps traced, in one program, and used in an operator."""

    def diagonal(b2, eps):
        state = after_steps(optax.adam(0.1, b2=b2, eps=eps))[2]
        return curvature.preconditioner(state, b2=b2, eps=eps)

    b2, eps = jnp.asarray([0.9, 0.99]), jnp.asarray([1e-3, 1.0])
    lanes = jax.jit(jax.vmap(diagonal))(b2, eps)
    for lane in range(2):
        found = jax.tree.map(lambda leaf, i=lane: leaf[i], lanes)
        assert_trees_close(found, adams(float(b2[lane]), float(eps[lane])))


def test_float32(float32):
    params = {"w": jnp.ones(3)}
    optimizer = optax.adam(0.1)
    _, state = optimizer.update(params, optimizer.init(params))
    found = curvature.preconditioner(state)["w"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1, rtol=1e-4)  # 1 - 0.999 has three digits left
