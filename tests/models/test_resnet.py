import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import models
from driftlab.models import ResNet

KEY = jax.random.key(0)
INPUTS = jnp.asarray(np.random.RandomState(0).randn(4, 8, 8, 2))


def waves(key, shape, dtype):
    """Weights without random numbers, which take most of the time to compile."""
    del key
    return jnp.sin(jnp.arange(math.prod(shape), dtype=dtype)).reshape(shape)


def run(**attributes):
    model = ResNet(3, channels=(4, 8), blocks=(1, 1), initialization=waves, **attributes)

    @jax.jit
    def initialize_and_apply():
        params = models.initialize(model, KEY, INPUTS)
        return params, models.apply_function(model)(params, INPUTS)

    return model, *initialize_and_apply()


def test_without_normalization_branches_start_at_zero():
    model, params, outputs = run()
    kernel = params["stage_1_0"]["convolution_1"]["kernel"]
    np.testing.assert_array_equal(kernel, jnp.zeros((3, 3, 8, 8)))
    assert outputs.shape == (4, 3)
    # With every branch at zero the first convolution of a block cannot matter.
    params["stage_0_0"]["convolution_0"]["kernel"] += 1.0
    changed = jax.jit(models.apply_function(model))(params, INPUTS)
    np.testing.assert_allclose(changed, outputs, rtol=1e-12)


def test_depth_scales_the_last_convolution_of_each_block():
    _, scaled, _ = run(residual_initialization="depth")
    _, plain, _ = run(residual_initialization="plain")
    block = "stage_0_0"
    np.testing.assert_allclose(
        scaled[block]["convolution_1"]["kernel"],
        plain[block]["convolution_1"]["kernel"] / np.sqrt(2),
        rtol=1e-12,
    )
    np.testing.assert_array_equal(
        scaled[block]["convolution_0"]["kernel"], plain[block]["convolution_0"]["kernel"]
    )


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
def test_with_normalization_the_last_scale_starts_at_zero_and_biases_are_left_out(kind):
    _, params, outputs = run(normalization=kind)
    np.testing.assert_array_equal(params["stage_0_0"]["normalization_1"]["scale"], np.zeros(4))
    np.testing.assert_array_equal(params["stage_0_0"]["normalization_0"]["scale"], np.ones(4))
    assert set(params["stage_1_0"]["shortcut_convolution"]) == {"kernel"}
    assert np.isfinite(outputs).all()


def test_parameter_count_of_resnet18():
    model = ResNet(10, blocks=(2, 2, 2, 2), channels=(64, 128, 256, 512), normalization="batch")
    inputs = jnp.zeros((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda: models.initialize(model, KEY, inputs))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_173_962


def test_errors():
    with pytest.raises(ValueError, match="residual_initialization='fixup'.*depth"):
        run(residual_initialization="fixup")
    with pytest.raises(ValueError, match="normalization='instance'.*group"):
        run(normalization="instance")
    with pytest.raises(ValueError, match="same stages"):
        models.initialize(ResNet(3, blocks=(1,)), KEY, INPUTS)
