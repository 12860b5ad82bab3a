import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from driftlab import curvature
from tests.curvature.cases import CASES, SIZE, dense_operator, draw, matrix_with, quick_jit

TARGET = draw(20, SIZE)


def reference(matrix, b, damping, truncation, max_steps, tolerance, x=None):
    """Textbook conjugate gradients in NumPy, with Martens' test by its formula; and why it ends."""
    matrix = np.asarray(matrix) + damping * np.eye(len(b))
    x = np.zeros_like(b) if x is None else np.array(x)
    phi = [0.5 * x @ matrix @ x - b @ x]
    r = b - matrix @ x
    d = r.copy()
    for i in range(1, max_steps + 1):
        if d @ matrix @ d <= 0:
            return x, i - 1, "negative"
        step = r @ r / (d @ matrix @ d)
        x = x + step * d
        new = r - step * (matrix @ d)
        d = new + (new @ new) / (r @ r) * d
        r = new
        phi.append(0.5 * x @ matrix @ x - b @ x)
        k = max(10, int(0.1 * i))
        if truncation and i > k and phi[i] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * truncation:
            return x, i, "truncated"
        if np.linalg.norm(r) <= tolerance * np.linalg.norm(b):
            return x, i, "tolerance"
    return x, max_steps, "steps"


def test_equals_a_dense_solve_on_every_case(stack):
    def solve(matrix, damping):
        return curvature.conjugate_gradients(
            dense_operator(matrix), TARGET, damping=damping, tolerance=1e-12, truncation=0
        )

    names, matrices = stack
    # Positive definite, with a condition number of 200.
    lowest = np.linalg.eigvalsh(matrices)[:, 0]
    norms = np.abs(np.linalg.eigvalsh(matrices)).max(1)
    damping = jnp.asarray(np.where(norms == 0, 1, 0.01 * norms) - lowest)
    found = quick_jit(jax.vmap(solve))(matrices, damping)
    dense = matrices + damping[:, None, None] * jnp.eye(SIZE)[None]
    expected = np.stack([np.linalg.solve(m, TARGET) for m in dense])
    for index, name in enumerate(names):
        scale = np.linalg.norm(expected[index])
        np.testing.assert_allclose(
            found.value[index] / scale, expected[index] / scale, atol=1e-9, err_msg=name
        )
    assert not found.negative_curvature.any()
    assert not found.truncated.any()
    models = -0.5 * (expected * np.asarray(TARGET)[None]).sum(1)
    np.testing.assert_allclose(found.model, models, rtol=1e-9)


@pytest.mark.parametrize("condition", [10, 100, 500])
@pytest.mark.parametrize("truncation", [5e-4, 1e-2, 1e-5])
def test_truncation_by_martens_formula(condition, truncation):
    size = 300
    # Condition numbers at which rounding has not yet bent the iterates when the test stops them.
    matrix = np.diag(np.geomspace(1, condition, size))
    b = np.random.RandomState(0).standard_normal(size)
    expected, steps, why = reference(matrix, b, 0.5, truncation, 400, 0.0)
    values = jnp.asarray(np.diag(matrix))
    operator = curvature.symmetric_operator(lambda v: values * v, values, probes=0)
    found = curvature.conjugate_gradients(
        operator, jnp.asarray(b), damping=0.5, truncation=truncation, max_steps=400
    )
    assert why == "truncated"
    assert found.truncated
    assert found.steps == steps
    # Rounding grows along the recurrence, in either: to 2e-8 in the hardest case.
    np.testing.assert_allclose(found.value, expected, rtol=1e-6, atol=1e-6)


