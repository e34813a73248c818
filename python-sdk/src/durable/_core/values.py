"""Codecs between Python values and JSON text.

A value is read back as its type: a given one, or a function's return annotation. A
value without a type must be plain JSON. Every value is read back before it is written,
and refused if it cannot be read or would lose data. A value that the database would
reject is never sent, so one bad value cannot fail a statement shared with others.

Postgres refuses NUL characters, lone surrogates and numbers that are not finite, and
would fail the whole statement, with all other values in it; so they are refused here.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import math
import re
import sys
import warnings
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Decimal
from functools import lru_cache, partial
from types import CodeType, FunctionType, NoneType
from typing import (
    Any,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    overload,
)

from pydantic import (
    BaseModel,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json, to_json

from durable._core.annotations import innermost, return_type
from durable.errors import InvalidArgument

T = TypeVar("T")

logger = logging.getLogger("durable.values")

UNTYPED: Final[Any] = Any
"""The type of a value without a type."""


class Codec(Generic[T]):
    """Turns values of one type into JSON text and back."""

    def __init__(self, tp: Any) -> None:
        self.type = tp
        if Iterable in (tp, get_origin(tp)):  # pydantic would return a lazy iterator
            tp = Sequence[get_args(tp) or (Any,)]  # type: ignore[misc]
        adapter = _adapter(tp)
        self._leaf = tp if isinstance(tp, type) and tp in _LEAVES else None
        self._to_json = adapter.serializer.to_json
        self._to_python = adapter.serializer.to_python
        self._read = adapter.validator.validate_json
        self._validate = adapter.validator.validate_python
        kinds = set(_kinds(adapter.core_schema))
        if "generator" in kinds:
            raise TypeError(
                f"values of type {_name(tp)} cannot be saved: a generator is lazy, and"
                " read only once; make it a list"
            )
        self._open = "any" in kinds
        is_model = isinstance(tp, type) and issubclass(tp, BaseModel)
        self._closed = tp if is_model and not self._open else None
        self.comparison = Comparison(converts="converts" in kinds)

    def __repr__(self) -> str:
        return f"codec({_name(self.type)})"

    def json_schema(self) -> dict[str, Any] | None:
        """Return the JSON Schema of the type; None if it has none."""
        try:
            with warnings.catch_warnings(action="ignore"):
                schema = _adapter(self.type).json_schema(by_alias=False)
            PLAIN.dump(schema)
        except Exception:  # noqa: BLE001 - a schema hook may be the user's own code
            return None
        return schema

    def dump(self, value: T) -> str:
        """Return the value as compact JSON for a `jsonb`, with field names.

        Raises Unsavable, and warns, as `roundtrip` does.
        """
        return self._as_jsonb(value, self.roundtrip(value)[0])

    def _as_jsonb(self, value: T, text: str) -> str:
        if _has_negative_zero(text):
            self._warn_once(value, "-0.0", "jsonb keeps -0.0 as 0.0")
        return text

    def roundtrip(
        self, value: T, source: tuple[str, str] | None = None
    ) -> tuple[str, T]:
        """Return a value as compact JSON, and the value that reads back from it.

        Call it before anything is written. Raises Unsavable if the value is not of the
        type, cannot be read back, or loses data on the way; if it has a number that is
        not finite, a NUL character or a lone surrogate, or takes more than MAX_BYTES.
        Logs a warning for a value that only changes, once for each type and `source`,
        the names of a step and its task.
        """
        if type(value) is self._leaf:
            return self._leaf_text(value), value
        text = self._text(value)
        try:
            read = self.load(text)
        except ValueError as error:
            kind = _name(type(value))
            raise UnsavableValue(
                f"a value of type {kind} cannot be read back as {self!r}: {error}"
            ) from error
        found = self.comparison.change(value, read)
        if found is not None:
            self._refuse_loss(value, read, found)
            self._warn_once(value, found.before, str(found), source)
        return text, read

    def _leaf_text(self, value: T) -> str:
        """Write a str, bool, int, float or None, which reads back unchanged."""
        if isinstance(value, int | float):
            _refuse_number(value)
        try:
            return _savable_text(self._to_json(value))
        except ValueError as error:  # a lone surrogate
            raise self._refused(value, error) from error

    def _text(self, value: T) -> str:
        if type(value) is not self._closed:
            self._refuse_lazy(value)
        try:
            data = self._to_json(value, by_alias=False, warnings="error")
        # a user's own serializer may raise any exception
        except Exception as error:
            raise self._refused(value, error) from error
        text = _savable_text(data)
        # NaN and infinity become null, or whatever the model's configuration says
        if "null" in text or "NaN" in text or "Infinity" in text:
            _refuse_infinite(self._to_python(value, warnings=False))
        return text

    def _refuse_lazy(self, value: T) -> None:
        if (lazy := _lazy_part(value, deep=self._open)) is not None:
            verb = "await it" if isinstance(lazy, Awaitable) else "make it a list"
            what = f"it has a {_name(type(lazy))} in it, {verb} first"
            raise self._refused(value, what)

    def _refused(self, value: T, why: object) -> UnsavableValue:
        kind = _name(type(value))
        return UnsavableValue(
            f"a value of type {kind} cannot be saved as {_name(self.type)}: {why}"
        )

    def _refuse_loss(self, value: T, read: T, found: Change) -> None:
        again = self._read_again(read) if self.comparison.converts else None
        if found.lost or (again is not None and again.lost):
            kind, what = _name(type(value)), "data would be lost"
            if not found.lost:
                what = "it would become another value whenever it is read"
            raise UnsavableValue(
                f"a value of type {kind} cannot be saved as {_name(self.type)}:"
                f" {what}: {found}",
                hint="Save it as a type that keeps all of it.",
            )

    def _read_again(self, read: T) -> Change | None:
        """Return how a value that was read changes when it is saved and read again."""
        try:
            again = self.load(self._to_json(read, by_alias=False))
        except Exception:  # noqa: BLE001 - the user's own code, which has read it once
            return None
        return Comparison(converts=False).change(read, again)

    def _warn_once(
        self, value: T, part: str, what: str, source: tuple[str, str] | None = None
    ) -> None:
        key = (type(value), self, part, source)
        if key in _warned:
            return
        if len(_warned) >= _WARNED_AT_MOST:
            _warned.clear()
        _warned.add(key)
        kind, tp = _name(type(value)), _name(self.type)
        subject = f"a value of type {kind}"
        if source is not None:
            subject = "step {!r} of {!r} returned {!r}, which".format(*source, value)
        logger.warning("%.400s comes back changed as %s: %s", subject, tp, what)

    def load(self, text: str | bytes) -> T:
        """Parse a value; fields are read by name or by alias.

        Raises pydantic's ValidationError, a ValueError, if the text is not of the type.
        """
        value: T = self._read(text, by_alias=True, by_name=True)
        return value

    def validate(self, value: object) -> T:
        """Validate a Python value as this type, or raise pydantic's ValidationError."""
        valid: T = self._validate(value, by_alias=True, by_name=True)
        return valid


