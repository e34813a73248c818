"""All result waits of a client share one poll loop.

The database is asked about all awaited handles in one query, and only after a
notification or when a poll is due; a wait needs no thread, task or pooled connection of
its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from durable import (
    AsyncDurable,
    AsyncTaskHandle,
    Durable,
    NotFound,
    TaskCancelled,
    TaskContext,
    TaskHandle,
    task,
)
from durable._client._async import waiters
from tests.support.processes import Processes
from tests.support.wait import aeventually, eventually

# Every call is counted; it answers once nobody holds lock 7, with the state seen then.
COUNT = """
create sequence asked;
alter function durable.get_task_results rename to counted;
create function durable.get_task_results(queue text, task_ids uuid[])
returns setof durable.task_result language plpgsql security definer as $$
begin
  perform nextval('public.asked');
  return query select * from durable.counted(queue, task_ids);
  perform pg_advisory_xact_lock_shared(7);
end;
$$
"""
ASKED = "select last_value from asked where is_called"
HEARING = "select pid from pg_stat_activity where application_name = 'durable client'"
HEARING += " and datname = current_database()"
LISTENER = """
select durable.register_listener(%s, 'results'),
  durable.unregister_listener(%s, 'results')
"""
END = """
select durable.complete_tasks('default', json_agg(json_build_object(
  'task_id', task_id, 'claim', claim, 'result', json '7')))
from durable.claim_tasks('default', 'test', '{wanted}', %s)
"""
FORK = """
import os, threading
from durable import Durable

app = Durable()
handle = app.spawn("wanted")
waiting = threading.Thread(target=lambda: print("parent has", handle.result(20)))
waiting.start()
while app._backend._waker is None:
    pass
if os.fork() == 0:
    print("child waits", flush=True)
    print("child has", handle.result(20), flush=True)
    os._exit(0)
os.wait()
waiting.join()
app.close()
"""


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn) as app:
        yield app


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gets notifications must not poll for results."""
    monkeypatch.setattr(waiters, "_LISTENING", 3600)


def asked(db: psycopg.Connection) -> int:
    row = db.execute(ASKED).fetchone()
    return 0 if row is None else int(row[0])


def sessions(db: psycopg.Connection) -> list[int]:
    """Return the sessions on which clients listen for results."""
    return [pid for (pid,) in db.execute(HEARING)]


def is_awaited(db: psycopg.Connection, queue: str = "default") -> bool:
    """Whether a client is registered for the results of the queue."""
    row = db.execute(LISTENER, [queue, queue]).fetchone()
    return row is not None and not row[0]


async def until_not_awaited(db: psycopg.Connection) -> None:
    await aeventually(lambda: asyncio.sleep(0, not is_awaited(db)))


async def until_awaited(db: psycopg.Connection, queue: str = "default") -> None:
    await aeventually(lambda: asyncio.sleep(0, is_awaited(db, queue)))


def waiting(handle: AsyncTaskHandle[Any], timeout: float = 20) -> asyncio.Task[Any]:
    return asyncio.create_task(handle.result(timeout))


