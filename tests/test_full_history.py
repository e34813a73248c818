"""The history says who did what to a task and, optionally, lists every claim."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from durable import (
    Actor,
    AsyncDurable,
    AsyncTaskHandle,
    Durable,
    HistoryEntry,
    InvalidArgument,
    TaskContext,
    cli,
    current,
    task,
)
from tests.support.clock import Clock
from tests.support.forkserver import forkserver
from tests.support.working import working

BE_KILLED = "tests.test_full_history:be_killed"
ADA = {"user": "ada", "roles": ["ops"]}


@task(name="ship")
async def dies(params: None, ctx: TaskContext) -> None:
    await ctx.step("pack", str, "packed")
    await ctx.sleep_for("rest", 1)
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="ship")
async def ship(params: None, ctx: TaskContext) -> Any:
    await ctx.step("pack", str, "packed")
    await ctx.sleep_for("rest", 1)
    return await ctx.await_event("label", timeout=600)


@task
async def parent(params: None, ctx: TaskContext) -> None:
    await ctx.spawn("a child", patient)
    await ctx.await_event("never")


@task(max_attempts=1)
async def patient(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


async def be_killed() -> None:
    """Run a worker that the task kills after its sleep."""
    async with AsyncDurable(tasks=[dies]) as app, app.worker() as worker:
        await worker.drain()


def told(entries: list[HistoryEntry]) -> list[str]:
    return [f"{entry.kind} {entry.name or ''}".strip() for entry in entries]


async def test_lists_every_claim_also_after_a_kill(
    dsn: str,
    db: psycopg.Connection,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker is killed while it holds the task; another one takes over."""
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    with forkserver(tmp_path) as forks:
        async with AsyncDurable(dsn, tasks=[ship]) as app:
            await app.create_queue(history="full")
            handle = await app.spawn(ship)
            assert forks.fork(BE_KILLED).wait() == 0  # it sleeps
            clock.advance(1)
            assert forks.fork(BE_KILLED).wait() == -signal.SIGKILL
            clock.advance(30)
            db.execute("select durable.expire_leases('default')")
            async with app.worker() as worker:
                await worker.drain()
            clock.advance(1)
            await app.emit_event("label", "L1")
            assert told(await handle.history())[-2:] == [
                "woken $event:label",
                "waiting $event:label",
            ]
            async with app.worker() as worker:
                await worker.drain()
            entries = await handle.history()
    assert told(entries) == [
        "spawned ship",
        "started",
        "claimed",
        "step pack",
        "suspended $sleep:rest",
        "claimed",
        "slept $sleep:rest",
        "lease_lost",
        "claimed",
        "suspended $event:label",
        "woken $event:label",
        "claimed",
        "event $event:label",
        "completed",
    ]
    first, second, third, fourth = (e for e in entries if e.kind == "claimed")
    (lost,) = (e for e in entries if e.kind == "lease_lost")
    assert lost.worker == second.worker != third.worker
    assert len({first.worker, second.worker, third.worker}) == 3
    assert fourth.worker == entries[-1].worker
    assert [e.attempt for e in (first, second, lost, third)] == [1, 1, 1, 2]


async def test_keeps_no_claims_by_default(dsn: str, db: psycopg.Connection) -> None:
    async with working(dsn, patient) as (app, worker):
        handle = await app.spawn(patient)
        await worker.drain()
        assert told(await handle.history()) == [
            "spawned patient",
            "started",
            "waiting $event:never",
        ]
        assert db.execute("select count(*) from durable.claim_log").fetchone() == (0,)
        with pytest.raises(InvalidArgument, match='"brief"'):
            await app.create_queue(history="long")  # type: ignore[arg-type]
        await app.create_queue(history="full")
        await app.create_queue(history="brief")
        await app.emit_event("never")
        await worker.drain()
        assert db.execute("select count(*) from durable.claim_log").fetchone() == (0,)


async def who(handle: AsyncTaskHandle[Any], kind: str) -> Actor | None:
    """Return who last changed this task."""
    return [entry.by for entry in await handle.history() if entry.kind == kind][-1]


