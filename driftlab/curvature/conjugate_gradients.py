"""Conjugate gradients as Hessian-free methods use them: damped, and truncated by progress."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from driftlab.curvature.operators import Operator
from driftlab.curvature.vectors import check_count, flat_operator


class Solution(NamedTuple):
    """Where conjugate gradients stopped.

    Attributes:
      value: x, about `(A + damping I)^{-1} b`; a tree like b.
      steps: iterations, each a product.
      residual: `||b - (A + damping I) x||`, as the recurrence has it.
      model: `x.(A + damping I) x / 2 - b.x`, what the iterations minimise.
      negative_curvature: whether a direction of no positive curvature stopped it; x is then the
        iterate before.
      truncated: whether it stopped because progress had become small (Martens' test).
    """

    value: PyTree[Array]
    steps: Int[Array, ""]
    residual: Float[Array, ""]
    model: Float[Array, ""]
    negative_curvature: Bool[Array, ""]
    truncated: Bool[Array, ""]


def conjugate_gradients(
    operator: Operator,
    target: PyTree[Array],
    *,
    damping: float | Float[Array, ""] = 0.0,
    start: PyTree[Array] | None = None,
    preconditioner: PyTree[Array] | None = None,
    max_steps: int = 250,
    tolerance: float = 0.0,
    truncation: float = 5e-4,
) -> Solution:
    """Solves `(A + damping I) x = b`, as far as it pays.

    Minimises the model `phi(x) = x.(A + damping I) x / 2 - b.x`. Martens' truncation test stops at
    iteration i once `phi(x_i) < 0`, `i > j` and `(phi(x_i) - phi(x_{i-j})) / phi(x_i) < j eps`
    with `j = max(10, i / 10)`: when the last j iterations gained less than eps of the model each.
    Cost: a product an iteration, and one more from a start other than 0. For a plain solve to a
    residual, `lineax.linear_solve` takes the same operators.

    Args:
      operator: A, symmetric; positive definite once damped.
      target: b, a tree as A takes it.
      damping: Tikhonov damping, in units of A's eigenvalues.
      start: x_0, such as a decayed earlier solution; None for 0.
      preconditioner: a positive diagonal M, a tree like b; None for none.
      max_steps: iterations at most.
      tolerance: stop at a residual of this times `||b||`; 0 for rounding, the dtype's epsilon.
      truncation: eps of the test; 0 for no test.

    Returns:
      The solution and why it stopped. With NaN in A or b it stops at once, all NaN.

    Raises:
      ValueError: if the operator is not tagged symmetric, or an argument is out of range.

    Source: Martens (2010), "Deep learning via Hessian-free optimization", section 4.4; Hestenes,
    Stiefel (1952).
    """
    flat = flat_operator(operator)
    check_count("max_steps", max_steps)
    for name, value in (("tolerance", tolerance), ("truncation", truncation)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more; got {value!r}.")
    b = flat.flatten(target)
    weights = jnp.ones_like(b) if preconditioner is None else 1 / flat.flatten(preconditioner)

    def damped(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return flat.apply(vector) + damping * vector

    x = jnp.zeros_like(b) if start is None else flat.flatten(start)
    residual = b if start is None else b - damped(x)
    direction = weights * residual
    history = jnp.zeros((max_steps + 1,), flat.dtype).at[0].set(_model(x, residual, b))
    # Below rounding the recurrence means nothing, and goes on until its products underflow.
    limit = max(tolerance, float(jnp.finfo(flat.dtype).eps)) * jnp.linalg.norm(b)
    false = jnp.zeros((), bool)
    begun = (x, residual, direction, residual @ direction, history, jnp.int32(0), false, false)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        _, residual, _, _, _, count, negative, truncated = carry
        norm = jnp.linalg.norm(residual)
        return (norm > limit) & (count < max_steps) & ~negative & ~truncated

    def advance(carry: tuple) -> tuple:
        x, residual, direction, product, history, count, _, _ = carry
        image = damped(direction)
        curvature = direction @ image
        negative = curvature <= 0
        # NaN goes through all of it, and ends the loop.
        step = jnp.where(negative, 0, product / jnp.where(negative, 1, curvature))
        x, residual = x + step * direction, residual - step * image
        scaled = weights * residual
        following = residual @ scaled
        direction = scaled + following / jnp.where(product == 0, 1, product) * direction
        count = count + ~negative
        model = _model(x, residual, b)
        history = history.at[count].set(model)
        window = jnp.maximum(10, count // 10)
        before = history[jnp.maximum(count - window, 0)]
        # phi < 0, so dividing by it turns the test around.
        little = model - before > window * truncation * model
        truncated = (count > window) & (model < 0) & little & (truncation > 0)
        return x, residual, direction, following, history, count, negative, truncated

    x, residual, _, _, history, count, negative, truncated = jax.lax.while_loop(
        unfinished, advance, begun
    )
    return Solution(
        value=flat.unflatten(x),
        steps=count,
        residual=jnp.linalg.norm(residual),
        model=history[count],
        negative_curvature=negative,
        truncated=truncated,
    )


def _model(x: Array, residual: Array, b: Array) -> Float[Array, ""]:
    """`x.Bx / 2 - b.x` with `Bx = b - residual`."""
    return -0.5 * x @ (residual + b)
