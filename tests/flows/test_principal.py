"""The principal flow against gradient descent, and its routes against eigendecompositions."""

from functools import cache

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from driftlab import Objective, full_batch
from driftlab.flows import gradient_flow, observed_orders, solve
from driftlab.flows.principal import principal_directions, principal_flow
from driftlab.flows.principal_complex import PrincipalState
from driftlab.flows.stability_coefficients import principal_coefficient, truncated_coefficient

# rosca.md, 2.2: eigenvalues 0.28953 and 2.21047.
MATRIX = jnp.array([[2.0, 0.6], [0.6, 0.5]])
START = jnp.array([-0.35, -0.2])
TOP = float(np.linalg.eigvalsh(MATRIX)[-1])
SCALED = np.array([0.3, 0.9, 1.3, 1.8, 1.999, 2.2])


def bowl(params):
    return params @ MATRIX @ params / 2


@cache
def network():
    """300 digits of 4 x 4 blocks as signs, a tanh network of 217 parameters, trained."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[:300].reshape(300, 4, 2, 4, 2).mean((2, 4)).reshape(300, 16) / 16
    images = jnp.asarray(2 * (images - images.mean(0)))
    targets = jnp.asarray(np.where(digits.target[:300] >= 5, 1.0, -1.0))
    random = np.random.default_rng(0)
    params = {
        "w1": jnp.asarray(random.normal(size=(16, 12)) / 4),
        "b1": jnp.zeros(12),
        "w2": jnp.asarray(random.normal(size=12) / 12**0.5),
        "b2": jnp.zeros(()),
    }

    def loss(params, batch=(images, targets)):
        inputs, signs = batch
        hidden = jnp.tanh(inputs @ params["w1"] + params["b1"][None])
        return jnp.mean(jnp.square(hidden @ params["w2"] + params["b2"] - signs)) / 2

    @jax.jit
    def trained(params, count):
        def step(_, params):
            return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params))

        return jax.lax.fori_loop(0, count, step, params)

    return loss, trained(params, 60), trained(params, 3000), (images, targets)


def spectrum(loss, params):
    """The gradient and the Hessian's eigendecomposition, dense, as the independent route."""
    flat, unflatten = ravel_pytree(params)
    gradient = jax.grad(lambda x: loss(unflatten(x)))
    values, vectors = np.linalg.eigh(jax.jit(jax.jacfwd(gradient))(flat))
    return np.asarray(jax.jit(gradient)(flat)), values, vectors


def flattened(tree):
    return np.asarray(ravel_pytree(tree)[0])


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def slope_at(flow, params, args=None):
    """The field at real parameters, as one complex vector."""
    state = jax.jit(lambda p: flow.field(0.0, flow.init(p), args))(params)
    if isinstance(state, PrincipalState):
        return flattened(state.real) + 1j * flattened(state.imaginary)
    return flattened(state)


