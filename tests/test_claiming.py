"""A worker keeps all its slots busy, and finds work wherever it appears."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, TaskContext, Worker, task
from durable.registry import AnyTask
from tests.support.clock import Clock
from tests.support.wait import aeventually, eventually
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]
Working: TypeAlias = AbstractAsyncContextManager[tuple[AsyncDurable, Worker]]

ENTRIES_READ = """
select sum(idx_tup_read)
from pg_stat_user_indexes
where relname = 'tasks' and pg_get_indexdef(indexrelid) like '%%version, available_at%'
"""
REGISTERED = """
select from pg_locks
where locktype = 'advisory'
  and mode = 'ExclusiveLock'
  and database = (select oid from pg_database where datname = current_database())
  and classid::bigint = hashtext('durable.work')::bigint & 4294967295
"""
HOLD_UP = "select from durable.tasks where task_id = %s for update"
WORKER_SESSIONS = """
select from pg_stat_activity
where datname = current_database() and application_name like 'durable %%'
"""
WAITS = """
select from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


# -- slots -----------------------------------------------------------------------------


async def test_runs_the_next_task_while_the_last_result_is_being_saved(
    dsn: str, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    """It never holds more than twice as many tasks as it has slots."""
    locker = connect()
    started = []

    @task
    async def unsaved(params: None, ctx: Context) -> None:
        started.append(ctx.task_id)
        if len(started) <= 2:
            locker.execute(HOLD_UP, [ctx.task_id])

    async def two_are_held_up() -> bool:
        return len(started) == 2 and db.execute(WAITS).fetchone() is not None

    async with working(dsn, unsaved, concurrency=1) as (app, worker):
        with locker.transaction():
            await app.spawn_many(unsaved, [None] * 4)
            await aeventually(two_are_held_up)
        await worker.drain()
    assert len(started) == 4


# -- notifications ---------------------------------------------------------------------


async def test_registers_for_notifications_only_while_it_is_idle(
    dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notifying a busy worker would make every spawn slower."""
    # no slot is free that late, unless the machine stalls
    monkeypatch.setattr("durable._worker.claims._FLAPPING_SECONDS", 0.5)
    enough = False

    @task
    async def busy(params: None, ctx: Context) -> None:
        if not enough:
            await app.spawn(busy)

    async def asks() -> bool:
        return db.execute(REGISTERED).fetchone() is not None

    async def does_not_ask() -> bool:
        return not await asks()

    async with working(dsn, busy, concurrency=20) as (app, worker):
        await aeventually(asks)
        await app.spawn_many(busy, [None] * 60)
        await aeventually(does_not_ask)
        enough = True
        await worker.drain()
        await aeventually(asks)


async def test_finds_a_task_whose_spawn_kept_it_from_registering(
    dsn: str, connect: Callable[[], psycopg.Connection]
) -> None:
    """The spawn saw no listener, so it notifies nobody when it commits."""
    spawning = connect()
    ended = asyncio.Event()

    @task
    async def late(params: None, ctx: Context) -> None:
        ended.set()

    spawning.execute("begin")
    spawning.execute("select durable.spawn('default', 'late')")
    async with working(dsn, late, poll=3600) as (_, worker):
        await aeventually(lambda: asyncio.sleep(0, worker._claims._is_refused))
        spawning.execute("commit")
        await asyncio.wait_for(ended.wait(), 10)


# -- the start of a claim's scan -------------------------------------------------------


@pytest.fixture
def rare_looks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan from the start only where there is a reason to, not periodically."""
    monkeypatch.setattr("durable._worker.claims._SHORTEST_PAUSE", 3600)
    monkeypatch.setattr("durable._worker.claims._LONGEST_PAUSE", 3600)


async def test_claims_a_task_spawned_early_and_committed_late(
    dsn: str, connect: Callable[[], psycopg.Connection]
) -> None:
    """Also while there is always newer work."""
    early = connect()
    found = asyncio.Event()

    @task
    async def busy(spawned: str, ctx: Context) -> None:
        if spawned == "early":
            found.set()
        if not found.is_set():
            await app.spawn(busy, "in time")

    async with deaf(dsn, busy) as (app, worker):
        with early.transaction():
            early.execute("""select durable.spawn('default', 'busy', '"early"')""")
            await app.spawn_many(busy, ["in time"] * 40)
            draining = asyncio.create_task(worker.drain())
            await aeventually(lambda: has_completed(early, 20))
        async with asyncio.timeout(20):
            await draining


async def test_scans_from_the_start_after_the_clock_was_set_back(
    dsn: str, clock: Clock, rare_looks_back: None
) -> None:
    """For example a standby's clock; here one name is ahead of it."""
    found = asyncio.Event()

    @task
    async def ahead(params: None, ctx: Context) -> None:
        found.set()

    @task
    async def busy(params: None, ctx: Context) -> None:
        if not found.is_set():
            clock.advance(0.001)
            await app.spawn(busy)

    async with deaf(dsn, busy, ahead) as (app, worker):
        await app.spawn(ahead)
        await worker.drain()
        found.clear()
        clock.advance(-3600)
        await app.spawn_many(busy, [None] * 10)
        clock.advance(0.001)
        await app.spawn(ahead)
        async with asyncio.timeout(20):
            await worker.drain()


async def test_claims_cost_the_same_while_a_snapshot_is_held(
    dsn: str,
    db: psycopg.Connection,
    connect: Callable[[], psycopg.Connection],
    rare_looks_back: None,
) -> None:
    """Dead entries accumulate in the index; claims must not scan them."""

    @task
    async def quick(params: None, ctx: Context) -> None: ...

    holder = connect()
    tasks = 5_000
    with holder.transaction():
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select from durable.tasks")
        async with working(dsn, quick, concurrency=20) as (app, worker):
            await app.spawn_many(quick, [None] * tasks)
            assert await worker.drain() == tasks
        eventually(lambda: not db.execute(WORKER_SESSIONS).fetchall())
    row = db.execute(ENTRIES_READ).fetchone()
    assert row is not None
    assert tasks <= row[0] <= 10 * tasks


def deaf(dsn: str, *tasks: AnyTask) -> Working:
    """Return a worker that looks for work only when the test calls drain().

    It runs one task at a time, so that tasks which spawn the next one commit in order.
    """
    return working(dsn, *tasks, concurrency=1, listen=False, poll=3600)


async def has_completed(db: psycopg.Connection, tasks: int) -> bool:
    query = "select from durable.tasks where state = 'completed'"
    return len(db.execute(query).fetchall()) >= tasks
