"""durable saves what a run hands in, or knows that it has not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psycopg

from durable import Retry, TaskContext, task
from durable._worker.link import Link
from durable._worker.saving import Saving, Write
from tests.support.wait import aeventually
from tests.support.working import outcome, working

SPAWN = "select task_id from durable.spawn('default', 'twice')"
CLAIM = "select claim from durable.claim_tasks('default', 'w', null, 1, %s)"
EXPIRE = "select durable.expire_leases('default')"
BLOCKED = """
select from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


async def test_refuses_the_former_run_and_not_the_present_one(
    dsn: str, db: psycopg.Connection
) -> None:
    """Its step has the same name, and comes first."""
    ((task_id,),) = db.execute(SPAWN).fetchall()
    ((former,),) = db.execute(CLAIM, [1e-6]).fetchall()
    db.execute(EXPIRE)
    ((present,),) = db.execute(CLAIM, [60]).fetchall()
    link = Link(dsn, "flush")
    saving = Saving(link)
    writes = [
        saving.submit(
            Write(
                "default",
                task_id,
                f'{{"task_id":"{task_id}","claim":{claim},"name":"step","value":{claim}}}',
            )
        )
        for claim in (former, present)
    ]
    assert await asyncio.gather(*writes) == ["lost", "ok"]
    await saving.close()
    await link.close()
    saved = db.execute("select claim, value from durable.checkpoints").fetchall()
    assert saved == [(present, present)]


async def test_saves_beside_many_tasks_whose_rows_are_in_other_hands(
    dsn: str, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    """Each of them costs the 200 ms that it waits, now and again."""
    begun: list[int] = []
    locked = asyncio.Event()
    other = connect()
    other.autocommit = False

    @task
    async def stuck(number: int, ctx: TaskContext[Any]) -> None:
        begun.append(number)
        await locked.wait()
        if number == 0:
            await ctx.spawn_many("children", "nobody's", range(40))

    @task
    async def free(params: None, ctx: TaskContext[Any]) -> str:
        await ctx.spawn("child", "nobody's")
        return "done"

    async with working(dsn, stuck, free, concurrency=50) as (app, worker):
        await app.spawn_many(stuck, range(40))
        await aeventually(lambda: asyncio.sleep(0, len(begun) == 40))
        other.execute("select from durable.tasks for no key update")
        locked.set()
        await aeventually(lambda: asyncio.sleep(0, db.execute(BLOCKED).fetchall()))
        handle = await app.spawn(free)
        assert await handle.result(timeout=6) == "done"
        other.rollback()
        await worker.drain()


async def test_saves_a_caught_failure_though_the_save_it_went_with_was_given_up(
    dsn: str, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    """Else a replay would run the step again that the task has seen fail."""
    calls: list[str] = []
    other = connect()
    other.autocommit = False

    def refuse() -> None:
        calls.append("refuse")
        raise ValueError

    def hold() -> None:
        calls.append("hold")
        if len(calls) == 2:
            other.execute("select from durable.tasks for no key update")

    async def is_blocked() -> bool:
        return bool(db.execute(BLOCKED).fetchall())

    async def is_refused() -> bool:
        return not await is_blocked()

    @task(retry=Retry.fixed(0))
    async def gives_up(params: None, ctx: TaskContext[Any]) -> None:
        with contextlib.suppress(ValueError):
            await ctx.step("refuse", refuse)
        step = asyncio.create_task(ctx.step("hold", hold))
        if ctx.attempt == 1:
            await aeventually(is_blocked)
            step.cancel()
            await aeventually(is_refused)  # its rows are in other hands
            other.rollback()
        await asyncio.wait({step})
        await ctx.step("after", calls.append, "after", as_type=Any)
        if ctx.attempt == 1:
            raise ConnectionError

    assert (await outcome(dsn, gives_up)).state == "completed"
    assert calls == ["refuse", "hold", "after", "hold"]