class TestQuadratic:
    @pytest.mark.parametrize(
        "options",
        [
            {"method": "dense"},
            {"method": "krylov", "continuation": "linearized"},
        ],
        ids=lambda options: "-".join(map(str, options.values())),
    )
    def test_passes_through_the_iterates_of_descent(self, options):
        def error(h):
            flow = principal_flow(bowl, h, **options)
            solver = diffrax.Dopri8()
            solved = solve(flow.field, flow.init(START), 20 * h, rtol=1e-12, solver=solver)
            iterate = jax.lax.fori_loop(0, 20, lambda _, x: x - h * MATRIX @ x, START)
            gap = jnp.linalg.norm(flow.params(solved.y) - iterate) / jnp.linalg.norm(iterate)
            imaginary = jnp.linalg.norm(solved.y.imaginary) / jnp.linalg.norm(iterate)
            return gap, imaginary, solved.result

        gap, imaginary, result = jax.jit(lambda rates: jax.lax.map(error, rates))(SCALED / TOP)
        assert (result == 0).all()
        assert gap.max() < 1e-10, gap
        assert imaginary.max() < 1e-10, imaginary

    def test_the_real_part_has_the_size_of_each_component(self):
        h = 1.8 / TOP
        flow = principal_flow(bowl, h, method="dense", state="real")
        solved = jax.jit(lambda y: solve(flow.field, y, 7 * h, rtol=1e-12))(START)
        values, vectors = np.linalg.eigh(MATRIX)
        iterate = (1 - h * values) ** 7 * (vectors.T @ START)
        np.testing.assert_allclose(np.abs(vectors.T @ solved.y), np.abs(iterate), rtol=1e-9)
        assert np.linalg.norm(vectors @ iterate - solved.y) > 0.1  # the sign is lost

    @pytest.mark.filterwarnings("ignore:Complex dtype support:UserWarning")
    def test_complex_arrays(self):
        h = 1.8 / TOP
        flow = principal_flow(bowl, h, state="complex")
        solved = jax.jit(lambda y: solve(flow.field, y, 5 * h))(flow.init(START))
        iterate = np.linalg.matrix_power(np.eye(2) - h * MATRIX, 5) @ START
        np.testing.assert_allclose(flow.params(solved.y), iterate, rtol=1e-6)
        assert flow.params(solved.y).dtype == jnp.float64

    def test_momentum_passes_through_those_of_heavy_ball(self):
        """h lambda_1 = 0.05: settled; 2.9: a conjugate pair; 3.7: unstable; b = 0.5."""
        b, values, vectors = 0.5, *np.linalg.eigh(MATRIX)

        def solved(h):
            flow = principal_flow(bowl, h, momentum=b, method="dense", continuation="linearized")
            return flow.params(solve(flow.field, flow.init(START), 4 * h, rtol=1e-11).y)

        rates = np.array([0.05, 2.9, 3.7]) / TOP
        found = jax.jit(lambda rates: jax.lax.map(solved, rates))(rates)
        for h, end in zip(rates, found, strict=True):
            root = np.exp(h * values * principal_coefficient(h * values, b))
            here = vectors.T @ START
            before = np.real(here / root)
            for _ in range(4):
                before, here = here, (1 + b - h * values) * here - b * before
            np.testing.assert_allclose(vectors.T @ end, here, rtol=1e-8, atol=1e-10)

    def test_learning_rates_are_lanes(self):
        def slope(h):
            return principal_flow(bowl, h).field(0.0, PrincipalState(START, START), None)

        rates = jnp.array([0.1, 0.9])
        lanes = jax.jit(jax.vmap(slope))(rates)
        for index in range(2):
            lane = jax.tree.map(lambda leaf, index=index: leaf[index], lanes)
            chex.assert_trees_all_close(lane, jax.jit(slope)(rates[index]), rtol=1e-12)


def local_errors(make, rates):
    """One step of descent minus the flow over its time, on the problem of rosca.md 1.4."""
    from tests.flows.problems import toy

    def error(h):
        flow = make(toy.loss, h)
        y = flow.init(toy.initial_params)
        solved = solve(flow.field, y, h, rtol=1e-13, atol=1e-15, solver=diffrax.Dopri8())
        step = toy.initial_params - h * jax.grad(toy.loss)(toy.initial_params)
        return jnp.linalg.norm(flow.params(solved.y) - step)

    return np.asarray(jax.jit(lambda h: jax.lax.map(error, h))(jnp.asarray(rates)))


PLAIN, EXTRA = (3, (1.86e-3, 4.70e-8)), (4, (1.45e-3, 1.79e-9))


@pytest.mark.parametrize(
    ("state", "extra_term", "expected"),
    [("pair", False, PLAIN), ("pair", True, EXTRA), ("real", False, PLAIN)],
)
def test_local_order(state, extra_term, expected):
    """rosca.md, 2.3, with its errors at h = 0.1 and 0.003125."""
    order, known = expected
    rates = 0.1 / 2.0 ** np.arange(6)
    errors = local_errors(
        lambda loss, h: principal_flow(
            loss, h, method="dense", state=state, extra_term=extra_term, continuation="linearized"
        ),
        rates,
    )
    np.testing.assert_allclose(errors[[0, -1]], known, rtol=0.02)
    np.testing.assert_allclose(observed_orders(rates, errors)[-2:], order, atol=0.1)


