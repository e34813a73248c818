"""Read the type annotations of classes and functions.

Each annotation is resolved on its own: a return annotation can be read even where the
parameters' annotations can be resolved by type checkers only.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from inspect import CO_COROUTINE, Parameter
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints


def _resolve(annotation: object, scope: dict[str, Any], what: str) -> Any:
    """Return an annotation with its names looked up in `scope`; None becomes NoneType.

    Raises a TypeError that names `what` if a name cannot be found there.
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
    """Return T for Awaitable[T] and Coroutine[…, T], other annotations unchanged."""
    if get_origin(annotation) in (Awaitable, Coroutine):
        return get_args(annotation)[-1]
    return annotation


def innermost(function: Callable[..., object]) -> FunctionType | None:
    """Return the plain function in partials, bound methods, wrappers and callables.

    None for builtins and other callables written in C.
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


def is_async(function: Callable[..., object]) -> bool:
    """Whether a call is certain to return a coroutine."""
    if type(function) is FunctionType and function.__code__.co_flags & CO_COROUTINE:
        return True
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        _call_method(function)
    )


def returns_awaitable(function: Callable[..., object]) -> bool:
    """Whether a call returns an awaitable.

    True for an async function, for a plain function that wraps an async one with
    `functools.wraps`, and for a function annotated to return an awaitable.
    """
    while not is_async(function):
        if isinstance(function, functools.partial | functools.partialmethod):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif not isinstance(function, FunctionType):
            return False
        elif (method := _partial_method(function)) is not None:
            function = method
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return _is_awaitable(function.__annotations__.get("return"))
    return True


def _partial_method(function: FunctionType) -> Any:
    """Return the `functools.partialmethod` behind an attribute of a class."""
    names = ("__partialmethod__", "_partialmethod")  # since Python 3.13, and before
    return next(
        (vars(function)[name] for name in names if name in vars(function)), None
    )


def _is_awaitable(annotation: object) -> bool:
    if isinstance(annotation, str):  # the other names in it may be undefined
        named = annotation.partition("[")[0].rpartition(".")[2]
        return named in ("Awaitable", "Coroutine")
    return (get_origin(annotation) or annotation) in (Awaitable, Coroutine)


def parameter_type(function: FunctionType, name: str) -> Any:
    """Return the type of a parameter, Any where it has none."""
    if name not in function.__annotations__:
        return Any
    what = f"the parameter {name!r} of {function.__qualname__}"
    return _resolve(function.__annotations__[name], function.__globals__, what)


def keyword_parameters(
    function: Callable[..., object], name: str, *, is_method: bool = False
) -> list[Parameter] | None:
    """Return the keyword parameters of a task's function; None if it takes params.

    `is_method` says that the first parameter is `self`. Raises TypeError unless it
    takes params and a context, or a context and nothing but keyword-only parameters.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[is_method:]
    begins_with_context = bool(parameters) and _is_context(parameters[0])
    try:
        signature.bind(*["self"] * is_method, "params", "ctx")
    except TypeError:
        own = parameters[1:]
        if begins_with_context and all(one.kind is one.KEYWORD_ONLY for one in own):
            return own
        raise TypeError(
            f"{name} must take a context, params and a context, or a context and"
            " keyword-only parameters"
        ) from None
    if begins_with_context:
        raise TypeError(
            f"{name} must take its params first, then the context; or write * after the"
            " context, for parameters that are given by name"
        )
    return None


def _is_context(parameter: Parameter) -> bool:
    """Whether a parameter is positional, and named `ctx` or annotated as a context."""
    if parameter.kind is parameter.KEYWORD_ONLY:
        return False
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        annotation = getattr(annotation, "__name__", "")
    named = annotation.partition("[")[0].rpartition(".")[2]
    return parameter.name == "ctx" or named in ("TaskContext", "SyncTaskContext")


def return_type(function: FunctionType) -> Any:
    """Return the annotated type of the result, once awaited; Any without one."""
    if "return" not in function.__annotations__:
        return Any
    what = f"what {function.__qualname__} returns"
    annotation = function.__annotations__["return"]
    return _awaited(_resolve(annotation, function.__globals__, what))


def generic_arguments(cls: type, base: type) -> tuple[Any, ...] | None:
    """Return the type arguments that `cls` gives to `base`, a generic base class.

    Follows generic classes in between; None if the parameters are left open. Arguments
    for a ParamSpec are left out.
    """
    for parent in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(parent) or parent
        if not (isinstance(origin, type) and issubclass(origin, base)):
            continue
        given = get_args(parent)
        if origin is base:
            named = zip(_parameters(base), given, strict=False)
            types = [one for name, one in named if isinstance(name, TypeVar)]
            return tuple(_in_module(argument, cls) for argument in types) or None
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
    """Resolve a forward reference, Task["Order", str], in the module of the class."""
    scope = vars(sys.modules[cls.__module__])
    return _resolve(argument, scope, f"an argument of {cls.__qualname__}'s base class")


def _substituted(argument: Any, bound: Mapping[Any, Any]) -> Any:
    if argument in bound:
        return bound[argument]
    inner = tuple(bound.get(name, Any) for name in _parameters(argument))
    return argument[inner] if inner else argument
