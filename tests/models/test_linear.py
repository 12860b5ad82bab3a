import jax
import numpy as np

from driftlab import models
from driftlab.models import DeepLinear, end_to_end_matrix


def test_the_network_applies_the_product_of_its_matrices():
    inputs = np.random.RandomState(0).randn(3, 2, 2)
    model = DeepLinear(widths=(5, 6), num_outputs=2, scale=1.5)
    params = jax.jit(lambda key: models.initialize(model, key, inputs))(jax.random.key(1))
    matrix = end_to_end_matrix(params)
    assert matrix.shape == (4, 2)
    outputs = models.apply_function(model)(params, inputs)
    np.testing.assert_allclose(outputs, inputs.reshape(3, 4) @ matrix, rtol=1e-12)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4 * 5 + 5 * 6 + 6 * 2
