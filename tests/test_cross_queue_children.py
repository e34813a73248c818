"""A task can have children in other queues, which behave like children in its own."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.conninfo import make_conninfo

from durable import (
    AsyncDurable,
    Forbidden,
    InvalidArgument,
    NotFound,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskFailed,
    UnknownQueue,
    task,
)
from tests.support.clock import Clock

QUEUES = ("cpu", "gpu", "mail")


@task
async def where(said: Any, ctx: TaskContext) -> str:
    return f"{ctx.queue} {said}"


@task(max_attempts=1)
async def burn(why: str, ctx: TaskContext) -> None:
    raise ZeroDivisionError(why)


@task
async def linger(event: str, ctx: TaskContext) -> Any:
    return await ctx.await_event(event)


class OnGpu(Task[int, int]):
    queue = "gpu"

    async def run(self, number: int, ctx: TaskContext) -> int:
        assert ctx.queue == "gpu"
        return number * number


@task
async def fan_out(params: None, ctx: TaskContext) -> list[str]:
    """Spawn two children in each of three queues, and one in its own."""
    children = [await ctx.spawn("home", where, 0)]
    for queue in QUEUES:
        children += await ctx.spawn_many(queue, where, [1, 2], queue=queue)
    assert [child.queue for child in children[::2]] == ["default", *QUEUES]
    return list(await ctx.gather(*children))


@task
def fan_out_in_a_thread(params: None, ctx: SyncTaskContext) -> list[Any]:
    square = ctx.call("square", OnGpu, 3)
    first, second = ctx.gather(
        ctx.spawn("one", where, 1, queue="cpu"), ctx.spawn("two", where, 2)
    )
    return [square, first, second]


@task(max_attempts=1)
async def call_burn(why: str, ctx: TaskContext) -> None:
    await ctx.call("furnace", burn, why, queue="gpu")


@task
async def call_linger(params: None, ctx: TaskContext) -> str:
    with contextlib.suppress(TimeoutError):
        await ctx.call("slow", linger, "never", queue="gpu", timeout=60)
    return "gave up"


@task
async def spawn_in(queue: str, ctx: TaskContext) -> str:
    try:
        await ctx.spawn("child", where, 1, queue=queue)
    except (UnknownQueue, Forbidden) as refusal:
        return type(refusal).__name__
    return "spawned"


@task
async def spawn_many_in(queue: str, ctx: TaskContext) -> str:
    try:
        await ctx.spawn_many("child", where, range(3), queue=queue)
    except UnknownQueue as refusal:
        return type(refusal).__name__
    return "spawned"


@task(max_attempts=1)
async def dynasty(how: str, ctx: TaskContext) -> None:
    """Have descendants in this and other queues, and return."""
    await ctx.spawn("heir", heir, ["gpu", "default", "mail"], queue="cpu")
    await ctx.spawn("here", heir, ["gpu"])
    await ctx.await_event("end")
    if how == "fail":
        raise ValueError(how)


@task
async def heir(queues: list[str], ctx: TaskContext) -> None:
    """Have a child in the next queue; those in `mail` complete, with one below."""
    if queues:
        await ctx.spawn("heir", heir, queues[1:], queue=queues[0])
    else:
        await ctx.spawn("last", linger, "never", queue="cpu")
        return
    await ctx.await_event("never")


@task
async def wait_for_any(task_id: UUID, ctx: TaskContext) -> Any:
    """Wait for a task that another caller has spawned."""
    return await ctx.join(apps[-1].handle(task_id, where, queue="gpu"))


@task(max_attempts=1)
async def wait_for_itself(params: None, ctx: TaskContext) -> None:
    await ctx.join(apps[-1].handle(ctx.task_id))


@task
async def spawn_with_key(params: None, ctx: TaskContext) -> list[str]:
    """Spawn with a key, which is unique in the child's queue."""
    twice = [
        await ctx.spawn(name, where, "keyed", queue="gpu", idempotency_key="k")
        for name in ("one", "two")
    ]
    here = await ctx.spawn("here", where, "keyed", idempotency_key="k")
    assert twice[0].task_id == twice[1].task_id != here.task_id
    return list(await ctx.gather(*twice, here))


