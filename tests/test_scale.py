"""Waiting tasks cost nothing, and finished work is not repeated.

The tests count claims, calls and objects, never seconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, TaskContext, task
from tests.support.wait import aeventually, eventually
from tests.support.working import DAY, working

Context: TypeAlias = TaskContext[Any]
Calls: TypeAlias = Callable[[str], int]

STEPS = 10_000
OTHERS = "select from pg_stat_activity where datname = current_database()"
OTHERS += " and backend_type = 'client backend' and pid <> pg_backend_pid()"
CALLS = "select calls from pg_stat_user_functions"
CALLS += " where schemaname = 'durable' and funcname = %s"
# How often each task was claimed.
CLAIMS = "select name, coalesce(times_claimed, 1), count(*) from durable.tasks"
CLAIMS += " group by 1, 2 order by 1"


@task
async def child(number: int, ctx: Context) -> int:
    return number


@task
async def parent(children: int, ctx: Context) -> int:
    spawned = await ctx.spawn_many("child", child, range(children))
    return sum(await ctx.gather(*spawned))


@task
async def hear(number: int, ctx: Context) -> None:
    await ctx.await_event("go")


@task
async def nap(number: int, ctx: Context) -> None:
    await ctx.sleep_for("nap", DAY)


@task
async def long(params: None, ctx: Context) -> int:
    return sum([await ctx.step("one", one) for _ in range(STEPS)])


def one() -> int:
    raise AssertionError("it has been done")


@pytest.fixture
def calls(db: psycopg.Connection) -> Calls:
    """How often a function was called by all sessions that have ended."""
    db.execute(f"alter database \"{db.info.dbname}\" set track_functions = 'all'")

    def count(function: str) -> int:
        eventually(lambda: db.execute(OTHERS).fetchone() is None)
        row = db.execute(CALLS, [function]).fetchone()
        return 0 if row is None else int(row[0])

    return count


def counts(db: psycopg.Connection) -> list[tuple[str, int, int]]:
    return [(name, claims, tasks) for name, claims, tasks in db.execute(CLAIMS)]


async def test_wakes_a_parent_once_for_any_number_of_joined_children(
    dsn: str, db: psycopg.Connection, calls: Calls
) -> None:
    async with working(dsn, child, parent) as (app, _):
        handle = await app.spawn(parent, 2000)
        assert await handle.result(timeout=60) == sum(range(2000))
    assert counts(db) == [("child", 1, 2000), ("parent", 2, 1)]
    assert calls("load_checkpoints") == 1
    assert calls("_try_wake") < 200


async def test_wakes_all_waiters_of_an_event_but_few_during_the_emit(
    dsn: str, db: psycopg.Connection
) -> None:
    awake = "select count(*) from durable.tasks where state = 'pending'"
    async with working(dsn, hear, concurrency=500) as (app, worker):
        await app.spawn_many(hear, range(1500))
        await worker.drain()
    async with AsyncDurable(dsn, tasks=[hear]) as app:
        await app.emit_event("go")
        assert db.execute(awake).fetchone() == (100,)
        async with app.worker(concurrency=500):
            await aeventually(lambda: all_have_completed(app, 1500), deadline=60)
    assert counts(db) == [("hear", 2, 1500)]


async def test_keeps_nothing_in_memory_of_a_sleeping_task(dsn: str) -> None:
    async with working(dsn, nap) as (app, worker):
        await sleep_soundly(app, 100)
        await worker.drain()
        before = objects()
        await sleep_soundly(app, 1500)
        await worker.drain()
        assert (await app.queue_stats()).sleeping == 1600
        assert objects() - before < 150


async def test_loads_ten_thousand_steps_with_one_statement(
    dsn: str, db: psycopg.Connection, calls: Calls
) -> None:
    async with AsyncDurable(dsn, tasks=[long]) as app:
        handle = await app.spawn(long)
        save_the_steps(db)
        async with app.worker():
            assert await handle.result(timeout=60) == STEPS
    assert calls("load_checkpoints") == 1
    assert calls("flush") < 10


async def test_polls_thousands_of_results_with_few_queries(
    dsn: str, calls: Calls
) -> None:
    async with working(dsn, child) as (app, _):
        handles = await app.spawn_many(child, range(5000))
        results = await asyncio.gather(*(handle.result() for handle in handles))
        assert results == list(range(5000))
    assert calls("get_task_results") < 200


async def sleep_soundly(app: AsyncDurable, number: int) -> None:
    await app.spawn_many(nap, range(number))


async def all_have_completed(app: AsyncDurable, number: int) -> bool:
    return (await app.queue_stats()).completed == number


def objects() -> int:
    """Count the objects in this process that could belong to a task."""
    gc.collect()
    return len(gc.get_objects())


def save_the_steps(db: psycopg.Connection) -> None:
    """Save all steps as a worker would, and release the task."""
    claim = (
        "select task_id::text, claim from durable.claim_tasks('default', 'x', '{long}')"
    )
    row = db.execute(claim).fetchone()
    assert row is not None
    held = {"task_id": row[0], "claim": row[1]}
    saved = [
        held
        | {"name": f"one#{number}" if number > 1 else "one"}
        | {"position": number, "after": number - 1, "value": 1}
        for number in range(1, STEPS + 1)
    ]
    db.execute("select durable.save_checkpoints('default', %s)", [json.dumps(saved)])
    db.execute("select durable.release_tasks('default', %s)", [json.dumps([held])])