def test_the_window_grows_with_the_iterations():
    """Beyond 100 iterations it is a tenth of them."""
    values = jnp.asarray(np.geomspace(1, 1e4, 600))
    b = np.random.RandomState(1).standard_normal(600)
    _, steps, why = reference(np.diag(values), b, 0.0, 1e-7, 600, 0.0)
    operator = curvature.symmetric_operator(lambda v: values * v, values, probes=0)
    found = curvature.conjugate_gradients(operator, jnp.asarray(b), truncation=1e-7, max_steps=600)
    assert why == "truncated"
    assert steps > 110
    assert abs(int(found.steps) - steps) <= 1  # rounding has grown by then


@pytest.mark.parametrize("warm", [False, True])
def test_where_it_stops_and_starts(warm):
    matrix = matrix_with(np.linspace(1, 30, SIZE))
    start = draw(21, SIZE) if warm else None
    for tolerance, max_steps in ((1e-3, 100), (0.0, 7), (1e-9, 100)):
        expected, steps, _ = reference(matrix, np.asarray(TARGET), 0.2, 0, max_steps, tolerance,
                                       start)  # fmt: skip
        found = curvature.conjugate_gradients(
            dense_operator(matrix), TARGET, damping=0.2, start=start, max_steps=max_steps,
            tolerance=tolerance, truncation=0,
        )  # fmt: skip
        assert found.steps == steps
        np.testing.assert_allclose(found.value, expected, rtol=1e-8, atol=1e-10)
        true = (matrix + 0.2 * jnp.eye(SIZE)) @ found.value
        np.testing.assert_allclose(found.residual, np.linalg.norm(TARGET - true), atol=1e-12)
        model = 0.5 * found.value @ true - TARGET @ found.value
        np.testing.assert_allclose(found.model, model, rtol=1e-10)


def test_preconditioning():
    """A perfect one takes one step; any one solves the same system."""
    values = jnp.geomspace(1.0, 1e6, SIZE)
    operator = curvature.symmetric_operator(lambda v: values * v, values, probes=0)
    found = curvature.conjugate_gradients(operator, TARGET, preconditioner=values, tolerance=1e-10)
    assert found.steps == 1
    np.testing.assert_allclose(found.value, TARGET / values, rtol=1e-10)
    matrix = matrix_with(np.linspace(1, 9, SIZE))
    found = curvature.conjugate_gradients(
        dense_operator(matrix), TARGET, preconditioner=values[::-1] ** 0.2, tolerance=1e-12,
        truncation=0,
    )  # fmt: skip
    np.testing.assert_allclose(found.value, np.linalg.solve(matrix, TARGET), atol=1e-9)


def test_negative_curvature_is_flagged():
    matrix = matrix_with(np.concatenate([[-2.0], np.linspace(1, 3, SIZE - 1)]))
    expected, steps, why = reference(matrix, np.asarray(TARGET), 0.0, 0, 100, 0.0)
    found = curvature.conjugate_gradients(dense_operator(matrix), TARGET, truncation=0)
    assert why == "negative"
    assert found.negative_curvature
    assert found.steps == steps
    np.testing.assert_allclose(found.value, expected, rtol=1e-8)
    assert found.model <= 0
    damped = curvature.conjugate_gradients(dense_operator(matrix), TARGET, damping=2.5)
    assert not damped.negative_curvature
    zero = curvature.conjugate_gradients(dense_operator(jnp.zeros((SIZE, SIZE))), TARGET)
    assert zero.negative_curvature  # no positive curvature anywhere
    assert not zero.value.any()


def test_nothing_to_solve():
    found = curvature.conjugate_gradients(dense_operator(jnp.eye(SIZE)), jnp.zeros(SIZE))
    assert found.steps == 0
    assert not found.value.any()
    assert not found.negative_curvature


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e10])
def test_going_on_below_rounding_is_no_negative_curvature(scale, float32):
    values = scale * jnp.linspace(0.1, 2, 5)
    operator = curvature.symmetric_operator(lambda v: values * v, values, probes=0)
    found = curvature.conjugate_gradients(operator, jnp.ones(5), truncation=0)
    assert not found.negative_curvature
    np.testing.assert_allclose(found.value, 1 / values, rtol=1e-5)


