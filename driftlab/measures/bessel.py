"""Ratios of modified Bessel functions `I_nu` and their normaliser, for orders 0 to 5e7.

One route for every order and argument: the uniform (Debye) expansion in 1/order where the order is
at least 64, and for smaller ones a fixed number of recurrence steps down from there, all of whose
terms are positive. No special function of the library is called, so that nothing overflows, and
everything differentiates, to any order, also at argument 0.
Source: NIST Digital Library of Mathematical Functions, sections 10.25, 10.29 and 10.41.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Where the expansion starts, and its terms: from the order 64 on eight terms leave 3e-17.
_SMALLEST_ORDER = 64
_TERMS = 8

Polynomial = list[Fraction]


def log_bessel_normalized(argument: Float[Array, ""], order: float) -> Float[Array, ""]:
    """`log(Gamma(nu + 1) (2/x)^nu I_nu(x))`, which is `log 0F1(; nu + 1; x^2 / 4)`; 0 at x = 0.

    With N = nu + M, t = x/N, s = sqrt(1 + t^2), p = 1/s and r_m = I_{m+1}(x) / I_m(x),

        log 0F1(; N + 1) = N ((s-1) - log((s+1)/2)) - (log s)/2 + sum_k (D_k(p) - D_k(1)) / N^k
        log 0F1(; nu + 1) = log 0F1(; N + 1) + sum_{m=1..M} log(1 + x r_{nu+m} / (2 (nu+m)))

    where the D_k are the logarithmic Debye polynomials. Each difference has its factor taken out,
    so that relative accuracy is kept down to x = 0.
    Cost: a few dozen operations, and for nu < 64 as many steps of a loop as are missing.

    Args:
      argument: x >= 0, a floating-point array of any shape.
      order: nu >= 0, static.

    Returns:
      The logarithm, of x's shape and dtype; about x for x much larger than the order.
    """
    high, steps = _raised(order)
    t, s, p = _variables(argument, high)
    excess = t * (t / (1 + s))  # s - 1
    polynomials = _evaluate(_differences(high), p)
    value = high * (excess - jnp.log1p(excess / 2)) - jnp.log1p(excess) / 2
    value = value - excess * p * polynomials
    if not steps:
        return value

    def lower(carry: tuple, orders: Float[Array, ""]) -> tuple[tuple, None]:
        value, ratio = carry
        step = argument / (2 * orders) * ratio
        return (value + jnp.log1p(step), argument / (2 * orders) / (1 + step)), None

    return _descend(lower, (value, _ratio(argument, high)), order, steps)[0]


def bessel_ratio(argument: Float[Array, ""], order: float) -> Float[Array, ""]:
    """`I_{nu+1}(x) / I_nu(x)`, with full relative precision where it is small.

    The derivative in x of the expansion above, then `r_m = x / (2 (m + 1) + x r_{m+1})` downwards,
    which contracts errors by r^2.

    Args:
      argument: x >= 0, a floating-point array of any shape.
      order: nu >= 0, static.

    Returns:
      The ratio, in [0, 1), of x's shape and dtype.
    """
    high, steps = _raised(order)
    value = _ratio(argument, high)

    def lower(ratio: Array, orders: Float[Array, ""]) -> tuple[Array, None]:
        half = argument / (2 * orders)
        return half / (1 + half * ratio), None

    return _descend(lower, value, order, steps)


def bessel_ratio_complement(argument: Float[Array, ""], order: float) -> Float[Array, ""]:
    """`1 - I_{nu+1}(x) / I_nu(x)`, with full relative precision where the ratio is near 1.

    `c_m = (2 (m+1) - x c_{m+1}) / (2 (m+1) + x (1 - c_{m+1}))` downwards, which multiplies a
    relative error by up to (2 N + 1) / (2 nu + 1), at most 129.

    Args:
      argument: x >= 0, a floating-point array of any shape.
      order: nu >= 0, static.

    Returns:
      The complement, in (0, 1], of x's shape and dtype; about (nu + 1/2) / x for large x.
    """
    high, steps = _raised(order)
    t, s, p = _variables(argument, high)
    value = (1 + 1 / (s + t)) / (1 + s) + _ratio_correction(t, p, high)

    def lower(complement: Array, orders: Float[Array, ""]) -> tuple[Array, None]:
        double = 2 * orders
        scaled = argument * complement
        return (double - scaled) / (double - scaled + argument), None

    return _descend(lower, value, order, steps)


def _raised(order: float) -> tuple[float, int]:
    """The order at which the expansion is used, and how many steps above the wanted one it is."""
    steps = max(0, math.ceil(_SMALLEST_ORDER - order))
    return order + steps, steps


def _descend(lower: Callable, start: Array | tuple, order: float, steps: int) -> Array:
    """Steps from order + steps down to the order; at each, `lower` gets `m + 1`."""
    if not steps:
        return start  # type: ignore[return-value]
    dtype = jax.tree.leaves(start)[0].dtype
    orders = order + 1 + jnp.arange(steps - 1, -1, -1, dtype=dtype)
    return jax.lax.scan(lower, start, orders)[0]  # type: ignore[return-value]


def _variables(argument: Array, order: float) -> tuple[Array, Array, Array]:
    t = argument / order
    s = _hypotenuse(t)
    return t, s, 1 / s


def _hypotenuse(t: Array) -> Array:
    return jnp.hypot(jnp.ones_like(t), t)  # sqrt(1 + t^2) without overflow of the square


def _ratio(argument: Array, order: float) -> Array:
    t, _, p = _variables(argument, order)
    return _half_tangent(t) - _ratio_correction(t, p, order)


def _ratio_correction(t: Array, p: Array, order: float) -> Array:
    """What 1/order adds to `t / (1 + s) - I_{N+1} / I_N`: from `log s` and the polynomials."""
    slope = _evaluate(_derivatives(order), p)
    return t * p * p / order * (0.5 + p * slope)


@jax.custom_jvp
def _half_tangent(t: Array) -> Array:
    """`t / (1 + sqrt(1 + t^2))`; the quotient rule's derivative would cancel for large t."""
    return t / (1 + _hypotenuse(t))


