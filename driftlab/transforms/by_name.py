"""Optimisers named on a command line: optax's, driftlab's, or a user's own factory."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import optax

from driftlab.suggestions import nearest

Factory = Callable[..., optax.GradientTransformation]


def names() -> list[str]:
    """The optimisers that can be named: optax's and driftlab's that take a `learning_rate`."""
    return sorted(_aliases())


def by_name(name: str, **arguments: Any) -> Factory:
    """An optimiser's factory by name.

    Args:
      name: an optax alias (`adam`), an optimiser of `optax.contrib` (`contrib.muon`) or of
        `driftlab.transforms` (`dal`), or `module:function` for a user's own function
        `(learning_rate, ...) -> GradientTransformation`, importable from the working directory.
      **arguments: fixed arguments, such as `momentum=0.9`.

    Returns:
      `factory(learning_rate=..., **others)`; its arguments may be traced arrays.

    Raises:
      ValueError: if there is no such optimiser (the nearest names are offered), module or
        function, or it does not take one of the arguments.
    """
    factory = resolve(name, "optimizer") if ":" in name else _alias(name)
    check_arguments(factory, ("learning_rate", *arguments), f"optimizer {name!r}")
    return functools.partial(factory, **arguments)


def resolve(path: str, purpose: str) -> Callable[..., Any]:
    """Imports `module:function`.

    Args:
      path: the dotted module, a colon, and the function's name.
      purpose: what it is for, for the error.

    Returns:
      The function.

    Raises:
      ValueError: if the module cannot be imported or has no such function.
    """
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise ValueError(
            f"{purpose} {path!r}: cannot import {module_name!r} ({error}); give module:function, "
            "importable from the working directory."
        ) from error
    except AttributeError:
        raise ValueError(
            f"{purpose} {path!r}: module {module_name!r} has no {function_name!r}."
        ) from None
    if not callable(function):
        raise ValueError(f"{purpose} {path!r} is not a function.")
    return function


def check_arguments(function: Callable[..., Any], given: tuple[str, ...], what: str) -> None:
    """Refuses arguments that a function does not take.

    Args:
      function: the function.
      given: names of keyword arguments.
      what: what the function is, for the error.

    Raises:
      ValueError: naming the argument, and those there are.
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [name for name in given if name not in parameters]
    if unknown:
        raise ValueError(
            f"{what} does not take {', '.join(unknown)}; it takes {', '.join(parameters)}."
        )


def _alias(name: str) -> Factory:
    found = _aliases()
    if name not in found:
        raise ValueError(
            f"there is no optimizer {name!r}: {nearest(name, found)} A factory of your own is "
            "named as module:function."
        )
    return found[name]


def _aliases() -> dict[str, Factory]:
    # At the call: this module is part of the package that it looks into.
    ours = _found(importlib.import_module("driftlab.transforms"), "")
    return {**ours, **_found(optax.contrib, "contrib."), **_found(optax, "")}


def _found(module: Any, prefix: str) -> dict[str, Factory]:
    return {
        prefix + name: function
        for name, function in vars(module).items()
        if (inspect.isfunction(function) or isinstance(function, functools.partial))
        and not name.startswith(("_", "scale_by_"))
        and next(iter(inspect.signature(function).parameters), None) == "learning_rate"
    }
