"""Cancellation is immediate: nothing that a cancelled task still does is kept."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Suspended,
    SyncTaskContext,
    TaskCancelled,
    TaskContext,
    task,
)
from tests.support.wait import aeventually, eventually

SEEN: list[str] = []
ENTERED, LEAVE = threading.Event(), threading.Event()


@task
async def sleeper(params: None, ctx: TaskContext) -> None:
    SEEN.append("began")
    await ctx.sleep_for("long", 3_600)


@task
async def idle(params: None, ctx: TaskContext) -> None:
    """Make no durable call."""
    ENTERED.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as left:
        SEEN.append(f"{type(left).__name__} {left}")
        raise
    finally:
        SEEN.append("tidied up")


@task
async def busy(params: None, ctx: TaskContext) -> str:
    """Make another call after the cancellation, and ignore its error."""
    await ctx.step("before", SEEN.append, "before", as_type=Any)
    ENTERED.set()
    await asyncio.to_thread(LEAVE.wait)
    for attempt in range(2):
        try:
            await ctx.step("after", SEEN.append, "the step", as_type=Any)
            await ctx.step("more", SEEN.append, "one more", as_type=Any)
        except Exception:  # noqa: BLE001 - what people write
            SEEN.append("an exception")
        except Suspended as left:
            SEEN.append(f"{left.reason} {attempt}")
    return "done"


@task
def busy_in_a_thread(params: None, ctx: SyncTaskContext) -> str:
    ENTERED.set()
    LEAVE.wait()
    try:
        ctx.heartbeat()
        ctx.step("after", SEEN.append, "the step", as_type=Any)
    except Exception:  # noqa: BLE001 - what people write
        SEEN.append("an exception")
    except Suspended as left:
        SEEN.append(left.reason)
        raise
    return "done"


TASKS: list[Any] = [sleeper, idle, busy, busy_in_a_thread]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    SEEN.clear()
    ENTERED.clear()
    LEAVE.clear()
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app
    LEAVE.set()


def tasks(db: psycopg.Connection) -> list[tuple[Any, ...]]:
    query = "select state::text, claim % 2, result from durable.tasks order by task_id"
    return db.execute(query).fetchall()


async def test_never_starts_a_task_that_was_cancelled(app: AsyncDurable) -> None:
    handle = await app.spawn(sleeper)
    assert await app.cancel(handle, reason="sold out") is True
    async with app.worker() as worker:
        assert await worker.drain() == 0
    with pytest.raises(TaskCancelled, match="sold out"):
        await handle.result()
    assert SEEN == []


async def test_never_wakes_a_task_that_was_cancelled_while_it_slept(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(sleeper)
    async with app.worker() as worker:
        await worker.drain()
        assert await handle.state() == "sleeping"
        assert await app.cancel(handle) is True
        assert await worker.drain() == 0
    assert db.execute("select count(*) from durable.waits").fetchone() == (0,)
    assert SEEN == ["began"]


async def test_ends_the_coroutine_of_a_task_that_makes_no_call(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(idle)
    async with app.worker(lease=1):
        await asyncio.to_thread(ENTERED.wait, 10)
        await app.cancel(handle)
        await aeventually(lambda: asyncio.sleep(0, "tidied up" in SEEN))
    assert SEEN == ["CancelledError cancelled", "tidied up"]
    assert tasks(db) == [("cancelled", 0, None)]


async def test_ends_the_coroutine_of_a_task_that_is_retried_at_once(
    app: AsyncDurable,
) -> None:
    """The worker that runs it again was not notified of its end."""
    handle = await app.spawn(idle)
    async with app.worker(shutdown_timeout=0):
        await asyncio.to_thread(ENTERED.wait, 10)
        ENTERED.clear()
        await app.cancel(handle)
        await app.retry(handle)
        await asyncio.to_thread(ENTERED.wait, 10)
        await aeventually(lambda: asyncio.sleep(0, "tidied up" in SEEN), deadline=5)
        assert SEEN == ["CancelledError lease lost", "tidied up"]
        assert await handle.state() == "running"


async def test_ends_a_task_at_its_next_call_and_keeps_nothing_of_it(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(busy)
    async with app.worker() as worker:
        await asyncio.to_thread(ENTERED.wait, 10)
        await app.cancel(handle)
        LEAVE.set()
        await worker.drain()
    assert SEEN == ["before", "the step", "cancelled 0", "cancelled 1"]
    assert tasks(db) == [("cancelled", 0, None)]
    saved = db.execute("select name from durable.checkpoints").fetchall()
    assert saved == [("before",)]


async def test_ends_a_synchronous_task_in_the_same_way(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(busy_in_a_thread)
    async with app.worker() as worker:
        await asyncio.to_thread(ENTERED.wait, 10)
        await app.cancel(handle)
        LEAVE.set()
        await worker.drain()
    assert SEEN == ["cancelled"]
    assert tasks(db) == [("cancelled", 0, None)]


async def test_does_not_change_finished_tasks(app: AsyncDurable) -> None:
    handle = await app.spawn(busy)
    LEAVE.set()
    async with app.worker() as worker:
        await worker.drain()
    assert await app.cancel(handle) is False
    assert await handle.result(0) == "done"


def claimed(db: psycopg.Connection, name: str = "x") -> dict[str, Any]:
    db.execute("select durable.spawn('default', %s)", [name])
    claim = "select task_id::text, claim from durable.claim_tasks('default', 'me')"
    row = db.execute(claim).fetchone()
    assert row is not None
    return {"task_id": row[0], "claim": row[1]}


@pytest.mark.parametrize(
    ("call", "more"),
    [
        ("save_checkpoints('default', %s)", {"name": "a", "value": 1}),
        ("complete_tasks('default', %s)", {"result": 1}),
        ("fail_tasks('default', %s)", {"error": {"type": "E", "message": ""}}),
        ("suspend_tasks('default', %s)", {"waits": [{"name": "$s", "seconds": 9}]}),
        ("poll_waits('default', %s)", {"waits": [{"name": "$s", "seconds": 9}]}),
        ("release_tasks('default', %s)", {}),
        ("extend_leases('default', %s)", {}),
    ],
)
def test_refuses_every_write_of_a_cancelled_claim(
    db: psycopg.Connection, call: str, more: dict[str, Any]
) -> None:
    own, neighbour = claimed(db), claimed(db)
    db.execute("select durable.cancel_task('default', %s)", [own["task_id"]])
    said = db.execute(
        f"select task_id::text, outcome from durable.{call}",
        [json.dumps([own | more, neighbour | more])],
    ).fetchall()
    outcomes: dict[str, str] = dict(said)
    assert outcomes[own["task_id"]] == "cancelled"
    assert outcomes[neighbour["task_id"]] in {"ok", "suspended", "waiting"}
    query = "select count(*) from durable.checkpoints where task_id = %s"
    assert db.execute(query, [own["task_id"]]).fetchone() == (0,)
    assert tasks(db)[0] == ("cancelled", 0, None)


@pytest.mark.parametrize(
    "call",
    [
        "sleep_until('default', %s, %s, '$s', '2999-01-01')",
        "await_event('default', %s, %s, '$e', 'packed')",
        "await_tasks('default', %s, %s, '$j', '{}')",
        'spawn_children(\'default\', %s, %s, \'[{"name": "$c", "task": "x"}]\')',
        "emit_from_task('default', %s, %s, '$e', 'packed')",
    ],
)
def test_refuses_every_call_of_a_cancelled_claim(
    db: psycopg.Connection, call: str
) -> None:
    own = claimed(db)
    db.execute("select durable.cancel_task('default', %s)", [own["task_id"]])
    with pytest.raises(psycopg.Error) as refusal:
        db.execute(f"select durable.{call}", [own["task_id"], own["claim"]])
    assert refusal.value.sqlstate == TaskCancelled.code
    assert len(tasks(db)) == 1
    emitted = "select count(*) from durable.events where emitted_at is not null"
    assert db.execute(emitted).fetchone() == (0,)


async def test_a_waiting_client_gets_the_cancellation(app: AsyncDurable) -> None:
    handle = await app.spawn(sleeper)
    waiting = asyncio.create_task(handle.result(timeout=10))
    await asyncio.sleep(0)
    await app.cancel(handle, reason="enough")
    with pytest.raises(TaskCancelled, match="enough"):
        await waiting


async def test_cancels_within_the_callers_transaction_from_sql(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(sleeper)
    with db.transaction(force_rollback=True):
        db.execute("select durable.cancel_task('default', %s)", [handle.task_id])
        assert tasks(db)[0][0] == "cancelled"
    eventually(lambda: tasks(db)[0][0] == "pending")
