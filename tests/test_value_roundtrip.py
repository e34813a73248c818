"""A value that cannot be read back is refused before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Json,
    SecretStr,
    TypeAdapter,
    computed_field,
)

from durable import AsyncDurable, InvalidArgument, SyncTaskContext, TaskContext, task
from tests.support.clock import Clock
from tests.support.working import outcome, working

Context: TypeAlias = TaskContext[Any]


class Area(BaseModel):
    """Its computed field is written, and refused when read."""

    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2


class Filter(BaseModel):
    """Its field is read as text that holds JSON, and written as JSON."""

    where: Json[dict[str, int]]


class Login(BaseModel):
    """Its password is written as asterisks."""

    user: str
    password: SecretStr


class Pet(BaseModel):
    name: str


class Dog(Pet):
    """Read as a pet, it loses its collar."""

    collar: int


AREA: Final = Area(side=2)
FILTER: Final = Filter.model_validate({"where": '{"a": 1}'})
LOGIN: Final = Login(user="ada", password=SecretStr("secret"))
GRID: Final = {(1, 2): 3}
DOG: Final = Dog(name="Rex", collar=7)

LOSSES: Final[list[tuple[Any, Any]]] = [
    (Area, AREA),
    (Filter, FILTER),
    (dict[tuple[int, int], int], GRID),
    (Login, LOGIN),
    (Pet, DOG),
    (list[Pet], [DOG]),
    (dict[str, Any], {"login": LOGIN}),
]


def taking(tp: Any) -> Any:
    @task(name="takes")
    async def takes(params: Any, ctx: Context) -> Any: ...

    takes.run.__annotations__["params"] = tp
    return takes


def returning(tp: Any, value: Any) -> Any:
    @task(name="returns", max_attempts=3)
    async def returns(params: None, ctx: Context) -> Any:
        return value

    returns.run.__annotations__["return"] = tp
    return returns


# -- params ----------------------------------------------------------------------------


@pytest.mark.parametrize(("tp", "value"), LOSSES)
async def test_refuses_params_before_anything_is_written(
    dsn: str,
    db: psycopg.Connection,
    adb: psycopg.AsyncConnection,
    tp: Any,
    value: Any,
) -> None:
    takes = taking(tp)

    @task(max_attempts=1)
    async def parent(params: None, ctx: Context) -> str:
        refused = 0
        for spawn in (
            lambda: ctx.spawn("one", takes, value),
            lambda: ctx.spawn_many("many", takes, [value]),
            lambda: ctx.call("call", takes, value),
        ):
            with pytest.raises(InvalidArgument):
                await spawn()
            refused += 1
        return f"{refused} refused"

    async with working(dsn, takes, parent) as (app, worker):
        spawns: list[Callable[[], Awaitable[Any]]] = [
            lambda: app.spawn(takes, value),
            lambda: app.spawn_many(takes, [value]),
            lambda: app.spawn_many([(takes, value)]),
            lambda: app.spawn_with(adb, takes, value),
        ]
        for spawn in spawns:
            with pytest.raises(InvalidArgument):
                await spawn()
        handle = await app.spawn(parent)
        await worker.drain()
        assert (await handle.snapshot()).result == "3 refused"
        spawned = "select task_id from durable.spawn('default', 'takes', '{}')"
        for (task_id,) in db.execute(spawned).fetchall():
            with pytest.raises(InvalidArgument):
                await app.fork(app.handle(task_id, takes), params=value)
    assert db.execute("select count(*) from durable.tasks").fetchone() == (2,)


# -- results and steps -----------------------------------------------------------------


@pytest.mark.parametrize(("tp", "value"), LOSSES)
async def test_fails_a_task_whose_result_cannot_be_read_back(
    dsn: str, tp: Any, value: Any
) -> None:
    found = await outcome(dsn, returning(tp, value))
    assert (found.state, found.attempt) == ("failed", 1)
    assert found.error is not None
    assert found.error.type == "UnsavableValue"


@pytest.mark.parametrize("completes", [False, True])
@pytest.mark.parametrize(("tp", "value"), LOSSES)
async def test_rolls_a_transaction_back_whose_value_cannot_be_read_back(
    dsn: str, db: psycopg.Connection, tp: Any, value: Any, completes: Any
) -> None:
    db.execute("create table public.entries (note text)")

    async def enter(conn: psycopg.AsyncConnection[Any]) -> Any:
        await conn.execute("insert into public.entries values ('entered')")
        return value

    @task(max_attempts=1)
    async def enters(params: None, ctx: Context) -> Any:
        if completes:
            return await ctx.transaction("enter", enter, completes=True)
        return await ctx.transaction("enter", enter, as_type=tp)

    enters.run.__annotations__["return"] = tp
    found = await outcome(dsn, enters)
    assert found.error is not None
    assert found.error.type == "UnsavableValue"
    assert db.execute("select * from public.entries").fetchall() == []
    assert db.execute("select count(*) from durable.checkpoints").fetchone() == (0,)


@pytest.mark.parametrize(("tp", "value"), LOSSES)
async def test_refuses_step_values_and_published_values_that_cannot_be_read_back(
    dsn: str, db: psycopg.Connection, tp: Any, value: Any
) -> None:
    @task(max_attempts=1)
    async def tells(params: None, ctx: Context) -> str:
        opened = await ctx.begin_step("by hand", as_type=tp)
        tellings: list[Callable[[], Awaitable[Any]]] = [
            lambda: ctx.complete_step(opened, value),
            lambda: ctx.step("step", lambda: value, as_type=tp),
            lambda: ctx.emit_event("event", value, as_type=tp),
            lambda: ctx.send(ctx.task_id, "topic", value, as_type=tp),
            lambda: ctx.set_value("value", value, as_type=tp),
            lambda: ctx.write_stream("stream", value, as_type=tp),
        ]
        for tell in tellings:
            with pytest.raises(InvalidArgument):
                await tell()
        return f"{len(tellings)} refused"

    @task(max_attempts=1)
    def tells_in_a_thread(params: None, ctx: SyncTaskContext[Any]) -> str:
        with pytest.raises(InvalidArgument):
            ctx.step("step", lambda: value, as_type=tp)
        with pytest.raises(InvalidArgument):
            ctx.emit_event("event", value, as_type=tp)
        return "2 refused"

    assert (await outcome(dsn, tells)).result == "6 refused"
    assert (await outcome(dsn, tells_in_a_thread)).result == "2 refused"
    async with AsyncDurable(dsn) as app:
        handle = await app.spawn("nobody-runs-it")
        sendings: list[Callable[[], Awaitable[Any]]] = [
            lambda: app.emit_event("event", value, as_type=tp),
            lambda: app.send(handle, "topic", value, as_type=tp),
            lambda: handle.send("topic", value, as_type=tp),
        ]
        for tell in sendings:
            with pytest.raises(InvalidArgument):
                await tell()
    for table in ("events", "messages", "task_values", "stream_entries"):
        written = db.execute(f"select * from durable.{table}").fetchall()
        assert written == [], table


# -- numbers ---------------------------------------------------------------------------

NUMBERS: Final[Any] = [
    1e16,
    1e22,
    1e23,
    -1.5e300,
    1.7976931348623157e308,
    5e-324,
    1e-7,
    0.1,
    1.0,
    10**23,
    -(2**63),
    True,
    {"1e23": [1e23, "1e23"], "text": '-"1e+5\\'},
]


@task
async def passes_on(params: Any, ctx: Context) -> Any:
    if ctx.parent_task_id is not None:
        return params
    return {
        "params": params,
        "step": await ctx.step("step", lambda: params),
        "header": ctx.headers["number"],
        "identity": ctx.identity and ctx.identity["number"],
        "event": await ctx.await_event("number"),
        "own event": await ctx.emit_event(f"own:{ctx.task_id}", params)
        and await ctx.await_event(f"own:{ctx.task_id}"),
        "message": await ctx.recv("number"),
        "child": await ctx.call("child", passes_on, params),
        "children": list(
            await ctx.gather(*await ctx.spawn_many("children", passes_on, [params]))
        ),
    }


async def test_returns_every_number_unchanged(dsn: str, clock: Clock) -> None:
    async with working(dsn, passes_on) as (app, worker):
        handle = await app.spawn(
            passes_on,
            NUMBERS,
            headers={"number": NUMBERS},
            identity={"number": NUMBERS},
        )
        fork = await app.fork(handle, params=NUMBERS)
        await app.emit_event("number", NUMBERS)
        for one in (handle, fork):
            await one.send("number", NUMBERS)
        await worker.drain()
        for one in (handle, fork):
            result = await one.result(timeout=10)
            children = result.pop("children")
            for where, found in {**result, "children": children[0]}.items():
                assert repr(found) == repr(NUMBERS), where


class Account(BaseModel):
    change: float


@task
async def owes(params: Account, ctx: Context) -> Account:
    return params


async def test_warns_once_that_a_negative_zero_loses_its_sign(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "durable.values"):
        async with working(dsn, owes) as (app, worker):
            await app.spawn(owes, Account(change=-0.0))
            handle = await app.spawn(owes, Account(change=-0.0))
            await worker.drain()
            assert (await handle.result()).change == 0.0
    said = [one.getMessage() for one in caplog.records if one.name == "durable.values"]
    assert len(said) == 1
    assert "-0.0" in said[0]


# -- lazy values -----------------------------------------------------------------------

ran: list[str] = []


def numbers() -> Iterator[int]:
    ran.append("generator")
    yield 1


def mapped() -> Iterator[int]:
    return map(ran.append, ["map"])  # type: ignore[arg-type]


async def aiterated() -> Any:
    ran.append("async generator")
    yield 1


@pytest.mark.parametrize("tp", [Iterable[int], list[int], int, Any, dict[str, Any]])
@pytest.mark.parametrize("make", [numbers, mapped, aiterated])
async def test_refuses_a_lazy_value_without_consuming_it(
    dsn: str, tp: Any, make: Callable[[], Any]
) -> None:
    ran.clear()
    value = {"deep": [make()]} if tp == dict[str, Any] else make()
    kind = type(make()).__name__

    @task(max_attempts=1)
    async def steps(params: None, ctx: Context) -> None:
        await ctx.step("step", lambda: value, as_type=tp)

    for lazy in (returning(tp, value), steps):
        found = await outcome(dsn, lazy)
        assert found.error is not None
        assert found.error.type.startswith("Unsavable")
        assert kind in found.error.message
    assert ran == []


async def test_accepts_an_iterable_that_is_not_lazy(dsn: str) -> None:
    assert (await outcome(dsn, returning(Iterable[int], [1, 2]))).result == [1, 2]


def test_can_construct_its_own_examples() -> None:
    """Each can be created; only reading it back fails."""
    for tp, value in LOSSES:
        TypeAdapter(tp).validate_python(value)
