"""A client and an operator learn why a task is late, and who holds it up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
import pytest

from durable import (
    Actor,
    AsyncDurable,
    Durable,
    Explanation,
    NotFound,
    Retry,
    TaskContext,
    task,
)
from durable.encryption import AESGCMCodec
from tests.support.claims import count_claims
from tests.support.roles import Roles
from tests.support.stage import Stage
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]

TASKS = "select detail from durable.explain_task('default', %s) where kind = 'tasks'"
LOCKED = "select detail from durable.explain_task('default', %s) where kind = 'locked'"


@task
async def approve(params: None, ctx: Context) -> str:
    return await ctx.await_event("approved", timeout=3600, as_type=str)


@task(max_attempts=2, retry=Retry.fixed(3600))
async def refuse(params: None, ctx: Context) -> None:
    raise ValueError("not today")


@task
async def wait_for_child(params: None, ctx: Context) -> str:
    child = await ctx.spawn("child", approve)
    return await ctx.join(child)


def kinds(reasons: list[Explanation]) -> list[str]:
    return [reason.kind for reason in reasons]


async def test_explains_each_stage_of_a_task(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[approve, refuse, wait_for_child]) as app:
        parent = await app.spawn(wait_for_child)
        assert kinds(await parent.explain()) == ["no_worker", "unknown_name", "queued"]
        async with app.worker(poll=3600) as worker:
            failing = await app.spawn(refuse)
            await worker.drain()
            (join,) = await parent.explain()
            ((child),) = await parent.children()
            assert join.kind == "tasks"
            assert join.detail["tasks"] == [
                {
                    "task_id": str(child.task_id),
                    "queue": "default",
                    "name": "approve",
                    "state": "sleeping",
                }
            ]
            (event,) = await app.explain(child)
            assert event.message.startswith('waits for the event "approved" until 2')
            (retry,) = await app.explain(failing.task_id)
            assert retry.kind == "retry"
            assert retry.message.endswith(": not today")
            assert retry.detail["error"] == {
                "type": "ValueError",
                "message": "not today",
            }
            await app.pause_queue(identity={"user": "ada"})
            await app.emit_event("approved", "yes")
            paused, queued = await app.explain(child)
            assert kinds([paused, queued]) == ["queue_paused", "queued"]
            assert paused.by is not None
            assert paused.by.identity == {"user": "ada"}
            await app.resume_queue()
            assert await parent.result(timeout=10) == "yes"
            assert kinds(await parent.explain()) == ["completed"]
            await failing.cancel(identity={"user": "bob"})
            (cancelled,) = await failing.explain()
            assert cancelled.by == Actor(paused.by.user, {"user": "bob"})


async def test_explains_a_running_task_by_its_worker(dsn: str) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    @task
    async def busy(params: None, ctx: Context) -> None:
        started.set()
        await may_end.wait()

    async with working(dsn, busy) as (app, worker):
        handle = await app.spawn(busy)
        await asyncio.wait_for(started.wait(), 10)
        (running,) = await handle.explain()
        assert running.kind == "running"
        assert running.detail["worker"] == worker.worker_id
        may_end.set()
        await worker.drain()


async def test_counts_an_idle_worker_as_long_as_it_has_not_stopped(dsn: str) -> None:
    async with working(dsn, approve, poll=3600, listen=False) as (app, _):
        unknown = await app.spawn("somebody's")
        assert kinds(await unknown.explain()) == ["unknown_name", "queued"]
    async with AsyncDurable(dsn) as app:
        known = await app.spawn("approve")
        assert kinds(await known.explain()) == ["no_worker", "queued"]


async def test_opens_an_error_that_is_encrypted(dsn: str) -> None:
    codec = AESGCMCodec({"k": bytes(32)})
    async with AsyncDurable(dsn, tasks=[refuse], codec=codec) as app:
        async with app.worker() as worker:
            handle = await app.spawn(refuse)
            await worker.drain()
        (retry,) = await handle.explain()
        assert retry.message.endswith(": not today")
    async with AsyncDurable(dsn) as blind:
        (retry,) = await blind.explain(handle.task_id)
        assert "not today" not in repr(retry)
        assert retry.kind == "retry"


def test_names_the_transaction_that_has_locked_a_task(stage: Stage) -> None:
    task_id = stage.db.spawn()
    holder = stage.session()
    for change in (
        "select from durable.tasks where task_id = %s for no key update",
        "select durable.cancel_task('default', %s)",
    ):
        holder.rows(change, task_id)
        assert holder.rows(LOCKED, task_id) == []
        detail = stage.db.value(LOCKED, task_id)
        assert detail["pid"] == holder.connection.info.backend_pid
        assert "since" in detail
        holder.rollback()
        assert stage.db.rows(LOCKED, task_id) == []


@pytest.fixture
def roles(db: psycopg.Connection, dsn: str) -> Iterator[Roles]:
    made = Roles(db, dsn)
    yield made
    made.drop_all()


def test_shows_nothing_of_awaited_tasks_in_queues_of_others(
    db: psycopg.Connection, roles: Roles
) -> None:
    count_claims(db)
    owner = roles.make("owner")
    grant = "execute on function durable.explain_task"
    stranger = roles.make("stranger", "usage on schema durable", grant)
    db.execute("select durable.create_queue('secret')")
    parent, child = family(db)
    policy = f'{{"roles": ["{owner}"]}}'
    db.execute("select durable.create_queue('secret', %s)", [policy])
    known = {"task_id": str(child), "queue": "secret"}
    with roles.session(stranger) as session:
        assert tasks_of(session, parent) == [known]
    assert tasks_of(db, parent) == [known | {"name": "hidden", "state": "pending"}]


def family(db: psycopg.Connection) -> tuple[UUID, UUID]:
    """Return a task that waits for its child in the queue `secret`, and the child."""
    row = db.execute("select task_id from durable.spawn('default', 'x')").fetchone()
    assert row is not None
    db.execute("select durable.claim_tasks('default', 'w')")
    spawn = (
        "select task_id from durable.spawn_children_in('default', %s, 1, 'secret',"
        ' \'[{"name": "$c", "task": "hidden"}]\')'
    )
    child = db.execute(spawn, row).fetchone()
    assert child is not None
    suspend = (
        "select durable.suspend_tasks('default', json_build_array(json_build_object("
        "'task_id', %s::uuid, 'claim', 1, 'waits', json_build_array(json_build_object("
        "'name', '$join', 'task_ids', array[%s]::uuid[], 'queues', array['secret'])))))"
    )
    db.execute(suspend, [*row, *child])
    return row[0], child[0]


def tasks_of(session: psycopg.Connection, task_id: UUID) -> Any:
    ((detail,),) = session.execute(TASKS, [task_id]).fetchall()
    return detail["tasks"]


def test_refuses_an_unknown_task(dsn: str) -> None:
    with Durable(dsn) as app, pytest.raises(NotFound):
        app.explain(UUID(int=7))
