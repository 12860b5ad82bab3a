"""The largest eigenvalues of the Hessian along a run, each record starting from the last one.

A record costs `k + guards` Hessian-vector products, and k more an iteration: 1 to 4 iterations
where the eigenvectors moved little since the last record, 10 to 30 at the first. A product is 1 to
1.5 gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from driftlab import curvature
from driftlab.dynamics import Snapshot
from driftlab.measures.hessian import (
    FULL,
    check_data,
    inner_product,
    objective_hessian,
    parameter_count,
    vector_dtype,
)
from driftlab.measures.recording import Tracker
from driftlab.objective import Params


def sharpness(
    k: int = 1,
    *,
    batch_size: int | None = None,
    data: str = FULL,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    guards: int = 1,
) -> Tracker:
    """The sharpness `lambda_max(H)`: the algebraically largest eigenvalue of the Hessian.

    H is that of what is minimised, with its regulariser, over all the training data: a Hessian
    of a mini-batch has a larger top eigenvalue. Gradient descent is stable up to
    `2 / learning_rate` (heavy ball: `2 (1 + b) / learning_rate`), and training hovers there
    (Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of
    stability").

    Args:
      k: eigenvalues.
      batch_size: examples at once, to bound memory; None for all of them.
      data: "full", or "step" for the Hessian on the step's own batch.
      tolerance: on the residual `||H v - lambda v|| / lambda_max`; the eigenvalue is then wrong by
        about the square of it over the relative gap to the next.
      max_iterations: of LOBPCG a record.
      guards: further vectors followed, so that an eigenvalue that overtakes is not missed.

    Returns:
      A tracker of `sharpness`, in loss / parameter^2; `sharpness_residual`, relative, which says
      how far it converged; and with k > 1 of `hessian_eigenvalues`, `(k,)`, descending. All NaN
      where params are not finite.

    Raises:
      ValueError: for an argument out of range; from a sweep, if k exceeds the parameters.
    """
    check_data(data)

    def operator(snapshot: Snapshot) -> curvature.Operator:
        return objective_hessian(snapshot, "sharpness", batch_size, data)

    def values(snapshot: Snapshot, pairs: curvature.Eigenpairs) -> dict[str, Array]:
        return _eigenvalues("sharpness", "hessian_eigenvalues", pairs, k)

    return _tracker("sharpness", operator, values, k, tolerance, max_iterations, guards)


def preconditioned_sharpness(
    k: int = 1,
    *,
    preconditioner: Callable[..., PyTree[Array]] = curvature.preconditioner,
    or_identity: bool = False,
    batch_size: int | None = None,
    data: str = FULL,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    guards: int = 1,
) -> Tracker:
    """`lambda_max(P^{-1/2} H P^{-1/2})`, with the P that the step's own update divided by.

    An adaptive optimiser of frozen P is stable up to `2 / learning_rate` (RMSProp), or with an
    averaged gradient, as Adam's, up to `2 (1 + b1) / ((1 - b1) learning_rate)`, which is
    `38 / learning_rate` at b1 = 0.9 (Cohen et al. 2022, "Adaptive gradient methods at the edge of
    stability").

    Args:
      k: eigenvalues.
      preconditioner: `opt_state -> P`, a tree like params. `curvature.preconditioner` assumes the
        optax alias' own b2 and eps: give others by
        `functools.partial(curvature.preconditioner, b2=..., eps=...)`.
      or_identity: P = 1 for an optimiser without second moments, so that one measure serves a
        sweep over optimisers; the preconditioner is then called with `identity_like=params` too.
      batch_size: as in `sharpness`.
      data: likewise.
      tolerance: likewise.
      max_iterations: likewise.
      guards: likewise.

    Returns:
      A tracker of `preconditioned_sharpness`, in 1 / learning rate,
      `preconditioned_sharpness_residual`, and with k > 1 `preconditioned_eigenvalues`, `(k,)`.

    Raises:
      ValueError: for an argument out of range; if the state holds no second moment that is known.
    """
    check_data(data)

    def operator(snapshot: Snapshot) -> curvature.Operator:
        hessian = objective_hessian(snapshot, "preconditioned_sharpness", batch_size, data)
        extra = {"identity_like": snapshot.params} if or_identity else {}
        diagonal = preconditioner(snapshot.next_state.inner, **extra)
        return curvature.preconditioned(hessian, diagonal)

    def values(snapshot: Snapshot, pairs: curvature.Eigenpairs) -> dict[str, Array]:
        return _eigenvalues("preconditioned_sharpness", "preconditioned_eigenvalues", pairs, k)

    name = "preconditioned_sharpness"
    return _tracker(name, operator, values, k, tolerance, max_iterations, guards)


def gradient_alignment(
    k: int = 1,
    *,
    batch_size: int | None = None,
    data: str = FULL,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    guards: int = 1,
) -> Tracker:
    """The share of the gradient in the top eigenspace: `sum_{i<=k} (v_i.g)^2 / ||g||^2`.

    Near 1 where the gradient lives in the top-k space (Gur-Ari, Roberts, Dyer 2018), k / n for a
    random direction. The eigenpairs that it needs are recorded too, so there is no need of
    `sharpness` beside it.

    Args:
      k: the dimension of the eigenspace.
      batch_size: as in `sharpness`.
      data: likewise; g is the step's own gradient.
      tolerance: likewise; the share is wrong by about tolerance over the relative gap.
      max_iterations: likewise.
      guards: likewise.

    Returns:
      A tracker of `gradient_alignment`, between 0 and 1 (NaN where the gradient is 0), and what
      `sharpness` records.

    Raises:
      ValueError: for an argument out of range.
    """
    check_data(data)

    def operator(snapshot: Snapshot) -> curvature.Operator:
        return objective_hessian(snapshot, "gradient_alignment", batch_size, data)

    def values(snapshot: Snapshot, pairs: curvature.Eigenpairs) -> dict[str, Array]:
        gradient = snapshot.gradient
        inside = jax.vmap(lambda vector: inner_product(vector, gradient))(pairs.vectors)
        share = jnp.sum(inside**2) / inner_product(gradient, gradient)
        recorded = _eigenvalues("sharpness", "hessian_eigenvalues", pairs, k)
        return {"gradient_alignment": jnp.where(jnp.isfinite(pairs.values[0]), share, jnp.nan)} | (
            recorded
        )

    return _tracker("gradient_alignment", operator, values, k, tolerance, max_iterations, guards)


def _eigenvalues(name: str, plural: str, pairs: curvature.Eigenpairs, k: int) -> dict[str, Array]:
    largest = abs(pairs.values).max()
    residual = pairs.residuals.max() / jnp.where(largest == 0, 1, largest)
    values = {name: pairs.values[0], f"{name}_residual": residual}
    return values | ({plural: pairs.values} if k > 1 else {})


def _tracker(
    name: str,
    operator: Callable[[Snapshot], curvature.Operator],
    values: Callable[[Snapshot, curvature.Eigenpairs], dict[str, Array]],
    k: int,
    tolerance: float,
    max_iterations: int,
    guards: int,
) -> Tracker:
    for argument, value, least in (
        ("k", k, 1),
        ("guards", guards, 0),
        ("max_iterations", max_iterations, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{argument} must be a whole number, {least} or more; got {value!r}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive; got {tolerance!r}.")

    def init(params: Params) -> Array:
        count = parameter_count(params)
        if k > count:
            raise ValueError(f"{name}(k={k}) asks for more than the {count} parameters there are.")
        return curvature.initial_block(count, min(k + guards, count), vector_dtype(params))

    def update(snapshot: Snapshot, block: Array) -> tuple[dict[str, Array], Array]:
        pairs, block = curvature.tracked_eigenpairs(
            operator(snapshot), block, k, tolerance=tolerance, max_iterations=max_iterations
        )
        return values(snapshot, pairs), block

    return Tracker(name, init, update)
