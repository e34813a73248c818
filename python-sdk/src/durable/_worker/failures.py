"""Exceptions as they are recorded, and as they come back at replay.

What is recorded cannot be retried away: a replay would raise it again. So an exception
that came from a checkpoint, or cannot be saved at all, fails the task.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import traceback
from collections.abc import Iterator
from typing import Any, Final

from pydantic_core import to_json

from durable._json import Unsavable
from durable._values import PLAIN
from durable._vault import unsealed_error
from durable.errors import NonRetryable, StepFailed, TaskError

__all__ = [
    "error_json",
    "is_final",
    "is_recorded",
    "leaves",
    "mark_recorded",
    "restore",
    "said",
    "step_error_json",
]

_LONGEST: Final = 20_000
_LONGEST_NAME: Final = 255
_LONGEST_ARGS: Final = 1_000_000
_RECORDED: Final = "__durable_recorded__"


def error_json(error: BaseException) -> str:
    """Return what a failed attempt keeps of its exception, as JSON."""
    return _json(_described(error))


def step_error_json(error: Exception) -> str:
    """Return what a failed step keeps: enough to restore the exception."""
    described = _described(error)
    described["module"] = _printable(type(error).__module__)
    with contextlib.suppress(Unsavable):
        if len(PLAIN.dump(list(error.args))) <= _LONGEST_ARGS:
            described["args"] = list(error.args)
    return _json(described)


def restore(text: str) -> Exception:
    """Return a recorded step failure as an exception of its own class, if it can be.

    The class must be importable and derive from Exception, and its arguments must have
    been plain JSON; else it is StepFailed.
    """
    recorded = unsealed_error(json.loads(text))
    error = _restored(recorded) or StepFailed(task_error(recorded))
    return mark_recorded(error)


def task_error(recorded: dict[str, Any] | None) -> TaskError:
    """Return a recorded error as a value."""
    recorded = unsealed_error(recorded or {})
    return TaskError(
        str(recorded.get("type", "Error")),
        str(recorded.get("message", "")),
        recorded.get("traceback"),
    )


def mark_recorded(error: Exception) -> Exception:
    """Mark an exception whose cause is in a checkpoint."""
    setattr(error, _RECORDED, True)
    return error


def is_final(error: BaseException, no_retry: tuple[type[Exception], ...]) -> bool:
    """Whether another attempt is pointless; of a group, whether it is for a leaf."""
    return any(
        isinstance(leaf, (NonRetryable, Unsavable, *no_retry))
        or getattr(leaf, _RECORDED, False)
        for leaf in leaves(error)
    )


def is_recorded(error: BaseException) -> bool:
    """Whether an exception came from a checkpoint; of a group, whether a leaf did."""
    return any(getattr(leaf, _RECORDED, False) for leaf in leaves(error))


def said(error: BaseException) -> str:
    """Return the text of an exception, whatever its class makes of that."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - it is the user's own code
        return f"<no message: str() raised {type(failure).__name__}>"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception; of a group, what is in it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _described(error: BaseException) -> dict[str, Any]:
    cause = error.__cause__ if isinstance(error, NonRetryable) else None
    named = cause if cause is not None and error.args == (cause,) else error
    lines = traceback.format_exception(error)
    return {
        "type": _printable(type(named).__qualname__)[:_LONGEST_NAME],
        "message": _printable(said(named)),
        "traceback": _printable("".join(lines)),
    }


def _printable(text: str) -> str:
    """Return text as Postgres takes it: the end of it, if it is long."""
    text = text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


def _json(described: dict[str, Any]) -> str:
    return to_json(described).decode()


def _restored(recorded: dict[str, Any]) -> Exception | None:
    if "args" not in recorded:
        return None
    try:
        found: Any = importlib.import_module(recorded.get("module", builtins.__name__))
        for name in recorded["type"].split("."):
            found = getattr(found, name)
        if isinstance(found, type) and issubclass(found, Exception):
            error = found(*recorded["args"])
            error.add_note("Recorded in an earlier run.")
            return error
    except Exception:  # noqa: BLE001 - importing and constructing are the user's own code
        return None
    return None
