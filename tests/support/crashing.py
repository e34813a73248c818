"""Tasks that use every feature, and keep a ledger of their effects.

    python -m tests.support.crashing 100     a worker for them that may be killed

A step's effect is a row in public.effects; doing a step twice under one claim is an
error there. Each call of `reach` can be a failpoint; `saved` marks the point from which
on a step's effect must not be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import psycopg

from durable import AsyncDurable, Retry, SyncTaskContext, TaskContext, task
from durable.testing._failpoints import reach

__all__ = [
    "FAR",
    "LEDGER",
    "LINES",
    "MORTAL",
    "ONCE",
    "STEPS",
    "TASKS",
    "errand",
    "herald",
    "journey",
    "journey_sync",
    "ledger",
    "relay",
    "saved",
    "tour",
    "tour_sync",
    "vigil",
    "work",
]

LEDGER: Final = """
create table public.effects (
  task_id uuid, step text, attempt integer, claim integer,
  primary key (task_id, step, claim)
);
create table public.stumbles (task_id uuid primary key);
"""
MORTAL: Final = "DURABLE_TEST_MORTAL"  # set in a process that is to be killed
NOTE: Final = "insert into public.effects values (%s, %s, %s, %s)"
STUMBLE: Final = "insert into public.stumbles values (%s) on conflict do nothing"
BREAK: Final = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name = 'durable claim'
"""
STEPS: Final = {  # by task: the steps that have effects
    "journey": ["one", "refused", "two", "three"],
    "errand": ["run"],
    "journey-sync": ["one", "two"],
    "vigil": ["one"],
    "herald": ["one"],
    "relay": ["one"],
    "tour": ["one", "paid", "arrived"],
    "tour-sync": ["one", "paid", "arrived"],
}
# Steps in transactions: their effect commits together with the checkpoint.
ONCE: Final = {"paid", "arrived"}
LINES: Final = {  # of the log, by task: each with the step that is saved after it
    "tour": {"sets out": "one", "has a letter": "paid"},
    "tour-sync": {"sets out": "one"},
}
FAR: Final = "-far"  # behind a queue's name: the other queue of a story

Context: TypeAlias = TaskContext[psycopg.AsyncConnection]


class Refused(Exception):
    """What a step raises that always fails."""


class Stumbled(Exception):
    """What fails an attempt, once."""


@contextlib.asynccontextmanager
async def ledger() -> AsyncIterator[psycopg.AsyncConnection]:
    """Open the connection through which steps have their effects."""
    database = os.environ["DURABLE_DATABASE_URL"]
    async with await psycopg.AsyncConnection.connect(
        database, autocommit=True
    ) as connection:
        yield connection


def saved(label: str, step: str) -> str:
    """Return the point at which a task's code knows that a step is saved."""
    return f"{label}: saved {step}"


@task(max_attempts=None, retry=Retry.fixed(0))
async def errand(label: str, ctx: Context) -> str:
    reach(f"{label}: begins")
    await do(label, "run", ctx)
    if ctx.parent_task_id is not None:
        await ctx.send(ctx.parent_task_id, "under way", label)
        reach(f"{label}: has sent")
    return "brought"


@task(max_attempts=None, retry=Retry.fixed(0), replay_check="strict")
async def journey(label: str, ctx: Context) -> list[Any]:
    reach(f"{label}: begins")
    await do(label, "one", ctx)
    first = await ctx.patched("scenic")
    with contextlib.suppress(Refused):
        await ctx.step("refused", note_and_refuse, label, ctx)
    await ctx.step("two", note_sync, label, "two", ctx)
    reach(saved(label, "refused"))  # saved with what came next
    reach(saved(label, "two"))
    await ctx.sleep_for("nap", 0.03)
    reach(f"{label}: has slept")
    heard = await ctx.await_event("go")
    reach(f"{label}: has heard")
    with contextlib.suppress(TimeoutError):
        await ctx.await_event("never", timeout=0.03)
    child = await ctx.spawn("errand", errand, f"{label}'s child")
    reach(f"{label}: has spawned")
    assert await ctx.recv("under way") == f"{label}'s child"
    reach(f"{label}: has received")
    brought = await ctx.join(child)
    reach(f"{label}: has joined")
    first &= await ctx.emit_event(f"arrived:{ctx.task_id}", brought)
    await asyncio.gather(*at_once(label, ctx))
    reach(saved(label, "three"))
    await ctx.heartbeat()
    await stumble_once(ctx)
    reach(f"{label}: ends")
    return [heard, brought, first]


@task(max_attempts=None, retry=Retry.fixed(0), replay_check="strict")
def journey_sync(label: str, ctx: SyncTaskContext[Any]) -> str:
    reach(f"{label}: begins")
    for name in ("one", "two"):
        ctx.step(name, note_sync, label, name, ctx)
        reach(saved(label, name))
    ctx.sleep_for("nap", 0.03)
    heard: str = ctx.await_event("go")
    child = ctx.spawn("errand", errand, f"{label}'s child")
    assert ctx.recv("under way") == f"{label}'s child"
    ctx.emit_event(f"arrived:{ctx.task_id}", ctx.join(child))
    return heard


