"""A task gets every message once, in the order in which they were sent."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import BaseModel

from durable import (
    AlreadyFinished,
    AsyncDurable,
    Durable,
    InvalidArgument,
    NotFound,
    Retry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    UnknownQueue,
    task,
)
from tests.support.clock import Clock


class Slip(BaseModel):
    carrier: str


class Topics(BaseModel):
    """What `read` receives, in sequence, and how long it waits for each."""

    topics: list[str]
    timeout: float | None = None


class Letter(BaseModel):
    """What `write` sends, and to whom."""

    to: UUID
    queue: str | None = None
    key: str | None = None


@task
async def read(wanted: Topics, ctx: TaskContext) -> list[Any]:
    got: list[Any] = []
    for topic in wanted.topics:
        try:
            got.append(await ctx.recv(topic, timeout=wanted.timeout))
        except TimeoutError:
            got.append("timed out")
    return got


@task
async def read_together(number: int, ctx: TaskContext) -> list[Any]:
    """Receive in branches that are suspended at the same time."""
    first = [ctx.recv("t"), ctx.recv("t", timeout=timedelta(days=1))]
    branches = [ctx.scope(f"branch {n}").recv("t") for n in range(number)]
    return await asyncio.gather(*first, *branches)


@task(max_attempts=2, retry=Retry.fixed(0))
async def read_and_fail(params: None, ctx: TaskContext) -> list[Any]:
    got = [await ctx.recv("t"), ctx.attempt]
    if ctx.attempt == 1:
        raise ValueError
    return [*got, await ctx.recv("t")]


@task(max_attempts=5)
async def give_up(params: None, ctx: TaskContext) -> None:
    await ctx.recv("t", timeout=60)


@task
async def typed(params: None, ctx: TaskContext) -> str:
    return (await ctx.recv("slip", as_type=Slip)).carrier


@task
def read_in_a_thread(params: None, ctx: SyncTaskContext) -> list[Any]:
    ctx.send(ctx.task_id, "self", "to myself")
    return [ctx.recv("t", timeout=60), ctx.recv("self")]


@task(max_attempts=2, retry=Retry.fixed(0))
async def write(letter: Letter, ctx: TaskContext) -> list[bool]:
    """Send twice, in each of two attempts."""
    more: Any = {"queue": letter.queue, "dedup_key": letter.key}
    sent = [await ctx.send(letter.to, "t", n, **more) for n in (1, 2)]
    if ctx.attempt == 1:
        raise ValueError
    return sent


@task(retry=Retry.none())
async def answer(word: str, ctx: TaskContext) -> str:
    """Be asked by a parent, and answer it."""
    asked = await ctx.recv("question", as_type=str)
    assert ctx.parent_task_id is not None
    await ctx.send(ctx.parent_task_id, "answer", Slip(carrier=asked + word))
    return "done"


@task
async def ask(words: list[str], ctx: TaskContext) -> list[str]:
    """Exchange messages with children, in both directions."""
    children = await ctx.spawn_many("child", answer, words)
    for child in children:
        await ctx.send(child, "question", "who? ")
    slips = [await ctx.recv("answer", as_type=Slip) for _ in children]
    await ctx.gather(*children)
    return sorted(slip.carrier for slip in slips)


@task
async def ask_afar(word: str, ctx: TaskContext) -> str:
    """Exchange messages with a child that is not told its parent's queue."""
    child = await ctx.spawn("child", answer, word, queue="far")
    await ctx.send(child, "question", "who? ")
    slip = await ctx.recv("answer", as_type=Slip)
    await ctx.join(child)
    return slip.carrier


@task
async def transact(to: UUID, ctx: TaskContext[AsyncDurable]) -> bool:
    async def tell(conn: psycopg.AsyncConnection) -> bool:
        return await ctx.state.send_with(conn, to, "t", "from a transaction")

    return await ctx.transaction("tell", tell)


