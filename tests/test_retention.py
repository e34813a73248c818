"""durable keeps finished tasks as long as their queue says, and not longer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    AsyncTaskHandle,
    InvalidArgument,
    NotFound,
    Retry,
    TaskContext,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually

DAY = timedelta(days=1)
TABLES = [
    *["tasks", "runs", "checkpoints", "waits", "idempotency_keys", "deferred_work"],
    *["task_values", "stream_entries", "log_lines"],
]


@task
async def quick(number: int, ctx: TaskContext) -> int:
    await ctx.step("one", abs, number, as_type=int)
    await ctx.set_value("progress", number)
    await ctx.write_stream("news", number)
    ctx.logger.info("done with %d", number)
    return number


@task(max_attempts=2, retry=Retry.fixed(0))
async def failing(params: None, ctx: TaskContext) -> None:
    raise ValueError("as always")


@task
async def waiting(event: str, ctx: TaskContext) -> Any:
    return await ctx.await_event(event)


@task
async def parent(event: str, ctx: TaskContext) -> int:
    child = await ctx.spawn("child", quick, 7)
    await ctx.await_event(event)
    return await ctx.join(child)


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn, tasks=[quick, failing, waiting, parent]) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def clean(
    db: psycopg.Connection, function: str = "cleanup", batch_size: int = 999
) -> int:
    row = db.execute(
        f"select durable.{function}('default', %s)", [batch_size]
    ).fetchone()
    assert row is not None
    return int(row[0])


def left(db: psycopg.Connection, *tables: str) -> int:
    counts = (f"(select count(*) from durable.{table})" for table in tables or TABLES)
    row = db.execute(f"select {' + '.join(counts)}").fetchone()
    assert row is not None
    return int(row[0])


async def gone(handle: AsyncTaskHandle[Any]) -> bool:
    try:
        await handle.state()
    except NotFound:
        return True
    return False


async def test_keeps_finished_tasks_for_thirty_days_by_default(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(quick, 7)
    await drain(app)
    clock.advance(30 * DAY - timedelta(seconds=1))
    assert clean(db) == 0
    assert await handle.result(0) == 7
    clock.advance(2)
    assert clean(db) == 1
    assert await gone(handle)


async def test_deletes_all_that_belongs_to_a_task(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=DAY)
    await app.spawn(quick, 7, idempotency_key="once")
    await app.spawn(failing)
    cancelled = await app.spawn(waiting, "never")
    await drain(app)
    await app.cancel(cancelled)
    assert left(db) > 3
    clock.advance(2 * DAY)
    assert clean(db) == 3
    assert left(db) == 0


async def test_keeps_unfinished_tasks_of_any_age(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=0, keep_events=0)
    sleeping = await app.spawn(waiting, "go")
    await drain(app)
    pending = await app.spawn(quick, 7)
    clock.advance(1_000 * DAY)
    assert clean(db) == clean(db, "prune_events") == 0
    await app.emit_event("go", "went")
    clock.advance(DAY)
    assert clean(db, "prune_events") == 0  # the task has not read it yet
    await app.create_queue(keep_tasks=DAY)  # or maintenance deletes the results at once
    await drain(app)
    assert (await sleeping.result(0), await pending.result(0)) == ("went", 7)


async def test_counts_from_the_end_not_from_the_spawn(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=DAY)
    handle = await app.spawn(waiting, "go")
    await drain(app)
    clock.advance(10 * DAY)
    await app.emit_event("go")
    await drain(app)
    assert clean(db) == 0
    clock.advance(DAY + timedelta(seconds=1))
    assert clean(db) == 1
    assert await gone(handle)


async def test_keeps_a_finished_child_as_long_as_its_parent(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=DAY)
    handle = await app.spawn(parent, "go")
    await drain(app)
    clock.advance(10 * DAY)
    assert clean(db) == 0
    await app.emit_event("go")
    await drain(app)
    assert await handle.result(0) == 7
    clock.advance(2 * DAY)
    assert clean(db) + clean(db) == 2


async def test_keeps_everything_for_ever_if_configured(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=None, keep_events=None)
    await app.spawn(quick, 7)
    await drain(app)
    await app.emit_event("packed")
    clock.advance(100_000 * DAY)
    assert clean(db) == clean(db, "prune_events") == 0
    assert left(db, "tasks", "events") == 2


async def test_changes_only_what_a_policy_names(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    query = "select keep_tasks, keep_events from durable.queues"
    month = 30 * DAY.total_seconds()
    assert db.execute(query).fetchall() == [(month, month)]
    await app.create_queue(keep_tasks=DAY)
    await app.create_queue(keep_events=None)
    assert db.execute(query).fetchall() == [(86_400, None)]


@pytest.mark.parametrize(
    "policy", [{"keep_tasks": -1}, {"keep_events": "1 day"}, {"keep_task": 1}]
)
async def test_refuses_invalid_policies(app: AsyncDurable, policy: Any) -> None:
    with pytest.raises(InvalidArgument):
        await app.create_queue("new", **policy)
    assert await app.list_queues() == ["default"]


async def test_deletes_at_most_as_many_as_requested(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=DAY)
    await app.spawn_many(quick, range(25))
    await drain(app)
    clock.advance(2 * DAY)
    assert [clean(db, batch_size=10) for _ in range(3)] == [10, 10, 5]
    assert left(db) == 0


async def test_prunes_events_that_nobody_waits_for(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_events=DAY)
    await app.emit_event("old", 1)
    given_up = await app.spawn(waiting, "never")
    await drain(app)
    await app.cancel(given_up)
    clock.advance(2 * DAY)
    await app.emit_event("new", 2)
    assert clean(db, "prune_events") == 2  # "old", and the unemitted row of "never"
    assert db.execute("select name from durable.events").fetchall() == [("new",)]
    assert await app.emit_event("old", 3) is True


async def test_workers_clean_up_by_themselves(app: AsyncDurable, clock: Clock) -> None:
    await app.create_queue(keep_tasks=DAY)
    handle = await app.spawn(quick, 7)
    await drain(app)
    clock.advance(2 * DAY)
    async with app.worker():
        await aeventually(lambda: gone(handle))


async def test_revives_no_deleted_task(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=DAY)
    handle = await app.spawn(failing)
    await drain(app)
    clock.advance(2 * DAY)
    clean(db)
    for call in (app.retry(handle), app.cancel(handle), handle.result()):
        with pytest.raises(NotFound):
            await call


async def test_keeps_up_with_a_high_rate_of_expiring_tasks(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    """A thousand a second; at the rate of maintenance it would take a minute."""
    await app.migrate()
    db.execute(
        "insert into durable.tasks"
        " (queue, task_id, spawned_at, name, params, state, claim, finished_at)"
        " select 'default', durable._uuid7(1000000000, n), now() - interval '40 days',"
        " 'quick', '{}', 'completed', 2, now() - interval '40 days'"
        " from generate_series(1, 60000) as n"
    )

    async def none_is_left() -> bool:
        row = db.execute("select count(*) from durable.tasks").fetchone()
        return row == (0,)

    async with app.worker():
        await aeventually(none_is_left, deadline=55, what="no old task left")


async def test_does_not_update_the_queues_row_that_every_call_reads(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue(keep_tasks=DAY, keep_events=DAY)
    await app.spawn_many(quick, range(10))
    for number in range(10):
        await app.emit_event(f"event {number}")
    await drain(app)
    clock.advance(2 * DAY)
    query = "select xmin::text, xmax::text, ctid::text from durable.queues"
    before = db.execute(query).fetchall()
    assert [clean(db, batch_size=4) for _ in range(3)] == [4, 4, 2]
    assert [clean(db, "prune_events", 4) for _ in range(3)] == [4, 4, 2]
    assert db.execute(query).fetchall() == before
