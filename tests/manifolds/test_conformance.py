"""What every manifold's functions must satisfy together, in float64 to rounding."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.manifolds.cases import CASES, CLOSED

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
closed = pytest.mark.parametrize("case", CLOSED, ids=lambda case: case.name)
# Once for each piece of code: the other pairs of metric and retraction only combine them.
REPEATED = ("stiefel cayley", "canonical qf", "canonical polar")
distinct = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in REPEATED], ids=lambda case: case.name
)

# Rounding of a few dozen operations on numbers of size 1.
EPS = 2e-14


@cache
def points(case, dtype=np.float64):
    """Two arrays of points and two tangent vectors at the first, of length 1 and 0.5."""
    m = case.manifold

    def scaled(x, v, size):
        norm = m.norm(x, v)
        return size * v / norm.reshape(*norm.shape, *(1,) * (v.ndim - norm.ndim))

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 4)
        x, y = (m.random(key, case.shape, dtype) for key in keys[:2])
        u, w = (m.tangent(x, jax.random.normal(key, case.shape, dtype)) for key in keys[2:])
        return x, y, scaled(x, u, 1.0), scaled(x, w, 0.5)

    return draw(jax.random.key(3))


def function(a):
    """A function of an array that is smooth everywhere, and no symmetry makes simple."""
    return jnp.sum(jnp.sin(a * (1 + jnp.arange(a.size).reshape(a.shape) % 3)) + 0.3 * a**2)


def along(curve, t):
    """A curve's point, velocity and acceleration at t."""

    def velocity(t):
        return jax.jvp(curve, (t,), (jnp.ones_like(t),))[1]

    return curve(t), velocity(t), jax.jvp(velocity, (t,), (jnp.ones_like(t),))[1]


@cache
def measured(case):
    """All that the tests of one manifold look at, from one program."""
    m = case.manifold

    @jax.jit
    def measure(x, y, u, w):
        zero = jnp.zeros(())
        found = {}
        exp, retracted = m.exp(x, u), m.retract(x, u)
        found["on"] = jnp.stack([m.violation(a).max() for a in (x, y, exp, retracted)])
        start = {name: along(lambda t, f=f: f(x, t * u), zero)[1] for name, f in
                 (("exp", m.exp), ("retract", m.retract))}  # fmt: skip
        found["velocity"] = jnp.stack([start["exp"] - u, start["retract"] - u])
        found["tangent"] = m.tangent(x, u) - u
        g = m.gradient(x, jax.grad(function)(x))
        slope = jax.jvp(function, (x,), (u,))[1]
        found["duality"] = jnp.sum(m.inner(x, g, u)) - slope
        found["gradient is tangent"] = (m.tangent(x, g) - g) / jnp.max(jnp.abs(g))
        found["symmetric"] = m.inner(x, u, w) - m.inner(x, w, u)
        found["homogeneous"] = m.exp(m.exp(x, 0.3 * u), carried(m, x, u, 0.3)) - exp
        found["steps"] = jnp.stack(
            [jnp.abs(m.retract(x, t * u) - m.exp(x, t * u)).max() for t in (0.02, 0.01)]
        )
        t = 1e-3
        second = sum(m.retract_update(x, s * u) - m.exp_update(x, s * u) for s in (t, -t))
        found["acceleration"] = m.retraction_acceleration(x, u)
        found["acceleration by differences"] = second / t**2
        found["geodesic"] = geodesic_residual(case, x, u)
        found["moved"] = m.vector_transport(x, exp, w)
        found["moved is tangent"] = m.tangent(exp, found["moved"]) - found["moved"]
        projected = m.project(x + 0.01 * w)
        found["projection"] = jnp.stack([m.project(x) - x, m.project(projected) - projected])
        found["projected"] = m.violation(projected).max()
        return found

    return measure(*points(case))


def carried(m, x, u, t):
    """The geodesic's velocity at time t, of what is left of its unit of time."""
    return (1 - t) * along(lambda t: m.exp(x, t * u), jnp.asarray(t))[1]


def geodesic_residual(case, x, u):
    """0 along geodesics: the equation of each metric, by derivatives of the curve."""
    m = case.manifold
    c, v, a = along(lambda t: m.exp(x, t * u), jnp.asarray(0.7))
    if case.metric == "embedded":
        return m.tangent(c, a)
    if case.metric == "canonical":
        t = lambda matrix: jnp.swapaxes(matrix, -1, -2)  # noqa: E731
        turned = t(c) @ v
        return a + v @ t(v) @ c + c @ (turned @ turned + t(v) @ v)
    if case.metric == "chart":
        # Euler and Lagrange's equation of the energy |v|^2 / 2.
        def energy(c, v):
            return jnp.sum(m.inner(c, v, v)) / 2

        momentum = jax.jvp(lambda c, v: jax.grad(energy, 1)(c, v), (c, v), (v, a))[1]
        return momentum - jax.grad(energy)(c, v)
    return jnp.zeros(())


