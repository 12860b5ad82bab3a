"""Gradient flow: what every optimiser follows as its learning rate goes to 0.

The fields are in the papers' time: at learning rate h, iteration n is time `t = n h`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from driftlab.flows.vector_field import Field, Loss, gradient_function
from driftlab.objective import Objective, Params


def gradient_flow(loss: Loss | Objective, batch_size: int | None = None) -> Field:
    """The field of negative gradient flow, `dy/dt = -grad L(y)`.

    Args:
      loss: `loss(params) -> scalar`, what is minimised; or an `Objective`, whose loss plus
        regulariser is then taken over all its training data, however it draws batches.
      batch_size: with an objective, the examples of one gradient evaluation: the mean over
        micro-batches is exact for whatever is a mean over examples, in bounded memory. None for
        all at once.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y; t and args are ignored. For an
      objective without full-batch gradients write a field that takes its batch from args.

    Raises:
      TypeError: from the field, if a parameter is not a real floating-point array.
      ValueError: from the field, if the loss is not a real scalar; if batch_size is not a positive
        integer, or given without an objective.

    Cost: one gradient an evaluation.
    """
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Params, args: Any) -> Params:
        del t, args
        return jax.tree.map(jnp.negative, gradient(y))

    return field


def preconditioned_gradient_flow(
    loss: Loss | Objective,
    preconditioner: Any,
    batch_size: int | None = None,
    linear_solver: Any = None,
) -> Field:
    """The field of preconditioned gradient flow, `dy/dt = -P(t, y)^{-1} grad L(y)`.

    With P the metric this is Riemannian gradient flow; with the P of an adaptive method held fixed,
    that method's leading flow.

    Args:
      loss: what is minimised, as in `gradient_flow`.
      preconditioner: P, one of
        a diagonal: a number for all parameters, or a pytree in their structure whose leaves
        have the parameters' shapes or are numbers;
        a lineax operator on trees in the structure of params;
        or `preconditioner(t, y, args)`, which returns one of these.
      batch_size: as in `gradient_flow`.
      linear_solver: how lineax solves with an operator; None for
        `lineax.AutoLinearSolver(well_posed=True)`, which forms a matrix (for a network pass
        `lineax.CG(rtol, atol)` and an operator tagged positive semidefinite).

    Returns:
      `field(t, y, args) -> dy/dt`. It is NaN where the linear solve fails, and not finite where
      the diagonal is 0; a solve ends there and says so.

    Raises:
      TypeError: from the field, as in `gradient_flow`.
      ValueError: as in `gradient_flow`; from the field, if P fits neither form.

    Cost: one gradient an evaluation, and the linear solve.
    """
    gradient = gradient_function(loss, batch_size)

    def field(t: Any, y: Params, args: Any) -> Params:
        import lineax

        is_operator = isinstance(preconditioner, lineax.AbstractLinearOperator)
        varies = callable(preconditioner) and not is_operator
        matrix = preconditioner(t, y, args) if varies else preconditioner
        descent = jax.tree.map(jnp.negative, gradient(y))
        if isinstance(matrix, lineax.AbstractLinearOperator):
            return _solve(matrix, descent, linear_solver)
        return _divide(descent, matrix)

    return field


def _solve(operator: Any, right: Params, linear_solver: Any) -> Params:
    import lineax

    expected, found = jax.eval_shape(lambda: right), operator.out_structure()
    if jax.tree.structure(expected) != jax.tree.structure(found) or any(
        leaf.shape != other.shape
        for leaf, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    ):
        raise ValueError(
            f"preconditioner must act on trees like the parameters, {expected}; it acts on {found}."
        )
    if linear_solver is None:
        linear_solver = lineax.AutoLinearSolver(well_posed=True)
    solution = lineax.linear_solve(operator, right, linear_solver, throw=False)
    solved = solution.result == lineax.RESULTS.successful
    return jax.tree.map(lambda leaf: jnp.where(solved, leaf, jnp.nan), solution.value)


def _divide(right: Params, diagonal: Any) -> Params:
    if jax.tree.structure(diagonal) != jax.tree.structure(right):
        if jax.tree.structure(diagonal) != jax.tree.structure(0) or jnp.ndim(diagonal) != 0:
            raise ValueError(
                "preconditioner must be a number, a pytree in the structure of the parameters "
                f"{jax.tree.structure(right)}, or a lineax operator on such trees; got "
                f"{jax.tree.structure(diagonal)}."
            )
        diagonal = jax.tree.map(lambda _: diagonal, right)
    for (path, leaf), scale in zip(
        jax.tree_util.tree_leaves_with_path(right), jax.tree.leaves(diagonal), strict=True
    ):
        if jnp.shape(scale) not in ((), leaf.shape):
            raise ValueError(
                f"preconditioner{jax.tree_util.keystr(path)} has shape {jnp.shape(scale)}, but the "
                f"parameter has {leaf.shape}: a diagonal holds one entry a parameter."
            )
    return jax.tree.map(jnp.divide, right, diagonal)
