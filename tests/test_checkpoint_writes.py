"""durable saves every write of a run, or knows that it has not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psycopg

from durable import Retry, TaskContext, task
from durable._db.reconnecting import ReconnectingConnection
from durable._task.checkpoints import CheckpointFlusher, Write
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
    """Its step has the same name, and arrives first."""
    ((task_id,),) = db.execute(SPAWN).fetchall()
    ((former,),) = db.execute(CLAIM, [1e-6]).fetchall()
    db.execute(EXPIRE)
    ((present,),) = db.execute(CLAIM, [60]).fetchall()
    link = ReconnectingConnection(dsn, "flush")
    saving = CheckpointFlusher(link)
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
    assert saved == [(3, present)]  # by the second claim


REFUSE = """
create function public.refuse() returns trigger language plpgsql as $$
begin
  if to_jsonb(new) ->> tg_argv[0] like '%poison%' then
    raise exception 'not this one' using errcode = 'data_exception';
  end if;
  return new;
end $$;
create trigger refuse before insert on durable.checkpoints
  for each row execute function public.refuse('value');
create trigger refuse before update on durable.tasks
  for each row execute function public.refuse('result');
"""


async def test_fails_only_the_task_whose_step_or_end_is_refused(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute(REFUSE)
    kinds = ["good", "step", "good", "end", "good", "good"]
    together = asyncio.Barrier(len(kinds))

    @task(max_attempts=1)
    async def works(kind: str, ctx: TaskContext[Any]) -> str:
        await together.wait()  # so that their steps are saved in one batch
        await ctx.step("step", lambda: "poison" if kind == "step" else "good")
        return "poison" if kind == "end" else "good"

    async with working(dsn, works) as (app, worker):
        handles = await app.spawn_many(works, kinds)
        await worker.drain()
        found = [await handle.snapshot() for handle in handles]
    ends = ["failed" if kind in {"step", "end"} else "completed" for kind in kinds]
    assert [one.state for one in found] == ends
    assert [one.error.type for one in found if one.error] == ["DataException"] * 2


async def test_a_history_that_cannot_be_loaded_fails_only_its_task(
    dsn: str, db: psycopg.Connection
) -> None:
    """Resolved waits become part of the history when it is loaded."""
    db.execute(REFUSE)

    @task(max_attempts=1)
    async def waits(event: str, ctx: TaskContext[Any]) -> str:
        return await ctx.await_event(event, as_type=str)

    events = ["good", "good", "poison", "good"]
    async with working(dsn, waits) as (app, worker):
        handles = await app.spawn_many(waits, events)
        await worker.drain()
        async with asyncio.TaskGroup() as emitting:
            for event in set(events):
                emitting.create_task(app.emit_event(event, event))
        await worker.drain()
        found = [await handle.snapshot() for handle in handles]
    ends = ["failed" if event == "poison" else "completed" for event in events]
    assert [one.state for one in found] == ends


async def test_saves_beside_many_tasks_locked_by_other_sessions(
    dsn: str, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    """Each of them costs the 200 ms lock timeout, now and again."""
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


async def test_saves_a_caught_failure_although_its_batch_failed(
    dsn: str, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    """Otherwise a replay would repeat a step that the task has seen fail."""
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
            await aeventually(is_refused)  # its row is locked by another session
            other.rollback()
        await asyncio.wait({step})
        await ctx.step("after", calls.append, "after", as_type=Any)
        if ctx.attempt == 1:
            raise ConnectionError

    assert (await outcome(dsn, gives_up)).state == "completed"
    assert calls == ["refuse", "hold", "after", "hold"]