@_half_tangent.defjvp
def _half_tangent_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (t,), (tangent,) = primals, tangents
    s = _hypotenuse(t)
    return _half_tangent(t), tangent / s / (1 + s)


def _evaluate(polynomial: tuple[float, ...], p: Array) -> Array:
    """A polynomial, from its coefficients in ascending powers."""
    value = jnp.full_like(p, polynomial[-1])
    for coefficient in reversed(polynomial[:-1]):
        value = value * p + coefficient
    return value


def _differences(order: float) -> tuple[float, ...]:
    """`(P(1) - P(p)) / (1 - p)`: each coefficient is the sum of those of the powers above."""
    polynomial = _expansion(order)
    return tuple(float(sum(polynomial[power + 1 :])) for power in range(len(polynomial) - 1))


def _derivatives(order: float) -> tuple[float, ...]:
    """`P'(p)`."""
    return tuple(float(power * c) for power, c in enumerate(_expansion(order)))[1:]


@functools.lru_cache(maxsize=256)
def _expansion(order: float) -> tuple[Fraction, ...]:
    """`P(p) = sum_k D_k(p) / N^k` at one order N, as one polynomial."""
    total = [Fraction(0)] * (3 * _TERMS + 1)
    for k, polynomial in enumerate(_logarithmic_debye(_TERMS), start=1):
        for power, coefficient in enumerate(polynomial):
            total[power] += coefficient / Fraction(order) ** k
    return tuple(total)


@functools.cache
def _logarithmic_debye(terms: int) -> tuple[Polynomial, ...]:
    """D_1 .. D_terms with `sum_k D_k / N^k = log sum_k U_k / N^k`, exactly.

    `U_{k+1}(p) = p^2 (1 - p^2) U_k'(p) / 2 + 1/8 int_0^p (1 - 5 q^2) U_k(q) dq` (DLMF 10.41.9).
    """
    debye: list[Polynomial] = [[Fraction(1)]]
    for _ in range(terms):
        last = debye[-1]
        following = [Fraction(0)] * (len(last) + 3)
        for power, coefficient in enumerate(last):
            following[power + 1] += coefficient * (Fraction(power, 2) + Fraction(1, 8 * power + 8))
            following[power + 3] -= coefficient * (Fraction(power, 2) + Fraction(5, 8 * power + 24))
        debye.append(following)
    logarithms: list[Polynomial] = [[Fraction(0)]]
    for k in range(1, terms + 1):
        total = list(debye[k])
        for j in range(1, k):
            for left, a in enumerate(logarithms[j]):
                for right, b in enumerate(debye[k - j]):
                    total[left + right] -= Fraction(j, k) * a * b
        logarithms.append(total)
    return tuple(logarithms[1:])
