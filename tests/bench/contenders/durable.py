"""durable, through its public API."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg

from durable import AsyncDurable, TaskContext, task
from tests.bench.contenders import CONCURRENCY
from tests.bench.contenders.program import (
    STEPS,
    Kind,
    Program,
    Record,
    Send,
    Work,
    main,
    run,
)

__all__: list[str] = []

AT_ONCE: Final = int(os.environ.get("DURABLE_BENCH_CONCURRENCY", CONCURRENCY))
CHUNK: Final = 1000
COUNTED: Final = 20_000
SPAWN: Final = "select count(*) from durable.spawn_many('default', %s)"
ROW: Final = "insert into public.lonely (at, name, value) values (%s, %s, %s)"
TABLE: Final = """
create table public.lonely (
  at bigint, name text, value json, primary key (at, name)
)
"""

RECORDS: list[Record] = []
LATENCIES: dict[str, list[int]] = {"step": [], "insert": []}


async def number(of: int) -> int:
    return of


@task
async def noop(params: Any, ctx: TaskContext) -> None:
    RECORDS[0].begin()
    RECORDS[0].end()


@task
async def step(params: Any, ctx: TaskContext) -> None:
    RECORDS[0].begin()
    await ctx.step("only", number, 1)
    RECORDS[0].end()


@task
async def steps(params: Any, ctx: TaskContext) -> None:
    RECORDS[0].begin()
    for index in range(STEPS["steps"]):
        await ctx.step(f"step-{index}", number, index)
    RECORDS[0].end()


@task
async def busy(params: Any, ctx: TaskContext) -> None:
    """Compute for a fraction of a millisecond, without I/O."""
    RECORDS[0].begin()
    sum(range(COUNTED))
    RECORDS[0].end()


@task
async def wake(sent: int, ctx: TaskContext) -> None:
    RECORDS[0].begin(sent)
    RECORDS[0].end()


@task
async def fan(children: int, ctx: TaskContext) -> None:
    await ctx.gather(*await ctx.spawn_many("child", noop, [None] * children))


@task
async def lonely(batch_size: int, ctx: TaskContext[psycopg.AsyncConnection]) -> None:
    """Save a step and insert a row, alternately, without other load."""
    for index in range(batch_size):
        begun = time.monotonic_ns()
        await ctx.step(f"step-{index}", number, index)
        saved = time.monotonic_ns()
        row = [begun, f"step-{index}", json.dumps(index)]
        await ctx.state.execute(ROW, row)
        LATENCIES["insert"].append(time.monotonic_ns() - saved)
        LATENCIES["step"].append(saved - begun)


class Durable(Program):
    """durable, with many tasks at once in one event loop."""

    async def prepare(self, dsn: str) -> None:
        async with AsyncDurable(dsn) as app:
            await app.migrate()

    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            for start in range(0, batch_size, CHUNK):
                chunk = [{"task": kind}] * min(CHUNK, batch_size - start)
                await connection.execute(SPAWN, [json.dumps(chunk)])

    async def work(self, given: Work) -> None:
        RECORDS.append(given.record)
        tasks = [noop, busy, step, steps, wake, fan]
        async with AsyncDurable(given.dsn, tasks=tasks) as app:
            await app.run_worker(concurrency=AT_ONCE)

    @contextlib.asynccontextmanager
    async def client(self, dsn: str) -> AsyncIterator[Send]:
        async with AsyncDurable(dsn, tasks=[wake]) as app:
            yield lambda sent: app.spawn(wake, sent)


async def fan_out(dsn: str, children: int) -> None:
    """Run a parent until it sleeps, its children waiting to be claimed."""
    async with AsyncDurable(dsn, tasks=[fan]) as app:
        await app.spawn(fan, children)
        async with app.worker() as worker:
            await worker.drain()


async def measure_lonely(dsn: str, batch_size: int) -> None:
    """Run one task of many steps.

    Print the duration of each and of an insert beside it.
    """

    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[psycopg.AsyncConnection]:
        async with await psycopg.AsyncConnection.connect(
            dsn, autocommit=True
        ) as connection:
            await connection.execute(TABLE)
            yield connection

    async with AsyncDurable(dsn, tasks=[lonely], lifespan=session) as app:
        await app.spawn(lonely, batch_size)
        async with app.worker() as worker:
            await worker.drain()
    print(json.dumps(LATENCIES))


if __name__ == "__main__":
    OWN = {"fan-out": fan_out, "lonely": measure_lonely}
    if sys.argv[1] in OWN:
        run(OWN[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
    else:
        main(Durable())
