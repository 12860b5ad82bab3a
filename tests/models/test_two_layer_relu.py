import jax
import jax.numpy as jnp
import numpy as np

from driftlab import models
from driftlab.models import TwoLayerReLU, output_signs

KEY = jax.random.key(0)
INPUTS = jnp.asarray(np.random.RandomState(0).randn(7, 5))


def test_outputs_equal_the_formula():
    model = TwoLayerReLU(width=40, sign_seed=3)
    params = models.initialize(model, KEY, INPUTS)
    assert jax.tree.map(jnp.shape, params) == {"kernel": (5, 40)}
    signs = output_signs(40, 1, 3)[:, 0]
    rows = np.asarray(params["kernel"]).T
    expected = [
        sum(a * max(w @ x, 0) for a, w in zip(signs, rows, strict=True)) / np.sqrt(40)
        for x in np.asarray(INPUTS)
    ]
    outputs = models.apply_function(model)(params, INPUTS)
    assert outputs.shape == (7, 1)
    np.testing.assert_allclose(outputs[:, 0], expected, rtol=1e-12)


def test_gradient_equals_that_of_du_et_al():
    model = TwoLayerReLU(width=6)
    params = models.initialize(model, KEY, INPUTS)
    targets = jnp.arange(7.0)
    loss = models.squared_error(models.apply_function(model))
    gradient = jax.grad(loss)(params, (INPUTS, targets))["kernel"]
    active = (INPUTS @ params["kernel"] >= 0).astype(float)
    residual = models.apply_function(model)(params, INPUTS)[:, 0] - targets
    signs = output_signs(6, 1, 0)[:, 0]
    # The loss here is a mean over 7 examples where the paper has a sum.
    expected = jnp.einsum("i,id,ir,r->dr", residual, INPUTS, active, signs) / np.sqrt(6) / 7
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_signs_are_fixed_by_their_seed_alone():
    signs = output_signs(1000, 2, 0)
    np.testing.assert_array_equal(np.unique(signs), [-1, 1])
    assert abs(signs.mean()) < 0.1
    np.testing.assert_array_equal(signs, output_signs(1000, 2, 0))
    assert not np.array_equal(signs, output_signs(1000, 2, 1))


def test_initial_outputs_have_the_moments_of_rectified_normals():
    inputs = INPUTS / jnp.linalg.norm(INPUTS, axis=1, keepdims=True)
    model = TwoLayerReLU(width=64)
    apply = models.apply_function(model)
    keys = jax.random.split(KEY, 400)
    run = jax.jit(jax.vmap(lambda key: apply(models.initialize(model, key, inputs), inputs)))
    outputs = run(keys)
    # The rectifier of a standard normal has mean 1 / sqrt(2 pi) and second moment 1 / 2.
    mean = output_signs(64, 1, 0).sum() / np.sqrt(64 * 2 * np.pi)
    np.testing.assert_allclose(jnp.mean(outputs), mean, atol=0.1)
    np.testing.assert_allclose(jnp.var(outputs), 0.5 - 0.5 / np.pi, rtol=0.1)
