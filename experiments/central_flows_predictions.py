"""What the models of the edge of stability say of the optimiser, beside what it does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from driftlab.dynamics import Snapshot
from driftlab.flows.central import CentralState
from driftlab.flows.central_predictions import central_averages, covariance_eigenpairs
from driftlab.flows.dynamics import FlowState
from driftlab.flows.edge import Edge
from driftlab.flows.rod import Rod
from experiments.central_flows_models import Accompanied


def predictions(eigenvectors: int) -> Callable[[Snapshot], dict[str, Array]]:
    """A measure of an accompanied model.

    With `delta_n = (2 x_n - x_{n-1} - x_{n+1}) / 4` what alternates in the optimiser's iterates,
    and `x_n - delta_n` what does not:

    - `predicted_loss`: the central flow's `L + <H, Sigma> / 2`; the mean over both ends of the rod;
      the loss where the model stands for the others;
    - `oscillation`: the mean square of delta: `tr Sigma`, the square of half the rod, 0 for the
      stable flow; of the optimiser `|delta_n|^2` itself;
    - `variance_predicted`, `variance_measured`: of the central flow, the eigenvalues of Sigma, and
      `(v_i.delta_n)^2` along its eigenvectors; NaN for the others;
    - `distance`: of the model to `x_n - delta_n`; `distance_moved` is that point's from the start;
    - `residual`: of the central flow's complementarity problem; NaN for the others.

    Args:
      eigenvectors: of the central flow.

    Returns:
      The measure.
    """

    def measure(snapshot: Snapshot) -> dict[str, Array]:
        inner: Accompanied = snapshot.state.inner
        ahead: Accompanied = snapshot.next_state.inner
        delta = jax.tree.map(
            lambda now, before, after: (2 * now - before - after) / 4,
            inner.reference.params, inner.before, ahead.reference.params,
        )  # fmt: skip
        middle = jax.tree.map(jnp.subtract, inner.reference.params, delta)
        first = snapshot.initial_params
        start = snapshot.params if first is None else first
        none = jnp.full((), jnp.nan, snapshot.value.dtype)
        found = {
            "predicted_loss": snapshot.value,
            "oscillation": jnp.zeros_like(none),
            "variance_predicted": jnp.broadcast_to(none, (eigenvectors,)),
            "variance_measured": jnp.broadcast_to(none, (eigenvectors,)),
            "residual": none,
            "distance": _distance(snapshot.params, middle),
            "distance_moved": _distance(start, middle),
        }
        model = inner.model
        if isinstance(model, CentralState):
            after = snapshot.next_state._replace(inner=ahead.model)
            found |= _of_central(snapshot._replace(next_state=after), delta)
        elif isinstance(model, FlowState) and isinstance(model.y, Rod | Edge):
            found |= _of_rod(snapshot, model.y)
        elif not isinstance(model, FlowState):
            found["oscillation"] = optax.tree.norm(delta, squared=True)
        return found

    return measure


def _of_central(snapshot: Snapshot, delta: PyTree[Array]) -> dict[str, Array]:
    averages = central_averages(snapshot)
    variances, directions = covariance_eigenpairs(snapshot.next_state.inner)
    return {
        "predicted_loss": averages["central_loss"],
        "oscillation": variances.sum(),
        "variance_predicted": variances,
        "variance_measured": jnp.square(directions @ ravel_pytree(delta)[0]),
        "residual": averages["central_residual"],
    }


def _of_rod(snapshot: Snapshot, y: Rod | Edge) -> dict[str, Array]:
    half = y.half if isinstance(y, Rod) else _scaled(y.direction, y.amplitude)
    objective = snapshot.objective
    assert objective is not None  # every model here has one
    points = [jax.tree.map(jnp.add, y.centre, _scaled(half, sign)) for sign in (1, -1)]
    ends = [objective.value(point, objective.data)[0] for point in points]
    return {
        "predicted_loss": (ends[0] + ends[1]) / 2,
        "oscillation": optax.tree.norm(half, squared=True),
    }


def _scaled(tree: PyTree, factor: Any) -> PyTree:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _distance(first: PyTree, second: PyTree) -> Array:
    return optax.tree.norm(jax.tree.map(jnp.subtract, first, second))
