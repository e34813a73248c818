"""A handle cancels and retries as its application does, and lists its children."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import uuid4

import psycopg
import pytest
from pydantic import PlainSerializer, ValidationError

from durable import (
    AlreadyFinished,
    AsyncDurable,
    AsyncTaskHandle,
    Durable,
    InvalidArgument,
    NotFound,
    TaskCancelled,
    TaskContext,
    task,
)
from durable._core import sql
from durable._core.values import Unsavable
from tests.support.working import working


@task(max_attempts=1)
async def divide(by: int, ctx: TaskContext) -> float:
    return 6 / by


@task
async def linger(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


@task
async def raise_children(count: int, ctx: TaskContext) -> None:
    await ctx.spawn("first", divide, 1)
    await ctx.spawn_many("elsewhere", linger, [None] * count, queue="other")
    await ctx.spawn("last", divide, 0)


Loud = Annotated[str, PlainSerializer(str.upper)]


@task
async def listen(params: None, ctx: TaskContext) -> list[str]:
    told = [await ctx.recv("said") for _ in range(3)]
    return told + [await ctx.await_event(f"said {number}") for number in range(2)]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with working(dsn, divide, linger, listen, raise_children) as (app, _):
        await app.create_queue("other")
        yield app


async def broken(app: AsyncDurable) -> AsyncTaskHandle[float]:
    handle = await app.spawn(divide, 0)
    await asyncio.wait([asyncio.create_task(handle.result(timeout=10))])
    assert await handle.state() == "failed"
    return handle


async def test_cancels_with_a_reason(app: AsyncDurable) -> None:
    handle = await app.spawn(linger)
    assert await handle.cancel(reason="moved away")
    with pytest.raises(TaskCancelled, match="moved away"):
        await handle.result(timeout=10)
    assert not await handle.cancel()
    with pytest.raises(InvalidArgument, match="reason"):
        await handle.cancel(reason="x" * 1001)
    with pytest.raises(NotFound):
        await app.handle(uuid4()).cancel()


async def test_retries_with_new_params(app: AsyncDurable) -> None:
    handle = await broken(app)
    again = await handle.retry(params=3)
    assert (again, again.attempt, again.created) == (handle, 2, False)
    assert await again.result(timeout=10) == 2.0
    with pytest.raises(AlreadyFinished):
        await handle.retry()


async def test_retries_as_a_new_task_or_with_a_deadline(app: AsyncDurable) -> None:
    handle = await broken(app)
    with pytest.raises(InvalidArgument, match="deadline"):
        await handle.retry(deadline=datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(ValidationError):
        await handle.retry(params="three")
    other = await handle.retry(spawn_new=True, max_attempts=2)
    assert (other.created, await handle.state()) == (True, "failed")
    assert other.task_id != handle.task_id


@pytest.mark.parametrize("page", [2, 3, 4, 1000])
async def test_lists_its_children_in_all_queues(
    app: AsyncDurable, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(sql, "LISTED_AT_ONCE", page)
    handle = await app.spawn(raise_children, 2)
    await handle.result(timeout=10)
    await app.spawn(divide, 3)
    children = await handle.children()
    assert [(child.name, child.queue) for child in children] == [
        ("divide", "default"),
        *[("linger", "other")] * 2,
        ("divide", "default"),
    ]
    assert {child.parent_task_id for child in children} == {handle.task_id}
    first = app.handle(children[0].task_id, divide, queue=children[0].queue)
    assert await first.result(timeout=10) == 6.0
    assert await first.children() == []
    with pytest.raises(NotFound):
        await app.handle(uuid4()).children()


def test_works_in_synchronous_code(dsn: str, db: psycopg.Connection) -> None:
    with Durable(dsn, tasks=[linger]) as app:
        handle = app.spawn(linger)
        assert handle.children() == []
        assert handle.cancel(reason="no")
        again = handle.retry(params=None)
        assert (again.state(), again.attempt) == ("pending", 2)


async def test_sends_a_payload_as_the_given_type(
    app: AsyncDurable, adb: psycopg.AsyncConnection
) -> None:
    """By each way to send and to emit."""
    handle = await app.spawn(listen)
    assert await app.send(handle, "said", "a", as_type=Loud)
    assert await handle.send("said", "b", as_type=Loud)
    async with adb.transaction():
        await app.send_with(adb, handle, "said", "c", as_type=Loud)
        await app.emit_event_with(adb, "said 0", "d", as_type=Loud)
    await app.emit_event("said 1", "e", as_type=Loud)
    assert await handle.result(timeout=10) == ["A", "B", "C", "D", "E"]
    with pytest.raises(Unsavable, match="cannot be saved as int"):
        await handle.send("said", "f", as_type=int)


def test_names_the_queues_that_a_worker_does_not_serve(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of other queues does not count for the application's own."""
    app = Durable(dsn, queue="shop")
    with caplog.at_level("INFO", "durable.worker"):
        app.worker(queues=["shop", "gpu"])
        app.worker()
        assert caplog.messages == []
        app.worker(queues=["gpu", "gpu", "mail"])
    (said,) = caplog.messages
    assert said == (
        "the worker claims from 'gpu', 'mail', but not from 'shop',"
        " the application's own queue"
    )
    with pytest.raises(InvalidArgument, match="needs a queue"):
        app.worker(queues=[])
