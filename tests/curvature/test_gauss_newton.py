import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

from driftlab import curvature
from tests.curvature.cases import CASES, draw


@pytest.mark.parametrize("name", ["array", "mixed_shapes"])
def test_they_are_tagged_positive_semidefinite(name):
    case = CASES[name]
    for operator in (
        curvature.gauss_newton(case.model, case.output_loss, case.params, case.data),
        curvature.fisher(case.model, case.family, case.params, case.data, 3),
        curvature.empirical_fisher(case.loss, case.params, case.data),
    ):
        assert lineax.is_positive_semidefinite(operator)


def test_rank_is_that_of_outputs(matrices_of):
    matrix = matrices_of("rank_deficient").operators["gauss_newton"]
    assert np.linalg.matrix_rank(matrix, tol=1e-10) == 2 * 4
    matrix = matrices_of("rank_deficient").operators["empirical_fisher"]
    assert np.linalg.matrix_rank(matrix, tol=1e-10) == 2


def test_a_linear_models_hessian_is_its_gauss_newton(matrices_of):
    found = matrices_of("array").operators
    np.testing.assert_allclose(found["hessian"], found["gauss_newton"], atol=1e-13)


def test_bernoulli_fisher_is_the_expectation_over_both_labels():
    inputs, weights = draw(0, 6, 3), draw(1, 3, 2)
    model = lambda p, x: x @ p  # noqa: E731
    operator = curvature.fisher(model, "bernoulli", weights, inputs)
    found = jax.vmap(lambda v: operator.mv(v.reshape(3, 2)).ravel())(jnp.eye(6))
    expected = np.zeros((6, 6))
    probabilities = 1 / (1 + np.exp(-np.asarray(inputs @ weights)))
    for x, row in zip(np.asarray(inputs), probabilities, strict=True):
        for output, p in enumerate(row):
            for label, chance in ((1, p), (0, 1 - p)):
                score = np.zeros((3, 2))
                score[:, output] = (label - p) * x
                expected += chance * np.outer(score, score) / len(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_outputs_may_be_a_tree():
    inputs, params = draw(0, 5, 3), draw(1, 3)
    model = lambda p, x: {"a": x @ p, "b": [jnp.sin(x @ p)]}  # noqa: E731
    output_loss = lambda out, _: (out["a"] ** 2 * jnp.cosh(out["b"][0])).mean()  # noqa: E731
    operator = curvature.gauss_newton(model, output_loss, params, inputs)
    jacobian = jax.jacrev(lambda p: jnp.concatenate(jax.tree.leaves(model(p, inputs))))(params)
    curved = jax.hessian(lambda o: output_loss({"a": o[:5], "b": [o[5:]]}, None))
    middle = curved(jnp.concatenate(jax.tree.leaves(model(params, inputs))))
    found = jax.vmap(operator.mv)(jnp.eye(3))
    np.testing.assert_allclose(found, jacobian.T @ middle @ jacobian, rtol=1e-12)


def test_extreme_logits_stay_finite():
    case = CASES["array"]
    operator = curvature.fisher(case.model, "categorical", 1e4 * case.params, case.data)
    assert np.isfinite(operator.mv(case.params)).all()
    bernoulli = curvature.fisher(case.model, "bernoulli", 1e4 * case.params, case.data)
    assert np.isfinite(bernoulli.mv(case.params)).all()


def test_bad_input():
    case = CASES["array"]
    given = (case.params, case.data)
    with pytest.raises(ValueError, match=r"family must be one of \['bernoulli'.*got 'poisson'"):
        curvature.fisher(case.model, "poisson", *given)
    with pytest.raises(ValueError, match=r"shape \(batch, outputs\) for family='categorical'"):
        curvature.fisher(lambda p, b: case.model(p, b)[:, 0], "categorical", *given)
    with pytest.raises(ValueError, match="must return one real"):
        curvature.gauss_newton(case.model, lambda out, _: out, *given)
    integers = jnp.ones((7, 4), int)
    for make in (
        lambda p: curvature.gauss_newton(case.model, case.output_loss, p, case.data),
        lambda p: curvature.fisher(case.model, "categorical", p, case.data),
        lambda p: curvature.empirical_fisher(case.loss, p, case.data),
    ):
        with pytest.raises(TypeError, match="dtype int"):
            make(integers)
