"""A failed task is retried as often, as late and with the options that it asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel, ValidationError

from durable import (
    AlreadyFinished,
    AsyncDurable,
    AsyncTaskHandle,
    Conflict,
    InvalidArgument,
    NonRetryable,
    NotFound,
    Retry,
    SpawnOptions,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.clock import Clock
from tests.support.working import working

CALLS: list[str] = []


class Plan(BaseModel):
    """How often `flaky` fails before it succeeds."""

    failures: int = 100


@task
async def flaky(plan: Plan, ctx: TaskContext) -> int:
    CALLS.append(f"attempt {ctx.attempt}")
    if ctx.attempt <= plan.failures:
        raise ConnectionError(f"failure {ctx.attempt}")
    return ctx.attempt


@task
def flaky_in_a_thread(plan: Plan, ctx: SyncTaskContext) -> int:
    if ctx.attempt <= plan.failures:
        raise ConnectionError(f"failure {ctx.attempt}")
    return ctx.attempt


class StolenCard(Exception):
    """An error that is not retryable."""


class Picky(Task[str, None]):
    non_retryable = (StolenCard, LookupError)

    async def run(self, how: str, ctx: TaskContext) -> None:
        if how == "named":
            raise StolenCard("it is red")
        if how == "subclass":
            raise KeyError("card")
        if how == "group":
            raise ExceptionGroup("two", [ValueError("x"), StolenCard("it is red")])
        if how == "said":
            raise NonRetryable("no card")
        if how == "caused":
            raise NonRetryable(ZeroDivisionError("by zero"))
        if how == "step":
            await ctx.step("charge", charge_stolen)
        raise ValueError(how)


async def charge_stolen() -> None:
    raise StolenCard("it is red")


def count(step: str) -> int:
    CALLS.append(step)
    return len(CALLS)


@task(max_attempts=3, retry=Retry.fixed(0))
async def steps(failures: int, ctx: TaskContext) -> list[int]:
    done = [await ctx.step("one", count, "one"), await ctx.step("two", count, "two")]
    if ctx.attempt <= failures:
        raise ValueError("three")
    return [*done, await ctx.step("three", count, "three")]


def refuse() -> None:
    CALLS.append("refuse")
    raise LookupError("no such order", 7)


@task(max_attempts=5, retry=Retry.fixed(0))
async def caught(params: None, ctx: TaskContext) -> list[Any]:
    first: list[Any] = []
    try:
        await ctx.step("look", refuse)
    except LookupError as error:
        first += error.args
    await ctx.sleep_for("a moment", 0.001)
    await ctx.step("look", refuse)
    return first


@task(max_attempts=5, retry=Retry.fixed(0))
async def not_saved(params: None, ctx: TaskContext) -> None:
    CALLS.append("begun")
    await ctx.step("model", lambda: Plan())  # noqa: PLW0108 - has no annotation


@task(max_attempts=5, retry=Retry.fixed(0))
async def no_result(params: None, ctx: TaskContext) -> float:
    CALLS.append("begun")
    return float("nan")


TASKS: list[Any] = [flaky, flaky_in_a_thread, Picky, steps, caught]
TASKS += [not_saved, no_result]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    CALLS.clear()
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def due_in(db: psycopg.Connection, handle: AsyncTaskHandle[Any]) -> float:
    """Return the seconds until the next attempt."""
    query = """
        select extract(epoch from available_at - durable._now())
        from durable.tasks where task_id = %s
    """
    row = db.execute(query, [handle.task_id]).fetchone()
    assert row is not None
    return float(row[0])


async def delays(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock, **options: Any
) -> list[float]:
    """Fail until the end, and return the delay of each next attempt."""
    handle = await app.spawn(flaky, Plan(), **options)
    found: list[float] = []
    while True:
        await drain(app)
        if await handle.state() == "failed":
            return found
        found.append(due_in(db, handle))
        clock.advance(found[-1])


@pytest.mark.parametrize("which", [flaky, flaky_in_a_thread])
async def test_retries_until_it_succeeds(app: AsyncDurable, which: Any) -> None:
    handle = await app.spawn(which, Plan(failures=3), retry=Retry.fixed(0))
    await drain(app)
    assert await handle.result(0) == 4


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_starts_a_task_at_most_max_attempts_times(
    app: AsyncDurable, most: int
) -> None:
    handle = await app.spawn(flaky, Plan(), max_attempts=most, retry=Retry.fixed(0))
    await drain(app)
    with pytest.raises(TaskFailed, match=f"ConnectionError: failure {most}"):
        await handle.result(0)
    assert [f"attempt {n}" for n in range(1, most + 1)] == CALLS
    assert await drain(app) == 0


async def test_retries_without_limit_if_configured(app: AsyncDurable) -> None:
    plan, fixed = Plan(failures=40), Retry.fixed(0)
    handle = await app.spawn(flaky, plan, max_attempts=None, retry=fixed)
    await drain(app)
    assert await handle.result(0) == 41


async def test_retry_none_disables_retries(app: AsyncDurable) -> None:
    handle = await app.spawn(flaky, Plan(), max_attempts=9, retry=Retry.none())
    await drain(app)
    assert await handle.state() == "failed"
    assert CALLS == ["attempt 1"]


async def test_a_fixed_delay_stays_the_same(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    minute = Retry.fixed(timedelta(minutes=1))
    assert await delays(app, db, clock, max_attempts=4, retry=minute) == [60] * 3


async def test_an_exponential_delay_grows_up_to_a_limit(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    growing = Retry.exponential(2, 3, max=timedelta(seconds=50), jitter=False)
    found = await delays(app, db, clock, max_attempts=6, retry=growing)
    assert found == [2, 6, 18, 50, 50]


async def test_jitter_spreads_attempts(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    growing = Retry.exponential(100, 1)
    found = await delays(app, db, clock, max_attempts=9, retry=growing)
    assert all(50 <= delay <= 100 for delay in found)
    assert len(set(found)) > 1


async def test_has_short_delays_by_default(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    found = await delays(app, db, clock)
    assert len(found) == 4
    for delay, longest in zip(found, [1, 2, 4, 8], strict=True):
        assert longest / 2 <= delay <= longest


async def test_computes_any_delay_without_overflow(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    huge = Retry.exponential(1e9, 1e9, jitter=False)
    plan = Plan(failures=2**31)
    handle = await app.spawn(flaky, plan, max_attempts=None, retry=huge)
    db.execute("update durable.tasks set attempt = 2000000000")
    await drain(app)
    assert await handle.state() == "sleeping"
    assert 0 < due_in(db, handle) <= 366 * 86_400


async def test_does_nothing_before_the_next_attempt_is_due(
    app: AsyncDurable, clock: Clock
) -> None:
    handle = await app.spawn(flaky, Plan(failures=1), retry=Retry.fixed(60))
    await drain(app)
    snapshot = await app.get_result(handle)
    assert (snapshot.state, snapshot.attempt) == ("sleeping", 2)
    assert str(snapshot.error) == "ConnectionError: failure 1"
    clock.advance(59)
    assert await drain(app) == 0
    clock.advance(1)
    assert await drain(app) == 1
    assert await handle.result(0) == 2
    assert (await app.get_result(handle)).error is None


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("named", "StolenCard: it is red"),
        ("subclass", "KeyError: 'card'"),
        ("group", "ExceptionGroup: two (2 sub-exceptions)"),
        ("said", "NonRetryable: no card"),
        ("caused", "ZeroDivisionError: by zero"),
        ("step", "StolenCard: it is red"),
    ],
)
async def test_never_retries_a_non_retryable_error(
    app: AsyncDurable, how: str, error: str
) -> None:
    handle = await app.spawn(Picky, how)
    await drain(app)
    failed = await app.get_result(handle)
    assert (failed.state, failed.attempt) == ("failed", 1)
    assert str(failed.error) == error


async def test_retries_other_errors_of_the_same_task(app: AsyncDurable) -> None:
    handle = await app.spawn(Picky, "another", max_attempts=2, retry=Retry.fixed(0))
    await drain(app)
    assert (await app.get_result(handle)).attempt == 2


async def test_records_the_outcome_of_each_attempt(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(flaky, Plan(failures=2), retry=Retry.fixed(0))
    await drain(app)
    query = """
        select attempt, outcome, error ->> 'message', worker is not null, run_id
        from durable.attempts where task_id = %s order by attempt
    """
    rows = db.execute(query, [handle.task_id]).fetchall()
    assert [row[:4] for row in rows] == [
        (1, "failed", "failure 1", True),
        (2, "failed", "failure 2", True),
        (3, "completed", None, True),
    ]
    assert rows[0][4] == handle.run_id
    assert len({row[4] for row in rows}) == 3


async def test_repeats_no_saved_step(app: AsyncDurable) -> None:
    handle = await app.spawn(steps, 2)
    await drain(app)
    assert await handle.result(0) == [1, 2, 3]
    assert CALLS == ["one", "two", "three"]


async def test_a_caught_failure_is_final(app: AsyncDurable) -> None:
    handle = await app.spawn(caught)
    async with app.worker():
        with pytest.raises(TaskFailed, match="LookupError"):
            await handle.result(timeout=10)
    # caught once, and again by its second step, which has no checkpoint
    assert CALLS.count("refuse") == 1 + 5
    assert (await app.get_result(handle)).attempt == 5


@pytest.mark.parametrize("which", [not_saved, no_result])
async def test_does_not_retry_a_value_that_cannot_be_saved(
    app: AsyncDurable, which: Any
) -> None:
    handle = await app.spawn(which)
    await drain(app)
    assert await handle.state() == "failed"
    assert CALLS == ["begun"]


async def test_does_not_retry_invalid_params(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    db.execute("select durable.spawn('default', 'flaky', '{\"failures\": \"many\"}')")
    await drain(app)
    query = "select state::text, attempt, error ->> 'type' from durable.tasks"
    assert db.execute(query).fetchall() == [("failed", 1, "ValidationError")]
    assert CALLS == []


# -- retry_task ----------------------------------------------------------------------


async def test_a_manual_retry_continues_from_the_checkpoints(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(steps, 3)
    await drain(app)
    assert await handle.state() == "failed"
    again = await app.retry(handle)
    assert (again.task_id, again.attempt) == (handle.task_id, 4)
    assert await again.state() == "pending"
    await drain(app)
    assert await again.result(0) == [1, 2, 3]
    assert CALLS == ["one", "two", "three"]
    rows = db.execute("select outcome from durable.attempts order by attempt")
    assert [outcome for (outcome,) in rows] == ["failed"] * 3 + ["completed"]


async def test_a_retry_as_a_new_task_starts_from_the_beginning(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(steps, 1, max_attempts=1, headers={"a": 1})
    await drain(app)
    anew = await app.retry(handle, spawn_new=True, max_attempts=2)
    await drain(app)
    assert await anew.result(0) == [3, 4, 5]
    assert CALLS == ["one", "two", "one", "two", "three"]
    assert await handle.state() == "failed"


async def test_gives_one_more_attempt_or_as_many_as_requested(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(flaky, Plan(), max_attempts=2, retry=Retry.fixed(0))
    await drain(app)
    await app.retry(handle)
    await drain(app)
    assert (await app.get_result(handle)).attempt == 3
    for too_few in (1, 3):
        with pytest.raises(InvalidArgument, match="Pass 4 or more"):
            await app.retry(handle, max_attempts=too_few)
    await app.retry(handle, max_attempts=6)
    await drain(app)
    assert (await app.get_result(handle)).attempt == 6


async def test_retries_a_cancelled_task_manually(app: AsyncDurable) -> None:
    handle = await app.spawn(steps, 0)
    await app.cancel(handle)
    await app.retry(handle)
    with pytest.raises(AlreadyFinished, match="pending"):
        await app.retry(handle)
    await drain(app)
    assert await handle.result(0) == [1, 2, 3]


async def test_retries_with_other_params(dsn: str) -> None:
    @task(max_attempts=1)
    async def strict(plan: Plan, ctx: TaskContext) -> int:
        seen = await ctx.step("seen", lambda: plan.failures, as_type=int)
        if plan.failures:
            raise ValueError(plan.failures)
        return seen

    async with working(dsn, strict) as (app, worker):
        handle = await app.spawn(strict, Plan(failures=7), idempotency_key="k")
        await worker.drain()
        refused: list[Any] = [{"failures": "many"}, None, 7]
        for bad in refused:
            with pytest.raises(ValidationError):
                await app.retry(handle, params=bad)
        assert await handle.state() == "failed"
        again: AsyncTaskHandle[Any] = await app.retry(
            handle.task_id, params={"failures": 0}
        )
        assert again.attempt == 2
        await worker.drain()
        assert await handle.result(timeout=10) == 7  # the step keeps its value
        key: SpawnOptions = {"idempotency_key": "k"}
        assert not (await app.spawn("strict", {"failures": 0}, **key)).created
        with pytest.raises(Conflict):
            await app.spawn("strict", {"failures": 7}, **key)
        with pytest.raises(NotFound):
            await app.retry(uuid4(), params={"failures": 0})


async def test_starts_a_task_now_that_waits_for_its_next_attempt(
    dsn: str, db: psycopg.Connection
) -> None:
    async with working(dsn, flaky) as (app, worker):
        options: SpawnOptions = {"retry": Retry.fixed(3600), "max_attempts": 3}
        handle = await app.spawn(flaky, Plan(failures=2), **options)
        for attempt in (2, 3):
            await worker.drain()
            assert await handle.state() == "sleeping"
            assert (await app.retry(handle)).attempt == attempt
        assert await handle.result(timeout=10) == 3
        with pytest.raises(AlreadyFinished):
            await app.retry(handle)
    rows = db.execute("select attempt from durable.runs order by attempt").fetchall()
    assert rows == [(1,), (2,)]