class _PlainCodec(Codec[Any]):
    """The codec of plain JSON, whose values read back unchanged."""

    def __init__(self) -> None:
        super().__init__(Any)

    def dump(self, value: Any) -> str:
        return self._as_jsonb(value, self._text(value))

    def roundtrip(
        self,
        value: Any,
        source: tuple[str, str] | None = None,  # noqa: ARG002 - it never changes
    ) -> tuple[str, Any]:
        text = self._text(value)
        return text, self.load(text)

    def _text(self, value: Any) -> str:
        _refuse_unless_plain(value)
        try:
            return _savable_text(to_json(value))
        except ValueError as error:
            raise UnsavableValue(str(error)) from error

    def load(self, text: str | bytes) -> Any:
        return from_json(text)

    def validate(self, value: object) -> Any:
        _refuse_unless_plain(value)
        return value


@overload
def codec(tp: type[T]) -> Codec[T]: ...
@overload
def codec(tp: object) -> Codec[Any]: ...
def codec(tp: object) -> Codec[Any]:
    """Return the codec of a type; PLAIN for None, Any and `object`.

    The type of the value None is `NoneType`. Raises TypeError if pydantic has no schema
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
    """Return the codec for the result of `fn`, once awaited.

    Its type is `as_type`, else the return annotation, or `fn` itself if it is a class;
    without any of these it is PLAIN. Raises TypeError, before anything happens, if the
    annotation cannot be resolved, if pydantic has no schema for it, and if `fn` is not
    callable, such as a coroutine.
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


_LEAVES: Final = frozenset({bool, int, float, str, NoneType})
_WARNED_AT_MOST: Final = 10_000
_warned: set[tuple[type, Codec[Any], str, tuple[str, str] | None]] = set()
_codecs_by_code: dict[int, tuple[CodeType, object, object, Codec[Any]]] = {}


