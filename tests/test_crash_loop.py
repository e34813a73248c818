"""durable fails a task that kills its worker every time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable import AsyncDurable, InvalidArgument, TaskContext, TaskFailed, task
from tests.support.clock import Clock
from tests.support.forkserver import ForkServer, forkserver

POISON = "tests.test_crash_loop:be_killed"
FAIL = """
select outcome from durable.fail_tasks('default', json_build_array(json_build_object(
  'task_id', %s::uuid, 'claim', %s::integer, 'error', json_build_object('type', 'E'))))
"""


@task(name="poison", max_attempts=None)
async def poison(saves: bool, ctx: TaskContext) -> None:  # noqa: FBT001 - its params
    """Kill the process it runs in."""
    if saves:
        await ctx.step(f"attempt {ctx.attempt}", dict)
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="poison", max_attempts=None)
async def harmless(params: Any, ctx: TaskContext) -> str:
    return "survived"


async def be_killed() -> None:
    """Run a worker that the task kills."""
    async with AsyncDurable(tasks=[poison]) as app, app.worker() as worker:
        await worker.drain()


@pytest.fixture
def forks(
    tmp_path: Path, dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ForkServer]:
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    with forkserver(tmp_path) as started:
        yield started


def kill_workers(
    forks: ForkServer, db: psycopg.Connection, clock: Clock, times: int
) -> None:
    """Let the task kill so many workers, and expire their leases."""
    for _ in range(times):
        assert forks.fork(POISON).wait() == -signal.SIGKILL
        clock.advance(30)
        assert db.execute("select durable.expire_leases('default')").fetchone() == (1,)


async def test_fails_a_task_that_kills_every_worker(
    dsn: str, db: psycopg.Connection, clock: Clock, forks: ForkServer
) -> None:
    async with AsyncDurable(dsn, tasks=[harmless]) as app:
        await app.create_queue(max_lost_leases=3)
        handle = await app.spawn(harmless, False)  # noqa: FBT003
        kill_workers(forks, db, clock, 2)
        assert await handle.state() == "pending"
        kill_workers(forks, db, clock, 1)
        with pytest.raises(TaskFailed) as failed:
            await handle.result(0)
        assert failed.value.error is not None
        assert failed.value.error.type == "$CrashLoop"
        assert "time after time" in failed.value.error.message

        await app.retry(handle)  # counts from zero again
        kill_workers(forks, db, clock, 2)
        assert await handle.state() == "pending"
        async with app.worker() as worker:  # by a version in which the bug is fixed
            await worker.drain()
        assert await handle.result(0) == "survived"


async def test_a_task_that_makes_progress_may_crash(
    dsn: str, db: psycopg.Connection, clock: Clock, forks: ForkServer
) -> None:
    async with AsyncDurable(dsn, tasks=[harmless]) as app:
        await app.create_queue(max_lost_leases=2)
        handle = await app.spawn(harmless, True)  # noqa: FBT003
        kill_workers(forks, db, clock, 4)
        assert await handle.state() == "pending"


def lose(db: psycopg.Connection, clock: Clock, times: int = 1) -> None:
    for _ in range(times):
        db.execute("select durable.claim_tasks('default', 'w', lease => 1)")
        clock.advance(1)
        db.execute("select durable.expire_leases('default')")


async def test_counts_only_consecutive_lost_leases(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    async with AsyncDurable(dsn) as app:
        await app.create_queue(max_lost_leases=3)
        handle = await app.spawn("x", max_attempts=None)
        lose(db, clock, 2)
        held = db.execute(
            "select task_id, claim from durable.claim_tasks('default', 'w')"
        ).fetchone()
        assert held is not None
        db.execute(FAIL, held)
        for _ in range(2):
            clock.advance(3600)
            lose(db, clock)
        assert await handle.state() == "pending"
        lose(db, clock)
        assert await handle.state() == "failed"


async def test_allows_a_hundred_by_default(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    async with AsyncDurable(dsn) as app:
        handle = await app.spawn("x", max_attempts=None)
        lose(db, clock, 99)
        assert await handle.state() == "pending"
        lose(db, clock)
        assert await handle.state() == "failed"
        await app.create_queue(max_lost_leases=None)
        other = await app.spawn("x", max_attempts=None)
        lose(db, clock, 101)
        assert await other.state() == "pending"


async def test_the_last_attempt_keeps_its_own_error(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    async with AsyncDurable(dsn) as app:
        handle = await app.spawn("x", max_attempts=2)
        lose(db, clock, 2)
        with pytest.raises(TaskFailed) as failed:
            await handle.result(0)
        assert failed.value.error is not None
        assert failed.value.error.type == "$LeaseExpired"


def test_a_crash_loop_is_not_mistaken_for_a_repeated_failure(
    db: psycopg.Connection, clock: Clock
) -> None:
    """The worker was alive after all: its failure arrives too late."""
    db.execute("select durable.create_queue('default', '{\"max_lost_leases\": 1}')")
    db.execute("select durable.spawn('default', 'x')")
    held = db.execute(
        "select task_id, claim from durable.claim_tasks('default', 'w', lease => 1)"
    ).fetchone()
    assert held is not None
    clock.advance(1)
    db.execute("select durable.expire_leases('default')")
    said = db.execute(FAIL, held)
    assert said.fetchall() == [("lost",)]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
async def test_refuses_invalid_limits(dsn: str, wrong: Any) -> None:
    async with AsyncDurable(dsn) as app:
        with pytest.raises(InvalidArgument, match="max_lost_leases in policy"):
            await app.create_queue(max_lost_leases=wrong)
