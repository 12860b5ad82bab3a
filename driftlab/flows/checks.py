"""What must hold before anything is compiled, said in its own terms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree


def check_state(y: Any) -> None:
    """Raises where a state cannot be solved for.

    Args:
      y: a state.

    Raises:
      TypeError: if it holds no array, or one that is neither floating-point nor complex.
    """
    leaves = jax.tree_util.tree_leaves_with_path(y)
    if not leaves:
        raise TypeError("y0 holds no array: there is nothing to solve for.")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"y0{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}; a flow moves "
                "floating-point (or complex) arrays. Keep integers and booleans out of its state."
            )
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"y0{jax.tree_util.keystr(path)} is a {type(leaf).__name__}; make it an array."
            )


def check_numbers(
    tolerances: dict[str, Any], steps: Any, smallest_step: Any, max_steps: Any
) -> None:
    """Raises where a number is out of range or has no effect.

    Args:
      tolerances: what adaptive steps alone use, by name; None where it was not given.
      steps: the number of equal steps, or None.
      smallest_step: a fraction of the interval.
      max_steps: the most steps.

    Raises:
      ValueError: naming it.
    """
    for name, value in {"steps": steps, "max_steps": max_steps}.items():
        if value is None and name == "steps":
            continue
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not value > 0:  # type: ignore[operator]
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    if not 0 < smallest_step < 1:
        raise ValueError(
            f"smallest_step is a fraction of the time to solve for, between 0 and 1; "
            f"got {smallest_step!r}."
        )
    for name, value in tolerances.items():
        if value is None:
            continue
        if steps is not None:
            raise ValueError(f"{name}={value} has no effect on {steps} equal steps: leave one out.")
        # A computed one may be 0, such as a share of a displacement at rest.
        low = 0 if isinstance(value, jax.Array) else np.finfo(float).tiny
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) >= low):
            raise ValueError(f"{name} must be positive; got {value!r}.")


def check_solver(solver: Any, steps: int | None) -> None:
    """Raises where a solver is none, or cannot choose its steps but should.

    Args:
      solver: the solver.
      steps: the number of equal steps; None for adaptive ones.

    Raises:
      TypeError: if it is not a diffrax solver.
      ValueError: if it estimates no error and there is no number of steps, or is implicit
        without tolerances of its own and there is one.
    """
    import diffrax

    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver must be a diffrax solver, such as diffrax.Tsit5(); got {solver}.")
    if steps is None and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"solver={type(solver).__name__}() estimates no error, so it cannot choose its steps: "
            "pass steps=n for n equal ones, or another solver."
        )
    if steps is not None and isinstance(solver, diffrax.AbstractImplicitSolver):
        # By default they are a mark for "those of the step-size controller".
        tolerances = (solver.root_finder.rtol, solver.root_finder.atol)
        if not all(isinstance(value, int | float | jax.Array | np.ndarray) for value in tolerances):
            raise ValueError(
                f"solver={type(solver).__name__}() solves its equations to the tolerances of "
                f"adaptive steps, and steps={steps} equal ones have none: leave steps out, or pass "
                "root_finder=diffrax.VeryChord(rtol, atol)."
            )


def check_field(
    field: Callable[..., PyTree], t: Float[Array, ""], y: PyTree[Array], args: Any
) -> None:
    """Raises where a field does not return the rate of change of its state.

    Args:
      field: `field(t, y, args) -> dy/dt`.
      t: a time.
      y: a state.
      args: the field's third argument.

    Raises:
      ValueError: if its structure or shapes differ from y's, or it is complex for a real y.
    """
    slope = jax.eval_shape(lambda t, y: field(t, y, args), t, y)
    expected, found = jax.tree.structure(y), jax.tree.structure(slope)
    if expected != found:
        raise ValueError(
            f"field(t, y, args) must return dy/dt in the structure of y, {expected}; got {found}."
        )
    for (path, leaf), rate in zip(
        jax.tree_util.tree_leaves_with_path(y), jax.tree.leaves(slope), strict=True
    ):
        real = not jnp.iscomplexobj(leaf)
        if leaf.shape != rate.shape or (real and jnp.issubdtype(rate.dtype, jnp.complexfloating)):
            raise ValueError(
                f"field(t, y, args) must return dy/dt in the shapes of y; for "
                f"y{jax.tree_util.keystr(path)} of {leaf.dtype}{leaf.shape} it returned "
                f"{rate.dtype}{rate.shape}."
            )
