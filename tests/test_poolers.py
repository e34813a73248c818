"""durable works behind PgBouncer in transaction mode, which keeps no session state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from durable import AsyncDurable, Durable, InvalidArgument, TaskContext, task
from durable._client._async import waiters
from tests.support.pgbouncer import PGBOUNCER, pgbouncer
from tests.support.wait import aeventually

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer")

SESSIONS = 3
ADVISORY = "select count(*) from pg_locks where locktype = 'advisory' and database = "
ADVISORY += "(select oid from pg_database where datname = current_database())"


@task
async def square(number: int, ctx: TaskContext) -> int:
    return number * number


async def debit(conn: psycopg.AsyncConnection[Any], amount: int) -> int:
    await conn.execute("insert into debits values (%s)", [amount])
    return amount


@task
async def everything(number: int, ctx: TaskContext) -> int:
    """Make every kind of wait and every kind of write."""
    await ctx.set_value("number", number)
    await ctx.write_stream("numbers", number)
    await ctx.sleep_for("nap", 0.01)
    await ctx.transaction("debit", debit, number)
    child = await ctx.spawn("square", square, number)
    told = await ctx.recv("told", as_type=int)
    await ctx.await_event("go on")
    return told + await ctx.join(child)


@task
async def parrot(params: None, ctx: TaskContext) -> str:
    while (word := await ctx.recv("word")) != "end":
        await ctx.set_value("word", word)
    return "done"


async def next_of(values: AsyncIterator[str]) -> str:
    return await anext(values)


@pytest.fixture
def pooled(dsn: str, db: psycopg.Connection) -> Iterator[str]:
    """The address of the database behind a few shared sessions."""
    db.execute("create table debits (amount integer)")
    with pgbouncer(dsn, size=SESSIONS) as address:
        yield address


async def test_runs_tasks_of_every_kind(pooled: str, db: psycopg.Connection) -> None:
    """With more calls in flight than sessions, and without notifications."""
    db.execute("drop schema durable cascade")
    tasks = (everything, square)
    async with AsyncDurable(pooled, tasks=tasks, prepare=False, listen=False) as app:
        await app.migrate()
        async with app.worker(listen=False, poll=0.1):
            handles = await app.spawn_many(everything, range(20))
            await asyncio.gather(*(one.send("told", 1) for one in handles))
            await app.emit_event("go on")
            results = [await one.result(timeout=30) for one in handles]
        assert results == [1 + number * number for number in range(20)]
        assert [one async for one in handles[3].stream("numbers")] == [3]
        assert [one async for one in handles[3].values("number")] == [3]
    found = db.execute("select count(*), sum(amount) from debits").fetchone()
    assert found == (20, 190)
    assert db.execute(ADVISORY).fetchone() == (0,)


async def test_is_notified_over_a_direct_connection(
    pooled: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of work, of published entries, and of the end; nobody polls within an hour."""
    monkeypatch.setattr(waiters, "_LISTENING", 3600)
    followed = ("published", "default")
    async with (
        AsyncDurable(pooled, tasks=[parrot], prepare=False, listen_url=dsn) as app,
        app.worker(poll=3600),
    ):
        first = await app.spawn(parrot)
        await first.send("word", "end")
        assert await first.result(timeout=10) == "done"
        handle = await app.spawn(parrot)
        values = handle.values("word", as_type=str)
        for word in ("a", "b"):
            coming = asyncio.create_task(next_of(values))
            if word == "a":
                await aeventually(
                    lambda: asyncio.sleep(0, followed in app._backend._registered)
                )
            await handle.send("word", word)
            assert await asyncio.wait_for(coming, 10) == word
        await handle.send("word", "end")
        assert await handle.result(timeout=10) == "done"


def test_works_in_synchronous_code(pooled: str, dsn: str) -> None:
    with (
        Durable(pooled, tasks=[square], prepare=False, listen_url=dsn) as app,
        app.worker(poll=3600),
    ):
        assert [app.spawn(square, 3).result(timeout=10) for _ in range(9)] == [9] * 9


async def test_says_what_to_do_about_prepared_statements(pooled: str) -> None:
    async with AsyncDurable(pooled, listen=False) as app:

        async def ask() -> None:
            for _ in range(100):
                await app.list_queues()

        with pytest.raises(psycopg.ProgrammingError) as refused:
            await asyncio.gather(*(ask() for _ in range(2 * SESSIONS)))
    assert "prepare=False" in "".join(refused.value.__notes__)


def test_refuses_invalid_direct_addresses(dsn: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        Durable(dsn, listen_url="shop")