async def test_asks_for_all_handles_in_one_query(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    db.execute(COUNT)
    handles = await app.spawn_many("wanted", range(1000))
    results = [waiting(handle) for handle in handles]
    await until_awaited(db)
    for _ in range(10):
        db.execute(END, [100])
    assert await asyncio.gather(*results) == [7] * 1000
    assert asked(db) < 30


def test_asks_for_the_handles_of_all_threads_in_one_query(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute(COUNT)
    results: list[Any] = []

    def wait(handle: TaskHandle[Any]) -> None:
        results.append(handle.result(timeout=20))

    with Durable(dsn) as app:
        handles = app.spawn_many("wanted", range(50))
        threads = [threading.Thread(target=wait, args=[one]) for one in handles]
        for thread in threads:
            thread.start()
        eventually(lambda: is_awaited(db))
        joined = asked(db)
        for _ in range(5):
            db.execute(END, [10])
        for thread in threads:
            thread.join()
    assert results == [7] * 50
    assert joined <= 50 + 10
    assert asked(db) - joined < 50


@pytest.mark.usefixtures("never_polls")
async def test_is_notified_when_a_task_finishes(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    for _ in range(3):
        result = waiting(await app.spawn("wanted"))
        await until_awaited(db)
        db.execute(END, [1])
        assert await result == 7
        await until_not_awaited(db)
    assert len(sessions(db)) == 1
    await app.close()
    await aeventually(lambda: asyncio.sleep(0, not sessions(db)))


@pytest.mark.usefixtures("never_polls")
async def test_listens_for_all_its_queues_on_one_connection(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    await app.create_queue("second")
    first = await app.spawn("wanted")
    second = await app.spawn("wanted", queue="second")
    results = waiting(second), waiting(first)
    await until_awaited(db)
    await until_awaited(db, "second")
    assert len(sessions(db)) == 1
    db.execute(END, [1])
    assert await results[1] == 7
    await until_not_awaited(db)
    await app.cancel(second)
    with pytest.raises(TaskCancelled):
        await results[0]


async def test_polls_when_listening_is_disabled(
    dsn: str, db: psycopg.Connection
) -> None:
    async with AsyncDurable(dsn, listen=False) as app:
        result = waiting(await app.spawn("wanted"))
        db.execute(COUNT)
        await aeventually(lambda: asyncio.sleep(0, asked(db) >= 3))
        assert not sessions(db)
        assert not is_awaited(db)
        db.execute(END, [1])
        assert await result == 7


async def test_polls_while_its_listener_fails_and_listens_again(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    db.execute(
        "create or replace function durable._notify_listeners(queue text, channel text)"
        " returns void language sql as ''"
    )
    db.execute(COUNT)
    result = waiting(await app.spawn("wanted"))
    await aeventually(lambda: asyncio.sleep(0, asked(db) >= 3))
    assert is_awaited(db)
    db.execute(END, [1])
    assert await result == 7
    await aeventually(lambda: asyncio.sleep(0, not sessions(db)))


@pytest.mark.usefixtures("never_polls")
async def test_listens_again_after_its_connection_was_cut(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    result = waiting(await app.spawn("wanted"))
    for _ in range(3):
        await until_awaited(db)
        (pid,) = sessions(db)
        db.execute("select pg_terminate_backend(%s, 5000)", [pid])
        await until_awaited(db)
    db.execute(END, [1])
    assert await result == 7


async def test_continues_without_the_waiter_that_led_the_polling(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    """One gives up, one is cancelled, each in the middle of a query or a pause."""
    handles = await app.spawn_many("wanted", range(10))
    hasty = waiting(handles[0], timeout=0.05)
    others = [waiting(handle) for handle in handles]
    with pytest.raises(TimeoutError, match="still pending"):
        await hasty
    for other in others[:-1]:
        await asyncio.sleep(0.003)
        other.cancel()
    await asyncio.wait(others[:-1])
    await until_awaited(db)
    db.execute(END, [10])
    assert await others[-1] == 7
    await until_not_awaited(db)


async def test_ignores_an_answer_older_than_the_question(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    db.execute(COUNT)
    handle = await app.spawn("wanted")
    await app.cancel(handle)
    db.execute("select pg_advisory_lock(7)")
    before = waiting(handle)
    await aeventually(lambda: asyncio.sleep(0, asked(db) == 1))
    await app.retry(handle)
    after = waiting(handle)
    await asyncio.sleep(0)
    db.execute("select pg_advisory_unlock(7)")
    with pytest.raises(TaskCancelled):
        await before
    db.execute(END, [1])
    assert await after == 7


async def test_uses_at_most_one_connection_of_the_pool(
    dsn: str, db: psycopg.Connection
) -> None:
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool,
        AsyncDurable(pool) as app,
    ):
        handles = await app.spawn_many("wanted", range(100))
        results = [waiting(handle) for handle in handles]
        await until_awaited(db)
        async with pool.connection(timeout=1) as connection:
            await connection.execute("select")
        db.execute(END, [100])
        assert await asyncio.gather(*results) == [7] * 100


async def test_tells_all_waiters_when_their_tasks_are_deleted(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    await app.create_queue("second")
    handles = [await app.spawn("wanted", queue="second") for _ in range(3)]
    results = [asyncio.create_task(handle.result()) for handle in handles]
    await until_awaited(db, "second")
    await app.drop_queue("second")
    for result in results:
        with pytest.raises(NotFound):
            await result


@pytest.mark.usefixtures("never_polls")
async def test_close_ends_all_waits_and_reopening_allows_new_ones(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handles = await app.spawn_many("wanted", range(3))
    results = [asyncio.create_task(handle.result()) for handle in handles]
    await until_awaited(db)
    await app.close()
    for result in results:
        with pytest.raises(RuntimeError, match="closed"):
            await result
    await aeventually(lambda: asyncio.sleep(0, not sessions(db)))
    async with app:
        again = waiting(handles[0])
        await until_awaited(db)
        db.execute(END, [3])
        assert await again == 7


@pytest.mark.usefixtures("never_polls")
async def test_answers_a_new_waiter_at_once_while_others_wait(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handles = await app.spawn_many("wanted", range(2))
    db.execute(END, [1])
    result = waiting(handles[1])
    await until_awaited(db)
    assert await handles[0].result() == 7
    with pytest.raises(NotFound):
        await app.handle(uuid4()).result()
    with pytest.raises(TimeoutError, match="still pending"):
        await handles[1].result(timeout=0)
    db.execute(END, [1])
    assert await result == 7


@pytest.mark.usefixtures("never_polls")
async def test_answers_waiters_while_new_ones_keep_coming(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    first, other = await app.spawn_many("wanted", range(2))
    result = waiting(first)
    await until_awaited(db)

    async def keep_coming() -> None:
        while not result.done():
            with pytest.raises(TimeoutError):
                await other.result(timeout=0)

    others = [asyncio.create_task(keep_coming()) for _ in range(10)]
    db.execute(END, [1])
    assert await result == 7
    await asyncio.gather(*others)


async def test_waits_for_one_task_several_times_at_once(app: AsyncDurable) -> None:
    @task
    async def wanted(params: None, ctx: TaskContext[Any]) -> int:
        return 7

    app.register(wanted)
    handle = await app.spawn(wanted)
    results = [waiting(handle) for _ in range(20)]
    async with app.worker():
        assert await asyncio.gather(*results) == [7] * 20


async def test_asks_once_more_before_the_timeout(
    app: AsyncDurable, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "_LAST_POLL_SECONDS", 3600)
    db.execute(COUNT)
    handles = await app.spawn_many("wanted", range(100))
    db.execute(END, [50])
    results = await asyncio.gather(
        *(handle.result(timeout=0) for handle in handles), return_exceptions=True
    )
    assert results[:50] == [7] * 50
    assert {type(result) for result in results[50:]} == {TimeoutError}
    assert asked(db) < 10


def test_waits_in_a_fork_of_a_waiting_process(
    db: psycopg.Connection, processes: Processes
) -> None:
    """The polling thread does not exist in the child."""
    forked = processes.python("-c", FORK)
    forked.wait_for("child waits")
    db.execute(END, [1])
    forked.wait_for("child has 7")
    forked.wait_for("parent has 7")
