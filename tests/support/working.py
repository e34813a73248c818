"""Run tasks in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final, Unpack

from durable import AsyncDurable, TaskResult, Worker, WorkerOptions
from durable.registry import AnyTask
from tests.support.clock import Clock

__all__ = ["DAY", "outcome", "through_the_night", "working"]

DAY: Final = 86_400.0
_NIGHTS: Final = 20


@contextlib.asynccontextmanager
async def working(
    dsn: str, *tasks: AnyTask, **options: Unpack[WorkerOptions]
) -> AsyncIterator[tuple[AsyncDurable, Worker]]:
    """Return an application with these tasks, and a worker of it."""
    async with (
        AsyncDurable(dsn, tasks=tasks) as app,
        app.worker(**options) as worker,
    ):
        yield app, worker


async def outcome(dsn: str, task: AnyTask, params: Any = None) -> TaskResult[Any]:
    """Run one task as far as it gets without waiting, and return its state."""
    async with working(dsn, task) as (app, worker):
        handle = await app.spawn(task, params)
        await worker.drain()
        return await handle.snapshot()


async def through_the_night(
    dsn: str, clock: Clock, task: AnyTask, params: Any = None
) -> TaskResult[Any]:
    """Run one task to its end, advancing by a day whenever it waits."""
    async with working(dsn, task) as (app, worker):
        handle = await app.spawn(task, params)
        for _ in range(_NIGHTS):
            await worker.drain()
            found = await handle.snapshot()
            if found.state != "sleeping":
                return found
            clock.advance(DAY)
        raise AssertionError(f"still asleep after {_NIGHTS} nights")