TASKS: list[Any] = [
    *[where, burn, linger, OnGpu, fan_out, fan_out_in_a_thread, call_burn],
    *[call_linger, spawn_in, dynasty, heir, wait_for_any, wait_for_itself],
    *[spawn_many_in, spawn_with_key],
]
apps: list[AsyncDurable] = []


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        for queue in QUEUES:
            await app.create_queue(queue)
        apps.append(app)
        yield app
        apps.remove(app)


async def drain(app: AsyncDurable, *queues: str) -> None:
    """Run tasks until nothing is left in some queues, or in all."""
    async with app.worker(queues=queues or ("default", *QUEUES)) as worker:
        await worker.drain()


def states(db: psycopg.Connection, name: str) -> dict[str, list[str]]:
    """Return the states of the tasks of a name by queue."""
    found: dict[str, list[str]] = {}
    query = "select queue, state from durable.tasks where name = %s order by task_id"
    for queue, state in db.execute(query, [name]):
        found.setdefault(queue, []).append(state)
    return found


async def test_spawns_in_queues_that_other_workers_serve(app: AsyncDurable) -> None:
    handle = await app.spawn(fan_out)
    async with contextlib.AsyncExitStack() as workers:
        for queue in ("default", *QUEUES):
            await workers.enter_async_context(app.worker(queues=[queue]))
        assert await handle.result(timeout=10) == [
            "default 0",
            *(f"{queue} {n}" for queue in QUEUES for n in (1, 2)),
        ]


async def test_wakes_a_parent_at_once_whose_workers_are_idle(app: AsyncDurable) -> None:
    """The call that ends the child notifies listeners of the parent's queue."""
    async with (
        app.worker(queues=["default"], poll=60),
        app.worker(queues=["gpu"], poll=60) as worker,
    ):
        await worker.drain()
        handle = await app.spawn("call-burn", "now")
        with pytest.raises(TaskFailed):
            await handle.result(timeout=5)


async def test_works_in_synchronous_tasks(app: AsyncDurable) -> None:
    handle = await app.spawn(fan_out_in_a_thread)
    async with app.worker(queues=["default", *QUEUES]):
        assert await handle.result(timeout=10) == [9, "cpu 1", "default 2"]


