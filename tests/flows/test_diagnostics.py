"""Diagnostics of chains: modes, decays, the size of the correction, kinks."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from driftlab.flows.diagnostics import diagnose
from tests.flows.chains import START, loss

NORM = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(START))))


def test_momentum():
    found = diagnose(optax.sgd(0.01, momentum=0.9), loss, START)
    assert found.modes == {"joint": "", "eliminate": "", "auto": ""}
    for decay in found.decays.values():
        np.testing.assert_allclose(decay, 0.9, rtol=1e-14)
    flat, unravel = jax.flatten_util.ravel_pytree(START)
    gradient = jax.grad(lambda x: loss(unravel(x)))(flat)
    hessian = jax.hessian(lambda x: loss(unravel(x)))(flat)
    ratio = jnp.linalg.norm(hessian @ gradient) / jnp.linalg.norm(gradient)
    # momentum_flows.md, 1.3: h (1 + b) / (2 (1 - b)^2) |H g| / |g|.
    np.testing.assert_allclose(found.correction, 0.01 * 1.9 / 2 / 0.01 * ratio, rtol=1e-10)
    assert found.kinks == {}


def test_a_clip_is_a_kink():
    def distance(threshold):
        tx = optax.chain(optax.clip_by_global_norm(threshold), optax.sgd(0.01))
        return diagnose(tx, loss, START).kinks["lt"]

    np.testing.assert_allclose(distance(1.5 * NORM), 0.2, rtol=1e-12)
    np.testing.assert_allclose(distance(NORM * (1 + 2e-6)), 1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("tx", "serves", "refused"),
    [
        (optax.adagrad(0.01), ["joint", "auto"], ["eliminate"]),
        (optax.sign_sgd(0.01), [], ["joint", "eliminate", "auto"]),
        (optax.contrib.galore(0.01), [], ["joint", "eliminate", "auto"]),
    ],
)
def test_what_does_not_serve_says_why(tx, serves, refused):
    found = diagnose(tx, loss, START)
    assert [mode for mode, reason in found.modes.items() if not reason] == serves
    assert all(found.modes[mode].endswith(".") for mode in refused)
    assert jnp.isnan(found.correction)
    assert found.decays == {}


def test_under_vmap():
    rates = jnp.array([0.01, 0.02])
    found = jax.vmap(lambda rate: diagnose(optax.adam(rate, eps=0.1), loss, START).correction)
    one, two = found(rates)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-12)