def _refuse_unless_callable(fn: object) -> None:
    if callable(fn):
        return
    if inspect.iscoroutine(fn):
        called = fn.__name__
        fn.close()  # it will never be awaited
        raise TypeError(
            f"a step calls its function itself: pass {called} and its arguments,"
            f" not {called}(…)"
        )
    raise TypeError(f"a step calls a function: pass one, not {_name(type(fn))}")


def _returned(function: FunctionType) -> Codec[Any]:
    """Return the codec of a function's return annotation, cached by its code object.

    The cache compares identities of the code, annotation and globals: equal code in two
    modules may resolve a name to different types.
    """
    code, scope = function.__code__, function.__globals__
    annotation = function.__annotations__.get("return", UNTYPED)
    known = _codecs_by_code.get(id(code))
    if known is not None and known[1] is annotation and known[2] is scope:
        return known[3]
    found = codec(return_type(function))
    _codecs_by_code[id(code)] = (code, annotation, scope, found)
    return found


@lru_cache(maxsize=1024)
def _cached(tp: Any, _written: str) -> Codec[Any]:
    return PLAIN if tp is Any or tp is object else Codec(tp)


def _kinds(schema: Any) -> Iterator[str]:
    """Yield the kinds of the parts of a pydantic schema.

    "any" is a part that may hold any value; "converts" one that may change values.
    """
    if isinstance(schema, dict):
        kind = schema.get("type")
        if isinstance(kind, str):
            untyped = kind in ("list", "dict") and len(schema) == 1
            yield "any" if untyped or schema.get("extra_behavior") == "allow" else kind
        own = kind != "call" and _is_own(schema.get("function"))
        if own or not _CONVERTING.isdisjoint(schema):
            yield "converts"
        schema = schema.values()
    elif not isinstance(schema, list | tuple):
        return
    for part in schema:
        yield from _kinds(part)


_CONVERTING: Final = frozenset(
    {"to_upper", "to_lower", "strip_whitespace"}
    | {"str_to_upper", "str_to_lower", "str_strip_whitespace"}
)


def _is_own(function: Any) -> bool:
    """Whether a validator or serializer is the user's, not pydantic's."""
    if isinstance(function, partial):
        return _is_own(function.func)
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    return callable(function) and package not in ("pydantic", "operator")


