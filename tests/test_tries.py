"""A step may be tried several times before it has failed; its tries are counted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
import pytest

from durable import (
    InvalidArgument,
    NonRetryable,
    Retry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.clock import Clock
from tests.support.working import outcome, through_the_night, working

AT_ONCE = Retry.fixed(0)

calls: list[int] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def flaky(number: int) -> int:
    """Fail so many times."""
    calls.append(number)
    if len(calls) <= number:
        raise ConnectionError(f"failure {len(calls)}")
    return len(calls)


@task(max_attempts=1)
async def persevere(number: int, ctx: TaskContext) -> int:
    return await ctx.step("fetch", flaky, number, max_attempts=4, retry=AT_ONCE)


@task(max_attempts=1)
def persevere_sync(number: int, ctx: SyncTaskContext) -> int:
    return ctx.step("fetch", flaky, number, max_attempts=4, retry=AT_ONCE)


@pytest.mark.parametrize("kind", [persevere, persevere_sync], ids=["async", "sync"])
@pytest.mark.parametrize(
    ("failures", "state", "times"),
    [(0, "completed", 1), (3, "completed", 4), (4, "failed", 4)],
)
async def test_is_tried_as_often_as_it_may_be(
    dsn: str, kind: Any, failures: int, state: str, times: int
) -> None:
    async with working(dsn, kind) as (app, _):
        handle = await app.spawn(kind, failures)
        with contextlib.suppress(Exception):
            await handle.result(timeout=20)
        found = await handle.snapshot()
    assert (found.state, len(calls), found.attempt) == (state, times, 1)
    if found.error is not None:
        assert found.error.message == "failure 4"


async def test_is_tried_once_unless_it_says_more(dsn: str) -> None:
    @task(max_attempts=1)
    async def once(params: None, ctx: TaskContext) -> None:
        await ctx.step("fetch", flaky, 9, timeout=None)

    assert (await outcome(dsn, once)).state == "failed"
    assert len(calls) == 1


async def test_holds_no_worker_between_two_tries(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    """A pause of hours is a row, and its length is not forgotten."""

    @task(max_attempts=1)
    async def patient(params: None, ctx: TaskContext) -> int:
        hours = Retry.exponential(3600, jitter=False)
        return await ctx.step("fetch", flaky, 2, max_attempts=None, retry=hours)

    async with working(dsn, patient) as (app, worker):
        handle = await app.spawn(patient)
        for hours, times in [(0, 1), (0.98, 1), (0.04, 2), (1.96, 2), (0.06, 3)]:
            clock.advance(3600 * hours)
            await worker.drain()
            assert len(calls) == times
        assert await handle.result(timeout=20) == 3
    waits = db.execute("select name from durable.checkpoints order by saved_at, name")
    assert {name for (name,) in waits.fetchall()} == {
        *("$try:fetch:1.1", "$try:fetch:1.2"),
        *("$retry:fetch:1.1", "$retry:fetch:1.2", "fetch"),
    }


async def test_counts_anew_in_the_next_attempt_at_the_task(
    dsn: str, clock: Clock
) -> None:
    @task(max_attempts=2)
    async def stubborn(params: None, ctx: TaskContext) -> int:
        return await ctx.step("fetch", flaky, 5, max_attempts=3, retry=Retry.fixed(60))

    found = await through_the_night(dsn, clock, stubborn)
    assert (found.state, found.result, found.attempt) == ("completed", 6, 2)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (NonRetryable("busy"), 1),
        (KeyError("busy"), 1),
        (OSError("gone"), 1),
        (OSError("busy"), 3),
    ],
    ids=repr,
)
async def test_is_not_tried_again_where_that_is_pointless(
    dsn: str, error: Exception, times: int
) -> None:
    def raises() -> None:
        calls.append(1)
        raise error

    @task(max_attempts=1)
    async def pointless(params: None, ctx: TaskContext) -> None:
        await ctx.step(
            "fetch",
            raises,
            max_attempts=3,
            retry=AT_ONCE,
            no_retry=(LookupError,),
            retry_if=lambda error: "busy" in str(error),
        )

    async with working(dsn, pointless) as (app, _):
        handle = await app.spawn(pointless)
        with pytest.raises(TaskFailed):
            await handle.result(timeout=20)
    assert len(calls) == times


async def test_replays_the_failure_that_its_task_has_caught(
    dsn: str, db: psycopg.Connection
) -> None:
    @task(max_attempts=1)
    async def caught(params: None, ctx: TaskContext) -> str:
        try:
            await ctx.step("fetch", flaky, 9, max_attempts=2, retry=AT_ONCE)
        except ConnectionError as error:
            await ctx.sleep_for("replay", 0.001)
            return str(error)
        return "fetched"

    async with working(dsn, caught) as (app, _):
        handle = await app.spawn(caught)
        assert await handle.result(timeout=20) == "failure 2"
    assert len(calls) == 2


async def test_fails_a_call_that_takes_too_long(dsn: str) -> None:
    @task(max_attempts=1)
    async def hurried(params: None, ctx: TaskContext) -> str:
        return await ctx.step(
            "fetch", slow_at_first, max_attempts=2, retry=AT_ONCE, timeout=0.05
        )

    async def slow_at_first() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "fetched"

    async with working(dsn, hurried) as (app, _):
        handle = await app.spawn(hurried)
        assert await handle.result(timeout=20) == "fetched"
    assert len(calls) == 2


async def test_counts_also_when_something_else_wakes_the_task(dsn: str) -> None:
    """Each event ends the waiting, and none of them the pause."""

    @task(max_attempts=1)
    async def awaited(params: None, ctx: TaskContext) -> int:
        async def listen() -> None:
            for number in range(5):
                await ctx.await_event(f"event {number}")

        hour = Retry.fixed(3600)
        trying = ctx.step("fetch", flaky, 1, max_attempts=2, retry=hour)
        fetching = asyncio.create_task(trying)
        await listen()
        fetching.cancel()
        return len(calls)

    async with working(dsn, awaited) as (app, worker):
        handle = await app.spawn(awaited)
        for number in range(5):
            await worker.drain()
            await app.emit_event(f"event {number}")
        assert await handle.result(timeout=20) == 1


async def test_says_what_failed_and_not_that_a_step_is_open(dsn: str) -> None:
    @task(max_attempts=1)
    async def opened(params: None, ctx: TaskContext) -> None:
        await ctx.begin_step("open")
        await ctx.step("fetch", flaky, 1, max_attempts=2, retry=AT_ONCE)

    found = await outcome(dsn, opened)
    assert found.error is not None
    assert "complete open first" in found.error.message
    assert calls == []


async def test_lets_branches_try_at_the_same_time(dsn: str) -> None:
    counts = dict.fromkeys(range(5), 0)

    def nth(number: int) -> int:
        counts[number] += 1
        if counts[number] <= number:
            raise ConnectionError
        return number

    @task(max_attempts=1)
    async def branches(params: None, ctx: TaskContext) -> list[int]:
        return await asyncio.gather(
            *(
                ctx.step(f"fetch {n}", nth, n, max_attempts=5, retry=AT_ONCE)
                for n in counts
            )
        )

    async with working(dsn, branches) as (app, _):
        handle = await app.spawn(branches)
        assert await handle.result(timeout=20) == [0, 1, 2, 3, 4]
    assert counts == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"max_attempt": 3}, "did you mean max_attempts"),
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"max_attempts": True}, "max_attempts must be"),
        ({"retry": 3}, "retry must be a Retry"),
        ({"no_retry": ValueError}, "no_retry must be a tuple"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": 1}, "cannot be stopped after a timeout"),
    ],
    ids=repr,
)
async def test_refuses_what_it_cannot_do(
    dsn: str, options: dict[str, Any], what: str
) -> None:
    @task(max_attempts=1)
    async def refused(params: None, ctx: TaskContext) -> str:
        with pytest.raises(InvalidArgument, match=what):
            await ctx.step("fetch", flaky, 0, **options)
        return "refused"

    assert (await outcome(dsn, refused)).result == "refused"
    assert calls == []


async def test_tries_transactions_again_too(dsn: str, db: psycopg.Connection) -> None:
    async def enter(conn: psycopg.AsyncConnection[Any]) -> int:
        await conn.execute("insert into public.entries values (%s)", [len(calls)])
        return flaky(2)

    @task(max_attempts=1)
    async def entering(params: None, ctx: TaskContext) -> int:
        return await ctx.transaction("enter", enter, max_attempts=3, retry=AT_ONCE)

    db.execute("create table public.entries (n int)")
    async with working(dsn, entering) as (app, _):
        handle = await app.spawn(entering)
        assert await handle.result(timeout=20) == 3
    assert db.execute("select n from public.entries").fetchall() == [(2,)]
