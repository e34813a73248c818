"""A cancelled wait receives nothing any more.

What it would have received goes to the remaining waits, in the same run and at replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from durable import TaskContext, task
from tests.support.clock import Clock
from tests.support.stage import QUEUE, Held, Session, Stage
from tests.support.wait import aeventually
from tests.support.working import working

WAITS = "select name from durable.waits order by name"
BLOCKED = """
select from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


def topic(name: str, position: int) -> dict[str, Any]:
    return {"name": f"$recv:{name}", "topic": "t", "position": position}


def suspend(
    session: Session, held: Held, *waits: dict[str, Any], withdrawn: Any
) -> Any:
    asked = held.json(waits=waits, withdrawn=withdrawn)
    return session._outcome("suspend_tasks", asked)


# -- by the engine ---------------------------------------------------------------------


def saved(stage: Stage) -> list[tuple[Any, ...]]:
    return stage.db.rows("select name, value from durable.checkpoints order by name")


def send(stage: Stage, held: Held, payload: str) -> None:
    stage.db.rows(
        "select durable.send_message(%s, %s, 't', %s)", QUEUE, held.task_id, payload
    )


def test_gives_a_message_to_the_remaining_wait(stage: Stage) -> None:
    held, given_up = stage.held(), topic("a", 1)
    assert stage.db.poll(held, given_up) == "waiting"
    send(stage, held, "7")
    left = topic("b", 2)
    assert suspend(stage.db, held, left, withdrawn=[given_up]) == "resolved"
    assert saved(stage) == [("$recv:b", 7)]


def test_returns_a_message_that_a_cancelled_wait_had_just_received(
    stage: Stage,
) -> None:
    """In the order of sending, whether a message arrived meanwhile or not."""
    held = stage.held()
    given_up = [topic("a", 1), topic("b", 2)]
    for payload in "123":
        send(stage, held, payload)
    assert stage.db.poll(held, *given_up) == "resolved"  # both of them
    assert [value for _, value in saved(stage)] == [1, 2]
    left = [topic("c", 3), topic("d", 4), topic("e", 5), topic("f", 6)]
    send(stage, held, "4")
    suspend(stage.db, held, *left, withdrawn=given_up)
    assert [value for _, value in saved(stage)] == [1, 2, 3, 4]


def test_refuses_a_former_claim(stage: Stage) -> None:
    held, wait = stage.held(), topic("a", 1)
    assert stage.db.poll(held, wait) == "waiting"
    stage.db.release(held)
    (again,) = stage.db.claim()
    assert suspend(stage.db, held, topic("b", 2), withdrawn=[wait]) == "lost"
    assert stage.db.rows(WAITS) == [("$recv:a",)]
    send(stage, held, "7")
    assert stage.db.load(again) == [("$recv:a", 7)]
    left = topic("b", 2)
    assert suspend(stage.db, again, left, withdrawn=[]) == "suspended"


# -- by a worker -----------------------------------------------------------------------


@task
async def interrupted(params: None, ctx: TaskContext[Any]) -> Any:
    """Receive while a step is running, and again when it is done."""
    ear = asyncio.create_task(ctx.recv("t"))
    work = asyncio.create_task(ctx.step("work", _happens, "worked"))
    await _happens("given up")
    ear.cancel()
    await asyncio.wait({ear})
    HEARD.append(ear.cancelled())
    await work
    return await ctx.recv("t")


HEARD: list[bool] = []  # whether it was cancelled in time
HAPPENED: set[str] = set()


async def _happens(what: str) -> None:
    await aeventually(lambda: asyncio.sleep(0, what in HAPPENED))


@pytest.fixture(autouse=True)
def _anew() -> None:
    HEARD.clear()
    HAPPENED.clear()


async def until(db: psycopg.Connection, query: str) -> None:
    async def found() -> bool:
        return bool(db.execute(query).fetchall())

    await aeventually(found)


@pytest.mark.parametrize("sleeps", [False, True])
async def test_receives_a_message_after_cancelling_a_receive(
    dsn: str, db: psycopg.Connection, *, sleeps: bool
) -> None:
    async with working(dsn, interrupted) as (app, worker):
        handle = await app.spawn(interrupted)
        await until(db, WAITS)
        HAPPENED.add("given up")
        await aeventually(lambda: asyncio.sleep(0, HEARD))
        if sleeps:
            HAPPENED.add("worked")
            await worker.drain()
            assert db.execute(WAITS).fetchall() == [("$recv:t#2",)]
        await handle.send("t", "hello")
        HAPPENED.add("worked")
        await worker.drain()
        assert (await handle.snapshot()).result == "hello"
    assert len(HEARD) == 1 + sleeps
    assert all(HEARD)


async def test_receives_a_message_that_arrived_while_its_wait_was_being_cancelled(
    dsn: str, db: psycopg.Connection, connect: Callable[[], psycopg.Connection]
) -> None:
    other = connect()
    other.autocommit = False
    async with working(dsn, interrupted) as (app, worker):
        handle = await app.spawn(interrupted)
        await until(db, "select from durable.tasks where state = 'running'")
        other.execute("select from durable.tasks for no key update")
        await handle.send("t", "hello")
        await until(db, BLOCKED)  # its wait is being polled
        HAPPENED.add("given up")
        await aeventually(lambda: asyncio.sleep(0, HEARD))
        other.rollback()
        await until(db, "select from durable.checkpoints where name = '$recv:t'")
        HAPPENED.add("worked")
        await worker.drain()
        assert (await handle.snapshot()).result == "hello"
    saved = db.execute("select name from durable.checkpoints order by name").fetchall()
    assert saved == [("$recv:t#2",), ("work",)]


async def test_a_cancelled_sleep_does_not_wake_it(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    """A replay does not see its end either, which the code did not wait for."""

    @task
    async def limited(params: None, ctx: TaskContext[Any]) -> str:
        limit = asyncio.create_task(ctx.sleep_for("limit", 60))
        work = asyncio.create_task(ctx.step("work", _happens, "worked"))
        await asyncio.wait({limit, work}, return_when=asyncio.FIRST_COMPLETED)
        if limit.done():
            return "too late"
        limit.cancel()
        await ctx.sleep_for("night", 3600)
        return "in time"

    async with working(dsn, limited) as (app, worker):
        handle = await app.spawn(limited)
        await until(db, WAITS)
        HAPPENED.add("worked")
        await worker.drain()
        clock.advance(61)
        await worker.drain()
        clock.advance(3600)
        await worker.drain()
        assert (await handle.snapshot()).result == "in time"