def scale(case):
    return EPS * case.loss


@each
def test_maps_end_on_the_manifold_and_leave_with_their_velocity(case):
    found = measured(case)
    assert (found["on"] <= 1).all()
    np.testing.assert_allclose(found["velocity"], 0, atol=scale(case))
    np.testing.assert_allclose(found["tangent"], 0, atol=scale(case))


@each
def test_the_gradient_is_dual_to_the_differential_in_the_metric(case):
    found = measured(case)
    np.testing.assert_allclose(found["duality"], 0, atol=10 * scale(case))
    np.testing.assert_allclose(found["gradient is tangent"], 0, atol=10 * scale(case))
    np.testing.assert_array_equal(found["symmetric"], 0)


@each
def test_the_exponential_map_is_geodesic(case):
    found = measured(case)
    # Second derivatives, of numbers up to 100.
    np.testing.assert_allclose(found["geodesic"], 0, atol=100 * scale(case))
    np.testing.assert_allclose(found["homogeneous"], 0, atol=10 * scale(case))


@each
def test_the_retraction_has_its_order(case):
    found = measured(case)
    if case.retraction_order == float("inf"):
        np.testing.assert_array_equal(found["steps"], 0)
        return
    order = np.log2(found["steps"][0] / found["steps"][1])
    np.testing.assert_allclose(order, case.retraction_order, atol=0.1)
    second_order = case.retraction_order > 2.5
    size = np.abs(found["acceleration"]).max()
    assert size < 1e-12 if second_order else size > 0.1


@each
def test_the_retraction_s_acceleration_is_the_difference_s(case):
    found = measured(case)
    np.testing.assert_allclose(
        found["acceleration by differences"], found["acceleration"], rtol=1e-4, atol=1e-4
    )


@each
def test_vectors_are_transported_to_tangent_ones(case):
    np.testing.assert_allclose(measured(case)["moved is tangent"], 0, atol=10 * scale(case))


@each
def test_projection(case):
    found = measured(case)
    np.testing.assert_allclose(found["projection"], 0, atol=scale(case))
    assert found["projected"] <= 1


@each
def test_points_that_are_off_are_named(case):
    m, (x, *_) = case.manifold, points(case)
    assert m.contains(x).shape == m.inner(x, x, x).shape
    assert m.contains(x).all()
    if m.name == "euclidean":
        assert not m.contains(x * jnp.nan).any()
        return
    wrong = x.at[1].set(9.0).at[3].set(jnp.nan)
    np.testing.assert_array_equal(m.contains(wrong), [True, False, True, False, True])


@cache
def measured_closed(case):
    m = case.manifold

    @jax.jit
    def measure(x, y, u, w):
        found = {}
        log, back = m.log(x, y), m.log(y, x)
        found["there and back"] = m.exp(x, log) - y
        found["back"] = m.log(x, m.exp(x, u)) - u
        distance = m.distance(x, y)
        found["length"] = m.norm(x, log) - distance
        found["symmetric"] = distance - m.distance(y, x)
        found["unit"] = m.distance(x, m.exp(x, u)) - m.norm(x, u)
        found["zero"] = jnp.stack([m.distance(x, x).max(), jnp.abs(m.log(x, x)).max()])
        carry = m.parallel_transport
        found["isometry"] = m.inner(y, carry(x, y, u), carry(x, y, w)) - m.inner(x, u, w)
        found["log carried"] = carry(x, y, log) + back
        found["returned"] = carry(y, x, carry(x, y, u)) - u
        found["linear"] = carry(x, y, 2 * u - w) - 2 * carry(x, y, u) + carry(x, y, w)
        found["same"] = carry(x, y, u) - m.vector_transport(x, y, u)
        square = jax.grad(lambda x: jnp.sum(m.distance(x, y) ** 2) / 2)(x)
        found["gradient"] = m.gradient(x, square) + log
        t, ones = jnp.asarray(0.6), jnp.ones(())
        c, v, _ = along(lambda t: m.exp(x, t * u), t)
        moved, rate = jax.jvp(lambda t: carry(x, m.exp(x, t * u), w), (t,), (ones,))
        found["parallel"] = covariant(case, c, v, moved, rate)
        return found

    return measure(*points(case))


def covariant(case, c, v, w, rate):
    """The covariant derivative of a field w along a curve, `rate` its derivative in coordinates."""
    m = case.manifold
    if case.metric == "embedded":
        return m.tangent(c, rate)
    if case.metric == "chart" and m.name == "poincare_ball":
        # Half the derivative of the metric's logarithm: lambda_x' / lambda_x.
        p = jax.grad(lambda c: jnp.sum(jnp.log(m.inner(c, unit(c), unit(c)))) / 2)(c)
        dot = lambda a, b: jnp.sum(a * b, -1, keepdims=True)  # noqa: E731
        return rate + dot(p, v) * w + dot(p, w) * v - dot(v, w) * p
    return rate if case.metric == "chart" else jnp.zeros(())


