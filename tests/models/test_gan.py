"""Networks of GANs: shapes, sizes, purity, and transposed convolution as an adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models
from driftlab.models import gan
from driftlab.models.convolution import convolution
from driftlab.models.transposed import transposed_convolution


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("size", "strides"), [((4, 3), 2), ((3, 5), (1, 3)), ((4, 4), 1)])
def test_transposed_convolution_is_the_adjoint_and_is_dilation(size, strides):
    random = np.random.RandomState(0)
    inputs = jnp.asarray(random.randn(2, *size, 3))
    kernel = jnp.asarray(random.randn(4, 4, 3, 2))
    made = transposed_convolution(inputs, kernel, strides)
    factors = (strides, strides) if isinstance(strides, int) else strides
    assert made.shape == (2, size[0] * factors[0], size[1] * factors[1], 2)
    other = jnp.asarray(random.randn(*made.shape))
    pulled = convolution(other, kernel.swapaxes(2, 3), strides)
    np.testing.assert_allclose(jnp.vdot(made, other), jnp.vdot(inputs, pulled), rtol=1e-12)
    # An independent route: XLA's own convolution of the dilated input with the flipped kernel.
    total = [4 - factor for factor in factors]
    padding = [(3 - both // 2, 3 - (both - both // 2)) for both in total]
    expected = jax.lax.conv_general_dilated(
        inputs, kernel[::-1, ::-1], (1, 1), padding, lhs_dilation=factors,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    np.testing.assert_allclose(made, expected, atol=1e-12)


def test_transposed_convolution_by_shifts_equals_lax_in_second_derivatives_and_lanes():
    random = np.random.RandomState(1)
    inputs = jnp.asarray(random.randn(2, 3, 3, 2))
    kernels = jnp.asarray(random.randn(2, 4, 4, 2, 2))

    def curvature(method):
        def loss(kernel):
            return jnp.sum(jnp.sin(transposed_convolution(inputs, kernel, 2, method)))

        def product(kernel):
            return jax.jvp(jax.grad(loss), (kernel,), (kernel,))[1]

        return jax.jit(jax.vmap(product))(kernels)

    np.testing.assert_allclose(curvature("shift"), curvature("lax"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("networks", "shape", "sizes"),
    [
        # 16 (8) + 8 (8) + 8 (64) weights and biases; 64 (8) + 8 (8) + 8
        (gan.mlp_gan(widths=(8, 8)), (8, 8, 1), (784, 601)),
        (gan.dcgan(width=1 / 16), (28, 28, 1), None),
        (gan.sngan(width=1 / 32), (32, 32, 3), None),
        (gan.dcgan((16, 16, 2), 1 / 16, "group"), (16, 16, 2), None),
    ],
)
def test_networks_map_latents_to_images_to_scores(networks, shape, sizes):
    latents = jax.random.normal(jax.random.key(0), (3, 16))

    @jax.jit
    def run(key):
        generator = models.initialize(networks.generator, key, latents)
        images = models.apply_function(networks.generator)(generator, latents)
        discriminator = models.initialize(networks.discriminator, key, images)
        scores = models.apply_function(networks.discriminator)(discriminator, images)
        return generator, discriminator, images, scores

    generator, discriminator, images, scores = run(jax.random.key(1))
    assert images.shape == (3, *shape)
    assert scores.shape == (3, 1)
    assert images.dtype == scores.dtype == jnp.float64
    assert float(jnp.abs(images).max()) <= 1
    # He's start keeps the scale: pixels neither all saturate nor vanish.
    assert 0.05 < float(jnp.abs(images).mean()) < 0.95
    if sizes:
        assert (count(generator), count(discriminator)) == sizes


def test_the_published_sizes():
    networks = gan.sngan()
    latents, images = jnp.zeros((1, 128)), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(
        lambda key: (
            models.initialize(networks.generator, key, latents),
            models.initialize(networks.discriminator, key, images),
        ),
        jax.random.key(0),
    )
    kernels = [
        {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
        for params in shapes
    ]
    assert kernels[0]["dense"] == (128, 4 * 4 * 512)
    assert [kernels[0][f"transposed_{i}"] for i in (1, 2, 3)] == [
        (4, 4, 512, 256), (4, 4, 256, 128), (4, 4, 128, 64),
    ]  # fmt: skip
    assert kernels[0]["pixels"] == (3, 3, 64, 3)
    assert [kernels[1][f"convolution_{i}"][:2] for i in range(7)] == [
        (3, 3), (4, 4), (3, 3), (4, 4), (3, 3), (4, 4), (3, 3),
    ]  # fmt: skip
    assert kernels[1]["score"] == (4 * 4 * 512, 1)


def test_convolution_layers_finds_the_linear_maps():
    networks = gan.dcgan((8, 8, 1), 1 / 16)
    images = jnp.asarray(np.random.RandomState(0).randn(2, 8, 8, 1))
    params = models.initialize(networks.discriminator, jax.random.key(0), images)
    layers = gan.convolution_layers(networks.discriminator, params, images)
    assert {path: shape for path, (_, shape) in layers.items()} == {
        "convolution_0/kernel": (8, 8, 1),
        "convolution_1/kernel": (4, 4, 4),
    }
    apply, _ = layers["convolution_0/kernel"]
    kernel = params["convolution_0"]["kernel"]
    np.testing.assert_allclose(
        apply(kernel, images[0]), convolution(images, kernel, 2)[0], rtol=1e-12
    )


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"image_shape=\(30, 30, 1\).*multiples of 4"):
        models.initialize(gan.dcgan((30, 30, 1)).generator, jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match="width=0"):
        gan.sngan(width=0)
    wrong = gan.ConvolutionalDiscriminator((4, 4), strides=(1, 2, 3))
    with pytest.raises(ValueError, match=r"strides=\(1, 2, 3\)"):
        models.initialize(wrong, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="same channels"):
        transposed_convolution(jnp.zeros((1, 2, 2, 3)), jnp.zeros((3, 3, 2, 1)))
