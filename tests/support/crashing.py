"""Tasks that kill the worker they run on, and keep a ledger of what they did.

    python -m tests.support.crashing 100     a worker for them that may be killed

A step's effect is a row in public.effects; doing a step twice in one attempt is an
error there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg

from durable import AsyncDurable, SyncTaskContext, TaskContext, task

__all__ = ["LEDGER", "MORTAL", "TASKS", "errand", "journey", "journey_sync", "ledger"]

LEDGER: Final = """
create table public.effects (
  task_id uuid, step text, attempt integer, primary key (task_id, step, attempt)
)
"""
MORTAL: Final = "DURABLE_TEST_MORTAL"  # set where a worker may die
NOTE: Final = "insert into public.effects values (%s, %s, %s)"

Context: TypeAlias = TaskContext[psycopg.AsyncConnection]


@contextlib.asynccontextmanager
async def ledger() -> AsyncIterator[psycopg.AsyncConnection]:
    """Open the connection through which steps have their effects."""
    database = os.environ["DURABLE_DATABASE_URL"]
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True
    ) as connection:
        yield connection


def here(point: str, die_at: str) -> None:
    """Die, if this is the point and the worker is mortal: no code runs after this."""
    if point == die_at and MORTAL in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)


@task
async def errand(die_at: str, ctx: Context) -> str:
    here("in the child", die_at)
    await ctx.step("run", note, ctx, "run", die_at)
    return "brought"


@task
async def journey(die_at: str, ctx: Context) -> list[Any]:
    here("at the start", die_at)
    for name in ("one", "two"):
        await ctx.step(name, note, ctx, name, die_at)
        here(f"after {name}", die_at)
    await ctx.sleep_for("nap", 0.01)
    here("after a sleep", die_at)
    heard = await ctx.await_event("go")
    here("after an event", die_at)
    child = await ctx.spawn("errand", errand, die_at)
    here("after a spawn", die_at)
    brought = await ctx.join(child)
    here("after a join", die_at)
    first = await ctx.emit_event(f"arrived:{ctx.task_id}", brought)
    here("before the end", die_at)
    return [heard, brought, first]


@task
def journey_sync(die_at: str, ctx: SyncTaskContext[Any]) -> str:
    for name in ("one", "two"):
        ctx.step(name, note_sync, ctx.task_id, name, ctx.attempt, die_at)
        here(f"after {name}", die_at)
    return "arrived"


TASKS: Final = (errand, journey, journey_sync)


async def note(ctx: Context, name: str, die_at: str) -> str:
    """Have an effect; the step may be interrupted on either side of it."""
    here(f"before the effect of {name}", die_at)
    await ctx.state.execute(NOTE, [ctx.task_id, name, ctx.attempt])
    here(f"after the effect of {name}", die_at)
    return f"did {name}"


def note_sync(task_id: UUID, name: str, attempt: int, die_at: str) -> None:
    """Do the same from a thread."""
    here(f"before the effect of {name}", die_at)
    with psycopg.connect(os.environ["DURABLE_DATABASE_URL"]) as connection:
        connection.execute(NOTE, [task_id, name, attempt])
    here(f"after the effect of {name}", die_at)


async def main(concurrency: int) -> None:
    async with AsyncDurable(tasks=TASKS, lifespan=ledger) as app:
        await app.run_worker(concurrency=concurrency, lease=2, poll=0.1)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