@task
async def runner(label: str, ctx: Context) -> str:
    return f"{label} ran"


@task(max_attempts=None, retry=Retry.fixed(0))
async def relay(label: str, ctx: Context) -> list[Any]:
    """Spawn work in another queue, and check that the winner is the same each time."""
    reach(f"{label}: begins")
    await do(label, "one", ctx)
    far = f"{ctx.queue}{FAR}"
    brought = await ctx.call("errand", errand, f"{label}'s child", queue=far)
    reach(f"{label}: has called")
    runners = await ctx.spawn_many("runner", runner, ["a", "b", "c"], queue=far)
    here = await ctx.spawn("here", runner, "d")
    winner = await ctx.first(*runners, here)
    reach(f"{label}: knows who was first")
    told = await ctx.step("told", str, winner.task_id)
    await ctx.sleep_for("nap", 0.03)
    ran = await ctx.gather(*runners, here)
    reach(f"{label}: ends")
    return [brought, told == str(winner.task_id), *ran]


@task(max_attempts=None, retry=Retry.fixed(0), replay_check="strict")
async def tour(label: str, ctx: Context) -> list[Any]:
    """Use every feature, and complete in the transaction of the last effect."""
    reach(f"{label}: begins")
    ctx.logger.info("sets out")
    await ctx.send(ctx.task_id, "self", label)
    await ctx.write_stream("news", "sets out")
    await ctx.set_value("progress", "under way")
    await do(label, "one", ctx)
    scenic = await ctx.patched("scenic")
    letter = await ctx.recv("self")
    ctx.logger.info("has a letter")
    paid = await ctx.transaction("paid", note_within, label, "paid", ctx)
    reach(saved(label, "paid"))
    await ctx.write_stream("news", "has paid")
    await ctx.step("speak", speak, label, ctx)
    far = f"{ctx.queue}{FAR}"
    brought = await ctx.call("errand", errand, f"{label}'s child", queue=far)
    reach(f"{label}: has called")
    assert await ctx.recv("under way") == f"{label}'s child"
    runners = await ctx.spawn_many("runner", runner, ["a", "b"], queue=far)
    here = await ctx.spawn("here", runner, "c")
    winner = await ctx.first(*runners, here)
    reach(f"{label}: knows who was first")
    told = await ctx.step("told", str, winner.task_id)
    ran = await ctx.gather(*runners, here)
    assert told == str(winner.task_id)
    await stumble_once(ctx)
    ctx.logger.info("is about to arrive")
    await ctx.write_stream("news", "arrives")
    await ctx.close_stream("news")
    await ctx.set_value("progress", "there")
    reach(f"{label}: is about to arrive")
    seen = [scenic, letter, paid, brought, *ran]
    return await ctx.transaction("arrived", arrive, label, seen, ctx, completes=True)


@task(max_attempts=None, retry=Retry.fixed(0), replay_check="strict")
def tour_sync(label: str, ctx: SyncTaskContext[Any]) -> list[Any]:
    """Do the same in a thread."""
    reach(f"{label}: begins")
    ctx.logger.info("sets out")
    ctx.send(ctx.task_id, "self", label)
    ctx.write_stream("news", "sets out")
    ctx.set_value("progress", "under way")
    ctx.step("one", note_sync, label, "one", ctx)
    reach(saved(label, "one"))
    scenic = ctx.patched("scenic")
    letter = ctx.recv("self")
    paid = ctx.transaction("paid", note_within_sync, label, "paid", ctx)
    reach(saved(label, "paid"))
    far = f"{ctx.queue}{FAR}"
    brought = ctx.call("errand", errand, f"{label}'s child", queue=far)
    assert ctx.recv("under way") == f"{label}'s child"
    runners = ctx.spawn_many("runner", runner, ["a", "b"], queue=far)
    winner = ctx.first(*runners)
    told = ctx.step("told", str, winner.task_id)
    ran = ctx.gather(*runners)
    assert told == str(winner.task_id)
    ctx.close_stream("news")
    ctx.set_value("progress", "there")
    reach(f"{label}: is about to arrive")
    seen = [scenic, letter, paid, brought, *ran]
    return ctx.transaction("arrived", arrive_sync, label, seen, ctx, completes=True)


@task(max_attempts=None, retry=Retry.fixed(0))
async def vigil(label: str, ctx: Context) -> str:
    """Run until the worker is gone; return at once if it is not to be killed."""
    await do(label, "one", ctx)
    await ctx.step("watch", watch, ctx)
    return "relieved"


