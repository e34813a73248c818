"""`except` around a step catches the same exception in every replay as at first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias
from uuid import UUID

import httpx
import psycopg
import pytest
from psycopg.errors import UniqueViolation
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from durable import (
    ChildHandle,
    NonRetryable,
    NotFound,
    Retry,
    StepFailed,
    SyncTaskContext,
    TaskContext,
    UnknownQueue,
    task,
)
from durable._core.recorded_errors import restore
from durable._core.values import codec
from tests.support.clock import Clock
from tests.support.working import DAY, outcome, through_the_night

Context: TypeAlias = TaskContext[Any]
Sync: TypeAlias = SyncTaskContext[Any]


# -- exceptions as applications write them ---------------------------------------------


class ApiError(Exception):
    """Takes keyword arguments, and has `args` that differ from them."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(frozen=True)
class Frozen(Exception):
    code: int
    reason: str = "no stock"


@dataclass(frozen=True, slots=True)
class FrozenInSlots(Exception):
    code: int


class New(Exception):
    def __new__(cls, code: int) -> Self:
        error = super().__new__(cls)
        error.code = code
        return error

    code: int


class Strict(Exception):
    """Refuses unknown attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Holder(Exception):
    def __init__(self, what: object) -> None:
        super().__init__("holds something")
        self.what = what


class Money(BaseModel):
    amount: int


class Many(ExceptionGroup[Exception]):
    pass


def api_error() -> None:
    raise ApiError("exists", code=409)


def slotted() -> None:
    raise Slotted(409)


def frozen() -> None:
    raise Frozen(409, reason="gone")


def frozen_in_slots() -> None:
    raise FrozenInSlots(409)


def own_new() -> None:
    raise New(409)


def strict() -> None:
    raise Strict("as it is")


def os_error() -> None:
    with open("/no/such/file"):  # noqa: PTH123 - it is to raise what open raises
        pass


def attribute_error() -> None:
    object().missing  # type: ignore[attr-defined]  # noqa: B018


def json_error() -> None:
    httpx.Response(200, text="{").json()


def connect_error() -> None:
    request = httpx.Request("GET", "http://localhost")
    raise httpx.ConnectError("refused", request=request)


def noted() -> None:
    error = ValueError("noted")
    error.add_note("try again on Monday")
    raise error


def caused() -> None:
    try:
        api_error()
    except ApiError as error:
        raise ValueError("out of stock") from error


def in_context() -> None:
    try:
        api_error()
    except ApiError:
        raise ValueError("out of stock")  # noqa: B904 - that is the case


def not_in_context() -> None:
    try:
        api_error()
    except ApiError:
        raise ValueError("out of stock") from None


def caused_by_what_is_lost() -> None:
    try:
        held_object()
    except Holder as error:
        raise ValueError("out of stock") from error


def non_retryable() -> None:
    try:
        api_error()
    except ApiError as error:
        raise NonRetryable(error) from error


def wrapped() -> None:
    try:
        api_error()
    except ApiError as error:
        raise RuntimeError("wrapped", error)  # noqa: B904 - that is the case


def group() -> None:
    raise ExceptionGroup("both", [ApiError("exists", code=409), Frozen(1)])


def own_group() -> None:
    raise Many("both", [ValueError(1), Holder(object())])


def held_object() -> None:
    raise Holder(object())


def held_tuple() -> None:
    raise Holder((1, 2))


def held_model() -> None:
    raise Holder(Money(amount=5))


def bytes_in_args() -> None:
    b"\xff".decode()


def not_importable() -> None:
    class Local(Exception):
        pass

    raise Local("no stock")


def status_error() -> None:
    request = httpx.Request("GET", "http://localhost")
    httpx.Response(409, request=request).raise_for_status()


def invalid() -> None:
    Money.model_validate({"amount": "much"})


RESTORED = {
    api_error: ApiError,
    slotted: Slotted,
    frozen: Frozen,
    frozen_in_slots: FrozenInSlots,
    own_new: New,
    strict: Strict,
    os_error: FileNotFoundError,
    attribute_error: AttributeError,
    json_error: ValueError,
    connect_error: httpx.ConnectError,
    noted: ValueError,
    caused: ValueError,
    in_context: ValueError,
    not_in_context: ValueError,
    caused_by_what_is_lost: ValueError,
    non_retryable: NonRetryable,
    wrapped: RuntimeError,
    group: ExceptionGroup,
    own_group: Many,
}
LOST = [
    held_object,
    held_tuple,
    held_model,
    bytes_in_args,
    not_importable,
    status_error,
    invalid,
]


def seen(error: BaseException | None) -> Any:
    """Return everything an `except` clause could test."""
    if error is None:
        return None
    slots = {name: getattr(error, name, None) for name in ("code", "errno", "filename")}
    return {
        "type": type(error),
        "text": str(error),
        "args": [repr(one) for one in error.args],
        "attributes": {k: repr(v) for k, v in vars(error).items()},
        "slots": slots,
        "cause": seen(error.__cause__),
        "context": seen(error.__context__),
        "suppresses": error.__suppress_context__,
        "members": [seen(one) for one in getattr(error, "exceptions", ())],
    }


async def caught_twice(
    dsn: str, clock: Clock, step: Callable[..., Any], *, sync: bool = False
) -> tuple[Exception, Exception]:
    """Return a step's exception as its task catches it: at first, and at replay."""
    caught: list[Exception] = []

    @task(max_attempts=1)
    async def catch(params: None, ctx: Context) -> None:
        try:
            await step(ctx)
        except Exception as error:  # noqa: BLE001 - whichever it is
            caught.append(error)
        await ctx.sleep_for("night", DAY)

    @task(name="catch", max_attempts=1)
    def catch_sync(params: None, ctx: Sync) -> None:
        try:
            step(ctx)
        except Exception as error:  # noqa: BLE001 - whichever it is
            caught.append(error)
        ctx.sleep_for("night", DAY)

    ended = await through_the_night(dsn, clock, catch_sync if sync else catch)
    assert ended.state == "completed", ended
    first, again = caught
    return first, again


