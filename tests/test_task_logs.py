"""durable stores what a task logs, once, and shows it to clients."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Durable,
    LogLine,
    Retry,
    SyncTaskContext,
    TaskContext,
    task,
)
from durable._task import publisher
from tests.support.working import working

elsewhere = logging.getLogger("tests.elsewhere")


async def lines_of(handle: Any, *, follow: bool = False) -> list[LogLine]:
    return [line async for line in handle.logs(follow=follow)]


def texts(lines: list[LogLine]) -> list[str]:
    return [line.message for line in lines]


async def test_stores_lines_with_their_place(dsn: str) -> None:
    @task
    async def chatty(params: None, ctx: TaskContext) -> None:
        def in_a_thread() -> None:
            ctx.logger.warning("in %s", "a thread")

        ctx.logger.info("begins")
        ctx.logger.debug("not from here on")
        await ctx.step("work", in_a_thread)
        try:
            int("no way")
        except ValueError:
            ctx.logger.exception("it failed")

    async with working(dsn, chatty) as (app, _):
        handle = await app.spawn(chatty)
        lines = await lines_of(handle, follow=True)
    assert [(line.level, line.step, line.attempt, line.logger) for line in lines] == [
        (logging.INFO, None, 1, "durable.task"),
        (logging.WARNING, "work", 1, "durable.task"),
        (logging.ERROR, None, 1, "durable.task"),
    ]
    assert texts(lines)[:2] == ["begins", "in a thread"]
    assert texts(lines)[2].startswith("it failed\nTraceback")
    assert texts(lines)[2].endswith("'no way'")
    assert lines[0].at.tzinfo is not None
    assert str(lines[1]).endswith("WARNING [work] in a thread")


async def test_does_not_repeat_lines_at_a_replay(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "durable.task")
    tries: list[int] = []

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def chatty(params: None, ctx: TaskContext) -> None:
        ctx.logger.info("begins")
        await ctx.step("one", lambda: ctx.logger.info("in one"), max_attempts=2)
        ctx.logger.info("after one")
        await ctx.sleep_for("nap", 0.01)
        ctx.logger.info("has slept")
        children = await ctx.spawn_many("none", "x", [])
        await ctx.step("two", lambda: None)
        ctx.logger.info("after two of %d", len(children))
        tries.append(ctx.attempt)
        if len(tries) == 1:
            raise ValueError("once")
        ctx.logger.info("ends")

    async with working(dsn, chatty) as (app, _):
        handle = await app.spawn(chatty)
        lines = await lines_of(handle, follow=True)
    expected = ["begins", "in one", "after one", "has slept", "after two of 0"]
    # code after the last saved call runs, and logs, again
    assert texts(lines) == [*expected, "after two of 0", "ends"]
    assert [line.attempt for line in lines[-3:]] == [1, 2, 2]
    printed = [
        one.getMessage() for one in caplog.records if one.levelno == logging.INFO
    ]
    assert printed == texts(lines)
    assert caplog.records[0].__dict__["task_id"] == str(handle.task_id)


async def test_stores_lines_of_any_logger_if_configured(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @task
    async def chatty(name: str, ctx: TaskContext) -> None:
        elsewhere.info("hello %s", name)
        await ctx.step("think", lambda: elsewhere.info("%s thinks", name))
        await asyncio.to_thread(elsewhere.info, "%s in a thread", name)
        ctx.logger.debug("kept, too")
        elsewhere.debug("not let through")

    @task
    def chatty_sync(name: str, ctx: SyncTaskContext) -> None:
        elsewhere.info("hello %s", name)

    level = logging.DEBUG
    async with (
        AsyncDurable(dsn, tasks=[chatty, chatty_sync], keep_logs=level) as app,
        app.worker(),
        app.worker(),
    ):
        handles = [await app.spawn(chatty, name) for name in "ab"]
        handles.append(await app.spawn(chatty_sync, "c"))
        elsewhere.info("of no task")
        found = [texts(await lines_of(one, follow=True)) for one in handles]
    for name, lines in zip("ab", found, strict=False):
        said = [f"hello {name}", f"{name} thinks", f"{name} in a thread", "kept, too"]
        assert lines == said
    assert found[2] == ["hello c"]
    assert not any(
        "durable.logs" in type(one).__module__ for one in logging.root.handlers
    )


async def test_stores_no_lines_of_other_loggers_by_default(dsn: str) -> None:
    @task
    async def chatty(params: None, ctx: TaskContext) -> None:
        elsewhere.error("hello")

    async with working(dsn, chatty) as (app, worker):
        handle = await app.spawn(chatty)
        await worker.drain()
        assert await lines_of(handle, follow=True) == []


async def test_reports_that_lines_were_dropped_beyond_the_limit(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "LINES_AT_MOST", 20)

    @task
    async def chatty(params: None, ctx: TaskContext) -> None:
        for number in range(15):
            ctx.logger.info("%d", number)
        await ctx.sleep_for("nap", 0.01)
        for number in range(15, 100):
            ctx.logger.info("%d", number)

    async with working(dsn, chatty) as (app, _):
        lines = texts(await lines_of(await app.spawn(chatty), follow=True))
    assert lines[:-1] == [str(number) for number in range(20)]
    assert "lines are dropped" in lines[-1]


async def test_shows_lines_of_a_running_step(dsn: str, db: psycopg.Connection) -> None:
    go = asyncio.Event()

    @task
    async def patient(params: None, ctx: TaskContext) -> None:
        async def wait() -> None:
            ctx.logger.info("waiting")
            await go.wait()

        await ctx.step("wait", wait)
        ctx.logger.info("went")

    async with working(dsn, patient) as (app, _):
        handle = await app.spawn(patient)
        lines = aiter(handle.logs(follow=True))
        assert (await asyncio.wait_for(anext(lines), 10)).message == "waiting"
        assert await handle.state() == "running"
        go.set()
        assert [line.message async for line in lines] == ["went"]


async def test_keeps_lines_of_a_failed_attempt(dsn: str) -> None:
    @task(max_attempts=1)
    async def doomed(params: None, ctx: TaskContext) -> None:
        ctx.logger.info("last\x00words \ud800")
        raise ValueError("no")

    async with working(dsn, doomed) as (app, _):
        handle = await app.spawn(doomed)
        assert texts(await lines_of(handle, follow=True)) == ["last\\x00words \\ud800"]


def test_shows_lines_to_synchronous_code(dsn: str) -> None:
    @task
    def chatty(params: None, ctx: SyncTaskContext) -> None:
        ctx.logger.info("hello")

    with Durable(dsn, tasks=[chatty]) as app, app.worker():
        assert texts(list(app.spawn(chatty).logs(follow=True))) == ["hello"]