class TestNetwork:
    def test_a_sharp_step_is_descents_own(self):
        """rosca.md, 2.4: displaced along u_0, which holds the gradient, at h lambda_0 = 1.33."""
        loss, _, params, _ = network()
        _, _, vectors = spectrum(loss, params)
        _, unflatten = ravel_pytree(params)
        shift = unflatten(jnp.asarray(0.012 * vectors[:, -1]))
        params = jax.tree.map(jnp.add, params, shift)
        gradient, values, vectors = spectrum(loss, params)
        share = (vectors[:, -1] @ gradient) ** 2 / (gradient @ gradient)
        assert 0.98 < share < 0.999
        h = 1.33 / values[-1]

        def order_two(params):
            squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(params)))
            return loss(params) + h / 4 * squares

        def error(field, y, to_params):
            solved = jax.jit(lambda y: solve(field, y, h, rtol=1e-6, atol=1e-8))(y)
            assert int(solved.result) == 0
            there = flattened(params) - h * gradient
            return np.linalg.norm(flattened(to_params(solved.y)) - there) / np.linalg.norm(
                h * gradient
            )

        reference = error(gradient_flow(order_two), params, lambda y: y)
        assert reference > 0.3
        for continuation in ("holomorphic", "linearized"):
            flow = principal_flow(loss, h, continuation=continuation, products=12)
            assert error(flow.field, flow.init(params), flow.params) < reference / 100

    def test_krylov_is_the_eigendecomposition(self):
        """rosca.md, 2.5, route 1: z_0 < 1, 12 products."""
        loss, early, _, _ = network()
        gradient, values, vectors = spectrum(loss, early)
        h = 0.9 / values[-1]
        alpha = np.asarray(principal_coefficient(h * values))
        exact = vectors @ (alpha * (vectors.T @ gradient))
        flow = principal_flow(loss, h, products=12)
        assert relative(slope_at(flow, early), exact) < 1e-6
        dense = principal_flow(loss, h, method="dense")
        assert relative(slope_at(dense, early), exact) < 1e-11
        real = principal_flow(loss, h, products=12, state="real")
        assert relative(slope_at(real, early), exact.real) < 1e-6

    def test_hybrid_in_a_hard_case(self):
        """rosca.md, 2.5, route 3: the fifth eigenvalue at z = 1.017, the sixth at 0.93."""
        loss, early, _, _ = network()
        gradient, values, vectors = spectrum(loss, early)
        h = 1.017 / values[-5]
        assert h * values[-1] > 2
        alpha = np.asarray(principal_coefficient(h * values))
        exact = vectors @ (alpha * (vectors.T @ gradient))
        hybrid = principal_flow(loss, h, method="hybrid", top=6, products=8)
        assert relative(slope_at(hybrid, early), exact) < 1e-5
        linearized = principal_flow(
            loss, h, method="hybrid", top=6, products=8, continuation="linearized"
        )
        directions = jnp.asarray(vectors[:, :-7:-1].T)
        assert relative(slope_at(linearized, early, directions), exact) < 1e-5
        krylov = principal_flow(loss, h, products=14)  # as many products, none deflated
        assert relative(slope_at(krylov, early), exact) > 1e-4

    def test_old_directions_serve(self):
        loss, early, _, _ = network()
        gradient, values, _ = spectrum(loss, early)
        old = jax.jit(principal_directions(loss, 6))(early)
        np.testing.assert_allclose(old @ old.T, np.eye(6), atol=1e-12)
        _, unflatten = ravel_pytree(early)
        moved = jax.tree.map(jnp.add, early, unflatten(-0.05 * gradient / np.linalg.norm(gradient)))
        gradient, values, vectors = spectrum(loss, moved)
        h = 1.017 / values[-4]
        alpha = np.asarray(principal_coefficient(h * values))
        exact = vectors @ (alpha * (vectors.T @ gradient))
        for method, bound in (("hybrid", 1e-4), ("top", 1e-1)):
            flow = principal_flow(loss, h, method=method, products=12)
            assert relative(slope_at(flow, moved, old), exact) < bound

    def test_the_continuations_differ_to_second_order(self):
        loss, early, _, _ = network()
        h = 0.2
        errors = []
        for size in (0.02, 0.01):
            y = PrincipalState(early, jax.tree.map(lambda leaf, s=size: s * jnp.cos(leaf), early))
            slopes = [
                jax.jit(
                    lambda y, c=c: flattened_pair(
                        principal_flow(loss, h, continuation=c).field(0.0, y, None)
                    )
                )(y)
                for c in ("holomorphic", "linearized")
            ]
            errors.append(float(jnp.linalg.norm(slopes[0] - slopes[1])))
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2, atol=0.1)

    @pytest.mark.parametrize(
        "options",
        [{"state": "real"}, {"continuation": "linearized"}, {"continuation": "holomorphic"}],
        ids=lambda options: next(iter(options.values())),
    )
    def test_an_objective_in_micro_batches_is_its_loss(self, options):
        loss, early, _, data = network()
        objective = Objective(loss, data, full_batch())
        whole = slope_at(principal_flow(loss, 0.2, products=6, **options), early)
        parts = principal_flow(objective, 0.2, products=6, batch_size=128, **options)
        np.testing.assert_allclose(slope_at(parts, early), whole, rtol=1e-9, atol=1e-12)


