import chex
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

from driftlab import Objective, regularized, shuffled_epochs
from driftlab.flows import gradient_flow, preconditioned_gradient_flow, solve

RANDOM = np.random.RandomState(0)
INPUTS = RANDOM.randn(13, 3)
TARGETS = np.tanh(INPUTS @ RANDOM.randn(3, 2))
PARAMS = {"kernel": jnp.asarray(RANDOM.randn(3, 2)), "bias": jnp.asarray(RANDOM.randn(2))}


def squared_error(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params["kernel"] + params["bias"][None] - targets) ** 2)


def norm(params, batch):
    return jnp.sum(params["kernel"] ** 2)


def whole(params):
    return squared_error(params, (INPUTS, TARGETS)) + 0.1 * norm(params, None)


# It draws minibatches; its flow takes all examples.
OBJECTIVE = regularized(Objective(squared_error, (INPUTS, TARGETS), shuffled_epochs(4)), norm, 0.1)
SLOPE = jax.tree.map(jnp.negative, jax.grad(whole)(PARAMS))


class TestGradientFlow:
    def test_of_a_loss_is_minus_its_gradient(self):
        chex.assert_trees_all_equal(gradient_flow(whole)(0.0, PARAMS, None), SLOPE)

    @pytest.mark.parametrize("batch_size", [None, 1, 5, 13])
    def test_of_an_objective_is_that_of_all_it_minimises(self, batch_size):
        slope = jax.jit(gradient_flow(OBJECTIVE, batch_size))(0.0, PARAMS, None)
        chex.assert_trees_all_close(slope, SLOPE, rtol=1e-13, atol=1e-14)

    def test_keeps_types(self):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
        chex.assert_trees_all_equal_dtypes(gradient_flow(whole)(0.0, params, None), params)

    @pytest.mark.parametrize("make", [gradient_flow, lambda f: preconditioned_gradient_flow(f, 1)])
    def test_a_loss_that_is_no_scalar_is_refused(self, make):
        with pytest.raises(ValueError, match=r"must return a real floating-point scalar; got .*2"):
            make(lambda params: params["bias"])(0.0, PARAMS, None)
        with pytest.raises(ValueError, match="real floating-point scalar.*complex"):
            make(lambda params: params["bias"].sum() * 1j)(0.0, PARAMS, None)

    def test_integer_parameters_are_refused(self):
        params = {**PARAMS, "bias": jnp.arange(2)}
        with pytest.raises(TypeError, match=r"\['bias'\] has dtype int64"):
            gradient_flow(whole)(0.0, params, None)
        with pytest.raises(TypeError, match=r"\['bias'\] has dtype int64"):
            gradient_flow(OBJECTIVE)(0.0, params, None)

    def test_batch_size_is_checked(self):
        with pytest.raises(ValueError, match="batch_size=3 splits an Objective's data"):
            gradient_flow(whole, 3)
        with pytest.raises(ValueError, match="positive integer.*got 0"):
            gradient_flow(OBJECTIVE, 0)
        with pytest.raises(TypeError, match="loss must be a function"):
            gradient_flow(3.0)  # type: ignore


class TestPreconditionedGradientFlow:
    diagonal = jax.tree.map(lambda leaf: 1 + leaf**2, PARAMS)
    expected = jax.tree.map(lambda s, d: s / d, SLOPE, diagonal)

    def check(self, preconditioner, expected, **options):
        field = preconditioned_gradient_flow(OBJECTIVE, preconditioner, **options)
        slope = jax.jit(field)(2.0, PARAMS, None)
        chex.assert_trees_all_close(slope, expected, rtol=1e-13, atol=1e-14)

    def test_a_diagonal(self):
        self.check(self.diagonal, self.expected)

    def test_in_micro_batches(self):
        self.check(self.diagonal, self.expected, batch_size=5)

    def test_a_number_for_all(self):
        self.check(2.0, jax.tree.map(lambda leaf: leaf / 2, SLOPE))

    def test_one_that_depends_on_time_and_state(self):
        half = jax.tree.map(lambda leaf: leaf / 2, self.expected)
        self.check(lambda t, y, args: jax.tree.map(lambda p: t * (1 + p**2), y), half)

    @pytest.mark.parametrize("varies", [False, True])
    def test_a_lineax_operator(self, varies):
        structure = jax.eval_shape(lambda: PARAMS)
        flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
        root = RANDOM.randn(flat.size, flat.size)
        dense = root @ root.T + np.eye(flat.size)
        operator = lineax.FunctionLinearOperator(
            lambda tree: unravel(dense @ jax.flatten_util.ravel_pytree(tree)[0]),
            structure,
            lineax.positive_semidefinite_tag,
        )
        flat_slope = jax.flatten_util.ravel_pytree(SLOPE)[0]
        expected = unravel(jnp.asarray(np.linalg.solve(dense, flat_slope)))
        field = preconditioned_gradient_flow(
            whole, (lambda t, y, args: operator) if varies else operator
        )
        chex.assert_trees_all_close(
            jax.jit(field)(0.0, PARAMS, None), expected, rtol=1e-11, atol=1e-13
        )

    def test_a_linear_solve_that_fails_is_nan(self):
        operator = lineax.MatrixLinearOperator(jnp.eye(2), lineax.positive_semidefinite_tag)
        stuck = lineax.CG(rtol=1e-12, atol=1e-12, max_steps=1)
        singular = lineax.MatrixLinearOperator(
            jnp.array([[1.0, 0.5], [0.5, 3.0]]), lineax.positive_semidefinite_tag
        )

        def slope(operator, solver):
            field = preconditioned_gradient_flow(
                lambda p: jnp.sum(p**2) / 2, operator, linear_solver=solver
            )
            return jax.jit(field)(0.0, jnp.array([1.0, 2.0]), None)

        chex.assert_trees_all_close(slope(operator, None), -jnp.array([1.0, 2.0]))
        assert jnp.isnan(slope(singular, stuck)).all()

    def test_newton_flow_forgets_the_curvature(self):
        eigenvalues = jnp.array([1.0, 10.0, 1000.0])
        field = preconditioned_gradient_flow(lambda y: jnp.sum(eigenvalues * y**2) / 2, eigenvalues)
        solved = solve(field, jnp.ones(3), 1.0)
        np.testing.assert_allclose(solved.y, np.exp(-1.0), rtol=1e-7)

    @pytest.mark.parametrize(
        ("preconditioner", "message"),
        [
            ({"kernel": 1.0}, "in the structure of the parameters"),
            (jnp.ones(3), "in the structure of the parameters"),
            ({"kernel": jnp.ones(3), "bias": 1.0}, r"\['kernel'\] has shape \(3,\).*\(3, 2\)"),
            (lineax.MatrixLinearOperator(jnp.eye(2)), "must act on trees like the parameters"),
        ],
    )
    def test_one_that_fits_nowhere_is_refused(self, preconditioner, message):
        with pytest.raises(ValueError, match=message):
            preconditioned_gradient_flow(whole, preconditioner)(0.0, PARAMS, None)
