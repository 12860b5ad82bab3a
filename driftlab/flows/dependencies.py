"""What depends on what in a traced function: which inputs reach an output, and through what.

An optimiser's update is traced once, abstractly, so that its properties are known even where its
hyper-parameters are not (inside vmap or jit).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal

# Entry i of the result needs only entry i of the operands (scalars reach every entry).
_ELEMENTWISE = {
    *("abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type"),
    *("copy", "copy_p", "cos", "cosh", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge"),
    *("gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min"),
    *("mul", "ne", "neg", "nextafter", "not", "or", "pow", "real", "rem", "round", "rsqrt"),
    *("select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh"),
}
# What jumps however smoothly its operand moves.
_JUMPS = {"sign", "round", "floor", "ceil", "nextafter", "argmax", "argmin"}
# What hops from one number to another.
_ERRATIC = {"rem", "random_bits", "random_fold_in", "random_seed", "threefry2x32"}
_CHOICES = {"select_n", "cond", "while", "sort", "top_k"}
_COMPARISONS = {"ge", "gt", "le", "lt", "max", "min", "abs", "sign"}
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"}


class Reach(NamedTuple):
    """Which inputs reach a value; sets of input numbers as the bits of integers.

    Attributes:
      inputs: those that reach it at all.
      mixed: those that reach it through something that is not elementwise.
      jumps: those that reach it through a sign or a rounding.
      periodic: those that reach it through a remainder or as the seed of a random number.
      chosen: those that decide which of two things it is, so that it may jump.
      stairs: those that reach it through a sign or a rounding, not counting choices of constants.
    """

    inputs: int = 0
    mixed: int = 0
    jumps: int = 0
    periodic: int = 0
    chosen: int = 0
    stairs: int = 0

    def __or__(self, other: "Reach") -> "Reach":  # pyright: ignore[reportIncompatibleMethodOverride]
        """What reaches either."""
        return Reach(*(a | b for a, b in zip(self, other, strict=True)))


def reaches(closed: ClosedJaxpr, smooth: Sequence[int] = ()) -> list[Reach]:
    """What reaches each output of a traced function.

    Conservative: in loops every input reaches every output.

    Args:
      closed: the function, from `jax.make_jaxpr`.
      smooth: numbers of outputs whose jumps are not held against what is computed from them.

    Returns:
      One reach an output.
    """
    inputs = [Reach(1 << i) for i in range(len(closed.jaxpr.invars))]
    consts = [Reach()] * len(closed.jaxpr.constvars)
    cut = {closed.jaxpr.outvars[i] for i in smooth if not _is_literal(closed.jaxpr.outvars[i])}
    return _reaches(closed.jaxpr, consts, inputs, cut)


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, Literal)


def _reaches(
    jaxpr: Any, consts: Sequence[Reach], inputs: Sequence[Reach], cut: Any = ()
) -> list[Reach]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Reach:
        return Reach() if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        found = [
            reach._replace(jumps=0) if out in cut else reach
            for out, reach in zip(equation.outvars, _equation(equation, operands), strict=True)
        ]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(equation: Any, operands: list[Reach]) -> list[Reach]:
    name = equation.primitive.name
    called = _called(equation)
    if called is not None:
        return _reaches(called.jaxpr, [Reach()] * len(called.jaxpr.constvars), operands)
    if name == "cond":
        predicate, *rest = operands
        branches = [
            _reaches(branch.jaxpr, [Reach()] * len(branch.jaxpr.constvars), rest)
            for branch in equation.params["branches"]
        ]
        found = branches[0]
        for branch in branches[1:]:
            found = [a | b for a, b in zip(found, branch, strict=True)]
        return [reach | predicate | Reach(chosen=predicate.inputs) for reach in found]
    total = Reach()
    for operand in operands:
        total = total | operand
    if name not in _ELEMENTWISE and name != "broadcast_in_dim":
        total = total._replace(mixed=total.inputs)
    elif name == "broadcast_in_dim" and equation.invars[0].aval.shape != ():
        # A scalar spread out is still elementwise; rows spread over columns are not.
        total = total._replace(mixed=total.inputs)
    inner = _primitives(equation)
    if name == "select_n" and operands[0].inputs and not any(o.inputs for o in operands[1:]):
        # One constant or another.
        total = total._replace(jumps=total.jumps | total.inputs)
    if inner & _JUMPS or _to_integer(equation):
        total = total._replace(jumps=total.inputs, stairs=total.inputs)
    if inner & _ERRATIC:
        total = total._replace(periodic=total.inputs)
    if name == "select_n":
        total = total._replace(chosen=total.chosen | operands[0].inputs)
    elif inner & _CHOICES or _from_boolean(equation):
        total = total._replace(chosen=total.inputs)
    return [total] * len(equation.outvars)


def _called(equation: Any) -> ClosedJaxpr | None:
    if equation.primitive.name not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if inner is not None:
            return inner if hasattr(inner, "jaxpr") else ClosedJaxpr(inner, ())
    return None


def _primitives(equation: Any) -> set[str]:
    """The primitives of an equation, loops' bodies included."""
    found = {equation.primitive.name}
    for value in equation.params.values():
        for part in value if isinstance(value, list | tuple) else [value]:
            inner = getattr(part, "jaxpr", part)
            for nested in getattr(inner, "eqns", ()):
                found |= _primitives(nested)
    return found


