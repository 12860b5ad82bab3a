import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.models import average_pool, max_pool

INPUTS = jnp.asarray(np.random.RandomState(0).randn(2, 7, 6, 3))

PAIRS = [(max_pool, nn.max_pool), (average_pool, nn.avg_pool)]


@pytest.mark.parametrize(("pool", "reference"), PAIRS, ids=["max", "average"])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [(2, None, "VALID"), ((3, 2), None, "SAME"), (3, 2, "VALID"), (3, 2, "SAME")],
)
def test_values_and_gradients_equal_those_of_reduce_window(
    pool, reference, window, strides, padding
):
    pair = (window, window) if isinstance(window, int) else window
    reference_strides = pair if strides is None else (strides, strides)

    def value_and_gradient(function):
        def weighted(x):
            outputs = function(x)
            return jnp.sum(jnp.sin(outputs)), outputs

        return jax.jit(jax.value_and_grad(weighted, has_aux=True))(INPUTS)

    result = value_and_gradient(lambda x: pool(x, window, strides, padding))
    expected = value_and_gradient(lambda x: reference(x, pair, reference_strides, padding))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), result, expected
    )


def test_no_reduce_window():
    for pool, _ in PAIRS:
        text = str(jax.make_jaxpr(jax.grad(lambda x, pool=pool: pool(x, 3, 2).sum()))(INPUTS))
        assert "reduce_window" not in text
        assert "select_and" not in text


def test_ties_share_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), 0.25))


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="window of 8 does not fit an axis of 7"):
        max_pool(INPUTS, 8)
