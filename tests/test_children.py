"""A task spawns its children once, and learns their outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from durable import (
    AlreadyFinished,
    AsyncDurable,
    AsyncTaskHandle,
    ChildHandle,
    Retry,
    SyncTaskContext,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskHandle,
    task,
)
from tests.support.clock import Clock
from tests.support.processes import Processes
from tests.support.wait import aeventually

EVENTS: list[str] = []


class Doubled(BaseModel):
    value: int


@task
async def double(number: int, ctx: TaskContext) -> Doubled:
    assert ctx.parent_task_id is not None
    return Doubled(value=2 * number)


@task(max_attempts=1)
async def break_down(why: str, ctx: TaskContext) -> None:
    raise KeyError(why)


@task
async def wait_for(event: str, ctx: TaskContext) -> Any:
    return await ctx.await_event(event)


@task
async def join_one(number: int, ctx: TaskContext) -> Doubled:
    child = await ctx.spawn("double", double, number)
    assert isinstance(child, ChildHandle)
    assert (child.queue, child.attempt, child.created) == (ctx.queue, 1, True)
    return await ctx.join(child)


@task
def join_in_a_thread(number: int, ctx: SyncTaskContext) -> list[Doubled]:
    children = [ctx.spawn("double", double, n) for n in range(number)]
    first = ctx.join(children[0])
    return [first, *ctx.gather(*children[1:])]


@task
async def join_many(count: int, ctx: TaskContext) -> int:
    children = await ctx.spawn_many("double", double, range(count))
    doubled = await ctx.gather(*children, timeout=timedelta(days=1))
    assert [one.value for one in doubled] == [2 * n for n in range(count)]
    return len({child.task_id for child in children})


@task
async def join_late(number: int, ctx: TaskContext) -> Doubled:
    child = await ctx.spawn("double", double, number)
    await ctx.await_event("join now")
    assert await ctx.join(child) == await ctx.join(child)
    return await ctx.join(child, timeout=0)


@task(max_attempts=5)
async def join_broken(why: str, ctx: TaskContext) -> None:
    await ctx.join(await ctx.spawn("child", break_down, why))


@task
async def catch_broken(why: str, ctx: TaskContext) -> list[str]:
    said = []
    for _ in range(2):
        child = await ctx.spawn("child", break_down, why)
        try:
            await ctx.join(child)
        except TaskFailed as failure:
            said.append(f"{failure.error.type}: {failure.error.message}")
        await ctx.sleep_for("a moment", 0.001)
    return said


@task(max_attempts=5)
async def join_forever(event: str, ctx: TaskContext) -> Any:
    return await ctx.join(await ctx.spawn("child", wait_for, event))


@task
async def join_in_time(event: str, ctx: TaskContext) -> Any:
    child = await ctx.spawn("child", wait_for, event)
    try:
        return await ctx.join(child, timeout=60)
    except TimeoutError:
        await ctx.emit_event("given up")
        return await ctx.join(child)


@task
async def family(depth: int, ctx: TaskContext) -> None:
    """Spawn two children on each level; those at the bottom wait for ever."""
    if depth == 0:
        await ctx.await_event("never")
    children = await ctx.spawn_many("child", family, [depth - 1] * 2)
    await ctx.gather(*children)


@task(max_attempts=1)
async def leave_family(how: str, ctx: TaskContext) -> None:
    await ctx.spawn("family", family, 2)
    await ctx.await_event("end")
    if how == "fail":
        raise ValueError(how)


@task(max_attempts=3, retry=Retry.fixed(0))
async def spawn_and_fail(number: int, ctx: TaskContext) -> int:
    child = await ctx.spawn("child", double, number)
    many = await ctx.spawn_many("many", double, range(3))
    EVENTS.append(f"{child.task_id} {many[2].task_id}")
    if ctx.attempt < 3:
        raise ValueError
    return sum(one.value for one in await ctx.gather(child, *many))


@task
async def spawn_by_name(params: None, ctx: TaskContext) -> list[Any]:
    child = await ctx.spawn("typed", "double", 4, headers={"a": 1}, max_attempts=2)
    return [await ctx.join(child), list(await ctx.gather(name="nothing"))]


TASKS: list[Any] = [
    *[double, break_down, wait_for, join_one, join_in_a_thread, join_many, join_late],
    *[join_broken, catch_broken, join_forever, join_in_time, family, leave_family],
    *[spawn_and_fail, spawn_by_name],
]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    EVENTS.clear()
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def states(db: psycopg.Connection, name: str) -> list[str]:
    query = "select state::text from durable.tasks where name = %s order by task_id"
    return [state for (state,) in db.execute(query, [name])]


def child_of(db: psycopg.Connection, parent: AsyncTaskHandle[Any]) -> UUID:
    query = "select task_id from durable.tasks where parent_task_id = %s"
    row = db.execute(query, [parent.task_id]).fetchone()
    assert row is not None
    child: UUID = row[0]
    return child


async def is_waiting(db: psycopg.Connection) -> bool:
    """Whether a session of this database waits for a lock."""
    query = """
        select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
    """
    return db.execute(query).fetchone() != (0,)


async def test_a_parent_gets_the_output_of_its_child(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(join_one, 21)
    async with app.worker():
        assert await handle.result(timeout=10) == Doubled(value=42)
    assert child_of(db, handle) > handle.task_id


async def test_joins_from_a_synchronous_task(app: AsyncDurable) -> None:
    handle = await app.spawn(join_in_a_thread, 4)
    async with app.worker():
        doubled = await handle.result(timeout=10)
    assert [one.value for one in doubled] == [0, 2, 4, 6]


async def test_spawns_children_by_name(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(spawn_by_name)
    async with app.worker():
        assert await handle.result(timeout=10) == [{"value": 8}, []]
    query = "select headers, max_attempts from durable.tasks where task_id = %s"
    row = db.execute(query, [child_of(db, handle)]).fetchone()
    assert row == ({"a": 1}, 2)


async def test_joins_a_thousand_children_with_one_wake_up(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(join_many, 1_000)
    async with app.worker():
        assert await handle.result(timeout=60) == 1_000
    row = db.execute(
        "select times_claimed from durable.tasks where task_id = %s", [handle.task_id]
    ).fetchone()
    assert row == (2,)  # started, suspended, woken once, completed


async def test_joins_a_child_that_has_already_finished(app: AsyncDurable) -> None:
    handle = await app.spawn(join_late, 21)
    await drain(app)
    await app.emit_event("join now")
    assert await drain(app) == 1
    assert await handle.result(0) == Doubled(value=42)


async def test_a_parent_gets_the_error_of_its_child(app: AsyncDurable) -> None:
    handle = await app.spawn(join_broken, "no money")
    async with app.worker():
        with pytest.raises(TaskFailed, match="no money") as failure:
            await handle.result(timeout=10)
    assert failure.value.error.type == "TaskFailed"
    assert "break_down" in (failure.value.error.traceback or "")
    assert (await app.get_result(handle)).attempt == 1  # recorded, so no retry helps


async def test_a_parent_can_continue_after_a_child_failed(app: AsyncDurable) -> None:
    handle = await app.spawn(catch_broken, "no money")
    async with app.worker():
        said = await handle.result(timeout=10)
    assert said == ["KeyError: 'no money'"] * 2


async def test_a_parent_learns_that_its_child_was_cancelled(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(join_forever, "never")
    await drain(app)
    await app.cancel(child_of(db, handle), reason="sold out")
    await drain(app)
    with pytest.raises(TaskFailed, match="sold out") as failure:
        await handle.result(0)
    assert failure.value.error.type == "TaskCancelled"


async def test_a_join_times_out_and_remembers_it(
    app: AsyncDurable, clock: Clock, db: psycopg.Connection
) -> None:
    handle = await app.spawn(join_in_time, "go")
    await drain(app)
    clock.advance(61)
    await drain(app)
    assert db.execute(
        "select name from durable.events where emitted_at is not null"
    ).fetchall() == [("given up",)]
    assert states(db, "wait-for") == ["sleeping"]  # a timeout cancels no child
    await app.emit_event("go", "went")
    await drain(app)
    assert await handle.result(0) == "went"


@pytest.mark.parametrize("how", ["fail", "cancel", "cancel while it runs", "deadline"])
async def test_cancels_all_descendants_of_a_failed_or_cancelled_task(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock, how: str
) -> None:
    handle = await app.spawn(leave_family, how, execution_timeout=3_600)
    await drain(app)
    assert states(db, "family") == ["sleeping"] * 7
    if how == "deadline":
        clock.advance(3_601)
        db.execute("select durable.expire_tasks('default')")
    elif how == "fail":
        await app.emit_event("end")
        await drain(app)
    else:
        if how == "cancel while it runs":
            await app.emit_event("end")
            db.execute("select durable.claim_tasks('default', 'somebody')")
        await app.cancel(handle)
    assert await handle.state() == ("failed" if how == "fail" else "cancelled")
    assert states(db, "family") == ["cancelled"] * 7
    why = db.execute(
        "select distinct error ->> 'type' from durable.tasks where name = 'family'"
    )
    assert why.fetchall() == [("$CancelledByParent",)]


async def test_keeps_descendants_of_a_completed_task_running(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(leave_family, "complete")
    await drain(app)
    await app.emit_event("end")
    await drain(app)
    assert await handle.state() == "completed"
    assert states(db, "family") == ["sleeping"] * 7


async def test_a_retry_revives_the_children_cancelled_with_their_parent(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(leave_family, "fail")
    await drain(app)
    leaf = db.execute("select max(task_id::text)::uuid from durable.tasks").fetchone()
    assert leaf is not None
    await app.cancel(leaf[0])
    await drain(app)
    await app.emit_event("end")
    await drain(app)
    before = states(db, "family")
    await app.retry(handle)
    after = states(db, "family")
    assert before.count("cancelled") + before.count("failed") == 7
    assert after.count("pending") >= 4
    row = db.execute("select state from durable.tasks where task_id = %s", leaf)
    assert row.fetchone() == ("cancelled",)  # not by its parent


async def test_spawns_children_once_in_any_number_of_runs(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(spawn_and_fail, 7)
    async with app.worker():
        assert await handle.result(timeout=10) == 14 + 6
    assert len(EVENTS) == 3
    assert len(set(EVENTS)) == 1
    assert states(db, "double") == ["completed"] * 4


PARENT = """
import os, signal, sys
from durable import AsyncDurable, TaskContext, task

