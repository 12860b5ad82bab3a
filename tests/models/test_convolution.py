import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from driftlab import models
from driftlab.models import Convolution, convolution

CASES = [
    # image, kernel, strides, padding
    ((7, 6), (3, 3), 1, "SAME"),
    ((8, 9), (3, 3), 2, "SAME"),
    ((9, 7), (3, 2), (2, 3), "VALID"),
    ((5, 5), (1, 1), 2, "SAME"),
    ((3, 4), (5, 5), 1, "SAME"),
    ((6, 6), (2, 2), 4, "SAME"),
]


def arrays(image, kernel, dtype=np.float64):
    random = np.random.RandomState(0)
    inputs = jnp.asarray(random.randn(2, *image, 3), dtype)
    return inputs, jnp.asarray(random.randn(*kernel, 3, 4), dtype)


@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), CASES)
def test_shift_equals_lax_forwards_backwards_and_under_vmap(image, kernel, strides, padding):
    inputs, weights = arrays(image, kernel)

    def values(method):
        def loss(inputs, weights):
            outputs = convolution(inputs, weights, strides, padding, method)
            return jnp.sum(jnp.sin(outputs)), outputs

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        batched = jax.vmap(gradient, in_axes=(None, 0))
        stacked = jnp.stack([weights, -0.5 * weights])
        return jax.jit(lambda: (gradient(inputs, weights), batched(inputs, stacked)))()

    shifted, reference = values("shift"), values("lax")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), shifted, reference
    )


def test_a_hand_computed_value():
    inputs = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)
    outputs = convolution(inputs, kernel, padding="VALID", method="shift")
    expected = [[0 + 10 + 300 + 4000, 1 + 20 + 400 + 5000], [3 + 40 + 600 + 7000, 8754]]
    np.testing.assert_array_equal(outputs[0, :, :, 0], expected)


@pytest.mark.parametrize("method", ["shift", "lax"])
def test_type_follows_the_inputs(method):
    inputs, weights = arrays((4, 4), (3, 3), jnp.float32)
    convolve = functools.partial(convolution, method=method)
    assert jax.eval_shape(convolve, inputs, weights).dtype == jnp.float32
    weights = weights.astype(jnp.float64)
    assert jax.eval_shape(convolve, inputs, weights).dtype == jnp.float64


def test_auto_is_shift_on_the_cpu_and_lax_elsewhere(monkeypatch):
    inputs, weights = arrays((4, 4), (3, 3))

    def primitives():
        return str(jax.make_jaxpr(lambda: convolution(inputs, weights))())

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert "conv_general_dilated" not in primitives()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in primitives()


def test_layer_equals_flax_with_the_same_params():
    inputs, _ = arrays((6, 5), (3, 3))
    layer = Convolution(4, kernel_size=(3, 2), strides=2)
    reference = nn.Conv(4, (3, 2), strides=2)

    @jax.jit
    def run():
        params = models.initialize(layer, jax.random.key(1), inputs)
        params["bias"] = jnp.arange(4.0)
        return tuple(model.apply({"params": params}, inputs) for model in (layer, reference))

    np.testing.assert_allclose(*run(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fft"}, "method='fft'.*shift"),
        ({"padding": "FULL"}, "padding='FULL'.*SAME"),
        ({"strides": 0}, "strides=0"),
        ({"inputs": jnp.zeros((1, 2, 2, 3)), "padding": "VALID"}, "window of 3 does not fit"),
        ({"inputs": jnp.zeros((1, 5, 5, 2))}, r"\(1, 5, 5, 2\) and \(3, 3, 3, 4\)"),
        ({"inputs": jnp.zeros((5, 5, 3))}, r"inputs must be \(batch, height, width, channels\)"),
    ],
)
def test_errors(changes, message):
    inputs, weights = arrays((5, 5), (3, 3))
    for method in ("shift", "lax"):
        with pytest.raises(ValueError, match=message):
            convolution(**{"inputs": inputs, "kernel": weights, "method": method} | changes)
