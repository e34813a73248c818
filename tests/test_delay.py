"""A task may start later, and its start can be moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from durable import AsyncDurable, InvalidArgument, NotFound, TaskContext, task
from durable.testing import AppFactory
from durable.testing import Clock as MovingClock
from tests.support.clock import Clock
from tests.support.wait import aeventually
from tests.support.working import DAY, working

Context = TaskContext[Any]
TOMORROW = datetime.now(UTC) + timedelta(days=1)


@task
async def ready(params: None, ctx: Context) -> str:
    return "ready"


@task
async def parent(params: None, ctx: Context) -> str:
    child = await ctx.spawn("child", ready, delay=timedelta(hours=1))
    return await ctx.join(child)


async def test_a_worker_starts_a_delayed_task_on_time(dsn: str) -> None:
    async with working(dsn, ready, poll=3600) as (app, worker):
        handle = await app.spawn(ready, delay=0.3)
        assert await worker.drain() == 0
        assert await handle.result(10) == "ready"


async def test_a_start_that_is_moved_forward_wakes_a_worker(
    dsn: str, db: psycopg.Connection
) -> None:
    async with working(dsn, ready, poll=3600) as (app, worker):
        handle = await app.spawn(ready, run_at=TOMORROW)
        await worker.drain()
        # refused while the worker listens, which it does until something is due
        awaits = "select durable.register_listener('default', 'work') as is_free"
        undo = "select durable.unregister_listener('default', 'work')"

        async def is_awaited() -> bool:
            (is_free,) = db.execute(awaits).fetchone() or ()
            db.execute(undo)
            return not is_free

        await aeventually(is_awaited)
        assert await handle.reschedule(TOMORROW - timedelta(days=2))
        assert await handle.result(10) == "ready"
        assert not await app.reschedule(handle, TOMORROW)


async def test_reschedules_before_and_after_the_time(dsn: str, clock: Clock) -> None:
    now = clock.now()
    async with working(dsn, ready) as (app, worker):
        earlier, later = await app.spawn_many(ready, [None] * 2, delay=DAY)
        assert await app.reschedule(earlier.task_id, now + timedelta(hours=1))
        assert await app.reschedule(str(later.task_id), now + timedelta(days=2))
        clock.advance(3600)
        assert await worker.drain() == 1
        clock.advance(DAY)
        assert await worker.drain() == 0
        clock.advance(DAY)
        assert await worker.drain() == 1


async def test_a_child_may_start_later(
    durable_app: AppFactory[Any], durable_clock: MovingClock
) -> None:
    async with durable_app(tasks=[parent, ready]) as app:
        handle = await app.spawn(parent)
        began = durable_clock.now()
        ran = await durable_clock.advance(hours=1)
        assert await handle.result(0) == "ready"
    hours = [(one.task, round((one.at - began) / timedelta(hours=1))) for one in ran]
    assert hours == [("parent", 0), ("parent", 1), ("ready", 1)]  # oldest first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": True}, "delay"),
        ({"delay": "soon"}, "delay"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at must be a datetime with a time"),
        ({"run_at": TOMORROW, "delay": 1}, "delay and run_at"),
        ({"run_at": TOMORROW, "deadline": TOMORROW}, "the deadline is"),
    ],
)
async def test_refuses_a_start_that_cannot_be(
    app: AsyncDurable, db: psycopg.Connection, options: Any, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        await app.spawn(ready, **options)
    assert db.execute("select from durable.tasks").rowcount == 0


async def test_refuses_to_reschedule_what_it_cannot(app: AsyncDurable) -> None:
    handle = await app.spawn(ready, deadline=TOMORROW)
    with pytest.raises(InvalidArgument, match="the deadline is"):
        await handle.reschedule(TOMORROW)
    with pytest.raises(InvalidArgument, match="with a time zone"):
        await handle.reschedule(TOMORROW.replace(tzinfo=None))
    with pytest.raises(NotFound):
        await app.reschedule("01b8dac5-b400-7000-8000-000000000000", TOMORROW)


@pytest.fixture
async def app(dsn: str) -> Any:
    async with AsyncDurable(dsn, tasks=[ready]) as app:
        yield app
