"""What a transaction step writes happens exactly once, together with its checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio as sa_async
from psycopg.errors import (
    DeadlockDetected,
    InFailedSqlTransaction,
    NotNullViolation,
    SerializationFailure,
)
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from durable import (
    AsyncDurable,
    InvalidArgument,
    Retry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    task,
)
from durable._task._async import transaction
from durable.options import Isolation
from tests.support.wait import aeventually
from tests.support.working import outcome, working

LEVELS: tuple[Isolation, ...] = ("read committed", "repeatable read", "serializable")
ENTER = sa.text("insert into public.entries (note) values (:note)")

calls: list[str] = []


@pytest.fixture(autouse=True)
def entries(db: psycopg.Connection) -> None:
    calls.clear()
    db.execute("create table public.entries (id serial primary key, note text)")


def noted(db: psycopg.Connection) -> list[str]:
    rows = db.execute("select note from public.entries order by id").fetchall()
    return [note for (note,) in rows]


async def enter(conn: psycopg.AsyncConnection[Any], note: str) -> str:
    calls.append(note)
    await conn.execute("insert into public.entries (note) values (%s)", [note])
    return f"entered {note}"


def enter_sync(conn: psycopg.Connection[Any], note: str) -> str:
    calls.append(note)
    conn.execute("insert into public.entries (note) values (%s)", [note])
    return f"entered {note}"


@task
async def book(isolation: Isolation, ctx: TaskContext) -> str:
    first = await ctx.transaction("book", enter, "a", isolation=isolation)
    await ctx.sleep_for("replay", 0.001)
    return first


@task
def book_sync(isolation: Isolation, ctx: SyncTaskContext) -> str:
    first = ctx.transaction("book", enter_sync, "a", isolation=isolation)
    ctx.sleep_for("replay", 0.001)
    return first


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("kind", [book, book_sync], ids=["async", "sync"])
async def test_writes_once_and_replays_the_returned_value(
    dsn: str, db: psycopg.Connection, kind: Any, isolation: Isolation
) -> None:
    async with working(dsn, kind) as (app, _):
        handle = await app.spawn(kind, isolation)
        assert await handle.result(timeout=20) == "entered a"
    assert noted(db) == calls == ["a"]
    saved = db.execute("select name, value from durable.checkpoints order by position")
    assert saved.fetchone() == ("book", "entered a")


@task(max_attempts=1)
async def settle(isolation: Isolation, ctx: TaskContext) -> str:
    done = await ctx.transaction(
        "settle", enter, "a", isolation=isolation, completes=True
    )
    calls.append("after")
    return done


@task(max_attempts=1)
def settle_sync(isolation: Isolation, ctx: SyncTaskContext) -> str:
    done = ctx.transaction(
        "settle", enter_sync, "a", isolation=isolation, completes=True
    )
    calls.append("after")
    return done


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("kind", [settle, settle_sync], ids=["async", "sync"])
async def test_completes_the_task_in_the_same_transaction(
    dsn: str, db: psycopg.Connection, kind: Any, isolation: Isolation
) -> None:
    async with working(dsn, kind) as (app, worker):
        handle = await app.spawn(kind, isolation)
        assert await handle.result(timeout=20) == "entered a"
        await worker.drain()
    assert noted(db) == ["a"]
    assert calls == ["a", "after"]
    together = (
        "select t.state, t.attempt, t.claim % 2 from durable.tasks t, public.entries e"
        " where t.xmin = e.xmin"
    )
    assert db.execute(together).fetchall() == [("completed", 1, 0)]


async def test_refuses_durable_calls_once_the_task_has_completed(
    dsn: str, db: psycopg.Connection
) -> None:
    refused: list[str] = []

    @task(max_attempts=1)
    async def late(params: None, ctx: TaskContext) -> str:
        await ctx.transaction("settle", enter, "a", completes=True)
        try:
            await ctx.step("more", lambda: None)
        except RuntimeError as error:
            refused.append(str(error))
        raise ValueError("too late to fail")

    done = await outcome(dsn, late)
    assert (done.state, done.result) == ("completed", "entered a")
    assert refused == ["the context is used after its run has ended"]


async def test_completes_only_with_the_return_value_of_the_task(
    dsn: str, db: psycopg.Connection
) -> None:
    @task(max_attempts=1)
    async def wrong(params: None, ctx: TaskContext) -> int:
        await ctx.transaction("settle", enter, "a", completes=True)
        return 1

    assert (await outcome(dsn, wrong)).state == "failed"
    assert noted(db) == []


async def test_does_not_complete_if_the_function_raises(
    dsn: str, db: psycopg.Connection
) -> None:
    async def fail(conn: psycopg.AsyncConnection[Any]) -> None:
        await enter(conn, "lost")
        raise ValueError("no")

    @task(max_attempts=1)
    async def failing(params: None, ctx: TaskContext) -> None:
        await ctx.transaction("settle", fail, completes=True)

    assert (await outcome(dsn, failing)).state == "failed"
    assert noted(db) == []


@pytest.mark.parametrize("isolation", LEVELS)
async def test_rolls_back_if_the_function_raises(
    dsn: str, db: psycopg.Connection, isolation: Isolation
) -> None:
    async def fail(conn: psycopg.AsyncConnection[Any]) -> None:
        await enter(conn, "lost")
        raise ValueError("no")

    @task(max_attempts=1)
    async def caught(params: None, ctx: TaskContext) -> str:
        with contextlib.suppress(ValueError):
            await ctx.transaction("fail", fail, isolation=isolation)
        return await ctx.transaction("enter", enter, "kept", isolation=isolation)

    assert (await outcome(dsn, caught)).result == "entered kept"
    assert noted(db) == ["kept"]


async def test_rolls_back_a_value_that_cannot_be_saved(
    dsn: str, db: psycopg.Connection
) -> None:
    async def strange(conn: psycopg.AsyncConnection[Any]) -> Any:
        await enter(conn, "lost")
        return object()

    @task(max_attempts=1)
    async def unsavable(params: None, ctx: TaskContext) -> None:
        await ctx.transaction("strange", strange)

    assert (await outcome(dsn, unsavable)).state == "failed"
    assert noted(db) == []


async def test_raises_the_error_of_a_refused_commit(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute(
        "create table public.parts (of_entry int, constraint of_entry"
        " foreign key (of_entry) references public.entries"
        " deferrable initially deferred)"
    )

    async def orphan(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("insert into public.parts values (999)")

    @task(max_attempts=1)
    async def orphaned(params: None, ctx: TaskContext) -> str:
        try:
            await ctx.transaction("orphan", orphan)
        except psycopg.errors.ForeignKeyViolation:
            return "refused"
        return "committed"

    assert (await outcome(dsn, orphaned)).result == "refused"
    names = db.execute("select name, state::text from durable.checkpoints").fetchall()
    assert names == [("orphan", "failed")]


async def test_raises_if_an_error_of_the_transaction_was_swallowed(
    dsn: str, db: psycopg.Connection
) -> None:
    async def swallow(conn: psycopg.AsyncConnection[Any]) -> None:
        with contextlib.suppress(NotNullViolation):
            await conn.execute("insert into public.entries (id) values (null)")

    @task(max_attempts=1)
    async def swallowing(params: None, ctx: TaskContext) -> str:
        with pytest.raises(InFailedSqlTransaction):
            await ctx.transaction("swallow", swallow)
        return "raised"

    assert (await outcome(dsn, swallowing)).result == "raised"


@pytest.mark.parametrize("failure", [SerializationFailure, DeadlockDetected])
@pytest.mark.parametrize("isolation", LEVELS)
async def test_retries_on_serialization_failures_and_deadlocks(
    dsn: str,
    db: psycopg.Connection,
    failure: type[psycopg.Error],
    isolation: Isolation,
) -> None:
    async def unlucky(conn: psycopg.AsyncConnection[Any]) -> str:
        done = await enter(conn, "a")
        if len(calls) < 3:
            raise_it = "do $$ begin raise exception using errcode = '%s'; end $$"
            await conn.execute(raise_it % failure.sqlstate)
        return done

    @task(max_attempts=1)
    async def lucky(params: None, ctx: TaskContext) -> str:
        return await ctx.transaction("try", unlucky, isolation=isolation)

    assert (await outcome(dsn, lucky)).result == "entered a"
    assert (len(calls), noted(db)) == (3, ["a"])


async def idle(conn: psycopg.AsyncConnection[Any]) -> None:
    await enter(conn, "lost")
    await asyncio.sleep(0.3)


async def idle_between(conn: psycopg.AsyncConnection[Any]) -> None:
    await idle(conn)
    await conn.execute("select 1")


async def take_long(conn: psycopg.AsyncConnection[Any]) -> None:
    await enter(conn, "lost")
    await conn.execute("select pg_sleep(5)")


async def want_a_lock(conn: psycopg.AsyncConnection[Any]) -> None:
    await enter(conn, "lost")
    await conn.execute("lock table public.locked")


async def be_terminated(conn: psycopg.AsyncConnection[Any]) -> None:
    await enter(conn, "lost")
    await conn.execute("select pg_terminate_backend(pg_backend_pid())")


async def conflict(conn: psycopg.AsyncConnection[Any]) -> None:
    await enter(conn, "lost")
    await conn.execute("do $$ begin raise exception using errcode = '40001'; end $$")


FAILING = [
    ("idle_in_transaction_session_timeout", idle_between, 1),
    ("idle_in_transaction_session_timeout", idle, 1),
    ("statement_timeout", take_long, 1),
    ("transaction_timeout", idle_between, 1),
    ("lock_timeout", want_a_lock, 1),
    (None, be_terminated, 3),
    (None, conflict, 3),
]


@pytest.mark.parametrize("ended", FAILING, ids=lambda ended: ended[1].__name__)
async def test_a_deterministic_failure_counts_as_a_failure(
    dsn: str,
    db: psycopg.Connection,
    connect: Callable[[], psycopg.Connection],
    monkeypatch: pytest.MonkeyPatch,
    ended: tuple[str | None, Callable[..., Any], int],
) -> None:
    """First as a try of the step, and then as an attempt of the task."""
    limit, function, times = ended
    monkeypatch.setattr(transaction, "_MOST_LOSSES", 3)
    monkeypatch.setattr(transaction, "_MOST_CONFLICTS", 3)
    locker = connect()
    locker.execute("create table public.locked (); begin; lock table public.locked")
    known = "select from pg_settings where name = %s"
    if limit is not None:
        if not db.execute(known, [limit]).rowcount:
            assert db.info.server_version < 170000
            return
        db.execute(f'alter database "{db.info.dbname}" set {limit} = 150')

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def failing(params: None, ctx: TaskContext) -> None:
        again = Retry.fixed(0)
        await ctx.transaction("fail", function, max_attempts=2, retry=again)

    async with working(dsn, failing) as (app, _):
        handle = await app.spawn(failing)
        with pytest.raises(TaskFailed):
            await handle.result(timeout=20)
        assert (await handle.snapshot()).attempt == 2
    assert len(calls) == 2 * 2 * times
    assert noted(db) == []


async def test_counts_an_interrupted_transaction_of_a_synchronous_task(
    dsn: str, db: psycopg.Connection
) -> None:
    def pause(conn: psycopg.Connection[Any]) -> None:
        enter_sync(conn, "lost")
        time.sleep(0.3)

    @task(max_attempts=2, retry=Retry.fixed(0))
    def failing(params: None, ctx: SyncTaskContext) -> None:
        ctx.transaction("pause", pause)

    limit = "idle_in_transaction_session_timeout = 100"
    db.execute(f'alter database "{db.info.dbname}" set {limit}')
    async with working(dsn, failing) as (app, _):
        handle = await app.spawn(failing)
        with pytest.raises(TaskFailed, match="IdleInTransactionSessionTimeout"):
            await handle.result(timeout=20)
    assert len(calls) == 2


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_increments_correctly_under_contention(
    dsn: str, db: psycopg.Connection, isolation: Isolation
) -> None:
    """Read, then write: at a lower isolation level, increments would be lost."""
    db.execute("create table public.counter (n int)")
    db.execute("insert into public.counter values (0)")

    async def increment(conn: psycopg.AsyncConnection[Any]) -> None:
        row = await (await conn.execute("select n from public.counter")).fetchone()
        assert row is not None
        await asyncio.sleep(0)
        await conn.execute("update public.counter set n = %s", [row[0] + 1])

    @task(max_attempts=1)
    async def count(number: int, ctx: TaskContext) -> None:
        await ctx.transaction("increment", increment, isolation=isolation)

    async with working(dsn, count, concurrency=8) as (app, worker):
        await app.spawn_many(count, range(24))
        await worker.drain()
    assert db.execute("select n from public.counter").fetchone() == (24,)


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize(
    "kind", [book, book_sync, settle], ids=["async", "sync", "completing"]
)
async def test_writes_once_though_connections_are_lost_at_the_commit(
    dsn: str, db: psycopg.Connection, kind: Any, isolation: Isolation
) -> None:
    """A trigger cuts the connection at the first two commits, before they count."""
    db.execute("""
