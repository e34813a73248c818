"""Readers follow what a task publishes while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from durable import (
    AlreadyFinished,
    AsyncDurable,
    AsyncTaskHandle,
    Durable,
    InvalidArgument,
    NotFound,
    TaskCancelled,
    TaskContext,
    task,
)
from durable._client._async import waiters
from tests.support.wait import aeventually, eventually
from tests.support.working import working

HEARING = "select pid from pg_stat_activity where application_name = 'durable client'"
HEARING += " and datname = current_database()"
LISTENER = """
select durable.register_listener('default', 'published'),
  durable.unregister_listener('default', 'published')
"""
CUT = """
select pid from pg_stat_activity
where case when datname = current_database() and pid <> pg_backend_pid()
    and (application_name = 'durable client' or query ~ 'get_stream')
  then pg_terminate_backend(pid) end
"""


@task
async def herald(params: None, ctx: TaskContext) -> str:
    """Publish what the test sends, until the end."""
    number = 0
    while (word := await ctx.await_event(f"say:{ctx.task_id}:{number}")) != "end":
        number += 1
        if word == "close":
            await ctx.close_stream("news")
        else:
            await ctx.write_stream("news", word)
            await ctx.set_value("word", word)
    return "done"


class Talk:
    """A task that publishes what it is told, and its readers."""

    def __init__(self, app: AsyncDurable, handle: AsyncTaskHandle[str]) -> None:
        self.app = app
        self.handle = handle
        self._said = 0

    async def say(self, *words: str) -> None:
        for word in words:
            await self.app.emit_event(f"say:{self.handle.task_id}:{self._said}", word)
            self._said += 1

    async def hear(self, start: int = 0) -> list[str]:
        return [word async for word in self.handle.stream("news", start=start)]


@pytest.fixture
async def talk(dsn: str) -> AsyncIterator[Talk]:
    async with working(dsn, herald) as (app, _):
        yield Talk(app, await app.spawn(herald))


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that gets notifications must not poll."""
    monkeypatch.setattr(waiters, "_LISTENING", 3600)


async def next_of(stream: AsyncIterator[str]) -> str:
    return await anext(stream)


def is_followed(db: psycopg.Connection) -> bool:
    row = db.execute(LISTENER).fetchone()
    return row is not None and not row[0]


def is_closed(db: psycopg.Connection) -> bool:
    query = "select from durable.stream_entries where value is null"
    return bool(db.execute(query).fetchall())


def still_there(db: psycopg.Connection, pids: list[int]) -> bool:
    query = "select from pg_stat_activity where pid = any(%s)"
    return bool(db.execute(query, [pids]).fetchall())


async def until_followed(db: psycopg.Connection) -> None:
    await aeventually(lambda: asyncio.sleep(0, is_followed(db)))


@pytest.mark.usefixtures("never_polls")
async def test_is_notified_of_each_entry_and_of_the_end(
    talk: Talk, db: psycopg.Connection
) -> None:
    stream = aiter(talk.handle.stream("news"))
    first = asyncio.create_task(next_of(stream))
    await until_followed(db)
    await talk.say("a")
    assert await asyncio.wait_for(first, 10) == "a"
    for word in ("b", "c"):
        await talk.say(word)
        assert await asyncio.wait_for(anext(stream), 10) == word
    await talk.say("close")
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(stream), 10)


async def test_ends_with_the_task_and_misses_nothing(talk: Talk) -> None:
    """The last entries commit together with the end."""
    heard = asyncio.create_task(talk.hear())
    await talk.say("a", "b", "end")
    assert await asyncio.wait_for(heard, 10) == ["a", "b"]
    assert await talk.hear() == ["a", "b"]
    assert await talk.handle.result(5) == "done"


async def test_reads_the_last_value_of_a_task_that_ends_at_once(dsn: str) -> None:
    @task
    async def brief(number: int, ctx: TaskContext) -> None:
        ctx.write_stream("news", number)
        ctx.set_value("word", number)

    async def last(app: AsyncDurable, number: int) -> tuple[Any, Any]:
        handle = await app.spawn(brief, number)
        (entry,) = [word async for word in handle.stream("news")]
        return entry, await handle.value("word")

    async with working(dsn, brief) as (app, _):
        found = await asyncio.gather(*(last(app, number) for number in range(50)))
    assert found == [(number, number) for number in range(50)]


async def test_gives_every_reader_everything_and_resumes_at_an_offset(
    talk: Talk,
) -> None:
    readers = [asyncio.create_task(talk.hear(start)) for start in (0, 0, 2, 4)]
    await talk.say("a", "b", "c", "d", "close")
    heard = await asyncio.gather(*readers)
    assert heard == [[*"abcd"], [*"abcd"], [*"cd"], []]
    async for entry in talk.handle.stream("news").entries():
        if entry.value == "b":
            break
    assert await talk.hear(entry.offset + 1) == ["c", "d"]
    await talk.say("end")


async def test_reads_more_than_one_page(dsn: str) -> None:
    @task
    async def talkative(params: None, ctx: TaskContext) -> None:
        for number in range(2500):
            await ctx.write_stream("news", number)

    async with working(dsn, talkative) as (app, worker):
        handle = await app.spawn(talkative)
        await worker.drain()
        assert [one async for one in handle.stream("news")] == list(range(2500))


