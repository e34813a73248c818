"""durable lists tasks by a filter, and changes many at once beside running workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    Retry,
    TaskContext,
    UnknownQueue,
    task,
)
from durable._core import sql
from tests.support.wait import aeventually
from tests.support.working import working

EVERYTHING = [
    "tasks",
    "runs",
    "checkpoints",
    "waits",
    "idempotency_keys",
    "deferred_work",
]
STEPPED: Counter[int] = Counter()


def step(number: int) -> None:
    STEPPED[number] += 1


@task
async def busy(number: int, ctx: TaskContext) -> int:
    for _ in range(3):
        await ctx.step("do", step, number)
        await ctx.sleep_for("rest", 0.01)
    return number


@task(max_attempts=1)
async def broken(number: int, ctx: TaskContext) -> int:
    if ctx.attempt == 1:
        raise ValueError(f"no {number}")
    return number


@task
async def parent(wide: int, ctx: TaskContext) -> None:
    await ctx.spawn_many("leaf", leaf, [None] * wide)
    await ctx.await_event("never")


@task
async def leaf(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


async def states(app: AsyncDurable, **wanted: Any) -> Counter[str]:
    return Counter(info.state for info in await app.list_tasks(limit=9999, **wanted))


async def test_lists_tasks_in_pages_newest_first(dsn: str) -> None:
    async with working(dsn, broken, leaf) as (app, worker):
        before = datetime.now(UTC) - timedelta(minutes=1)
        handles = await app.spawn_many(broken, range(5))
        other = await app.spawn(leaf)
        await worker.drain()
        first = await app.list_tasks(limit=4)
        second = await app.list_tasks(limit=4, after=first[-1].task_id)
        ids = [info.task_id for info in (*first, *second)]
        assert ids == [other.task_id, *(one.task_id for one in reversed(handles))]
        (failed,) = await app.list_tasks(task_ids=[str(handles[3].task_id)])
        assert (failed.queue, failed.name, failed.state) == (
            "default",
            "broken",
            "failed",
        )
        assert failed.attempt == 1
        assert failed.error is not None
        assert str(failed.error) == "ValueError: no 3"
        assert failed.finished_at is not None
        assert failed.spawned_at > before
        many = {"states": ["failed"], "error_type": "ValueError", "name": "broken"}
        assert await states(app, **many, spawned_after=before) == {"failed": 5}
        assert await states(app, **many, spawned_before=before) == {}
        assert await states(app, worker=failed.worker) == {"failed": 5, "sleeping": 1}


async def test_finds_rare_tasks_by_scanning_ten_thousand_at_a_time(
    dsn: str, db: psycopg.Connection
) -> None:
    """In SQL a partial page says where to continue; the client does so."""
    async with AsyncDurable(dsn) as app:
        oldest = await app.spawn("rare")
        for _ in range(5):
            await app.spawn_many("common", [None] * 5_000)
        newest = await app.spawn("rare")
        found = await app.list_tasks(name="rare")
        assert [info.task_id for info in found] == [newest.task_id, oldest.task_id]
        assert len(await app.list_tasks(name="rare", limit=1)) == 1
        assert await app.list_tasks(name="none") == []
    pages: list[list[str | None]] = []
    after: Any = None
    while not pages or None in pages[-1]:
        query = "select task_id, name from durable.list_tasks('default', %s, 100, %s)"
        page = db.execute(query, ['{"name": "rare"}', after]).fetchall()
        pages.append([name for _, name in page])
        after = page[-1][0]
    assert pages == [["rare", None], [None], ["rare"]]


async def test_refuses_invalid_filters(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        await app.spawn("x")
        refusals: list[tuple[dict[str, Any], str]] = [
            ({"stats": ["failed"]}, "no filter stats: did you mean states"),
            ({"states": "failed"}, "states must be a list"),
            ({"states": ["fialed"]}, "no state 'fialed'"),
            ({"task_ids": str(uuid4())}, "task_ids must be a list"),
            ({"task_ids": ["x"]}, "a UUID or its text"),
            ({"parent_task_id": 7}, "a UUID or its text"),
            ({"name": 7}, "a str, not int"),
            ({"worker": None}, "a str, not NoneType"),
            ({"headers": []}, "a mapping, not list"),
            ({"params": {1: 2}}, "plain JSON|keys"),
            ({"spawned_after": "yesterday"}, "spawned_after"),
            ({"finished_before": datetime(2030, 1, 1)}, "time zone"),
            ({"all": True, "name": "x"}, "stands alone"),
            ({"all": False}, "stands alone"),
        ]
        for call in (app.list_tasks, app.cancel_many, app.retry_many, app.delete_many):
            for given, message in refusals:
                with pytest.raises((InvalidArgument, TypeError), match=message):
                    await call(**given)
            with pytest.raises(UnknownQueue):
                await call(queue="nowhere", name="x")
        for call in (app.cancel_many, app.retry_many, app.delete_many):
            with pytest.raises(InvalidArgument, match="a filter is required"):
                await call()
        for limit in (0, True, 10**9, "7"):
            with pytest.raises(InvalidArgument, match="limit"):
                await app.list_tasks(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="1000"):
            await app.cancel_many(all=True, reason="x" * 1001)
        assert await states(app) == {"pending": 1}


async def test_cancels_many_beside_their_workers(dsn: str) -> None:
    STEPPED.clear()
    async with working(dsn, busy, concurrency=50) as (app, worker):
        handles = await app.spawn_many(busy, range(2500))
        await aeventually(lambda: asyncio.sleep(0, len(STEPPED) > 100))
        cancelled = await app.cancel_many(name="busy", reason="enough")
        found = await states(app)
        assert found["cancelled"] == cancelled
        assert found["completed"] == len(handles) - cancelled
        await worker.drain()
        stepped = STEPPED.total()
        assert await states(app) == found
        assert (await app.get_result(handles[-1])).error is not None
        await worker.drain()
        assert STEPPED.total() == stepped


async def test_cancels_and_retries_whole_trees(
    dsn: str, db: psycopg.Connection
) -> None:
    async with working(dsn, parent, leaf) as (app, worker):
        roots = await app.spawn_many(parent, [3, 4])
        await worker.drain()
        assert await app.cancel_many(name="parent") == 2
        assert await states(app) == {"cancelled": 9}
        kind = "jsonb_typeof(error -> 'by')"
        by = f"select count(*) from durable.tasks where {kind} = 'string'"
        assert db.execute(by).fetchone() == (7,)
        assert await app.retry_many(task_ids=[roots[0].task_id]) == 1
        await worker.drain()
        assert await states(app) == {"sleeping": 4, "cancelled": 5}
        assert await app.retry_many(name="parent") == 1
        await worker.drain()
        assert await states(app) == {"sleeping": 9}


async def test_retries_failed_tasks_and_tasks_due_later(dsn: str) -> None:
    @task(max_attempts=2, retry=Retry.fixed(3600))
    async def late(params: None, ctx: TaskContext) -> int:
        if ctx.attempt == 1:
            raise ConnectionError
        return ctx.attempt

    async with working(dsn, broken, late) as (app, worker):
        handles = await app.spawn_many(broken, range(1500))
        handles.append(await app.spawn(late))
        await worker.drain()
        assert await states(app) == {"failed": 1500, "sleeping": 1}
        assert await app.retry_many(error_type="ConnectionError") == 1
        assert await app.retry_many(states=["failed"]) == 1500
        assert await app.retry_many(states=["failed"]) == 0
        await worker.drain()
        assert await states(app) == {"completed": 1501}
        assert await handles[-1].result(timeout=10) == 2


async def test_deletes_finished_tasks_with_all_their_rows(
    dsn: str, db: psycopg.Connection
) -> None:
    async with working(dsn, broken, busy, parent, leaf) as (app, worker):
        await app.spawn(busy, 1, idempotency_key="k")
        for handle in await app.spawn_many(broken, range(3)):
            await worker.drain()
            await app.retry(handle)
        root = await app.spawn(parent, 2)
        await aeventually(lambda: states_are(app, name="busy", completed=1))
        await worker.drain()
        assert await app.delete_many(states=["running", "sleeping"]) == 0
        assert await app.cancel_many(name="leaf") == 2
        assert await app.delete_many(name="leaf") == 0  # their parent may join them
        assert await app.delete_many(error_type="ValueError") == 0
        assert await app.delete_many(name="broken") == 3
        await app.cancel(root)
        assert await app.delete_many(all=True) == 4
        for table in EVERYTHING:
            left = db.execute(f"select count(*) from durable.{table}").fetchone()
            assert left == (0,), table
        assert (await app.spawn(busy, 2, idempotency_key="k")).created


async def states_are(app: AsyncDurable, name: str, **expected: int) -> bool:
    return await states(app, name=name) == expected


async def test_repeats_the_call_for_locked_tasks(
    dsn: str, connect: Callable[[], psycopg.Connection]
) -> None:
    """It neither waits for a row that an application has locked, nor skips its task."""
    async with AsyncDurable(dsn) as app:
        handles = await app.spawn_many("x", range(5))
        session = connect()
        lock = "select from durable.tasks where task_id = %s for no key update"
        held = handles[2]
        with session.transaction():
            session.execute(lock, [held.task_id])
            statement = sql.cancel_tasks(
                "default", '{"name": "x"}', 3, None, None, None
            )
            ((changed, busy_ids, last),) = await app._database.fetch(statement)
            assert (changed, busy_ids) == (2, [held.task_id])
            assert last == held.task_id
            cancelling = asyncio.create_task(app.cancel_many(name="x"))
            await aeventually(lambda: states_are(app, "x", cancelled=4, pending=1))
            assert not cancelling.done()
        assert await cancelling == 3
        with session.transaction():
            session.execute(lock, [held.task_id])
            retrying = asyncio.create_task(app.retry_many(all=True))
            await aeventually(lambda: states_are(app, "x", cancelled=1, pending=4))
            assert not retrying.done()
        assert await retrying == 5
        assert await states(app) == {"pending": 5}


def test_changes_many_for_synchronous_code(dsn: str) -> None:
    with Durable(dsn) as app:
        app.spawn_many("x", range(3))
        assert app.cancel_many(name="x") == 3
        assert app.retry_many(states=["cancelled"]) == 3
        assert app.cancel_many(all=True) == 3
        assert app.delete_many(all=True) == 3
        assert app.list_tasks() == []
