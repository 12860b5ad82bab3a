"""The distribution against 50-digit values, closed forms, brackets, SciPy and its own samples."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from driftlab.measures import von_mises_fisher as vmf
from driftlab.measures.bessel import bessel_ratio
from driftlab.measures.von_mises_fisher_samples import (
    entropy,
    fit,
    log_density,
    relative_entropy,
    sample,
)

# Rows of d, kappa, log 0F1, A_d, 1 - A_d; see von_mises_fisher_values.py for how they were made.
ROWS = np.loadtxt(Path(__file__).parent / "von_mises_fisher_values.csv", delimiter=",")
DIMENSIONS = sorted({int(row[0]) for row in ROWS})


def table(dimension):
    return ROWS[ROWS[:, 0] == dimension, 1:].T


@partial(jax.jit, static_argnums=1)
def everything(kappa, dimension):
    """Values, derivatives by AD, and the round trip to kappa."""
    partition = jax.vmap(jax.value_and_grad(lambda k: vmf.log_partition(k, dimension)))(kappa)
    ratio = jax.vmap(jax.value_and_grad(lambda k: vmf.mean_resultant(k, dimension)))(kappa)
    complement = vmf.mean_resultant_complement(kappa, dimension)
    square = complement * (1 + ratio[0])
    banerjee = vmf.banerjee_concentration(ratio[0], dimension, square)
    back = vmf.concentration_from_resultant(ratio[0], dimension, square)
    return partition, ratio, complement, banerjee, back


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_all_regimes_against_50_digits(dimension):
    """d = 2 to 1e8, kappa = 1e-6 d to 1e4 d, far inside the errors of any published expansion."""
    kappa, log_partition, ratio, complement = table(dimension)
    partition, resultant, far, banerjee, back = everything(jnp.asarray(kappa), dimension)
    np.testing.assert_allclose(partition[0], log_partition, rtol=2e-15)
    np.testing.assert_allclose(resultant[0], ratio, rtol=2e-15)
    # The recurrence for small d loses up to (2 * 64 + 1) / (d - 1) roundings for large kappa.
    lost = 6e-16 + 2e-14 / (dimension - 1)
    np.testing.assert_allclose(far, complement, rtol=lost)
    # d/dkappa log 0F1 = A_d: the left by AD through one expansion, the right by another.
    np.testing.assert_allclose(partition[1], ratio, rtol=4e-15)
    # 1 - A^2 - (d-1) A / kappa has digits only where it is not a small difference.
    slope = complement * (1 + ratio) - (dimension - 1) * ratio / kappa
    scale = np.maximum(complement * (1 + ratio), (dimension - 1) * ratio / kappa)
    np.testing.assert_allclose(resultant[1] / scale, slope / scale, atol=2e-15, rtol=0)
    # The complement's error twice: of the data here, and of the solver's own.
    np.testing.assert_allclose(back, kappa, rtol=4 * lost)
    over = dimension * (np.asarray(banerjee) / kappa - 1)
    assert over.min() > -1e-14 * dimension
    assert over.max() < 0.18
    if dimension >= 10:
        assert over.max() > 0.15


@pytest.mark.parametrize("dimension", [2, 3, 100, 10**7, 10**8])
def test_float32_keeps_its_digits(float32, dimension):
    kappa, log_partition, ratio, complement = table(dimension)
    partition, resultant, far, _, back = everything(jnp.asarray(kappa, jnp.float32), dimension)
    assert partition[0].dtype == resultant[0].dtype == far.dtype == back.dtype == jnp.float32
    np.testing.assert_allclose(partition[0], log_partition, rtol=7e-7)
    np.testing.assert_allclose(partition[1], ratio, rtol=1e-6)
    np.testing.assert_allclose(resultant[0], ratio, rtol=1e-6)
    np.testing.assert_allclose(far, complement, rtol=4e-7 + 1e-4 / (dimension - 1))
    # Newton's steps do no harm, at d = 1e7 and kappa = d / 100 either, where the usual denominator
    # 1 - A^2 - (d-1) A / kappa comes out as 6.0e-8 for 1.0e-7.
    np.testing.assert_allclose(back, kappa, rtol=1e-6 + 1e-4 / (dimension - 1))


def test_closed_forms_in_two_and_three_dimensions():
    kappa = jnp.geomspace(0.1, 600, 50)
    bessel = jnp.log(jax.scipy.special.i0e(kappa)) + kappa
    # log(i0e) + kappa is itself a difference: absolute digits.
    np.testing.assert_allclose(vmf.log_partition(kappa, 2), bessel, rtol=1e-14, atol=1e-15)
    ratio = jax.scipy.special.i1e(kappa) / jax.scipy.special.i0e(kappa)
    np.testing.assert_allclose(vmf.mean_resultant(kappa, 2), ratio, rtol=2e-15)
    sinh = kappa + jnp.log1p(-jnp.exp(-2 * kappa)) - jnp.log(2 * kappa)
    np.testing.assert_allclose(vmf.log_partition(kappa, 3), sinh, rtol=1e-14, atol=2e-15)
    langevin = 1 / jnp.tanh(kappa) - 1 / kappa
    np.testing.assert_allclose(vmf.mean_resultant(kappa, 3), langevin, rtol=1e-14, atol=3e-15)
    np.testing.assert_allclose(
        vmf.log_normalizer(kappa, 3), -jnp.log(4 * jnp.pi) - sinh, rtol=1e-14
    )


@pytest.mark.parametrize("dimension", [2, 3, 17, 1001, 10**8])
def test_brackets(dimension):
    """Amos (1974): bounds of the ratio, and so of the concentration."""
    draws = np.random.RandomState(dimension % 1000).uniform(-6, 4, 200)
    kappa = jnp.asarray(dimension * 10**draws)
    partition, (ratio, _), complement, banerjee, _ = everything(kappa, dimension)
    nu = dimension / 2 - 1
    rounding = 1 + 4e-16
    assert (ratio * rounding >= kappa / (nu + 1 + jnp.hypot(nu + 1, kappa))).all()
    assert (ratio <= rounding * kappa / (nu + 0.5 + jnp.hypot(nu + 0.5, kappa))).all()
    square = complement * (1 + ratio)
    slack = 1 + 2e-14
    assert ((dimension - 1) * ratio / square <= slack * kappa).all()
    assert (dimension * ratio / square * slack >= kappa).all()
    assert (banerjee * slack >= kappa).all()
    assert (partition[0] >= 0).all()
    np.testing.assert_allclose(ratio + complement, 1, rtol=2e-14)


@pytest.mark.parametrize("dimension", [3, 10**4])
def test_derivatives_of_every_order_at_zero(dimension):
    """log 0F1 = k^2/(2d) - k^4/(4 d^2 (d+2)) + ..., and A = k/d - k^3/(d^2 (d+2))."""
    zero = jnp.zeros(())

    @jax.jit
    def derivatives(kappa):
        partition = partial(vmf.log_partition, dimension=dimension)
        ratio = partial(vmf.mean_resultant, dimension=dimension)
        first = jax.jacfwd(ratio)  # forward: nested reverse mode takes minutes to compile
        third = jax.jacfwd(jax.jacfwd(first))
        zeros = partition(kappa), ratio(kappa), jax.grad(partition)(kappa)
        return zeros, jax.jacfwd(jax.jacfwd(partition))(kappa), first(kappa), third(kappa)

    zeros, second, first, third = derivatives(zero)
    assert zeros == (0, 0, 0)
    assert vmf.mean_resultant_complement(zero, dimension) == 1
    np.testing.assert_allclose(second, 1 / dimension, rtol=1e-12)
    np.testing.assert_allclose(first, 1 / dimension, rtol=1e-14)
    np.testing.assert_allclose(third, -6 / (dimension**2 * (dimension + 2.0)), rtol=1e-8)


@pytest.mark.parametrize("dimension", [2, 200])
def test_inverse_is_differentiable_and_increasing(dimension):
    def solve(r):
        return vmf.concentration_from_resultant(r, dimension)

    def inverse(k):
        return bessel_ratio(k, dimension / 2 - 1)

    def banerjee(r):
        return vmf.banerjee_concentration(r, dimension)

    @jax.jit
    def slopes(r):
        kappa, slope = jax.vmap(jax.value_and_grad(solve))(r)
        return kappa, slope * jax.vmap(jax.grad(inverse))(kappa), jax.vmap(jax.grad(banerjee))(r)

    r = jnp.linspace(0, 0.999, 40)
    kappa, product, slope = slopes(r)
    assert (jnp.diff(kappa) > 0).all()
    np.testing.assert_allclose(product, 1, rtol=1e-9)
    expected = (dimension * (1 + r**2) - 3 * r**2 + r**4) / (1 - r**2) ** 2
    np.testing.assert_allclose(slope, expected, rtol=1e-12)
    ends = jax.jit(jax.vmap(solve))(jnp.array([0, 1, jnp.nan]))
    np.testing.assert_array_equal(ends, [0, np.inf, np.nan])


def test_newton_s_steps_converge_as_published():
    # One step from Banerjee's leaves 1.9e-4 at kappa = d = 10, two 2.6e-8.
    resultant = vmf.mean_resultant(10.0, 10)
    one, two = (vmf.concentration_from_resultant(resultant, 10, None, n) for n in (1, 2))
    assert 1e-4 < abs(one / 10 - 1) < 3e-4
    assert 1e-9 < abs(two / 10 - 1) < 1e-7


@pytest.mark.parametrize(("dimension", "kappa"), [(3, 2.0), (10, 0.5), (10, 40.0), (200, 90.0)])
def test_agrees_with_scipy_where_scipy_works(dimension, kappa):
    mean = np.eye(dimension)[1]
    peer = scipy.stats.vonmises_fisher(mean, kappa)
    points = peer.rvs(20, random_state=np.random.RandomState(1))
    np.testing.assert_allclose(log_density(points, mean, kappa), peer.logpdf(points), rtol=1e-10)
    np.testing.assert_allclose(entropy(kappa, dimension), peer.entropy(), rtol=1e-10)
    if dimension > 100:
        return  # its fit starts at kappa = 1e-8, where its Bessel functions are 0 / 0
    _, expected = scipy.stats.vonmises_fisher.fit(points)
    np.testing.assert_allclose(fit(jnp.asarray(points)).concentration, expected, rtol=1e-6)


@pytest.mark.parametrize(("dimension", "kappa"), [(2000, 100.0), (10**4, 5e3)])
def test_finite_where_scipy_is_not(dimension, kappa):
    """SciPy 1.17.1 gives logpdf inf and entropy nan at both."""
    mean = jnp.eye(1, dimension)[0]
    at_mean = log_density(mean, mean, kappa, relative=True)
    expected = kappa - vmf.log_partition(kappa, dimension)
    np.testing.assert_allclose(at_mean, expected, rtol=1e-14)
    bound = kappa**2 / (2 * dimension)  # log 0F1 < k^2/(2d), by at most k^4/(4 d^2 (d+2))
    partition = float(vmf.log_partition(kappa, dimension))
    assert bound - kappa**4 / (4 * dimension**2 * (dimension + 2)) <= partition <= bound
    area = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
    here = float(entropy(kappa, dimension))
    np.testing.assert_allclose(area - here, relative_entropy(kappa, dimension), rtol=1e-10)
    gradient = jax.jit(jax.grad(lambda k: entropy(k, dimension)))(kappa)
    slope = jax.jit(jax.grad(lambda k: vmf.mean_resultant(k, dimension)))(kappa)
    np.testing.assert_allclose(gradient, -kappa * slope, rtol=1e-9)  # dH/dk = -k A'(k)


def test_fit_in_3000_dimensions_where_scipy_returns_nothing():
    """SciPy 1.17.1 returns kappa = 1e-8 on these samples, with a RuntimeWarning."""
    mean = jnp.eye(1, 3000)[0]
    found = jax.jit(lambda key: fit(sample(key, mean, 2000.0, 300)))(jax.random.key(0))
    # E R^2 = A^2 (n - 1) / n + 1 / n; the cosine's standard deviation is below 1 / sqrt(d).
    ratio = float(vmf.mean_resultant(2000.0, 3000))
    expected = math.sqrt(ratio**2 * 299 / 300 + 1 / 300)
    np.testing.assert_allclose(found.resultant, expected, atol=5 / math.sqrt(3000 * 300))
    np.testing.assert_allclose(
        found.concentration,
        vmf.concentration_from_resultant(float(found.resultant), 3000),
        rtol=1e-12,
    )
    assert abs(found.mean_direction @ mean) > 0.99


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_density_integrates_to_one(dimension):
    kappa = jnp.array([0.0, 0.3, 5.0, 80.0])
    angles = jnp.linspace(0, jnp.pi, 4001)
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    if dimension == 3:
        points = jnp.pad(points, ((0, 0), (0, 1)))
    area = 2 if dimension == 2 else 2 * jnp.pi * jnp.sin(angles)
    mean = jnp.eye(dimension)[0]
    density = jnp.exp(jax.vmap(lambda k: log_density(points, mean, k))(kappa))
    area = jnp.broadcast_to(area, density.shape)
    total = jnp.trapezoid(density * area, dx=jnp.pi / 4000, axis=1)
    np.testing.assert_allclose(total, 1, rtol=1e-4)


@pytest.mark.parametrize(("dimension", "kappa"), [(2, 0.0), (3, 1.0), (10, 200.0), (1000, 300.0)])
def test_samples_have_the_moments(dimension, kappa):
    count = 20_000 if dimension < 100 else 2000
    mean = jnp.ones(dimension) / math.sqrt(dimension)
    draw = jax.jit(sample, static_argnums=3)
    points = draw(jax.random.key(5), mean, kappa, count)
    np.testing.assert_allclose(jnp.linalg.norm(points, axis=1), 1, rtol=1e-13)
    cosine = points @ mean
    expected = float(vmf.mean_resultant(kappa, dimension))
    variance = float(jax.jit(jax.grad(lambda k: vmf.mean_resultant(k, dimension)))(kappa))
    # Five standard errors; of the variance, with a kurtosis below 3.
    np.testing.assert_allclose(cosine.mean(), expected, atol=5 * math.sqrt(variance / count))
    np.testing.assert_allclose(cosine.var(), variance, rtol=5 * math.sqrt(2 / count))
    around = points - cosine[:, None] * mean[None]
    # Isotropic about the mean: E |x - w mu|^2 = 1 - E w^2 in d - 1 dimensions, all alike.
    each = (1 - variance - expected**2) / (dimension - 1)
    np.testing.assert_allclose(around.mean(0), 0, atol=5.5 * math.sqrt(each / count))
    per_coordinate = jnp.square(around).mean(0) / (each * (1 - 1 / dimension))
    np.testing.assert_allclose(per_coordinate, 1, atol=6 * math.sqrt(3 / count))
    np.testing.assert_array_equal(points, draw(jax.random.key(5), mean, kappa, count))


def test_samples_in_float32_and_of_odd_concentrations(float32):
    mean = jnp.eye(1, 10_000)[0]
    draw = jax.jit(jax.vmap(lambda kappa: sample(jax.random.key(0), mean, kappa, 40)))
    # NaN must not hang the rejection.
    points = draw(jnp.array([1e4, 1e5, jnp.nan, jnp.inf]))
    assert points.dtype == jnp.float32
    expected = [vmf.mean_resultant(kappa, 10_000) for kappa in (1e4, 1e5)]
    np.testing.assert_allclose(points[:2, :, 0].mean(1), jnp.stack(expected), rtol=5e-3)
    assert jnp.isnan(points[2]).all()
    np.testing.assert_allclose(points[3], jnp.broadcast_to(mean[None], (40, 10_000)), atol=1e-7)


def test_fit_is_invariant_and_keeps_its_digits_near_one():
    key = jax.random.key(2)
    points = sample(key, jnp.eye(6)[0], 4.0, 50)
    fitted = jax.jit(fit)
    first = fitted(points)
    rotation = jnp.linalg.qr(jax.random.normal(key, (6, 6)))[0]
    lengths = jax.random.uniform(key, (50, 1), minval=0.1, maxval=10)
    second = fitted(points * lengths @ rotation)
    np.testing.assert_allclose(first.concentration, second.concentration, rtol=1e-12)
    np.testing.assert_allclose(first.mean_direction @ rotation, second.mean_direction, atol=1e-12)
    np.testing.assert_allclose(1 - first.resultant**2, first.complement, rtol=1e-12)
    tight = sample(key, jnp.eye(6)[0], 1e9, 50)
    narrow = fitted(tight.astype(jnp.float32))
    # In float32 1 - R^2 would be 0 or 1.2e-7 for 5e-9. The directions' own rounding is left.
    np.testing.assert_allclose(narrow.complement, fitted(tight).complement, rtol=1e-2)
    np.testing.assert_allclose(narrow.concentration, fitted(tight).concentration, rtol=1e-2)


def test_equal_directions_are_no_error_of_rounding(float32):
    # The length of these means is 1 + 1.2e-7 in float32 (jax 0.10.2): no resultant is.
    for dimension, count in ((17, 10), (100, 7), (1000, 10)):
        direction = jax.random.normal(jax.random.key(dimension * count), (1, dimension))
        found = fit(jnp.tile(direction, (count, 1)))
        assert found.resultant <= 1
        assert found.concentration > 1e5 * dimension


def test_bad_arguments_are_refused():
    for dimension in (1, 0, 2.5, True):
        with pytest.raises(ValueError, match=r"dimension"):
            vmf.log_partition(1.0, dimension)
    with pytest.raises(ValueError, match=r"dimension=1: a direction on a line is a sign"):
        vmf.banerjee_concentration(0.5, 1)
    with pytest.raises(ValueError, match=r"concentration must be 0 or more; got -1"):
        vmf.mean_resultant(-1.0, 3)
    with pytest.raises(ValueError, match=r"from 0 to 1; got 1\.5"):
        vmf.concentration_from_resultant(1.5, 3)
    with pytest.raises(ValueError, match=r"newton_steps must be 0 or more; got -1"):
        vmf.concentration_from_resultant(0.5, 3, newton_steps=-1)
    with pytest.raises(ValueError, match=r"2 directions or more; got 1"):
        fit(jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"last axes must agree"):
        log_density(jnp.ones((2, 3)), jnp.ones(4), 1.0)
    with pytest.raises(ValueError, match=r"count must be a whole number"):
        sample(jax.random.key(0), jnp.ones(3), 1.0, 0)
    assert jnp.isnan(vmf.log_partition(jnp.nan, 7))
    assert vmf.log_partition(3, 7).dtype == jnp.float64  # a whole number is welcome