async def test_records_who_cancelled_retried_and_forked(
    dsn: str, db: psycopg.Connection
) -> None:
    role = db.info.user
    async with working(dsn, parent, patient) as (app, worker):
        handle = await app.spawn(parent)
        await worker.drain()
        (child,) = [e for e in await handle.history() if e.kind == "child_spawned"]
        assert child.task_id is not None
        below = app.handle(child.task_id, queue=child.queue)
        await app.cancel(handle, identity=ADA)
        assert await who(handle, "cancelled") == Actor(user=role, identity=ADA)
        above = Actor(queue="default", task_id=handle.task_id)
        assert await who(below, "cancelled") == above
        await app.retry(handle, identity={"user": "bob"})
        bob = Actor(user=role, identity={"user": "bob"})
        assert await who(handle, "retried") == bob
        assert await who(below, "retried") == above
        assert await who(handle, "attempt_cancelled") == Actor(user=role, identity=ADA)
        await app.cancel_many(name="parent", identity=ADA)
        assert await who(handle, "cancelled") == Actor(user=role, identity=ADA)
        await app.retry_many(name="parent", identity=ADA)
        assert await who(handle, "retried") == Actor(user=role, identity=ADA)
        fork = await handle.fork(identity=ADA)
        assert await who(fork, "spawned") == Actor(user=role, identity=ADA)
        plain = await handle.fork()
        assert await who(plain, "spawned") == Actor(user=role)
        await app.cancel(plain)
        assert await who(plain, "cancelled") == Actor(user=role)


async def test_records_which_task_cancelled_another(
    dsn: str, db: psycopg.Connection
) -> None:
    @task
    async def stops(task_id: str, ctx: TaskContext) -> None:
        async def stop() -> bool:
            return await app.cancel(task_id, reason="no need")

        await ctx.step("stop", stop)

    async with working(dsn, patient, stops) as (app, worker):
        handle = await app.spawn(patient)
        await worker.drain()
        stopper = await app.spawn(stops, str(handle.task_id))
        await worker.drain()
        by = Actor(user=db.info.user, queue="default", task_id=stopper.task_id)
        assert await who(handle, "cancelled") == by
        last = (await handle.history())[-1]
        assert last.said == (
            f"$Cancelled: no need, by task {stopper.task_id} role {by.user}"
        )
        assert current(None) is None


async def test_refuses_invalid_callers(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        handle = await app.spawn("x")
        wrong: Any
        for wrong in ("ada", {"at": object()}, {"x": "y" * 3500}):
            for call in (app.cancel, app.retry):
                with pytest.raises(InvalidArgument, match="identity"):
                    await call(handle, identity=wrong)
            for sweep in (app.cancel_many, app.retry_many):
                with pytest.raises(InvalidArgument, match="identity"):
                    await sweep(name="x", identity=wrong)
        assert await handle.state() == "pending"


def test_takes_the_caller_from_the_applications_session(
    dsn: str, db: psycopg.Connection
) -> None:
    with Durable(dsn) as app:
        handle = app.spawn("x")
        said = json.dumps({"identity": ADA})
        db.execute("select set_config('durable.caller', %s, false)", [said])
        db.execute("select durable.cancel_task('default', %s)", [handle.task_id])
        last = handle.history()[-1]
        assert last.by == Actor(user=db.info.user, identity=ADA)


def test_leaves_no_caller_set_on_a_connection(dsn: str) -> None:
    with Durable(dsn) as app:
        first, second = app.spawn_many("x", [1, 2])
        app.cancel(first, identity=ADA)
        app.cancel(second)
        by = second.history()[-1].by
        assert by is not None
        assert by.identity is None


def test_keeps_the_caller_that_a_session_has_set(dsn: str) -> None:
    said = json.dumps({"identity": ADA}, separators=(",", ":"))
    with Durable(make_conninfo(dsn, options=f"-c durable.caller={said}")) as app:
        first, second = app.spawn_many("x", [1, 2])
        app.cancel(first)
        app.cancel(second, identity={"user": "bob"})
        told = [handle.history()[-1].by for handle in (first, second)]
        assert [by.identity for by in told if by] == [ADA, {"user": "bob"}]


async def test_prints_a_tree_of_histories(dsn: str) -> None:
    async with working(dsn, parent, patient) as (app, worker):
        handle = await app.spawn(parent)
        await worker.drain()
        await app.cancel(handle)
    arguments = ["history", "default", str(handle.task_id), "--dsn", dsn, "--tree"]
    printed = CliRunner().invoke(cli.app, arguments)
    assert printed.exit_code == 0, printed.output
    what = [line[34:].rstrip() for line in printed.output.splitlines()]
    kinds = [line.split()[0] for line in what]
    assert Counter(kinds)["spawned"] == 2
    below = [line for line in what if line.startswith("  ")]
    assert [line.split()[0] for line in below] == ["spawned", "started", "cancelled"]
    assert f"by task {handle.task_id}" in below[-1]
    as_json = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).output)
    (child,) = [e for e in as_json if e["kind"] == "child_spawned"]
    assert UUID(child["task_id"]) != handle.task_id
