import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from driftlab import curvature, models
from tests.curvature.cases import (
    CASES,
    SIZE,
    cross_entropy,
    dense_operator,
    diagonal_operator,
    draw,
    labels,
    matrix_with,
    quick_jit,
    run,
)

# which, k, other settings: bases with and without room for everything.
SETTINGS = {
    "largest_1": ("largest", 1, {}),
    "largest_5": ("largest", 5, {}),
    "largest_all": ("largest", SIZE, {}),
    "smallest_5": ("smallest", 5, {}),
    "both_4": ("both", 4, {}),
    "both_all": ("both", SIZE // 2, {}),
    "restarted": ("largest", 2, {"basis_size": 8, "looks": 2, "max_products": 1000}),
}


@pytest.fixture(scope="module")
def solved(stack):
    """`setting -> Eigenpairs of every matrix`, all lanes in one program."""

    @functools.cache
    def of(setting):
        which, k, others = SETTINGS[setting]

        def solve(matrix):
            return curvature.eigenpairs(dense_operator(matrix), k, which=which, **others)

        return jax.tree.map(np.asarray, quick_jit(jax.vmap(solve))(stack[1]))

    return of


def expected_values(matrix, which, k):
    """By LAPACK, in the order that is promised."""
    values = np.linalg.eigvalsh(np.asarray(matrix))
    largest, smallest = values[::-1][:k], values[:k]
    return {
        "largest": largest,
        "smallest": smallest,
        "both": np.concatenate([largest, smallest]),
    }[which]


def check(matrix, pairs, which, k, values_within=1e-8):
    """Values, residuals, orthonormality, each relative to the norm of the matrix."""
    matrix = np.asarray(matrix)
    norm = np.abs(np.linalg.eigvalsh(matrix)).max()
    error = np.abs(pairs.values - expected_values(matrix, which, k)).max()
    assert error <= values_within * norm, f"values are off by {error / norm:.1e} of the norm"
    vectors = np.asarray(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-12)
    residuals = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    # Both are residuals, but for rounding in the products.
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-11 * norm + 1e-300)
    assert pairs.converged
    assert (residuals <= 1.6e-8 * norm).all()
    assert pairs.asymmetry <= 1e-10


@pytest.mark.parametrize("setting", SETTINGS)
def test_against_dense_on_every_case(setting, stack, solved):
    which, k, _ = SETTINGS[setting]
    names, matrices = stack
    failures = []
    for index, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
        pairs = jax.tree.map(lambda leaf, i=index: leaf[i], solved(setting))
        if name == "negative_definite" and setting == "restarted":
            # 8 vectors are too few for a top that is 1e-4 of the norm: it must say so.
            assert not pairs.converged
            continue
        try:
            check(matrix, pairs, which, k)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)


def test_a_lane_is_what_a_single_call_is(stack, solved):
    names, matrices = stack
    single = quick_jit(lambda m: curvature.eigenpairs(dense_operator(m), 4, which="both"))
    for name in ("cnn", "rank_deficient", "repeated_both_ends", "identity", "zero"):
        index = names.index(name)
        alone = single(matrices[index])
        lane = jax.tree.map(lambda leaf, i=index: leaf[i], solved("both_4"))
        np.testing.assert_allclose(alone.values, lane.values, rtol=0, atol=1e-10)
        assert alone.products == lane.products
        assert alone.converged == lane.converged


def test_products_are_counted_and_few(stack, solved):
    names, _ = stack
    products = dict(zip(names, solved("largest_1").products, strict=True))
    assert max(products["zero"], products["identity"], products["two_values"]) <= 4
    # 22 vectors are kept: more products than that are restarts.
    assert max(products.values()) <= 3 * SIZE

    def counted(matrix, counts):
        def product(vector):
            jax.debug.callback(lambda: counts.append(1))
            return matrix @ vector

        return curvature.symmetric_operator(product, matrix[0], probes=0)

    counts = []
    pairs = curvature.eigenpairs(counted(matrix_with(np.linspace(0, 1, 60)), counts), 2)
    jax.effects_barrier()
    assert len(counts) == pairs.products


@pytest.mark.parametrize(("name", "batch_size"), [("list", 4), ("mixed_shapes", None)])
def test_a_losses_own_operator_and_trees(name, batch_size, matrices_of):
    case = CASES[name]

    @quick_jit
    def solve(params, data):
        operator = curvature.hessian(case.loss, params, data, batch_size)
        return curvature.eigenpairs(operator, 2, which="both")

    pairs = solve(case.params, case.data)
    assert jax.tree.structure(pairs.vectors) == jax.tree.structure(case.params)
    flat = np.stack([ravel_pytree(jax.tree.map(lambda v, i=i: v[i], pairs.vectors))[0]
                     for i in range(4)])  # fmt: skip
    check(matrices_of(name).dense["hessian"], pairs._replace(vectors=flat), "both", 2)


