"""What a class or a function says about its types.

Only what is asked for is resolved: a return annotation is read even where those of the
parameters exist for type checkers alone.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["generic_arguments", "innermost", "parameter_type", "return_type"]


def _resolve(annotation: object, scope: dict[str, Any], what: str) -> Any:
    """Return an annotation with its names looked up in `scope`; None becomes NoneType.

    TypeError, which names `what`, when a name in it cannot be found there.
    """
    carrier = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(carrier, scope, {}, include_extras=True)["it"]
    except (NameError, AttributeError, SyntaxError) as error:
        raise TypeError(
            f"{what} is annotated {annotation!r}, which cannot be resolved here "
            f"({error}): define or import that type at the top of its module, "
            "not under TYPE_CHECKING; a step can take as_type= instead"
        ) from error


def _awaited(annotation: Any) -> Any:
    """Return T for Awaitable[T] and Coroutine[…, T], everything else as it is."""
    if get_origin(annotation) in (Awaitable, Coroutine):
        return get_args(annotation)[-1]
    return annotation


def innermost(function: Callable[..., object]) -> FunctionType | None:
    """Return the plain function in partials, bound methods, wrappers and callables.

    None where there is none: builtins, and whatever is written in C.
    """
    found: object = function
    while not isinstance(found, FunctionType):
        if isinstance(found, functools.partial):
            found = found.func
        elif isinstance(found, MethodType):
            found = found.__func__
        else:
            found = None if isinstance(found, type) else _call_method(found)
            if not isinstance(found, FunctionType):
                return None
    inner = inspect.unwrap(found)
    return inner if isinstance(inner, FunctionType) else found


def _call_method(instance: object) -> object:
    return getattr(type(instance), "__call__", None)  # noqa: B004 - callable() is not it


def parameter_type(function: FunctionType, position: int) -> Any:
    """Return the type of a positional parameter, Any where it has none."""
    name = function.__code__.co_varnames[position]
    if name not in function.__annotations__:
        return Any
    what = f"the parameter {name!r} of {function.__qualname__}"
    return _resolve(function.__annotations__[name], function.__globals__, what)


def return_type(function: FunctionType) -> Any:
    """Return what calling or awaiting the function gives, Any if it says nothing."""
    if "return" not in function.__annotations__:
        return Any
    what = f"what {function.__qualname__} returns"
    annotation = function.__annotations__["return"]
    return _awaited(_resolve(annotation, function.__globals__, what))


def generic_arguments(cls: type, base: type) -> tuple[Any, ...] | None:
    """Return what `cls` puts for the parameters of `base`, a generic class above it.

    Looks through generic classes in between; None where they are left open.
    """
    for parent in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(parent) or parent
        if not (isinstance(origin, type) and issubclass(origin, base)):
            continue
        given = get_args(parent)
        if origin is base:
            return tuple(_in_module(argument, cls) for argument in given) or None
        found = generic_arguments(origin, base)
        if found is None:
            continue
        bound = dict(zip(_parameters(origin), given, strict=False))
        own = {name: _in_module(argument, cls) for name, argument in bound.items()}
        return tuple(_substituted(argument, own) for argument in found)
    return None


def _parameters(cls: type) -> tuple[Any, ...]:
    return tuple(getattr(cls, "__parameters__", ()))


def _in_module(argument: Any, cls: type) -> Any:
    """Resolve a forward reference, Task["Order", str], where the class was written."""
    scope = vars(sys.modules[cls.__module__])
    return _resolve(argument, scope, f"an argument of {cls.__qualname__}'s base class")


def _substituted(argument: Any, bound: Mapping[Any, Any]) -> Any:
    if argument in bound:
        return bound[argument]
    inner = tuple(bound.get(name, Any) for name in _parameters(argument))
    return argument[inner] if inner else argument
