"""Every task that waits for an event gets it, and none misses it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from durable import (
    AsyncDurable,
    AsyncTaskHandle,
    Retry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually

DAY = timedelta(days=1)


class Slip(BaseModel):
    carrier: str


class Case(BaseModel):
    """What `hear` waits for, and for how long."""

    events: list[str]
    timeout: float | None = None


@task
async def hear(case: Case, ctx: TaskContext) -> list[Any]:
    heard: list[Any] = []
    for event in case.events:
        try:
            heard.append(await ctx.await_event(event, timeout=case.timeout))
        except TimeoutError:
            heard.append("timed out")
    return heard


@task(max_attempts=2, retry=Retry.fixed(0))
async def fail_after(event: str, ctx: TaskContext) -> list[Any]:
    heard = await ctx.await_event(event)
    if ctx.attempt == 1:
        raise ValueError
    return [heard, ctx.attempt]


@task(max_attempts=5)
async def give_up(event: str, ctx: TaskContext) -> None:
    await ctx.await_event(event, timeout=60)


@task
async def typed(params: None, ctx: TaskContext) -> str:
    slip = await ctx.await_event("slip", as_type=Slip)
    return slip.carrier


@task
def hear_in_a_thread(event: str, ctx: SyncTaskContext) -> Any:
    return ctx.await_event(event, timeout=DAY)


@task
async def tell(event: str, ctx: TaskContext) -> bool:
    first = await ctx.emit_event(event, Slip(carrier="Post"))
    await ctx.sleep_for("once more", 0.001)
    assert await ctx.emit_event(f"{event}, again", [ctx.attempt])
    return first


@task(max_attempts=2, retry=Retry.fixed(0))
async def tell_once(event: str, ctx: TaskContext) -> list[bool]:
    told = [await ctx.emit_event(event, 1), await ctx.emit_event(event, 2)]
    if ctx.attempt == 1:
        raise ValueError
    return told


TASKS: list[Any] = [hear, fail_after, give_up, typed, hear_in_a_thread, tell, tell_once]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def left(db: psycopg.Connection, table: str) -> int:
    row = db.execute(f"select count(*) from durable.{table}").fetchone()
    assert row is not None
    return int(row[0])


async def test_delivers_an_event_emitted_after_the_wait_began(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(hear, Case(events=["packed"]))
    await drain(app)
    assert await handle.state() == "sleeping"
    await app.emit_event("packed", {"by": ["a", None, 1.5]})
    assert await handle.state() == "pending"
    await drain(app)
    assert await handle.result(0) == [{"by": ["a", None, 1.5]}]


async def test_delivers_an_event_emitted_before_the_wait(app: AsyncDurable) -> None:
    await app.emit_event("packed", 7)
    handle = await app.spawn(hear, Case(events=["packed", "packed"]))
    assert await drain(app) == 1
    assert await handle.result(0) == [7, 7]


async def test_delivers_the_first_payload(app: AsyncDurable) -> None:
    handle = await app.spawn(hear, Case(events=["packed"]))
    await drain(app)
    assert await app.emit_event("packed", "first") is True
    assert await app.emit_event("packed", "second") is False
    await drain(app)
    late = await app.spawn(hear, Case(events=["packed"]))
    await drain(app)
    assert await handle.result(0) == await late.result(0) == ["first"]


async def test_delivers_an_event_without_a_payload(app: AsyncDurable) -> None:
    handle = await app.spawn(hear, Case(events=["a", "b"]))
    await app.emit_event("a")
    await drain(app)
    await app.emit_event("b", None)
    await drain(app)
    assert await handle.result(0) == [None, None]


async def test_reads_a_payload_as_the_requested_type(app: AsyncDurable) -> None:
    handle, good = await app.spawn(typed), Slip(carrier="Post")
    await app.emit_event("slip", good)
    await drain(app)
    assert await handle.result(0) == "Post"


async def test_delivers_to_a_synchronous_task(app: AsyncDurable) -> None:
    handle = await app.spawn(hear_in_a_thread, "packed")
    await drain(app)
    await app.emit_event("packed", 7)
    await drain(app)
    assert await handle.result(0) == 7


async def test_waits_for_one_event_after_the_other(app: AsyncDurable) -> None:
    handle = await app.spawn(hear, Case(events=["a", "b"]))
    await drain(app)
    await app.emit_event("b", "B")
    assert await drain(app) == 0
    await app.emit_event("a", "A")
    await drain(app)
    assert await handle.result(0) == ["A", "B"]


async def test_wakes_all_waiting_tasks(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handles = await app.spawn_many(hear, [Case(events=["go"])] * 1_100)
    await drain(app)
    assert (await app.queue_stats()).sleeping == 1_100
    await app.emit_event("go", "went")
    await drain(app)
    assert (await app.queue_stats()).completed == 1_100
    assert await handles[-1].result(0) == ["went"]
    assert left(db, "waits") == left(db, "deferred_work") == 0


async def test_isolates_the_events_of_queues(app: AsyncDurable) -> None:
    await app.create_queue("second")
    handle = await app.spawn(hear, Case(events=["go"]))
    await drain(app)
    await app.emit_event("go", queue="second")
    assert await drain(app) == 0
    assert await handle.state() == "sleeping"


async def test_gives_the_same_payload_to_the_next_attempt(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(fail_after, "packed")
    await drain(app)
    await app.emit_event("packed", "kept")
    db.execute("update durable.events set payload = '\"another\"'")
    async with app.worker():
        assert await handle.result(timeout=10) == ["another", 2]
    db.execute("delete from durable.events")
    again = await app.retry(await failed(app, handle))
    async with app.worker():
        assert (await again.result(timeout=10))[0] == "another"


async def failed(app: AsyncDurable, handle: AsyncTaskHandle[Any]) -> Any:
    """Make a completed task a failed one that may be retried, with its checkpoints."""
    async with await psycopg.AsyncConnection.connect(
        app._application.conninfo, autocommit=True
    ) as connection:
        await connection.execute(
            "update durable.tasks set state = 'failed', result = null, error = '{}'"
            " where task_id = %s",
            [handle.task_id],
        )
    return handle


async def test_a_wait_times_out(app: AsyncDurable, clock: Clock) -> None:
    handle = await app.spawn(hear, Case(events=["packed"], timeout=60))
    await drain(app)
    clock.advance(59)
    assert await drain(app) == 0
    clock.advance(1)
    assert await drain(app) == 1
    assert await handle.result(0) == ["timed out"]


async def test_a_replay_takes_the_branch_of_a_timeout_again(
    app: AsyncDurable, clock: Clock
) -> None:
    """Two timeouts in a row, caught; and the first event comes after all."""
    events = ["never", "late", "last"]
    handle = await app.spawn(hear, Case(events=events, timeout=60))
    await drain(app)
    clock.advance(61)
    await drain(app)
    await app.emit_event("never", "too late")
    clock.advance(61)
    await drain(app)
    await app.emit_event("last", "in time")
    await drain(app)
    assert await handle.result(0) == ["timed out", "timed out", "in time"]


async def test_an_event_wins_over_the_timeout(app: AsyncDurable, clock: Clock) -> None:
    handle = await app.spawn(hear, Case(events=["packed"], timeout=60))
    await drain(app)
    await app.emit_event("packed", 7)
    clock.advance(3_600)
    await drain(app)
    assert await handle.result(0) == [7]


async def test_keeps_the_first_deadline_of_a_wait(
    app: AsyncDurable, clock: Clock, db: psycopg.Connection
) -> None:
    handle = await app.spawn(hear, Case(events=["packed"], timeout=60))
    await drain(app)
    clock.advance(40)
    db.execute(
        "update durable.tasks set state = 'pending', available_at = %s", [clock.now()]
    )
    await drain(app)  # it was woken for nothing, and waits again
    assert await handle.state() == "sleeping"
    clock.advance(21)
    await drain(app)
    assert await handle.result(0) == ["timed out"]


async def test_a_zero_timeout_does_not_wait(app: AsyncDurable) -> None:
    await app.emit_event("there", 7)
    handle = await app.spawn(hear, Case(events=["there", "missing"], timeout=0))
    async with app.worker():
        assert await handle.result(timeout=10) == [7, "timed out"]


async def test_an_uncaught_timeout_fails_the_task(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(give_up, "never")
    await drain(app)
    clock.advance(61)
    await drain(app)
    with pytest.raises(TaskFailed, match="TimeoutError") as failure:
        await handle.result(0)
    assert failure.value.error.type == "TimeoutError"
    assert (await app.get_result(handle)).attempt == 1


async def test_tasks_can_emit_to_other_tasks(app: AsyncDurable) -> None:
    listening = await app.spawn(hear, Case(events=["packed", "packed, again"]))
    telling = await app.spawn(tell, "packed")
    async with app.worker():
        assert await telling.result(timeout=10) is True
        assert await listening.result(timeout=10) == [{"carrier": "Post"}, [1]]


async def test_emits_once_in_any_number_of_runs(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(tell_once, "told")
    async with app.worker():
        assert await handle.result(timeout=10) == [True, False]
    assert db.execute("select payload from durable.events").fetchall() == [(1,)]


async def test_a_rolled_back_event_leaves_nothing(
    app: AsyncDurable, adb: psycopg.AsyncConnection
) -> None:
    handle = await app.spawn(hear, Case(events=["packed"]))
    await drain(app)
    async with adb.transaction(force_rollback=True):
        assert await app.emit_event_with(adb, "packed", "wrong") is True
    assert await drain(app) == 0
    assert await handle.state() == "sleeping"
    async with adb.transaction():
        assert await app.emit_event_with(adb, "packed", "right") is True
        assert await handle.state() == "sleeping"
    await drain(app)
    assert await handle.result(0) == ["right"]


@pytest.mark.parametrize("round_", range(3))
async def test_loses_no_wake_up_when_waits_and_events_race(
    app: AsyncDurable, db: psycopg.Connection, round_: int
) -> None:
    events = [f"event {number}" for number in range(200)]
    jitter = random.Random(round_)

    async def emit(event: str) -> None:
        await asyncio.sleep(jitter.uniform(0, 0.3))  # a race needs time to be run in
        await app.emit_event(event, event)

    async with app.worker(concurrency=32):
        handles, *_ = await asyncio.gather(
            app.spawn_many(hear, [Case(events=[event]) for event in events]),
            *map(emit, events),
        )
        for handle, event in zip(handles, events, strict=True):
            assert await handle.result(timeout=30) == [event]
    assert left(db, "waits") == left(db, "deferred_work") == 0


async def test_delivers_while_workers_start_and_stop(app: AsyncDurable) -> None:
    handles = await app.spawn_many(hear, [Case(events=["a", "b"])] * 20)
    for event in ("a", "b"):
        async with app.worker():

            async def all_sleep() -> bool:
                return (await app.queue_stats()).sleeping == len(handles)

            await aeventually(all_sleep)
        await app.emit_event(event, event)
    await drain(app)
    assert await handles[7].result(0) == ["a", "b"]