def _to_integer(equation: Any) -> bool:
    if equation.primitive.name != "convert_element_type":
        return False
    source, target = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    return jnp.issubdtype(source, jnp.floating) and jnp.issubdtype(target, jnp.integer)


def _from_boolean(equation: Any) -> bool:
    if equation.primitive.name != "convert_element_type":
        return False
    return equation.invars[0].aval.dtype == bool and equation.outvars[0].aval.dtype != bool


def evaluate_known(
    closed: ClosedJaxpr,
    arguments: Sequence[Any],
    observe: Callable[[Any, list[Any]], None] | None = None,
    consts: Sequence[Any] | None = None,
) -> list[Any]:
    """The outputs that follow from the arguments that are known.

    Args:
      closed: the function, from `jax.make_jaxpr`.
      arguments: one an input; None where it is unknown.
      observe: `observe(equation, operands)`, called for every comparison, maximum, minimum, sign
        and absolute value of known numbers.
      consts: what the function closes over, in place of its own; see `stand_ins`.

    Returns:
      The outputs; None where they need something unknown, such as a traced hyper-parameter.
    """
    if consts is None:
        consts = [None if isinstance(c, Tracer) else c for c in closed.consts]
    return _evaluate(closed.jaxpr, consts, arguments, observe)


def _evaluate(jaxpr: Any, consts: Any, arguments: Any, observe: Any) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        called = _called(equation)
        if called is not None:
            found = _evaluate(called.jaxpr, called.consts, operands, observe)
        elif any(operand is None for operand in operands):
            found = [None] * len(equation.outvars)
        else:
            if observe is not None and equation.primitive.name in _COMPARISONS:
                observe(equation, operands)
            settings = equation.primitive.get_bind_params(equation.params)
            found = equation.primitive.bind(*operands, **settings)
            found = list(found) if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def stand_ins(closed: ClosedJaxpr, number: Any) -> list[Any]:
    """What a function closes over, with numbers in place of what is traced.

    Args:
      closed: the function, from `jax.make_jaxpr`.
      number: that of traced floating-point constants; traced integers are 1.

    Returns:
      One constant each; None for one that is traced and no number.
    """

    def stand_in(const: Any) -> Any:
        if not isinstance(const, Tracer):
            return const
        if jnp.issubdtype(const.dtype, jnp.floating):
            return jnp.full(const.shape, number, const.dtype)
        if jnp.issubdtype(const.dtype, jnp.integer):
            return jnp.ones(const.shape, const.dtype)
        return None

    return [stand_in(const) for const in closed.consts]


def levels(needs: Sequence[int]) -> list[list[int]]:
    """The order in which things that need each other can be solved for.

    Args:
      needs: for each item the items that it needs, as bits; itself may be among them.

    Returns:
      Lists of items: those of a list need earlier lists, themselves, or each other in a cycle.
    """
    count = len(needs)
    closure = [need & ~(1 << i) for i, need in enumerate(needs)]
    for middle in range(count):
        for item in range(count):
            if closure[item] >> middle & 1:
                closure[item] |= closure[middle]
    depth: dict[int, int] = {}

    def find(item: int) -> int:
        if item not in depth:
            # Members of a cycle need the same others, and so get the same depth.
            others = [
                other
                for other in range(count)
                if closure[item] >> other & 1 and not closure[other] >> item & 1
            ]
            depth[item] = 1 + max((find(other) for other in others), default=-1)
        return depth[item]

    found = [find(item) for item in range(count)]
    return [[i for i in range(count) if found[i] == d] for d in range(max(found, default=-1) + 1)]


def is_counter(closed: ClosedJaxpr, output: int, argument: int, largest: int = 4096) -> bool:
    """Whether an integer output is an integer input plus 1, for 0 and all up to `largest`.

    Args:
      closed: the function.
      output: the number of the output.
      argument: the number of the input.
      largest: how far it is tried: a counter of longer period counts as one.

    Returns:
      False also if the output needs another input, or something traced.
    """
    dtype = closed.in_avals[argument].dtype
    counts = np.arange(largest, dtype=dtype)
    unknown = [False]

    def after(count: Any) -> Any:
        arguments: list[Any] = [None] * len(closed.in_avals)
        arguments[argument] = count
        found = evaluate_known(closed, arguments)[output]
        unknown[0] = found is None
        return count if found is None else found

    with jax.ensure_compile_time_eval():
        following = jax.vmap(after)(counts)
        return not unknown[0] and bool(np.array_equal(following, counts + 1))
