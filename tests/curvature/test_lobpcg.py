import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from driftlab import curvature
from tests.curvature.cases import CASES, SIZE, dense_operator, draw, matrix_with, quick_jit, run


def track(matrix, block, k=3, **settings):
    return run(curvature.tracked_eigenpairs, matrix, block, k=k, **settings)


def track_inside(matrix, block, k=3):
    """Inside another program."""
    return curvature.tracked_eigenpairs(dense_operator(matrix), block, k, tolerance=1e-8)


@pytest.fixture(scope="module")
def tracked(stack):
    """Pairs and blocks of every matrix from a random block, in one program."""
    block = curvature.initial_block(SIZE, 5, jnp.float64)
    solve = jax.vmap(lambda m: track_inside(m, block))
    return jax.tree.map(np.asarray, quick_jit(solve)(stack[1]))


def check(matrix, pairs, within=1e-8):
    """Values and residuals are relative to the largest wanted eigenvalue, as the tolerance is."""
    matrix = np.asarray(matrix)
    expected = np.linalg.eigvalsh(matrix)[::-1][: len(pairs.values)]
    norm = np.abs(np.linalg.eigvalsh(matrix)).max()
    vectors = np.asarray(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-11)
    residuals = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-11 * norm + 1e-300)
    error = np.abs(pairs.values - expected).max()
    assert error <= within * norm, f"values are off by {error / norm:.1e} of the norm"
    assert pairs.converged
    assert pairs.asymmetry <= 1e-9


def test_against_dense_on_every_case(stack, tracked):
    names, matrices = stack
    failures = []
    for index, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
        pairs = jax.tree.map(lambda leaf, i=index: leaf[i], tracked[0])
        if not pairs.converged:
            # Its wanted values, to which the tolerance is relative, are 1e-4 of the norm.
            assert name == "negative_definite"
            assert pairs.products == 5 + 3 * 100
            continue
        try:
            check(matrix, pairs)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)


@pytest.fixture(scope="module")
def again(stack, tracked):
    """From the blocks of `tracked`, on the matrices moved by a relative amount."""

    @functools.cache
    def at(amount):
        matrices = stack[1]
        change = amount * matrix_with(np.linspace(-1, 1, SIZE), seed=3)
        moved = matrices + change[None] * jnp.linalg.norm(matrices, axis=(1, 2), keepdims=True)
        solve = jax.vmap(track_inside)
        return moved, jax.tree.map(np.asarray, quick_jit(solve)(moved, jnp.asarray(tracked[1])))

    return at


def test_the_same_again_costs_one_look(stack, tracked, again):
    _, (pairs, _) = again(0.0)
    converged = tracked[0].converged
    assert (pairs.products[converged] <= 5 + 3).all()  # at the edge of the tolerance, one more
    np.testing.assert_allclose(pairs.values[converged], tracked[0].values[converged], atol=1e-6)


def test_a_small_change_is_followed_for_less(stack, tracked, again):
    moved, (pairs, _) = again(1e-4)
    names, _ = stack
    for name in ("distinct", "tanh_cross_entropy", "cnn", "outliers", "indefinite_quadratic"):
        index = names.index(name)
        lane = jax.tree.map(lambda leaf, i=index: leaf[i], pairs)
        check(moved[index], lane)
        assert lane.products < tracked[0].products[index]


def test_a_lane_is_what_a_single_call_is(stack, tracked):
    names, matrices = stack
    block = curvature.initial_block(SIZE, 5, jnp.float64)
    single = quick_jit(lambda m: track_inside(m, block))
    for name in ("cnn", "zero", "repeated_top"):
        index = names.index(name)
        alone, _ = single(matrices[index])
        np.testing.assert_allclose(alone.values, tracked[0].values[index], atol=1e-10)
        assert alone.products == tracked[0].products[index]


def test_a_losses_own_operator_and_trees(matrices_of):
    case = CASES["mixed_shapes"]

    @quick_jit
    def solve(params, block):
        operator = curvature.hessian(case.loss, params, case.data, 4)
        return curvature.tracked_eigenpairs(operator, block, 2, tolerance=1e-9)

    pairs, block = solve(case.params, curvature.initial_block(SIZE, 3, jnp.float64))
    flat = np.stack([ravel_pytree(jax.tree.map(lambda v, i=i: v[i], pairs.vectors))[0]
                     for i in range(2)])  # fmt: skip
    check(matrices_of("mixed_shapes").dense["hessian"], pairs._replace(vectors=flat))
    np.testing.assert_allclose(block[:2], flat, atol=1e-14)


