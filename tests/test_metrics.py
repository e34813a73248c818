"""What a queue has done and is doing can be read without counting its tasks."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from durable import (
    AsyncDurable,
    InvalidArgument,
    Retry,
    TaskContext,
    UnknownQueue,
    task,
)
from durable.testing import AppFactory, Clock

Apps = AppFactory[Any]


@task(max_attempts=2, retry=Retry.fixed(60))
async def work(fails: bool, ctx: TaskContext) -> None:  # noqa: FBT001
    await ctx.sleep_for("a while", 5)
    if fails:
        raise ValueError("no")


async def test_adds_up_what_happens_as_time_passes(
    durable_app: Apps, durable_clock: Clock
) -> None:
    began = durable_clock.now()
    async with durable_app(tasks=[work]) as app:
        await app.spawn_many(work, [False, False, True])
        await app.spawn("unknown")
        await durable_clock.advance(minutes=3)
        await durable_clock.advance()  # runs maintenance
        (total,) = await app.queue_throughput(
            since=began - timedelta(hours=1), bucket=timedelta(days=1)
        )
        counts = (total.spawned, total.completed, total.failed, total.retried)
        assert counts == (4, 2, 1, 1)
        assert total.run_p50 is not None
        assert 3 < total.run_p50 < 10
        names = await app.queue_throughput(bucket=3600, by_name=True)
        assert {row.name for row in names} == {"work", "unknown"}
        depths = await app.queue_depth(bucket=timedelta(hours=1))
        assert max(depth.ready for depth in depths) == 4
        totals = {row.name: row for row in await app.task_totals()}
        assert (totals["work"].completed, totals["work"].failed) == (2, 1)
        assert totals["unknown"].live == 1
        assert await app.queue_stats() == await app.queue_stats(exact=True)
        assert await app.recount_totals() == 0
        await app.delete_many(states=["completed"])
        await durable_clock.advance(seconds=11)
        await durable_clock.advance()
        assert (await app.queue_stats()).completed == 0
        await durable_clock.advance(days=100)
        await durable_clock.advance()
        assert [row.name for row in await app.queue_throughput(since=began)] == []


async def test_refuses_times_without_a_zone_and_short_buckets(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        with pytest.raises(InvalidArgument, match="time zone"):
            await app.queue_throughput(since=datetime(2030, 1, 1))
        with pytest.raises(InvalidArgument, match="bucket"):
            await app.queue_depth(bucket=1)
        with pytest.raises(UnknownQueue):
            await app.task_totals("nowhere")


async def test_says_how_far_a_list_has_looked(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        oldest = await app.spawn("rare", {"n": 1})
        common = await app.spawn_many("common", [None] * 20)
        page = await app.list_tasks(name="rare", limit=5, scan=10)
        assert page == []
        assert page.next == common[-10].task_id
        assert page.reached is not None
        rest = await app.list_tasks(name="rare", after=page.next)
        assert [info.task_id for info in rest] == [oldest.task_id]
        assert (rest.next, rest.reached) == (None, None)
        full = await app.list_tasks(limit=5)
        assert full.next == full[-1].task_id
        assert await app.count_tasks(name="common") == 20
        assert await app.count_tasks(limit=7) == 7
