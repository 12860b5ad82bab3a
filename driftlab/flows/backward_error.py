"""The modified equation of a one-step method, term by term, by differentiating the method."""

from collections.abc import Callable, Sequence
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from driftlab.flows.one_step import check_order
from driftlab.flows.vector_field import Field
from driftlab.hyperparameters import check_positive

Term = Callable[[PyTree], PyTree]


def taylor_coefficients(
    step: Callable[[PyTree, Float[Array, ""]], PyTree], order: int
) -> tuple[Term, ...]:
    """The functions d_j of `step(y, h) = y + h d_1(y) + h^2 d_2(y) + ...`.

    `d_j(y) = (1 / j!) d^j/dh^j step(y, h)` at h = 0, by j nested forward derivatives in h. d_1 is
    the field that the method follows as h goes to 0; Euler's method has d_j = 0 from j = 2 on.

    Args:
      step: `step(y, h) -> y`, differentiable in h at 0, with `step(y, 0) = y`.
      order: how many.

    Returns:
      `(d_1, ..., d_order)`, each a function of y in its structure.

    Raises:
      TypeError: if order is not an integer.
      ValueError: if it is less than 1.

    Source: Hairer, Lubich & Wanner, Geometric Numerical Integration, 2006, IX.1.
    Cost: the program doubles with every j: a tool for small problems, and orders to 6.
    """
    check_order(order, f"the program of the last term has 2^{order} copies of the step's")

    def coefficient(j: int) -> Term:
        def evaluate(y: PyTree) -> PyTree:
            along = lambda h: step(y, h)  # noqa: E731
            for _ in range(j):
                along = _derivative(along)
            clock = jnp.result_type(*(jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(y)))
            return jax.tree.map(lambda leaf: leaf / factorial(j), along(jnp.zeros((), clock)))

        return evaluate

    return tuple(coefficient(j) for j in range(1, order + 1))


def modified_equation_terms(coefficients: Sequence[Term], order: int) -> tuple[Term, ...]:
    """The terms f_j of the modified equation `dy/dt = f_1(y) + h f_2(y) + h^2 f_3(y) + ...`.

    Its solution at time h is the method's step, `y + h d_1(y) + h^2 d_2(y) + ...`, as a formal
    series. With `(D_k q)(y) = q'(y) f_k(y)`,

        f_j = d_j - sum_{i=2..j} (1 / i!) sum_{k_1 + ... + k_i = j} D_{k_1} ... D_{k_{i-1}} f_{k_i},

    each D a forward derivative. Truncated after P terms the error is `O(h^{P+1})` a step. This is
    the exact route, for theory and small problems; `log_map_flow` has the same order from P steps
    of the method, and `gradient_descent_flow` has closed forms for gradient descent.

    Args:
      coefficients: `(d_1, d_2, ...)` of the method, from `taylor_coefficients`; those that are
        missing are 0, so that `(f,)` is Euler's method on f: gradient descent for f = -grad L.
      order: P, how many terms.

    Returns:
      `(f_1, ..., f_P)`, each a function of y in its structure; `series_flow` adds them up.

    Raises:
      TypeError: if order is not an integer.
      ValueError: if it is less than 1, or there is no coefficient.

    Source: Hairer, Lubich & Wanner, Geometric Numerical Integration, 2006, IX.1.
    Cost: f_j holds 2^{j-1} - 1 nested derivatives; at 5 terms compiling takes seconds
    for two parameters, and is no route for networks.
    """
    check_order(order, f"the last term has 2^({order}-1) nested derivatives of the method")
    if not coefficients:
        raise ValueError("coefficients are empty: give at least d_1, the field itself.")
    terms: list[Term] = []
    # sums[i, j]: the inner sum of the formula, which obeys
    # sums[i, j] = sum_k D_k sums[i - 1, j - k], because D_k is linear.
    sums: dict[tuple[int, int], Term] = {}

    def along_terms(parts: list[tuple[Term, Term]]) -> Term:
        def evaluate(y: PyTree) -> PyTree:
            return _add(jax.jvp(q, (y,), (f(y),))[1] for f, q in parts)

        return evaluate

    def term(j: int, inner: list[Term]) -> Term:
        def evaluate(y: PyTree) -> PyTree:
            corrections = (
                jax.tree.map(lambda leaf, i=i: -leaf / factorial(i), total(y))
                for i, total in enumerate(inner, start=2)
            )
            first = coefficients[j - 1](y) if j <= len(coefficients) else None
            return _add((*corrections,) if first is None else (first, *corrections))

        return evaluate

    for j in range(1, order + 1):
        for i in range(2, j + 1):
            parts = [(terms[k - 1], sums[i - 1, j - k]) for k in range(1, j - i + 2)]
            sums[i, j] = along_terms(parts)
        terms.append(term(j, [sums[i, j] for i in range(2, j + 1)]))
        sums[1, j] = terms[-1]
    return tuple(terms)


def series_flow(terms: Sequence[Term], learning_rate: ArrayLike) -> Field:
    """The field `f_1(y) + h f_2(y) + ... + h^{P-1} f_P(y)`, in the papers' time: t = n h.

    Args:
      terms: `(f_1, ..., f_P)`, from `modified_equation_terms`.
      learning_rate: h; may be traced.

    Returns:
      `field(t, y, args) -> dy/dt`, in the structure and types of y; t and args are ignored.

    Raises:
      ValueError: if there is no term, or the learning rate is not positive.

    Cost: that of the terms.
    """
    if not terms:
        raise ValueError("terms are empty: there is no field.")
    check_positive("learning_rate", learning_rate)

    def field(t: Any, y: PyTree, args: Any) -> PyTree:
        del t, args
        return add_powers([term(y) for term in terms], learning_rate)

    return field


def add_powers(values: Sequence[PyTree], learning_rate: ArrayLike) -> PyTree:
    """`values[0] + h values[1] + h^2 values[2] + ...`, in the types of the values.

    Args:
      values: pytrees of one structure.
      learning_rate: h; may be traced, and of more precision than the values.

    Returns:
      The sum, in their structure.
    """

    def add(*leaves: Array) -> Array:
        rate = jnp.asarray(learning_rate, jnp.finfo(leaves[0].dtype).dtype)
        total = leaves[-1]
        for leaf in leaves[-2::-1]:
            total = leaf + rate * total
        return total

    return jax.tree.map(add, *values)


def _derivative(function: Callable[[Array], PyTree]) -> Callable[[Array], PyTree]:
    return lambda h: jax.jvp(function, (h,), (jnp.ones_like(h),))[1]


def _add(trees: Any) -> PyTree:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