def test_lanes_over_params():
    case = CASES["array"]
    scales = jnp.asarray([0.1, 1.0, 3.0])

    def sharpness(scale):
        operator = curvature.hessian(case.loss, scale * case.params, case.data, 4)
        return curvature.eigenpairs(operator, 3).values

    found = quick_jit(jax.vmap(sharpness))(scales)
    dense = quick_jit(jax.vmap(jax.hessian(lambda v: case.loss(v.reshape(7, 4), case.data))))(
        scales[:, None] * case.params.reshape(1, -1)
    )
    expected = np.linalg.eigvalsh(dense)[:, ::-1][:, :3]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_two_parameters():
    case = CASES["rosenbrock"]
    x, y = case.params
    dense = np.array([[2 - 400 * (y - x**2) + 800 * x**2, -400 * x], [-400 * x, 200]])
    for which, k in (("largest", 1), ("smallest", 2), ("both", 1)):
        solve = quick_jit(
            lambda p, k=k, w=which: curvature.eigenpairs(
                curvature.hessian(case.loss, p), k, which=w
            )
        )
        check(dense, solve(case.params), which, k)


LARGE_SPECTRUM = jnp.asarray(np.concatenate([[2.0] * 3, np.linspace(-1, 1.9, 397)]))


def test_looks_see_repeated_eigenvalues_of_a_large_matrix():
    pairs = run(curvature.eigenpairs, LARGE_SPECTRUM, k=5, looks=3, max_products=2000)
    assert pairs.converged
    expected = np.sort(LARGE_SPECTRUM)[::-1][:5]
    np.testing.assert_allclose(pairs.values, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(5), atol=1e-12)
    images = pairs.vectors * LARGE_SPECTRUM[None]
    residuals = np.linalg.norm(images - pairs.values[:, None] * pairs.vectors, axis=1)
    assert (residuals <= 1e-7).all()


@pytest.mark.parametrize("which", ["largest", "both"])
def test_few_distinct_eigenvalues_of_a_large_matrix(which):
    # The basis becomes invariant over and over, and is restarted in between.
    values = jnp.asarray(np.repeat(np.linspace(0, 1, 11), 30))
    pairs = run(curvature.eigenpairs, values, k=5, which=which)
    expected = np.array([1.0] * 5 + [0.0] * (5 if which == "both" else 0))
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, expected, atol=1e-8)
    assert pairs.products <= 400


@pytest.mark.parametrize("which", ["largest", "both", "smallest"])
def test_looks_do_not_return_what_is_known_already(which):
    spectra = [-np.arange(1.0, 9), np.ones(8), [5.0, 4, 3, 2, 1, 0, 0, -1], [9.0, *-np.arange(7)]]
    matrices = jnp.stack([matrix_with(spectrum) for spectrum in spectra])
    solve = jax.vmap(lambda m: curvature.eigenpairs(dense_operator(m), 2, which=which, looks=2))
    pairs = quick_jit(solve)(matrices)
    for index, matrix in enumerate(matrices):
        check(matrix, jax.tree.map(lambda leaf, i=index: leaf[i], pairs), which, 2)


@pytest.fixture(scope="module")
def started():
    """`(values, start) -> eigenvalue`."""
    return quick_jit(lambda v, s: curvature.eigenpairs(diagonal_operator(v), start=s).values)


def test_a_start_in_an_invariant_subspace_hides_nothing(started):
    values = jnp.asarray([3.0, 2.0, 1.0, 0.5, 0.1, -1.0, -2.0, 0.7])
    for start in (*jnp.eye(8), jnp.zeros(8), jnp.full(8, jnp.nan)):
        np.testing.assert_allclose(started(values, start), [3.0], rtol=1e-8)
    many = LARGE_SPECTRUM[2:]
    np.testing.assert_allclose(started(many, jnp.eye(398)[0]), [2.0], rtol=1e-8)


def test_stops_at_max_products_and_says_so():
    pairs = run(curvature.eigenpairs, LARGE_SPECTRUM, k=3, max_products=10)
    assert pairs.products == 10
    assert not pairs.converged
    images = pairs.vectors * LARGE_SPECTRUM[None]
    residuals = np.linalg.norm(images - pairs.values[:, None] * pairs.vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=1e-9)
    loose = run(curvature.eigenpairs, LARGE_SPECTRUM, k=3, tolerance=1e-2)
    tight = run(curvature.eigenpairs, LARGE_SPECTRUM, k=3, tolerance=1e-6)
    assert loose.converged
    assert loose.products < tight.products
    assert (loose.residuals <= 1e-2 * 2).all()


