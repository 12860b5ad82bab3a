"""Small problems that the sweep's tests share; also imported by the scripts they start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import driftlab


def quadratic(hparams, key):
    """Gradient descent on x^T diag(10, 1) x / 2 from (1, 1): diverges beyond lr = 0.2."""
    del key
    eigenvalues = jnp.array([10.0, 1.0])
    objective = driftlab.Objective(lambda x, batch: jnp.sum(eigenvalues * x**2) / 2)
    return driftlab.descent(optax.sgd(hparams["learning_rate"]), objective), jnp.ones(2)


def mlp(hparams, key):
    """Momentum on minibatches of a 5-7-3 tanh network on 64 examples, made from the lane's key."""
    rng = np.random.RandomState(0)
    dtype = jnp.result_type(float)
    inputs = rng.standard_normal((64, 5)).astype(dtype)
    labels = rng.randint(0, 3, 64)
    first, second = jax.random.split(key)
    params = {
        "first": jax.random.normal(first, (5, 7)) / 2,
        "bias": jnp.zeros(7),
        "second": jax.random.normal(second, (7, 3)) / 2,
    }

    def loss(params, batch):
        inputs, labels = batch
        hidden = jnp.tanh(inputs @ params["first"] + params["bias"][None])
        logits = hidden @ params["second"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    objective = driftlab.Objective(loss, (inputs, labels), driftlab.with_replacement(16))
    momentum = hparams.get("momentum", 0.9)
    rate = hparams.get("learning_rate", 0.05)
    return driftlab.descent(optax.sgd(rate, momentum), objective), params


def mortal(hparams, key):
    """Gradient descent on all 64 examples, of a lane that dies at about step `life`.

    A parameter beside the network grows to 1000 in that time and then makes the loss infinite.
    """
    _, params = mlp(hparams, key)
    dynamics, _ = mlp(hparams, key)
    network = dynamics.observe(dynamics.init(params, key)).objective
    growth = jnp.expm1(jnp.log(1000.0) / hparams["life"]) / 0.1

    def loss(params, batch):
        size = jax.lax.stop_gradient(params["size"])
        pull = growth * (size * size - params["size"] * size)  # 0, with gradient -growth * size
        return network.loss(params["network"], batch) + pull + jnp.where(size > 1000, jnp.inf, 0)

    objective = driftlab.Objective(loss, network.data)
    params = {"network": params, "size": jnp.ones(())}
    return driftlab.descent(optax.sgd(0.1), objective), params


def parameters(snapshot):
    """A vector measure: theta_k."""
    return jax.flatten_util.ravel_pytree(snapshot.params)[0]


def _drifted(snapshot, memory):
    """How far theta_k is from where it was at the measure's last record."""
    theta = parameters(snapshot)
    return jnp.linalg.norm(theta - memory), theta


# A measure with a memory, whose values say which record it remembers.
moved = driftlab.measures.Tracker(
    "moved", lambda params: jax.flatten_util.ravel_pytree(params)[0], _drifted
)

MEASURES = (driftlab.measures.loss, driftlab.measures.gradient_norm, parameters)


def assert_same_bits(first, second, variables=None):
    """Every variable of two datasets has the same type and bits (NaN equals NaN)."""
    names = variables or sorted(set(first.data_vars) | set(second.data_vars))
    assert names
    for name in names:
        a, b = first[name].values, second[name].values
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