async def test_spawns_a_class_in_the_queue_it_names(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    await app.spawn(fan_out_in_a_thread)
    async with app.worker() as worker:
        await worker.drain()
    assert states(db, "on-gpu") == {"gpu": ["pending"]}
    query = """
        select child.parent_queue, parent.child_queues, saved.value ->> 'queue'
        from durable.tasks as child
        join durable.tasks as parent on parent.task_id = child.parent_task_id
        join durable.checkpoints as saved on saved.task_id = parent.task_id
        where child.name = 'on-gpu'
    """
    assert db.execute(query).fetchall() == [("default", ["gpu"], "gpu")]


async def test_tells_a_parent_which_child_failed_and_how(app: AsyncDurable) -> None:
    handle = await app.spawn(call_burn, "too hot")
    await drain(app)
    with pytest.raises(TaskFailed, match="too hot") as failure:
        await handle.result(0)
    assert failure.value.error.type == "TaskFailed"
    assert failure.value.task_id == handle.task_id
    assert (await app.get_result(handle)).attempt == 1


async def test_a_join_times_out_and_the_child_continues(
    app: AsyncDurable, clock: Clock, db: psycopg.Connection
) -> None:
    handle = await app.spawn(call_linger)
    await drain(app)
    clock.advance(61)
    await drain(app)
    assert await handle.result(0) == "gave up"
    assert states(db, "linger") == {"gpu": ["sleeping"]}


async def test_an_idempotency_key_belongs_to_the_childs_queue(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(spawn_with_key)
    await drain(app)
    assert await handle.result(0) == ["gpu keyed"] * 2 + ["default keyed"]


async def test_a_missing_queue_fails_the_task(app: AsyncDurable) -> None:
    """Not its worker, which continues."""
    handle = await app.spawn(spawn_in, "nowhere")
    async with app.worker():
        assert await handle.result(timeout=10) == "UnknownQueue"
        other = await app.spawn(spawn_in, "gpu")
        assert await other.result(timeout=10) == "spawned"


async def test_reports_many_refused_children_once(
    app: AsyncDurable, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await app.spawn(spawn_many_in, "nowhere")
    async with app.worker():
        assert await handle.result(timeout=10) == "UnknownQueue"
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_refuses_children_in_queues_that_the_role_may_not_use(
    app: AsyncDurable, db: psycopg.Connection, dsn: str
) -> None:
    role = f"futures_{db.info.backend_pid}"
    db.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
    db.execute(sql.SQL("grant durable_worker to {}").format(sql.Identifier(role)))
    await app.create_queue("closed", roles=["postgres"])
    handle = await app.spawn(spawn_in, "closed")
    try:
        async with (
            AsyncDurable(
                make_conninfo(dsn, options=f"-c role={role}"), tasks=TASKS
            ) as limited,
            limited.worker(),
        ):
            assert await handle.result(timeout=10) == "Forbidden"
    finally:
        name = sql.Identifier(role)
        db.execute(sql.SQL("drop owned by {}").format(name))
        db.execute(sql.SQL("drop role {}").format(name))
    assert states(db, "where") == {}


@pytest.mark.parametrize("how", ["fail", "cancel", "deadline"])
async def test_cancels_and_revives_all_descendants(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock, how: str
) -> None:
    handle = await app.spawn(dynasty, how, execution_timeout=3_600)
    await drain(app)
    before = {queue: sorted(found) for queue, found in states(db, "heir").items()}
    assert before == {
        "cpu": ["sleeping"],
        "gpu": ["completed", "sleeping"],
        "default": ["sleeping", "sleeping"],
        "mail": ["completed"],
    }
    assert states(db, "linger") == {"cpu": ["sleeping"] * 2}
    if how == "fail":
        await app.emit_event("end")
        await drain(app)
    elif how == "cancel":
        await app.cancel(handle)
    else:
        clock.advance(3_601)
        db.execute("select durable.expire_tasks('default')")
    query = """
        select queue, name, error ->> 'by' from durable.tasks
        where state = 'cancelled' and task_id <> %s
    """
    taken = db.execute(query, [handle.task_id]).fetchall()
    assert len(taken) == 4 + 2
    assert {by for _, _, by in taken} == {str(handle.task_id)}
    assert states(db, "linger") == {"cpu": ["cancelled"] * 2}

    await app.retry(handle)
    assert states(db, "linger") == {"cpu": ["pending"] * 2}
    assert states(db, "heir")["default"] == ["pending"] * 2
    assert db.execute("select from durable.deferred_work").rowcount == 0


async def test_defers_the_cancellation_of_locked_children(
    app: AsyncDurable, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    handle = await app.spawn(dynasty, "cancel")
    await drain(app)
    other = connect()
    with other.transaction():
        lock = "select from durable.tasks where queue = 'cpu' for update"
        other.execute(lock)
        await app.cancel(handle)
        assert states(db, "linger") == {"cpu": ["sleeping"] * 2}
    noted = "select queue, kind, root_queue from durable.deferred_work order by queue"
    assert set(db.execute(noted).fetchall()) == {("cpu", "cascade", "default")}
    db.execute("select durable.apply_deferred_work('cpu')")
    assert states(db, "linger") == {"cpu": ["cancelled"] * 2}

    with other.transaction():
        other.execute(lock)
        await app.retry(handle)
    assert ("cpu", "revive", "default") in db.execute(noted).fetchall()
    for queue in ("cpu", "gpu"):
        db.execute("select durable.apply_deferred_work(%s)", [queue])
        assert states(db, "linger") == {"cpu": ["pending"] * 2}
        assert states(db, "heir")["default"] == ["pending"] * 2
    assert db.execute("select from durable.deferred_work").rowcount == 0


@pytest.mark.parametrize(
    "level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
)
async def test_cascades_and_wakes_at_every_isolation_level(
    app: AsyncDurable,
    db: psycopg.Connection,
    connect: Callable[[], psycopg.Connection],
    level: IsolationLevel,
) -> None:
    handle = await app.spawn(dynasty, "cancel")
    caller = await app.spawn(call_linger)
    await drain(app)
    session = connect()
    session.isolation_level = level
    cancel = "select durable.cancel_task(queue, task_id) from durable.tasks"
    with session.transaction():
        session.execute("select from durable.queues")
        session.execute(f"{cancel} where task_id = %s", [handle.task_id])
        session.execute(f"{cancel} where queue = 'gpu' and name = 'linger'")
    for queue in ("default", *QUEUES) * 4:
        db.execute("select durable.apply_deferred_work(%s)", [queue])
    assert set(states(db, "linger")["cpu"]) == {"cancelled"}
    assert await caller.state() == "pending"
    assert db.execute("select from durable.deferred_work").rowcount == 0


async def test_keeps_a_finished_child_while_its_parent_exists(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(call_linger)
    await drain(app)
    (child,) = db.execute(
        "select task_id from durable.tasks where name = 'linger'"
    ).fetchall()
    await app.cancel(child[0], queue="gpu")
    clock.advance(31 * 86_400)
    assert db.execute("select durable.cleanup('gpu')").fetchone() == (0,)
    await app.cancel(handle)
    clock.advance(31 * 86_400)
    assert db.execute("select durable.cleanup('gpu')").fetchone() == (0,)
    assert db.execute("select durable.cleanup('default')").fetchone() == (1,)
    assert db.execute("select durable.cleanup('gpu')").fetchone() == (1,)
    assert db.execute("select from durable.watches").rowcount == 0


async def test_waits_for_a_task_that_another_caller_spawned(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    awaited = await app.spawn(where, "theirs", queue="gpu")
    handle = await app.spawn(wait_for_any, awaited.task_id)
    await drain(app, "default")
    assert await handle.state() == "sleeping"
    await drain(app, "gpu")
    assert await handle.state() == "pending"
    await drain(app, "default")
    assert await handle.result(0) == "gpu theirs"


async def test_learns_that_the_queue_of_its_child_was_dropped(
    app: AsyncDurable,
) -> None:
    awaited = await app.spawn(where, "theirs", queue="gpu")
    handle = await app.spawn(wait_for_any, awaited.task_id, max_attempts=1)
    await drain(app, "default")
    await app.drop_queue("gpu")
    async with app.worker():
        with pytest.raises(TaskFailed) as failure:
            await handle.result(timeout=10)
    assert failure.value.error.type == NotFound.__name__


async def test_refuses_to_wait_for_itself(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(wait_for_itself)
    await drain(app, "default")
    with pytest.raises(TaskFailed, match="would wait for itself") as failure:
        await handle.result(0)
    assert failure.value.error.type == InvalidArgument.__name__


def test_refuses_waits_with_invalid_queues(db: psycopg.Connection) -> None:
    waits = [
        {"name": "$a", "task_ids": [str(UUID(int=1))], "queues": []},
        {"name": "$b", "task_ids": [], "any_of": True},
    ]
    for wait in waits:
        held = [{"task_id": str(UUID(int=2)), "claim": 1, "waits": [wait]}]
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            db.execute(
                "select durable.suspend_tasks('default', %s)", [json.dumps(held)]
            )


async def test_a_retry_revives_no_child_that_its_parent_did_not_cancel(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    """Only children that this end of the parent has cancelled."""
    handle = await app.spawn(dynasty, "cancel")
    await drain(app)
    query = "select task_id from durable.tasks where name = 'linger' limit 1"
    row = db.execute(query).fetchone()
    assert row is not None
    await app.cancel(row[0], queue="cpu", reason="own")
    await app.cancel(handle)
    await app.retry(handle)
    assert sorted(states(db, "linger")["cpu"]) == ["cancelled", "pending"]


async def test_keeps_children_of_a_completed_task_running(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(dynasty, "complete")
    await drain(app)
    await app.emit_event("end")
    await drain(app)
    assert await handle.state() == "completed"
    assert states(db, "linger") == {"cpu": ["sleeping"] * 2}


async def test_costs_nothing_without_children_in_other_queues(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn("where", 1)
    await drain(app)
    await handle.result(0)
    query = """
        select count(*) from durable.tasks
        where parent_queue is not null or child_queues is not null
    """
    assert db.execute(query).fetchone() == (0,)
    assert db.execute("select from durable.watches").rowcount == 0
