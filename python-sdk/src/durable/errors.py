"""The exceptions of durable.

    DurableError
      NotFound, AlreadyFinished, Conflict, UnknownQueue, LeaseLost, SchemaVersion,
      Forbidden, WrongIsolation, QueueFull
      DatabaseUnavailable    also a psycopg_pool.PoolTimeout
      InvalidArgument        also a ValueError
      TaskFailed             from result() and join(): the task failed
      TaskCancelled          from result(), join() and calls on a cancelled task
      StepFailed             a step's failure whose exception cannot be stored as JSON
      NonDeterminism         a task's code no longer makes the calls of its history
    NonRetryable             raised by your code: the task fails now
    Suspended                an asyncio.CancelledError: do not catch or raise it

A timeout is the builtin `TimeoutError`. Classes with a code match the engine's list,
`select * from durable.errors()`: one class for each SQLSTATE.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from psycopg_pool import PoolTimeout

__all__ = [
    "AlreadyFinished",
    "BadStatus",
    "Conflict",
    "DatabaseUnavailable",
    "DurableError",
    "ErrorDetails",
    "Forbidden",
    "InvalidArgument",
    "LeaseLost",
    "NonDeterminism",
    "NonRetryable",
    "NotFound",
    "QueueFull",
    "ResponseTooLarge",
    "SchemaVersion",
    "StepFailed",
    "Suspended",
    "TaskCancelled",
    "TaskFailed",
    "UnknownQueue",
    "UnreadablePayload",
    "WrongIsolation",
    "from_database",
    "sqlstates",
]


class DurableError(Exception):
    """The base class of durable's exceptions.

    `code` is the SQLSTATE of the class, or None; `hint` is advice on how to fix the
    error, or None. `by_code` maps SQLSTATEs to classes.
    """

    code: ClassVar[str | None] = None
    by_code: ClassVar[dict[str, type[DurableError]]] = {}

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        cls.code = code
        if code is not None:
            DurableError.by_code[code] = cls

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\nHint: {self.hint}" if self.hint else message


class NotFound(DurableError, code="WFNFD"):
    """There is no such task, or schedule, in this queue; or it is not committed yet."""


class AlreadyFinished(DurableError, code="WFFIN"):
    """The task has finished, and finished states are final."""


class Conflict(DurableError, code="WFCON"):
    """An existing row differs: an idempotency key used for another task."""


class UnknownQueue(DurableError, code="WFQUE"):
    """There is no queue of this name. Create it first."""


class QueueFull(DurableError, code="WFFUL"):
    """The queue has reached its max_length. Nothing was spawned; try again later."""


class WrongIsolation(DurableError, code="WFISO"):
    """The transaction is stricter than READ COMMITTED, which maintenance needs."""


class LeaseLost(DurableError, code="WFLST"):
    """Another worker may own this task now. Nothing more can be saved for it."""


class SchemaVersion(DurableError, code="WFVER"):
    """The database has no durable schema, or one that this package cannot use."""


class Forbidden(DurableError, code="42501"):
    """The calling role has no grant on the function or the queue."""


class InvalidArgument(DurableError, ValueError, code="22023"):
    """An argument was refused, by this package or by the database."""


class DatabaseUnavailable(DurableError, PoolTimeout):
    """No connection to the database could be made; nothing was sent.

    The message is that of the server, pooler or network. A client that has not
    connected yet raises it at once if the server rejects the database, role or
    password; for other failures its pool waits, for 30 s by default. It is also a
    `psycopg_pool.PoolTimeout`.
    """


class UnreadablePayload(DurableError):
    """A sealed value cannot be opened by this application's codecs.

    `mark` names the codec and key that sealed it. A worker that reads such a value
    releases the task for a minute, without using up an attempt.
    """

    def __init__(self, mark: str, why: str = "cannot be opened") -> None:
        super().__init__(
            hint="Pass the codec, with that key, as codec= to the application."
        )
        self.args = (mark, why)
        self.mark = mark
        self.why = why

    def __str__(self) -> str:
        return f"a value sealed by {self.mark!r} {self.why}\nHint: {self.hint}"


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The recorded exception of a task or a step.

    `type` is the name of the exception's class, `message` its text, `traceback` the
    formatted stack, or None if none was stored. If the exception of a step's function
    ended an attempt, `step` is the name of that step.
    """

    type: str
    message: str
    traceback: str | None = None
    step: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class _Recorded(DurableError):
    """A failure that carries the error recorded for it."""

    def __init__(self, error: ErrorDetails) -> None:
        super().__init__(str(error))
        self.args = (error,)
        self.error = error
        if error.traceback:
            self.add_note(f"As it was recorded:\n{error.traceback}")

    def __str__(self) -> str:
        return str(self.error)


