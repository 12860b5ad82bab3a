"""What a central flow predicts of its optimiser's averages: loss, gradient norm, variances."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from driftlab.curvature.factorizations import eigh
from driftlab.dynamics import Snapshot
from driftlab.flows.central import CentralState
from driftlab.flows.vector_field import gradient_function


def central_averages(snapshot: Snapshot) -> dict[str, Array]:
    """A measure of a central flow: what the optimiser does on average over its oscillation.

    - `central_loss`: `L + <H, Sigma> / 2`, which is `L + sum_i e_i X_ii / 2`, `L + tr X` at the
      edge: the time-averaged loss;
    - `central_gradient_norm_squared`: `|g|^2 + <H^2, Sigma>`;
    - `central_variance`: Sigma's k largest eigenvalues, descending, `(k,)`: the variances of the
      optimiser's oscillation along Sigma's eigenvectors (`covariance_eigenpairs` has both);
    - `central_eigenvalues`: of `P^{-1} H`, `(k,)`, to be compared with 2;
    - `central_residual`: of the complementarity problem.

    Args:
      snapshot: of a step of a central flow.

    Returns:
      Name -> array. A variance is never NaN where the state is finite: below the edge it is 0.

    Raises:
      TypeError: if the snapshot is not of a central flow.

    Source: Cohen et al. (2025), predictions of the central flow. Cost: k Hessian-vector products.
    """
    inner = snapshot.next_state.inner
    if not isinstance(inner, CentralState):
        raise TypeError(
            f"central_averages is a measure of driftlab.flows.central_flow; this run's state is a "
            f"{type(inner).__name__}."
        )
    flat, unflatten = ravel_pytree(snapshot.params)
    objective = snapshot.objective
    assert objective is not None  # central_flow has one
    gradient = gradient_function(objective)
    product = jax.linearize(lambda w: ravel_pytree(gradient(unflatten(w)))[0], flat)[1]
    images = jax.lax.map(product, inner.basis)
    curvature = images @ inner.basis.T
    slope = ravel_pytree(snapshot.gradient)[0]
    return {
        "central_loss": snapshot.value + (curvature * inner.covariance).sum() / 2,
        "central_gradient_norm_squared": slope @ slope
        + ((images @ images.T) * inner.covariance).sum(),
        "central_variance": covariance_eigenpairs(inner)[0],
        "central_eigenvalues": inner.eigenvalues,
        "central_residual": inner.residual,
    }


def covariance_eigenpairs(state: CentralState) -> tuple[Float[Array, " k"], Float[Array, "k n"]]:
    """The eigenvalues and unit eigenvectors of an oscillation's covariance `Sigma = U^T X U`.

    Args:
      state: the inner state of a central flow, whose X is the mean over its last step.

    Returns:
      `(variances, directions)`: descending; columns in the order of `ravel_pytree(params)`. The
      direction of a variance of 0 is a row of zeros.
    """
    # Sigma = R^T R with R = X^1/2 U: its eigenvalues are those of R R^T, of size k.
    values, vectors = eigh(state.covariance)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]) @ vectors.T
    factor = root @ state.basis
    variances, mix = eigh(factor @ factor.T)
    variances, mix = jnp.maximum(variances[::-1], 0), mix[:, ::-1]
    # Beside the largest, what is at rounding is nothing.
    kept = variances > float(jnp.finfo(variances.dtype).eps) * variances[0]
    scale = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, variances, 1)), 0)
    return jnp.where(kept, variances, 0), (mix.T @ factor) * scale[:, None]