@pytest.mark.parametrize("where", ["operator", "target"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_ends_it_at_once(where, bad):
    matrix, target = matrix_with(np.linspace(1, 2, SIZE)), TARGET
    if where == "operator":
        matrix = matrix.at[2, 2].set(bad)
    else:
        target = target.at[2].set(bad)
    found = curvature.conjugate_gradients(dense_operator(matrix), target)
    assert found.steps <= 2
    assert not np.isfinite(found.residual)


def test_trees_and_lanes(matrices_of):
    case = CASES["list"]

    def solve(damping):
        operator = curvature.gauss_newton(case.model, case.output_loss, case.params, case.data, 4)
        return curvature.conjugate_gradients(
            operator, case.params, damping=damping, tolerance=1e-12, truncation=0
        )

    dampings = jnp.asarray([0.1, 1.0])
    found = quick_jit(jax.vmap(solve))(dampings)
    assert jax.tree.structure(found.value) == jax.tree.structure(case.params)
    target = np.asarray(ravel_pytree(case.params)[0])
    dense = matrices_of("list").dense["gauss_newton"]
    for lane, damping in enumerate(dampings):
        expected = np.linalg.solve(dense + float(damping) * np.eye(SIZE), target)
        value = ravel_pytree(jax.tree.map(lambda v, i=lane: v[i], found.value))[0]
        np.testing.assert_allclose(value, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", ["gauss_newton", "fisher", "empirical_fisher", "preconditioned"])
def test_lineax_solves_with_the_same_operators(kind, matrices_of):
    case = CASES["mixed_shapes"]
    given = (case.params, case.data)

    @quick_jit
    def solve(target):
        made = {
            "gauss_newton": lambda: curvature.gauss_newton(case.model, case.output_loss, *given),
            "fisher": lambda: curvature.fisher(case.model, case.family, *given),
            "empirical_fisher": lambda: curvature.empirical_fisher(case.loss, *given),
        }
        operator = made.get(kind, made["fisher"])()
        if kind == "preconditioned":
            twos = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), case.params)
            operator = curvature.preconditioned(operator, twos)
        identity = lineax.IdentityLinearOperator(operator.in_structure())
        with jax.numpy_rank_promotion("allow"):
            # lineax does not know by itself that the sum is positive definite as well.
            damped = lineax.TaggedLinearOperator(
                operator + 0.5 * identity, lineax.positive_semidefinite_tag
            )
            solution = lineax.linear_solve(damped, target, lineax.CG(rtol=1e-12, atol=1e-12))
        return solution.value

    target = case.params
    dense = matrices_of("mixed_shapes").dense["fisher" if kind == "preconditioned" else kind]
    dense = dense / 2 if kind == "preconditioned" else dense
    expected = np.linalg.solve(dense + 0.5 * np.eye(SIZE), ravel_pytree(target)[0])
    np.testing.assert_allclose(ravel_pytree(solve(target))[0], expected, rtol=1e-8, atol=1e-10)


def test_bad_arguments():
    operator = dense_operator(jnp.eye(3))
    b = jnp.ones(3)
    for arguments, message in [
        ({"max_steps": 0}, "max_steps must be"),
        ({"tolerance": -1.0}, "tolerance must be 0 or more; got -1.0"),
        ({"truncation": -1e-3}, "truncation must be 0 or more"),
        ({"tolerance": np.nan}, "tolerance must be 0 or more; got nan"),
        ({"start": jnp.ones(2)}, r"shapes \[\(3,\)\]; got"),
        ({"preconditioner": jnp.ones((3, 1))}, r"shapes \[\(3,\)\]; got"),
    ]:
        with pytest.raises(ValueError, match=message):
            curvature.conjugate_gradients(operator, b, **arguments)
    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\]; got a vector .*\(1, 3\)"):
        curvature.conjugate_gradients(operator, b[None])
