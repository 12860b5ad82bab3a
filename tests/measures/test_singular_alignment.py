"""Alignment of layers: the measures against NumPy, and the lemma along gradient flow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftlab
from driftlab.dynamics import Snapshot, State
from driftlab.flows import gradient_flow
from driftlab.measures.leading_singular import initial_singular_block, leading_singular
from driftlab.measures.recording import record
from driftlab.measures.singular_alignment import (
    alignment_bounds,
    layer_alignment,
    normalized_margin,
    spectral_ratio,
)
from driftlab.models.losses import logistic


def snapshot(params, objective=None):
    zero = jnp.zeros(())
    state = State(params, (), jnp.zeros((), jnp.int32), jax.random.key(0))
    return Snapshot(state, state, objective, (), zero, zero, params, params)


@pytest.fixture(scope="module")
def weights():
    keys = jax.random.split(jax.random.key(5), 3)
    shapes = ((8, 2), (7, 8), (1, 7))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def outputs(weights, inputs):
    hidden = inputs
    for matrix in weights:
        hidden = hidden @ matrix.T
    return hidden


def test_every_value_is_numpy_s(weights):
    direction = np.array([3.0, 4.0])
    found = jax.jit(lambda w: layer_alignment(direction)(snapshot(w)))(weights)
    matrices = [np.asarray(matrix) for matrix in weights]
    parts = [np.linalg.svd(matrix) for matrix in matrices]
    for name, (matrix, (left, values, right)) in enumerate(zip(matrices, parts, strict=True)):
        size = np.linalg.norm(matrix)
        defect = np.linalg.norm(matrix / size - np.outer(left[:, 0], right[0]))
        np.testing.assert_allclose(found[f"spectral_ratio_{name}"], values[0] / size, rtol=1e-14)
        np.testing.assert_allclose(found[f"rank_one_defect_{name}"], defect, atol=1e-14)
    for k in range(2):
        cosine = abs(parts[k + 1][2][0] @ parts[k][0][:, 0])
        np.testing.assert_allclose(found[f"alignment_{k}_{k + 1}"], cosine, rtol=1e-12)
    product = (matrices[2] @ matrices[1] @ matrices[0])[0]
    size = np.prod([np.linalg.norm(matrix) for matrix in matrices])
    np.testing.assert_allclose(
        found["predictor_alignment"], abs(product @ parts[0][2][0]) / size, rtol=1e-12
    )
    cosine = product @ direction / np.linalg.norm(product) / 5
    np.testing.assert_allclose(found["direction_cosine"], cosine, rtol=1e-12)
    tops = [values[0] for _, values, _ in parts]
    excess = max(np.linalg.norm(m) ** 2 - top**2 for m, top in zip(matrices, tops, strict=True))
    np.testing.assert_allclose(found["alignment_excess"], excess, rtol=1e-12)
    bound = max(np.linalg.norm(m) ** 2 for m in matrices) - np.linalg.norm(matrices[2]) ** 2
    bound += sum(
        np.linalg.norm(low @ low.T - up.T @ up, 2) for low, up in itertools.pairwise(matrices)
    )
    np.testing.assert_allclose(found["alignment_excess_bound"], bound, rtol=1e-12)
    allowed = [
        (bound + tops[k + 1] ** 2 + tops[k] ** 2) / tops[k + 1] ** 2
        - 1
        + found[f"alignment_{k}_{k + 1}"] ** 2
        for k in range(2)
    ]
    np.testing.assert_allclose(found["alignment_slack"], min(allowed), rtol=1e-12)


def test_a_rank_one_aligned_network_has_every_value_at_one():
    u, v = jnp.array([0.6, 0.8]), jnp.array([0.0, 1.0, 0.0])
    weights = [2 * jnp.outer(u, v), 3 * jnp.outer(jnp.array([1.0, 0.0]), u), jnp.array([[5.0, 0]])]
    found = layer_alignment(v)(snapshot(weights))
    for name, value in found.items():
        goal = 0 if "defect" in name or name == "alignment_excess" else 1
        if "bound" not in name and "slack" not in name:
            np.testing.assert_allclose(value, goal, atol=1e-15, err_msg=name)


def test_lemma_2_holds_at_all_times_of_gradient_flow():
    keys = jax.random.split(jax.random.key(8), 3)
    inputs = jax.random.uniform(keys[0], (12, 2), minval=-0.7, maxval=0.7)
    signs = jnp.sign(inputs @ jnp.array([1.0, 0.3]))
    objective = driftlab.Objective(logistic(outputs), (inputs, signs))
    start = [0.8 * jax.random.normal(keys[1], (4, 2)), jnp.ones((3, 4)) / 2, jnp.ones((1, 3))]
    dynamics = driftlab.flow(gradient_flow(objective), 2.0, objective)
    tracker = layer_alignment()

    def step(carry, _):
        state, memory = carry
        values, memory = record((tracker,), dynamics.observe(state), memory)
        return (dynamics.step(state), memory), values

    begun = (dynamics.init(start, jax.random.key(0)), (tracker.init(start),))
    found = jax.jit(lambda: jax.lax.scan(step, begun, None, 60)[1])()
    bounds = alignment_bounds(start)
    assert (found["alignment_excess"] <= bounds.excess).all()
    assert (found["alignment_slack"] >= 0).all()
    # A bound that promises nothing would hold as well: at the end both say something.
    assert found["alignment_0_1"][-1] ** 2 - found["alignment_slack"][-1] > -2
    assert found["spectral_ratio_1"][-1] > found["spectral_ratio_1"].min()
    assert found["alignment_0_1"][-1] > 0.9
    assert found["alignment_1_2"][-1] > 0.95


def test_large_layers_are_followed_to_the_decomposition_s_values():
    rng = np.random.default_rng(0)
    first = jnp.asarray(rng.normal(size=(90, 70)))
    follow = jax.jit(leading_singular)
    block = initial_singular_block(first.shape, first.dtype)
    assert block.shape == (2, 70)
    for shift in (0.0, 0.01):
        for matrix in (first + shift, (first + shift).T):
            triple, block = follow(matrix, block)
            left, values, right = np.linalg.svd(matrix)
            np.testing.assert_allclose(triple.value, values[0], rtol=1e-12)
            outer = np.outer(triple.left, triple.right)
            np.testing.assert_allclose(outer, np.outer(left[:, 0], right[0]), atol=1e-5)


def test_ratios_of_the_dense_layers_of_a_network():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
        "dense": {"kernel": jnp.diag(jnp.array([3.0, 4.0])), "bias": jnp.ones(2)},
    }
    found = spectral_ratio()(snapshot(params))
    assert set(found) == {"spectral_ratio_dense", "rank_one_defect_dense"}
    np.testing.assert_allclose(found["spectral_ratio_dense"], 0.8, rtol=1e-15)
    np.testing.assert_allclose(found["rank_one_defect_dense"], 0.4**0.5, rtol=1e-14)
    with pytest.raises(ValueError, match="a parameter with two axes"):
        spectral_ratio()(snapshot({"scale": jnp.ones(3)}))


def test_the_margin_is_that_of_the_predictor(weights):
    inputs = jnp.array([[1.0, 2.0], [-3.0, 1.0], [0.5, -1.0]])
    product = np.asarray(weights[2] @ weights[1] @ weights[0])[0]
    signs = jnp.array([1.0, -1.0, 1.0])
    objective = driftlab.Objective(logistic(outputs), (inputs, signs))
    found = normalized_margin(2.0)(snapshot(weights, objective))
    expected = (np.asarray(signs) * (np.asarray(inputs) @ product)).min() / np.linalg.norm(product)
    np.testing.assert_allclose(found["normalized_margin"], expected, rtol=1e-13)
    np.testing.assert_allclose(found["margin_ratio"], expected / 2, rtol=1e-13)


def test_zeros_and_nans_give_nan_and_the_next_record_recovers(weights):
    zero = [jnp.zeros_like(weights[0]), *weights[1:]]
    tracker = layer_alignment()
    values, memory = tracker.update(snapshot(zero), tracker.init(zero))
    assert np.isnan(values["spectral_ratio_0"])
    assert np.isfinite(values["spectral_ratio_1"])
    assert np.isfinite(values["alignment_excess_bound"])
    values, _ = tracker.update(snapshot(weights), memory)
    assert all(np.isfinite(value) for value in values.values())
    broken = [weights[0].at[0, 0].set(jnp.nan), *weights[1:]]
    assert np.isnan(tracker.update(snapshot(broken), memory)[0]["alignment_0_1"])


def test_lanes_agree_with_single_runs_in_float32(weights, float32):
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
    lanes = jax.tree.map(lambda w: jnp.stack([w, 2 * w + 1]), weights)
    found = jax.jit(jax.vmap(lambda w: layer_alignment([1.0, 0.0])(snapshot(w))))(lanes)
    alone = layer_alignment([1.0, 0.0])(snapshot(jax.tree.map(lambda w: w[1], lanes)))
    for name, value in alone.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(found[name][1], value, rtol=1e-4, atol=1e-5)


def test_bad_arguments_are_refused(weights):
    with pytest.raises(ValueError, match="has 7 outputs"):
        layer_alignment()(snapshot(weights[:2]))
    with pytest.raises(ValueError, match=r"3 entries; the network takes 2 inputs"):
        layer_alignment([1.0, 0.0, 0.0])(snapshot(weights))
    with pytest.raises(ValueError, match="finite and not 0"):
        layer_alignment([0.0, 0.0])
