"""durable reports what has happened to a task, and nothing that it does not know."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from durable import (
    Actor,
    AsyncTaskHandle,
    Durable,
    HistoryEntry,
    NotFound,
    Retry,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.clock import Clock
from tests.support.working import working


def refuse() -> None:
    raise LookupError("no such order")


@task
async def child(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


@task(max_attempts=4, retry=Retry.fixed(60))
async def eventful(params: None, ctx: TaskContext) -> str:
    await ctx.step("one", str, "one")
    try:
        await ctx.step("two", refuse)
    except LookupError:
        await ctx.emit_event("told", 7)
    if ctx.attempt == 1:
        raise ConnectionError("gone")
    await ctx.sleep_for("nap", 5)
    try:
        await ctx.await_event("answer", timeout=timedelta(seconds=30))
    except TimeoutError:
        await ctx.spawn("helper", child)
    await ctx.now()
    return "done"


def told(entries: list[HistoryEntry], start: datetime) -> list[tuple[Any, ...]]:
    return [
        (
            None if entry.at is None else round((entry.at - start).total_seconds()),
            entry.kind,
            entry.name,
            entry.attempt,
        )
        for entry in entries
    ]


async def test_reports_the_whole_life_of_a_task_in_order(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    """It fails, loses its lease, times out, spawns a child, and completes."""
    start = clock.now()
    async with working(dsn, eventful, child) as (app, worker):
        handle = await app.spawn(eventful, idempotency_key="k")
        await worker.drain()
        entries = await handle.history()
        assert told(entries, start) == [
            (0, "spawned", "eventful", None),
            (0, "started", None, 1),
            (0, "step", "one", 1),
            (0, "step_failed", "two", 1),
            (0, "event_emitted", "$emit:told", 1),
            (0, "attempt_failed", None, 1),
            (None, "retrying", None, 2),
        ]
        assert entries[0].detail == {"idempotency_key": "k"}
        assert entries[3].said == "LookupError: no such order"
        assert entries[5].said == "ConnectionError: gone"
        assert entries[5].worker is not None
        assert (
            entries[6]
            .detail["until"]
            .startswith((start + timedelta(seconds=60)).isoformat())
        )
        clock.advance(61)
        claim = "select claim from durable.claim_tasks('default', 'dying', null, 1, 10)"
        assert db.execute(claim).fetchone() is not None
        assert (await handle.history())[-1].kind == "running"
        clock.advance(11)
        db.execute("select durable.expire_leases('default')")
        await worker.drain()
        clock.advance(6)
        await worker.drain()
        waiting = (await handle.history())[-1]
        assert (waiting.kind, waiting.name) == ("waiting", "$event:answer")
        assert waiting.detail["event"] == "answer"
        clock.advance(31)
        await worker.drain()
        assert await handle.result(timeout=10) == "done"
        entries = await handle.history()
        assert told(entries, start)[5:] == [
            (0, "attempt_failed", None, 1),
            (72, "lease_lost", None, 2),
            (78, "slept", "$sleep:nap", 3),
            (109, "timed_out", "$event:answer", 3),
            (109, "child_spawned", "$spawn:helper", 3),
            (109, "recorded", "$now", 3),
            (109, "completed", None, 3),
        ]
        assert entries[6].worker == "dying"
        assert entries[6].said.startswith("$LeaseExpired: ")
        assert entries[9].task_id is not None
        below = app.handle(entries[9].task_id, queue=entries[9].queue)
        assert await below.state() == "sleeping"
        spawned = (await below.history())[0]
        assert spawned.detail == {"parent_task_id": str(handle.task_id)}


async def test_reports_who_ended_a_task(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    @task(max_attempts=1)
    async def parent(ends: str, ctx: TaskContext) -> None:
        await ctx.spawn("child", child)
        if ends == "badly":
            raise ValueError("badly")
        await ctx.await_event("never")

    async def ends(handle: AsyncTaskHandle[Any]) -> dict[str, Any]:
        last = (await handle.history())[-1]
        assert last.at is not None
        return {"kind": last.kind, "by": last.by, **last.detail["error"]}

    async with working(dsn, parent, child) as (app, worker):
        failed = await app.spawn(parent, "badly")
        late = await app.spawn(parent, "late", execution_timeout=60)
        stopped = await app.spawn(parent, "stopped")
        await worker.drain()
        (child_id,) = [
            entry.detail["task_id"]
            for entry in await failed.history()
            if entry.kind == "child_spawned"
        ]
        await app.cancel(stopped, reason="enough")
        clock.advance(61)
        db.execute("select durable.expire_tasks('default')")
        assert await ends(failed) == {
            "kind": "failed",
            "by": None,
            "type": "ValueError",
            "message": "badly",
        }
        cascaded = await ends(app.handle(child_id))
        above = Actor(queue="default", task_id=failed.task_id)
        assert (cascaded["kind"], cascaded["by"]) == ("cancelled", above)
        assert (await ends(late))["type"] == "$DeadlineExceeded"
        assert (await ends(late))["by"] == Actor(limit="execution_timeout")
        assert await ends(stopped) == {
            "kind": "cancelled",
            "by": Actor(user=db.info.user),
            "type": "$Cancelled",
            "message": "enough",
        }
        await app.retry(stopped)
        await worker.drain()
        kinds = [entry.kind for entry in await stopped.history()]
        assert kinds.count("attempt_cancelled") == 1
        (started,) = [e for e in await stopped.history() if e.kind == "started"]
        assert started.attempt == 2


async def test_exports_what_a_replay_needs(dsn: str) -> None:
    async with working(dsn, eventful, child) as (app, worker):
        handle = await app.spawn(eventful, headers={"tenant": 7})
        await worker.drain()
        exported = await handle.export_history()
        assert json.loads(json.dumps(exported)) == exported
        assert await app.export_history(handle.task_id) == exported
        checkpoints = exported.pop("checkpoints")
        assert exported == {
            "version": 1,
            "queue": "default",
            "task_id": str(handle.task_id),
            "name": "eventful",
            "params": None,
            "headers": {"tenant": 7},
            "attempt": 2,
        }
        assert [each["name"] for each in checkpoints] == ["one", "two", "$emit:told"]
        one, two, _ = checkpoints
        assert one == {
            "name": "one",
            "position": 1,
            "after": 0,
            "state": "done",
            "value": "one",
            "attempt": 1,
            "order": 1,
        }
        assert two["state"] == "failed"
        assert two["value"]["message"] == "no such order"


async def test_raises_for_an_unknown_task(dsn: str) -> None:
    async with working(dsn, child) as (app, _):
        nobody = app.handle(uuid4())
        for call in (nobody.history, nobody.export_history):
            with pytest.raises(NotFound):
                await call()


def test_returns_histories_to_synchronous_code(dsn: str) -> None:
    @task(max_attempts=1)
    async def fails(params: None, ctx: TaskContext) -> None:
        raise ValueError("no\nway")

    with Durable(dsn, tasks=[fails]) as app, app.worker():
        handle = app.spawn(fails)
        with pytest.raises(TaskFailed):
            handle.result(timeout=10)
        assert [entry.kind for entry in handle.history()] == [
            "spawned",
            "started",
            "failed",
        ]
        assert handle.history()[-1].said == "ValueError: no way"
