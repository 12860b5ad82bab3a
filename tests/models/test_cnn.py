import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models
from driftlab.models import CNN, VGG, VGG11_STAGES, LeNet5

KEY = jax.random.key(0)


def shapes(model, image):
    inputs = jnp.zeros((2, *image), jnp.float32)

    def run():
        params = models.initialize(model, KEY, inputs)
        return params, models.apply_function(model)(params, inputs)

    params, outputs = jax.eval_shape(run)
    assert outputs.dtype == jnp.float32
    return sum(leaf.size for leaf in jax.tree.leaves(params)), outputs.shape


@pytest.mark.parametrize(
    ("model", "image", "count"),
    [
        # 3*3*1*16 + 16, 3*3*16*32 + 32, 7*7*32*10 + 10
        (CNN(10), (28, 28, 1), 160 + 4_640 + 15_690),
        # The CIFAR-10 network of Yaida (2019).
        (
            CNN(10, channels=(16, 20, 20), kernel_size=5, strides=1, pooling="max"),
            (32, 32, 3),
            22_466,
        ),
        (CNN(10, channels=(4,), dense_widths=(8,), use_bias=False), (8, 8, 1), 36 + 512 + 80),
        (LeNet5(), (28, 28, 1), 61_706),
        (VGG(10), (8, 8, 1), 160 + 2_320 + 4_640 + 9_248 + 1_290),
        (VGG(10, stages=VGG11_STAGES), (32, 32, 3), 9_225_610),
    ],
)
def test_parameter_counts(model, image, count):
    assert shapes(model, image) == (count, (2, 10))


def test_methods_agree_on_a_whole_network_and_its_gradient():
    inputs = jnp.asarray(np.random.RandomState(0).randn(3, 6, 8, 2))
    targets = jnp.array([0, 1, 2])

    def waves(key, shape, dtype):
        # Weights without random numbers, which take most of the time to compile.
        return jnp.sin(jnp.arange(math.prod(shape), dtype=dtype)).reshape(shape)

    def gradient(method):
        model = CNN(
            3, channels=(4, 5), pooling="average", strides=1, initialization=waves, method=method
        )
        loss = models.cross_entropy(models.apply_function(model))

        @jax.jit
        def run():
            params = models.initialize(model, KEY, inputs)
            return jax.grad(loss)(params, (inputs, targets))

        return run()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13),
        gradient("shift"),
        gradient("lax"),
    )


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 12 x 12"):
        shapes(LeNet5(), (8, 8, 1))
    with pytest.raises(ValueError, match="3 stages need images of at least 8"):
        shapes(VGG(10, stages=((4,), (4,), (4,))), (7, 9, 1))
    with pytest.raises(ValueError, match="pooling='mean'.*average"):
        shapes(CNN(10, pooling="mean"), (8, 8, 1))
