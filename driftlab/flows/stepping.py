"""What diffrax is handed: a field on the solver's clock, and step controllers.

Only `solve` uses them, and imports this file when it is called: diffrax is not needed before.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float, PyTree


class Clocked(eqx.Module):
    """A field in the solver's clock s, where `t = t0 + s * unit`: `dy/ds = unit * field(t, y)`.

    The solver then starts at 0 and runs forwards whatever the times are, and its controller knows
    the first step: were diffrax given one, it would check its sign by a callback to the host, which
    keeps a program out of JAX's persistent compilation cache.

    Attributes:
      field: `field(t, y, args) -> dy/dt`.
      t0: where the solve starts.
      unit: the time of one tick.
    """

    field: Callable[..., PyTree]
    t0: Float[Array, ""]
    unit: Float[Array, ""]

    def __call__(self, s: Any, y: PyTree, args: Any) -> PyTree:
        """dy/ds, in the types of y."""
        slope = self.field(self.t0 + s * self.unit, y, args)
        return jax.tree.map(lambda f, leaf: (self.unit * f).astype(leaf.dtype), slope, y)


class Continued(diffrax.AbstractAdaptiveStepSizeController):
    """An I-controller that starts with a given step and remembers what it would try next.

    diffrax's own controller forgets its step between solves, and in the last step of a solve sees
    only what is left of the interval.

    Attributes:
      controller: decides on steps.
      first_step: the step to try first.
    """

    controller: diffrax.PIDController
    first_step: Float[Array, ""]

    @property
    def rtol(self) -> Any:
        """The relative tolerance, also that of an implicit solver's root finder."""
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        """The absolute tolerance."""
        return self.controller.atol

    @property
    def norm(self) -> Callable[[PyTree], Any]:
        """The norm in which errors are measured."""
        return self.controller.norm

    def wrap(self, direction: Any) -> "Continued":
        """Itself: the clock always runs forwards."""
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order) -> Any:
        """The end of the first step, and (the controller's state, the step tried next)."""
        del dt0
        tnext, state = self.controller.init(
            terms, t0, t1, y0, self.first_step, args, func, error_order
        )
        return tnext, (state, tnext - t0)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ) -> Any:
        """The controller's decision; see diffrax."""
        state, wanted = controller_state
        keep, next_t0, next_t1, made_jump, state, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        # What a step cut short by the end of the interval proposes says little: its error is far
        # below the tolerance.
        cut_short = t1 - t0 < 0.999 * wanted
        wanted = jnp.where(keep & cut_short, wanted, next_t1 - next_t0)
        # Nor is it a failure: accepted, however small.
        result = diffrax.RESULTS.where(keep, diffrax.RESULTS.successful, result)
        return keep, next_t0, next_t1, made_jump, (state, wanted), result


class Equal(diffrax.AbstractStepSizeController):
    """Steps of one tick: whole numbers, so that the step of Euler's method is exactly `unit`."""

    def wrap(self, direction: Any) -> "Equal":
        """Itself: the clock always runs forwards."""
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order) -> Any:
        """The end of the first step, and no state."""
        del terms, t1, y0, dt0, args, func, error_order
        return t0 + 1, ()

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ) -> Any:
        """Every step is kept, and followed by one as long; see diffrax."""
        del t0, y0, y1_candidate, args, y_error, error_order
        return True, t1, t1 + 1, False, controller_state, diffrax.RESULTS.successful


def error_norm(tree: PyTree) -> Float[Array, ""]:
    """Root mean square over all entries; infinite rather than NaN.

    An infinite candidate has a NaN error relative to its own size. A NaN would become the next
    step's size, and every step's after that until the limit; an infinity halves the step.
    """
    norm = optimistix.rms_norm(tree)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)


def evaluations(solver: diffrax.AbstractSolver, steps: Any) -> Any:
    """Evaluations of the field in so many steps, accepted or not; -1 if the solver hides them."""
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        return jnp.full_like(steps, -1)
    if isinstance(solver, diffrax.AbstractWrappedSolver):
        return jnp.full_like(steps, -1)
    if isinstance(solver, diffrax.Euler):
        return steps
    tableau = getattr(solver, "tableau", None)
    if not isinstance(tableau, diffrax.ButcherTableau):
        return jnp.full_like(steps, -1)
    if not tableau.fsal:
        return steps * tableau.num_stages
    # The last stage of an accepted step is the first of the next.
    return steps * (tableau.num_stages - 1) + jnp.where(steps > 0, 1, 0)


def find_first_step(
    clocked: Clocked, y0: PyTree, args: Any, order: Any, rtol: Any, atol: Any
) -> Float[Array, ""]:
    """A first step as a fraction of the interval (Hairer, Norsett & Wanner 1993, II.4)."""

    def scaled(tree: PyTree) -> Float[Array, ""]:
        return error_norm(
            jax.tree.map(lambda leaf, start: leaf / (atol + rtol * abs(start)), tree, y0)
        )

    zero = jnp.zeros_like(clocked.t0)
    slope = clocked(zero, y0, args)
    size, speed = scaled(y0), scaled(slope)
    # Nothing moves: the whole interval. Nothing there yet: a small guess, as the source has it.
    guess = jnp.where(size < 1e-5, 1e-6, 0.01 * size / speed)
    guess = jnp.where(speed < 1e-5, 0.01, guess)
    ahead = clocked(guess, jax.tree.map(lambda y, f: y + guess * f, y0, slope), args)
    bend = scaled(jax.tree.map(jnp.subtract, ahead, slope)) / guess
    fastest = jnp.maximum(jnp.maximum(speed, bend), 1e-15)
    step = jnp.minimum(100 * guess, (0.01 / fastest) ** (1 / order))
    return jnp.where(jnp.isfinite(step), jnp.minimum(step, 1), 1)
