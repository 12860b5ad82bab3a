"""The principal flow: gradient descent in continuous time, instabilities included.

The fields are in the papers' time: at learning rate h, iteration n is time `t = n h`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.principal_complex import (
    CONTINUATIONS,
    Neighborhood,
    PrincipalState,
    holomorphic_neighborhood,
    linearized_neighborhood,
    real_neighborhood,
    to_complex,
)
from driftlab.flows.principal_krylov import dense_function, projected_function
from driftlab.flows.stability_coefficients import (
    check_momentum,
    coefficient_series,
    principal_coefficient,
)
from driftlab.flows.vector_field import Flow, Loss, check_real, loss_function
from driftlab.hyperparameters import check_positive
from driftlab.objective import Objective, Params

METHODS = ("krylov", "hybrid", "top", "dense")
STATES = ("pair", "complex", "real")


def principal_flow(
    loss: Loss | Objective,
    learning_rate: ArrayLike,
    *,
    method: str = "krylov",
    state: str = "pair",
    continuation: str = "holomorphic",
    products: int = 24,
    top: int = 6,
    bulk_order: int = 2,
    momentum: ArrayLike | None = None,
    extra_term: bool = False,
    batch_size: int | None = None,
) -> Flow:
    """The principal flow, `dy/dt = sum_i alpha(h lambda_i) (g.u_i) u_i`.

    (lambda_i, u_i) are the eigenpairs of the Hessian at y, g the gradient there, and alpha is
    `principal_coefficient`, `log(1 - z) / z`: the sum of all terms of the modified equation of
    gradient descent that are made of g and H alone. On a quadratic it passes through every iterate
    at every learning rate; elsewhere a step of it is O(h^3) from one of descent (as with implicit
    gradient regularisation, at a smaller constant), or O(h^4) with the extra term.

    Where an eigenvalue exceeds 1 / h the solution is complex: it passes through the iterates,
    which jump from side to side, on a spiral around the minimum. `Flow.params` is its real part.

    Args:
      loss: what is minimised, as in `gradient_flow`; with a complex state see `continuation`.
      learning_rate: h, positive; may be traced.
      method: how functions of the Hessian are evaluated.
        "krylov": from `products` Hessian-vector products, the Krylov space of the gradient. Exact
        for as many parameters; 12 give 1e-6 while `h lambda < 1`, more are needed where an
        eigenvalue is close to 1 / h.
        "hybrid": from the top eigenvectors and `products` products for the rest.
        "top": the top eigenvectors exactly, the rest by a flow of low order; wrong by about
        `z^q / (q + 1)` of the gradient outside, z the first `h lambda` left out.
        "dense": from the whole Hessian; n products and n^2 numbers.
      state: "pair" for complex parameters as a `PrincipalState` of real arrays; "complex" for
        complex arrays (which diffrax calls work in progress); "real" for the real part of the
        field on real parameters, which predicts the size of each component of the iterates, not
        its sign, and so no iterates beyond `h lambda = 1`.
      continuation: of the loss to complex parameters. "holomorphic" evaluates it there: of
        analytic functions only, no norm, modulus or conjugate. "linearized" takes gradient and
        Hessian at the real part x, `g(x + i y) = g(x) + i H(x) y`: for every loss (relu too), with
        an error O(|y|^2) that a quadratic has not.
      products: m, with "krylov" and "hybrid".
      top: k, with "hybrid" and "top". The eigenvectors are those of the Hessian at the real part:
        of each state, by Lanczos from scratch; or those that the field gets as args, from
        `principal_directions` at the start of the step, for k products. "hybrid" loses nothing if
        they are old; "top" does.
      bulk_order: q, terms of the low-order flow outside the top eigenvectors, 1 to 3.
      momentum: b of heavy ball, `v' = b v + g`, `theta' = theta - h v`: then alpha is
        `log(mu(z)) / z`, mu the root of heavy ball's recurrence, and the flow passes through the
        iterates once the velocity has settled. May be traced.
      extra_term: adds `-(h^2 / 12) T[g, g]`, the first term that is not principal.
      batch_size: with an objective, the examples of one gradient or product; None for all.

    Returns:
      The flow: `field(t, y, args)`, `init(params) -> y`, `params(y)`. args is None or, with
      "hybrid" and "top", orthonormal rows `(k, n)`.

    Raises:
      ValueError: if an argument is out of range or belongs to another method; from the field, if
        the loss is not a scalar, complex for complex parameters.
      TypeError: from `init`, if a parameter is not a real floating-point array.

    Source: Rosca, Wu, Qin, Dherin (2023), "On a continuous time model of gradient descent
    dynamics and instability in deep learning", definition of the principal flow. The projections
    and the heavy-ball analogue are not in the paper.

    Cost: 1 gradient and m (hybrid: k + m; top: k + q - 1; dense: n) Hessian-vector products an
    evaluation; a complex product is 2 real ones (linearized), about 4 (holomorphic). It is stiff
    beyond `h lambda = 1`: about 50 evaluations an iteration at rtol 1e-6, 15 elsewhere.
    """
    _check(learning_rate, method, state, continuation, products, top, bulk_order)
    check_momentum(momentum)
    if momentum is not None and extra_term:
        raise ValueError("extra_term is that of gradient descent: leave it out with momentum.")
    loss_function(loss)  # refuses what is none
    real_part = state == "real"

    def coefficient(values: Array) -> Array:
        h = jnp.asarray(learning_rate, jnp.finfo(values.dtype).dtype)
        alpha = principal_coefficient(h * values, momentum)
        return alpha.real if real_part else alpha

    def neighborhood(y: PyTree) -> Neighborhood:
        if real_part:
            return real_neighborhood(loss, y, batch_size)
        params = to_complex(y) if state == "pair" else y
        if continuation == "linearized":
            return linearized_neighborhood(loss, params, batch_size)
        return holomorphic_neighborhood(loss, params, batch_size)

    def rows(y: PyTree, args: Any) -> Float[Array, "k n"] | None:
        if method not in ("hybrid", "top"):
            return None
        if args is not None:
            return args
        return principal_directions(loss, top, batch_size)(to_params(y))

    def field(t: Any, y: PyTree, args: Any) -> PyTree:
        del t
        near = neighborhood(y)
        g, hermitian = near.gradient, near.hermitian
        h = jnp.asarray(learning_rate, jnp.finfo(g.dtype).dtype)
        if method == "dense":
            slope = dense_function(near.product, g, coefficient, hermitian)
        else:
            steps = 0 if method == "top" else products
            slope, rest = projected_function(
                near.product, g, coefficient, hermitian, steps, rows(y, args)
            )
            if method == "top":
                slope = slope + _bulk(near, rest, h)
        if extra_term:
            slope = slope - h**2 / 12 * near.third(g, g)
        return _like(near.unflatten(slope), y)

    def _bulk(near: Neighborhood, rest: Array, h: Array) -> Array:
        first, *others = [jnp.asarray(x, h.dtype) for x in coefficient_series(bulk_order, momentum)]
        total, power = first * rest, rest
        for term in others:
            power = h * near.product(power)
            total = total + term * power
        return total

    def init(params: Params) -> PyTree:
        params = jax.tree.map(jnp.asarray, params)
        check_real(params)
        pair = PrincipalState(params, jax.tree.map(jnp.zeros_like, params))
        return {"pair": pair, "complex": to_complex(pair), "real": params}[state]

    def to_params(y: PyTree) -> Params:
        if state == "pair":
            return y.real
        return y if real_part else jax.tree.map(jnp.real, y)

    return Flow(field, init, to_params)


def principal_directions(
    loss: Loss | Objective, top: int, batch_size: int | None = None
) -> Callable[[Params], Float[Array, "k n"]]:
    """The Hessian's top eigenvectors, which the principal flow treats apart.

    `flow(principal.field, h, objective, to_state=..., to_params=..., args=lambda state:
    directions(state.params))` finds them once a step.

    Args:
      loss: as in `principal_flow`.
      top: k; those of the algebraically largest eigenvalues. All above about `0.5 / h` is best.
      batch_size: as in `principal_flow`.

    Returns:
      `params -> (k, n)`, orthonormal rows, parameters in the order of `jax.tree.leaves`.

    Raises:
      ValueError: if top is not a positive integer; from the function, if it exceeds the parameters.

    Cost: 20 to 100 products: Lanczos from scratch.
    """
    from driftlab import curvature

    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ValueError(f"top must be a whole number, 1 or more; got {top!r}.")

    value = loss_function(loss)

    def directions(params: Params) -> Float[Array, "k n"]:
        if isinstance(loss, Objective):
            operator = curvature.hessian(
                lambda p, batch: loss.value(p, batch)[0], params, loss.data, batch_size
            )
        else:
            operator = curvature.hessian(lambda p, _: value(p), params)
        # At the solver's own tolerance: near h lambda = 1 a looser one is what limits the flow.
        pairs = curvature.eigenpairs(operator, top)
        rows = [leaf.reshape(top, -1) for leaf in jax.tree.leaves(pairs.vectors)]
        return jnp.concatenate(rows, axis=1)

    return directions


def _like(slope: PyTree, y: PyTree) -> PyTree:
    """A rate of change in the structure and types of a state."""
    if isinstance(y, PrincipalState):
        parts = PrincipalState(jax.tree.map(jnp.real, slope), jax.tree.map(jnp.imag, slope))
        return jax.tree.map(lambda rate, leaf: rate.astype(leaf.dtype), parts, y)
    return jax.tree.map(lambda rate, leaf: rate.astype(leaf.dtype), slope, y)


def _check(
    learning_rate: Any,
    method: str,
    state: str,
    continuation: str,
    products: int,
    top: int,
    bulk_order: int,
) -> None:
    for name, value, known in (
        ("method", method, METHODS),
        ("state", state, STATES),
        ("continuation", continuation, CONTINUATIONS),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    for name, value in (("products", products), ("top", top)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more; got {value!r}.")
    if bulk_order not in (1, 2, 3) or isinstance(bulk_order, bool):
        raise ValueError(f"bulk_order must be 1, 2 or 3; got {bulk_order!r}.")
    check_positive("learning_rate", learning_rate)
