"""durable ends a run once, whatever its code does and whenever it has to leave."""

from __future__ import annotations

import asyncio
import gc
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, TypeAlias
from uuid import UUID

from durable import TaskContext, task
from durable._vault import PLAIN_VAULT
from durable._worker.calls import Calls
from durable._worker.run import Claimed, Run
from durable._worker.saving import Write
from durable.registry import define
from tests.support.working import outcome

Context: TypeAlias = TaskContext[Any]


@task
async def quick(params: None, ctx: Context) -> str:
    return await ctx.step("only", str)


class Saved:
    """Stands where writes are handed in, and says what had happened before."""

    def __init__(self, happened: list[str]) -> None:
        self._happened = happened

    def submit(self, write: Write) -> asyncio.Future[str]:
        self._happened.append("saved" if write.completion else "failed")
        saved: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        saved.set_result("ok")
        return saved


def run_of(happened: list[str]) -> Run:
    now = datetime.now(UTC)
    task_id = UUID(int=1)
    claimed = Claimed(
        *("default", time.monotonic(), task_id, 1, "quick", 1, "null", None, None),
        *(now, None, now, now, task_id),
    )
    services: Any = SimpleNamespace(
        lease=30.0,
        saving=Saved(happened),
        loop=asyncio.get_running_loop(),
        application=SimpleNamespace(vault=PLAIN_VAULT),
    )
    return Run(
        claimed,
        define(quick),
        {},
        services,
        code_ended=lambda: happened.append("code ended"),
        ended=lambda _: happened.append("ended"),
    )


async def test_says_that_the_code_has_ended_before_it_saves_that() -> None:
    happened: list[str] = []

    async def code() -> str:
        happened.append("code")
        return "done"

    run = run_of(happened)
    run.task = asyncio.create_task(run.execute(code))
    await run.task
    assert happened == ["code", "code ended", "saved", "ended"]


async def test_runs_no_code_once_it_has_left() -> None:
    happened: list[str] = []

    async def code() -> None:
        happened.append("code")

    run = run_of(happened)
    run.task = asyncio.create_task(run.execute(code))
    run.leave("shutdown")
    await run.task
    assert happened == ["code ended", "ended"]


async def test_drops_a_cancellation_that_comes_too_late(dsn: str) -> None:
    @task
    async def late(params: None, ctx: Context) -> str:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        return "done"

    found = await outcome(dsn, late)
    assert (found.state, found.result) == ("completed", "done")


async def test_leaves_nothing_to_the_garbage_collector(dsn: str) -> None:
    gc.collect()
    gc.disable()
    try:
        before = runs_and_calls()
        assert (await outcome(dsn, quick)).state == "completed"
        left = runs_and_calls().keys() - before.keys()
    finally:
        gc.enable()
    assert left == set()


def runs_and_calls() -> dict[int, object]:
    """Return what there is of them, by identity."""
    return {id(item): item for item in gc.get_objects() if type(item) in {Run, Calls}}
