"""The problems on which fields are compared with what they model, in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from driftlab import data

# rosca.md, 1.4: two parameters, Hessian's eigenvalues 1.76252 and 6.06748 at the start.
toy = data.problems.perturbed_rosenbrock()


@cache
def digits_network():
    """500 digits scaled to [0, 1], mean-centred; a 64-16-10 tanh network with cross-entropy."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.data[:500] / 16.0
    images = jnp.asarray(images - images.mean(0))
    labels = jax.nn.one_hot(digits.target[:500], 10, dtype=images.dtype)
    random = np.random.default_rng(0)
    params = {
        "w1": jnp.asarray(random.normal(size=(64, 16)) / 8.0),
        "b1": jnp.zeros((16,), images.dtype),
        "w2": jnp.asarray(random.normal(size=(16, 10)) / 4.0),
        "b2": jnp.zeros((10,), images.dtype),
    }

    def loss(params):
        hidden = jnp.tanh(images @ params["w1"] + params["b1"][None])
        logits = hidden @ params["w2"] + params["b2"][None]
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=1))

    return loss, params
