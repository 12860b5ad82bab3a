"""The rest of the Hessian's spectrum: trace, density, effective rank, and one direction's share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftlab import curvature
from driftlab.dynamics import Snapshot
from driftlab.measures.hessian import (
    FULL,
    check_data,
    inner_product,
    objective_hessian,
    probe_key,
)
from driftlab.measures.recording import Measure


def rayleigh_quotient(batch_size: int | None = None, data: str = FULL) -> Measure:
    """The sharpness along the gradient: `g.Hg / ||g||^2`, g the step's own gradient.

    At most the sharpness. With `data="step"` it is the batch sharpness, whose mean over batches
    hovers at `2 / learning_rate` under SGD (Andreyev, Beneventano 2024). Cost: one
    Hessian-vector product.

    Args:
      batch_size: examples at once; None for all of them.
      data: "full" for the Hessian over all the training data, "step" for the step's batch.

    Returns:
      A measure `rayleigh_quotient`, in loss / parameter^2; NaN where the gradient is 0.

    Raises:
      ValueError: if data is something else.
    """
    check_data(data)

    def rayleigh_quotient(snapshot: Snapshot) -> Float[Array, ""]:
        operator = objective_hessian(snapshot, "rayleigh_quotient", batch_size, data)
        gradient = snapshot.gradient
        curved = inner_product(gradient, operator.mv(gradient))
        return curved / inner_product(gradient, gradient)

    return rayleigh_quotient


def hessian_trace(
    products: int = 10, method: str = "hutchinson", batch_size: int | None = None, data: str = FULL
) -> Measure:
    """The trace of the Hessian, by random vectors. Cost: `products` Hessian-vector products.

    Args:
      products: Hessian-vector products a record.
      method: "hutchinson", "hutch++" or "xtrace"; see `curvature.trace`.
      batch_size: examples at once; None for all of them.
      data: "full" or "step".

    Returns:
      A measure of `hessian_trace` and `hessian_trace_error`, its standard error over the random
      vectors, which differ from record to record.

    Raises:
      ValueError: if data is something else; from a sweep, for too few products.
    """
    check_data(data)

    def hessian_trace(snapshot: Snapshot) -> dict[str, Array]:
        operator = objective_hessian(snapshot, "hessian_trace", batch_size, data)
        estimate = curvature.trace(operator, probe_key(snapshot), products, method)
        return {
            "hessian_trace": estimate.value,
            "hessian_trace_error": estimate.standard_error,
        }

    return hessian_trace


def hessian_effective_rank(
    products: int = 10, batch_size: int | None = None, data: str = FULL
) -> Measure:
    """The participation ratio of the eigenvalues, `(tr H)^2 / tr(H^2)`.

    r for r equal eigenvalues and no others; for an indefinite H, where the eigenvalues cancel in
    the trace, less. Cost: `products` Hessian-vector products, for both traces.

    Args:
      products: Hessian-vector products a record; 2 or more.
      batch_size: examples at once; None for all of them.
      data: "full" or "step".

    Returns:
      A measure `hessian_effective_rank`, between 0 and the number of parameters; 0 where H is 0.
      A ratio of two unbiased estimates, it is biased itself by a relative `1 / products`.

    Raises:
      ValueError: if products is too small.
    """
    check_data(data)
    if not isinstance(products, int) or products < 2:
        raise ValueError(f"products must be a whole number, 2 or more; got {products!r}.")

    def hessian_effective_rank(snapshot: Snapshot) -> Float[Array, ""]:
        operator = objective_hessian(snapshot, "hessian_effective_rank", batch_size, data)

        def probe(key: Array) -> tuple[Array, Array]:
            leaves, structure = jax.tree.flatten(snapshot.params)
            keys = jax.random.split(key, len(leaves))
            signs = [
                jax.random.rademacher(k, leaf.shape, leaf.dtype)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
            z = jax.tree.unflatten(structure, signs)
            image = operator.mv(z)
            return inner_product(z, image), inner_product(image, image)

        traces, squares = jax.lax.map(probe, jax.random.split(probe_key(snapshot), products))
        square = squares.mean()
        return jnp.where(square == 0, 0, traces.mean() ** 2 / jnp.where(square == 0, 1, square))

    return hessian_effective_rank


def spectral_density(
    probes: int = 2, steps: int = 40, batch_size: int | None = None, data: str = FULL
) -> Measure:
    """The spectrum of the Hessian, as nodes and weights of stochastic Lanczos quadrature.

    Cost: `probes * steps` Hessian-vector products, and `steps` vectors of memory a lane; record it
    rarely (`every`). Draw it with `curvature.spectral_density(curvature.Quadrature(nodes, weights,
    n))`, or see experiments/spectrum.py.

    Args:
      probes: random vectors; 2 or more.
      steps: Lanczos steps each, the resolution.
      batch_size: examples at once; None for all of them.
      data: "full" or "step".

    Returns:
      A measure of `density_nodes` and `density_weights`, `(probes, steps)` each.

    Raises:
      ValueError: if data is something else; from a sweep, for fewer than 2 probes.
    """
    check_data(data)

    def spectral_density(snapshot: Snapshot) -> dict[str, Array]:
        operator = objective_hessian(snapshot, "spectral_density", batch_size, data)
        rule = curvature.quadrature(operator, probe_key(snapshot), probes, steps)
        return {"density_nodes": rule.nodes, "density_weights": rule.weights}

    return spectral_density
