"""Stability coefficients against their definitions, and the guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab.flows.stability_coefficients import (
    coefficient_series,
    principal_coefficient,
    truncated_coefficient,
)

# rosca.md, 2.1.
TABLE = {
    -1.0: -0.693147,
    0.0: -1.0,
    0.5: -1.386294,
    0.9: -2.558428,
    1.5: -0.462098 + 2.094395j,
    1.9: -0.055453 + 1.653470j,
    2.0: 1.570796j,
    2.1: 0.045386 + 1.495997j,
    3.0: 0.231049 + 1.047198j,
}


def test_the_table():
    found = principal_coefficient(jnp.array(list(TABLE)))
    np.testing.assert_allclose(found, list(TABLE.values()), atol=5e-7)
    assert found.dtype == jnp.complex128


def test_low_orders():
    z = jnp.array([-2.0, 0.0, 0.5, 3.0])
    np.testing.assert_array_equal(truncated_coefficient(z, 1), -np.ones(4))
    np.testing.assert_allclose(truncated_coefficient(z, 2), -(1 + z / 2), rtol=1e-15)
    np.testing.assert_allclose(truncated_coefficient(z, 3), -(1 + z / 2 + z**2 / 3), rtol=1e-15)
    assert truncated_coefficient(z.astype(jnp.float32), 3).dtype == jnp.float32


@pytest.mark.parametrize("momentum", [None, 0.5, 0.9])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_truncation_is_the_series(order, momentum):
    p = 1.0 if momentum is None else 1 - momentum
    z = 1e-3 * p**2 * jnp.array([1.0, 0.5, 0.25])
    rest = principal_coefficient(z, momentum).real - truncated_coefficient(z, order, momentum)
    orders = np.diff(np.log(np.abs(rest))) / np.log(0.5)
    np.testing.assert_allclose(orders, order, atol=0.01)


def test_regions():
    z = jnp.linspace(-3.0, 4.0, 701)
    alpha = principal_coefficient(z)
    assert (alpha.imag[z < 1 - 1e-9] == 0).all()
    np.testing.assert_allclose(alpha.imag[z > 1 + 1e-9], np.pi / z[z > 1 + 1e-9], rtol=1e-14)
    assert (alpha.real[z < 2 - 1e-9] < 0).all()
    assert (alpha.real[z > 2 + 1e-9] > 0).all()
    assert abs(principal_coefficient(2.0).real) < 1e-15


def test_digits_are_kept_at_both_ends():
    z = 10.0 ** -np.arange(1.0, 300.0, 7)
    np.testing.assert_allclose(principal_coefficient(z).real, np.log1p(-z) / z, rtol=1e-14)
    np.testing.assert_allclose(principal_coefficient(-z).real, -np.log1p(z) / z, rtol=1e-14)
    # log(1 - i z) / (i z) = -atan(z) / z - i log(1 + z^2) / (2 z)
    turned = principal_coefficient(1j * z)
    np.testing.assert_allclose(turned.real, -np.arctan(z) / z, rtol=1e-14)
    np.testing.assert_allclose(turned.imag, -np.log1p(z**2) / 2 / z, rtol=1e-14, atol=1e-150)
    w = 2.0 ** -np.arange(1.0, 52.0)  # 1 - w is exact
    np.testing.assert_allclose(principal_coefficient(1 - w).real, np.log(w) / (1 - w), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_guarded_at_one(dtype):
    alpha = principal_coefficient(jnp.ones((), dtype))
    np.testing.assert_allclose(alpha, np.log(jnp.finfo(dtype).eps), rtol=1e-6)
    assert jnp.isfinite(principal_coefficient(jnp.zeros((), dtype), 0.0))
    assert alpha.real.dtype == dtype


def test_analytic_around_the_real_axis():
    """The principal branch jumps by 2 pi / z here, and a flow's eigenvalues lie on both sides."""
    z = jnp.array([1.2, 1.5, 2.5])
    on = principal_coefficient(z)
    for nudge in (1e-12, -1e-12, 0.0, -0.0):
        near = principal_coefficient(jax.lax.complex(z, jnp.full_like(z, nudge)))
        np.testing.assert_allclose(near, on, atol=1e-10)
    # Away from the cut it is the logarithm of 1 - z.
    z = jnp.array([0.3 + 0.5j, 2.0 - 1.0j, -1.0 - 2.0j, 1.5 + 0.2j])
    np.testing.assert_allclose(jnp.exp(z * principal_coefficient(z)), 1 - z, rtol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_momentum_is_the_larger_root_of_heavy_ball(momentum):
    z = jnp.linspace(-1.0, 5.0, 1201)
    mu = jnp.exp(z * principal_coefficient(z, momentum))
    np.testing.assert_allclose(mu**2 - (1 + momentum - z) * mu + momentum, 0, atol=2e-13)
    assert (jnp.abs(mu) >= momentum**0.5 * (1 - 1e-12)).all()
    unstable = z > 2 * (1 + momentum) + 1e-9
    assert (principal_coefficient(z, momentum).real[unstable] > 0).all()
    stable = (z > 1e-9) & (z < 2 * (1 + momentum) - 1e-9)
    assert (principal_coefficient(z, momentum).real[stable] < 0).all()


def test_momentum_values():
    # rosca.md, 2.6: lambda = 0.05, h = 0.1, b = 0.5.
    np.testing.assert_allclose(
        -0.05 * principal_coefficient(0.005, 0.5).real, 0.10154498, rtol=1e-7
    )
    np.testing.assert_allclose(-0.05 * truncated_coefficient(0.005, 2, 0.5), 0.1015, rtol=1e-12)
    z = jnp.linspace(-1.0, 3.0, 37)
    np.testing.assert_allclose(
        principal_coefficient(z, 0.0), principal_coefficient(z), rtol=1e-14, atol=1e-14
    )
    traced = jax.jit(principal_coefficient)(z, 0.9)
    np.testing.assert_allclose(traced, principal_coefficient(z, 0.9), rtol=1e-12)
    np.testing.assert_allclose(principal_coefficient(0.0, 0.9), -10.0, rtol=1e-15)


def test_nan_stays_nan():
    assert jnp.isnan(principal_coefficient(jnp.nan))
    assert jnp.isnan(principal_coefficient(jnp.nan, 0.5))


def test_bad_arguments_are_refused():
    for order in (0, 4, True, 1.5):
        with pytest.raises(ValueError, match="order must be 1, 2 or 3"):
            coefficient_series(order)
    for momentum in (1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"momentum=.*in \[0, 1\)"):
            principal_coefficient(0.5, momentum)
