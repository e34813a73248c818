"""durable treats a long silence on any connection as a loss, without a disconnect."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, Durable, TaskContext, task
from durable._client._async import waiters
from durable._client._sync import waiters as sync_waiters
from durable._db import reconnecting
from durable._db._async import database, listener
from durable._db._sync import database as sync_database
from durable._worker import claims, leases
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
    """Shorten timeouts of a minute to less than a second."""
    for module in (reconnecting, database, sync_database):
        monkeypatch.setattr(module, "READ_TIMEOUT", SHORT)
    monkeypatch.setattr(leases, "_SHORTEST_PATIENCE", SHORT)
    monkeypatch.setattr(listener, "LISTEN_READ_TIMEOUT", SHORT)
    monkeypatch.setattr(claims, "_REGISTRATION_SECONDS", SHORT)
    for module in (waiters, sync_waiters):
        monkeypatch.setattr(module, "_READ_TIMEOUT", SHORT)


async def test_replaces_connections_that_have_fallen_silent(
    proxy: Proxy, survived: Survived
) -> None:
    """A worker in the middle of its work, and a client that waits for it."""
    async with working(proxy.conninfo(), double, poll=0.1) as (app, worker):
        assert await (await app.spawn(double, 1)).result(timeout=20) == 2
        survived("connections that fell silent", proxy.stop_listening())
        waiting = asyncio.create_task(app.handle(await spawned(proxy), double).result())
        await asyncio.sleep(0)
        proxy.speak()
        assert await asyncio.wait_for(waiting, 30) == 42
        await worker.drain()


async def spawned(proxy: Proxy) -> Any:
    """Spawn over a direct connection, past the proxy."""
    async with AsyncDurable(proxy.direct, tasks=[double]) as app:
        return (await app.spawn(double, 21)).task_id


async def test_stops_its_tasks_when_leases_expire_during_a_silence(
    proxy: Proxy, survived: Survived
) -> None:
    """Others may hold them now, so it must not wait for an answer."""
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
        survived("connections that fell silent", proxy.stop_listening())
        await aeventually(lambda: asyncio.sleep(0, left), deadline=30)
        proxy.speak()
        await asyncio.wait_for(begun.wait(), 60)  # taken over: here, by the same worker
        with pytest.raises(psycopg.OperationalError):  # on a connection that is silent
            await app.cancel(handle)
        assert await app.cancel(handle)


async def test_polls_for_work_when_its_listener_is_silent(
    proxy: Proxy, dsn: str, survived: Survived
) -> None:
    """It also notices that the connection is dead, and listens again."""
    async with (
        working(proxy.conninfo(), double, poll=0.3) as (_, worker),
        AsyncDurable(dsn, tasks=[double]) as spawner,
    ):
        await worker.drain()
        await aeventually(lambda: asyncio.sleep(0, listeners(proxy) == 1))
        survived("listeners that heard nothing", proxy.hush("durable work"))
        for number in range(3):
            handle = await spawner.spawn(double, number)
            assert await handle.result(timeout=30) == 2 * number
        await aeventually(lambda: asyncio.sleep(0, listeners(proxy) == 1), deadline=30)


async def test_polls_for_results_when_its_listener_is_silent(
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
            if listeners(proxy, "durable client"):
                survived("listeners that heard nothing", proxy.hush("durable client"))
            assert await waiting == 2 * number


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_wait_times_out_although_the_server_does_not_answer(
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
        survived("connections that fell silent", proxy.stop_listening())
        begun.append(time.monotonic())

    with pytest.raises(TimeoutError):
        asyncio.run(wait()) if colour == "async" else wait_sync()
    assert time.monotonic() - begun[0] < 60  # the outage is not for ever


def listeners(proxy: Proxy, name: str = "durable work") -> int:
    """Count the connections of this name that would get notifications."""
    return sum(c.sound and c.name == name for c in list(proxy.connections))
