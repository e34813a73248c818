"""A run ends once, whatever its code does and whenever it has to leave."""

from __future__ import annotations

import asyncio
import gc
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
import pytest

from durable import TaskContext, task
from durable._core import sql
from durable._core.payloads import PayloadConverter
from durable._task.branches import Branches, WaitItem
from durable._task.checkpoints import Write
from durable._task.run import Claimed, Run
from durable.middleware import Hooks
from durable.registry import define
from tests.support.working import outcome, working

Context: TypeAlias = TaskContext[Any]


@task
async def quick(params: None, ctx: Context) -> str:
    return await ctx.step("only", str)


class Saved:
    """Replaces the flusher, and records what had happened before each write."""

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
        flusher=Saved(happened),
        loop=asyncio.get_running_loop(),
        application=SimpleNamespace(
            payloads=PayloadConverter(), keep_logs=None, hooks=Hooks(())
        ),
    )
    return Run(
        claimed,
        define(quick),
        {},
        services,
        code_ended=lambda: happened.append("code ended"),
        ended=lambda _: happened.append("ended"),
    )


async def test_notes_that_the_code_has_ended_before_saving_the_result() -> None:
    happened: list[str] = []

    async def code(*_: Any) -> str:
        happened.append("code")
        return "done"

    run = run_of(happened)
    run.task = asyncio.create_task(run.execute(code))
    await run.task
    assert happened == ["code", "code ended", "saved", "ended"]


async def test_runs_no_code_once_it_has_left() -> None:
    happened: list[str] = []

    async def code(*_: Any) -> None:
        happened.append("code")

    run = run_of(happened)
    run.task = asyncio.create_task(run.execute(code))
    run.exit("shutdown")
    await run.task
    assert happened == ["code ended", "ended"]


async def test_ignores_a_cancellation_that_comes_too_late(dsn: str) -> None:
    @task
    async def late(params: None, ctx: Context) -> str:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        return "done"

    found = await outcome(dsn, late)
    assert (found.state, found.result) == ("completed", "done")


@pytest.mark.parametrize("present_first", [True, False])
@pytest.mark.parametrize("ask", [sql.suspend_tasks, sql.poll_waits])
async def test_distinguishes_a_former_run_from_the_present_one(
    dsn: str, db: psycopg.Connection, ask: Any, *, present_first: bool
) -> None:
    """Both may ask in one batch, whose answer names only the task."""
    claim = "select task_id, claim from durable.claim_tasks('default', 'me', '{lost}')"
    db.execute("select durable.spawn('default', 'lost')")
    db.execute("select durable.emit_event('default', 'come', '7')")
    claims: list[Any] = []
    for _ in range(2):
        claims += db.execute(claim).fetchall()
        if len(claims) == 1:
            db.execute("update durable.tasks set lease_expires_at = 'epoch'")
            db.execute("select durable.expire_leases('default')")
            db.execute(
                "update durable.tasks set state = 'pending', available_at = now()"
            )
    waits = '[{"name": "come", "event": "come"}]'
    items = [WaitItem("default", task_id, number, waits) for task_id, number in claims]
    expected = ["lost", "resolved"]
    if present_first:
        items.reverse()
        expected.reverse()
    async with working(dsn, quick) as (_, worker):
        submit = worker._services.waits.submit
        found: Any = await asyncio.gather(*(submit(ask, item) for item in items))
    assert [outcome for outcome, _ in found] == expected
    assert [list(resolved) for _, resolved in found] == [
        [] if outcome == "lost" else ["come"] for outcome in expected
    ]


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
    """Return the existing run and call objects, by identity."""
    return {
        id(item): item for item in gc.get_objects() if type(item) in {Run, Branches}
    }
