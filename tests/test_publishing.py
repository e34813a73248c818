"""A running task publishes values and streams, each entry exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from durable import (
    AsyncDurable,
    InvalidArgument,
    Retry,
    StreamEntry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    task,
)
from durable._db.reconnecting import ReconnectingConnection
from durable._task.checkpoints import CheckpointFlusher, Write
from durable._task.publisher import Publisher
from tests.support.wait import aeventually
from tests.support.working import working

WAL = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
COMMITS = "select count(distinct xmin::text) from durable.stream_entries"
CLAIM = "select claim from durable.claim_tasks('default', 'w', null, 1, 60)"
ENTRIES = """
select stream, number, value, source, restarted
from durable.stream_entries order by stream, number
"""


class Slip(BaseModel):
    carrier: str


class Oops(Exception):
    """An error that fails an attempt."""


def once(ctx: TaskContext, counter: list[int]) -> None:
    """Fail the first time."""
    counter.append(ctx.attempt)
    if len(counter) == 1:
        raise Oops


async def written(app: AsyncDurable, what: Any, stream: str = "news") -> list[Any]:
    """Spawn a task; return what it writes."""
    handle = await app.spawn(what)
    return [value async for value in handle.stream(stream)]


async def test_writes_each_entry_of_the_tasks_own_code_once(dsn: str) -> None:
    tries: list[int] = []

    @task(max_attempts=3, retry=Retry.fixed(0))
    async def herald(params: None, ctx: TaskContext) -> None:
        await ctx.write_stream("news", "first")
        await ctx.sleep_for("nap", 0.01)
        for number in range(3):
            await ctx.write_stream("news", number)
        await ctx.step("save", lambda: None)
        once(ctx, tries)
        await ctx.write_stream("news", "last")

    async with working(dsn, herald) as (app, _):
        assert await written(app, herald) == ["first", 0, 1, 2, "last"]
    assert len(tries) == 2


async def test_counts_the_entries_of_each_branch(dsn: str) -> None:
    """In any order of the branches, a replay skips the entries of each one."""
    tries: list[int] = []

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def herald(params: None, ctx: TaskContext) -> None:
        names = ["a", "b"] if not tries else ["b", "a"]

        async def branch(name: str) -> None:
            own = ctx.scope(name)
            for number in range(3):
                await own.write_stream("news", f"{name}{number}")
                await own.step(f"step{number}", lambda: None)

        await asyncio.gather(*map(branch, names))
        once(ctx, tries)

    async with working(dsn, herald) as (app, _):
        found = await written(app, herald)
    assert sorted(found) == [f"{name}{number}" for name in "ab" for number in range(3)]
    assert [entry for entry in found if entry[0] == "a"] == ["a0", "a1", "a2"]


async def test_refuses_one_stream_written_by_two_branches(dsn: str) -> None:
    @task(max_attempts=1)
    async def herald(params: None, ctx: TaskContext) -> None:
        async def branch() -> None:
            await ctx.write_stream("news", 1)

        async with asyncio.TaskGroup() as group:
            group.create_task(branch())
            group.create_task(branch())

    async with working(dsn, herald) as (app, _):
        handle = await app.spawn(herald)
        with pytest.raises(TaskFailed, match="ExceptionGroup"):
            await handle.result(5)


@pytest.mark.parametrize("threaded", [False, True])
async def test_marks_where_a_step_has_restarted(dsn: str, *, threaded: bool) -> None:
    tries: list[int] = []

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def herald(params: None, ctx: TaskContext) -> None:
        def speak() -> None:
            for word in ("to", "be"):
                ctx.write_stream("words", word)
            once(ctx, tries)

        async def speak_async() -> None:
            speak()

        await ctx.write_stream("words", "title")
        await ctx.step("speak", speak if threaded else speak_async)
        await ctx.write_stream("words", "end")

    async with working(dsn, herald) as (app, _):
        handle = await app.spawn(herald)
        entries = [entry async for entry in handle.stream("words").entries()]
    assert [(e.offset, e.value, e.step, e.attempt, e.restarted) for e in entries] == [
        (0, "title", None, 1, False),
        (1, "to", "speak", 1, False),
        (2, "be", "speak", 1, False),
        (3, "to", "speak", 2, True),
        (4, "be", "speak", 2, False),
        (5, "end", None, 2, False),
    ]
    assert shown(entries) == ["title", "to", "be", "end"]


async def test_marks_a_retried_step(dsn: str) -> None:
    """Within the same claim."""
    tries: list[int] = []

    @task
    async def herald(params: None, ctx: TaskContext) -> None:
        async def speak() -> None:
            await ctx.write_stream("words", len(tries))
            once(ctx, tries)

        await ctx.step("speak", speak, max_attempts=2, retry=Retry.fixed(0))

    async with working(dsn, herald) as (app, _):
        handle = await app.spawn(herald)
        entries = [entry async for entry in handle.stream("words").entries()]
    assert [(e.value, e.restarted) for e in entries] == [(0, False), (1, True)]


def shown(entries: list[StreamEntry[Any]]) -> list[Any]:
    """Return what a reader shows who drops voided entries."""
    kept: list[StreamEntry[Any]] = []
    for entry in entries:
        if entry.restarted:
            kept = [one for one in kept if one.step != entry.step]
        kept.append(entry)
    return [entry.value for entry in kept]


async def test_the_last_value_set_counts(dsn: str) -> None:
    tries: list[int] = []

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def worker_of(params: None, ctx: TaskContext) -> None:
        await ctx.set_value("slip", Slip(carrier="Post"))
        await ctx.set_value("progress", 0)

        def work() -> None:
            for number in range(1, 50):
                ctx.set_value("progress", number)

        await ctx.step("work", work)
        once(ctx, tries)
        await ctx.scope("inner").set_value("progress", None)

    async with working(dsn, worker_of) as (app, _):
        handle = await app.spawn(worker_of)
        assert await handle.value("inner/progress", timeout=10) is None
        await handle.result(5)
        assert await handle.value("progress") == 49
        assert await handle.value("slip", as_type=Slip) == Slip(carrier="Post")


async def test_a_replay_does_not_reset_a_value(
    dsn: str, db: psycopg.Connection
) -> None:
    history = "select value from durable.task_values where key = 'progress'"
    seen: list[Any] = []

    @task
    async def napping(params: None, ctx: TaskContext) -> None:
        def halfway() -> None:
            ctx.set_value("progress", "halfway")

        await ctx.set_value("progress", "begun")
        await ctx.step("work", halfway)
        await ctx.sleep_for("nap", 0.01)
        seen.extend(db.execute(history).fetchall())
        await ctx.step("save", lambda: None)  # would overwrite it with the reset value
        seen.extend(db.execute(history).fetchall())

    async with working(dsn, napping) as (app, _):
        await (await app.spawn(napping)).result(5)
    assert seen == [("halfway",)] * 2


async def test_publishes_from_a_sync_task(dsn: str) -> None:
    @task
    def herald(params: None, ctx: SyncTaskContext) -> int:
        def speak() -> str:
            ctx.write_stream("news", "in a step")
            return threading.current_thread().name

        ctx.write_stream("news", "before")
        ctx.step("speak", speak)
        ctx.sleep_for("nap", 0.01)
        for number in range(3000):  # more than may be queued at once
            ctx.write_stream("news", number)
        ctx.set_value("progress", 1)
        ctx.close_stream("news")
        return 7

    async with working(dsn, herald) as (app, _):
        handle = await app.spawn(herald)
        found = [value async for value in handle.stream("news")]
        assert found == ["before", "in a step", *range(3000)]
        assert await handle.value("progress") == 1
        assert await handle.result(5) == 7


async def test_refuses_invalid_entries(dsn: str) -> None:
    refused: list[Exception] = []

    @task
    async def herald(params: None, ctx: TaskContext) -> None:
        async def inside() -> None:
            with collected(refused):
                await ctx.close_stream("news")

        async def in_transaction(conn: Any) -> None:
            with collected(refused):
                await ctx.write_stream("news", 1)

        for bad in ("", "$news", "news#2"):
            with collected(refused):
                await ctx.write_stream(bad, 1)
        with collected(refused):
            await ctx.set_value("key", float("nan"))
        await ctx.step("inside", inside)
        await ctx.transaction("in transaction", in_transaction)
        await ctx.close_stream("news")
        with collected(refused):
            await ctx.write_stream("news", 1)

    async with working(dsn, herald) as (app, _):
        handle = await app.spawn(herald)
        await handle.result(5)
        assert [value async for value in handle.stream("news")] == []
        with pytest.raises(InvalidArgument):
            handle.stream("news", start=-1)
    kinds = [isinstance(error, InvalidArgument) for error in refused]
    assert kinds == [True] * 4 + [False] * 3
    assert "inside a step" in str(refused[4])
    assert "transaction" in str(refused[5])
    assert "closed" in str(refused[6])


@contextlib.contextmanager
def collected(refused: list[Exception]) -> Any:
    try:
        yield
    except (RuntimeError, InvalidArgument) as error:
        refused.append(error)


# -- the fence -------------------------------------------------------------------------


async def test_a_repeated_call_adds_nothing(dsn: str, db: psycopg.Connection) -> None:
    """Its answer may have been lost with the connection; also after the task's end."""
    task_id = spawned(db)
    claim = claim_of(db, task_id)
    said = published(task_id, claim)
    done = json.dumps([{"task_id": str(task_id), "claim": claim, "result": 7}])
    publish = "select task_id, outcome from durable.publish('default', %s, null, %s)"
    for completion in (None, None, done, done):
        assert db.execute(publish, [said, completion]).fetchall() == []
    assert db.execute(ENTRIES).fetchall() == [
        ("news", 0, "first", "$stream:news", False)
    ]
    assert db.execute("select count(*) from durable.log_lines").fetchone() == (1,)


