"""A task waits for all of several others, or for the first of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from durable import (
    AsyncDurable,
    InvalidArgument,
    SyncTaskContext,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.clock import Clock

SEEN: list[Any] = []


@task
async def tell(what: Any, ctx: TaskContext) -> Any:
    return what


@task
async def count(number: int, ctx: TaskContext) -> int:
    return number


@task
async def hear(event: str, ctx: TaskContext) -> Any:
    return await ctx.await_event(event)


@task(max_attempts=1)
async def refuse(why: str, ctx: TaskContext) -> None:
    raise PermissionError(why)


@task
async def gather_two(params: None, ctx: TaskContext) -> list[Any]:
    number = await ctx.spawn("number", count, 7)
    said = await ctx.spawn("said", tell, "seven")
    a, b = await ctx.gather(number, said)
    by_name = await ctx.gather(number=number, said=said, name="named")
    nothing: tuple[Any, ...] = await ctx.gather(name="nothing")
    return [a, b, by_name, list(nothing)]


@task
async def gather_broken(params: None, ctx: TaskContext) -> list[str]:
    fine = await ctx.spawn("fine", tell, 1)
    broken = await ctx.spawn("broken", refuse, "not you")
    try:
        await ctx.gather(fine, broken)
    except TaskFailed as failure:
        which = [str(failure.name), str(failure.task_id == broken.task_id)]
        return [*which, failure.error.type, failure.error.message]
    return []


@task
async def gather_late(params: None, ctx: TaskContext) -> str:
    child = await ctx.spawn("late", hear, "never")
    try:
        await ctx.gather(a=child, timeout=60)
    except TimeoutError:
        return "too late"
    return "in time"


@task
async def race(events: list[str], ctx: TaskContext) -> Any:
    """Join the first, continue for a while, and join it again in every run."""
    runners = [await ctx.spawn(event, hear, event) for event in events]
    winner = await ctx.first(*runners)
    SEEN.append(winner.name)
    value = await ctx.join(winner)
    await ctx.await_event("all are in")
    return [winner.name, value]


@task
async def race_to_refuse(params: None, ctx: TaskContext) -> str:
    slow = await ctx.spawn("slow", hear, "never")
    broken = await ctx.spawn("broken", refuse, "no")
    winner = await ctx.first(slow, broken)
    try:
        await ctx.join(winner)
    except TaskFailed as failure:
        return f"{failure.name}: {failure.error}"
    return "none"


@task
async def race_in_time(params: None, ctx: TaskContext) -> Any:
    slow = await ctx.spawn("slow", hear, "slow")
    try:
        await ctx.first(slow, timeout=60)
    except TimeoutError:
        await ctx.await_event("now")
        return await ctx.join(await ctx.first(slow, name="again"))
    return "in time"


@task
async def crowd(size: int, ctx: TaskContext) -> list[Any]:
    """Race children of two queues against a crowd of others."""
    here = await ctx.spawn_many("here", hear, ["never"] * (size // 2))
    there = await ctx.spawn_many("there", hear, ["never"] * (size // 2), queue="far")
    winner = await ctx.first(*here, *there)
    return [winner.name, winner.queue]


@task
def race_in_a_thread(params: None, ctx: SyncTaskContext) -> Any:
    winner = ctx.first(
        ctx.spawn("slow", hear, "never"), ctx.spawn("quick", tell, "quick")
    )
    return ctx.join(winner)


@task
async def everything_at_once(params: None, ctx: TaskContext) -> list[Any]:
    """Suspend branches of every kind, beside one that is busy."""
    slow = await ctx.spawn("slow", hear, "go", queue="far")
    quick = await ctx.spawn("quick", tell, "quick", queue="far")

    async def winner() -> str:
        return str((await ctx.first(slow, quick)).name)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ctx.call("one", tell, "called", queue="far")),
            group.create_task(winner()),
            group.create_task(ctx.gather(slow, quick)),
            group.create_task(ctx.await_event("go")),
            group.create_task(ctx.sleep_for("moment", 0.05)),
            group.create_task(ctx.step("step", asyncio.sleep, 0.1, as_type=None)),
        ]
    return [found.result() for found in tasks]


TASKS: list[Any] = [
    *[tell, count, hear, refuse, gather_two, gather_broken, gather_late, race],
    *[race_to_refuse, race_in_time, crowd, race_in_a_thread, everything_at_once],
]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    SEEN.clear()
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        await app.create_queue("far")
        yield app


async def drain(app: AsyncDurable) -> None:
    async with app.worker(queues=["default", "far"]) as worker:
        await worker.drain()


async def outcome(app: AsyncDurable, task: Any, params: Any = None) -> Any:
    handle = await app.spawn(task, params)
    await drain(app)
    return await handle.result(0)


async def test_gathers_outputs_in_order_and_by_name(app: AsyncDurable) -> None:
    named = {"number": 7, "said": "seven"}
    assert await outcome(app, gather_two) == [7, "seven", named, []]


async def test_gathers_in_one_wait(app: AsyncDurable, db: psycopg.Connection) -> None:
    handle = await app.spawn(gather_two)
    await drain(app)
    names = "select name from durable.checkpoints where task_id = %s order by position"
    assert db.execute(names, [handle.task_id]).fetchall() == [
        (name,)
        for name in [
            *("$spawn:number", "$spawn:said"),
            *("$join:gather", "$join:named", "$join:nothing"),
        ]
    ]


async def test_says_which_of_the_gathered_tasks_failed(app: AsyncDurable) -> None:
    said = ["broken", "True", "PermissionError", "not you"]
    assert await outcome(app, gather_broken) == said


async def test_gather_times_out(app: AsyncDurable, clock: Clock) -> None:
    handle = await app.spawn(gather_late)
    await drain(app)
    clock.advance(61)
    await drain(app)
    assert await handle.result(0) == "too late"


@pytest.mark.parametrize("first", ["b", "c"])
async def test_remembers_which_task_finished_first(
    app: AsyncDurable, db: psycopg.Connection, first: str
) -> None:
    """However many have finished since, and in any order of the arguments."""
    handle = await app.spawn(race, ["a", "b", "c"])
    await drain(app)
    assert await handle.state() == "sleeping"
    await app.emit_event(first, first.upper())
    await drain(app)
    for other in "abc":
        await app.emit_event(other)
    await drain(app)
    await app.emit_event("all are in")
    await drain(app)
    assert await handle.result(0) == [first, first.upper()]
    assert set(SEEN) == {first}
    assert len(SEEN) >= 2
    assert db.execute("select from durable.waits").rowcount == 0


async def test_the_first_to_finish_may_have_failed(app: AsyncDurable) -> None:
    assert await outcome(app, race_to_refuse) == "broken: PermissionError: no"


async def test_first_times_out_and_remembers_it(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(race_in_time)
    await drain(app)
    clock.advance(61)
    await drain(app)
    await app.emit_event("slow", "came")
    await app.emit_event("now")
    async with app.worker():
        assert await handle.result(timeout=10) == "came"


async def test_races_in_a_synchronous_task(app: AsyncDurable) -> None:
    assert await outcome(app, race_in_a_thread) == "quick"


async def test_races_a_thousand_with_two_claims(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    """At two thirds, one task of the other queue ends; then all others."""
    handle = await app.spawn(crowd, 1_000)
    async with app.worker() as worker:
        await worker.drain()
    assert db.execute("select from durable.watches").rowcount == 1_000
    query = """
        select task_id from durable.tasks
        where queue = %s and name = 'hear' order by task_id offset %s limit 1
    """
    (chosen,) = db.execute(query, ["far", 166]).fetchall()
    await app.cancel(chosen[0], queue="far")
    async with app.worker() as worker:
        await worker.drain()
    assert await handle.result(0) == ["there:166", "far"]
    claims = "select times_claimed from durable.tasks where task_id = %s"
    assert db.execute(claims, [handle.task_id]).fetchone() == (2,)
    others = db.execute(query, ["far", 0]).fetchall()
    await app.cancel(others[0][0], queue="far")
    assert db.execute("select from durable.deferred_work").rowcount == 0


async def test_combines_with_all_other_waits_of_a_task(app: AsyncDurable) -> None:
    handle = await app.spawn(everything_at_once)
    async with app.worker(queues=["default"]), app.worker(queues=["far"]):
        await app.emit_event("go", "gone")
        await app.emit_event("go", "gone", queue="far")
        assert await handle.result(timeout=10) == [
            *("called", "quick", ["gone", "quick"], "gone", None, None)
        ]


class Somebody:
    """A handle of a foreign class."""

    name = "somebody"
    queue = "default"
    codec: Any = None

    def __init__(self, task_id: UUID) -> None:
        self.task_id = task_id


@task(max_attempts=1)
async def ask_wrongly(how: str, ctx: TaskContext) -> None:
    one: Any = Somebody(UUID(int=1))
    if how == "both":
        await ctx.gather(one, b=one)  # type: ignore[call-overload]
    elif how == "none":
        await ctx.first()
    elif how == "itself":
        itself: Any = Somebody(ctx.task_id)
        await ctx.first(one, itself)
    else:
        await ctx.gather(one, name="$x")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("both", "in order or by name"),
        ("none", "first takes at least one task"),
        ("itself", "would wait for itself"),
        ("name", "cannot begin with"),
    ],
)
async def test_refuses_invalid_waits_before_it_waits(
    dsn: str, db: psycopg.Connection, how: str, said: str
) -> None:
    async with AsyncDurable(dsn, tasks=[ask_wrongly]) as app:
        handle = await app.spawn(ask_wrongly, how)
        async with app.worker() as worker:
            await worker.drain()
        with pytest.raises(TaskFailed, match=said) as failure:
            await handle.result(0)
    assert failure.value.error.type == InvalidArgument.__name__
    assert db.execute("select from durable.checkpoints").rowcount == 0


async def test_tells_a_client_which_task_failed(app: AsyncDurable) -> None:
    failing, cancelled = await app.spawn(refuse, "no"), await app.spawn(hear, "x")
    await drain(app)
    await app.cancel(cancelled)
    with pytest.raises(TaskFailed) as failure:
        await failing.result(0)
    assert (failure.value.task_id, failure.value.name) == (failing.task_id, None)
    with pytest.raises(TaskCancelled) as cancellation:
        await cancelled.result(0)
    assert cancellation.value.task_id == cancelled.task_id
