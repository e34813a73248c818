"""Records exceptions as JSON and restores them, without pickle.

The task's code always gets a step's failure restored from JSON, on the first run as in
every replay, so that `except` sees the same exception each time. A recorded failure
cannot be retried, because every replay raises it again. So an exception that came from
a checkpoint, or that cannot be saved, fails the task.

An exception is restored from its class, arguments, attributes, notes, cause and
context, without calling a constructor of the application. An argument or an attribute
may be another exception. An exception with anything that JSON cannot represent is
restored as `StepFailed`. If that applies only to its cause, its context or a member of
a group, only that exception becomes `StepFailed`.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, TypeAlias

import psycopg
from pydantic_core import to_json

from durable._core.payloads import decoded_error
from durable._core.values import PLAIN, Unsavable
from durable.errors import ErrorDetails, NonRetryable, StepFailed

Record: TypeAlias = dict[str, Any]

_LONGEST: Final = 20_000
_LONGEST_NAME: Final = 255
_LONGEST_CONTENT: Final = 1_000_000
_LONGEST_CHAIN: Final = 5
_IS_HEAP_TYPE: Final = 1 << 9  # a class made by a class statement: Py_TPFLAGS_HEAPTYPE
_NO_CLASS: Final = "its class cannot be imported by its name"
# Objects that do not describe the failure itself: they are restored as None.
_OMITTED: Final[Mapping[str, frozenset[str]]] = {
    "builtins.AttributeError": frozenset({"obj"}),
    "httpx.RequestError": frozenset({"_request"}),
    "sqlalchemy.exc.StatementError": frozenset({"params"}),
}
_RECORDED: Final = "__durable_recorded__"


def error_json(error: BaseException, step: str | None = None) -> str:
    """Return the exception of a failed attempt, raised by a step, as JSON."""
    named = error
    if isinstance(error, NonRetryable) and error.args == (error.__cause__,):
        named = error.__cause__ or error
    described = _described(type(named).__qualname__, error_text(named))
    if isinstance(error, StepFailed):
        described = _described(error.error.type, error.error.message)
    if step is not None:
        described["step"] = step
    stack = printable("".join(traceback.format_exception(error)))
    return to_json(described | {"traceback": stack}).decode()


def _described(kind: str, message: str) -> Record:
    return {"type": printable(kind)[:_LONGEST_NAME], "message": printable(message)}


def step_error_json(error: Exception, place: int) -> str:
    """Return the exception of a failed step as JSON, from which it can be restored.

    `place` is the number of calls that were complete when it failed.
    """
    return to_json(_dump(error) | {"place": place}).decode()


def restore(text: str) -> Exception:
    """Restore the exception of a failed step; StepFailed if its class cannot be."""
    recorded = decoded_error(json.loads(text))
    error = _load(recorded)
    if not isinstance(error, Exception):
        error = StepFailed(task_error(recorded))
    return mark_recorded(error)


def task_error(recorded: dict[str, Any] | None) -> ErrorDetails:
    recorded = decoded_error(recorded or {})
    return ErrorDetails(
        str(recorded.get("type", "Error")),
        str(recorded.get("message", "")),
        recorded.get("traceback"),
        recorded.get("step"),
    )


def mark_recorded(error: Exception) -> Exception:
    """Mark an exception that comes from a checkpoint, or will be saved in one."""
    vars(error)[_RECORDED] = True  # the class may be frozen
    return error


def is_final(
    error: BaseException,
    non_retryable: tuple[type[Exception], ...],
    original: Callable[[BaseException], BaseException],
) -> bool:
    """Whether another attempt is pointless; of a group, whether it is for any leaf.

    `original` maps a kept failure to the exception that the step raised.
    """
    return any(
        isinstance(leaf, (NonRetryable, Unsavable, *non_retryable))
        or getattr(leaf, _RECORDED, False)
        for leaf in leaves(error, original)
    )


def is_recorded(error: BaseException) -> bool:
    """Whether an exception came from a checkpoint; of a group, whether any leaf did."""
    return any(getattr(leaf, _RECORDED, False) for leaf in leaves(error))


def leaves(
    error: BaseException,
    original: Callable[[BaseException], BaseException] = lambda error: error,
) -> Iterator[BaseException]:
    """Yield the `original` of an exception; of a group, those of its leaves."""
    error = original(error)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner, original)
    else:
        yield error


class _Unrestorable(Exception):
    """The exception has something that JSON cannot represent."""


def _dump(error: BaseException, depth: int = 0) -> Record:
    """Return an exception as JSON: at least its type, message and module.

    The exception that was raised has its traceback. Its causes and contexts have one
    only if they cannot be restored.
    """
    record = _described(type(error).__qualname__, error_text(error))
    record["module"] = printable(type(error).__module__)
    try:
        content = _content(error, depth)
        if len(PLAIN.dump(record | content)) > _LONGEST_CONTENT:
            raise _Unrestorable("it is too large")  # noqa: TRY301
        if _class_of(record) is not type(error):
            raise _Unrestorable(_NO_CLASS)  # noqa: TRY301
        _build(type(error), record | content)
    except Exception as failure:  # noqa: BLE001 - its class is the user's own code
        record["lost"] = printable(error_text(failure))
    else:
        record |= content
    if depth == 0 or "lost" in record:
        lines = traceback.format_exception(error, chain=depth == 0)
        record["traceback"] = printable("".join(lines))
    return record


def _load(record: Record) -> BaseException:
    """Restore an exception; as StepFailed if its class cannot be restored."""
    if "args" not in record:
        return _as_step_failed(record)
    try:
        cls = _class_of(record)
        return _build(cls, record) if "more" in record else cls(*record["args"])
    except Exception:  # noqa: BLE001 - importing and constructing are the user's own code
        return _as_step_failed(record)


def printable(text: str) -> str:
    """Return text that Postgres accepts; of long text, the end."""
    text = text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


def error_text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - it is the user's own code
        return f"<no message: str() raised {type(failure).__name__}>"


def _as_step_failed(record: Record) -> StepFailed:
    failed = StepFailed(task_error(record))
    if "lost" in record:
        failed.hint = (
            f"{failed.error.type} cannot be restored: {record['lost']}. Catch"
            " StepFailed, or let the step raise an exception that JSON can represent."
        )
    return failed


def _content(error: BaseException, depth: int) -> Record:
    more: Record = {}
    args = list(error.args)
    if args == [error.__cause__] and args != [None]:
        more["wraps"], args = True, []
    elif isinstance(error, BaseExceptionGroup):
        more["errors"] = [_dump(one, depth + 1) for one in error.exceptions]
        args = [error.message]
    attributes, slots = _attributes(error), _slots(error)
    numbered = {str(index): value for index, value in enumerate(args)}
    inner = {
        name: _inner(name, value, depth)
        for name, value in (numbered | attributes).items()
        if isinstance(value, BaseException)
    }
    args = [None if str(index) in inner else arg for index, arg in enumerate(args)]
    attributes = {k: value for k, value in attributes.items() if k not in inner}
    notes = list(getattr(error, "__notes__", ()))
    _check_json("its arguments", args)
    _check_json("its notes", notes)
    for name, value in (attributes | slots).items():
        _check_json(f"its attribute {name!r}", value)
    parts = {"attributes": attributes, "slots": slots, "notes": notes, "inner": inner}
    more |= {name: part for name, part in parts.items() if part}
    return {"args": args, "more": more | _chain(error, depth)}


def _inner(name: str, error: BaseException, depth: int) -> Record:
    """Dump an exception that is an argument or an attribute of another one."""
    if depth >= _LONGEST_CHAIN:
        raise _Unrestorable("its exceptions refer to one another")
    record = _dump(error, depth + 1)
    if "lost" in record:
        raise _Unrestorable(f"its {name!r}: {record['lost']}")
    return record


def _chain(error: BaseException, depth: int) -> Record:
    chain: Record = {}
    if error.__suppress_context__:
        chain["suppress"] = True
    if depth < _LONGEST_CHAIN:
        cause, context = error.__cause__, error.__context__
        if cause is not None:
            chain["cause"] = _dump(cause, depth + 1)
        if context is cause and cause is not None:
            chain["context"] = "cause"
        elif context is not None:
            chain["context"] = _dump(context, depth + 1)
    return chain


def _attributes(error: BaseException) -> Record:
    omitted = _omitted(type(error))
    found = {
        name: None if name in omitted else value
        for name, value in vars(error).items()
        if not (name.startswith("__") and name.endswith("__"))
    }
    if isinstance(error, psycopg.Error):
        found |= {"_pgconn": None, "_info": _diagnostics(error)}
    return found


def _slots(error: BaseException) -> Record:
    """Return slots and fields of built-in classes, which are not in `__dict__`."""
    omitted = _omitted(type(error))
    found = {}
    for name, descriptor in _slots_of(type(error)).items():
        try:
            value = descriptor.__get__(error)
        except AttributeError:  # not set
            continue
        if value is not None and name not in omitted:
            found[name] = value
    return found


def _diagnostics(error: psycopg.Error) -> dict[str, str] | None:
    """Return the server's diagnostics, as psycopg's own pickling keeps them."""
    reduced: Any = error.__reduce__()
    found = reduced[2]["_info"] or {}
    return {
        str(int(field)): value.decode("latin-1")
        for field, value in found.items()
        if value is not None
    } or None


def _check_json(what: str, value: object) -> None:
    try:
        PLAIN.dump(value)
    except Unsavable:
        raise _Unrestorable(f"{what}: JSON cannot represent that") from None


def _class_of(record: Record) -> Any:
    """Return the class of a record. Raises _Unrestorable if it is no exception."""
    name = record.get("module", builtins.__name__)
    found: Any = sys.modules.get(name) or importlib.import_module(name)
    for part in record["type"].split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    raise _Unrestorable(_NO_CLASS)


def _build(cls: type[BaseException], record: Record) -> BaseException:
    """Build an exception of this class without calling its constructor."""
    more = record["more"]
    built_in: Any = cls
    while built_in.__flags__ & _IS_HEAP_TYPE:
        built_in = built_in.__base__
    errors = [_load(one) for one in more.get("errors", ())]
    error: BaseException = (
        built_in.__new__(cls, record["args"][0], errors)
        if errors
        else built_in.__new__(cls)
    )
    cause, context = more.get("cause"), more.get("context")
    # by their descriptors: the class may be frozen or override __setattr__
    if cause is not None:
        _field("__cause__").__set__(error, _load(cause))
    if context is not None:
        came_from = error.__cause__ if context == "cause" else _load(context)
        _field("__context__").__set__(error, came_from)
    _field("__suppress_context__").__set__(error, "suppress" in more)
    inner = {name: _load(one) for name, one in more.get("inner", {}).items()}
    args = [inner.pop(str(i), arg) for i, arg in enumerate(record["args"])]
    if "wraps" in more:
        args = [error.__cause__]
    if not errors:
        _field("args").__set__(error, tuple(args))
    _set_attributes(error, more, inner)
    return error


def _set_attributes(error: BaseException, more: Record, inner: Record) -> None:
    attributes = more.get("attributes", {}) | inner
    if isinstance(error, psycopg.Error) and attributes.get("_info"):
        attributes["_info"] = {
            psycopg.pq.DiagnosticField(int(field)): value.encode("latin-1")
            for field, value in attributes["_info"].items()
        }
    vars(error).update(attributes)
    if "notes" in more:
        vars(error)["__notes__"] = list(more["notes"])
    descriptors = _slots_of(type(error))
    for name, value in more.get("slots", {}).items():
        descriptors[name].__set__(error, value)


def _field(name: str) -> Any:
    return vars(BaseException)[name]


def _slots_of(cls: type[BaseException]) -> dict[str, Any]:
    return {
        name: descriptor
        for base in reversed(cls.__mro__)
        for name, descriptor in vars(base).items()
        if isinstance(descriptor, (MemberDescriptorType, GetSetDescriptorType))
        and not name.startswith("__")
        and base not in (BaseException, BaseExceptionGroup)
    }


def _omitted(cls: type[BaseException]) -> frozenset[str]:
    names = (f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
    return frozenset().union(*(_OMITTED.get(name, ()) for name in names))