def _adapter(tp: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(tp)
    except (PydanticUserError, NameError) as error:
        raise TypeError(
            f"values of type {_name(tp)} cannot be saved: {error}"
        ) from error


def _name(tp: Any) -> str:
    return tp.__qualname__ if isinstance(tp, type) else str(tp)


# -- JSON text -------------------------------------------------------------------------

JSON: TypeAlias = (
    "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
)

MAX_BYTES: Final = 16 * 1024 * 1024
"""The size of one value, as text."""

MAX_DEPTH: Final = 200
"""The deepest nesting of lists and dicts, which is pydantic's parser's limit."""

_INTEGERS_END: Final = 10**sys.int_info.default_max_str_digits

_E: Final = "e+" if b"e+" in to_json(1e23) else "e"  # pydantic's versions differ
_EXPONENT: Final = re.compile(r"\de\+?\d")
_FLOAT: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(-?\d+(?:\.\d+)?e\+?\d+)')
_NEGATIVE_ZERO: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(-0(?:\.0+)?(?![\d.]))')


class Unsavable(InvalidArgument):
    """The value cannot be saved; a retry would not help."""


class UnsavableType(Unsavable, TypeError):
    """The value is not plain JSON, and has no type to be read back as."""


class UnsavableValue(Unsavable):
    """Values of its type can be saved, but not this one."""


def _refuse_unless_plain(value: object, depth: int = 0) -> None:
    """Raise Unsavable unless the value is plain JSON.

    That is None, bool, int, finite float, str, and lists and dicts of them with str
    keys. Subclasses are refused, since they would be read back as the base class.
    """
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return
    if kind is int or kind is float:
        _refuse_number(value)  # type: ignore[arg-type]
    elif kind is not list and kind is not dict:
        _refuse(f"a value of type {kind.__qualname__}")
    elif depth >= MAX_DEPTH:
        raise UnsavableValue(
            f"a value nested more than {MAX_DEPTH} deep cannot be saved"
        )
    elif isinstance(value, list):
        for item in value:
            _refuse_unless_plain(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                _refuse(f"a dict whose key {key!r} is not a str")
            _refuse_unless_plain(item, depth + 1)


def _refuse_infinite(value: object) -> None:
    """Raise UnsavableValue for a NaN or an infinity anywhere in the value."""
    if isinstance(value, float):
        _refuse_number(value)
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_infinite(item)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            _refuse_infinite(item)


def json_text(value: object) -> str:
    """Return plain JSON as text whose floats stay floats in a `jsonb`."""
    return with_fractions(json.dumps(value))


def with_fractions(text: str) -> str:
    """Return JSON in which floats are written with a fraction, not an exponent.

    Postgres would store 1e23 in a `jsonb` as an integer, and Python would read an int.
    """
    if _E not in text or _EXPONENT.search(text) is None:
        return text
    return _FLOAT.sub(_with_fraction, text)


def _has_negative_zero(text: str) -> bool:
    """Whether JSON contains the number -0.0, which a `jsonb` turns into 0.0."""
    return "-0" in text and any(found[1] for found in _NEGATIVE_ZERO.finditer(text))


def _with_fraction(found: re.Match[str]) -> str:
    if found[1] is None:  # a string
        return found[0]
    digits = format(Decimal(found[1]), "f")
    return digits if "." in digits else f"{digits}.0"


def _savable_text(data: bytes) -> str:
    """Return JSON as text; UnsavableValue if it is too long or has a NUL character."""
    text = data.decode()
    # \\u0000 is an escaped backslash and text, not a NUL
    if "\\u0000" in text and "\\u0000" in text.replace("\\\\", ""):
        raise UnsavableValue(
            "a string with a NUL character cannot be saved: Postgres has none"
        )
    written = with_fractions(text)
    if (size := len(data) + len(written) - len(text)) > MAX_BYTES:
        raise UnsavableValue(
            f"a value of {size:,} bytes cannot be saved, only {MAX_BYTES:,}"
        )
    return written


def _refuse_number(value: float) -> None:
    """Raise UnsavableValue for a NaN, an infinity, and an integer too long to read."""
    if isinstance(value, int):
        if not -_INTEGERS_END < value < _INTEGERS_END:
            raise UnsavableValue("an integer of that many digits cannot be saved")
    elif not math.isfinite(value):
        raise UnsavableValue(f"{value!r} cannot be saved: JSON has finite numbers only")


def _refuse(what: str) -> NoReturn:
    raise UnsavableType(
        f"{what} is not plain JSON, and has no type to be read back as: "
        "annotate what the function returns, or pass as_type="
    )


# -- what reads back -------------------------------------------------------------------

_ATOMS: Final = frozenset({str, int, float, bool, type(None)})
_TIMES: Final = (datetime, time)
_LISTS: Final = (list, tuple, set, frozenset, deque)


class Change(NamedTuple):
    """The first part of a value that changed or lost data on the way."""

    lost: bool
    where: str
    before: str
    after: str

    def __str__(self) -> str:
        part = f"{self.where} ({self.before})" if self.where else self.before
        return f"{part} reads back as {self.after}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares values of a type with the values they read back as.

    `converts` says that the type has functions of its own that change values, such as
    rounding, which is no loss.
    """

    converts: bool

    def change(self, before: Any, after: Any, where: str = "") -> Change | None:
        """Return a part that changed on the way, preferring one that lost data."""
        if before is after or _same(before, after):
            return None
        if isinstance(before, _LISTS) and isinstance(after, _LISTS):
            return self._of_list(before, after, where)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return self._of_mapping(before, after, where)
        if type(before) is type(after):
            return self._of_one_type(before, after, where)
        return self._of_two_types(before, after, where)

    def _of_list(self, before: Any, after: Any, where: str) -> Change | None:
        if len(before) != len(after):
            return _change(before, after, where, lost=not self.converts)
        if isinstance(after, set | frozenset):  # it has no order to compare by
            return _change(before, after, where, lost=_equal(before, after) is False)
        pairs = enumerate(zip(before, after, strict=True))
        parts = [self.change(*pair, f"{where}[{index}]") for index, pair in pairs]
        return _worst(parts) or _form(before, after, where)

    def _of_mapping(self, before: Any, after: Any, where: str) -> Change | None:
        if len(before) != len(after):
            return _change(before, after, where, lost=not self.converts)
        pairs = zip(before.items(), after.items(), strict=True)
        parts = []
        for (key, value), (key_after, value_after) in pairs:
            parts.append(self.change(key, key_after, f"{where}.keys"))
            parts.append(self.change(value, value_after, f"{where}[{key!r:.40}]"))
        return _worst(parts) or _form(before, after, where)

    def _of_one_type(self, before: Any, after: Any, where: str) -> Change | None:
        fields, fields_after = _fields(before), _fields(after)
        if fields is not None and fields_after is not None:
            return self._of_fields(before, fields, fields_after, where)
        # across time zones, an ambiguous hour (the end of DST) never equals itself
        if isinstance(before, _TIMES) and before.isoformat() == after.isoformat():
            return None
        return _change(before, after, where, lost=self._is_another(before, after))

    def _of_fields(
        self,
        before: Any,
        fields: Mapping[str, Any],
        fields_after: Mapping[str, Any],
        where: str,
    ) -> Change | None:
        parts = []
        for name, value in fields.items():
            path = f"{where}.{name}"
            if name not in fields_after:
                return _change(value, None, path, lost=True)
            part = self.change(value, fields_after[name], path)
            if part is not None and _is_excluded(before, name):
                return part._replace(lost=True)
            parts.append(part)
        # otherwise they differ in a private attribute, or by the class's own __eq__
        return _worst(parts) or _change(before, before, where, lost=False)

    def _is_another(self, before: Any, after: Any) -> bool:
        """Whether two values of one type are certain to differ."""
        own: object = type(before).__eq__
        if own is object.__eq__ or not _equal(before, before):
            return False
        masked = isinstance(before, Secret | SecretStr | SecretBytes)
        return _equal(before, after) is False and (masked or not self.converts)

    def _of_two_types(self, before: Any, after: Any, where: str) -> Change | None:
        form = _change(before, after, where, lost=False)
        if _equal(before, after):
            return form
        try:
            own = codec(type(before))
            restored = own.load(to_json(after, by_alias=False))
        except ValidationError:
            return form._replace(lost=True)
        except Exception:  # noqa: BLE001 - its former type cannot parse it
            return form
        if type(restored) is not type(before):
            return form
        found = own.comparison.change(before, restored, where)
        return found if found is not None and found.lost else form


def _is_excluded(model: object, name: str) -> bool:
    field = getattr(type(model), "model_fields", {}).get(name)
    return field is not None and bool(field.exclude)


def _same(before: Any, after: Any) -> bool:
    """Whether two values are equal and of one type; an int may become a float."""
    if type(before) is not type(after) and type(after) is not float:
        return False
    return _equal(before, after) is True


def _equal(before: Any, after: Any) -> bool | None:
    """Whether two values are equal; None if the comparison fails, as with arrays."""
    try:
        return bool(before == after)
    except Exception:  # noqa: BLE001 - the comparison is the user's own code
        return None


def _fields(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a model or dataclass; None for anything else."""
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def _form(before: object, after: object, where: str) -> Change | None:
    if type(before) is type(after):
        return None
    return _change(before, after, where, lost=False)


def _change(before: object, after: object, where: str, *, lost: bool) -> Change:
    names = type(before).__qualname__, type(after).__qualname__
    read = f"another {names[1]}" if names[0] == names[1] else names[1]
    return Change(lost, where, names[0], read)


def _worst(changes: Iterable[Change | None]) -> Change | None:
    return max(filter(None, changes), key=lambda change: change.lost, default=None)


def _lazy_part(value: object, *, deep: bool) -> object | None:
    """Return a generator or other iterator inside a value; None if there is none.

    Serializing one would consume it. `deep` looks into models and dataclasses, too.
    """
    return None if type(value) in _ATOMS else _lazy(value, set(), deep=deep)


def _lazy(value: object, seen: set[int], *, deep: bool) -> object | None:
    items: Iterable[object] = ()
    if isinstance(value, _LISTS):
        items = value
    elif isinstance(value, dict):
        items = value.values()
    elif _is_lazy(type(value)):  # type: ignore[arg-type] # a class has a hash
        return value
    elif deep:
        items = (_fields(value) or {}).values()
    if _ATOMS.issuperset(map(type, items)) or id(value) in seen:
        return None
    seen.add(id(value))
    inner = (item for item in items if type(item) not in _ATOMS)
    found = (_lazy(item, seen, deep=deep) for item in inner)
    return next((lazy for lazy in found if lazy is not None), None)


@lru_cache(maxsize=1024)  # a failing hasattr on a model class is slow
def _is_lazy(kind: type) -> bool:
    """Whether serializing consumes such a value; False if it has its own schema."""
    named = ("__next__", "__anext__", "__await__")
    return any(hasattr(kind, name) for name in named) and not hasattr(
        kind, "__get_pydantic_core_schema__"
    )


PLAIN: Final[Codec[Any]] = _PlainCodec()