def unit(c):
    return jnp.zeros_like(c).at[..., 0].set(1)


@closed
def test_the_logarithm_inverts_the_exponential_map(case):
    found = measured_closed(case)
    for name in ("there and back", "back", "length", "symmetric", "unit"):
        np.testing.assert_allclose(found[name], 0, atol=scale(case), err_msg=name)
    np.testing.assert_array_equal(found["zero"], 0)


@closed
def test_parallel_transport(case):
    found = measured_closed(case)
    for name in ("isometry", "log carried", "returned", "linear", "same"):
        np.testing.assert_allclose(found[name], 0, atol=10 * scale(case), err_msg=name)
    np.testing.assert_allclose(found["parallel"], 0, atol=10 * scale(case))


@closed
def test_the_gradient_of_half_the_squared_distance_is_minus_the_logarithm(case):
    np.testing.assert_allclose(measured_closed(case)["gradient"], 0, atol=10 * scale(case))


def functions(case):
    """Each public function on `(x, y, u, w)`."""
    m = case.manifold
    found = {
        "inner": lambda x, y, u, w: m.inner(x, u, w),
        "factor_inner": lambda x, y, u, w: m.factor_inner(x, u, w),
        "norm": lambda x, y, u, w: m.norm(x, u),
        "gradient": lambda x, y, u, w: m.gradient(x, w),
        "tangent": lambda x, y, u, w: m.tangent(x, y),
        "exp": lambda x, y, u, w: m.exp(x, u),
        "retract": lambda x, y, u, w: m.retract(x, u),
        "vector_transport": lambda x, y, u, w: m.vector_transport(x, y, u),
        "project": lambda x, y, u, w: m.project(y),
        "violation": lambda x, y, u, w: m.violation(x),
        "acceleration": lambda x, y, u, w: m.retraction_acceleration(x, u),
    }
    if case in CLOSED:
        found["log"] = lambda x, y, u, w: m.log(x, y)
        found["distance"] = lambda x, y, u, w: m.distance(x, y)
        found["parallel_transport"] = lambda x, y, u, w: m.parallel_transport(x, y, u)
    return found


@distinct
def test_types_shapes_lanes_and_single_precision(case):
    args = points(case)

    @jax.jit
    def everything(args, single):
        whole = {name: f(*args) for name, f in functions(case).items()}
        # Each lane sees one point, without the leading axis.
        lanes = {name: jax.vmap(f)(*args) for name, f in functions(case).items()}
        narrow = {name: f(*single) for name, f in functions(case).items()}
        return whole, lanes, narrow

    whole, lanes, narrow = everything(args, tuple(a.astype(np.float32) for a in args))
    for name, value in whole.items():
        np.testing.assert_allclose(lanes[name], value, rtol=1e-12, atol=1e-13, err_msg=name)
        assert narrow[name].dtype == np.float32, name
        assert narrow[name].shape == value.shape, name
        if name != "violation":
            atol = 5e-6 * case.loss
            np.testing.assert_allclose(narrow[name], value, rtol=1e-4, atol=atol, err_msg=name)
        if name not in ("inner", "norm", "violation", "distance", "factor_inner"):
            assert value.shape == case.shape, name
    assert np.broadcast_shapes(whole["factor_inner"].shape, case.shape) == case.shape
    for drawn in points(case, np.float32):
        assert (drawn.shape, drawn.dtype) == (case.shape, jnp.float32)


@distinct
def test_derivatives_are_finite_where_nothing_moves(case):
    m, (x, *_) = case.manifold, points(case)

    @jax.jit
    def derivatives(x):
        zero = jnp.zeros_like(x)
        found = {
            "exp": jax.grad(lambda x, v: function(m.exp(x, v)), (0, 1))(x, zero),
            "retract": jax.grad(lambda x, v: function(m.retract(x, v)), (0, 1))(x, zero),
            "norm": jax.grad(lambda v: jnp.sum(m.norm(x, v)))(zero),
            "transport": jax.grad(lambda x, y: function(m.vector_transport(x, y, zero)), (0, 1))(
                x, x
            ),
        }
        if case in CLOSED:
            found["distance"] = jax.grad(lambda x, y: jnp.sum(m.distance(x, y)), (0, 1))(x, x)
            found["log"] = jax.grad(lambda x, y: function(m.log(x, y)), (0, 1))(x, x)
        return found

    found = derivatives(x)
    for name, value in found.items():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(value)), name
    expected = jax.grad(function)(x)
    # At v = 0 both maps are the identity, in v along the tangent space.
    for name in ("exp", "retract"):
        tangential = m.gradient(x, found[name][1] - expected)
        np.testing.assert_allclose(tangential, 0, atol=10 * scale(case), err_msg=name)
    np.testing.assert_array_equal(found["norm"], 0)
    if case in CLOSED:
        np.testing.assert_array_equal(found["distance"], np.zeros((2, *case.shape)))
