"""A full queue refuses spawns, and takes them again once workers have drained it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import IsolationLevel

from durable import AsyncDurable, Durable, InvalidArgument, QueueFull, TaskContext, task
from tests.support.stage import OLD_SNAPSHOTS, Stage
from tests.support.wait import aeventually
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]

SPAWN_MANY_TIMES = """
do $$ begin
  for _i in 1 .. 1200 loop
    begin
      perform durable.spawn('default', 'x');
    exception when sqlstate 'WFFUL' then
      null;
    end;
  end loop;
end $$
"""
MARK_FULL = "update durable.queues set is_full = true where queue = 'default'"


@task
async def quick(params: None, ctx: Context) -> None: ...


async def is_full(app: AsyncDurable, length: int) -> bool:
    return (await app.queue_stats()).ready == length


async def limit(app: AsyncDurable, most: int | None) -> None:
    await app.create_queue(max_length=most)


async def test_refuses_every_way_to_spawn_into_a_full_queue(
    dsn: str, adb: psycopg.AsyncConnection
) -> None:
    async with working(dsn, quick, concurrency=1) as (app, worker):
        await app.pause_queue()
        await limit(app, 2)
        await app.spawn_many(quick, [None] * 2)
        with pytest.raises(QueueFull, match=r'"default" is full: 2 tasks') as refused:
            await app.spawn(quick)
        assert refused.value.hint is not None
        with pytest.raises(QueueFull):
            await app.spawn_many(quick, [None] * 2)
        async with adb.transaction():
            with pytest.raises(QueueFull):
                async with adb.transaction():
                    await app.spawn_with(adb, quick)
        with pytest.raises(QueueFull):
            await asyncio.to_thread(spawn_in_sync_code, dsn)
        assert (await app.queue_stats()).ready == 2
        await app.resume_queue()
        await worker.drain()
        await app.spawn(quick)
        await worker.drain()


def spawn_in_sync_code(dsn: str) -> None:
    with Durable(dsn) as app:
        app.spawn(quick)


async def test_a_worker_that_drains_a_long_queue_lets_spawns_in(dsn: str) -> None:
    """It polls only once an hour, and no spawn counts: maintenance does."""

    async def takes_a_spawn() -> bool:
        try:
            await app.spawn(quick)
        except QueueFull:
            return False
        return True

    async with AsyncDurable(dsn, tasks=[quick]) as app:
        await limit(app, 10_000)
        await app.spawn(quick)
        async with app.worker(poll=3600) as worker:
            await worker.drain()
            async with await psycopg.AsyncConnection.connect(
                dsn, autocommit=True
            ) as db:
                await db.execute(MARK_FULL)
            await aeventually(takes_a_spawn, deadline=60)


def test_overshoots_by_some_percent_without_a_worker(db: psycopg.Connection) -> None:
    db.execute("select durable.create_queue('default', '{\"max_length\": 1000}')")
    db.execute(SPAWN_MANY_TIMES)
    row = db.execute("select ready, is_full from durable.queue_stats('default')")
    ((ready, is_full),) = row.fetchall()
    assert 1000 <= ready <= 1150  # on average 1010
    assert is_full


async def test_a_producer_waits_until_workers_have_made_room(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[quick]) as app:
        await limit(app, 5)
        longest = 0

        async def look() -> None:
            nonlocal longest
            while True:
                longest = max(longest, (await app.queue_stats()).ready)

        looking = asyncio.create_task(look())
        batches: Any = {"batch_size": 5, "on_full": "wait"}
        producing = asyncio.create_task(
            app.spawn_in_batches(quick, [None] * 23, **batches)
        )
        await aeventually(lambda: is_full(app, 5))
        assert not producing.done()
        async with app.worker() as worker:
            assert await producing == 23
            await worker.drain()
        looking.cancel()
        stats = await app.queue_stats()
    assert (stats.completed, stats.ready) == (23, 0)
    assert longest < 10


async def test_a_producer_that_does_not_wait_can_continue(dsn: str) -> None:
    keyed = [(quick, None, {"idempotency_key": f"{n}"}) for n in range(12)]
    async with AsyncDurable(dsn, tasks=[quick]) as app:
        await limit(app, 5)
        with pytest.raises(QueueFull):
            await app.spawn_in_batches(keyed, batch_size=5)
        async with app.worker():
            assert await app.spawn_in_batches(keyed, batch_size=5, on_full="wait") == 7
        with pytest.raises(InvalidArgument, match="on_full is 'drop'"):
            await app.spawn_in_batches(keyed, on_full="drop")  # type: ignore[call-overload]


def test_a_spawn_that_fills_the_queue_makes_no_other_spawn_wait(stage: Stage) -> None:
    stage.db.value("select durable.create_queue('default', '{\"max_length\": 101}')")
    many = json.dumps([{"task": "x"}] * 101)
    spawn_many = "select count(*) from durable.spawn_many('default', %s)"
    filling = stage.session()
    assert filling.value(spawn_many, many) == 101
    assert stage.db.value("select is_full from durable.queues") is None
    stage.db.spawn()
    filling.commit()
    assert stage.db.value("select is_full from durable.queues where is_full") is True


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_spawns_under_an_old_snapshot_do_not_fail_beside_a_change(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.value("select durable.create_queue('default', '{\"max_length\": 101}')")
    client = stage.session(isolation)
    stage.db.rows(f"{MARK_FULL} returning 1")
    client.spawn()
    client.commit()
    late = stage.session(isolation)
    with pytest.raises(psycopg.Error) as refused:
        late.spawn()
    assert refused.value.sqlstate == "WFFUL"


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True])
async def test_refuses_a_limit_that_is_no_count(dsn: str, wrong: Any) -> None:
    async with AsyncDurable(dsn) as app:
        with pytest.raises(InvalidArgument, match="max_length in policy"):
            await limit(app, wrong)