TASKS: list[Any] = [
    *(read, read_together, read_and_fail, give_up, typed, read_in_a_thread),
    *(write, answer, ask, ask_afar, transact),
]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def left(db: psycopg.Connection, *tables: str) -> int:
    counts = (f"(select count(*) from durable.{table})" for table in tables)
    row = db.execute(f"select {' + '.join(counts)}").fetchone()
    assert row is not None
    return int(row[0])


async def test_delivers_messages_sent_before_and_after_the_wait(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(read, Topics(topics=["t", "t"]))
    assert await app.send(handle, "t", {"by": ["a", None, 1.5]}) is True
    await drain(app)
    assert await handle.state() == "sleeping"
    assert await handle.send("t") is True
    assert await handle.state() == "pending"
    await drain(app)
    assert await handle.result(0) == [{"by": ["a", None, 1.5]}, None]


async def test_keeps_topics_apart_and_each_in_order(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(read, Topics(topics=["a", "b", "a", "b"]))
    for topic, payload in [("b", 1), ("b", 2), ("a", 3), ("a", 4), ("c", 5)]:
        await app.send(handle.task_id, topic, payload)
    assert await drain(app) == 1
    assert await handle.result(0) == [3, 1, 4, 2]
    assert db.execute("select topic from durable.messages").fetchall() == [("c",)]


async def test_gives_each_of_many_waits_its_own_message(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(read_together, 2)
    await drain(app)
    for number in range(4):
        await app.send(handle, "t", number)
        await drain(app)
    assert await handle.result(0) == [0, 1, 2, 3]
    assert left(db, "messages", "waits", "deferred_work") == 0


async def test_sends_a_key_once_even_after_it_was_received(app: AsyncDurable) -> None:
    handle = await app.spawn(read, Topics(topics=["t", "t"]))
    assert await handle.send("t", 1, dedup_key="k") is True
    assert await handle.send("t", 2, dedup_key="k") is False
    await drain(app)
    assert await app.send(handle, "u", 3, dedup_key="k") is False
    assert await drain(app) == 0
    await handle.send("t", 4, dedup_key="another")
    await drain(app)
    assert await handle.result(0) == [1, 4]


async def test_keeps_received_and_pending_messages_for_the_next_attempt(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(read_and_fail)
    for number in (1, 2):
        await handle.send("t", number)
    async with app.worker():
        assert await handle.result(timeout=10) == [1, 2, 2]


async def test_delivers_to_a_manually_retried_task(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(give_up)
    await handle.send("u", "kept")
    await drain(app)
    await app.cancel(handle)
    with pytest.raises(AlreadyFinished, match="has finished"):
        await handle.send("t")
    await app.retry(handle)
    await handle.send("t")
    await drain(app)
    assert await handle.state() == "completed"


@pytest.mark.parametrize(("key", "sent"), [(None, [True, True]), ("k", [True, False])])
async def test_sends_once_in_any_number_of_runs(
    app: AsyncDurable, db: psycopg.Connection, key: str | None, sent: list[bool]
) -> None:
    topics = [*["t"] * sent.count(True), "end"]  # it lives until both are sent
    reading = await app.spawn(read, Topics(topics=topics))
    writing = await app.spawn(write, Letter(to=reading.task_id, key=key))
    async with app.worker():
        assert await writing.result(timeout=10) == sent
        await reading.send("end", 3)
        assert await reading.result(timeout=10) == [*[1, 2][: sent.count(True)], 3]
    assert left(db, "messages") == 0


async def test_carries_messages_between_parents_and_children(app: AsyncDurable) -> None:
    handle = await app.spawn(ask, ["me", "you"])
    async with app.worker():
        assert await handle.result(timeout=10) == ["who? me", "who? you"]


async def test_carries_messages_to_another_queue(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    await app.create_queue("second")
    reading = await app.spawn(read, Topics(topics=["t", "t"]), queue="second")
    async with app.worker(queues=["second"]) as worker:
        await worker.drain()
    await app.spawn(write, Letter(to=reading.task_id, queue="second"))
    async with app.worker(queues=["default", "second"]):
        assert await reading.result(timeout=10) == [1, 2]
    assert db.execute("select distinct queue from durable.mailboxes").fetchall() == [
        ("second",)
    ]


async def test_finds_a_parent_in_another_queue(app: AsyncDurable) -> None:
    await app.create_queue("far")
    handle = await app.spawn(ask_afar, "me")
    async with app.worker(queues=["default", "far"]):
        assert await handle.result(timeout=10) == "who? me"


async def test_works_in_a_synchronous_task_and_client(
    dsn: str, app: AsyncDurable
) -> None:
    handle = await app.spawn(read_in_a_thread)
    await drain(app)
    with Durable(dsn) as client:
        assert client.send(handle.task_id, "t", 7) is True
        with psycopg.connect(dsn) as connection:
            assert client.send_with(connection, handle.task_id, "t", 8, dedup_key="k")
        assert client.handle(handle.task_id).send("t", 9, dedup_key="k") is False
    await drain(app)
    assert await handle.result(0) == [7, "to myself"]


async def test_reads_a_payload_as_the_requested_type(app: AsyncDurable) -> None:
    handle = await app.spawn(typed)
    await app.send(handle, "slip", Slip(carrier="Post"))
    await drain(app)
    assert await handle.result(0) == "Post"


async def test_a_replay_takes_the_branch_of_a_timeout_again(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(read, Topics(topics=["t", "t", "t"], timeout=60))
    await drain(app)
    clock.advance(61)
    await drain(app)
    clock.advance(30)
    await handle.send("t", "the second's")
    clock.advance(3_600)  # a message wins over the timeout
    await drain(app)
    await handle.send("t", "the third's")
    await drain(app)
    assert await handle.result(0) == ["timed out", "the second's", "the third's"]


async def test_a_zero_timeout_does_not_wait(app: AsyncDurable) -> None:
    handle = await app.spawn(read, Topics(topics=["t", "t"], timeout=0))
    await handle.send("t", 7)
    async with app.worker():
        assert await handle.result(timeout=10) == [7, "timed out"]


async def test_an_uncaught_timeout_fails_the_task(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(give_up)
    await drain(app)
    clock.advance(61)
    await drain(app)
    with pytest.raises(TaskFailed, match="TimeoutError"):
        await handle.result(0)
    assert (await app.get_result(handle)).attempt == 1


async def test_sends_if_and_when_the_callers_transaction_commits(
    app: AsyncDurable, adb: psycopg.AsyncConnection, db: psycopg.Connection
) -> None:
    handle = await app.spawn(read, Topics(topics=["t"]))
    await drain(app)
    async with adb.transaction(force_rollback=True):
        assert await app.send_with(adb, handle, "t", "wrong", dedup_key="k") is True
    assert left(db, "messages", "message_keys", "deferred_work") == 0
    async with adb.transaction():
        assert await app.send_with(adb, handle, "t", "right", dedup_key="k") is True
        assert await handle.state() == "sleeping"
    await drain(app)
    assert await handle.result(0) == ["right"]
    with pytest.raises(InvalidArgument, match="transaction"):
        await app.send_with(adb, handle, "t")


async def test_continues_beside_a_long_transaction_that_sends(
    app: AsyncDurable, adb: psycopg.AsyncConnection
) -> None:
    """The receiving task waits for its end, and no other does."""
    wanted = Topics(topics=["t"])
    handle = await app.spawn(read, wanted)
    async with app.worker():
        async with adb.transaction():
            await app.send_with(adb, handle, "t", "late")
            for other in await app.spawn_many(read, [wanted] * 3):
                await other.send("t", "at once")
                assert await other.result(timeout=10) == ["at once"]
            with pytest.raises(TimeoutError):
                await handle.result(timeout=0.01)
        assert await handle.result(timeout=10) == ["late"]


async def test_sends_in_a_tasks_own_transaction(dsn: str, app: AsyncDurable) -> None:
    reading = await app.spawn(read, Topics(topics=["t"]))
    async with AsyncDurable(dsn) as inner:
        lifespan = partial(_as_state, inner)
        sender = AsyncDurable(dsn, tasks=[read, transact], lifespan=lifespan)
        async with sender, sender.worker():
            handle = await sender.spawn(transact, reading.task_id)
            assert await handle.result(timeout=10) is True
            assert await reading.result(timeout=10) == ["from a transaction"]


@contextlib.asynccontextmanager
async def _as_state(app: AsyncDurable) -> AsyncIterator[AsyncDurable]:
    yield app


async def test_refuses_invalid_messages(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(read, Topics(topics=["t"]))
    unknown: Any = None
    with pytest.raises(NotFound, match="no task"):
        await app.send(uuid4(), "t")
    with pytest.raises(UnknownQueue, match="nowhere"):
        await app.send(handle.task_id, "t", queue="nowhere")
    with pytest.raises(InvalidArgument, match="a task's id"):
        await app.send(unknown, "t")
    with pytest.raises(InvalidArgument, match="topic is empty"):
        await app.send(handle, "")
    with pytest.raises(InvalidArgument, match="dedup_key is 256 bytes"):
        await app.send(handle, "t", dedup_key="k" * 256)
    assert left(db, "mailboxes", "messages", "message_keys") == 0


async def test_refuses_invalid_messages_from_a_task(app: AsyncDurable) -> None:
    handle = await app.spawn(write, Letter(to=uuid4()), max_attempts=1)
    await drain(app)
    with pytest.raises(TaskFailed, match="no task"):
        await handle.result(0)


async def test_a_message_to_a_missing_queue_fails_only_the_task(
    app: AsyncDurable,
) -> None:
    """Not its worker."""
    lost = Letter(to=uuid4(), queue="nowhere")
    async with app.worker():
        handle = await app.spawn(write, lost, max_attempts=1)
        with pytest.raises(TaskFailed, match="nowhere"):
            await handle.result(10)
        found = await app.spawn(read, Topics(topics=["t"], timeout=0))
        assert await found.result(10) == ["timed out"]


async def test_deletes_messages_with_their_task(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.create_queue("default", keep_tasks=60)
    gone, stays = [await app.spawn(read, Topics(topics=["t"])) for _ in range(2)]
    for handle in (gone, stays):
        await handle.send("t", 1, dedup_key="k")
        await handle.send("u", 2)
    await app.cancel(gone)
    clock.advance(61)
    assert db.execute("select durable.cleanup('default')").fetchone() == (1,)
    owners = "mailboxes join durable.message_keys using (task_id)"
    owners += " join durable.messages using (task_id)"
    query = f"select distinct task_id from durable.{owners}"
    assert db.execute(query).fetchall() == [(stays.task_id,)]
    await app.drop_queue("default")
    assert left(db, "mailboxes", "messages", "message_keys") == 0


@pytest.mark.parametrize("round_", range(2))
async def test_loses_no_message_when_waits_and_senders_race(
    app: AsyncDurable, db: psycopg.Connection, round_: int
) -> None:
    """Each reader's messages come from two senders, whose own order is kept."""
    readers, each, jitter = 20, 5, random.Random(round_)
    wanted = Topics(topics=["t"] * (2 * each))
    handles = await app.spawn_many(read, [wanted] * readers)

    async def tell(handle: Any, sender: str) -> None:
        for number in range(each):
            await asyncio.sleep(jitter.uniform(0, 0.05))  # a race needs time to be run
            await handle.send("t", f"{sender}{number}")

    async with app.worker(concurrency=32):
        await asyncio.gather(*(tell(h, sender) for h in handles for sender in "ab"))
        for handle in handles:
            got = await handle.result(timeout=30)
            for sender in "ab":
                own = [each for each in got if each.startswith(sender)]
                assert own == [f"{sender}{number}" for number in range(each)]
    assert left(db, "messages", "waits", "deferred_work") == 0