class TaskFailed(_Recorded):
    """The task failed permanently. `error` is the error of its last attempt.

    `task_id` is the task's id. `name`, raised in a parent that joined its child, is the
    name under which the child was spawned. Each is None if unknown.
    """

    def __init__(
        self,
        error: ErrorDetails,
        *,
        task_id: UUID | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(error)
        self.task_id = task_id
        self.name = name


class StepFailed(_Recorded):
    """A step failed with an exception that JSON cannot store; `error` describes it.

    It is raised in place of the exception, in the first run as in every replay; `hint`
    names what cannot be stored.
    """


class NonDeterminism(DurableError):
    """A task's code no longer makes the calls of its history in the same order.

    `expected` is the checkpoint name of the recorded call; `found` that of the call the
    code made instead, None if the code returned; `position` is the number of the call,
    from 1. Raised for tasks with `replay_check = "strict"`: the attempt fails, and is
    retried like any other.
    """

    def __init__(
        self,
        message: str = "",
        *,
        expected: str = "",
        found: str | None = None,
        position: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.expected = expected
        self.found = found
        self.position = position


class TaskCancelled(DurableError, code="WFCAN"):
    """The task was cancelled. `reason` is the given reason, or None.

    `task_id` and `name` are as in `TaskFailed`.
    """

    def __init__(
        self,
        reason: str | None = None,
        *,
        hint: str | None = None,
        task_id: UUID | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(reason or "the task was cancelled", hint=hint)
        self.reason = reason
        self.task_id = task_id
        self.name = name


class NonRetryable(Exception):
    """Raise it in a task to fail the task now, without further attempts.

    `raise NonRetryable("the card is stolen")` gives a message;
    `raise NonRetryable(error)` wraps an exception, which becomes its cause.
    """

    def __init__(self, why: str | BaseException = "") -> None:
        super().__init__(why)
        if isinstance(why, BaseException):
            self.__cause__ = why

    def __str__(self) -> str:
        (why,) = self.args
        return f"{type(why).__name__}: {why}" if self.__cause__ is why else str(why)


class BadStatus(DurableError):
    """A response of `ctx.http` has a status of 400 or above.

    Has `status_code`, `method` and `url`. Raised by `raise_for_status`.
    """

    def __init__(self, status_code: int, method: str, url: str) -> None:
        super().__init__(f"{method} {url} answered {status_code}")
        self.args = (status_code, method, url)  # a replay restores it from these
        self.status_code = status_code
        self.method = method
        self.url = url

    def __str__(self) -> str:
        return f"{self.method} {self.url} answered {self.status_code}"


class ResponseTooLarge(DurableError, NonRetryable):
    """The body of a response is larger than `max_bytes`. A retry would not help."""


class Suspended(asyncio.CancelledError):
    """The run stops on this worker before its code has finished.

    A task's await raises it when the task suspends for a wait, was cancelled, lost its
    lease, or its worker shuts down; `reason` says which. Do not catch it: use `finally`
    and `async with` to clean up local state. Every later call on the context raises it
    again and does nothing.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def from_database(exc: Exception) -> Exception:
    """Return durable's exception for a driver's, or `exc` itself if it has none.

    Goes by SQLSTATE, not by the message, for errors of psycopg, asyncpg, psycopg 2, and
    those wrapped by SQLAlchemy or Django. The result has `exc` as its cause, so
    `raise from_database(exc)` is enough.
    """
    for error in _driver_errors(exc):
        if _sqlstate(error) in _POOLED and not getattr(exc, "__notes__", None):
            exc.add_note("Behind a pooler in transaction mode, pass prepare=False.")
        found = _translate(error)
        if found is not None:
            found.__cause__ = exc
            return found
    return exc


def sqlstates(exc: BaseException) -> list[str]:
    """Return the SQLSTATEs of a driver's exception and of those it wraps."""
    return [_sqlstate(error) or "" for error in _driver_errors(exc)]


# invalid schema name, undefined function, undefined table; only the name is the same in
# every language of the server's messages
_MISSING = {
    "3F000": re.compile(r"\bdurable\b"),
    "42883": re.compile(r"\bdurable\."),
    "42P01": re.compile(r"\bdurable\."),
}
# a prepared statement of another session: unknown, or existing already
_POOLED = {"26000", "42P05"}
# Django wraps once, and SQLAlchemy's asyncpg dialect twice
_WRAPPERS = 3


def _driver_errors(exc: BaseException) -> Iterator[BaseException]:
    """Yield those of the exception and the ones it wraps that have a SQLSTATE."""
    error: BaseException | None = exc
    for _ in range(_WRAPPERS + 1):
        if error is None:
            return
        if _sqlstate(error) is not None:
            yield error
        error = getattr(error, "orig", None) or error.__cause__


def _sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE; psycopg 2 (Django, SQLAlchemy) calls it `pgcode`."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _translate(error: BaseException) -> DurableError | None:
    code = _sqlstate(error) or ""
    diag = getattr(error, "diag", error)
    message = getattr(diag, "message_primary", None) or getattr(error, "message", None)
    hint = getattr(diag, "message_hint", None) or getattr(error, "hint", None)
    text = str(message or error)
    if code in _MISSING and _MISSING[code].search(text):
        return SchemaVersion(
            "this database has no schema for durable, or an older one",
            hint="Run `durable migrate`, or call `app.migrate()`.",
        )
    cls = DurableError.by_code.get(code)
    return None if cls is None else cls(text, hint=hint)
