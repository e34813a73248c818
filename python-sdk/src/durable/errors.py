"""What durable raises on purpose.

    DurableError
      NotFound, AlreadyFinished, Conflict, UnknownQueue, LeaseLost, SchemaVersion,
      Forbidden
      DatabaseUnavailable    also a psycopg_pool.PoolTimeout
      InvalidArgument        also a ValueError
      TaskFailed             the outcome of a task: result(), join()
      TaskCancelled          the outcome of a task, or what the database says of it
      StepFailed             a recorded failure whose own class cannot be restored
      NonDeterminism         a task's code no longer makes the calls of its history
    NonRetryable             raised by you: the task fails now
    Suspended                an asyncio.CancelledError: not for you to catch or raise

A timeout is the builtin `TimeoutError`. The classes with a code are one with the
database's catalogue, `select * from durable.errors()`: one SQLSTATE, one class.
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
    "Forbidden",
    "InvalidArgument",
    "LeaseLost",
    "NonDeterminism",
    "NonRetryable",
    "NotFound",
    "ResponseTooLarge",
    "SchemaVersion",
    "StepFailed",
    "Suspended",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "UnknownQueue",
    "UnreadablePayload",
    "from_database",
    "sqlstates",
]


class DurableError(Exception):
    """Catch this to catch whatever durable raises on purpose.

    `code` is the SQLSTATE the class stands for, or None; `hint` says what to do,
    where there is something to do. `by_code` finds the class of a SQLSTATE.
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
    """There is no such task in this queue, or its transaction did not commit."""


class AlreadyFinished(DurableError, code="WFFIN"):
    """The task has reached its end, and ends are final."""


class Conflict(DurableError, code="WFCON"):
    """What is already there differs: an idempotency key used for another task."""


class UnknownQueue(DurableError, code="WFQUE"):
    """There is no queue of this name. Create it first."""


class LeaseLost(DurableError, code="WFLST"):
    """Another worker may own this task now. Nothing more can be saved for it."""


class SchemaVersion(DurableError, code="WFVER"):
    """The database lacks durable's schema, or has one this package cannot use."""


class Forbidden(DurableError, code="42501"):
    """The function, or the queue, is not granted to the role that called."""


class InvalidArgument(DurableError, ValueError, code="22023"):
    """An argument was refused, by this package or by the database."""


class DatabaseUnavailable(DurableError, PoolTimeout):
    """No connection to the database can be had: nothing was sent.

    It says so in the words of the server, or of whatever is on the way there. A client
    that has not been let in yet raises it at once for a database, a role or a password
    that the server does not know; for the rest its pool waits, for 30 s unless it says
    otherwise. It is also a `psycopg_pool.PoolTimeout`.
    """


class UnreadablePayload(DurableError):
    """A value is sealed, and cannot be opened here.

    `mark` says by which codec, and which of its keys. A worker that meets one puts the
    task back for a minute, without using up an attempt.
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
class TaskError:
    """What a task or a step raised, as it was recorded.

    `type` is the name of the exception's class, `message` its text, `traceback`
    the formatted stack, or None when none was kept.
    """

    type: str
    message: str
    traceback: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class _Recorded(DurableError):
    """A failure that comes with the error which was recorded for it."""

    def __init__(self, error: TaskError) -> None:
        super().__init__(str(error))
        self.args = (error,)
        self.error = error
        if error.traceback:
            self.add_note(f"As it was recorded:\n{error.traceback}")

    def __str__(self) -> str:
        return str(self.error)


class TaskFailed(_Recorded):
    """The task failed for good. `error` is what its last run raised.

    `task_id` says which task, and `name`, to a task that waited for its child, under
    which name it had spawned it; each is None where that is not known.
    """

    def __init__(
        self,
        error: TaskError,
        *,
        task_id: UUID | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(error)
        self.task_id = task_id
        self.name = name


class StepFailed(_Recorded):
    """A step failed earlier, and its exception's class cannot be restored here."""


class NonDeterminism(DurableError):
    """A task's code no longer makes the calls that its history holds, in their order.

    `expected` is the recorded call that it does not make, as its checkpoint is named;
    `found` what it makes instead, None if it ends; `position` which call of the task it
    was, from 1. Raised for tasks with `replay_check = "strict"`: the attempt fails, and
    is made again as any other.
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
    """The task was cancelled. `reason` says why, where that is known.

    `task_id` and `name` are as those of `TaskFailed`.
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
    """Raise it in a task to fail the task now, whatever attempts are left.

    `raise NonRetryable("the card is stolen")` says it in words,
    `raise NonRetryable(error)` passes on an exception, which becomes its cause.
    """

    def __init__(self, why: str | BaseException = "") -> None:
        super().__init__(why)
        if isinstance(why, BaseException):
            self.__cause__ = why

    def __str__(self) -> str:
        (why,) = self.args
        return f"{type(why).__name__}: {why}" if self.__cause__ is why else str(why)


class BadStatus(DurableError):
    """A response of `ctx.http` says that the request failed: 400 or above.

    `status_code`, `method` and `url` say which. Raised by `raise_for_status`.
    """

    def __init__(self, status_code: int, method: str, url: str) -> None:
        super().__init__(f"{method} {url} answered {status_code}")
        self.args = (status_code, method, url)  # by which it is restored at replay
        self.status_code = status_code
        self.method = method
        self.url = url

    def __str__(self) -> str:
        return f"{self.method} {self.url} answered {self.status_code}"


class ResponseTooLarge(DurableError, NonRetryable):
    """The body of a response is above `max_bytes`. Trying again would not help."""


class Suspended(asyncio.CancelledError):
    """The run leaves its worker before its code has ended.

    It comes out of the task's awaits when the task waits, was cancelled, lost its
    lease, or its worker shuts down; `reason` says which. Let it pass: `finally` and
    `async with` tidy up what is local, and every later call on the context raises it
    again and does nothing.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def from_database(exc: Exception) -> Exception:
    """Return durable's own exception for what a driver raised, or `exc` itself.

    Goes by SQLSTATE, never by the message, and knows no driver: psycopg's and
    asyncpg's errors are read as they are, SQLAlchemy's and Django's through the
    driver's error inside them. What is returned has `exc` as its cause, so that
    `raise from_database(exc)` is all a caller writes.
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
    """Return the SQLSTATEs of a driver's exception and of those inside it."""
    return [_sqlstate(error) or "" for error in _driver_errors(exc)]


# invalid schema name, undefined function, undefined table; the name is all that every
# language of the server's messages has in common
_MISSING = {
    "3F000": re.compile(r"\bdurable\b"),
    "42883": re.compile(r"\bdurable\."),
    "42P01": re.compile(r"\bdurable\."),
}
# a prepared statement that is another session's: unknown, or known already
_POOLED = {"26000", "42P05"}
# Django wraps once, and SQLAlchemy's asyncpg dialect twice
_WRAPPERS = 3


def _driver_errors(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exception and those inside it, as far as they have a SQLSTATE."""
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
