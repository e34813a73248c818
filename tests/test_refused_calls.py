"""Code that keeps making calls after its run has ended delays no other task."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from durable import Durable, SyncTaskContext, TaskContext, task
from tests.support.changing import changed
from tests.support.clock import Clock
from tests.support.processes import ROOT, Processes
from tests.support.wait import eventually
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]
Sync: TypeAlias = SyncTaskContext[Any]

calls: Counter[str] = Counter()
# Set once a test has ended: then its code may be cancelled.
_abandoned = threading.Event()


@task(name="async")
async def in_async(params: None, ctx: Context) -> None:
    while True:
        try:
            calls["async"] += 1
            await ctx.await_event("never")
        except BaseException:  # as careless code does
            if _abandoned.is_set():
                raise


@task(name="sync")
def in_sync(params: None, ctx: Sync) -> None:
    while True:
        try:
            calls["sync"] += 1
            ctx.await_event("never")
        except BaseException:  # as careless code does
            if _abandoned.is_set():
                raise


@task(name="branch")
async def in_branch(params: None, ctx: Context) -> None:
    async def branch() -> None:
        while True:
            try:
                calls["branch"] += 1
                await ctx.step("again", int)
                await ctx.sleep_for("long", 3600)
            except BaseException:  # noqa: BLE001, S112 - as careless code does
                continue

    await asyncio.gather(branch(), ctx.await_event("never"))


@task(name="publishes")
async def publishes(params: None, ctx: Context) -> None:
    while True:
        try:
            calls["publishes"] += 1
            await ctx.write_stream("news", 1)
            await ctx.await_event("never")
        except BaseException:  # noqa: BLE001, S112 - as careless code does
            continue


@task(name="beats")
async def beats(params: None, ctx: Context) -> None:
    while True:
        try:
            calls["beats"] += 1
            await ctx.heartbeat()
            await ctx.await_event("never")
        except BaseException:  # noqa: BLE001, S112 - as careless code does
            continue


@task(name="after")
async def after(params: None, ctx: Context) -> None:
    """Leave a branch behind that continues when the task has completed."""

    async def branch() -> None:
        while True:
            try:
                calls["after"] += 1
                await ctx.step("again", int)
            except BaseException:  # noqa: BLE001 - as careless code does
                await asyncio.sleep(0)

    _branches.append(asyncio.create_task(branch()))


_branches: list[asyncio.Task[None]] = []
STUBBORN = [in_async, in_sync, in_branch, publishes, beats, after]


@task
async def innocent(params: None, ctx: Context) -> dict[str, int]:
    await ctx.step("work", int)
    return dict(calls)


PROGRAM = """
import durable._task.run
from durable import Durable, run_worker
from tests.test_refused_calls import STUBBORN, innocent

durable._task.run._EXIT_TIMEOUT = 0.5

app = Durable(tasks=[*STUBBORN, innocent])
if __name__ == "__main__":
    run_worker("stubborn:app")
"""


def test_code_that_swallows_its_suspension_is_held(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    """It stops spinning, the others continue, and one SIGTERM is enough."""
    path = tmp_path / "stubborn.py"
    path.write_text(PROGRAM)
    with Durable(dsn) as client:
        for one in STUBBORN:
            client.spawn(one)
        paths = f"{ROOT}:{tmp_path}"
        process = processes.python(str(path), env={"PYTHONPATH": paths})
        left = len(STUBBORN) - 2  # one of two that the task's own coroutine ends
        eventually(lambda: process.output().count("left behind") == left, deadline=30)
        counts = [client.spawn(innocent).result(timeout=20) for _ in range(2)]
        assert counts[0].keys() == {one.name for one in STUBBORN}
        assert counts[0] == counts[1]
        assert max(counts[1].values()) < 1_000
        process.terminate()
        assert process.wait(deadline=20) == 0


@pytest.fixture
def _ends_what_it_leaves() -> Iterator[None]:
    """End the code that was left behind with its test, not in the middle of another."""
    _abandoned.clear()
    yield
    _abandoned.set()
    gc.collect()


@pytest.mark.usefixtures("_ends_what_it_leaves")
@pytest.mark.parametrize("stubborn", [in_async, in_sync])
async def test_such_a_task_continues_later(
    dsn: str,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    stubborn: Any,
) -> None:
    """Its wait ends as usual, after the run was left behind."""
    caplog.set_level(logging.ERROR, logger="durable.worker")
    monkeypatch.setattr("durable._task.run._EXIT_TIMEOUT", 0.1)
    async with working(dsn, stubborn) as (app, worker):
        handle = await app.spawn(stubborn)
        await worker.drain()
        assert "left behind" in caplog.text
        assert await handle.state() == "sleeping"
        _abandoned.set()  # it may be collected from here on


async def test_fails_an_attempt_that_continues_after_its_code_was_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strict task whose code has changed and that swallows the error."""
    monkeypatch.setattr("durable._task.run._EXIT_TIMEOUT", 0.1)

    @task(name="t", replay_check="strict")
    async def old(params: None, ctx: Context) -> None:
        await ctx.step("a", int)
        await ctx.await_event("go")

    @task(name="t", replay_check="strict")
    async def swallows(params: None, ctx: Context) -> None:
        while True:
            try:
                await ctx.step("b", int)
            except Exception:  # noqa: BLE001, S112 - as careless code does
                continue

    found = await changed(dsn, old, swallows, max_attempts=1)
    assert found.error is not None
    assert (found.state, found.error.type) == ("failed", "NonDeterminism")