class TestHardCase:
    """rosca.md, 2.5: its spectrum, in 120 dimensions, and a start of 1 in every eigendirection."""

    scaled = np.concatenate(
        [
            [2.154, 1.694, 1.549, 1.017, 0.957, 0.941, 0.849, 0.711, 0.568],
            np.geomspace(0.5, 1e-3, 91),
            -np.geomspace(1e-3, 0.3, 20),
        ]
    )
    vectors = np.linalg.qr(np.random.default_rng(1).normal(size=(120, 120)))[0]
    matrix = jnp.asarray(vectors * scaled @ vectors.T)
    start = jnp.asarray(vectors.sum(1))
    exact = vectors @ np.asarray(scaled * principal_coefficient(jnp.asarray(scaled)))

    def error(self, **options):
        flow = principal_flow(lambda p: p @ self.matrix @ p / 2, 1.0, **options)
        return relative(slope_at(flow, self.start), self.exact)

    def test_hybrid(self):
        # Not 1e-5, as on networks: there the gradient has little where the spectrum is dense.
        options = {"method": "hybrid", "top": 6, "continuation": "linearized"}
        assert self.error(products=8, **options) < 1e-4
        assert self.error(products=16, **options) < 1e-7

    def test_krylov_alone_has_to_see_the_singularity(self):
        assert self.error(products=14) > 1e-4
        assert self.error(products=40) < 1e-9

    def test_top_is_wrong_by_the_next_term(self):
        assert self.error(method="top", top=9, bulk_order=3) < 0.5**3 / 4


def flattened_pair(state):
    return ravel_pytree(state)[0]


FLAT = jnp.array([0.0, 0.0, 1.0, 1.0])  # a singular Hessian with a repeated eigenvalue