@pytest.mark.parametrize(
    ("takes", "outcome"),
    [
        ("select durable.cancel_task('default', %s)", "cancelled"),
        ("select durable.release_unknown('default', 'w', array[]::uuid[]), %s", "lost"),
    ],
)
async def test_publishes_nothing_under_an_ended_claim(
    dsn: str, db: psycopg.Connection, takes: str, outcome: str
) -> None:
    task_id = spawned(db)
    said = published(task_id, claim_of(db, task_id))
    db.execute(takes, [task_id])
    publish = "select task_id, outcome from durable.publish('default', %s)"
    refused = db.execute(publish, [said]).fetchall()
    assert refused == [(task_id, outcome)]
    assert db.execute(ENTRIES).fetchall() == []
    tables = "select (select count(*) from durable.task_values)"
    tables += " + (select count(*) from durable.log_lines)"
    assert db.execute(tables).fetchone() == (0,)


async def test_refuses_one_entry_of_a_batch_and_not_the_others(
    dsn: str, db: psycopg.Connection
) -> None:
    mine, gone = spawned(db), spawned(db)
    said = [published(task_id, claim_of(db, task_id)) for task_id in (gone, mine)]
    db.execute("select durable.cancel_task('default', %s)", [gone])
    link = ReconnectingConnection(dsn, "flush")
    saving = CheckpointFlusher(link)
    writes = [
        saving.submit(Write("default", task_id, "", published=element[1:-1]))
        for task_id, element in zip((gone, mine), said, strict=True)
    ]
    assert await asyncio.gather(*writes) == ["cancelled", "ok"]
    await saving.close()
    await link.close()


