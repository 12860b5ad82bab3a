import jax
import jax.numpy as jnp
import numpy as np

from driftlab import models
from driftlab.models import MLP

KEY = jax.random.key(0)
INPUTS = jnp.asarray(np.random.RandomState(0).randn(3, 4, 2))


def test_outputs_equal_the_formula():
    model = MLP(widths=(5, 6), num_outputs=2, bias_initialization="standard_normal")
    params = jax.jit(lambda: models.initialize(model, KEY, INPUTS))()
    hidden = np.asarray(INPUTS).reshape(3, 8)
    for layer in range(3):
        weights = params[f"layer_{layer}"]
        hidden = hidden @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
        hidden = np.tanh(hidden) if layer < 2 else hidden
    outputs = models.apply_function(model)(params, INPUTS)
    np.testing.assert_allclose(outputs, hidden, rtol=1e-12)


def test_parameter_count_and_type():
    # 784-200-200-10, the MNIST network of Yaida (2019).
    model = MLP(widths=(200, 200), num_outputs=10, activation="relu")
    shapes = jax.eval_shape(
        lambda: models.initialize(model, KEY, jnp.zeros((1, 28, 28, 1), jnp.float32))
    )
    leaves = jax.tree.leaves(shapes)
    assert sum(leaf.size for leaf in leaves) == 199_210
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_no_biases_and_a_swept_scale():
    def outputs(scale):
        model = MLP(widths=(), num_outputs=3, use_bias=False, scale=scale)
        params = models.initialize(model, KEY, INPUTS)
        assert set(params["layer_0"]) == {"kernel"}
        return models.apply_function(model)(params, INPUTS)

    swept = jax.jit(jax.vmap(outputs))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(swept[1], 2 * swept[0], rtol=1e-12)