@pytest.mark.parametrize("sync", [False, True])
async def test_a_replay_catches_the_same_exception(
    dsn: str, clock: Clock, *, sync: bool
) -> None:
    for raises, cls in RESTORED.items():
        first, again = await caught_twice(
            dsn, clock, lambda ctx, raises=raises: ctx.step("s", raises), sync=sync
        )
        assert isinstance(first, cls), raises
        assert seen(first) == seen(again), raises


async def test_keeps_the_attributes_that_code_branches_on(
    dsn: str, clock: Clock
) -> None:
    """A refund for a 409 is a refund at replay too, never a second charge."""
    done: list[str] = []

    def decide(error: Exception) -> str:
        return "refund" if getattr(error, "code", None) == 409 else "charge"

    for raises in (api_error, slotted, frozen, frozen_in_slots, own_new):
        both = await caught_twice(
            dsn, clock, lambda ctx, raises=raises: ctx.step("s", raises)
        )
        done += map(decide, both)
    assert done == ["refund"] * 10


async def test_keeps_the_cause(dsn: str, clock: Clock) -> None:
    first, _ = await caught_twice(dsn, clock, lambda ctx: ctx.step("s", caused))
    assert isinstance(first.__cause__, ApiError)
    assert first.__cause__.code == 409
    first, _ = await caught_twice(dsn, clock, lambda ctx: ctx.step("s", noted))
    assert first.__notes__ == ["try again on Monday"]
    first, _ = await caught_twice(
        dsn, clock, lambda ctx: ctx.step("s", caused_by_what_is_lost)
    )
    assert isinstance(first.__cause__, StepFailed)
    assert first.__cause__.error.type == "Holder"


@pytest.mark.parametrize("sync", [False, True])
async def test_raises_step_failed_from_the_start_if_anything_would_be_lost(
    dsn: str, clock: Clock, *, sync: bool
) -> None:
    for raises in LOST:
        first, again = await caught_twice(
            dsn, clock, lambda ctx, raises=raises: ctx.step("s", raises), sync=sync
        )
        assert isinstance(first, StepFailed), raises
        assert seen(first) == seen(again), raises
        assert raises.__name__ in (first.error.traceback or "")
        assert "cannot be restored" in (first.hint or "")


