"""An operator finds a task by its id alone, and events by their names."""

from __future__ import annotations

import pytest

from durable import AsyncDurable, EventInfo, NotFound, TaskContext, task
from durable.encryption import AESGCMCodec
from tests.support.working import working


@task
async def wait(event: str, ctx: TaskContext) -> None:
    await ctx.await_event(event)


@task
async def publish(params: None, ctx: TaskContext) -> None:
    ctx.set_value("progress", 1)
    for word in ("to", "be"):
        ctx.write_stream("words", word)
    ctx.close_stream("words")


async def test_finds_a_task_by_its_id(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        await app.create_queue("mail")
        there = await app.spawn("x", queue="mail")
        found = await app.find_task(str(there.task_id))
        assert (found.queue, found.task_id) == ("mail", there.task_id)
        assert await found.state() == "pending"
        with pytest.raises(NotFound):
            await app.find_task("01a1fb65-86b6-7000-9188-49b6bfbacafb")


async def test_lists_events_and_who_waits_for_them(dsn: str) -> None:
    async with working(dsn, wait) as (app, worker):
        for _ in range(2):
            await app.spawn(wait, "paid:2")
        await worker.drain()
        await app.emit_event("paid:1", {"by": "card"})
        await app.emit_event("sent:1")
        emitted, missing = await app.list_events(prefix="paid:")
        assert (emitted.payload, emitted.waiting) == ({"by": "card"}, 0)
        assert emitted.emitted_at is not None
        assert missing == EventInfo("paid:2", None, None, 2)
        assert await app.list_events(waited_for=True) == [missing]
        (last,) = await app.list_events(after="paid:2")
        assert last.name == "sent:1"


async def test_shows_payloads_that_it_can_open(dsn: str) -> None:
    codec = AESGCMCodec({"k": bytes(32)})
    async with AsyncDurable(dsn, codec=codec) as app:
        await app.emit_event("sealed", "secret")
        (opened,) = await app.list_events()
        assert opened.payload == "secret"
    async with AsyncDurable(dsn) as blind:
        (sealed,) = await blind.list_events()
        assert "secret" not in repr(sealed)


async def test_lists_what_a_task_has_published(dsn: str) -> None:
    async with working(dsn, publish) as (app, worker):
        handle = await app.spawn(publish)
        await worker.drain()
        value, stream = await handle.list_published()
        assert (value.kind, value.name, value.entries) == ("value", "progress", None)
        assert (stream.kind, stream.name) == ("stream", "words")
        assert (stream.entries, stream.closed) == (2, True)
