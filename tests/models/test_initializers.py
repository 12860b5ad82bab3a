import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.models import initializer

KEY = jax.random.key(0)
SHAPE = (200, 300)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("lecun_normal", 1 / 200),
        ("lecun_uniform", 1 / 200),
        ("he_normal", 2 / 200),
        ("he_uniform", 2 / 200),
        ("glorot_normal", 2 / 500),
        ("glorot_uniform", 2 / 500),
        ("standard_normal", 1.0),
        ("zeros", 0.0),
    ],
)
def test_variances_are_as_documented(name, variance):
    weights = initializer(name, scale=3.0)(KEY, SHAPE, jnp.float32)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.var(), 9 * variance, rtol=0.03)


def test_orthogonal_with_a_traced_scale():
    weights = jax.jit(lambda s: initializer("orthogonal", s)(KEY, (3, 5), jnp.float64))(2.0)
    np.testing.assert_allclose(weights @ weights.T, 4 * np.eye(3), atol=1e-12)


def test_functions_pass_and_unknown_names_list_the_known():
    ones = initializer(lambda key, shape, dtype: jnp.ones(shape, dtype), 2.0)
    np.testing.assert_array_equal(ones(KEY, (2,), jnp.float64), [2, 2])
    with pytest.raises(ValueError, match="initialization='kaiming'.*he_normal"):
        initializer("kaiming")
