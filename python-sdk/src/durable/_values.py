"""Values as they are kept: JSON text, and what it is read back as.

A value is read back as its type: the one given, or a function's return annotation.
What has no type is limited to plain JSON, which needs none. What the database
would refuse is never sent, so one bad value cannot spoil the statement it would share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType, NoneType
from typing import Any, Final, Generic, TypeVar, overload

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import from_json, to_json

from durable._annotations import innermost, return_type
from durable._json import (
    MAX_BYTES,
    Unsavable,
    UnsavableValue,
    refuse_infinite,
    refuse_unless_plain,
    savable_text,
)

__all__ = [
    "MAX_BYTES",
    "PLAIN",
    "UNTYPED",
    "Codec",
    "Unsavable",
    "changed_in_roundtrip",
    "codec",
    "step_codec",
]

T = TypeVar("T")

UNTYPED: Final[Any] = Any
"""The type of what has none."""


class Codec(Generic[T]):
    """Turns values of one type into JSON text and back."""

    __slots__ = ("_leaf", "_read", "_to_json", "_to_python", "_validate", "type")

    def __init__(self, tp: Any) -> None:
        adapter = _adapter(tp)
        self.type = tp
        self._leaf = tp if isinstance(tp, type) and tp in _LEAVES else None
        self._to_json = adapter.serializer.to_json
        self._to_python = adapter.serializer.to_python
        self._read = adapter.validator.validate_json
        self._validate = adapter.validator.validate_python

    def __repr__(self) -> str:
        return f"codec({_name(self.type)})"

    def dump(self, value: T) -> str:
        """Return the value as compact JSON, with field names.

        Raises Unsavable if the value is not of the type, has a number that is not
        finite, a NUL character or a lone surrogate, or takes more than MAX_BYTES.
        """
        # asking for warnings as errors costs more than the rest, and a value that is
        # exactly a leaf of JSON gives no cause for any
        try:
            if type(value) is self._leaf:
                data = self._to_json(value)
            else:
                data = self._to_json(value, by_alias=False, warnings="error")
        # a serializer may be the user's own code, and raise anything
        except Exception as error:
            kind = _name(type(value))
            raise UnsavableValue(
                f"a value of type {kind} cannot be saved as {_name(self.type)}: {error}"
            ) from error
        text = savable_text(data)
        # NaN and infinity become null, or what the model's own configuration says
        if (
            ("null" in text and value is not None)
            or "NaN" in text
            or "Infinity" in text
        ):
            refuse_infinite(self._to_python(value, warnings=False))
        return text

    def load(self, text: str | bytes) -> T:
        """Return the value; fields are read by name or by alias.

        Raises pydantic's ValidationError, a ValueError, if the text is none of these.
        """
        value: T = self._read(text, by_alias=True, by_name=True)
        return value

    def validate(self, value: object) -> T:
        """Return a Python value as this type, or raise pydantic's ValidationError."""
        valid: T = self._validate(value, by_alias=True, by_name=True)
        return valid

    def roundtrip(self, value: T) -> tuple[str, T]:
        """Return the text of a value, and the value read back from it.

        Raises Unsavable where either fails: call it before anything is sent.
        """
        text = self.dump(value)
        try:
            return text, self.load(text)
        except ValueError as error:
            kind = _name(type(value))
            raise UnsavableValue(
                f"a value of type {kind} cannot be read back as {self!r}: {error}"
            ) from error


class _PlainCodec(Codec[Any]):
    """Passes what JSON has, and exactly that: it comes back as it went in."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Any)

    def dump(self, value: Any) -> str:
        refuse_unless_plain(value)
        try:
            return savable_text(to_json(value))
        except ValueError as error:
            raise UnsavableValue(str(error)) from error

    def load(self, text: str | bytes) -> Any:
        return from_json(text)

    def validate(self, value: object) -> Any:
        refuse_unless_plain(value)
        return value


@overload
def codec(tp: type[T]) -> Codec[T]: ...
@overload
def codec(tp: object) -> Codec[Any]: ...
def codec(tp: object) -> Codec[Any]:
    """Return the codec of a type; PLAIN for None, Any and `object`, which say nothing.

    The type of `None` itself is `NoneType`. Raises TypeError if pydantic has no schema
    for the type.
    """
    if isinstance(tp, type):
        return _cached(tp, "")
    if tp is None or isinstance(tp, TypeVar):
        return PLAIN
    try:
        hash(tp)
    except TypeError:  # Annotated with something unhashable
        return Codec(tp)
    # A | B equals B | A, but which of them is tried first may differ
    return _cached(tp, repr(tp))


def step_codec(fn: Callable[..., object], as_type: object = None) -> Codec[Any]:
    """Return the codec for what `fn` returns, or awaits.

    `as_type` counts first, then the return annotation, and of a class the class; what
    has none of these is PLAIN. Raises TypeError, so that nothing has happened yet, if
    the annotation cannot be resolved or pydantic has no schema for it, and if `fn` is
    no function but what one has returned.
    """
    if type(fn) is not FunctionType:
        _refuse_unless_callable(fn)
    if as_type is not None:
        return codec(as_type)
    if isinstance(fn, type):
        return codec(fn)
    function = fn if type(fn) is FunctionType else None
    if function is None or "__wrapped__" in function.__dict__:
        function = innermost(fn)
    return PLAIN if function is None else _returned(function)


def changed_in_roundtrip(before: object, after: object) -> bool:
    """Whether a value comes back from its JSON as another one than went in."""
    try:
        if before is after:
            return False
        if type(before) is not type(after) and type(after) is not float:
            return True
        return not bool(before == after)
    # an array, for instance, cannot say whether it equals another one
    except Exception:  # noqa: BLE001 - the comparison is the user's own code
        return True


_LEAVES: Final = frozenset({bool, int, float, str, NoneType})
_settled: dict[int, tuple[CodeType, object, object, Codec[Any]]] = {}


def _refuse_unless_callable(fn: object) -> None:
    if callable(fn):
        return
    if inspect.iscoroutine(fn):
        called = fn.__name__
        fn.close()  # nobody is going to await it
        raise TypeError(
            f"a step calls its function itself: pass {called} and its arguments,"
            f" not {called}(…)"
        )
    raise TypeError(f"a step calls a function: pass one, not {_name(type(fn))}")


def _returned(function: FunctionType) -> Codec[Any]:
    """Return the codec of a function's return annotation, remembered by its code.

    Equal code may belong to two modules in which a name means two things, so code
    counts as the same only if it is, with the same annotation in the same globals.
    """
    code, scope = function.__code__, function.__globals__
    annotation = function.__annotations__.get("return", UNTYPED)
    known = _settled.get(id(code))
    if known is not None and known[1] is annotation and known[2] is scope:
        return known[3]
    found = codec(return_type(function))
    _settled[id(code)] = (code, annotation, scope, found)
    return found


@lru_cache(maxsize=1024)
def _cached(tp: Any, _written: str) -> Codec[Any]:
    return PLAIN if tp is Any or tp is object else Codec(tp)


def _adapter(tp: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(tp)
    except (PydanticUserError, NameError) as error:
        raise TypeError(
            f"values of type {_name(tp)} cannot be saved: {error}"
        ) from error


def _name(tp: Any) -> str:
    return tp.__qualname__ if isinstance(tp, type) else str(tp)


PLAIN: Final[Codec[Any]] = _PlainCodec()
