"""Code called by a task finds its context without an argument, and only there."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

import durable
from durable import SyncTaskContext, TaskContext, task
from tests.support.working import working


def told() -> list[Any]:
    """Read the current task, as a deeply nested function would."""
    here = durable.current()
    return [str(here.task_id), here.attempt, dict(here.headers), here.identity]


async def told_async() -> list[Any]:
    await asyncio.sleep(0)
    return told()


def told_by_a_thread() -> list[Any]:
    found: list[Any] = []
    copied = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.extend(copied.run(told)))
    thread.start()
    thread.join()
    return found


@task
async def everywhere(_: None, ctx: TaskContext) -> list[Any]:
    assert durable.current() is ctx
    async with asyncio.TaskGroup() as group:
        branch = group.create_task(told_async())
    return [
        told(),
        await told_async(),
        branch.result(),
        await asyncio.to_thread(told),
        told_by_a_thread(),
        await ctx.step("async", told_async),
        await ctx.step("sync", told),
        await ctx.step("thread", told_by_a_thread),
    ]


@task
def in_a_thread(_: None, ctx: SyncTaskContext) -> list[Any]:
    assert durable.current() is ctx
    return [told(), ctx.step("step", told), told_by_a_thread()]


@task
async def once(number: int, ctx: TaskContext) -> bool:
    await asyncio.sleep(0.001 * (number % 3))
    return durable.current() is ctx


async def refused() -> None:
    here: Any = durable.current()
    await here.sleep_for("nap", 0)


@task(max_attempts=1)
async def misuse(_: None, ctx: TaskContext) -> str:
    with pytest.raises(RuntimeError, match="a step is a leaf"):
        await ctx.step("leaf", refused)
    return "refused"


@pytest.mark.parametrize("kind", [everywhere, in_a_thread])
async def test_is_the_same_everywhere_inside_a_task(dsn: str, kind: Any) -> None:
    async with working(dsn, kind) as (app, worker):
        handle = await app.spawn(kind, headers={"h": 1}, identity={"user": "ada"})
        await worker.drain()
        mine = [str(handle.task_id), 1, {"h": 1}, {"user": "ada"}]
        assert all(found == mine for found in await handle.result(10))


async def test_distinguishes_concurrent_tasks(dsn: str) -> None:
    async with working(dsn, once) as (app, worker):
        handles = await app.spawn_many(once, range(30))
        await worker.drain()
        assert all([await handle.result(10) for handle in handles])


async def test_allows_no_durable_calls_inside_a_step(dsn: str) -> None:
    async with working(dsn, misuse) as (app, worker):
        handle = await app.spawn(misuse)
        await worker.drain()
        assert await handle.result(10) == "refused"


async def test_is_not_set_anywhere_else(dsn: str) -> None:
    async with working(dsn, once) as (app, worker):
        await (await app.spawn(once, 1)).result(10)
        await worker.drain()
        with pytest.raises(RuntimeError, match="no task runs here"):
            durable.current()
    assert durable.current(None) is None
    assert durable.current(default=7) == 7