def test_no_ghosts_in_64_steps(float32):
    """Without re-orthogonalisation the top eigenvalue comes back several times."""
    model = models.MLP(widths=(36, 20), num_outputs=4)
    data = (draw(0, 60, 16).astype(jnp.float32), labels(60, 4))
    params = models.initialize(model, jax.random.key(0), data[0])
    apply = models.apply_function(model)
    vector, unravel = ravel_pytree(jax.tree.map(lambda a: 3 * a, params))
    assert vector.dtype == jnp.float32
    assert 1400 < vector.size < 2500

    @quick_jit
    def solve(v):
        loss = lambda v, b: cross_entropy(apply(unravel(v), b[0]), b)  # noqa: E731
        operator = curvature.hessian(loss, v, data)
        pairs = curvature.eigenpairs(operator, 6, basis_size=64, max_products=64, tolerance=1e-9)
        rule = curvature.quadrature(operator, jax.random.key(1), 2, 64)
        columns = jax.lax.map(operator.mv, jnp.eye(v.size, dtype=v.dtype), batch_size=128)
        return pairs, rule, columns

    pairs, rule, dense = solve(vector)
    # 64 steps do not finish the last ones of the 6.
    expected = np.linalg.eigvalsh(np.asarray(dense, np.float64))[::-1][:6]
    np.testing.assert_allclose(pairs.values[:4], expected[:4], rtol=2e-5)
    np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(6), atol=2e-6)
    for nodes, weights in zip(rule.nodes, rule.weights, strict=True):
        top = np.sort(nodes)[::-1]
        np.testing.assert_allclose(top[:3], expected[:3], rtol=2e-5)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_ends_it_at_once(bad):
    matrix = matrix_with(np.linspace(-1, 1, 50)).at[3, 3].set(bad)
    for which, looks in (("largest", 1), ("both", 2)):
        pairs = run(curvature.eigenpairs, matrix, k=3, which=which, looks=looks)
        assert np.isnan(pairs.values).all()
        assert np.isnan(pairs.residuals).all()
        assert not pairs.converged
        assert pairs.products <= 4 * looks


def test_one_broken_lane_does_not_touch_the_others():
    matrices = jnp.stack([matrix_with(np.linspace(-1, 1, SIZE))] * 2)
    matrices = matrices.at[0, 0, 0].set(jnp.nan)
    pairs = quick_jit(jax.vmap(lambda m: curvature.eigenpairs(dense_operator(m), 2)))(matrices)
    np.testing.assert_array_equal(pairs.converged, [False, True])
    np.testing.assert_allclose(pairs.values[1], np.linspace(-1, 1, SIZE)[::-1][:2], rtol=1e-10)


def test_operators_that_are_not_symmetric():
    matrix = draw(0, 30, 30)
    with pytest.raises(ValueError, match="tagged symmetric but is not"):
        curvature.eigenpairs(dense_operator(matrix), 2)
    pairs = quick_jit(lambda m: curvature.eigenpairs(dense_operator(m), 2))(matrix)
    assert not pairs.converged
    assert pairs.asymmetry > 0.1
    slightly = matrix_with(np.linspace(0, 1, 30)).at[2, 7].add(1e-3)
    with pytest.raises(ValueError, match="tagged symmetric but is not"):
        curvature.eigenpairs(dense_operator(slightly), 2)


def test_bad_arguments():
    operator = diagonal_operator(np.arange(6.0))
    for arguments, message in [
        ({"k": 7}, "k must be a whole number, from 1 to 6; got 7"),
        ({"k": 4, "which": "both"}, "k must be a whole number, from 1 to 3; got 4"),
        ({"k": 0}, "k must be"),
        ({"k": 2.0}, "k must be"),
        ({"k": True}, "k must be"),
        ({"which": "top"}, "which must be one of"),
        ({"looks": 0}, "looks must be"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"tolerance": -1.0}, "tolerance must be positive"),
        ({"basis_size": 3}, "basis_size=3 leaves no room"),
        ({"max_products": 0}, "max_products must be"),
        ({"k": 3, "max_products": 2}, "max_products=2 cannot show 3 eigenpairs"),
        ({"start": jnp.ones(5)}, r"leaves of shapes \[\(6,\)\]; got"),
        ({"start": {"w": jnp.ones((2, 3))}}, r"leaves of shapes \[\(6,\)\]; got"),
    ]:
        with pytest.raises(ValueError, match=message):
            curvature.eigenpairs(operator, **arguments)
