"""durable resumes where it was when its connections break, without an error."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, AsyncTaskHandle, Durable, TaskContext, task
from durable._db.reconnecting import ReconnectingConnection
from durable._task.checkpoints import CheckpointFlusher, Write
from durable.embedded import Postgres
from tests.support.wait import aeventually, eventually
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]

# All sessions of this test's database but the one that asks.
BREAK = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""
TASKS = 60

effects: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


@task
async def child(number: int, ctx: Context) -> int:
    return await ctx.step("double", double, number)


@task(max_attempts=1)
async def busy(number: int, ctx: Context) -> int:
    """Make every kind of call; each effect is counted."""
    for turn in range(3):
        await ctx.step(f"turn {turn}", count, f"{number} turn {turn}")
    await ctx.sleep_for("nap", 0.02)
    spawned = await ctx.spawn("child", child, number)
    joining, beside = ctx.join(spawned), ctx.step("beside", count, f"{number} beside")
    doubled: int = (await asyncio.gather(joining, beside))[0]
    await ctx.emit_event(f"done:{number}")
    await ctx.await_event(f"done:{(number + 1) % TASKS}")
    return doubled


def double(number: int) -> int:
    return 2 * number


async def count(effect: str) -> None:
    await asyncio.sleep(0.002)
    effects[effect] += 1


async def go_on_while(
    dsn: str, disaster: Callable[[], Awaitable[None]], *, times: int
) -> None:
    """Inject a fault into a busy worker and its clients, so many times."""
    async with working(dsn, busy, child, concurrency=20) as (app, worker):
        handles = await app.spawn_many(busy, range(TASKS))
        results = asyncio.gather(*(handle.result(timeout=60) for handle in handles))
        for time in range(1, times + 1):
            await aeventually(partial(came_to, time * TASKS * 3 // (times + 1)))
            await disaster()
        assert await results == [2 * number for number in range(TASKS)]
        await worker.drain()
    assert set(effects.values()) == {1}
    assert len(effects) == TASKS * 4


async def came_to(number: int) -> bool:
    return effects.total() >= number


async def test_continues_when_every_connection_is_cut(
    dsn: str, db: psycopg.Connection
) -> None:
    async def cut() -> None:
        db.execute(BREAK)

    await go_on_while(dsn, cut, times=5)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_continues_when_the_server_is_restarted(
    own_server: Postgres, mode: Literal["fast", "immediate"]
) -> None:
    async def restart() -> None:
        await asyncio.to_thread(own_server.restart, mode)

    await go_on_while(own_server.conninfo(), restart, times=2)


async def test_gets_notifications_again_after_its_connections_were_cut(
    dsn: str, db: psycopg.Connection
) -> None:
    async with working(dsn, child, poll=3600) as (app, worker):
        await worker.drain()
        await aeventually(lambda: asyncio.sleep(0, is_listening(db)))
        db.execute(BREAK)
        await aeventually(lambda: asyncio.sleep(0, is_listening(db)))
        handle = await app.spawn(child, 21)
        assert await handle.result(timeout=20) == 42


async def test_releases_a_claim_whose_answer_was_lost(
    dsn: str, db: psycopg.Connection
) -> None:
    """Only tasks that it does not know of: the running one continues."""
    finish = asyncio.Event()

    @task(max_attempts=1)
    async def long(params: None, ctx: Context) -> str:
        await finish.wait()
        return await ctx.step("end", lambda: "finished")

    async with working(dsn, long, child, poll=0.05) as (app, worker):
        running = await app.spawn(long)
        await aeventually(lambda: is_in(running, "running"))
        held = await app.spawn("child", 1, queue="default", max_attempts=1)
        claim = "select task_id from durable.claim_tasks('default', %s, '{child}')"
        while not db.execute(claim, [worker.worker_id]).fetchall():
            held = await app.spawn("child", 1, max_attempts=1)
        db.execute(BREAK)
        assert await held.result(timeout=20) == 2
        finish.set()
        assert await running.result(timeout=20) == "finished"


def test_synchronous_clients_wait_through_a_loss(
    dsn: str, db: psycopg.Connection
) -> None:
    results: list[int] = []
    with Durable(dsn, tasks=[child]) as app:
        handle = app.spawn(child, 21)
        waiting = threading.Thread(
            target=lambda: results.append(handle.result(timeout=60)), daemon=True
        )
        waiting.start()
        for _ in range(5):
            eventually(lambda: is_asking(db))
            db.execute(BREAK)
        with app.worker():
            waiting.join(timeout=60)
    assert results == [42]


async def test_clients_can_spawn_after_a_loss(dsn: str, db: psycopg.Connection) -> None:
    """A connection that died while it was idle is not handed out."""
    async with AsyncDurable(dsn, tasks=[child]) as app:
        for _ in range(5):
            await app.spawn(child, 1)
            db.execute(BREAK)
            eventually(lambda: not db.execute(BREAK).fetchall())
        assert (await app.queue_stats()).pending == 5


async def is_in(handle: AsyncTaskHandle[Any], state: str) -> bool:
    return await handle.state() == state


def is_listening(db: psycopg.Connection) -> bool:
    """Whether a worker has registered for its queue's notifications."""
    query = "select from pg_locks where locktype = 'advisory' and granted and database"
    query += " = (select oid from pg_database where datname = current_database())"
    return db.execute(query).fetchone() is not None


def is_asking(db: psycopg.Connection) -> bool:
    """Whether a client is connected."""
    query = "select from pg_stat_activity where datname = current_database()"
    query += " and pid <> pg_backend_pid() and query ~ '(get_task_result|poll_results)'"
    return db.execute(query).fetchone() is not None


CLAIM = "select task_id, claim from durable.claim_tasks('default', 'w', array['alone'])"
WAITING = """
select from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


async def test_repeats_a_call_that_a_lost_connection_is_just_committing(
    dsn: str, db: psycopg.Connection
) -> None:
    """Its rows are missing when the same call begins, and exist when it writes."""
    db.execute("select durable.spawn('default', 'alone')")
    row = db.execute(CLAIM).fetchone()
    assert row is not None
    task_id, claim = row
    step = f'{{"task_id":"{task_id}","claim":{claim},"name":"charge","value":1}}'

    async def waits() -> bool:
        return db.execute(WAITING).fetchone() is not None

    link = ReconnectingConnection(dsn, "flush")
    saving = CheckpointFlusher(link)
    with psycopg.connect(dsn) as lost:
        lost.execute("select durable.flush('default', %s, null, null)", [f"[{step}]"])
        saved = saving.submit(Write("default", task_id, step))
        await aeventually(waits)
        lost.commit()
        assert await saved == "ok"
    await saving.close()
    await link.close()
    row = db.execute("select count(*) from durable.checkpoints").fetchone()
    assert row == (1,)