@task(max_attempts=None, retry=Retry.fixed(0))
async def herald(label: str, ctx: Context) -> str:
    """Publish between steps, within steps, and beside waits."""
    reach(f"{label}: begins")
    ctx.logger.info("begins")
    await ctx.write_stream("news", "first")
    await ctx.set_value("progress", "begun")
    reach(f"{label}: has begun to publish")
    await do(label, "one", ctx)
    ctx.logger.info("has done one")
    await ctx.write_stream("news", "second")
    await ctx.step("speak", speak, label, ctx)
    reach(f"{label}: has spoken")
    ctx.logger.info("has spoken")
    await ctx.sleep_for("nap", 0.03)
    await ctx.write_stream("news", "third")
    await stumble_once(ctx)
    await ctx.close_stream("news")
    await ctx.set_value("progress", "done")
    reach(f"{label}: ends")
    return "heard"


async def speak(label: str, ctx: Context) -> None:
    """Write in every run, and have some of it saved before the step ends."""
    for word in ("to", "be"):
        await ctx.write_stream("words", word)
        await asyncio.sleep(0.005)
        reach(f"{label}: has said {word}")


TASKS: Final = (
    *(errand, herald, journey, journey_sync, relay, runner, tour, tour_sync, vigil),
)


async def do(label: str, step: str, ctx: Context) -> None:
    """Run a step that has an effect."""
    await ctx.step(step, note, label, step, ctx)
    reach(saved(label, step))


def by(step: str, ctx: Any) -> list[Any]:
    """Return which task has the effect, in which attempt and under which claim."""
    return [ctx.task_id, step, ctx.attempt, ctx._run.claimed.claim]


async def note(label: str, step: str, ctx: Context) -> str:
    """Have an effect; the step may be interrupted on either side of it."""
    reach(f"{label}: before the effect of {step}")
    await ctx.state.execute(NOTE, by(step, ctx))
    reach(f"{label}: after the effect of {step}")
    return f"did {step}"


async def note_and_refuse(label: str, ctx: Context) -> None:
    await note(label, "refused", ctx)
    raise Refused


def note_sync(label: str, step: str, ctx: Any) -> str:
    """Do the same in a thread."""
    reach(f"{label}: before the effect of {step}")
    with psycopg.connect(
        os.environ["DURABLE_DATABASE_URL"], autocommit=True
    ) as connection:
        connection.execute(NOTE, by(step, ctx))
    reach(f"{label}: after the effect of {step}")
    return f"did {step}"


async def note_within(
    connection: psycopg.AsyncConnection, label: str, step: str, ctx: Context
) -> str:
    """Have an effect in the transaction that saves the step."""
    reach(f"{label}: before the effect of {step}")
    await connection.execute(NOTE, by(step, ctx))
    reach(f"{label}: after the effect of {step}")
    return f"did {step}"


def note_within_sync(
    connection: psycopg.Connection, label: str, step: str, ctx: SyncTaskContext[Any]
) -> str:
    """Do the same in a thread."""
    reach(f"{label}: before the effect of {step}")
    connection.execute(NOTE, by(step, ctx))
    reach(f"{label}: after the effect of {step}")
    return f"did {step}"


async def arrive(
    connection: psycopg.AsyncConnection, label: str, seen: list[Any], ctx: Context
) -> list[Any]:
    """Have the last effect, with what the whole task returns."""
    return [*seen, await note_within(connection, label, "arrived", ctx)]


def arrive_sync(
    connection: psycopg.Connection,
    label: str,
    seen: list[Any],
    ctx: SyncTaskContext[Any],
) -> list[Any]:
    """Do the same in a thread."""
    return [*seen, note_within_sync(connection, label, "arrived", ctx)]


def at_once(label: str, ctx: Context) -> list[Any]:
    """Return a sleep and a step that ends later, so that the sleep is polled for."""
    rested = asyncio.Event()

    async def rest() -> None:
        await ctx.sleep_for("rest", 0.01)
        rested.set()

    async def note_rested() -> str:
        await rested.wait()
        return await note(label, "three", ctx)

    return [rest(), ctx.step("three", note_rested)]


async def stumble_once(ctx: Context) -> None:
    """Fail the attempt, unless an earlier one has come this far."""
    if (await ctx.state.execute(STUMBLE, [ctx.task_id])).rowcount:
        raise Stumbled


async def watch(ctx: Context) -> None:
    """Break the connection that claims tasks, and stay."""
    if MORTAL in os.environ:
        await ctx.state.execute(BREAK)
        await asyncio.Event().wait()


async def work(queue: str = "default", **options: Any) -> None:
    """Run a worker for these tasks until a signal."""
    application = AsyncDurable(
        queue=queue, tasks=TASKS, lifespan=ledger, version="mortal"
    )
    await application.run_worker(**options)


if __name__ == "__main__":
    asyncio.run(work(concurrency=int(sys.argv[1]), lease=2, poll=0.1))
