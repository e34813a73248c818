"""durable cancels what starts too late, and what takes too long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    AsyncTaskHandle,
    Retry,
    TaskCancelled,
    TaskContext,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually

HOUR = timedelta(hours=1)


@task
async def quick(params: None, ctx: TaskContext) -> str:
    return "done"


@task
async def sleeper(length: float, ctx: TaskContext) -> str:
    await ctx.sleep_for("long", length)
    return "done"


@task
async def failing(params: None, ctx: TaskContext) -> None:
    raise ValueError("as always")


@task
async def parent(params: None, ctx: TaskContext) -> None:
    await ctx.join(await ctx.spawn("child", sleeper, 10 * HOUR.total_seconds()))


@task(max_delay=HOUR, max_duration=2 * HOUR)
async def limited(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    tasks: list[Any] = [quick, sleeper, failing, parent, limited]
    async with AsyncDurable(dsn, tasks=tasks) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def expire(db: psycopg.Connection) -> int:
    row = db.execute("select durable.expire_deadlines('default')").fetchone()
    assert row is not None
    return int(row[0])


async def why(handle: AsyncTaskHandle[Any]) -> str:
    with pytest.raises(TaskCancelled) as cancelled:
        await handle.result(timeout=0)
    return str(cancelled.value.reason)


async def test_cancels_what_was_not_started_in_time(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(quick, max_delay=HOUR)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1
    assert await why(handle) == "not started within max_delay"
    assert await drain(app) == 0


async def test_forgets_the_delay_of_what_was_started_in_time(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 36_000, max_delay=HOUR)
    await drain(app)
    clock.advance(36_000)
    assert expire(db) == 0
    await drain(app)
    assert await handle.result(0) == "done"


async def test_cancels_what_takes_too_long_from_its_first_start(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 36_000, max_duration=HOUR)
    clock.advance(36_000)  # waiting to be started does not count
    await drain(app)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1
    assert await why(handle) == "not finished within max_duration"
    clock.advance(36_000)
    assert await drain(app) == 0


async def test_counts_waiting_and_all_attempts_towards_the_duration(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    retry = Retry.fixed(timedelta(minutes=25))
    handle = await app.spawn(failing, max_duration=HOUR, retry=retry, max_attempts=9)
    for _ in range(2):
        await drain(app)
        clock.advance(timedelta(minutes=25))
    assert await drain(app) == 1
    # attempt 4 would start after 75 minutes: no use in waiting for that
    assert await why(handle) == "no time left for attempt 4 within max_duration"
    rows = db.execute("select outcome from durable.attempts order by attempt")
    assert [outcome for (outcome,) in rows] == ["failed", "failed", "cancelled"]


async def test_ends_a_running_task_at_its_deadline(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    db.execute("select durable.spawn('default', 'x', '{}', '{\"max_duration\": 60}')")
    claim = "select task_id, claim from durable.claim_tasks('default', 'me')"
    row = db.execute(claim).fetchone()
    assert row is not None
    clock.advance(60)
    assert expire(db) == 1
    done = f'[{{"task_id": "{row[0]}", "claim": {row[1]}, "result": 1}}]'
    said = db.execute(
        "select outcome from durable.complete_tasks('default', %s)", [done]
    )
    assert said.fetchall() == [("cancelled",)]


async def test_takes_the_children_of_a_late_task_with_it(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.spawn(parent, max_duration=HOUR)
    await drain(app)
    clock.advance(HOUR)
    assert expire(db) == 1
    rows = db.execute("select state::text from durable.tasks").fetchall()
    assert rows == [("cancelled",)] * 2


async def test_takes_the_limits_of_the_class_unless_told_otherwise(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    late = await app.spawn(limited)
    free = await app.spawn(limited, max_delay=None, max_duration=None)
    clock.advance(HOUR)
    assert expire(db) == 1
    await drain(app)
    clock.advance(1_000 * HOUR)
    assert expire(db) == 0
    assert await late.state() == "cancelled"
    assert await free.state() == "sleeping"


async def test_counts_the_duration_anew_after_a_retry_by_hand(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 7_200, max_duration=HOUR)
    await drain(app)
    clock.advance(HOUR)
    expire(db)
    await app.retry(handle)
    await drain(app)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1


async def test_keeps_deadlines_while_a_worker_runs_and_is_full(
    app: AsyncDurable, clock: Clock
) -> None:
    sleeping = await app.spawn(sleeper, 36_000, max_duration=HOUR)
    await drain(app)
    waiting = await app.spawn(quick, queue="default", max_delay=HOUR)
    other = AsyncDurable(app.application.conninfo)  # knows none of these tasks
    async with other.worker(concurrency=1):
        clock.advance(2 * HOUR)

        async def both_cancelled() -> bool:
            return await sleeping.state() == await waiting.state() == "cancelled"

        await aeventually(both_cancelled)


async def test_expires_no_more_at_a_time_than_asked(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.spawn_many(quick, [None] * 5, max_delay=HOUR)
    clock.advance(HOUR)
    expired = "select durable.expire_deadlines('default', 2)"
    assert [db.execute(expired).fetchone() for _ in range(4)] == [
        (2,),
        (2,),
        (1,),
        (0,),
    ]
