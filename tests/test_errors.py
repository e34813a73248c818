"""Each error has one class, which is chosen by its code, never by its text."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Callable
from types import SimpleNamespace

import psycopg
import pytest

from durable import errors
from durable.errors import (
    AlreadyFinished,
    Conflict,
    DurableError,
    ErrorDetails,
    Forbidden,
    InvalidArgument,
    LeaseLost,
    NonRetryable,
    NotFound,
    QueueFull,
    SchemaVersion,
    StepFailed,
    Suspended,
    TaskCancelled,
    TaskFailed,
    UnknownQueue,
    WrongIsolation,
    from_database,
)

CODES: dict[str, type[DurableError]] = {
    "22023": InvalidArgument,
    "42501": Forbidden,
    "WFCAN": TaskCancelled,
    "WFCON": Conflict,
    "WFFIN": AlreadyFinished,
    "WFFUL": QueueFull,
    "WFISO": WrongIsolation,
    "WFLST": LeaseLost,
    "WFNFD": NotFound,
    "WFQUE": UnknownQueue,
    "WFVER": SchemaVersion,
}
DECLINED = ErrorDetails("ValueError", "card declined", "Traceback: charge_card")


class AsyncpgError(Exception):
    """An error as asyncpg raises it: everything is an attribute."""

    def __init__(self, sqlstate: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate, self.message, self.hint = sqlstate, message, hint


class PsycopgError(psycopg.Error):
    """An error as psycopg raises it, without a server."""

    def __init__(self, sqlstate: str, message: str, hint: str | None = None) -> None:
        super().__init__(f"{message}\nHINT:  {hint}\nCONTEXT:  a function")
        self.sqlstate = sqlstate
        self._said = SimpleNamespace(message_primary=message, message_hint=hint)

    @property
    def diag(self) -> SimpleNamespace:  # type: ignore[override]
        return self._said


class SqlalchemyError(Exception):
    """An error as SQLAlchemy raises it: the driver's error is its `orig`."""

    def __init__(self, orig: Exception) -> None:
        super().__init__(str(orig))
        self.orig = orig


def djangos(cause: Exception) -> Exception:
    error = RuntimeError("django.db.utils.DataError")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(("code", "cls"), CODES.items())
def test_has_one_class_for_each_code(code: str, cls: type[DurableError]) -> None:
    assert cls.code == code
    assert DurableError.by_code[code] is cls


def test_has_no_other_codes() -> None:
    assert set(DurableError.by_code) == set(CODES)


def test_all_errors_derive_from_one_class_with_documented_exceptions() -> None:
    classes = {getattr(errors, name) for name in errors.__all__}
    raised = {cls for cls in classes if isinstance(cls, type)} - {ErrorDetails}
    outside = {cls for cls in raised if not issubclass(cls, DurableError)}
    assert outside == {NonRetryable, Suspended}


def test_a_bad_argument_can_be_caught_as_a_value_error() -> None:
    assert issubclass(InvalidArgument, ValueError)


def test_a_suspension_is_no_exception_to_task_code() -> None:
    assert issubclass(Suspended, asyncio.CancelledError)
    assert not issubclass(Suspended, Exception)
    assert Suspended("waiting").reason == "waiting"


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("driver", [PsycopgError, AsyncpgError])
@pytest.mark.parametrize("wrapped", [lambda error: error, SqlalchemyError, djangos])
def test_translates_the_errors_of_every_driver(
    code: str, driver: Callable[..., Exception], wrapped: Callable[..., Exception]
) -> None:
    exc = wrapped(driver(code, "no such thing", "Create it first."))
    error = from_database(exc)
    assert type(error) is CODES[code]
    assert error.args == ("no such thing",)
    assert error.hint == "Create it first."
    assert error.__cause__ is exc


def test_translates_through_both_wrappers_of_sqlalchemy_over_asyncpg() -> None:
    adapted = RuntimeError("adapted by the dialect")
    adapted.__cause__ = AsyncpgError("WFQUE", "there is no queue")
    assert isinstance(from_database(SqlalchemyError(adapted)), UnknownQueue)


def test_shows_the_hint_below_the_message() -> None:
    assert str(NotFound("no task", hint="Look twice.")) == "no task\nHint: Look twice."
    assert str(NotFound("no task")) == "no task"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("3F000", 'schema "durable" does not exist'),
        ("3F000", "Schema »durable« existiert nicht"),
        ("42883", "function durable.spawn(text, text) does not exist"),
        ("42P01", 'relation "durable.tasks" does not exist'),
    ],
)
def test_says_how_to_install_a_schema_that_is_missing(code: str, message: str) -> None:
    error = from_database(AsyncpgError(code, message))
    assert isinstance(error, SchemaVersion)
    assert "durable migrate" in str(error)
    assert "app.migrate()" in str(error)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("3F000", 'schema "shop" does not exist'),
        ("42883", "function durable_spawn(text) does not exist"),
        ("42P01", 'relation "durables.tasks" does not exist'),
        ("42P01", 'relation "orders" does not exist'),
        ("40001", "could not serialize access to durable.tasks"),
    ],
)
def test_does_not_change_other_database_errors(code: str, message: str) -> None:
    exc = AsyncpgError(code, message)
    assert from_database(exc) is exc
    assert exc.__cause__ is None


def test_does_not_change_errors_that_no_database_raised() -> None:
    exc = ConnectionError("reset by peer")
    assert from_database(exc) is exc


def test_keeps_the_error_of_a_failed_task() -> None:
    error = TaskFailed(DECLINED)
    assert error.error == DECLINED
    assert str(error) == "ValueError: card declined"
    assert "Traceback: charge_card" in "".join(traceback.format_exception(error))


def test_names_the_reason_of_a_cancellation() -> None:
    assert TaskCancelled("cancelled by parent").reason == "cancelled by parent"
    assert str(TaskCancelled("cancelled by parent")) == "cancelled by parent"
    assert TaskCancelled().reason is None
    assert str(TaskCancelled()) == "the task was cancelled"


def test_non_retryable_accepts_text_or_an_exception() -> None:
    cause = ValueError("card stolen")
    assert str(NonRetryable("card stolen")) == "card stolen"
    assert str(NonRetryable()) == ""
    assert str(NonRetryable(cause)) == "ValueError: card stolen"
    assert NonRetryable(cause).__cause__ is cause


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no task", hint="Look twice."),
        InvalidArgument("no"),
        TaskFailed(DECLINED),
        StepFailed(DECLINED),
        TaskCancelled("cancelled by parent"),
        TaskCancelled(),
        NonRetryable(ValueError("card stolen")),
        Suspended("waiting"),
    ],
)
def test_errors_can_be_pickled(error: BaseException) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    for attribute in ("hint", "error", "reason"):
        assert getattr(copy, attribute, None) == getattr(error, attribute, None)