async def test_says_what_would_be_lost(dsn: str, clock: Clock) -> None:
    first, _ = await caught_twice(dsn, clock, lambda ctx: ctx.step("s", status_error))
    assert isinstance(first, StepFailed)
    assert first.error.type == "HTTPStatusError"
    assert "409" in first.error.message
    assert "attribute" in (first.hint or "")


# -- other places where code catches ---------------------------------------------------


async def test_catches_the_same_from_a_step_that_was_retried(
    dsn: str, clock: Clock
) -> None:
    asked: list[type] = []

    def is_passing(error: Exception) -> bool:
        asked.append(type(error))
        return True

    for raises, cls in ((api_error, ApiError), (status_error, StepFailed)):
        first, again = await caught_twice(
            dsn,
            clock,
            lambda ctx, raises=raises: ctx.step(
                "s", raises, max_attempts=2, retry=Retry.fixed(0), retry_if=is_passing
            ),
        )
        assert type(first) is cls
        assert seen(first) == seen(again)
    assert asked == [ApiError, httpx.HTTPStatusError]  # as the function raised it


async def test_catches_the_same_if_the_retry_decision_fails(
    dsn: str, clock: Clock
) -> None:
    def decide(error: Exception) -> bool:
        return error.code == 500 and error.missing  # type: ignore[attr-defined,no-any-return]

    def server_error() -> None:
        raise ApiError("down", code=500)

    ran: list[int] = []

    def counted() -> None:
        ran.append(1)
        server_error()

    first, again = await caught_twice(
        dsn, clock, lambda ctx: ctx.step("s", counted, max_attempts=2, retry_if=decide)
    )
    assert isinstance(first, AttributeError)
    assert seen(first) == seen(again)
    assert ran == [1]


@pytest.mark.parametrize("sync", [False, True])
async def test_catches_the_same_from_a_transaction(
    dsn: str, db: psycopg.Connection, clock: Clock, *, sync: bool
) -> None:
    db.execute("create table account (id int primary key)")
    db.execute("insert into account values (1)")

    async def insert(connection: Any) -> None:
        await connection.execute("insert into account values (1)")

    def insert_sync(connection: Any) -> None:
        connection.execute("insert into account values (1)")

    async def freeze(connection: Any) -> None:
        raise Frozen(409)

    def freeze_sync(connection: Any) -> None:
        raise Frozen(409)

    function = insert_sync if sync else insert
    first, again = await caught_twice(
        dsn, clock, lambda ctx: ctx.transaction("s", function), sync=sync
    )
    assert isinstance(first, UniqueViolation)
    assert isinstance(again, UniqueViolation)
    for error in (first, again):
        assert error.sqlstate == "23505"
        assert error.diag.constraint_name == "account_pkey"
    assert str(first) == str(again)
    function = freeze_sync if sync else freeze
    first, again = await caught_twice(
        dsn, clock, lambda ctx: ctx.transaction("s", function), sync=sync
    )
    assert type(first) is type(again) is Frozen


async def test_catches_the_same_from_sqlalchemy(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    db.execute("create table account (id int primary key)")
    db.execute("insert into account values (1)")
    engine = create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))

    def insert() -> None:
        with engine.begin() as connection:
            connection.execute(text("insert into account values (:id)"), {"id": 1})

    first, again = await caught_twice(dsn, clock, lambda ctx: ctx.step("s", insert))
    for error in (first, again):
        assert isinstance(error, IntegrityError)
        assert isinstance(error.orig, UniqueViolation)
        assert error.orig.diag.constraint_name == "account_pkey"
        assert error.statement == "insert into account values (%(id)s)"
    assert str(first) == str(again)
    engine.dispose()


async def test_catches_the_same_from_branches(dsn: str, clock: Clock) -> None:
    caught: list[Any] = []

    @task
    async def gather(params: None, ctx: Context) -> None:
        found = await asyncio.gather(
            ctx.step("a", api_error),
            ctx.step("b", status_error),
            return_exceptions=True,
        )
        caught.append([seen(error) for error in found])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("c", frozen))
        except* Frozen as error:
            caught[-1].append(seen(error.exceptions[0]))
        await ctx.sleep_for("night", DAY)

    assert (await through_the_night(dsn, clock, gather)).state == "completed"
    first, again = caught
    assert [one["type"] for one in first] == [ApiError, StepFailed, Frozen]
    assert first == again


