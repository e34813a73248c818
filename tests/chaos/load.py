"""A mixed load: clients that keep a journal of what they were told, and workers.

    python -m tests.chaos.load worker
    python -m tests.chaos.load client JOURNAL SEED

Every task carries the intent it was spawned for, and every step has an effect: a row in
public.effects. An order is a row of the application's, written in the transaction that
spawns its task.

A client runs until SIGTERM, and then finishes what it has begun. It writes into its
journal before a call (`ask`), when the call was answered (`ack`), and when it was not
and will not be repeated (`unknown`). The journal is a file: it survives the client and
the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from durable import AsyncDurable, AsyncTaskHandle, NonRetryable, TaskContext, task
from durable._db import reconnecting
from durable._worker import leases
from durable.errors import AlreadyFinished, TaskCancelled, TaskFailed
from durable.retry import Retry

__all__ = ["TABLES", "TASKS"]

T = TypeVar("T")
Context: TypeAlias = TaskContext[AsyncConnectionPool[Any]]

TABLES: Final = """
create table public.effects (
  task_id uuid, intent text, step text, attempt integer,
  primary key (task_id, step, attempt)
);
create table public.orders (intent text primary key)
"""
NOTE: Final = "insert into public.effects values (%s, %s, %s, %s)"
ORDER: Final = "insert into public.orders values (%s)"

LEASE: Final = 3.0
PATIENT: Final[Any] = {"retry": Retry.fixed(0.1), "max_attempts": None}
AT_ONCE: Final = 8  # in flight per client
THOUGHTFUL: Final = 0.2  # seconds between two intents, at most
TIRED: Final = 5.0  # seconds after which it stops waiting for an answer
STUBBORN: Final = 120.0  # seconds for which it retries


# -- tasks -----------------------------------------------------------------------------


@task(**PATIENT)
async def steps(intent: str, ctx: Context) -> str:
    for name in ("one", "two", "three"):
        await ctx.step(name, effect, ctx, intent, name)
    return intent


@task(**PATIENT)
async def nap(intent: str, ctx: Context) -> str:
    await ctx.step("before", effect, ctx, intent, "before")
    await ctx.sleep_for("nap", 0.2)
    await ctx.step("after", effect, ctx, intent, "after")
    return intent


@task(**PATIENT)
async def meet(intent: str, ctx: Context) -> str:
    await ctx.step("before", effect, ctx, intent, "before")
    heard: str = await ctx.await_event(f"go:{intent}")
    await ctx.step("after", effect, ctx, intent, "after")
    return heard


@task(**PATIENT)
async def family(intent: str, ctx: Context) -> str:
    children = [await ctx.spawn(f"child {n}", steps, intent) for n in range(2)]
    found = await ctx.gather(*children)
    assert found == (intent, intent)
    return intent


@task(**PATIENT)
async def flaky(intent: str, ctx: Context) -> str:
    await ctx.step("before", effect, ctx, intent, "before")
    if ctx.attempt == 1:
        raise ConnectionError("try again")
    await ctx.step("after", effect, ctx, intent, "after")
    return intent


@task(**PATIENT)
async def doomed(intent: str, ctx: Context) -> str:
    await ctx.step("before", effect, ctx, intent, "before")
    raise NonRetryable("as it had to be")


@task(**PATIENT)
async def endless(intent: str, ctx: Context) -> str:
    """Wait for an event that never comes, to be cancelled."""
    await ctx.step("before", effect, ctx, intent, "before")
    return str(await ctx.await_event(f"never:{intent}"))


TASKS: Final = (steps, nap, meet, family, flaky, doomed, endless)
BY_NAME: Final = {spawned.name: spawned for spawned in TASKS}


async def effect(ctx: Context, intent: str, step: str) -> str:
    """Write a row outside of durable; an error fails the attempt."""
    async with asyncio.timeout(TIRED), ctx.state.connection() as connection:
        await connection.execute(NOTE, [ctx.task_id, intent, step, ctx.attempt])
    return step


@contextlib.asynccontextmanager
async def pool() -> AsyncIterator[AsyncConnectionPool[Any]]:
    """Open the application's own connections, which break as durable's do."""
    async with AsyncConnectionPool(
        os.environ["DURABLE_DATABASE_URL"],
        min_size=0,
        max_size=8,
        kwargs={"connect_timeout": 5, "autocommit": True},
        check=AsyncConnectionPool.check_connection,
        timeout=10,
    ) as connections:
        yield connections


async def work() -> None:
    async with AsyncDurable(tasks=TASKS, lifespan=pool) as app:
        await app.run_worker(concurrency=20, lease=LEASE, poll=0.2, shutdown_timeout=2)


# -- clients ---------------------------------------------------------------------------


class Journal:
    """Lines of JSON, each in the file before the call returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, what: str, **more: object) -> None:
        line = json.dumps({"what": what, **more}, default=str)
        os.write(self._file, line.encode() + b"\n")


