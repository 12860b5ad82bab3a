"""A network as a flat list of equations, which can be evaluated with changes.

Whatever framework a model was written in, JAX traces it to the same few primitives. What the
structured neural tangent kernel has to know of a network is read off those.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import Array

# Calls that only group equations. A function with a derivative rule of its own (`custom_jvp`,
# `custom_vjp`) is not among them: inlined it would lose that rule.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


class Slot(NamedTuple):
    """The number of a value of a `Program`."""

    index: int


class Equation(NamedTuple):
    """One primitive, applied.

    Attributes:
      source: the traced equation: its primitive, parameters and types.
      operands: slots, or literals of the trace.
      results: slots.
    """

    source: Any
    operands: tuple[Any, ...]
    results: tuple[Slot, ...]


class Program(NamedTuple):
    """A traced function without nested calls.

    Attributes:
      equations: in the order of evaluation.
      constants: slot -> the arrays that the function closes over.
      inputs: the slots of the flat arguments.
      outputs: the slots of the flat results, or literals.
    """

    equations: tuple[Equation, ...]
    constants: Mapping[Slot, Any]
    inputs: tuple[Slot, ...]
    outputs: tuple[Any, ...]


def trace(function: Callable[..., Any], *arguments: Any) -> Program:
    """Traces a function and inlines the calls in it.

    Args:
      function: of arrays, or lists of them.
      *arguments: its arguments, or their `jax.ShapeDtypeStruct`s.

    Returns:
      The program; `evaluate` runs it.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    equations: list[Equation] = []
    constants: dict[Slot, Any] = {}
    count = 0

    def new() -> Slot:
        nonlocal count
        count += 1
        return Slot(count - 1)

    def inline(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> tuple[Any, ...]:
        slots: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            slots[variable] = new()
            constants[slots[variable]] = value

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, core.Literal) else slots[atom]

        for equation in jaxpr.eqns:
            inner = tuple(map(read, equation.invars))
            body = equation.params.get(_CALLS.get(equation.primitive.name, ""))
            if body is not None:
                # jit holds a closed jaxpr, remat an open one without constants.
                results = inline(getattr(body, "jaxpr", body), getattr(body, "consts", ()), inner)
            else:
                results = tuple(new() for _ in equation.outvars)
                equations.append(Equation(equation, inner, results))
            slots.update(zip(equation.outvars, results, strict=True))
        return tuple(map(read, jaxpr.outvars))

    inputs = tuple(new() for _ in closed.jaxpr.invars)
    outputs = inline(closed.jaxpr, closed.consts, inputs)
    return Program(tuple(equations), constants, inputs, outputs)


def evaluate(
    program: Program,
    arguments: Iterable[Array],
    perturbations: Mapping[int, Array] | None = None,
    record: Sequence[tuple[int, int]] = (),
) -> tuple[list[Array], list[Array]]:
    """Runs a program, with additions to the results of some equations.

    Args:
      program: from `trace`.
      arguments: the flat arguments.
      perturbations: index of an equation -> what is added to its (only) result.
      record: (index of an equation, which operand): operands that are wanted.

    Returns:
      The flat results, and the operands in `record`.
    """
    values: dict[Slot, Any] = dict(program.constants)
    values.update(zip(program.inputs, arguments, strict=True))

    def read(atom: Any) -> Any:
        return values[atom] if isinstance(atom, Slot) else atom.val

    for index, equation in enumerate(program.equations):
        results = _bind(equation.source, [read(atom) for atom in equation.operands])
        if perturbations is not None and index in perturbations:
            results = [results[0] + perturbations[index]]
        values.update(zip(equation.results, results, strict=True))
    recorded = [read(program.equations[index].operands[side]) for index, side in record]
    return [read(atom) for atom in program.outputs], recorded


def multiply_adds(equations: Iterable[Any]) -> int:
    """Estimates the arithmetic of traced equations from their shapes.

    Matrix products and convolutions count their multiplications, everything else one for every
    entry of its result; a scan counts its body as often as it runs, a `while` once.

    Args:
      equations: those of a jaxpr.

    Returns:
      The number of multiply-adds, a deterministic function of the shapes.
    """
    total = 0
    for equation in equations:
        size = sum(math.prod(variable.aval.shape) for variable in equation.outvars)
        name, params = equation.primitive.name, equation.params
        bodies = list(core.jaxprs_in_params(params))
        if name == "dot_general":
            contracted = params["dimension_numbers"][0][0]
            total += size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += size * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        elif bodies:
            repeated = params.get("length", 1) if name == "scan" else 1
            total += repeated * sum(multiply_adds(body.eqns) for body in bodies)
        else:
            total += size
    return total


def _bind(source: Any, operands: Sequence[Any]) -> list[Any]:
    params = source.primitive.get_bind_params(source.params)
    with source.ctx.manager:
        results = source.primitive.bind(*operands, **params)
    return list(results) if source.primitive.multiple_results else [results]