create sequence public.cuts;

create function public.cut() returns trigger language plpgsql as $$
begin
  if nextval('public.cuts') <= 2 then
    perform pg_terminate_backend(pg_backend_pid());
  end if;
  return null;
end $$;

create constraint trigger cut after insert on public.entries
deferrable initially deferred for each row execute function public.cut()
""")
    async with working(dsn, kind) as (app, _):
        handle = await app.spawn(kind, isolation, max_attempts=1)
        assert await handle.result(timeout=60) == "entered a"
    assert (calls[:3], noted(db)) == (["a"] * 3, ["a"])


@pytest.mark.parametrize("completes", [False, True], ids=["saving", "completing"])
async def test_checks_whether_a_lost_try_did_commit(
    dsn: str, db: psycopg.Connection, completes: Any
) -> None:
    """The connection is cut after the commit and before its answer."""
    committed = asyncio.Event()

    class Cut(psycopg.AsyncConnection[Any]):
        @contextlib.asynccontextmanager
        async def transaction(self, *args: Any) -> AsyncIterator[Any]:
            async with super().transaction(*args) as begun:
                yield begun
            if not committed.is_set():
                committed.set()
                await self.close()
                raise psycopg.OperationalError("the answer was lost")

    @task(max_attempts=1)
    async def booking(params: None, ctx: TaskContext[Any]) -> str:
        return await ctx.transaction("book", enter, "a", on=pool, completes=completes)

    async with AsyncConnectionPool(dsn, connection_class=Cut, open=False) as pool:
        found = await outcome(dsn, booking)
    assert found.result == "entered a"
    assert noted(db) == calls == ["a"]


@pytest.mark.parametrize("isolation", LEVELS)
async def test_commits_nothing_for_a_task_that_another_worker_has_claimed(
    dsn: str, db: psycopg.Connection, isolation: Isolation
) -> None:
    go_on, inside = asyncio.Event(), asyncio.Event()

    async def linger(conn: psycopg.AsyncConnection[Any]) -> None:
        await enter(conn, "zombie's")
        inside.set()
        await go_on.wait()

    @task(max_attempts=2)
    async def lingering(params: None, ctx: TaskContext) -> str:
        if ctx.attempt == 1:
            await ctx.transaction("book", linger, isolation="read committed")
        return await ctx.transaction("book", enter, "heir's", isolation=isolation)

    async with working(dsn, lingering, poll=0.05) as (app, _):
        handle = await app.spawn(lingering)
        await asyncio.wait_for(inside.wait(), 20)
        db.execute("update durable.tasks set lease_expires_at = 'epoch'")
        assert db.execute("select durable.expire_leases('default')").fetchone() == (1,)
        go_on.set()
        assert await handle.result(timeout=20) == "entered heir's"
    assert noted(db) == ["heir's"]


@pytest.mark.parametrize("isolation", LEVELS)
async def test_is_not_repeated_because_its_lease_was_extended(
    dsn: str, db: psycopg.Connection, isolation: Isolation
) -> None:
    """It lasts longer than a worker waits before it extends leases."""

    async def linger(conn: psycopg.AsyncConnection[Any]) -> str:
        done = await enter(conn, "a")
        await asyncio.sleep(1.5)
        return done

    @task(max_attempts=1)
    async def lingering(params: None, ctx: TaskContext) -> str:
        return await ctx.transaction("book", linger, isolation=isolation)

    async with working(dsn, lingering, lease=3.0) as (app, _):
        handle = await app.spawn(lingering)
        assert await handle.result(timeout=20) == "entered a"
    assert calls == ["a"]


async def test_blocks_neither_sibling_branches_nor_a_cancel(
    dsn: str, db: psycopg.Connection
) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def linger(conn: psycopg.AsyncConnection[Any]) -> str:
        await enter(conn, "lost")
        inside.set()
        await go_on.wait()
        return "never"

    @task(max_attempts=1)
    async def lingering(params: None, ctx: TaskContext) -> None:
        booking = ctx.transaction("book", linger, isolation="serializable")
        branch = asyncio.create_task(booking)
        await asyncio.wait_for(inside.wait(), 20)
        await ctx.step("beside", lambda: None)
        await branch

    async with working(dsn, lingering) as (app, _):
        handle = await app.spawn(lingering)
        saved = "select from durable.checkpoints where name = 'beside'"
        await aeventually(lambda: asyncio.sleep(0, db.execute(saved).rowcount))
        assert await app.cancel(handle.task_id)
        go_on.set()
        assert await handle.state() == "cancelled"
    assert noted(db) == []


async def test_a_siblings_failure_can_be_retried(dsn: str) -> None:
    """Only a caught failure is final, and this one was not caught yet."""
    failures: list[int] = []

    def fails_once() -> str:
        failures.append(1)
        if len(failures) == 1:
            raise ConnectionError
        return "mended"

    async def nothing(conn: psycopg.AsyncConnection[Any]) -> None:
        pass

    @task(max_attempts=3, retry=Retry.fixed(0))
    async def both(params: None, ctx: TaskContext) -> str:
        failing = ctx.step("a", fails_once)
        return (await asyncio.gather(failing, ctx.transaction("b", nothing)))[0]

    async with working(dsn, both) as (app, _):
        handle = await app.spawn(both)
        assert await handle.result(timeout=20) == "mended"


async def test_refuses_a_silent_rollback(dsn: str, db: psycopg.Connection) -> None:
    async def roll_back(conn: psycopg.AsyncConnection[Any]) -> None:
        await enter(conn, "lost")
        raise psycopg.Rollback

    @task(max_attempts=1)
    async def rolling(params: None, ctx: TaskContext) -> None:
        await ctx.transaction("book", roll_back)

    found = await outcome(dsn, rolling)
    assert found.error is not None
    assert "raise another exception" in found.error.message
    assert noted(db) == []


async def test_waits_while_the_server_is_read_only(
    dsn: str, db: psycopg.Connection
) -> None:
    async def read_only_at_first(conn: psycopg.AsyncConnection[Any]) -> str:
        if not calls:
            await conn.execute("set transaction read only")
            calls.append("only reads")
        return await enter(conn, "a")

    @task(max_attempts=1)
    async def booking(params: None, ctx: TaskContext) -> str:
        return await ctx.transaction("book", read_only_at_first)

    assert (await outcome(dsn, booking)).result == "entered a"
    assert noted(db) == ["a"]


async def test_does_not_wait_for_a_closed_pool(dsn: str) -> None:
    @task(max_attempts=1)
    async def booking(params: None, ctx: TaskContext) -> None:
        await ctx.transaction("book", enter, "a", on=pool)

    pool = AsyncConnectionPool(dsn, open=False)
    found = await outcome(dsn, booking)
    assert found.error is not None
    assert found.error.type == "PoolClosed"


@pytest.mark.parametrize("isolation", LEVELS)
async def test_spawns_and_emits_with_it(
    dsn: str, db: psycopg.Connection, isolation: Isolation
) -> None:
    async def both(conn: psycopg.AsyncConnection[Any], app: AsyncDurable) -> None:
        await app.spawn_with(conn, "later", idempotency_key="k")
        await app.emit_event_with(conn, "booked")
        calls.append("both")
        if len(calls) == 1:
            raise ValueError("not yet")

    @task
    async def booking(params: None, ctx: TaskContext) -> None:
        with contextlib.suppress(ValueError):
            await ctx.transaction("first", both, app, isolation=isolation)
        seen.append(db.execute("select from durable.events").rowcount)
        await ctx.transaction("second", both, app, isolation=isolation)

    seen: list[int] = []
    async with working(dsn, booking) as (app, worker):
        await app.spawn(booking)
        await worker.drain()
    assert seen == [0]
    assert db.execute("select name from durable.events").fetchall() == [("booked",)]
    names = db.execute("select name from durable.task_list order by name").fetchall()
    assert names == [("booking",), ("later",)]


async def test_waits_for_a_transaction_that_its_task_did_not_await(
    dsn: str, db: psycopg.Connection
) -> None:
    @task(max_attempts=1)
    async def hasty(params: None, ctx: TaskContext) -> str:
        begun.append(asyncio.create_task(ctx.transaction("book", enter_late, "a")))
        await asyncio.sleep(0)
        return "returned"

    async def enter_late(conn: psycopg.AsyncConnection[Any], note: str) -> str:
        await asyncio.sleep(0.05)
        return await enter(conn, note)

    begun: list[asyncio.Task[str]] = []
    assert (await outcome(dsn, hasty)).result == "returned"
    assert noted(db) == ["a"]
    assert await begun[0] == "entered a"


# Connections of the application


async def test_runs_on_a_sqlalchemy_engine(dsn: str, db: psycopg.Connection) -> None:
    async def enter_by(conn: sa_async.AsyncConnection, note: str) -> str:
        await conn.execute(
            sa.text("insert into entries (note) values (:n)"), {"n": note}
        )
        level = await conn.scalar(sa.text("show transaction_isolation"))
        return str(level)

    @task
    async def booking(driver: str, ctx: TaskContext) -> list[str]:
        engine = engines[driver]
        return [
            await ctx.transaction(level, enter_by, driver, on=engine, isolation=level)
            for level in LEVELS
        ]

    urls = {
        driver: sa.make_url(dsn).set(drivername=f"postgresql+{driver}")
        for driver in ("psycopg", "asyncpg")
    }
    engines = {name: sa_async.create_async_engine(url) for name, url in urls.items()}
    async with working(dsn, booking) as (app, _):
        for driver in engines:
            handle = await app.spawn(booking, driver)
            assert await handle.result(timeout=20) == list(LEVELS)
    for engine in engines.values():
        await engine.dispose()
    assert sorted(noted(db)) == ["asyncpg"] * 3 + ["psycopg"] * 3


async def test_runs_on_sync_pools_and_engines(dsn: str, db: psycopg.Connection) -> None:
    def enter_by(conn: sa.Connection, note: str) -> None:
        conn.execute(ENTER, {"note": note})

    @task
    def booking(params: None, ctx: SyncTaskContext) -> None:
        ctx.transaction("engine", enter_by, "engine", on=engine)
        ctx.transaction("pool", enter_sync, "pool", on=pool)

    engine = sa.create_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg"))
    with ConnectionPool(dsn, open=True) as pool:
        assert (await outcome(dsn, booking)).state == "completed"
    engine.dispose()
    assert noted(db) == ["engine", "pool"]


async def test_retries_on_an_engine_whose_connections_were_cut(
    dsn: str, db: psycopg.Connection
) -> None:
    async def cut_once(conn: sa_async.AsyncConnection) -> str:
        calls.append("a")
        await conn.execute(sa.text("insert into entries (note) values ('a')"))
        if len(calls) == 1:
            pid = await conn.scalar(sa.text("select pg_backend_pid()"))
            db.execute("select pg_terminate_backend(%s, 10000)", [pid])
        return "entered"

    @task(max_attempts=1)
    async def booking(params: None, ctx: TaskContext) -> str:
        return await ctx.transaction("cut", cut_once, on=engine)

    url = sa.make_url(dsn).set(drivername="postgresql+psycopg")
    engine = sa_async.create_async_engine(url)
    assert (await outcome(dsn, booking)).result == "entered"
    await engine.dispose()
    assert (calls, noted(db)) == (["a", "a"], ["a"])


async def test_raises_a_sqlalchemy_error_unchanged(
    dsn: str, db: psycopg.Connection
) -> None:
    """Its connection is closed by then, as after success."""

    async def wrong(conn: sa_async.AsyncConnection) -> None:
        await conn.execute(sa.text("select 1 / 0"))

    @task(max_attempts=1)
    async def booking(params: None, ctx: TaskContext) -> str:
        try:
            await ctx.transaction("wrong", wrong, on=engine)
        except sa.exc.DBAPIError as error:
            return type(error.orig).__name__
        return "nothing"

    url = sa.make_url(dsn).set(drivername="postgresql+psycopg")
    engine = sa_async.create_async_engine(url)
    assert (await outcome(dsn, booking)).result == "DivisionByZero"
    await engine.dispose()


# Refused before the transaction begins


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"isolation": "chaos"}, InvalidArgument),
        ({"on": "postgresql://"}, TypeError),
        ({"on": 7}, TypeError),
    ],
    ids=repr,
)
async def test_refuses_invalid_arguments(
    dsn: str,
    db: psycopg.Connection,
    options: dict[str, Any],
    refusal: type[Exception],
) -> None:
    @task(max_attempts=1)
    async def booking(params: None, ctx: TaskContext) -> str:
        with pytest.raises(refusal):
            await ctx.transaction("book", enter, "a", **options)
        return "refused"

    assert (await outcome(dsn, booking)).result == "refused"
    assert calls == []


async def test_refuses_a_durable_call_inside(dsn: str, db: psycopg.Connection) -> None:
    async def nest(conn: psycopg.AsyncConnection[Any], ctx: TaskContext) -> None:
        await enter(conn, "lost")
        await ctx.transaction("inner", enter, "inner")

    @task(max_attempts=1)
    async def nesting(params: None, ctx: TaskContext) -> None:
        await ctx.transaction("outer", nest, ctx)

    found = await outcome(dsn, nesting)
    assert found.error is not None
    assert "a step is a leaf" in found.error.message
    assert noted(db) == []


async def test_refuses_a_commit_inside(dsn: str, db: psycopg.Connection) -> None:
    async def commit(conn: psycopg.AsyncConnection[Any]) -> None:
        await enter(conn, "half")
        await conn.commit()

    @task(max_attempts=1)
    async def committing(params: None, ctx: TaskContext) -> None:
        await ctx.transaction("commit", commit)

    async with working(dsn, committing) as (app, _):
        handle = await app.spawn(committing)
        with pytest.raises(TaskFailed, match="commit"):
            await handle.result(timeout=20)
    assert noted(db) == []
