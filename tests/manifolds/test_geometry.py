"""What is special to one manifold: golden values, isometries, nearest points, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftlab import manifolds
from driftlab.manifolds.orthonormal import (
    exponential,
    inverse_square_root,
    orthonormal_columns,
    solve_skew,
)

BALL, SPHERE = manifolds.poincare_ball(), manifolds.sphere()
# riemannian_a2grad.md, A4.1.
X, Y, V = jnp.array([0.3, -0.2]), jnp.array([-0.1, 0.5]), jnp.array([0.05, 0.1])
RANDOM = np.random.default_rng(0)


def moebius_add(x, y, c=1.0):
    dot = lambda a, b: jnp.sum(a * b, -1, keepdims=True)  # noqa: E731
    above = (1 + 2 * c * dot(x, y) + c * dot(y, y)) * x + (1 - c * dot(x, x)) * y
    return above / (1 + 2 * c * dot(x, y) + c**2 * dot(x, x) * dot(y, y))


class TestBall:
    def test_golden_values(self):
        close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=2e-14)  # noqa: E731
        close(moebius_add(X, Y), [0.275264926337555, 0.303696045489791])
        close(BALL.distance(X, Y), 1.769532370630925)
        close(BALL.exp(X, V), [0.354497143419562, -0.102481405106522])
        close(BALL.log(X, Y), [-0.455782185522305, 0.620300248804757])
        close(BALL.parallel_transport(X, Y, V), [0.060732796378129, 0.073177825988845])
        close(BALL.norm(X, V) / jnp.linalg.norm(V), 2.298850574712644)

    @pytest.mark.parametrize("c", [1.0, 0.3, 4.0])
    def test_they_are_the_moebius_forms(self, c):
        space = manifolds.poincare_ball(-c)
        keys = jax.random.split(jax.random.key(1), 3)
        # Not too near the rim, where the Moebius forms lose digits in double precision too.
        x, y = (BALL.random(key, (50, 3), jnp.float64) / np.sqrt(c) * 0.8 for key in keys[:2])
        v = jax.random.normal(keys[2], (50, 3)) / 5
        root = np.sqrt(c)
        length = lambda a: jnp.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
        scale = lambda a: 2 / (1 - c * length(a) ** 2)  # noqa: E731
        step = jnp.tanh(root * scale(x) * length(v) / 2) * v / (root * length(v))
        np.testing.assert_allclose(space.exp(x, v), moebius_add(x, step, c), rtol=0, atol=1e-14)
        w = moebius_add(-x, y, c)
        log = 2 / (root * scale(x)) * jnp.arctanh(root * length(w)) * w / length(w)
        np.testing.assert_allclose(space.log(x, y), log, rtol=0, atol=1e-13)
        cosh = 1 + 2 * c * length(x - y) ** 2 / (1 - c * length(x) ** 2) / (1 - c * length(y) ** 2)
        np.testing.assert_allclose(
            space.distance(x, y), jnp.arccosh(cosh)[:, 0] / root, rtol=0, atol=1e-13
        )
        # gyr[y, -x] v by its definition, whose three additions lose a digit.
        gyrated = moebius_add(-moebius_add(y, -x, c), moebius_add(y, moebius_add(-x, v, c), c), c)
        moved = scale(x) / scale(y) * gyrated
        np.testing.assert_allclose(space.parallel_transport(x, y, v), moved, rtol=0, atol=1e-13)

    def test_the_derivative_of_the_exponential_map_at_zero_is_the_identity(self):
        """By the limit: masks around |v| = 0 can be finite and wrong."""
        zero = jnp.zeros(2)
        at_zero = jax.jacobian(lambda v: BALL.exp(X, v))(zero)
        np.testing.assert_allclose(at_zero, np.eye(2), atol=1e-15)
        near = jax.jacobian(lambda v: BALL.exp(X, v))(zero + 1e-9)
        np.testing.assert_allclose(near, at_zero, atol=1e-8)
        back = jax.jacobian(lambda y: BALL.log(X, y))(X)
        np.testing.assert_allclose(back, np.eye(2), atol=1e-15)

    def test_curvature_scales_lengths(self):
        """x -> 2 x takes the ball of curvature -1 to that of -1/4: lengths double."""
        half = manifolds.poincare_ball(-0.25)
        np.testing.assert_allclose(half.distance(2 * X, 2 * Y), 2 * BALL.distance(X, Y), rtol=1e-14)
        np.testing.assert_allclose(half.exp(2 * X, 2 * V), 2 * BALL.exp(X, V), rtol=1e-14)

    def test_nan_stays_nan(self):
        broken = jnp.array([jnp.nan, 0.1])
        for found in (BALL.exp(broken, V), BALL.exp(X, broken), BALL.retract(X, broken)):
            assert np.isnan(found).any()
        assert np.isnan(BALL.distance(broken, X))


@pytest.mark.parametrize("curvature", [-1.0, -0.3])
def test_ball_and_hyperboloid_are_isometric(curvature):
    ball, lorentz = manifolds.poincare_ball(curvature), manifolds.hyperboloid(curvature)

    def there(p):
        return manifolds.ball_to_hyperboloid(p, curvature)

    def push(p, v):
        return jax.jvp(there, (p,), (v,))[1]

    keys = jax.random.split(jax.random.key(2), 3)
    p, q = (ball.random(key, (20, 3), jnp.float64) for key in keys[:2])
    v = jax.random.normal(keys[2], (20, 3)) / 5

    def check(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)

    assert lorentz.contains(there(p)).all()
    check(manifolds.hyperboloid_to_ball(there(p), curvature), p)
    check(lorentz.distance(there(p), there(q)), ball.distance(p, q))
    check(lorentz.inner(there(p), push(p, v), push(p, v)), ball.inner(p, v, v))
    check(lorentz.exp(there(p), push(p, v)), there(ball.exp(p, v)))
    check(lorentz.log(there(p), there(q)), push(p, ball.log(p, q)))
    check(
        lorentz.parallel_transport(there(p), there(q), push(p, v)),
        push(q, ball.parallel_transport(p, q, v)),
    )

    def loss(p):
        return jnp.sum(jnp.sin(3 * p))

    def lifted(x):
        return loss(manifolds.hyperboloid_to_ball(x, curvature))

    check(
        lorentz.gradient(there(p), jax.grad(lifted)(there(p))),
        push(p, ball.gradient(p, jax.grad(loss)(p))),
    )


class TestSphere:
    def test_opposite_points_have_no_shortest_geodesic(self):
        x = SPHERE.project(jnp.array([1.0, 2.0, -0.5]))
        assert np.isnan(SPHERE.log(x, -x)).all()
        np.testing.assert_allclose(SPHERE.distance(x, -x), np.pi, rtol=1e-15)
        assert not np.isfinite(SPHERE.parallel_transport(x, -x, x)).any()

    def test_close_and_far_angles_keep_their_digits(self):
        x = jnp.array([1.0, 0.0, 0.0])
        for angle in (1e-9, 1e-3, 1.0, np.pi - 1e-9):
            y = jnp.array([np.cos(angle), np.sin(angle), 0.0])
            np.testing.assert_allclose(SPHERE.distance(x, y), angle, rtol=1e-14)

    def test_an_oblique_point_is_a_product_of_its_columns(self):
        oblique, keys = manifolds.oblique(), jax.random.split(jax.random.key(0), 2)
        x, y = (oblique.random(key, (2, 4, 3), jnp.float64) for key in keys)
        columns = SPHERE.distance(jnp.swapaxes(x, 1, 2), jnp.swapaxes(y, 1, 2))
        np.testing.assert_allclose(oblique.distance(x, y) ** 2, (columns**2).sum(-1), rtol=1e-14)
        assert oblique.factor_inner(x, y, y).shape == (2, 1, 3)


class TestProduct:
    space = manifolds.product([BALL, SPHERE, manifolds.euclidean()], [2, 3, 2])

    def test_pieces_are_factors(self):
        keys = jax.random.split(jax.random.key(0), 2)
        x, v = self.space.random(keys[0], (4, 7), jnp.float64), jax.random.normal(keys[1], (4, 7))
        u = self.space.tangent(x, v)
        ball, sphere = BALL.inner(x[:, :2], u[:, :2], u[:, :2]), jnp.sum(u[:, 2:5] ** 2, -1)
        factors = self.space.factor_inner(x, u, u)
        np.testing.assert_allclose(factors[:, :2], np.stack([ball, ball], 1), rtol=1e-14)
        np.testing.assert_allclose(factors[:, 2:5], np.stack([sphere] * 3, 1), rtol=1e-14)
        np.testing.assert_allclose(factors[:, 5:], u[:, 5:] ** 2, rtol=1e-14)
        whole = ball + sphere + jnp.sum(u[:, 5:] ** 2, -1)
        np.testing.assert_allclose(self.space.inner(x, u, u), whole, rtol=1e-14)
        np.testing.assert_allclose(self.space.exp(x, u)[:, :2], BALL.exp(x[:, :2], u[:, :2]))

    def test_the_last_axis_must_fit(self):
        with pytest.raises(ValueError, match=r"last axis has 6 entries; sizes=\(2, 3, 2\) make 7"):
            self.space.inner(jnp.ones((4, 6)), jnp.ones((4, 6)), jnp.ones((4, 6)))


class TestStiefel:
    def test_what_has_no_closed_form_says_so(self):
        space = manifolds.stiefel()
        x = space.random(jax.random.key(0), (4, 2), jnp.float64)
        for function in (space.log, space.distance):
            with pytest.raises(NotImplementedError, match="no closed form; use vector_transport"):
                function(x, x)
        with pytest.raises(NotImplementedError, match="parallel transport has no closed form"):
            space.parallel_transport(x, x, x)

    @pytest.mark.parametrize("metric", ["embedded", "canonical"])
    def test_square_frames_are_rotations(self, metric):
        """For p = n every geodesic is `X expm(t X^T V)`."""
        space = manifolds.stiefel(metric)
        x = space.random(jax.random.key(0), (3, 3), jnp.float64)
        v = space.tangent(x, jnp.asarray(RANDOM.normal(size=(3, 3))))
        expected = x @ jax.scipy.linalg.expm(x.T @ v)
        np.testing.assert_allclose(space.exp(x, v), expected, atol=2e-14)

    @pytest.mark.parametrize("retraction", ["qf", "polar", "cayley"])
    def test_one_column_is_a_sphere(self, retraction):
        space = manifolds.stiefel(retraction=retraction)
        x = SPHERE.random(jax.random.key(0), (5,), jnp.float64)
        v = SPHERE.tangent(x, jnp.asarray(RANDOM.normal(size=5)))
        np.testing.assert_allclose(space.exp(x[:, None], v[:, None])[:, 0], SPHERE.exp(x, v),
                                   atol=1e-14)  # fmt: skip
        if retraction != "cayley":
            expected = SPHERE.retract(x, v)
            found = space.retract(x[:, None], v[:, None])[:, 0]
            np.testing.assert_allclose(found, expected, atol=1e-14)

    def test_the_projection_is_the_nearest_point(self):
        matrix = jnp.asarray(RANDOM.normal(size=(5, 3)))
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        found = manifolds.stiefel().project(matrix)
        np.testing.assert_allclose(found, left @ right, atol=1e-13)


class TestDenseFunctions:
    """Loops and products against LAPACK."""

    def test_the_exponential(self):
        for size in (1e-3, 1.0, 30.0):
            matrix = RANDOM.normal(size=(4, 4)) * size
            skew = jnp.asarray(matrix - matrix.T)
            expected = jax.scipy.linalg.expm(skew)
            np.testing.assert_allclose(exponential(skew), expected, atol=2e-13 * max(size, 1))

    def test_orthonormal_columns_are_qr_s_with_a_positive_diagonal(self):
        matrix = jnp.asarray(RANDOM.normal(size=(6, 4)))
        q, r = np.linalg.qr(matrix)
        expected = q * np.sign(np.diag(r))
        np.testing.assert_allclose(orthonormal_columns(matrix), expected, atol=1e-14)
        # Nearly dependent columns stay orthonormal.
        near = matrix.at[:, 1].set(matrix[:, 0] + 1e-7 * matrix[:, 1])
        q = orthonormal_columns(near)
        np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-14)

    def test_the_inverse_square_root(self):
        left, _ = np.linalg.qr(RANDOM.normal(size=(4, 4)))
        for condition in (1.0, 1e3, 1e6):
            values = np.geomspace(1, condition, 4)
            matrix = (left * values) @ left.T
            expected = (left / np.sqrt(values)) @ left.T
            # Rounding of M grows with its condition.
            np.testing.assert_allclose(
                inverse_square_root(jnp.asarray(matrix)), expected, atol=1e-14 * condition
            )

    def test_the_solution_of_cayley_s_equations(self):
        generator = RANDOM.normal(size=(4, 4))
        skew = jnp.asarray(generator - generator.T)
        right = jnp.asarray(RANDOM.normal(size=(4, 2)))
        expected = np.linalg.solve(np.eye(4) - skew, right)
        np.testing.assert_allclose(solve_skew(skew, right), expected, atol=1e-13)


class TestTrees:
    tree = {  # noqa: RUF012
        "layers": [{"kernel": jnp.ones((3, 2)) / 3, "bias": jnp.ones(2)}],
        "table": jnp.zeros((4, 2)),
    }

    def test_the_longest_path_counts(self):
        row = manifolds.euclidean(1)
        kinds = manifolds.assign({"layers": row, "layers/0/kernel": BALL}, self.tree)
        assert kinds["layers"][0]["kernel"] is BALL
        assert kinds["layers"][0]["bias"] is row
        assert kinds["table"].point_ndim == 0
        assert all(m is BALL for m in jax.tree.leaves(manifolds.assign(BALL, self.tree)))

    def test_a_part_of_a_name_is_no_path(self):
        with pytest.raises(ValueError, match="'tab', which is not there"):
            manifolds.assign({"tab": BALL}, self.tree)

    def test_gradient_and_inner_are_the_leaves_own(self):
        grads = jax.tree.map(jnp.ones_like, self.tree)
        found = manifolds.gradient({"table": BALL}, self.tree, grads)
        np.testing.assert_array_equal(found["table"], jnp.ones((4, 2)) / 4)
        total = manifolds.inner({"table": BALL}, self.tree, found, found)
        np.testing.assert_allclose(total, 8 + 8 * 4 / 16)
        single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (self.tree, found))
        tree, vectors = single
        assert manifolds.inner({"table": BALL}, tree, vectors, vectors).dtype == jnp.float32

    def test_points_that_are_off_are_named_and_traced_ones_pass(self):
        bad = {**self.tree, "table": self.tree["table"].at[2].set(jnp.array([1.0, 0.1]))}
        message = r"parameter 'table': 1 of 4 points are not on poincare_ball.*\(2,\): \[1"
        with pytest.raises(ValueError, match=message):
            manifolds.check_points({"table": BALL}, bad)
        jax.jit(lambda tree: manifolds.check_points({"table": BALL}, tree))(bad)
        with pytest.raises(ValueError, match="'layers/0/bias'"):
            manifolds.check_points({"layers/0/bias": SPHERE}, bad)