async def test_catches_the_same_for_a_timeout(dsn: str, clock: Clock) -> None:
    async def linger() -> None:
        await asyncio.sleep(60)

    first, again = await caught_twice(
        dsn, clock, lambda ctx: ctx.step("s", linger, timeout=0.01)
    )
    assert isinstance(first, TimeoutError)
    assert seen(first) == seen(again)


@pytest.mark.parametrize("sync", [False, True])
async def test_catches_the_same_from_calls_that_the_database_has_refused(
    dsn: str, db: psycopg.Connection, clock: Clock, *, sync: bool
) -> None:
    """Also when the database would no longer refuse the call."""
    queue_later = "select durable.create_queue('later')"
    there = "0190b2c8-0000-7000-8000-000000000000"

    def spawn(ctx: Any) -> Any:
        return ctx.spawn("child", "child", queue="later")

    def send(ctx: Any) -> Any:
        return ctx.send(there, "hello")

    nobody = UUID(there)
    elsewhere = ChildHandle("other", nobody, nobody, "later", 1, True, codec(int))  # noqa: FBT003

    def join(ctx: Any) -> Any:
        return ctx.join(elsewhere)

    def spawn_many(ctx: Any) -> Any:
        return ctx.spawn_many("children", "child", [1, 2], queue="later")

    cases = [
        (send, NotFound),
        (join, NotFound),
        (spawn_many, UnknownQueue),
        (spawn, UnknownQueue),
    ]
    for call, cls in cases:
        runs: list[int] = []

        def and_then(ctx: Any, call: Any = call, runs: Any = runs) -> Any:
            runs.append(1)
            if len(runs) == 2 and call is spawn:
                db.execute(queue_later)
            return call(ctx)

        first, again = await caught_twice(dsn, clock, and_then, sync=sync)
        assert isinstance(first, cls)
        assert seen(first) == seen(again)
    assert db.execute("select from durable.tasks where name = 'child'").rowcount == 0


# -- errors that end an attempt --------------------------------------------------------


async def test_the_attempt_reports_the_exception_of_the_step(dsn: str) -> None:
    """An attempt that ends with it records the exception itself."""

    @task(max_attempts=1)
    async def fail(params: None, ctx: Context) -> None:
        await ctx.step("s", status_error)

    ended = await outcome(dsn, fail)
    assert ended.error is not None
    assert ended.error.type == "HTTPStatusError"
    assert "status_error" in (ended.error.traceback or "")


@pytest.mark.parametrize(
    ("raises", "non_retryable"),
    [
        (status_error, httpx.HTTPStatusError),
        (api_error, ApiError),
        (non_retryable, OSError),
    ],
)
async def test_fails_at_once_for_an_exception_that_is_not_retryable(
    dsn: str, raises: Any, non_retryable: type[Exception]
) -> None:
    @task(max_attempts=3, retry=Retry.fixed(0), non_retryable=(non_retryable,))
    async def fail(params: None, ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step("s", raises))

    ended = await outcome(dsn, fail)
    assert (ended.state, ended.attempt) == ("failed", 1)


async def test_retries_an_exception_that_was_not_recorded(dsn: str) -> None:
    tries: list[int] = []

    def flaky() -> str:
        tries.append(1)
        if len(tries) == 1:
            status_error()
        return "done"

    @task(retry=Retry.fixed(0))
    async def work(params: None, ctx: Context) -> str:
        return await ctx.step("s", flaky)

    ended = await outcome(dsn, work)
    assert (ended.state, ended.attempt) == ("completed", 2)


# -- failures recorded by older workers ------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "cls"),
    [
        ('{"type": "ValueError", "module": "builtins", "args": [7]}', ValueError),
        ('{"type": "ValueError", "message": "m"}', StepFailed),
        ('{"type": "Gone", "module": "nowhere", "args": []}', StepFailed),
    ],
)
def test_reads_failures_recorded_by_older_workers(
    recorded: str, cls: type[Exception]
) -> None:
    error = restore(recorded)
    assert type(error) is cls
    assert error.args == (7,) or cls is StepFailed
