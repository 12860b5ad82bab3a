import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet

from driftlab.models.activations import ACTIVATIONS, activation_function, relu

POINTS = jnp.array([-1.5, -0.2, 0.4, 2.0])


def test_relu_equals_that_of_jax_with_nan_and_derivative_zero_at_zero():
    points = jnp.array([-1.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(relu(points), jax.nn.relu(points))
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(points)[:3], [0, 0, 1])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_taylor_mode_agrees_with_nested_derivatives(name):
    function = activation_function(name)
    ones, zeros = jnp.ones_like(POINTS), jnp.zeros_like(POINTS)
    _, (first, second) = jet.jet(function, (POINTS,), ((ones, zeros),))
    np.testing.assert_allclose(first, jax.vmap(jax.grad(function))(POINTS), rtol=1e-12)
    expected = jax.vmap(jax.grad(jax.grad(function)))(POINTS)
    np.testing.assert_allclose(second, expected, rtol=1e-12, atol=1e-14)


def test_functions_pass_and_unknown_names_list_the_known():
    assert activation_function(jnp.cos) is jnp.cos
    with pytest.raises(ValueError, match="activation='swish'.*silu"):
        activation_function("swish")
