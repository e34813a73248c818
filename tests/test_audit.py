"""What operators do is recorded, with the identity that they passed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from durable import AsyncDurable, InvalidArgument, Schedule, TaskContext, task
from tests.support.working import working

ADA = {"user": "ada"}
HOURLY = Schedule.every(timedelta(hours=1), name="hourly")
PAST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, 2, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


@task
async def job(params: None, ctx: TaskContext) -> None:
    """End at once."""


async def act(app: AsyncDurable) -> list[str]:
    """Call each method that changes something once; return the functions called."""
    handle = await app.spawn(job)
    await handle.reschedule(LATER, identity=ADA)
    await app.reschedule(handle, LATER, identity=ADA)
    await handle.cancel(identity=ADA)
    await handle.retry(identity=ADA)
    await handle.fork(identity=ADA)
    await app.cancel_many(all=True, identity=ADA)
    await app.retry_many(all=True, identity=ADA)
    await app.set_version("1", task=handle, identity=ADA)
    await app.promote_version("1", identity=ADA)
    await app.cancel_many(all=True, identity=ADA)
    await app.delete_many(all=True, identity=ADA)
    await app.create_queue(priorities=True, identity=ADA)
    await app.set_partition_limit("k", concurrency=1, identity=ADA)
    await app.pause_queue(identity=ADA)
    await app.resume_queue(identity=ADA)
    await app.create_schedule(job, HOURLY, identity=ADA)
    await app.pause_schedule("hourly", identity=ADA)
    await app.resume_schedule("hourly", identity=ADA)
    await app.trigger_schedule("hourly", identity=ADA)
    await app.backfill_schedule("hourly", *PAST, identity=ADA)
    await app.drop_schedule("hourly", identity=ADA)
    await app.apply_schedules([(job, HOURLY)], identity=ADA)
    await app.drop_queue(identity=ADA)
    return [
        *("reschedule_task", "reschedule_task", "cancel_task", "retry_task"),
        *("fork_task", "cancel_tasks", "retry_tasks", "set_version"),
        *("promote_version", "cancel_tasks", "delete_tasks", "create_queue"),
        *("set_partition_limit", "pause_queue", "resume_queue", "create_schedule"),
        *("pause_schedule", "resume_schedule", "trigger_schedule"),
        *("backfill_schedule", "drop_schedule", "apply_schedules", "drop_queue"),
    ]


async def test_records_every_method_that_changes_something(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute("""select durable.announce_worker('default', 'w', '{"version": "1"}')""")
    async with AsyncDurable(dsn, tasks=[job]) as app:
        acted = await act(app)
        found = await app.list_audit(all_queues=True, identity=ADA)
        assert [entry.action for entry in reversed(found)] == acted
        assert found == await app.list_audit()
        assert {entry.by.user for entry in found} == {db.info.user}
        assert {str(entry.by.identity) for entry in found} == {str(ADA)}
        (last,) = await app.list_audit(action="cancel_tasks", limit=1)
        (first,) = await app.list_audit(action="cancel_tasks", after=last.audit_id)
        assert first.detail == {"tasks": 2, "filter": {"all": True}}


async def test_filters_by_task_and_time(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[job]) as app:
        handle, other = await app.spawn(job), await app.spawn(job)
        await handle.cancel(reason="enough")
        await other.cancel()
        (entry,) = await app.list_audit(task_id=handle.task_id)
        assert (entry.task_id, entry.detail) == (handle.task_id, {"reason": "enough"})
        (last,) = await app.list_audit(since=entry.at + timedelta(milliseconds=1))
        assert last.task_id == other.task_id
        assert await app.list_audit(until=entry.at) == []
        with pytest.raises(InvalidArgument, match="did you mean action"):
            await app.list_audit(actions="cancel_task")  # type: ignore[call-arg]


async def test_records_nothing_of_what_tasks_and_their_clients_do_all_the_time(
    dsn: str, db: psycopg.Connection[Any]
) -> None:
    async with working(dsn, job) as (app, worker):
        handle = await app.spawn(job)
        await app.send(handle, "topic", 1)
        await app.emit_event("event")
        await worker.drain()
        assert await handle.state() == "completed"
    assert db.execute("select count(*) from durable.audit").fetchone() == (0,)
