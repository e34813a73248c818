"""One idempotency key makes one task, for any number of callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    ChildHandle,
    Conflict,
    Durable,
    InvalidArgument,
    TaskContext,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually

RAN: list[int] = []


@task
async def work(number: int, ctx: TaskContext) -> int:
    RAN.append(number)
    return 2 * number


@task
async def other(number: int, ctx: TaskContext) -> int:
    return number


@task
async def ask_twice(number: int, ctx: TaskContext) -> list[bool]:
    children: list[ChildHandle[int]] = [
        await ctx.spawn(name, work, number, idempotency_key="once") for name in "ab"
    ]
    assert await ctx.gather(*children) == (2 * number,) * 2
    return [child.created for child in children]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    RAN.clear()
    async with AsyncDurable(dsn, tasks=[work, other, ask_twice]) as app:
        yield app


def count(db: psycopg.Connection, table: str = "tasks") -> int:
    row = db.execute(f"select count(*) from durable.{table}").fetchone()
    assert row is not None
    return int(row[0])


async def is_waiting(db: psycopg.Connection) -> bool:
    """Whether a session of this database waits for a lock."""
    query = """
        select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
    """
    return db.execute(query).fetchone() != (0,)


async def test_returns_the_task_that_has_the_key(app: AsyncDurable) -> None:
    first = await app.spawn(work, 7, idempotency_key="order:7")
    again = await app.spawn(work, 7, idempotency_key="order:7", max_attempts=9)
    assert again == first
    assert (first.created, again.created) == (True, False)
    assert (again.run_id, again.attempt) == (first.run_id, 1)
    assert await app.spawn(work, 7, idempotency_key="order:8") != first
    assert await app.spawn(work, 7) != first
    assert await app.spawn(work, 7, idempotency_key=None) != first


async def test_runs_a_task_once_for_any_number_of_spawns(app: AsyncDurable) -> None:
    handles = [await app.spawn(work, 7, idempotency_key="once") for _ in range(3)]
    async with app.worker() as worker:
        assert await worker.drain() == 1
    assert RAN == [7]
    assert [await handle.result(0) for handle in handles] == [14, 14, 14]


async def test_keeps_the_key_when_the_task_has_finished(app: AsyncDurable) -> None:
    first = await app.spawn(work, 7, idempotency_key="once")
    async with app.worker() as worker:
        await worker.drain()
        again = await app.spawn(work, 7, idempotency_key="once")
        assert again == first
        assert not again.created
        assert await worker.drain() == 0
    assert await again.result(0) == 14


async def test_returns_the_current_attempt_of_the_task(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    first = await app.spawn(work, 7, idempotency_key="once")
    await app.cancel(first)
    await app.retry(first)
    again = await app.spawn(work, 7, idempotency_key="once")
    assert (again.attempt, again.run_id == first.run_id) == (2, False)


@pytest.mark.parametrize(("named", "number"), [(other, 7), (work, 8)])
async def test_refuses_a_key_that_belongs_to_another_task(
    app: AsyncDurable, db: psycopg.Connection, named: Any, number: int
) -> None:
    first = await app.spawn(work, 7, idempotency_key="once")
    with pytest.raises(Conflict, match=str(first.task_id)):
        await app.spawn(named, number, idempotency_key="once")
    with pytest.raises(Conflict):
        await app.spawn_many([(work, 9), (named, number, {"idempotency_key": "once"})])
    assert count(db) == 1


async def test_compares_params(app: AsyncDurable) -> None:
    async with AsyncDurable(app._application.conninfo) as client:
        params = {"b": [1, {"x": None}], "a": 1.0}
        first = await client.spawn("any", params, idempotency_key="once")
        reordered = dict(reversed(params.items()))
        assert await client.spawn("any", reordered, idempotency_key="once") == first


async def test_keys_are_unique_per_queue(app: AsyncDurable) -> None:
    await app.create_queue("second")
    first = await app.spawn(work, 7, idempotency_key="once")
    second = await app.spawn(work, 7, idempotency_key="once", queue="second")
    assert second.created
    assert second != first


@pytest.mark.parametrize("key", ["x" * 255, "ü" * 127, "order 7; drop", "#2", "$x"])
async def test_accepts_any_text_as_a_key(app: AsyncDurable, key: str) -> None:
    first = await app.spawn(work, 7, idempotency_key=key)
    assert await app.spawn(work, 7, idempotency_key=key) == first


@pytest.mark.parametrize("key", ["", "  ", "x" * 256, "ü" * 128, "a\0b", "a\nb", 7])
async def test_refuses_invalid_keys(app: AsyncDurable, key: Any) -> None:
    with pytest.raises(InvalidArgument, match="idempotency key"):
        await app.spawn(work, 7, idempotency_key=key)


async def test_recognizes_one_key_twice_in_one_call(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    keyed = {"idempotency_key": "once"}
    handles = await app.spawn_many([(work, 7, keyed), (work, 8), (work, 7, keyed)])
    assert handles[0] == handles[2]
    assert [handle.created for handle in handles] == [True, True, False]
    assert count(db) == 2


def test_concurrent_spawns_with_one_key_make_one_task(dsn: str) -> None:
    sessions, keys = 8, 25
    found: dict[str, list[Any]] = {f"key {number}": [] for number in range(keys)}
    start = threading.Barrier(sessions)

    def ask() -> None:
        with Durable(dsn, tasks=[work]) as app:
            app.list_queues()  # connected
            start.wait()
            for key, handles in found.items():
                handles.append(app.spawn(work, 7, idempotency_key=key))

    threads = [threading.Thread(target=ask) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handles in found.values():
        assert len(handles) == sessions
        assert len(set(handles)) == 1
        assert [handle.created for handle in handles].count(True) == 1


async def test_concurrent_batches_with_the_same_keys_do_not_deadlock(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    keys = [f"key {number}" for number in range(50)]
    batches = [
        app.spawn_many([(work, 7, {"idempotency_key": key}) for key in order])
        for order in (keys, keys[::-1], keys[25:] + keys[:25], keys[::2] + keys[1::2])
    ]
    created = [
        handle.created for batch in await asyncio.gather(*batches) for handle in batch
    ]
    assert (created.count(True), created.count(False)) == (50, 150)
    assert count(db) == 50


async def test_waits_for_a_transaction_that_is_taking_the_key(
    app: AsyncDurable, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    for end in ("rollback", "commit"):
        session, spawn = connect(), "select task_id, created from durable.spawn"
        session.execute("begin")
        said = f"{spawn}('default', 'work', '7', '{{\"idempotency_key\": \"{end}\"}}')"
        row = session.execute(said).fetchone()
        assert row is not None
        second = asyncio.create_task(app.spawn(work, 7, idempotency_key=end))
        await aeventually(lambda: is_waiting(db))
        assert not second.done()
        session.execute(end)
        handle = await second
        assert handle.created == (end == "rollback")
        assert (handle.task_id == row[0]) == (end == "commit")


async def test_frees_the_key_when_the_task_is_deleted(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=timedelta(days=1))
    first = await app.spawn(work, 7, idempotency_key="once")
    async with app.worker() as worker:
        await worker.drain()
    clock.advance(timedelta(hours=23))
    db.execute("select durable.cleanup('default')")
    assert await app.spawn(work, 7, idempotency_key="once") == first
    clock.advance(timedelta(hours=2))
    db.execute("select durable.cleanup('default')")
    assert count(db, "idempotency_keys") == 0
    anew = await app.spawn(work, 8, idempotency_key="once")
    assert anew.created
    assert anew != first


async def test_works_for_spawns_by_a_task(app: AsyncDurable) -> None:
    parent = await app.spawn(ask_twice, 3)
    async with app.worker():
        assert await parent.result(timeout=10) == [True, False]
    assert RAN == [3]
