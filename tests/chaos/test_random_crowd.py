"""Workers of two queues whose tasks talk, spawn and race, while others cancel and fork.

In the end all tasks have finished, no message is lost or read twice, no task survives a
failed or cancelled parent, and every life agrees on which task was first.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from random import Random
from typing import Any, Final

import psycopg
import pytest

from durable import AsyncDurable, TaskContext, task
from durable.errors import DurableError
from tests.chaos.promises import broken
from tests.support.survival import Share, Survived
from tests.support.wait import aeventually

QUEUES: Final = ("default", "far")
FINISHED: Final = """
select count(*) filter (where finished_at is not null), count(*) from durable.tasks
"""
TASKS: Final = "select queue, task_id from durable.tasks order by task_id"
SENT: Final = "select coalesce(sum(sent), 0) from durable.mailboxes"
KEPT: Final = "select count(*) from durable.messages"
READ: Final = """
select count(*), count(distinct value::text) from durable.checkpoints
where starts_with(name, '$recv') and state = 'done' and claim > 0
"""
ORPHANS: Final = """
select from durable.tasks as child
join durable.tasks as parent
  on parent.queue = coalesce(child.parent_queue, child.queue)
  and parent.task_id = child.parent_task_id
where child.finished_at is null and parent.state in ('failed', 'cancelled')
"""


@task
async def walker(way: dict[str, Any], ctx: TaskContext[None]) -> int:
    """Message the parent, spawn children, take the first result, receive messages."""
    random = Random(await ctx.random())
    me = str(ctx.task_id)
    if ctx.parent_task_id is not None:
        with contextlib.suppress(DurableError):  # it may have finished
            await ctx.send(ctx.parent_task_id, "news", f"up {me}", queue=way["home"])
    if way["depth"] == 0:
        with contextlib.suppress(TimeoutError):
            await ctx.recv("news", timeout=0.05)
        return 1
    there = random.choice(QUEUES)
    below = {"depth": way["depth"] - 1, "home": ctx.queue}
    children = await ctx.spawn_many("walker", walker, [below, below], queue=there)
    with contextlib.suppress(DurableError):
        await ctx.send(children[0], "news", f"down {me}", queue=there)
    winner = await ctx.first(*children)
    told = await ctx.step("told", str, winner.task_id)
    with contextlib.suppress(TimeoutError):
        await ctx.recv("news", timeout=0.05)
    assert told == str(winner.task_id)
    with contextlib.suppress(DurableError):  # one may have been cancelled
        return 1 + sum(await ctx.gather(*children))
    return 0


@pytest.mark.slow
async def test_all_tasks_finish_and_no_message_is_lost(
    dsn: str,
    db: psycopg.Connection,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    db.execute("select durable.create_queue('far', '{\"history\": \"full\"}')")
    async with (
        AsyncDurable(dsn, tasks=[walker]) as app,
        app.worker(queues=["default"], poll=0.05),
        app.worker(queues=["far"], poll=0.05),
    ):
        for _ in range(share(quick=12, long=400)):
            queue = random.choice(QUEUES)
            way = {"depth": 3, "home": queue}
            await app.spawn(walker, way, queue=queue)
            known = db.execute(TASKS).fetchall()
            queue, task_id = random.choice(known)
            if random.random() < 0.5:
                await app.cancel(task_id, queue=queue)
            queue, task_id = random.choice(known)
            if random.random() < 0.5:
                await app.fork(app.handle(task_id, walker, queue=queue))
            await asyncio.sleep(random.random() * 0.02)
        await come_to_rest(db)
    for queue in QUEUES:
        assert broken(db, queue) == []
    assert db.execute(ORPHANS).rowcount == 0
    assert db.execute("select from durable.waits").rowcount == 0
    ((sent,), (kept,), (read, texts)) = (
        db.execute(query).fetchall()[0] for query in (SENT, KEPT, READ)
    )
    assert read == texts
    assert sent == kept + read
    survived("messages between tasks of a crowd, none lost", int(sent))
    survived("tasks of a crowd that came to rest", db.execute(TASKS).rowcount)


async def come_to_rest(db: psycopg.Connection) -> None:
    """Wait until all tasks have finished, at least one of them in each minute."""
    finished, tasks = count(db)
    while finished < tasks:
        await aeventually(partial(more_have_finished, db, finished), deadline=60)
        finished, tasks = count(db)


async def more_have_finished(db: psycopg.Connection, finished: int) -> bool:
    return count(db)[0] > finished


def count(db: psycopg.Connection) -> tuple[int, int]:
    ((finished, tasks),) = db.execute(FINISHED).fetchall()
    return finished, tasks
