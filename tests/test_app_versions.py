"""Tasks run on the application version that they require."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    SyncTaskContext,
    TaskContext,
    Worker,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually

OLD, NEW = "2026.10", "2026.11"


@task
async def report(params: Any, ctx: TaskContext) -> list[str | None]:
    """Return which version has run it, before and after a wait."""
    first = await ctx.step("first", _version, ctx)
    await ctx.await_event("go on")
    return [first, ctx.version]


async def _version(ctx: TaskContext) -> str | None:
    return ctx.version


@task
async def once(params: Any, ctx: TaskContext) -> str | None:
    return ctx.version


@task
def once_in_a_thread(params: Any, ctx: SyncTaskContext) -> str | None:
    return ctx.version


@task
async def parent(params: Any, ctx: TaskContext) -> list[str | None]:
    return [ctx.version, await ctx.join(await ctx.spawn("child", once))]


class Fleet:
    """Applications of several versions, each with a worker when it is asked for."""

    def __init__(self, dsn: str, exits: AsyncExitStack) -> None:
        self._dsn = dsn
        self._exits = exits
        self._known: dict[str | None, tuple[AsyncDurable, Worker]] = {}

    async def app(self, version: str | None) -> AsyncDurable:
        """Create it, with a worker that has finished its own first look."""
        app, worker = await self._of(version)
        await worker.drain()
        return app

    async def drain(self, version: str | None) -> int:
        return await (await self._of(version))[1].drain()

    async def _of(self, version: str | None) -> tuple[AsyncDurable, Worker]:
        if version not in self._known:
            tasks: list[Any] = [report, once, once_in_a_thread, parent]
            app = AsyncDurable(self._dsn, tasks=tasks, version=version)
            await self._exits.enter_async_context(app)
            # the test triggers the second look itself
            worker = app.worker(poll=60, listen=False)
            self._known[version] = app, worker
            await self._exits.enter_async_context(worker)
        return self._known[version]


@pytest.fixture
async def fleet(dsn: str) -> Any:
    async with AsyncExitStack() as exits:
        yield Fleet(dsn, exits)


@pytest.fixture(autouse=True)
def unversioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_APP_VERSION", raising=False)


def policy(db: psycopg.Connection, versions: str | None) -> None:
    said = "jsonb_build_object('versions', %s::text)"
    db.execute(f"select durable.create_queue('default', {said})", [versions])


async def test_runs_tasks_on_any_version_by_default(
    fleet: Fleet, db: psycopg.Connection
) -> None:
    app = await fleet.app(OLD)
    handle = await app.spawn(report)
    await fleet.drain(OLD)
    await fleet.drain(OLD)  # it looks once more after a task has begun to wait
    await app.emit_event("go on")
    await fleet.drain(NEW)
    assert await handle.result(0) == [OLD, NEW]
    assert db.execute("select version from durable.task_list").fetchall() == [(None,)]


async def test_keeps_a_pinned_task_with_the_version_that_started_it(
    fleet: Fleet, db: psycopg.Connection
) -> None:
    policy(db, "pin")
    _, _, app = [await fleet.app(version) for version in (OLD, None, NEW)]
    handle = await app.spawn(report)
    assert await fleet.drain(OLD) == 1
    await app.emit_event("go on")
    assert await fleet.drain(NEW) == 0
    assert await fleet.drain(None) == 0
    await fleet.drain(OLD)  # unless its worker has looked by itself
    assert await handle.result(0) == [OLD, OLD]


async def test_starts_the_child_of_a_pinned_task_on_any_version(
    fleet: Fleet, db: psycopg.Connection
) -> None:
    policy(db, "pin")
    app = await fleet.app(OLD)
    handle = await app.spawn(parent)
    await fleet.drain(OLD)
    await fleet.drain(OLD)
    assert await handle.result(0) == [OLD, OLD]


async def test_gates_a_task_to_the_version_that_spawned_it(
    fleet: Fleet, db: psycopg.Connection
) -> None:
    policy(db, "gate")
    old, new = await fleet.app(OLD), await fleet.app(NEW)
    mine, theirs = await old.spawn(parent), await new.spawn(once_in_a_thread)
    many = await old.spawn_many(once, [{}, {}])
    sent = await new.spawn(once, version=OLD)
    assert await fleet.drain(NEW) == 1
    while await fleet.drain(OLD):
        pass
    assert await theirs.result(0) == NEW
    assert await mine.result(0) == [OLD, OLD]
    assert [await one.result(0) for one in [*many, sent]] == [OLD, OLD, OLD]


async def test_gives_a_task_spawned_without_a_version_to_the_latest(
    fleet: Fleet, db: psycopg.Connection
) -> None:
    policy(db, "gate")
    await fleet.app(OLD)
    await fleet.app(NEW)
    plain = await fleet.app(None)
    first = await plain.spawn(once)
    assert await fleet.drain(OLD) == await fleet.drain(None) == 0
    assert await fleet.drain(NEW) == 1
    second = await plain.spawn(once)
    assert await plain.promote_version(OLD)
    assert await fleet.drain(NEW) == 0
    assert await fleet.drain(OLD) == 1
    assert (await first.result(0), await second.result(0)) == (NEW, OLD)
    assert not await plain.promote_version("never seen")


async def test_shows_and_moves_tasks_for_a_version_without_workers(
    fleet: Fleet, db: psycopg.Connection, clock: Clock
) -> None:
    policy(db, "gate")
    app = await fleet.app(NEW)
    handles = [await app.spawn(once, version=OLD) for _ in range(3)]
    assert await fleet.drain(NEW) == 0
    rows = {row.version: row for row in await app.list_versions()}
    assert rows[OLD].stranded
    assert (rows[OLD].live, rows[OLD].ready, rows[OLD].last_seen_at) == (3, 3, None)
    assert not rows[NEW].stranded
    assert rows[NEW].latest
    assert await app.set_version(NEW, task=handles[0]) == 1
    assert await fleet.drain(NEW) == 1
    assert await app.set_version(NEW, from_version=OLD) == 2
    assert await app.set_version(NEW, from_version=NEW) == 0
    assert await fleet.drain(NEW) == 2
    assert [await handle.result(0) for handle in handles] == [NEW] * 3
    with pytest.raises(InvalidArgument, match="either a task or"):
        await app.set_version(NEW)


async def test_unpins_tasks_when_the_policy_is_removed(
    fleet: Fleet, db: psycopg.Connection
) -> None:
    policy(db, "pin")
    app = await fleet.app(NEW)
    handle = await app.spawn(report)
    await fleet.drain(OLD)
    policy(db, None)
    await app.emit_event("go on")

    async def has_ended() -> bool:
        await fleet.drain(NEW)
        return await handle.state() == "completed"

    await aeventually(has_ended)
    assert await handle.result(0) == [OLD, NEW]


async def test_does_not_spin_for_tasks_it_may_not_claim(
    dsn: str, db: psycopg.Connection
) -> None:
    """An idle worker does not wait for tasks that are due for others."""
    policy(db, "gate")
    async with AsyncDurable(dsn, tasks=[once], version=NEW) as app:
        await app.spawn(once, version=OLD)
        async with app.worker(listen=False) as worker:
            await worker.drain()
            due = "select durable.get_next_due('default', array['once'], %s)"
            assert db.execute(due, [NEW]).fetchone() == (None,)
            assert db.execute(due, [OLD]).fetchone() == (0,)


async def test_logs_once_that_a_version_has_no_workers(
    dsn: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    policy(db, "gate")
    caplog.set_level(logging.WARNING, "durable.worker")
    async with AsyncDurable(dsn, tasks=[once], version=NEW) as app:
        await app.spawn(once, version=OLD)
        async with app.worker():

            async def said() -> bool:
                return "'2026.10', which no worker runs" in caplog.text

            await aeventually(said)


def test_takes_its_version_from_the_environment(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_APP_VERSION", "from outside")
    assert Durable(dsn)._application.version == "from outside"
    assert Durable(dsn, version=NEW)._application.version == NEW
    with pytest.raises(InvalidArgument, match="version"):
        Durable(dsn, version="")


@pytest.mark.parametrize("wrong", ["both", 1, ["pin"]])
async def test_refuses_unknown_policies(fleet: Fleet, wrong: Any) -> None:
    app = await fleet.app(None)
    with pytest.raises(InvalidArgument, match="versions in policy is"):
        await app.create_queue(versions=wrong)
