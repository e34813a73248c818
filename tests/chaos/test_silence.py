"""durable takes a long silence for a loss: on any line that nobody has hung up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, Durable, TaskContext, task
from durable._async import connected, results
from durable._sync import connected as sync_connected
from durable._sync import results as sync_results
from durable._worker import doors, leases, link
from tests.chaos.proxy import Proxy
from tests.support.survival import Survived
from tests.support.wait import aeventually
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]
SHORT = 0.7


@task
async def double(number: int, ctx: Context) -> int:
    return await ctx.step("double", lambda: 2 * number)


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def minutes_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for less than a second where it is a minute."""
    for module in (link, connected, sync_connected):
        monkeypatch.setattr(module, "SILENCE", SHORT)
    monkeypatch.setattr(leases, "_SHORTEST_PATIENCE", SHORT)
    monkeypatch.setattr(doors, "LISTENING_SILENCE", SHORT)
    monkeypatch.setattr(doors, "_PROBE_SECONDS", SHORT)
    for module in (results, sync_results):
        monkeypatch.setattr(module, "_SILENCE", SHORT)


async def test_makes_new_connections_where_the_old_ones_are_silent(
    proxy: Proxy, survived: Survived
) -> None:
    """A worker in the middle of its work, and a client that waits for it."""
    async with working(proxy.conninfo(), double, poll=0.1) as (app, worker):
        assert await (await app.spawn(double, 1)).result(timeout=20) == 2
        survived("connections that fell silent", proxy.fall_silent())
        waiting = asyncio.create_task(app.handle(await spawned(proxy), double).result())
        await asyncio.sleep(0)
        proxy.speak()
        assert await asyncio.wait_for(waiting, 30) == 42
        await worker.drain()


async def spawned(proxy: Proxy) -> Any:
    """Spawn behind the proxy's back."""
    async with AsyncDurable(proxy.direct, tasks=[double]) as app:
        return (await app.spawn(double, 21)).task_id


async def test_leaves_its_tasks_when_leases_end_in_silence(
    proxy: Proxy, survived: Survived
) -> None:
    """It cannot know who has them now; a thread that waited for ever would not."""
    left: list[int] = []
    begun = asyncio.Event()

    @task(max_attempts=None)
    async def long(params: None, ctx: Context) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.append(ctx.attempt)

    worker = working(proxy.conninfo(), long, lease=1.5, shutdown_timeout=0)
    async with worker as (app, _):
        handle = await app.spawn(long)
        await asyncio.wait_for(begun.wait(), 20)
        begun.clear()
        await aeventually(lambda: asyncio.sleep(0, listeners(proxy, "durable leases")))
        survived("connections that fell silent", proxy.fall_silent())
        await aeventually(lambda: asyncio.sleep(0, left), deadline=30)
        proxy.speak()
        await asyncio.wait_for(begun.wait(), 60)  # somebody took it: here, itself
        with pytest.raises(psycopg.OperationalError):  # on a line that is silent
            await app.cancel(handle)
        assert await app.cancel(handle)


async def test_finds_work_by_looking_when_its_listener_hears_nothing(
    proxy: Proxy, dsn: str, survived: Survived
) -> None:
    """And notices that nobody is there any more, and listens again."""
    async with (
        working(proxy.conninfo(), double, poll=0.3) as (_, worker),
        AsyncDurable(dsn, tasks=[double]) as spawner,
    ):
        await worker.drain()
        await aeventually(lambda: asyncio.sleep(0, listeners(proxy) == 1))
        survived("listeners that heard nothing", proxy.hush("durable listen"))
        for number in range(3):
            handle = await spawner.spawn(double, number)
            assert await handle.result(timeout=30) == 2 * number
        await aeventually(lambda: asyncio.sleep(0, listeners(proxy) == 1), deadline=30)


async def test_hears_of_results_by_looking_when_its_listener_is_silent(
    proxy: Proxy, dsn: str, survived: Survived
) -> None:
    async with (
        AsyncDurable(proxy.conninfo(), tasks=[double]) as waiter,
        working(dsn, double, poll=0.1) as (_, worker),
    ):
        await worker.drain()
        for number in range(2):
            handle = await waiter.spawn(double, number)
            waiting = asyncio.create_task(handle.result(timeout=60))
            if listeners(proxy, "durable results"):
                survived("listeners that heard nothing", proxy.hush("durable results"))
            assert await waiting == 2 * number


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_ends_a_wait_in_time_although_nobody_answers(
    proxy: Proxy, colour: str, survived: Survived, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg.pool")
    begun: list[float] = []

    async def wait() -> None:
        async with AsyncDurable(proxy.conninfo(), tasks=[double]) as app:
            handle = await app.spawn(double, 1)
            assert await handle.state() == "pending"
            silence(begun)
            await handle.result(timeout=0.5)

    def wait_sync() -> None:
        with Durable(proxy.conninfo(), tasks=[double]) as app:
            handle = app.spawn(double, 1)
            assert handle.state() == "pending"
            silence(begun)
            handle.result(timeout=0.5)

    def silence(begun: list[float]) -> None:
        survived("connections that fell silent", proxy.fall_silent())
        begun.append(time.monotonic())

    with pytest.raises(TimeoutError):
        asyncio.run(wait()) if colour == "async" else wait_sync()
    assert time.monotonic() - begun[0] < 60  # it is not for ever


def listeners(proxy: Proxy, name: str = "durable listen") -> int:
    """How many connections of this name would hear something."""
    return sum(c.sound and c.name == name for c in list(proxy.connections))
