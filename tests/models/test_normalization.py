import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from driftlab import models
from driftlab.models import Normalization

INPUTS = jnp.asarray(2 + 3 * np.random.RandomState(0).randn(4, 3, 5, 8))


def normalize(kind, inputs=INPUTS, **attributes):
    model = Normalization(kind, **attributes)

    @jax.jit
    def run():
        params = models.initialize(model, jax.random.key(0), inputs)
        return models.apply_function(model)(params, inputs)

    return np.asarray(run())


@pytest.mark.parametrize(
    ("kind", "shape", "axes"),
    [
        ("batch", (4, 3, 5, 8), (0, 1, 2)),
        ("layer", (4, 3, 5, 8), (1, 2, 3)),
        ("group", (4, 3, 5, 4, 2), (1, 2, 4)),
    ],
)
def test_means_are_zero_and_variances_one(kind, shape, axes):
    outputs = normalize(kind, epsilon=0.0).reshape(shape)
    np.testing.assert_allclose(outputs.mean(axis=axes), 0, atol=1e-12)
    np.testing.assert_allclose(outputs.var(axis=axes), 1, rtol=1e-12)


def test_batch_and_group_equal_those_of_flax():
    reference = nn.BatchNorm(use_running_average=False, epsilon=1e-5, use_fast_variance=False)
    variables = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    expected, _ = jax.jit(lambda: reference.apply(variables, INPUTS, mutable=["batch_stats"]))()
    np.testing.assert_allclose(normalize("batch"), expected, rtol=1e-10, atol=1e-12)
    reference = nn.GroupNorm(num_groups=2, epsilon=1e-5, use_fast_variance=False)
    expected = jax.jit(lambda: reference.apply(variables, INPUTS))()
    np.testing.assert_allclose(normalize("group", num_groups=2), expected, rtol=1e-10, atol=1e-12)


def test_learnable_scale_and_bias():
    model = Normalization("layer")
    params = {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}
    outputs = models.apply_function(model)(params, INPUTS)
    np.testing.assert_allclose(outputs, normalize("layer") * np.arange(8.0) + 1, rtol=1e-12)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="num_groups=3 does not divide the 8 channels"):
        normalize("group", num_groups=3)