class Client:
    """Carries out its intents, whatever happens to the database meanwhile."""

    def __init__(
        self, app: AsyncDurable, journal: Journal, name: str, random: Random
    ) -> None:
        self._app = app
        self._journal = journal
        self._name = name
        self._random = random

    async def go_on(self, enough: asyncio.Event) -> None:
        """Carry out one intent after the other, several concurrently."""
        turns = itertools.count()

        async def one_by_one() -> None:
            while not enough.is_set():
                await self._carry_out(f"{self._name}-{next(turns)}")
                await asyncio.sleep(self._random.random() * THOUGHTFUL)

        async with asyncio.TaskGroup() as together:
            for _ in range(AT_ONCE):
                together.create_task(one_by_one())

    async def _carry_out(self, intent: str) -> None:
        ways = (self._keyed, self._keyless, self._many, self._order)
        (way,) = self._random.choices(ways, (4, 2, 1, 3))
        kind = self._random.choice(TASKS).name
        for spawned, handle in (await way(intent, kind)).items():
            await self._follow(spawned, kind, handle)

    async def _keyed(self, intent: str, kind: str) -> dict[str, AsyncTaskHandle[str]]:
        """Repeat the spawn until it is acknowledged: the key makes it idempotent."""
        self._journal.note("ask", intent=intent, kind=kind)

        async def spawn() -> AsyncTaskHandle[str]:
            return await self._app.spawn(BY_NAME[kind], intent, idempotency_key=intent)

        handle = await insist(spawn)
        self._acknowledge(intent, handle)
        return {intent: handle}

    async def _keyless(self, intent: str, kind: str) -> dict[str, AsyncTaskHandle[str]]:
        """Spawn once; only the database knows whether it arrived."""
        self._journal.note("ask", intent=intent, kind=kind)
        try:
            async with asyncio.timeout(TIRED):
                handle = await self._app.spawn(BY_NAME[kind], intent)
        except (psycopg.Error, TimeoutError) as error:
            self._journal.note("unknown", intent=intent, why=repr(error))
            return {}
        self._acknowledge(intent, handle)
        return {intent: handle}

    async def _many(self, intent: str, kind: str) -> dict[str, AsyncTaskHandle[str]]:
        """Spawn five in one statement: all or none."""
        intents = [f"{intent}.{part}" for part in range(5)]
        self._journal.note("many", intents=intents)
        for one in intents:
            self._journal.note("ask", intent=one, kind=kind)
        keyed = [(BY_NAME[kind], one, {"idempotency_key": one}) for one in intents]
        handles = await insist(lambda: self._app.spawn_many(keyed))
        for one, handle in zip(intents, handles, strict=True):
            self._acknowledge(one, handle)
        return dict(zip(intents, handles, strict=True))

    async def _order(self, intent: str, kind: str) -> dict[str, AsyncTaskHandle[str]]:
        """Insert a row of the application and spawn its task, both or neither."""
        self._journal.note("ask", intent=intent, kind=kind, order=True)
        try:
            async with (
                asyncio.timeout(TIRED),
                await psycopg.AsyncConnection.connect(
                    os.environ["DURABLE_DATABASE_URL"], connect_timeout=5
                ) as connection,
            ):
                await connection.execute(ORDER, [intent])
                handle = await self._app.spawn_with(connection, BY_NAME[kind], intent)
        except (psycopg.Error, TimeoutError) as error:
            self._journal.note("unknown", intent=intent, why=repr(error))
            return {}
        self._acknowledge(intent, handle)
        return {intent: handle}

    def _acknowledge(self, intent: str, handle: AsyncTaskHandle[str]) -> None:
        self._journal.note("ack", intent=intent, task_id=handle.task_id)

    async def _follow(
        self, intent: str, kind: str, handle: AsyncTaskHandle[str]
    ) -> None:
        """Do what the task waits for, and wait for the end of some tasks."""
        if kind == "meet":
            await insist(lambda: self._app.emit_event(f"go:{intent}", intent))
        elif kind == "endless" or self._random.random() < 0.05:
            await self._cancel(intent, handle)
            return
        if self._random.random() < 0.3:
            await self._wait(intent, handle)

    async def _cancel(self, intent: str, handle: AsyncTaskHandle[str]) -> None:
        self._journal.note("cancel", intent=intent)

        async def cancel() -> bool:
            with contextlib.suppress(AlreadyFinished):
                return await self._app.cancel(handle)
            return False

        if await insist(cancel):
            self._journal.note("cancelled", intent=intent)

    async def _wait(self, intent: str, handle: AsyncTaskHandle[str]) -> None:
        """Wait through all faults; no error of the database is raised."""
        try:
            outcome = await handle.result(timeout=120)
        except (TaskFailed, TaskCancelled) as end:
            outcome = type(end).__name__
        self._journal.note("result", intent=intent, outcome=outcome)


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat the call until it is answered; raise the last error at the end."""
    begun = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(TIRED):
                return await call()
        except (psycopg.Error, TimeoutError):
            if time.monotonic() - begun > STUBBORN:
                raise
            await asyncio.sleep(0.1)


async def ask(journal: str, seed: str) -> None:
    name = Path(journal).stem
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)
    async with AsyncDurable(tasks=TASKS) as app:
        client = Client(app, Journal(Path(journal)), name, Random(f"{seed}/{name}"))
        await client.go_on(enough)


def hurry() -> None:
    """Treat seconds of silence as a loss: a minute would be too long for a test."""
    vars(reconnecting)["READ_TIMEOUT"] = 3.0
    vars(leases)["_SHORTEST_PATIENCE"] = 2.0


if __name__ == "__main__":
    hurry()
    if sys.argv[1] == "worker":
        asyncio.run(work())
    else:
        asyncio.run(ask(sys.argv[2], sys.argv[3]))
