"""Workers get nothing of a paused queue or name, and start at once when it resumes."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import (
    Actor,
    AsyncDurable,
    Durable,
    TaskCancelled,
    TaskContext,
    UnknownQueue,
    task,
)
from tests.support.clock import Clock
from tests.support.stage import Stage
from tests.support.wait import aeventually
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]

IDLE = """
select from pg_locks
where locktype = 'advisory' and mode = 'ExclusiveLock' and granted
  and database = (select oid from pg_database where datname = current_database())
  and classid::bigint = hashtext('durable.work')::bigint & 4294967295
"""
CLAIM = "select name from durable.claim_tasks('default', 'w', null, 10)"


@task
async def mail(params: None, ctx: Context) -> str:
    return "sent"


@task
async def other(params: None, ctx: Context) -> str:
    return "done"


async def test_resuming_starts_an_idle_worker_that_polls_once_an_hour(
    dsn: str, db: psycopg.Connection
) -> None:
    async def is_idle() -> bool:
        return db.execute(IDLE).fetchone() is not None

    async with working(dsn, mail, poll=3600) as (app, worker):
        assert await app.pause_queue()
        assert not await app.pause_queue()
        sent = await app.spawn(mail)
        await worker.drain()
        await aeventually(is_idle)
        assert await sent.state() == "pending"
        assert await app.resume_queue()
        assert not await app.resume_queue()
        assert await sent.result(timeout=10) == "sent"


async def test_pauses_one_name_while_others_go_on(
    dsn: str, db: psycopg.Connection
) -> None:
    async with working(dsn, mail, other, poll=3600) as (app, worker):
        assert await app.pause_queue(task=mail)
        sent, done = await app.spawn(mail), await app.spawn(other)
        assert await done.result(timeout=10) == "done"
        await worker.drain()
        assert await sent.state() == "pending"
        assert (await app.queue_stats()).paused_names.keys() == {"mail"}
        assert await app.resume_queue(task="mail")
        assert await sent.result(timeout=10) == "sent"


async def test_a_running_task_goes_on_until_it_suspends(dsn: str) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @task
    async def patient(params: None, ctx: Context) -> str:
        started.set()
        await may_end.wait()
        await ctx.step("after", str.upper, "x")
        return await ctx.await_event("go", as_type=str)

    async with working(dsn, patient, poll=3600) as (app, worker):
        handle = await app.spawn(patient)
        await asyncio.wait_for(started.wait(), 10)
        await app.pause_queue()
        may_end.set()
        await worker.drain()
        assert await handle.state() == "sleeping"
        await app.emit_event("go", "gone")
        await worker.drain()
        assert await handle.state() == "pending"
        assert [e.name for e in await handle.history() if e.kind == "step"] == ["after"]
        await app.resume_queue()
        assert await handle.result(timeout=10) == "gone"


async def test_deadlines_expire_in_a_paused_queue(dsn: str, clock: Clock) -> None:
    async with working(dsn, mail) as (app, worker):
        await app.pause_queue()
        late = await app.spawn(mail, start_timeout=60)
        clock.advance(61)
        await worker.drain()
        with pytest.raises(TaskCancelled, match="start_timeout"):
            await late.result(timeout=10)


def test_a_pause_neither_waits_for_claims_nor_they_for_it(stage: Stage) -> None:
    """A claim that does not see the pause yet may still have its tasks."""
    stage.db.spawn()
    stage.db.spawn()
    worker, operator = stage.session(), stage.session()
    assert len(worker.claim(batch_size=1)) == 1
    assert operator.value("select durable.pause_queue('default')") is True
    assert len(stage.db.claim(batch_size=1)) == 1
    operator.commit()
    assert stage.db.claim(batch_size=1) == []
    worker.commit()


def test_two_operators_pause_once(stage: Stage) -> None:
    one, other = stage.session(), stage.session()
    pause = "select durable.pause_queue('default', 'mail')"
    assert one.value(pause) is True
    second = other.waiting(other.value, pause)
    one.commit()
    assert second.result() is False
    other.commit()


def test_says_who_paused_what(dsn: str, db: psycopg.Connection) -> None:
    with Durable(dsn) as app:
        app.pause_queue(identity={"user": "ada"})
        app.pause_queue(task="mail")
        stats = app.queue_stats()
        assert stats.paused is not None
        assert stats.paused.by == Actor(user=db.info.user, identity={"user": "ada"})
        assert stats.paused_names["mail"].by == Actor(user=db.info.user)
        assert str(stats.paused).endswith(f'by {{"user": "ada"}} role {db.info.user}')


async def test_refuses_an_unknown_queue(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        with pytest.raises(UnknownQueue):
            await app.pause_queue("nowhere")
        with pytest.raises(UnknownQueue):
            await app.resume_queue("nowhere")
