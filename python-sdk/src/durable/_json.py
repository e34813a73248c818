"""What may be kept as JSON.

Postgres refuses NUL characters, lone surrogates and numbers that are not finite, and
would refuse with them whatever stands in the same statement; so they are refused here.
So is what the parser would not read again.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, TypeAlias

from durable.errors import InvalidArgument

__all__ = [
    "JSON",
    "MAX_BYTES",
    "MAX_DEPTH",
    "Unsavable",
    "UnsavableType",
    "UnsavableValue",
    "refuse_infinite",
    "refuse_unless_plain",
    "savable_text",
]

JSON: TypeAlias = (
    "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
)

MAX_BYTES: Final = 16 * 1024 * 1024
"""The size of one value, as text."""

MAX_DEPTH: Final = 200
"""How deep lists and dicts may be nested; pydantic's parser goes no deeper."""

_INTEGERS_END: Final = 10**sys.int_info.default_max_str_digits


class Unsavable(Exception):
    """The value cannot be kept, so trying again would not help."""


class UnsavableType(Unsavable, TypeError):
    """Nothing says what to read the value back as, and it is not plain JSON."""


class UnsavableValue(Unsavable, InvalidArgument):
    """Values of its type can be saved, but not this one."""


def refuse_unless_plain(value: object, depth: int = 0) -> None:
    """Raise Unsavable unless the value is exactly what JSON has.

    That is None, bool, int, finite float, str, and lists and dicts of them with str
    keys; no subclass of these, for it would come back as what it derives from.
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
            refuse_unless_plain(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                _refuse(f"a dict whose key {key!r} is no str")
            refuse_unless_plain(item, depth + 1)


def refuse_infinite(value: object) -> None:
    """Raise UnsavableValue if there is a NaN or an infinity anywhere in the value."""
    if isinstance(value, float):
        _refuse_number(value)
    elif isinstance(value, dict):
        for item in value.values():
            refuse_infinite(item)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            refuse_infinite(item)


def savable_text(data: bytes) -> str:
    """Return JSON as text; UnsavableValue if it is too long or has a NUL character."""
    if len(data) > MAX_BYTES:
        raise UnsavableValue(
            f"a value of {len(data):,} bytes cannot be saved, only {MAX_BYTES:,}"
        )
    text = data.decode()
    # in JSON, an escaped backslash before u0000 is just a backslash
    if "\\u0000" in text and "\\u0000" in text.replace("\\\\", ""):
        raise UnsavableValue(
            "a string with a NUL character cannot be saved: Postgres has none"
        )
    return text


def _refuse_number(value: float) -> None:
    if isinstance(value, int):
        if not -_INTEGERS_END < value < _INTEGERS_END:
            raise UnsavableValue("an integer of that many digits cannot be saved")
    elif not math.isfinite(value):
        raise UnsavableValue(f"{value!r} cannot be saved: JSON has finite numbers only")


def _refuse(what: str) -> NoReturn:
    raise UnsavableType(
        f"{what} is no plain JSON, and nothing says what to read it back as: "
        "annotate what the function returns, or pass as_type="
    )