@task
async def child(number: int, ctx: TaskContext) -> int:
    return number

@task(max_attempts=9)
async def parent(params: None, ctx: TaskContext) -> int:
    spawned = await ctx.spawn("child", child, 7)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return await ctx.join(spawned)

app = AsyncDurable(tasks=[child, parent])
"""


def test_spawns_a_child_once_although_its_parent_was_killed(
    processes: Processes, tmp_path: Any, dsn: str, db: psycopg.Connection
) -> None:
    (tmp_path / "family_app.py").write_text(PARENT)
    found = {"PYTHONPATH": str(tmp_path)}
    row = db.execute(
        "select task_id from durable.spawn('default', 'parent')"
    ).fetchone()
    assert row is not None
    options = ["worker", "family_app:app", "--lease", "1", "--concurrency", "1"]
    assert processes.durable(*options, env=found).wait() == -9
    processes.durable(*options, env=found)

    from durable import Durable  # noqa: PLC0415 - only this test is synchronous

    with Durable(dsn) as app:
        handle: TaskHandle[Any] = app.handle(row[0])
        assert handle.result(timeout=30) == 7
    assert states(db, "child") == ["completed"]
    assert states(db, "parent") == ["completed"]


async def test_a_finished_parent_gets_no_more_children(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(double, 1)
    await app.cancel(handle)
    spawn = "select durable.spawn('default', 'x', '{}', %s)"
    with pytest.raises(psycopg.Error) as refusal:
        db.execute(spawn, [f'{{"parent_task_id": "{handle.task_id}"}}'])
    assert refusal.value.sqlstate == AlreadyFinished.code


async def test_no_child_survives_the_cancellation_of_its_parent(
    app: AsyncDurable, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    """The child is spawned and not committed when the parent is cancelled."""
    parent = await app.spawn(wait_for, "never")
    session = connect()
    session.execute("begin")
    spawn = "select durable.spawn('default', 'double', '1', %s)"
    session.execute(spawn, [f'{{"parent_task_id": "{parent.task_id}"}}'])
    cancelling = asyncio.create_task(app.cancel(parent))

    await aeventually(lambda: is_waiting(db))
    session.execute("commit")
    assert await cancelling is True
    assert states(db, "double") == ["cancelled"]


async def test_raises_the_error_of_a_cancelled_task(app: AsyncDurable) -> None:
    handle = await app.spawn(family, 1)
    await drain(app)
    await app.cancel(handle, reason="enough")
    with pytest.raises(TaskCancelled, match="enough"):
        await handle.result()
