"""A spawn with unique, throttle or debounce may return a task that exists already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Conflict,
    Durable,
    InvalidArgument,
    TaskContext,
    UnknownQueue,
    task,
)
from durable.encryption import AESGCMCodec
from tests.support.clock import Clock

HOUR = timedelta(hours=1)
RAN: list[Any] = []


@task
async def work(number: int, ctx: TaskContext) -> int:
    RAN.append(number)
    return 2 * number


@task
async def other(number: int, ctx: TaskContext) -> int:
    return number


@task(max_attempts=1)
async def ask_for_a_child(option: dict[str, Any], ctx: TaskContext) -> None:
    given: Any = option
    await ctx.spawn("child", work, 1, **given)


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    RAN.clear()
    async with AsyncDurable(dsn, tasks=[work, other, ask_for_a_child]) as app:
        yield app


def count(db: psycopg.Connection) -> int:
    row = db.execute("select count(*) from durable.tasks").fetchone()
    assert row is not None
    return int(row[0])


async def test_has_one_unfinished_task_per_key(app: AsyncDurable) -> None:
    first = await app.spawn(work, 1, unique={"key": "customer 7"})
    again = await app.spawn(work, 2, unique={"key": "customer 7"})
    assert again == first
    assert (first.created, again.created) == (True, False)
    assert await app.spawn(work, 1, unique={"key": "customer 8"}) != first
    assert await app.spawn(other, 1, unique={"key": "customer 7"}) != first
    async with app.worker() as worker:
        await worker.drain()
        assert sorted(RAN) == [1, 1]
        assert await again.result(0) == 2
        later = await app.spawn(work, 3, unique={"key": "customer 7"})
        assert later.created
        await worker.drain()
    assert await later.result(0) == 6


async def test_rejects_or_replaces_if_asked_to(app: AsyncDurable) -> None:
    first = await app.spawn(work, 1, unique={"key": "k"})
    with pytest.raises(Conflict, match=str(first.task_id)):
        await app.spawn(work, 2, unique={"key": "k", "on_conflict": "reject"})
    replaced = await app.spawn(
        work, 3, unique={"key": "k", "on_conflict": "replace"}, max_attempts=7
    )
    assert (replaced, replaced.created) == (first, False)
    async with app.worker() as worker:
        await worker.drain()
    assert RAN == [3]
    assert await first.result(0) == 6


async def test_a_retry_does_not_bring_a_second_unfinished_task(
    app: AsyncDurable,
) -> None:
    first = await app.spawn(work, 1, unique={"key": "k"})
    await app.cancel(first)
    second = await app.spawn(work, 2, unique={"key": "k"})
    with pytest.raises(Conflict, match=str(second.task_id)):
        await app.retry(first)
    assert await app.retry_many(all=True) == 0
    await app.cancel(second)
    await app.retry(first)
    assert await app.spawn(work, 3, unique={"key": "k"}) == first


async def test_throttles_to_one_task_in_a_period(
    app: AsyncDurable, clock: Clock
) -> None:
    async with app.worker() as worker:
        first = await app.spawn(work, 1, throttle={"key": "k", "period": HOUR})
        await worker.drain()
        clock.advance(3599)
        again = await app.spawn(work, 2, throttle={"key": "k", "period": HOUR})
        assert (again, again.created) == (first, False)
        assert await again.result(0) == 2
        clock.advance(1)
        later = await app.spawn(work, 3, throttle={"key": "k", "period": 3600})
        assert later.created
        await worker.drain()
    assert RAN == [1, 3]


async def test_debounces_a_burst_to_its_last_params(
    app: AsyncDurable, clock: Clock
) -> None:
    async with app.worker() as worker:
        for number in range(5):
            await app.spawn(work, number, debounce={"key": "k", "delay": 10})
            clock.advance(9)
            assert await worker.drain() == 0
        clock.advance(1)
        assert await worker.drain() == 1
        await app.spawn(work, 5, debounce={"key": "k", "delay": 10})
        for number in range(6, 9):
            clock.advance(9)
            await app.spawn(
                work, number, debounce={"key": "k", "delay": 10, "max_wait": 30}
            )
        clock.advance(3)
        assert await worker.drain() == 1
    assert RAN == [4, 8]


async def test_replaces_encrypted_params(dsn: str) -> None:
    RAN.clear()
    codec = AESGCMCodec({"key": AESGCMCodec.generate_key()})
    async with AsyncDurable(dsn, tasks=[work], codec=codec) as app:
        for number in range(3):
            await app.spawn(work, number, debounce={"key": "k", "delay": 0})
        async with app.worker() as worker:
            await worker.drain()
    assert RAN == [2]


async def test_many_are_as_many_single_spawns(app: AsyncDurable) -> None:
    first = await app.spawn(work, 0, unique={"key": "a"})
    handles = await app.spawn_many(
        [
            (work, 1, {"unique": {"key": "a"}}),
            (work, 2, {"unique": {"key": "b"}}),
            (work, 3, {"unique": {"key": "b", "on_conflict": "replace"}}),
            (work, 4),
        ]
    )
    assert [handle.created for handle in handles] == [False, True, False, True]
    assert handles[0] == first
    assert handles[1] == handles[2]
    async with app.worker() as worker:
        await worker.drain()
    assert sorted(RAN) == [0, 3, 4]


async def test_takes_effect_with_the_transaction_of_the_application(
    app: AsyncDurable, adb: psycopg.AsyncConnection
) -> None:
    first = await app.spawn(work, 1, unique={"key": "k"})
    for number, end in ((2, "rollback"), (3, "commit")):
        await adb.execute("begin")
        handle = await app.spawn_with(
            adb, work, number, unique={"key": "k", "on_conflict": "replace"}
        )
        assert handle == first
        await adb.execute(end)
    async with app.worker() as worker:
        await worker.drain()
    assert RAN == [3]


@pytest.fixture
def sync_app(dsn: str) -> Iterator[Durable]:
    with Durable(dsn, tasks=[work]) as app:
        yield app


def test_works_in_synchronous_code(sync_app: Durable) -> None:
    first = sync_app.spawn(work, 1, throttle={"key": "k", "period": HOUR})
    assert sync_app.spawn(work, 2, throttle={"key": "k", "period": HOUR}) == first


@pytest.mark.parametrize(
    "options",
    [
        {"unique": "k"},
        {"unique": {}},
        {"unique": {"key": ""}},
        {"unique": {"key": "x" * 256}},
        {"unique": {"key": 7}},
        {"unique": {"key": "k", "on_conflict": "ignore"}},
        {"unique": {"key": "k", "period": 1}},
        {"throttle": {"key": "k"}},
        {"throttle": {"key": "k", "period": -1}},
        {"throttle": {"key": "k", "period": None}},
        {"debounce": {"key": "k"}},
        {"debounce": {"key": "k", "delay": 1, "wait_max": 1}},
        {"debounce": {"key": "k", "delay": 1}, "delay": 1},
        {"unique": {"key": "k"}, "idempotency_key": "k"},
        {"unique": {"key": "k"}, "throttle": {"key": "k", "period": 1}},
    ],
    ids=str,
)
async def test_refuses_bad_options(
    app: AsyncDurable, db: psycopg.Connection, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        await app.spawn(work, 1, **options)
    with pytest.raises(InvalidArgument):
        await app.spawn_many([(work, 2), (work, 1, options)])
    assert count(db) == 0


async def test_an_option_that_is_none_is_not_given(app: AsyncDurable) -> None:
    none: Any = {"unique": None, "throttle": None, "debounce": None}
    assert await app.spawn(work, 1, **none) != await app.spawn(work, 1, **none)


@pytest.mark.parametrize(
    "option",
    [
        {"unique": {"key": "k"}},
        {"throttle": {"key": "k", "period": 1}},
        {"debounce": {"key": "k", "delay": 1}},
    ],
    ids=str,
)
async def test_refuses_them_for_children_and_forks(
    app: AsyncDurable, db: psycopg.Connection, option: dict[str, Any]
) -> None:
    parent = await app.spawn(ask_for_a_child, option)
    async with app.worker() as worker:
        await worker.drain()
    error = (await parent.snapshot()).error
    assert error is not None
    assert (error.type, "child" in error.message) == ("InvalidArgument", True)
    with pytest.raises(InvalidArgument, match="fork"):
        await app.fork(parent, **option)
    assert count(db) == 1


async def test_refuses_an_unknown_queue(app: AsyncDurable) -> None:
    with pytest.raises(UnknownQueue):
        await app.spawn(work, 1, unique={"key": "k"}, queue="nowhere")
