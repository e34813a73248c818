"""Workers and clients of the version of durable on the path, with a ledger.

    python -m tests.support.rolling worker      works until SIGTERM
    python -m tests.support.rolling client 7    spawns and waits until SIGTERM

A step's effect is a row in public.effects with the version that wrote it. A client
prints its answers, and at the end for how many tasks it got the right result.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg

import durable
from durable import AsyncDurable, AsyncTaskHandle, TaskContext, task

__all__ = ["EFFECTS", "OLD", "RELEASES", "errand", "trip"]

RELEASES: Final = Path(__file__).parents[1] / "releases"
OLD: Final = RELEASES / "durable_postgres-0.2.0-py3-none-any.whl"

EFFECTS: Final = """
create table public.effects (
  task_id uuid, step text, version text, primary key (task_id, step)
)
"""
NOTE: Final = "insert into public.effects values (%s, %s, %s)"
VERSION: Final = "old" if ".whl" in durable.__file__ else "new"

Context: TypeAlias = TaskContext[psycopg.AsyncConnection]


@contextlib.asynccontextmanager
async def ledger() -> AsyncIterator[psycopg.AsyncConnection]:
    """Open the connection through which steps have their effects."""
    database = os.environ["DURABLE_DATABASE_URL"]
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True
    ) as connection:
        yield connection


@task(max_attempts=1)
async def errand(number: int, ctx: Context) -> int:
    await ctx.step("run", note, ctx, "run")
    return 2 * number


@task(max_attempts=1)
async def trip(params: dict[str, Any], ctx: Context) -> int:
    """Make every kind of call, and wait for an event in between."""
    await ctx.step("set out", note, ctx, "set out")
    child = await ctx.spawn("errand", errand, params["number"])
    await ctx.sleep_for("nap", 0.01)
    await ctx.sleep_until("then", await ctx.now() + timedelta(seconds=0.01))
    await ctx.await_event(params["event"])
    brought = await ctx.join(child)
    await ctx.step("arrive", note, ctx, "arrive")
    await ctx.emit_event(f"arrived:{ctx.task_id}", brought)
    return brought


async def note(ctx: Context, step: str) -> None:
    """Have an effect; a second one is an error, and an error fails the task."""
    await ctx.state.execute(NOTE, [ctx.task_id, step, VERSION])


async def work() -> None:
    async with AsyncDurable(tasks=[trip, errand], lifespan=ledger) as app:
        await app.run_worker(concurrency=20, poll=0.1)


async def ask(name: str) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    arrived = 0
    async with AsyncDurable(tasks=[trip, errand]) as app:
        for turn in itertools.count():
            try:
                arrived += await one_turn(app, name, turn)
            except Exception as error:  # noqa: BLE001 - the test reads it
                print("REFUSED", type(error).__name__, error)
            if over.is_set():
                break
    print("ARRIVED", arrived)


async def one_turn(app: AsyncDurable, name: str, turn: int) -> int:
    """Spawn tasks alone and together, emit what they wait for, and await their end."""
    event = f"{name}:{turn}"
    first = await app.spawn(trip, {"number": 1, "event": event}, idempotency_key=event)
    await app.emit_event(event)
    more = await app.spawn_many(
        trip, [{"number": number, "event": event} for number in (2, 3)]
    )
    handles: list[AsyncTaskHandle[int]] = [first, *more]
    brought = [await handle.result(timeout=60) for handle in handles]
    return sum(found == 2 * number for number, found in enumerate(brought, 1))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    moment = datetime.now(UTC).isoformat()
    logging.getLogger("tests").info("durable is %s, at %s", VERSION, moment)
    asyncio.run(work() if sys.argv[1] == "worker" else ask(sys.argv[2]))
