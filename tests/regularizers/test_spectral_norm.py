"""Spectral normalisation against dense singular values, and its vectors carried in params."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab import models
from driftlab.game import Game
from driftlab.models import gan
from driftlab.play import alternating
from driftlab.regularizers.spectral_norm import (
    carry_spectral_vectors,
    initial_vectors,
    largest_singular_value,
    spectral_normalize,
    spectrally_normalized,
    with_vectors,
)

RANDOM = np.random.RandomState(0)
DENSE = {
    "layer": {"kernel": jnp.asarray(RANDOM.randn(7, 5)), "bias": jnp.asarray(RANDOM.randn(5))},
    "score": {"kernel": jnp.asarray(0.1 * RANDOM.randn(5, 1)), "bias": jnp.zeros(1)},
}


def top(kernel):
    return np.linalg.svd(np.array(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def test_dense_kernels_get_norm_one_and_biases_stay():
    found, vectors = spectral_normalize(DENSE, initial_vectors(DENSE), 200)
    for name, layer in DENSE.items():
        np.testing.assert_allclose(found[name]["kernel"], layer["kernel"] / top(layer["kernel"]))
        assert found[name]["bias"] is layer["bias"]
    assert set(vectors) == {"layer/kernel", "score/kernel"}
    # Started from the carried vector, one iteration is as good as the 200 before it.
    again, _ = spectral_normalize(DENSE, vectors, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), again, found)


def test_the_estimate_rises_to_the_norm_from_below():
    kernel, start = DENSE["layer"]["kernel"], initial_vectors(DENSE)["layer/kernel"]
    found = [float(largest_singular_value(kernel, start, n)[0]) for n in (0, 1, 3, 10, 200)]
    assert found == sorted(found)
    assert found[0] < 0.9 * top(kernel)
    np.testing.assert_allclose(found[-1], top(kernel), rtol=1e-12)


def test_bound_and_only_above():
    start = initial_vectors(DENSE)
    found, _ = spectral_normalize(DENSE, start, 200, bound=2.0, only_above=True)
    np.testing.assert_allclose(top(found["layer"]["kernel"]), 2.0)
    np.testing.assert_array_equal(found["score"]["kernel"], DENSE["score"]["kernel"])
    zero = {"kernel": jnp.zeros((3, 2))}
    found, _ = spectral_normalize(zero, initial_vectors(zero), 3)
    np.testing.assert_array_equal(found["kernel"], 0.0)


def test_the_derivative_is_that_of_a_normalised_matrix():
    kernel = DENSE["layer"]["kernel"]
    params, cotangent = {"kernel": kernel}, jnp.asarray(RANDOM.randn(7, 5))

    def through(params):
        found, _ = spectral_normalize(params, initial_vectors(params), 300)
        return jnp.vdot(cotangent, found["kernel"])

    u, s, v = np.linalg.svd(kernel, full_matrices=False)
    rank_one = np.outer(u[:, 0], v[0])
    # rosca.md, 6.2: (G - <G, W_SN> u v^T) / sigma.
    expected = (cotangent - np.vdot(cotangent, kernel / s[0]) * rank_one) / s[0]
    np.testing.assert_allclose(jax.grad(through)(params)["kernel"], expected, rtol=1e-10)


def test_convolutions_have_two_norms():
    model = gan.ConvolutionalDiscriminator((4,), kernel_sizes=3, strides=2)
    images = jnp.zeros((1, 6, 5, 2))
    params = models.initialize(model, jax.random.key(0), images)
    kernel = params["convolution_0"]["kernel"]
    layers = gan.convolution_layers(model, params, images)
    apply, shape = layers["convolution_0/kernel"]
    dense = jax.jacobian(lambda x: apply(kernel, x).ravel())(jnp.zeros(shape)).reshape(-1, 60)
    true = np.linalg.svd(dense, compute_uv=False)[0]
    start = initial_vectors(params, layers)
    assert start["convolution_0/kernel"].shape == (6, 5, 2)
    found, _ = largest_singular_value(kernel, start["convolution_0/kernel"], 400, apply)
    np.testing.assert_allclose(found, true, rtol=1e-8)
    matrix, _ = largest_singular_value(kernel, initial_vectors(params)["convolution_0/kernel"], 400)
    np.testing.assert_allclose(matrix, top(kernel), rtol=1e-8)
    assert true > 1.05 * top(kernel)
    assert true < 3 * top(kernel)
    normalized, _ = spectral_normalize(params, start, 400, layers=layers)
    dense = jax.jacobian(lambda x: apply(normalized["convolution_0"]["kernel"], x).ravel())(
        jnp.zeros(shape)
    )
    np.testing.assert_allclose(np.linalg.svd(dense.reshape(-1, 60))[1][0], 1.0, rtol=1e-8)


def test_a_normalised_network_without_biases_divides_by_the_norms():
    model = models.MLP((6,), 1, activation="relu", use_bias=False)
    inputs = jnp.asarray(RANDOM.randn(3, 4))
    params = models.initialize(model, jax.random.key(0), inputs)
    apply = models.apply_function(model)
    product = np.prod([top(layer["kernel"]) for layer in params.values()])
    found = jax.jit(spectrally_normalized(apply, 300))(params, inputs)
    np.testing.assert_allclose(found, apply(params, inputs) / product, rtol=1e-10)


def linear_game(carried):
    """D scores x by a normalised matrix, G shifts it; D's params carry their vectors."""

    def score(params, x):
        return x @ params["kernel"]

    scored = spectrally_normalized(score, 300, carried=carried)

    def loss(sign):
        return lambda params, batch: (
            sign * scored(params["discriminator"], params["generator"].reshape(1, 4)).sum()
        )

    return Game({"discriminator": loss(-1.0), "generator": loss(1.0)})


def test_carried_vectors_follow_their_own_player():
    weights = {"kernel": jnp.asarray(RANDOM.randn(4, 3))}
    start = {"generator": jnp.asarray(RANDOM.randn(4))}
    carried, fresh = linear_game(True), linear_game(False)
    txs = {"discriminator": optax.sgd(0.05), "generator": optax.sgd(0.05)}
    plain = alternating(txs, fresh)
    carrying = alternating(
        {**txs, "discriminator": carry_spectral_vectors(txs["discriminator"], 50)}, carried
    )
    key = jax.random.key(0)
    one = plain.init({**start, "discriminator": weights}, key)
    two = carrying.init({**start, "discriminator": with_vectors(weights, 300)}, key)
    gradient = carried.gradient("discriminator", two.params, ())[1]
    assert float(jnp.abs(gradient["vectors"]["kernel"]).max()) == 0
    steps = jax.jit(plain.step), jax.jit(carrying.step)
    for _ in range(5):
        one, two = steps[0](one), steps[1](two)
    # The carried vectors lag by one update, so the two agree to first order in the rate only.
    moved = one.params["discriminator"]["kernel"] - weights["kernel"]
    apart = one.params["discriminator"]["kernel"] - two.params["discriminator"]["weights"]["kernel"]
    assert 0 < float(jnp.linalg.norm(apart)) < 0.05 * float(jnp.linalg.norm(moved))
    vector = two.params["discriminator"]["vectors"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(vector), 1.0, rtol=1e-12)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="no leaf called 'kernel'"):
        initial_vectors({"bias": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"layers name \['other'\]"):
        initial_vectors(DENSE, {"other": (lambda k, x: x, (3,))})
    tx = carry_spectral_vectors(optax.sgd(0.1))
    params = with_vectors(DENSE)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, tx.init(params))
