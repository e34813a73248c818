"""Workers keep to the limits of a queue, and start a task as soon as these allow."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    AlreadyFinished,
    AsyncDurable,
    Durable,
    InvalidArgument,
    Rate,
    Retry,
    TaskContext,
    task,
)
from durable.testing import AppFactory
from durable.testing import Clock as MovingClock
from tests.support.wait import aeventually
from tests.support.working import working

Context = TaskContext[Any]
DAY = timedelta(days=1)

running: Counter[str] = Counter()
most: Counter[str] = Counter()
started: list[str] = []
ended: set[str] = set()


@pytest.fixture(autouse=True)
def forget() -> None:
    running.clear()
    most.clear()
    started.clear()
    ended.clear()


@task
async def watched(key: str, ctx: Context) -> str:
    """Count how many run at once."""
    started.append(key)
    for counted in (key, "all"):
        running[counted] += 1
        most[counted] = max(most[counted], running[counted])
    await asyncio.sleep(0.02)
    for counted in (key, "all"):
        running[counted] -= 1
    return key


@task
async def gated(name: str, ctx: Context) -> str:
    started.append(name)
    while name not in ended:  # noqa: ASYNC110 - one event for each would be longer
        await asyncio.sleep(0.005)
    return name


@task
async def resting(params: None, ctx: Context) -> str:
    started.append("rest")
    await ctx.sleep_for("rest", 0.01)
    return "rested"


async def test_workers_keep_to_concurrency(dsn: str) -> None:
    async with (
        working(dsn, watched) as (app, one),
        AsyncDurable(dsn, tasks=[watched]) as other,
        other.worker() as two,
    ):
        await app.create_queue(concurrency=5, partition_concurrency=2)
        handles = [
            await app.spawn(watched, key, partition_key=key)
            for key in ["a", "b", "c", "d"] * 8
        ]
        for handle in handles:
            await handle.result(30)
        await one.drain()
        await two.drain()
    assert most["all"] <= 5
    assert max(most[key] for key in "abcd") == 2


async def test_a_worker_starts_the_next_task_when_one_ends(dsn: str) -> None:
    """It is notified, although it polls only once an hour."""
    async with working(dsn, gated, poll=3600, concurrency=10) as (app, _):
        await app.create_queue(partition_concurrency=1)
        one, two, three = [
            await app.spawn(gated, name, partition_key="k") for name in "abc"
        ]
        await aeventually(_has_started("a"))
        await asyncio.sleep(0.3)  # it rests
        assert started == ["a"]
        for name, handle in (("a", one), ("b", two), ("c", three)):
            ended.add(name)
            assert await handle.result(5) == name
    assert started == ["a", "b", "c"]


async def test_a_worker_begins_the_next_attempt_when_the_rate_lets_it(dsn: str) -> None:
    async with working(dsn, watched, poll=3600) as (app, _):
        await app.create_queue(rate=Rate(2, per=0.4))
        began = time.monotonic()
        handles = await app.spawn_many(watched, ["a"] * 5)
        for handle in handles:
            await handle.result(5)
        assert 0.8 <= time.monotonic() - began < 4


async def test_a_rate_does_not_count_what_continues(dsn: str) -> None:
    async with working(dsn, resting, poll=3600) as (app, _):
        await app.create_queue(rate=Rate(1, per=timedelta(hours=1)))
        handle = await app.spawn(resting)
        assert await handle.result(5) == "rested"
    assert started == ["rest", "rest"]


async def test_a_moved_clock_stops_where_a_rate_opens(
    durable_app: AppFactory[Any], durable_clock: MovingClock
) -> None:
    async with durable_app(tasks=[watched]) as app:
        await app.create_queue(partition_rate=Rate(1, per=DAY))
        await app.spawn_many(watched, ["a", "a", "a"], partition_key="a")
        ran = await durable_clock.advance(days=3)
        days = [(one.at - ran[0].at) // DAY for one in ran if one.state == "completed"]
    assert days == [0, 1, 2]


async def test_priorities_and_partitions_order_what_one_worker_runs(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[watched]) as app:
        await app.create_queue(priorities=True, concurrency=1)
        await app.spawn_many(watched, ["big"] * 4, partition_key="big")
        await app.spawn(watched, "small", partition_key="small")
        await app.spawn(watched, "urgent", priority=1)
        async with app.worker(concurrency=1) as worker:
            await worker.drain()
            await aeventually(_count(6))
    assert started[0] == "urgent"
    assert "small" in started[1:3]


async def test_children_are_in_partitions_of_their_own(
    dsn: str, db: psycopg.Connection
) -> None:
    @task
    async def parent(params: None, ctx: Context) -> str:
        child = await ctx.spawn("c", watched, "x", partition_key="x", priority=2)
        return await ctx.join(child)

    async with working(dsn, parent, watched) as (app, _):
        await app.create_queue(partition_concurrency=1)
        handle = await app.spawn(parent, None, partition_key="p")
        assert await handle.result(5) == "x"
    rows = db.execute(
        "select name, partition_key, priority from durable.task_list order by 1"
    ).fetchall()
    assert rows == [("parent", "p", 0), ("watched", "x", 2)]


@task
async def failing_once(name: str, ctx: Context) -> str:
    started.append(f"{name}{ctx.attempt}")
    await ctx.sleep_for("rest", 0.01)
    if ctx.attempt == 1:
        raise RuntimeError("once")
    return name


async def test_runs_a_partition_in_strict_order(dsn: str) -> None:
    """Whatever the names, while tasks sleep and wait for their next attempt."""
    async with (
        working(dsn, failing_once, resting, concurrency=10) as (app, _),
        AsyncDurable(dsn, tasks=[failing_once, resting]) as other,
        other.worker(),
    ):
        await app.create_queue(partition_order="strict")
        options: dict[str, Any] = {"partition_key": "k", "max_attempts": 2}
        options["retry"] = Retry.fixed(0.01)
        one = await app.spawn(failing_once, "a", **options)
        two = await app.spawn(resting, None, **options)
        three = await app.spawn(failing_once, "b", **options)
        assert await three.result(20) == "b"
        assert (await one.result(0), await two.result(0)) == ("a", "rested")
    assert list(dict.fromkeys(started)) == ["a1", "a2", "rest", "b1", "b2"]


async def test_changes_the_priority_of_a_waiting_task(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[watched]) as app:
        await app.create_queue(priorities=True)
        handles = [await app.spawn(watched, name) for name in "abc"]
        await app.reprioritize(handles[1], -1)
        await handles[2].reprioritize(1)
        async with app.worker(concurrency=1):
            assert await handles[1].result(5) == "b"
        assert started == ["c", "a", "b"]
        with pytest.raises(AlreadyFinished, match="is completed"):
            await handles[1].reprioritize(1)
        for priority in (None, True, 1.5, 2**15):
            with pytest.raises(InvalidArgument, match="priority"):
                await handles[1].reprioritize(priority)  # type: ignore[arg-type]


def test_lists_partitions(dsn: str) -> None:
    with Durable(dsn, tasks=[]) as app:
        app.create_queue(partition_order="strict", partition_rate=Rate(2, per=60))
        for key in "abb":
            app.spawn("anything", partition_key=key)
        app.set_partition_limit("c", concurrency=3, rate=Rate(1, per=0.5))
        a, b, c = app.list_partitions()
        assert (a.partition_key, a.ready, a.running, a.blocked) == ("a", 1, 0, None)
        assert (a.concurrency, a.rate) == (None, None)
        assert (b.ready, c.ready) == (2, 0)
        assert (c.concurrency, c.rate) == (3, Rate(1, per=0.5))
        assert app.list_partitions(limit=1, after="a") == [b]
        assert app.list_partitions(after="c") == []
        with pytest.raises(InvalidArgument, match="limit must be"):
            app.list_partitions(limit=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition_key": ""}, "a partition_key is empty"),
        ({"partition_key": 7}, "a partition_key must be a str"),
        ({"partition_key": "x" * 256}, "a partition_key is 256 bytes long"),
        ({"priority": 2**15}, "priority must be from"),
        ({"priority": 1.5}, "priority must be an int"),
        ({"priority": True}, "priority must be an int"),
        ({"priority": 1}, "neither limits nor priorities"),
        ({"partition_key": "a"}, "neither limits nor priorities"),
    ],
)
def test_refuses_options(dsn: str, options: dict[str, Any], message: str) -> None:
    with Durable(dsn, tasks=[]) as app, pytest.raises(InvalidArgument, match=message):
        app.spawn("anything", **options)


def test_refuses_policies(dsn: str) -> None:
    with Durable(dsn, tasks=[]) as app:
        for starts, per in ((0, 1), (1.5, 1), (True, 1), (1, 0), (1, -1), (1, None)):
            with pytest.raises(InvalidArgument):
                Rate(starts, per=per)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="rate must be a Rate"):
            app.create_queue(rate={"starts": 1, "period": 1})  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="concurrency in policy"):
            app.create_queue(concurrency=0)
        with pytest.raises(InvalidArgument, match="neither limits nor priorities"):
            app.set_partition_limit("a", concurrency=1)
        with pytest.raises(InvalidArgument, match="partition_order in policy"):
            app.create_queue(partition_order="fifo")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="ageing in policy is 0"):
            app.create_queue(ageing=0)
        app.create_queue(ageing=timedelta(minutes=1))
        app.create_queue(partition_rate=Rate(5, per=timedelta(minutes=1)))
        app.set_partition_limit("a", concurrency=1, rate=Rate(2, per=1))
        app.set_partition_limit("a", concurrency=None)


def _has_started(name: str) -> Any:
    async def check() -> bool:
        return name in started

    return check


def _count(number: int) -> Any:
    async def check() -> bool:
        return len(started) == number

    return check
