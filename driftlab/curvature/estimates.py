"""Traces and norms of operators from products with random vectors, with their standard errors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from driftlab.curvature.factorizations import leave_one_out, orthonormal_columns
from driftlab.curvature.operators import Operator
from driftlab.curvature.vectors import FlatOperator, check_count, flat_operator, rademacher


class Estimate(NamedTuple):
    """A random estimate.

    Attributes:
      value: the estimate.
      standard_error: the standard deviation of `value`, estimated from the same probes; over the
        random vectors, not over data.
      products: matrix-vector products used.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
    products: int


def trace(
    operator: Operator,
    key: PRNGKeyArray,
    products: int = 30,
    method: str = "hutchinson",
    parallel: int = 1,
) -> Estimate:
    """The trace, from products with random signs z, for which `E[z.Az] = tr A`.

    - "hutchinson": the mean of `z.Az` (Hutchinson 1990). Variance `2 sum_{i != j} A_ij^2 / m`.
    - "hutch++": a third of the products finds a subspace that holds the large eigenvalues, whose
      trace is then exact (another third); the rest estimates what is left (Meyer et al. 2021).
      Better where the spectrum decays, as Hessians' do.
    - "xtrace": every product serves both purposes, left out one at a time (Epperly, Tropp, Webber
      2024, with the probes' lengths normalised, section 2.3). The best of the three; holds
      `products` vectors in memory. Its standard error takes the samples for independent, which
      they are not: it is too small by a factor of up to 1.8, or 2.2 at a dozen products (measured
      on decaying spectra). Exact if the products are as many as the dimensions.

    Args:
      operator: symmetric.
      key: of the random vectors.
      products: m, matrix-vector products to spend; 2 or more ("hutch++" 6, "xtrace" 4).
      method: one of the three.
      parallel: products computed at once (of the first two methods): memory for speed, on an
        accelerator.

    Returns:
      The estimate.

    Raises:
      ValueError: for an unknown method or too few products.
    """
    methods: dict[str, tuple[Callable[..., Estimate], int]] = {
        "hutchinson": (_hutchinson, 2),
        "hutch++": (_hutch_plus_plus, 6),
        "xtrace": (_xtrace, 4),
    }
    if method not in methods:
        raise ValueError(f"method must be one of {sorted(methods)}; got {method!r}.")
    function, fewest = methods[method]
    check_count("products", products)
    check_count("parallel", parallel)
    if products < fewest:
        raise ValueError(f"{method} needs products={fewest} or more; got {products}.")
    return function(flat_operator(operator), key, products, parallel)


def frobenius_norm(
    operator: Operator, key: PRNGKeyArray, products: int = 30, parallel: int = 1
) -> Estimate:
    """The Frobenius norm `(sum_i lambda_i^2)^{1/2}`: the root of the trace of `A^2`, by Hutch++.

    Without the large eigenvalues taken apart, `E|Az|^2 = |A|_F^2` is a mean of squares that a few
    of them dominate, and its standard error is as uncertain as itself.

    Args:
      operator: symmetric.
      key: of the random vectors.
      products: matrix-vector products; 6 or more.
      parallel: products computed at once.

    Returns:
      The estimate; its standard error to first order, `SE(|A|_F^2) / (2 |A|_F)`.

    Raises:
      ValueError: for fewer than 6 products.
    """
    flat = flat_operator(operator)
    check_count("products", products)
    check_count("parallel", parallel)
    if products < 6:
        raise ValueError(f"frobenius_norm needs products=6 or more; got {products}.")

    def squared(z: Float[Array, " n"]) -> Float[Array, ""]:
        image = flat.apply(z)
        return image @ image

    square = _hutch_plus_plus(flat, key, products, parallel, squared)
    norm = jnp.sqrt(square.value)
    return Estimate(norm, square.standard_error / jnp.where(norm == 0, 1, 2 * norm), products)


def _hutchinson(flat: FlatOperator, key: PRNGKeyArray, products: int, parallel: int) -> Estimate:
    samples = _at_probes(functools.partial(_quadratic_form, flat), flat, key, products, parallel)
    return Estimate(*_mean_and_error(samples), products)


def _hutch_plus_plus(
    flat: FlatOperator,
    key: PRNGKeyArray,
    products: int,
    parallel: int,
    form: Callable[[Float[Array, " n"]], Float[Array, ""]] | None = None,
) -> Estimate:
    """The trace of a quadratic form of one product each: `z.Az` unless given."""
    if form is None:
        form = functools.partial(_quadratic_form, flat)
    rank = min(products // 3, flat.size)
    sketch_key, probe_key = jax.random.split(key)
    sketch = _at_probes(flat.apply, flat, sketch_key, rank, parallel)
    # Of a matrix of low rank, some rows are arbitrary: orthonormal still, which is what counts.
    basis = orthonormal_columns(sketch.T).T
    inside = jax.lax.map(form, basis, batch_size=_at_once(parallel)).sum()
    left = products - 2 * rank
    outside = _at_probes(lambda z: form(z - (basis @ z) @ basis), flat, probe_key, left, parallel)
    mean, error = _mean_and_error(outside)
    return Estimate(inside + mean, error, products)


def _xtrace(flat: FlatOperator, key: PRNGKeyArray, products: int, parallel: int) -> Estimate:
    """Of each probe the trace inside the other products' span, and itself for what is outside."""
    if products >= flat.size:
        rows = jax.lax.map(
            flat.apply, jnp.eye(flat.size, dtype=flat.dtype), batch_size=_at_once(parallel)
        )
        return Estimate(jnp.trace(rows), jnp.zeros((), flat.dtype), flat.size)
    count = products // 2
    # Normal, for which the length of what is outside is independent of its direction.
    probes = jax.random.normal(key, (count, flat.size), flat.dtype)
    basis, inside, left_out = leave_one_out(
        jax.lax.map(flat.apply, probes, batch_size=_at_once(parallel)).T
    )
    projected = (
        basis.T @ jax.lax.map(flat.apply, basis.T, batch_size=_at_once(parallel)).T
    )  # Q^T A Q
    seen = basis.T @ probes.T
    # Columns: the coordinates of each probe in the basis without its own product.
    others = seen - left_out * (left_out * seen).sum(0)[None]
    lost = (left_out * (projected @ left_out)).sum(0)
    outside = ((seen - 2 * others) * inside + others * (projected @ others)).sum(0)
    length = (probes.T**2).sum(0) - (others**2).sum(0)
    samples = jnp.trace(projected) - lost + (flat.size - count + 1) * outside / length
    return Estimate(*_mean_and_error(samples), 2 * count)


def _quadratic_form(flat: FlatOperator, z: Float[Array, " n"]) -> Float[Array, ""]:
    return z @ flat.apply(z)


def _at_once(parallel: int) -> int | None:
    # A batch of one would be a vmap all the same.
    return None if parallel == 1 else parallel


def _at_probes(
    function: Callable[[Float[Array, " n"]], Array],
    flat: FlatOperator,
    key: PRNGKeyArray,
    count: int,
    parallel: int,
) -> Array:
    keys = jax.random.split(key, count)
    return jax.lax.map(lambda k: function(rademacher(k, flat)), keys, batch_size=_at_once(parallel))


def _mean_and_error(samples: Float[Array, " m"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return samples.mean(), samples.std(ddof=1) / samples.size**0.5
