"""An operator sees which workers run, idle or not, and which are stopping or dead."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import psycopg

from durable import AsyncDurable, TaskContext, WorkerInfo, task
from tests.support.wait import aeventually


@task
async def nothing(params: None, ctx: TaskContext) -> None:
    """End at once."""


async def only_worker(app: AsyncDurable, queue: str = "default") -> WorkerInfo:
    (found,) = await app.list_workers(queue)
    return found


async def test_lists_an_idle_worker_in_each_of_its_queues(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[nothing], version="7") as app:
        await app.create_queue("mail")
        async with app.worker(concurrency=3, queues=["default", "mail"]) as worker:
            for queue in ("default", "mail"):
                found = await only_worker(app, queue)
                assert (found.queue, found.worker) == (queue, worker.worker_id)
                assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
                assert (found.version, found.slots, found.running) == ("7", 3, 0)
                assert found.alive
                assert not found.draining
        assert await app.list_workers() == await app.list_workers("mail") == []


async def test_lists_a_worker_that_finishes_its_last_tasks(dsn: str) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @task
    async def busy(params: None, ctx: TaskContext) -> None:
        started.set()
        await may_end.wait()

    async with AsyncDurable(dsn, tasks=[busy]) as app:
        await app.spawn(busy)

        async def work() -> None:
            async with app.worker(shutdown_timeout=60):
                await started.wait()

        async def drains() -> bool:
            return (await only_worker(app)).draining

        working = asyncio.create_task(work())
        await started.wait()
        found = await only_worker(app)
        assert found.running == 1
        assert found.first_lease_expires_at is not None
        await aeventually(drains)
        may_end.set()
        await working
        assert await app.list_workers() == []


async def test_announces_again_while_it_runs(
    dsn: str, db: psycopg.Connection[Any]
) -> None:
    async with AsyncDurable(dsn, tasks=[nothing]) as app, app.worker():
        db.execute(
            "update durable.worker_sessions set seen_at = now() - '1 h'::interval"
        )

        async def is_alive() -> bool:
            return (await only_worker(app)).alive

        await aeventually(is_alive, deadline=20)
