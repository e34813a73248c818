"""A step may be retried several times before it fails; its tries are counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
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
async def test_is_tried_as_often_as_allowed(
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


async def test_is_tried_once_by_default(dsn: str) -> None:
    @task(max_attempts=1)
    async def once(params: None, ctx: TaskContext) -> None:
        await ctx.step("fetch", flaky, 9, timeout=None)

    assert (await outcome(dsn, once)).state == "failed"
    assert len(calls) == 1


async def test_occupies_no_worker_between_two_tries(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    """A pause of hours is stored in a row, with its end."""

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


async def test_counts_from_zero_in_the_next_attempt_of_the_task(
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
async def test_is_not_retried_where_that_is_pointless(
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
            non_retryable=(LookupError,),
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


async def test_fails_a_call_that_times_out(dsn: str) -> None:
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


async def test_counts_correctly_when_something_else_wakes_the_task(dsn: str) -> None:
    """Each event ends the suspension, and none of them the pause."""

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


async def test_reports_the_failure_and_not_an_open_step(dsn: str) -> None:
    @task(max_attempts=1)
    async def opened(params: None, ctx: TaskContext) -> None:
        await ctx.begin_step("open")
        await ctx.step("fetch", flaky, 1, max_attempts=2, retry=AT_ONCE)

    found = await outcome(dsn, opened)
    assert found.error is not None
    assert "complete open first" in found.error.message
    assert calls == []


async def test_branches_retry_concurrently(dsn: str) -> None:
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
        ({"non_retryable": ValueError}, "non_retryable must be a tuple"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": 1}, "cannot be stopped after a timeout"),
    ],
    ids=repr,
)
async def test_refuses_invalid_policies(
    dsn: str, options: dict[str, Any], what: str
) -> None:
    @task(max_attempts=1)
    async def refused(params: None, ctx: TaskContext) -> str:
        with pytest.raises(InvalidArgument, match=what):
            await ctx.step("fetch", flaky, 0, **options)
        return "refused"

    assert (await outcome(dsn, refused)).result == "refused"
    assert calls == []


async def test_retries_transactions(dsn: str, db: psycopg.Connection) -> None:
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


async def test_records_why_each_try_failed(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log at once, and in the history."""

    async def slow_and_wordy() -> int:
        await asyncio.sleep(0.05)
        return flaky(2)

    @task(max_attempts=1)
    async def wordy(params: None, ctx: TaskContext) -> int:
        return await ctx.step("fetch", slow_and_wordy, max_attempts=3, retry=AT_ONCE)

    async with working(dsn, wordy) as (app, _):
        handle = await app.spawn(wordy)
        assert await handle.result(timeout=20) == 3
        tries = [one for one in await handle.history() if one.kind == "try_failed"]
    for number, entry in enumerate(tries, 1):
        error = {"type": "ConnectionError", "message": f"failure {number}"}
        assert entry.detail["error"] == error
        assert entry.duration_ms is not None
        assert entry.duration_ms >= 50
        assert f"ConnectionError: failure {number}" in entry.said
    logged = [r for r in caplog.records if "step 'fetch' of wordy" in r.getMessage()]
    assert [record.levelname for record in logged] == ["WARNING", "WARNING"]
    said = [record.getMessage() for record in logged]
    assert [text.rpartition(": ")[2] for text in said] == ["failure 1", "failure 2"]


async def test_keeps_only_the_beginning_of_a_long_error(
    dsn: str, db: psycopg.Connection
) -> None:
    def shout() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("x" * 100_000)
        return 1

    @task(max_attempts=1)
    async def loud(params: None, ctx: TaskContext) -> int:
        return await ctx.step("fetch", shout, max_attempts=2, retry=AT_ONCE)

    assert (await outcome(dsn, loud)).result == 1
    query = "select length(value::text) from durable.checkpoints where name ~ '^.try'"
    ((length,),) = db.execute(query).fetchall()
    assert length < 2_000


VISITED = """
select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)
from pg_stat_xact_user_tables where schemaname = 'durable'
"""
LOADED = """
select name from durable.load_checkpoints('default', %s) order by name
"""
TRIED = """
insert into durable.checkpoints (task_id, saved_at, claim, attempt, position, after,
  duration_ms, state, queue, name, value)
select %(id)s, now(), %(claim)s, 1, 1, 0, 0, 'done', 'default', kind || number,
  to_json(now() - interval '1 hour')
from generate_series(1, 5000) as number
cross join unnest(array['$try:fetch:1.', '$retry:fetch:1.']) as kind
"""


async def test_costs_the_same_after_any_number_of_tries(
    dsn: str, db: psycopg.Connection
) -> None:
    """Of five thousand tries only the last is loaded, and the next one runs."""

    @task(max_attempts=1)
    async def patient(params: None, ctx: TaskContext) -> str:
        await ctx.step("before", abs, 1, as_type=int)
        return await ctx.step("fetch", last, max_attempts=None, retry=AT_ONCE)

    def last() -> str:
        calls.append(1)
        return "fetched"

    async with AsyncDurable(dsn, tasks=[patient]) as app:
        handle = await app.spawn(patient)
        claim = "select task_id, claim from durable.claim_tasks('default', 'w')"
        ((task_id, number),) = db.execute(claim).fetchall()
        db.execute(TRIED, {"id": task_id, "claim": number})
        held = json.dumps([{"task_id": str(task_id), "claim": number}])
        with db.transaction():
            before = db.execute(VISITED).fetchone()
            names = [name for (name,) in db.execute(LOADED, [held])]
            after = db.execute(VISITED).fetchone()
        assert names == ["$retry:fetch:1.5000", "$try:fetch:1.5000"]
        assert before is not None
        assert after is not None
        assert after[0] - before[0] < 100
        db.execute("select durable.release_tasks('default', %s)", [held])
        async with app.worker():
            assert await handle.result(timeout=20) == "fetched"
    assert calls == [1]


async def test_counts_the_tries_of_steps_whose_names_look_like_numbers(
    dsn: str, db: psycopg.Connection
) -> None:
    """Each fails twice, and is tried three times, whatever other steps are called."""
    names = ["a", "a:1", "a:1.2", "a:1.2:1", "a:1%2E2"]
    counts = dict.fromkeys(names, 0)

    def third(name: str) -> int:
        counts[name] += 1
        if counts[name] < 3:
            raise ConnectionError(name)
        return counts[name]

    @task(max_attempts=1)
    async def numbers(params: None, ctx: TaskContext) -> list[int]:
        return await asyncio.gather(
            *(ctx.step(n, third, n, max_attempts=3, retry=AT_ONCE) for n in names)
        )

    async with working(dsn, numbers) as (app, _):
        handle = await app.spawn(numbers)
        assert await handle.result(timeout=20) == [3] * len(names)
