"""An asyncio timeout around a durable wait never fires; durable warns of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeAlias

import anyio
import pytest

from durable import TaskContext, task
from durable._task import branches
from tests.support.working import outcome

Context: TypeAlias = TaskContext[Any]


async def timeout(ctx: Context) -> None:
    async with asyncio.timeout(60):
        await ctx.await_event("never")


async def wait_for(ctx: Context) -> None:
    await asyncio.wait_for(ctx.await_event("never"), 60)


async def deeper(ctx: Context) -> None:
    async def inner() -> None:
        await ctx.sleep_for("long", 3600)

    async with asyncio.timeout(60):
        await inner()


async def around_a_gather(ctx: Context) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(ctx.await_event("never"), ctx.sleep_for("long", 3600))


async def around_a_group(ctx: Context) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(ctx.await_event("never"))


async def around_a_wait(ctx: Context) -> None:
    waiting = asyncio.create_task(ctx.await_event("never"))
    async with asyncio.timeout(60):
        await asyncio.wait([waiting])


async def move_on_after(ctx: Context) -> None:
    with anyio.move_on_after(60):
        await ctx.await_event("never")


async def fail_after(ctx: Context) -> None:
    with anyio.fail_after(60):
        await ctx.await_event("never")


NEVER_FIRES = [
    timeout,
    wait_for,
    deeper,
    around_a_gather,
    around_a_group,
    around_a_wait,
    move_on_after,
    fail_after,
]


async def durable_timeout(ctx: Context) -> None:
    await ctx.await_event("never", timeout=60)


async def shorter_than_the_timeout(ctx: Context) -> None:
    async with asyncio.timeout(7200):
        await ctx.sleep_for("long", 3600)


async def left_before(ctx: Context) -> None:
    bound = asyncio.timeout(60)
    async with bound:
        await ctx.step("work", int)
    await ctx.await_event("never")


async def without_a_limit(ctx: Context) -> None:
    async with asyncio.timeout(None):
        await asyncio.wait_for(ctx.await_event("never"), None)


async def beside(ctx: Context) -> None:
    """Use a timeout around code without a durable wait."""

    async def local() -> None:
        async with asyncio.timeout(60):
            await asyncio.Event().wait()

    other = asyncio.create_task(local())
    try:
        await ctx.await_event("never")
    finally:
        other.cancel()


async def with_a_step_inside(ctx: Context) -> None:
    async with asyncio.timeout(60):
        await ctx.step("work", int)
    await ctx.await_event("never")


CORRECT = [
    durable_timeout,
    shorter_than_the_timeout,
    left_before,
    without_a_limit,
    beside,
    with_a_step_inside,
]


@pytest.fixture(autouse=True)
def nobody_was_warned(caplog: pytest.LogCaptureFixture) -> None:
    branches._warned.clear()
    caplog.set_level(logging.WARNING, logger="durable.task")


async def warned(dsn: str, caplog: pytest.LogCaptureFixture, code: Any) -> list[str]:
    caplog.clear()

    @task(name=code.__name__)
    async def work(params: None, ctx: Context) -> None:
        await code(ctx)

    assert (await outcome(dsn, work)).state == "sleeping"
    return [one.getMessage() for one in caplog.records if one.name == "durable.task"]


@pytest.mark.parametrize("code", NEVER_FIRES)
async def test_warns_of_a_timeout_that_never_fires(
    dsn: str, caplog: pytest.LogCaptureFixture, code: Any
) -> None:
    messages = await warned(dsn, caplog, code)
    assert len(messages) == 1
    assert "timeout=" in messages[0]
    assert __file__ in messages[0]
    assert await warned(dsn, caplog, code) == []  # once per place


async def test_does_not_warn_of_correct_code(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    for code in CORRECT:
        assert await warned(dsn, caplog, code) == [], code
