"""Stochastic Lanczos quadrature: the spectral density, and traces of functions of an operator."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from driftlab.curvature import lanczos
from driftlab.curvature.estimates import Estimate
from driftlab.curvature.lanes import solve_in_lanes
from driftlab.curvature.operators import Operator
from driftlab.curvature.vectors import FlatOperator, check_count, flat_operator, rademacher


class Quadrature(NamedTuple):
    """Nodes and weights that stand for the eigenvalues: `tr f(A) ~ n sum_i w_i f(t_i)`.

    Attributes:
      nodes: Ritz values t, `(probes, steps)`.
      weights: w, `(probes, steps)`; each probe's sum to 1, each an estimate of its own.
      dimension: n.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    dimension: int

    def trace_of(self, function: Callable[[Array], Array]) -> Estimate:
        """`tr f(A)` with its standard error over the probes.

        Args:
          function: f, on arrays.

        Returns:
          The estimate; exact for a polynomial f of degree up to `2 steps - 1`, but for the random
          vectors. NaN where f is NaN at a node that has weight.
        """
        terms = jnp.where(self.weights == 0, 0, self.weights * function(self.nodes))
        samples = self.dimension * terms.sum(1)
        probes, steps = self.nodes.shape
        error = samples.std(ddof=1) / probes**0.5
        return Estimate(samples.mean(), error, probes * steps)


class Density(NamedTuple):
    """A smoothed spectral density on a grid.

    Attributes:
      grid: eigenvalues lambda, `(points,)`.
      values: the density per unit of eigenvalue, of integral 1, `(points,)`.
      standard_errors: of the values, over the probes, `(points,)`.
    """

    grid: Float[Array, " points"]
    values: Float[Array, " points"]
    standard_errors: Float[Array, " points"]


def quadrature(
    operator: Operator,
    key: PRNGKeyArray,
    probes: int = 5,
    steps: int = 40,
    parallel: int = 1,
) -> Quadrature:
    """Stochastic Lanczos quadrature of a symmetric operator.

    From each random vector z of signs, `steps` of Lanczos give Ritz values t_i and weights
    `w_i = (first component of their vectors)^2`: the Gauss rule of the measure
    `sum_j (u_j.z)^2 / n delta(lambda_j)`, whose mean is the spectral density.
    Cost: `probes * steps` products.

    Args:
      operator: symmetric.
      key: of the random vectors.
      probes: random vectors; 2 or more, for a standard error.
      steps: of Lanczos, which is the resolution: the extreme eigenvalues first; memory is `steps`
        vectors a probe.
      parallel: probes at once.

    Returns:
      Nodes and weights.

    Raises:
      ValueError: for fewer than 2 probes, or other arguments out of range.

    Source: Golub, Meurant (1994); Lin, Saad, Yang (2016), section 3.2.2; for networks, Ghorbani,
    Krishnan, Xiao (2019).
    """
    flat = flat_operator(operator)
    check_count("steps", steps)
    check_count("parallel", parallel)
    if not isinstance(probes, int) or probes < 2:
        raise ValueError(f"a standard error needs probes=2 or more; got {probes!r}.")
    steps = min(steps, flat.size)

    def solve(flat: FlatOperator, keys: PRNGKeyArray) -> tuple[Array, Array]:
        def single(key: PRNGKeyArray) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
            probe_key, spare_key = jax.random.split(key)
            krylov = lanczos.start(flat, steps, rademacher(probe_key, flat), spare_key)
            krylov = jax.lax.fori_loop(0, steps, lambda _, k: lanczos.step(flat, k), krylov)
            nodes, vectors, _ = lanczos.ritz(krylov)
            return nodes, vectors[0] ** 2

        # A batch of one would be a vmap all the same, which costs a quarter more.
        return jax.lax.map(single, keys, batch_size=None if parallel == 1 else parallel)

    nodes, weights = solve_in_lanes(solve, flat, jax.random.split(key, probes))
    return Quadrature(nodes, weights, flat.size)


def spectral_density(
    quadrature: Quadrature,
    grid: Float[Array, " points"] | None = None,
    width: float | None = None,
    points: int = 400,
) -> Density:
    """The density of eigenvalues, smoothed by a Gaussian.

    `rho(lambda) = mean over probes of sum_i w_i N(lambda; t_i, width^2)`.

    Args:
      quadrature: nodes and weights.
      grid: where, `(points,)`; None for an even grid from the lowest node to the highest, with
        four widths to either side.
      width: the Gaussian's standard deviation, in units of the eigenvalue; None for a hundredth of
        the range of the nodes. Features narrower than it, and than the spacing of the nodes in the
        bulk, are not resolved.
      points: of the grid, if that is None.

    Returns:
      The density.

    Raises:
      ValueError: if the width is not positive.
    """
    if width is not None and not isinstance(width, Tracer) and not width > 0:
        raise ValueError(f"width must be positive; got {width!r}.")
    nodes = quadrature.nodes
    low, high = nodes.min(), nodes.max()
    extent = jnp.maximum(high - low, 1e-6 * jnp.maximum(abs(high), abs(low)))
    extent = jnp.where(extent == 0, 1, extent)
    sigma = jnp.asarray(extent / 100 if width is None else width, nodes.dtype)
    if grid is None:
        grid = jnp.linspace(low - 4 * sigma, high + 4 * sigma, points)
    distances = (grid[:, None, None] - nodes[None]) / sigma
    bells = jnp.exp(-0.5 * distances**2) / (sigma * jnp.sqrt(2 * jnp.pi).astype(nodes.dtype))
    samples = (bells * quadrature.weights[None]).sum(2)
    errors = samples.std(axis=1, ddof=1) / samples.shape[1] ** 0.5
    return Density(grid, samples.mean(1), errors)


def log_determinant(
    operator: Operator,
    key: PRNGKeyArray,
    damping: float | Float[Array, ""] = 0.0,
    probes: int = 10,
    steps: int = 40,
    parallel: int = 1,
) -> Estimate:
    """`log det(A + damping I)` by stochastic Lanczos quadrature.

    Args:
      operator: A, symmetric.
      key: of the random vectors.
      damping: added to each eigenvalue, so that all are positive; in their units.
      probes: random vectors; 2 or more.
      steps: of Lanczos; more where `damping` is small beside the largest eigenvalue.
      parallel: probes at once.

    Returns:
      The estimate; NaN if `A + damping I` shows an eigenvalue that is not positive. Its standard
      error does not know of a bias from too few steps.

    Raises:
      ValueError: for arguments out of range.
    """
    rule = quadrature(operator, key, probes, steps, parallel)
    return rule.trace_of(lambda nodes: jnp.log(nodes + damping))