@pytest.mark.parametrize(("k", "rows"), [(1, 2), (2, 4), (5, 5)])
def test_blocks_that_fill_the_space(k, rows):
    """A tolerance that rounding cannot meet, where nothing is left to search: 100 iterations."""
    matrix = matrix_with([5.0, 3.0, 1.0, 0.5, 0.1])
    block = curvature.initial_block(5, rows, jnp.float64)
    pairs, block = track(matrix, block, k, tolerance=1e-17)
    np.testing.assert_allclose(pairs.values, [5.0, 3.0, 1.0, 0.5, 0.1][:k], rtol=1e-12)
    np.testing.assert_allclose(block @ block.T, np.eye(rows), atol=1e-12)


def test_rounding_does_not_grow_in_float32(float32):
    values = jnp.concatenate([jnp.asarray([50.0, 30.0, 29.9]), jnp.linspace(-10, 10, 497)])
    block = curvature.initial_block(500, 4)
    pairs, block = track(values, block, tolerance=1e-12)
    assert not pairs.converged  # rounding does not let it
    assert pairs.products == 4 + 3 * 100
    # Half a rounding of the norm, 50, an iteration.
    np.testing.assert_allclose(pairs.values, [50.0, 30.0, 29.9], atol=50 * 50 * 1.2e-7 * 2)
    np.testing.assert_allclose(block @ block.T, np.eye(4), atol=1e-4)
    true = np.linalg.norm((values[None] - pairs.values[:, None]) * pairs.vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, true, atol=2e-3)
    assert block.dtype == jnp.float32


@pytest.mark.parametrize("bad", ["zeros", "repeated", "nan", "huge"])
def test_blocks_that_are_of_no_use(bad):
    matrix = matrix_with(-np.linspace(1, 3, 12))
    row = draw(0, 1, 12)
    block = {
        "zeros": jnp.zeros((3, 12)),
        "repeated": jnp.concatenate([row, row, 2 * row]),
        "nan": draw(1, 3, 12).at[1, 4].set(jnp.nan),
        "huge": 1e160 * draw(1, 3, 12),
    }[bad]
    pairs, block = track(matrix, block, 2, tolerance=1e-8)
    check(matrix, pairs)
    assert np.isfinite(block).all()


def test_eigenvalues_that_cross_are_not_lost():
    """The guard holds the second eigenvector, which becomes the first."""
    basis = np.linalg.qr(np.random.RandomState(0).standard_normal((40, 40)))[0]
    block = curvature.initial_block(40, 2, jnp.float64)
    for t in np.linspace(0, 1, 5):
        spectrum = np.concatenate([[2 - t, 1.3 + t], np.linspace(-1, 1, 38)])
        matrix = jnp.asarray(basis * spectrum[None] @ basis.T)
        pairs, block = track(matrix, block, 1, tolerance=1e-6)
        np.testing.assert_allclose(pairs.values, [spectrum.max()], rtol=1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_ends_it_at_once(bad):
    matrix = matrix_with(np.linspace(-1, 1, 20)).at[3, 3].set(bad)
    before = curvature.initial_block(20, 3, jnp.float64)
    pairs, block = track(matrix, before, 2)
    assert np.isnan(pairs.values).all()
    assert not pairs.converged
    assert pairs.products <= 5
    # The next call, on a model that is well again, is as good as new.
    assert np.isfinite(block).all()
    check(matrix_with(np.arange(20.0)), track(matrix_with(np.arange(20.0)), block, 2)[0], 1e-5)


def test_operators_that_are_not_symmetric():
    matrix = draw(0, 30, 30)
    block = curvature.initial_block(30, 1, jnp.float64)
    with pytest.raises(ValueError, match="tagged symmetric but is not"):
        curvature.tracked_eigenpairs(dense_operator(matrix), block, max_iterations=5)
    for rows in (block, curvature.initial_block(30, 3, jnp.float64)):
        pairs, _ = track(matrix, rows, 1, max_iterations=5)
        assert not pairs.converged
        assert pairs.asymmetry > 0.01


def test_bad_arguments():
    operator = dense_operator(jnp.eye(6))
    block = curvature.initial_block(6, 2, jnp.float64)
    for arguments, message in [
        ((block, 3), "k must be a whole number, from 1 to 2; got 3"),
        ((block, 0), "k must be"),
        ((block[:, :5], 1), r"the block has shape \(2, 5\); it needs 6 columns"),
        ((block[0], 1), r"the block has shape \(6,\); it needs 6 columns"),
        ((jnp.ones((7, 6)), 1), r"the block has shape \(7, 6\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            curvature.tracked_eigenpairs(operator, *arguments)
    with pytest.raises(ValueError, match="max_iterations must be"):
        curvature.tracked_eigenpairs(operator, block, max_iterations=0)
    with pytest.raises(ValueError, match="rows must be a whole number, from 1 to 6; got 7"):
        curvature.initial_block(6, 7)