@pytest.mark.parametrize("method", ["dense", "krylov", "hybrid", "top"])
@pytest.mark.parametrize("options", [{"state": "real"}, {"continuation": "linearized"}, {}])
def test_singular_hessians_and_z_of_one(method, options):
    def slope(h):
        flow = principal_flow(
            lambda p: jnp.sum(FLAT * p**2) / 2 + p[0], h, method=method, top=2, **options
        )
        y = flow.init(jnp.arange(1.0, 5.0))
        return flattened_pair(flow.field(0.0, y, jnp.eye(4)[2:]))  # its eigenvectors

    slopes = jax.jit(lambda rates: jax.lax.map(slope, rates))(jnp.array([0.5, 1.0, 1.5]))
    alpha = principal_coefficient(jnp.array([0.5, 1.0, 1.5])).real
    expected = np.stack([[-1, 0, 3 * a, 4 * a] for a in alpha])
    np.testing.assert_allclose(slopes[::2, :4], expected[::2], rtol=1e-9, atol=1e-9)
    # At z = 1 rounding of z decides between log(eps) and a little less.
    np.testing.assert_allclose(slopes[1, :4], expected[1], rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_no_curvature_at_all(method):
    flow = principal_flow(lambda p: jnp.sum(p), 1.0, method=method)
    slope = jax.jit(lambda y: flow.field(0.0, y, None))(flow.init(FLAT))
    chex.assert_trees_all_close(slope, PrincipalState(-jnp.ones(4), jnp.zeros(4)))


@pytest.mark.parametrize("method", ["dense", "hybrid"])
def test_nan_parameters_give_nan(method):
    flow = principal_flow(bowl, 0.5, method=method, top=1)
    slope = jax.jit(flow.field)(0.0, flow.init(jnp.array([jnp.nan, 1.0])), None)
    assert jnp.isnan(slope.real).all()


def test_no_gradient_no_motion():
    flow = principal_flow(bowl, 0.5)
    chex.assert_trees_all_equal(
        flow.field(0.0, flow.init(jnp.zeros(2)), None), PrincipalState(jnp.zeros(2), jnp.zeros(2))
    )


@pytest.mark.parametrize("state", ["pair", "real"])
def test_float32_stays(state):
    params = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones((), jnp.float32)}
    flow = principal_flow(
        lambda p: jnp.sum(p["a"] ** 4) + p["b"] ** 2, 0.1, state=state, extra_term=True
    )
    y = flow.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(flow.field(0.0, y, None), y)
    chex.assert_trees_all_equal(flow.params(y), params)


def test_in_32_bits(float32):
    matrix = np.asarray(MATRIX, np.float32)
    flow = principal_flow(lambda p: p @ matrix @ p / 2, 1.8 / TOP)
    start = jnp.asarray(np.asarray(START), jnp.float32)
    solved = jax.jit(lambda y: solve(flow.field, y, 2 * 1.8 / TOP))(flow.init(start))
    step = np.eye(2) - 1.8 / TOP * np.asarray(MATRIX)
    np.testing.assert_allclose(flow.params(solved.y), step @ step @ np.asarray(START), rtol=1e-3)
    assert solved.y.real.dtype == jnp.float32


def test_bulk_series_with_momentum():
    matrix = jnp.array([1.0, 0.01, 0.02])
    flow = principal_flow(
        lambda p: jnp.sum(matrix * p**2) / 2, 0.5, method="top", top=1, bulk_order=3, momentum=0.5
    )
    slope = slope_at(flow, jnp.ones(3))
    low = truncated_coefficient(0.5 * matrix[1:], 3, 0.5) * matrix[1:]
    np.testing.assert_allclose(slope[1:], low, rtol=1e-12)
    np.testing.assert_allclose(slope[0], principal_coefficient(0.5, 0.5), rtol=1e-12)


def test_bad_arguments_are_refused():
    for options, message in (
        ({"method": "exact"}, "method must be one of krylov, hybrid, top, dense; got 'exact'"),
        ({"state": "polar"}, "state must be one of pair, complex, real"),
        ({"continuation": "none"}, "continuation must be one of holomorphic, linearized"),
        ({"products": 0}, "products must be a whole number, 1 or more; got 0"),
        ({"top": 1.5}, "top must be a whole number"),
        ({"bulk_order": 4}, "bulk_order must be 1, 2 or 3; got 4"),
        ({"momentum": 1.0}, r"momentum=1.0 must be a number in \[0, 1\)"),
        ({"momentum": 0.9, "extra_term": True}, "extra_term is that of gradient descent"),
    ):
        with pytest.raises(ValueError, match=message):
            principal_flow(bowl, 0.1, **options)
    with pytest.raises(ValueError, match="learning_rate=0.0 must be positive"):
        principal_flow(bowl, 0.0)
    with pytest.raises(TypeError, match="loss must be a function"):
        principal_flow(1.0, 0.1)  # type: ignore
    with pytest.raises(TypeError, match="dtype int64"):
        principal_flow(bowl, 0.1).init(jnp.arange(2))
    flow = principal_flow(lambda p: jnp.linalg.norm(p), 0.1)
    with pytest.raises(ValueError, match=r"must be a complex scalar.*continuation=\"linearized\""):
        flow.field(0.0, flow.init(START), None)