async def test_continues_when_its_connections_are_lost(
    talk: Talk, db: psycopg.Connection
) -> None:
    stream = aiter(talk.handle.stream("news"))
    first = asyncio.create_task(next_of(stream))
    await until_followed(db)
    await talk.say("a")
    assert await first == "a"
    following = asyncio.create_task(next_of(stream))
    cut = [pid for (pid,) in db.execute(CUT)]
    assert cut
    await aeventually(lambda: asyncio.sleep(0, not still_there(db, cut)))
    await talk.say("b")
    assert await asyncio.wait_for(following, 10) == "b"
    await talk.say("end")


async def test_polls_where_it_may_not_listen(dsn: str, db: psycopg.Connection) -> None:
    async with (
        AsyncDurable(dsn, tasks=[herald], listen=False) as app,
        app.worker(),
    ):
        talk = Talk(app, await app.spawn(herald))
        heard = asyncio.create_task(talk.hear())
        await talk.say("a", "end")
        assert await heard == ["a"]
        assert db.execute(HEARING).fetchall() == []


async def test_listens_on_one_connection_and_only_while_there_are_readers(
    talk: Talk, db: psycopg.Connection
) -> None:
    readers = [asyncio.create_task(talk.hear()) for _ in range(20)]
    await until_followed(db)
    assert len(db.execute(HEARING).fetchall()) == 1
    await talk.say("end")
    await asyncio.gather(*readers)
    await aeventually(lambda: asyncio.sleep(0, not db.execute(HEARING).fetchall()))
    assert not is_followed(db)


# -- values ----------------------------------------------------------------------------


@pytest.mark.usefixtures("never_polls")
async def test_waits_for_the_first_value(talk: Talk, db: psycopg.Connection) -> None:
    value = asyncio.create_task(talk.handle.value("word"))
    await until_followed(db)
    await talk.say("a")
    assert await asyncio.wait_for(value, 10) == "a"
    await talk.say("end")


@pytest.mark.usefixtures("never_polls")
async def test_returns_each_value_when_it_is_set(
    talk: Talk, db: psycopg.Connection
) -> None:
    values = talk.handle.values("word", as_type=str)
    first = asyncio.create_task(next_of(values))
    await until_followed(db)
    for word in ("a", "b", "b"):
        await talk.say(word)
        value = await asyncio.wait_for(first, 10)
        assert value == word
        first = asyncio.create_task(next_of(values))
    await talk.say("close")
    await aeventually(lambda: asyncio.sleep(0, is_closed(db)))
    assert not first.done()  # it was woken, and there is no newer value
    first.cancel()


async def test_gives_a_slow_reader_the_last_value(talk: Talk) -> None:
    """The last value commits together with the end."""
    words = [str(number) for number in range(20)]
    values = talk.handle.values("word")
    await talk.say("first")
    assert await asyncio.wait_for(anext(values), 10) == "first"
    await talk.say(*words, "end")
    await talk.handle.result(10)
    assert [word async for word in values] == words[-1:]
    assert [word async for word in talk.handle.values("word")] == words[-1:]
    assert [word async for word in talk.handle.values("other")] == []
    with pytest.raises(NotFound):
        [one async for one in talk.app.handle(uuid4()).values("word")]
    with pytest.raises(InvalidArgument):
        talk.handle.values("")


async def test_says_why_there_is_no_value(talk: Talk) -> None:
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError):
            await talk.handle.value("word", timeout=timeout)
    waiting = asyncio.create_task(talk.handle.value("word"))
    await talk.say("end")
    with pytest.raises(AlreadyFinished, match="is completed, without a value 'word'"):
        await asyncio.wait_for(waiting, 10)
    stranger = talk.app.handle(uuid4())
    with pytest.raises(NotFound):
        await stranger.value("word")
    with pytest.raises(NotFound):
        [one async for one in stranger.stream("news")]


async def test_ends_for_readers_of_a_cancelled_task(talk: Talk) -> None:
    await talk.say("a")
    assert await talk.handle.value("word", timeout=10) == "a"
    heard = asyncio.create_task(talk.hear())
    values = talk.handle.values("word")
    assert await anext(values) == "a"
    second = asyncio.create_task(next_of(values))
    await talk.app.cancel(talk.handle)
    assert await asyncio.wait_for(heard, 10) == ["a"]
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(second, 10)
    with pytest.raises(TaskCancelled):
        await talk.handle.result(5)


# -- synchronous code ------------------------------------------------------------------


def test_follows_from_threads(dsn: str) -> None:
    with Durable(dsn, tasks=[herald]) as app, app.worker():
        handle = app.spawn(herald)
        heard: dict[int, list[str]] = {}

        def hear(reader: int) -> None:
            heard[reader] = list(handle.stream("news"))

        readers = [threading.Thread(target=hear, args=(one,)) for one in range(3)]
        for reader in readers:
            reader.start()
        for number, word in enumerate(["a", "b", "end"]):
            app.emit_event(f"say:{handle.task_id}:{number}", word)
        for reader in readers:
            reader.join(10)
        assert heard == {reader: ["a", "b"] for reader in range(3)}
        assert handle.value("word") == "b"
        assert list(handle.values("word")) == ["b"]
        assert [entry.offset for entry in handle.stream("news", start=1).entries()] == [
            1
        ]


def test_leaves_no_thread_behind(
    dsn: str, connect: Callable[[], psycopg.Connection]
) -> None:
    with Durable(dsn, tasks=[herald]) as app:
        handle = app.spawn(herald)
        with pytest.raises(TimeoutError):
            handle.value("word", timeout=0.2)
    eventually(
        lambda: not [t for t in threading.enumerate() if t.name == "durable client"]
    )
