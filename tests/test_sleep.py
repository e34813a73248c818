"""A task sleeps as long as it was told, through crashes and for months."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from durable import AsyncDurable, Retry, SyncTaskContext, TaskContext, TaskFailed, task
from tests.support.clock import Clock

DAY = timedelta(days=1)
CALLS: list[str] = []


@task
async def year(params: None, ctx: TaskContext) -> list[datetime]:
    """Sleep for a month, twelve times."""
    woken = [await ctx.now()]
    for month in range(12):
        await ctx.step("note", CALLS.append, f"month {month}", as_type=Any)
        await ctx.sleep_for("month", timedelta(days=30))
        woken.append(await ctx.now())
    return woken


@task
async def until(moment: datetime, ctx: TaskContext) -> str:
    await ctx.sleep_until("then", moment)
    return "awake"


@task
def in_a_thread(days: int, ctx: SyncTaskContext) -> int:
    ctx.sleep_for("long", timedelta(days=days))
    return ctx.attempt


@task(max_attempts=2, retry=Retry.fixed(0))
async def fails_after(params: None, ctx: TaskContext) -> int:
    CALLS.append(f"attempt {ctx.attempt}")
    await ctx.sleep_for("day", DAY)
    if ctx.attempt == 1:
        raise ValueError
    return ctx.attempt


class Lengths(BaseModel):
    seconds: list[float]


@task
async def at_once(lengths: Lengths, ctx: TaskContext) -> list[str]:
    async def sleep(length: float) -> str:
        await ctx.sleep_for(f"{length}", length)
        CALLS.append(f"{length}")
        return f"{length}"

    return await asyncio.gather(*map(sleep, lengths.seconds))


@task(max_attempts=1)
async def bad(how: str, ctx: TaskContext) -> None:
    lengths: dict[str, Any] = {"negative": -1, "nan": float("nan"), "none": None}
    if how in lengths:
        await ctx.sleep_for("x", lengths[how])
    await ctx.sleep_until("x", datetime(2030, 1, 1))


TASKS: list[Any] = [year, until, in_a_thread, fails_after, at_once, bad]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    CALLS.clear()
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


async def test_sleeps_for_months(app: AsyncDurable, clock: Clock) -> None:
    handle, start = await app.spawn(year), clock.now()
    for _ in range(12):
        await drain(app)
        assert await handle.state() == "sleeping"
        clock.advance(timedelta(days=29, hours=23))
        assert await drain(app) == 0
        clock.advance(timedelta(hours=1))
    await drain(app)
    woken = await handle.result(0)
    assert [f"month {month}" for month in range(12)] == CALLS
    for month, moment in enumerate(woken):
        assert moment.tzinfo is not None
        assert timedelta(0) <= moment - start - month * timedelta(days=30) < DAY
    assert (await app.get_result(handle)).attempt == 1


async def test_sleeps_until_a_moment_in_any_time_zone(
    app: AsyncDurable, clock: Clock
) -> None:
    clock.set(datetime(2030, 3, 30, 12, tzinfo=UTC))  # a clock change occurs that night
    tokyo = timezone(timedelta(hours=9))
    handle = await app.spawn(until, datetime(2030, 4, 1, 9, tzinfo=tokyo))
    await drain(app)
    clock.set(datetime(2030, 3, 31, 23, 59, 59, tzinfo=UTC))
    assert await drain(app) == 0
    clock.set(datetime(2030, 4, 1, 0, 0, 1, tzinfo=UTC))
    await drain(app)
    assert await handle.result(0) == "awake"


async def test_does_not_sleep_until_a_past_moment(app: AsyncDurable) -> None:
    handle = await app.spawn(until, datetime(2000, 1, 1, tzinfo=UTC))
    assert await drain(app) == 1
    assert await handle.result(0) == "awake"


async def test_occupies_no_worker_while_it_sleeps(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    sleepers = await app.spawn_many(in_a_thread, [1] * 50)
    async with app.worker(concurrency=1) as worker:
        assert await worker.drain() == 50
        awake = await app.spawn(until, datetime(2000, 1, 1, tzinfo=UTC))
        assert await awake.result(timeout=10) == "awake"
    assert await sleepers[0].state() == "sleeping"
    row = db.execute("select coalesce(sum(running), 0) from durable.workers").fetchone()
    assert row == (0,)


async def test_wakes_a_synchronous_task(app: AsyncDurable, clock: Clock) -> None:
    handle = await app.spawn(in_a_thread, 400)
    await drain(app)
    clock.advance(timedelta(days=400))
    await drain(app)
    assert await handle.result(0) == 1


async def test_does_not_sleep_again_in_the_next_attempt(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(fails_after)
    await drain(app)
    clock.advance(DAY)
    assert await drain(app) == 2
    assert await handle.result(0) == 2
    assert CALLS == ["attempt 1", "attempt 1", "attempt 2"]


async def test_sleeps_concurrently_in_branches(app: AsyncDurable, clock: Clock) -> None:
    lengths = Lengths(seconds=[300, 100, 200])
    handle = await app.spawn(at_once, lengths)
    for _ in range(3):
        await drain(app)
        clock.advance(100)
    await drain(app)
    assert await handle.result(0) == ["300.0", "100.0", "200.0"]
    assert list(dict.fromkeys(CALLS)) == ["100.0", "200.0", "300.0"]


async def test_sleeps_for_zero_seconds(app: AsyncDurable) -> None:
    handle = await app.spawn(at_once, Lengths(seconds=[0]))
    async with app.worker():
        assert await handle.result(timeout=10) == ["0.0"]


async def test_wakes_soon_after_it_is_due(app: AsyncDurable) -> None:
    handle = await app.spawn(at_once, Lengths(seconds=[0.05]))
    async with app.worker(poll=60):
        assert await handle.result(timeout=10) == ["0.05"]


@pytest.mark.parametrize("how", ["negative", "nan", "none", "naive"])
async def test_refuses_invalid_durations(app: AsyncDurable, how: str) -> None:
    handle = await app.spawn(bad, how)
    await drain(app)
    with pytest.raises(TaskFailed, match="InvalidArgument"):
        await handle.result(0)
