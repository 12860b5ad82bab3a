"""The finite-width kernel of the two-layer ReLU network against autodiff; definiteness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models
from driftlab.curvature.kernels import relu_kernel
from driftlab.curvature.ntk import ntk
from driftlab.curvature.two_layer_relu_kernel import parallel_rows, relu_gram, smallest_eigenvalue

N, D, WIDTH = 7, 5, 48
INPUTS = jnp.asarray(np.random.RandomState(0).randn(N, D))
TARGETS = jnp.asarray(np.random.RandomState(1).randn(N))
SIGNS = jnp.asarray(models.output_signs(WIDTH, 1, 0)[:, 0])


def outputs(params, inputs):
    hidden = jax.nn.relu(inputs @ params["kernel"])
    return hidden @ params.get("output", SIGNS) / WIDTH**0.5


def draw(both_layers):
    params = {"kernel": jax.random.normal(jax.random.key(0), (D, WIDTH), float)}
    if both_layers:
        # Not signs, as after some steps of training: their squares enter H.
        params["output"] = SIGNS + 0.3 * jax.random.normal(jax.random.key(1), (WIDTH,), float)
    return params


def gram_of(params):
    return relu_gram(INPUTS, params["kernel"], params.get("output"), both_layers="output" in params)


@pytest.mark.parametrize("both_layers", [False, True])
def test_outputs_move_along_the_kernel(both_layers):
    params = draw(both_layers)

    @jax.jit
    def both(params):
        def loss(params):
            return jnp.sum(jnp.square(outputs(params, INPUTS) - TARGETS)) / 2

        along = jax.tree.map(jnp.negative, jax.grad(loss)(params))
        return jax.jvp(lambda p: outputs(p, INPUTS), (params,), (along,))

    here, velocity = both(params)
    np.testing.assert_allclose(gram_of(params) @ (TARGETS - here), velocity, rtol=0, atol=1e-12)
    assert np.abs(velocity).max() > 1  # the tolerance above is relative to this


@pytest.mark.parametrize("both_layers", [False, True])
def test_gram_is_the_tangent_kernel(both_layers):
    params = draw(both_layers)
    kernel = ntk(outputs, params, INPUTS)
    gram = gram_of(params)
    np.testing.assert_allclose(gram, jnp.reshape(kernel, (N, N)), atol=1e-13)
    assert np.linalg.eigvalsh(gram).min() > -1e-14


def test_gram_of_the_flax_model_in_lanes_and_float32(float32):
    model = models.TwoLayerReLU(WIDTH)
    inputs = INPUTS.astype(jnp.float32)
    params = jax.vmap(lambda key: models.initialize(model, key, inputs))(
        jax.random.split(jax.random.key(2), 2)
    )
    grams = jax.jit(jax.vmap(lambda p: relu_gram(inputs, p["kernel"])))(params)
    assert grams.dtype == jnp.float32
    one = jax.tree.map(lambda leaf: leaf[1], params)
    kernel = ntk(models.apply_function(model), one, inputs, trace_outputs=True)
    np.testing.assert_allclose(grams[1], kernel, atol=1e-5)


def test_gram_approaches_its_limit_like_one_over_the_root_of_the_width():
    widths = np.array([64, 256, 1024])

    @jax.jit
    def squares(hidden, output):
        gram = relu_gram(INPUTS, hidden, output, both_layers=True)
        return jnp.sum(jnp.square(gram - relu_kernel(INPUTS, both_layers=True)))

    def error(width):
        keys = jax.random.split(jax.random.key(3), 40)
        hidden = jax.vmap(lambda key: jax.random.normal(key, (D, int(width)), float))(keys)
        return float(jnp.sqrt(jax.vmap(lambda h: squares(h, jnp.ones(width)))(hidden).mean()))

    slope = np.polyfit(np.log(widths), np.log([error(width) for width in widths]), 1)[0]
    assert abs(slope + 0.5) < 0.05


def test_weights_that_are_not_finite_give_nan():
    hidden = draw(False)["kernel"].at[0, 0].set(jnp.nan)
    assert jnp.isnan(relu_gram(INPUTS, hidden)).all()
    assert jnp.isnan(smallest_eigenvalue(relu_gram(INPUTS, hidden)))


def test_smallest_eigenvalue_is_that_of_the_kernel():
    gram = relu_kernel(INPUTS)
    expected = np.linalg.eigvalsh(gram)[0]
    np.testing.assert_allclose(smallest_eigenvalue(gram, INPUTS), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(smallest_eigenvalue)(gram), expected, rtol=1e-12)


def test_opposite_inputs_are_no_reason_for_a_singular_kernel():
    # Du et al. exclude them, but their units are never active together: the block is I / 2.
    pair = jnp.stack([INPUTS[0], -INPUTS[0]]) / jnp.linalg.norm(INPUTS[0])
    np.testing.assert_allclose(smallest_eigenvalue(relu_kernel(pair), pair), 0.5, rtol=1e-12)
    assert parallel_rows(pair) == []


@pytest.mark.parametrize("both_layers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parallel_inputs_are_named(both_layers, dtype):
    inputs = INPUTS.at[4].set(3 * INPUTS[1]).at[6].set(INPUTS[1]).at[2].set(0.0).astype(dtype)
    assert parallel_rows(inputs) == [(2, 2), (1, 4), (1, 6)]
    gram = relu_kernel(inputs, both_layers=both_layers)
    with pytest.raises(ValueError, match=r"Rows 1 and 4, 1 and 6 of .* parallel; rows 2 .* are 0"):
        smallest_eigenvalue(gram, inputs)
    with pytest.raises(ValueError, match="Pass inputs="):
        smallest_eigenvalue(gram)
    # Under jit there is no value to look at.
    assert abs(jax.jit(smallest_eigenvalue)(gram)) < 1e-5


def test_a_rank_deficient_gram_says_that_the_width_is_too_small():
    hidden = draw(False)["kernel"][:, :1]
    with pytest.raises(ValueError, match="the width is too small"):
        smallest_eigenvalue(relu_gram(INPUTS, hidden), INPUTS)


def test_close_inputs_are_not_called_parallel():
    close = INPUTS.at[3].set(INPUTS[0] + 1e-6 * INPUTS[1])
    assert parallel_rows(close) == []
    assert 1e-9 < smallest_eigenvalue(relu_kernel(close), close) < 1e-5


ERRORS = {
    "hidden": (lambda: relu_gram(INPUTS, jnp.ones((3, 4))), r"\(7, 5\), \(3, 4\) and None"),
    "output": (lambda: relu_gram(INPUTS, jnp.ones((5, 4)), jnp.ones(3)), r"and \(3,\)"),
    "vector": (lambda: parallel_rows(jnp.ones(3)), r"must be \(n, d\).*\(3,\)"),
    "blocks": (lambda: smallest_eigenvalue(jnp.ones((2, 2, 1, 1))), r"\(n, n\); got \(2, 2, 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