def spawned(db: psycopg.Connection) -> Any:
    ((task_id,),) = db.execute(
        "select task_id from durable.spawn('default', 'x')"
    ).fetchall()
    assert db.execute(CLAIM).rowcount == 1
    return task_id


def claim_of(db: psycopg.Connection, task_id: Any) -> int:
    """Return the number of a task's claim, which has not ended."""
    query = "select claim from durable.tasks where task_id = %s"
    ((claim,),) = db.execute(query, [task_id]).fetchall()
    return int(claim)


def published(task_id: Any, claim: int) -> str:
    line = {"number": 0, "at": "2030-01-01 00:00Z", "level": 20, "logger": "x"}
    return json.dumps(
        [
            {
                "task_id": str(task_id),
                "claim": claim,
                "sets": [{"key": "progress", "value": 1, "times": 1}],
                "entries": [{"stream": "news", "number": 0, "value": "first"}],
                "lines": [{**line, "message": "hello"}],
            }
        ]
    )


# -- concurrency -----------------------------------------------------------------------


async def test_keeps_entries_that_two_threads_publish_at_the_same_time(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run has one publisher, whichever thread asks for it first."""

    class Slow(Publisher):
        def __init__(self, run: Any) -> None:
            time.sleep(0.05)
            super().__init__(run)

    monkeypatch.setattr("durable._task.run.Publisher", Slow)

    @task(max_attempts=1)
    async def herald(params: None, ctx: TaskContext) -> None:
        def speak(word: str) -> None:
            ctx.write_stream("news", word)

        steps = [ctx.step(word, speak, word) for word in ("to", "be")]
        await asyncio.gather(*steps)

    async with working(dsn, herald) as (app, _):
        assert sorted(await written(app, herald)) == ["be", "to"]


async def test_fails_a_task_whose_entries_are_refused(dsn: str) -> None:
    """Its failure is saved without the refused entries."""

    @task(max_attempts=1)
    async def herald(params: None, ctx: TaskContext) -> None:
        deep = ctx.scope("s" * 250).scope("s" * 250)

        async def is_refused() -> bool:
            return bool(ctx._run.publisher()._error)

        async def speak() -> None:
            deep.set_value("key" * 50, 1)
            await aeventually(is_refused)

        await ctx.step("speak", speak)

    async with working(dsn, herald) as (app, _):
        handle = await app.spawn(herald)
        with pytest.raises(TaskFailed, match="name of a value is"):
            await handle.result(5)


async def test_saves_published_entries_though_their_call_is_cancelled(
    dsn: str, db: psycopg.Connection
) -> None:
    """Also if another session has locked the task's row, so that it is retried."""

    async def nothing() -> None:
        pass

    @task(max_attempts=1)
    async def herald(params: None, ctx: TaskContext) -> None:
        with db.transaction():
            db.execute("select from durable.tasks for update")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await ctx.write_stream("news", "a")
                    await ctx.step("saves it", nothing)
            await asyncio.sleep(0.3)  # longer than a statement waits for the row
        await ctx.write_stream("news", "b")

    async with working(dsn, herald) as (app, _):
        assert await written(app, herald) == ["a", "b"]


async def test_ends_its_publisher_with_the_run(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if a transaction that locked the row has completed the task meanwhile."""

    @task(max_attempts=1)
    async def herald(params: None, ctx: TaskContext) -> str:
        async def settle(conn: Any) -> str:
            ctx.logger.info("within")
            ctx._run.publisher()._send_soon()
            return "done"

        return await ctx.transaction(
            "settle", settle, completes=True, isolation="serializable"
        )

    async with working(dsn, herald) as (app, worker):
        assert await (await app.spawn(herald)).result(5) == "done"
        await worker.drain()
        await aeventually(none_sends, what="no sender")


async def none_sends() -> bool:
    """Whether no asyncio task is left that publishes."""
    return not any("Publishing._send" in repr(one) for one in asyncio.all_tasks())


# -- cost ------------------------------------------------------------------------------


async def test_saves_many_small_entries_in_few_commits(
    dsn: str, db: psycopg.Connection
) -> None:
    @task
    async def herald(params: None, ctx: TaskContext) -> None:
        for number in range(5000):
            await ctx.write_stream("news", number)

    async with working(dsn, herald) as (app, _):
        assert await written(app, herald) == list(range(5000))
    ((commits,),) = db.execute(COMMITS).fetchall()
    assert commits < 50


async def test_sends_nothing_extra_for_tasks_that_publish_nothing(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    fetch = ReconnectingConnection.fetch

    async def listened(
        self: ReconnectingConnection, statement: Any, **options: Any
    ) -> Any:
        sent.append(statement.text)
        return await fetch(self, statement, **options)

    monkeypatch.setattr(ReconnectingConnection, "fetch", listened)

    @task
    async def quiet(params: None, ctx: TaskContext) -> None:
        await ctx.step("one", os.getpid)
        await ctx.sleep_for("nap", 0.01)
        await ctx.step("two", os.getpid)

    async with working(dsn, quiet) as (app, _):
        await (await app.spawn(quiet)).result(5)
    assert any("durable.flush(" in text for text in sent)
    assert not any("publish" in text for text in sent)
