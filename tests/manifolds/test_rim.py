"""Single precision near the rim of the ball, where the Moebius forms lose everything."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import manifolds

ROWS = 100_000
BALL = manifolds.poincare_ball()
# As far out as the single one goes, so that both stop at the same place.
EXACT = manifolds.poincare_ball(margin=1e-5)


def draw(length, seed=0, rows=ROWS):
    """Points 0 to 12.2 from the centre in 5 dimensions, and tangent vectors of a given length.

    Half of the vectors point at the centre, where cancellation is worst.
    """
    random = np.random.default_rng(seed)

    def directions():
        vectors = random.normal(size=(rows, 5))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    radii = random.uniform(0, 12.2, size=(rows, 1))
    x = directions() * np.tanh(radii / 2)
    v = np.where(random.uniform(size=(rows, 1)) < 0.5, -x / np.abs(x).max(1)[:, None], directions())
    v = v / np.linalg.norm(v, axis=1, keepdims=True) * (1 - np.sum(x**2, 1, keepdims=True)) / 2
    x = BALL.project(jnp.asarray(x, jnp.float32))
    lengths = length if np.ndim(length) == 0 else random.uniform(*length, size=(rows, 1))
    return x, jnp.asarray(v * lengths, jnp.float32)


def dot(u, v):
    return jnp.sum(u * v, axis=-1, keepdims=True)


def moebius_add(x, y):
    above = (1 + 2 * dot(x, y) + dot(y, y)) * x + (1 - dot(x, x)) * y
    return above / (1 + 2 * dot(x, y) + dot(x, x) * dot(y, y))


def naive_exp(x, v):
    norm = jnp.sqrt(dot(v, v))
    return moebius_add(x, jnp.tanh(norm / (1 - dot(x, x))) * v / norm)


def naive_transport(x, y, v):
    """The gyration `gyr[y, -x] v`, by its definition in three additions."""
    scale = (1 - dot(y, y)) / (1 - dot(x, x))
    inner = moebius_add(y, moebius_add(-x, scale * v))
    return moebius_add(-moebius_add(y, -x), inner)


def wide(*arrays):
    return tuple(a.astype(jnp.float64) for a in arrays)


@cache
def exp_errors(length):
    """Distances of float32 ends from the float64 one: ours, and of the Moebius form."""

    @jax.jit
    def errors(x, v):
        end = EXACT.exp(*wide(x, v))
        return [EXACT.distance(*wide(f(x, v)), end) for f in (BALL.exp, naive_exp)]

    return [np.asarray(e) for e in errors(*draw(length))]


# Of 100,000 rows: the median and the 99th percentile (riemannian_a2grad.md, A1, whose points are
# other random ones: twice its numbers; it has no median for steps of 12).
@pytest.mark.parametrize(("length", "median", "p99"), [(1.0, 7e-6, 6e-3), (12.0, 3.2e-2, 3.2e-2)])
def test_the_exponential_map_keeps_its_digits(length, median, p99):
    ours, naive = exp_errors(length)
    assert np.isfinite(ours).all()
    assert np.median(ours) < median
    assert np.quantile(ours, 0.99) < p99
    if length == 12:
        # Rows that are not in the ball any more have no distance either.
        assert np.mean(~np.isfinite(naive)) > 0.02
    else:
        assert np.median(naive) > 1.5 * np.median(ours)


def test_transport_keeps_its_digits():
    x, u = draw((0.01, 1.0), seed=1)
    _, v = draw(1.0, seed=2)

    @jax.jit
    def errors(x, u, v):
        v = v * (1 - dot(x, x))
        y = BALL.exp(x, u)
        exact = EXACT.parallel_transport(*wide(x, y, v))
        size = EXACT.norm(*wide(y), exact)

        def error(moved):
            return EXACT.norm(*wide(y), moved - exact) / size

        return error(BALL.parallel_transport(x, y, v)), error(naive_transport(x, y, v))

    ours, naive = (np.asarray(e) for e in errors(x, u, v))
    assert np.isfinite(ours).all()
    assert np.median(ours) < 6e-6
    assert np.quantile(ours, 0.99) < 4.6e-3
    assert np.mean(~(naive < 1)) > 0.03


def test_short_steps_are_not_lost_in_the_difference():
    x, v = draw(1e-6, seed=3)

    @jax.jit
    def errors(x, v):
        exact = EXACT.exp_update(*wide(x, v))

        def error(update):
            return jnp.linalg.norm(update - exact, axis=1) / jnp.linalg.norm(exact, axis=1)

        return error(BALL.exp_update(x, v)), error(naive_exp(x, v) - x)

    ours, naive = (np.median(e) for e in errors(x, v))
    assert ours < 3e-7
    assert naive > 0.5


def test_nothing_overflows_and_no_derivative_does():
    x, v = draw((0.0, 20.0), seed=4)
    y, _ = draw(1.0, seed=5)
    w = jnp.roll(v, 1, axis=0) * (1 - dot(x, x)) / (1 - dot(jnp.roll(x, 1, 0), jnp.roll(x, 1, 0)))

    @jax.jit
    def finite(x, y, v, w):
        functions = {
            "exp": lambda x, v: BALL.exp(x, v),
            "retract": lambda x, v: BALL.retract(x, v),
            "log": lambda x, v: BALL.log(x, y),
            "distance": lambda x, v: BALL.distance(x, y),
            "transport": lambda x, v: BALL.parallel_transport(x, BALL.exp(x, v), w),
            "norm": lambda x, v: BALL.norm(x, v),
        }
        found = {}
        for name, function in functions.items():
            value, pull = jax.vjp(function, x, v)
            found[name] = [jnp.isfinite(a).all() for a in (value, *pull(jnp.ones_like(value)))]
        inside = [BALL.contains(BALL.exp(x, v)).all(), BALL.contains(BALL.retract(x, v)).all()]
        return found, inside

    found, inside = finite(x, y, v, w)
    assert all(inside)
    for name, answers in found.items():
        assert all(answers), name


def test_steps_at_the_rim_end_at_the_margin():
    x = BALL.project(jnp.full((1, 3), 5.0, jnp.float32))
    np.testing.assert_allclose(np.linalg.norm(x), 1 - 1e-5, rtol=2e-7)
    for step in (BALL.exp, BALL.retract):
        np.testing.assert_allclose(step(x, x), x, rtol=3e-7)  # an ulp, of the addition
    # Half the curvature, a larger ball.
    large = manifolds.poincare_ball(-0.5, margin=1e-3).project(jnp.full((1, 3), 5.0))
    np.testing.assert_allclose(np.linalg.norm(large), np.sqrt(2) * (1 - 1e-3), rtol=1e-12)


def test_the_hyperboloid_far_out():
    """x_0 is computed anew, so that points 10 from the centre stay points."""
    space = manifolds.hyperboloid()
    keys = jax.random.split(jax.random.key(0), 2)
    vectors = jax.random.normal(keys[0], (10_000, 5), jnp.float32).at[:, 0].set(0)
    vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    radii = jax.random.uniform(keys[1], (10_000, 1), jnp.float32, 0.01, 10.0)
    centre = jnp.zeros_like(vectors).at[:, 0].set(1)

    @jax.jit
    def far(vectors):
        outside = space.exp(centre, radii * vectors)
        length = space.distance(centre, outside) - radii[:, 0]
        # Tangent vectors lose the square of that: from 5 on their length is noise.
        x = space.exp(centre, 0.3 * radii * vectors)
        y = jnp.roll(x, 1, axis=0)
        v = space.log(x, y)
        there = space.exp(x, v)
        finite = [jnp.isfinite(a).all() for a in (x, v, there, space.parallel_transport(x, y, v))]
        return finite, [space.contains(points).all() for points in (outside, x, there)], length

    finite, on, length = far(vectors)
    assert all(finite)
    assert all(on)
    # A chord is the difference of squares as large as cosh(r)^2.
    np.testing.assert_allclose(length, 0, atol=np.finfo(np.float32).eps * np.cosh(10))
