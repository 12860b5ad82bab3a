"""Discretisation drift: how far one step leaves the gradient flow that it discretises."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from driftlab import curvature
from driftlab.dynamics import Snapshot
from driftlab.measures.hessian import STEP, objective_and_data
from driftlab.measures.norms import effective_learning_rate
from driftlab.measures.recording import Measure
from driftlab.objective import Params


def iteration_drift(
    batch_size: int | None = None, rtol: float = 1e-4, max_steps: int = 256
) -> Measure:
    """The drift of one iteration, `||theta_{k+1} - phi_h(theta_k)||`, as it is and as predicted.

    phi_h is the gradient flow of the step's own loss over the step's own time, and h the
    effective learning rate `||theta_{k+1} - theta_k|| / ||g_k||`, which is the learning rate for
    gradient descent. To second order gradient descent drifts by `(h^2 / 2) ||H g||`; momentum and
    preconditioning leave the flow at first order already, which the measured drift shows and the
    predicted one does not.

    Cost: a Hessian-vector product for the prediction, and about 6 gradients a step of the solver
    for the flow: one step while `h lambda_max` is small, about `h lambda_max` of them where it is
    large.

    Args:
      batch_size: examples at once, to bound memory; None for all of them.
      rtol: relative tolerance of the flow's displacement over the step.
      max_steps: the most steps of the solver; the measured drift is NaN where they don't do.

    Returns:
      A measure of `drift`, the measured distance, and `drift_predicted`; parameter units.

    Raises:
      ValueError: from a sweep, for arguments out of range.

    Source: Barrett, Dherin (2021), "Implicit gradient regularization"; Rosca et al. (2023), "On a
    continuous time model of gradient descent dynamics and instability in deep learning".
    """

    def iteration_drift(snapshot: Snapshot) -> dict[str, Array]:
        # The room above, and diffrax with it: imported by who asks for a flow.
        from driftlab.flows import solve

        objective, examples = objective_and_data(snapshot, "iteration_drift", STEP)
        origin = snapshot.params

        def value(params: Params, batch: object) -> Array:
            return objective.value(params, batch)[0]

        operator = curvature.hessian(value, origin, examples, batch_size)
        rate = effective_learning_rate(snapshot)
        predicted = rate**2 / 2 * optax.tree.norm(operator.mv(snapshot.gradient))

        def field(time: Array, displacement: Params, args: object) -> Params:
            del time, args
            params = jax.tree.map(jnp.add, origin, displacement)
            slope = curvature.mean_over_batches(
                lambda batch: jax.grad(value)(params, batch), examples, batch_size
            )
            return jax.tree.map(jnp.negative, slope)

        # Of the displacement, so that the tolerance is relative to it and not to theta.
        still = jax.tree.map(jnp.zeros_like, origin)
        flow = solve(
            field, still, rate, rtol=rtol, atol=rtol * 1e-3 * _size(snapshot), max_steps=max_steps
        )
        at_rest = rate == 0  # where the flow stays, and a relative tolerance means nothing
        moved = jax.tree.map(lambda d: jnp.where(at_rest, 0, d), flow.y)
        distance = optax.tree.norm(jax.tree.map(jnp.subtract, snapshot.updates, moved))
        return {
            "drift": jnp.where(flow.failed & ~at_rest, jnp.nan, distance),
            "drift_predicted": predicted,
        }

    return iteration_drift


def _size(snapshot: Snapshot) -> Array:
    """The root mean square of the update's entries, below which errors are of no interest."""
    squares = optax.tree.norm(snapshot.updates, squared=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(snapshot.params))
    return jnp.maximum(jnp.sqrt(squares / count), jnp.finfo(squares.dtype).tiny)
