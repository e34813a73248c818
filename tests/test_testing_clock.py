"""A test moves the time of its engine, and tasks that become due run in order."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from durable import AsyncDurable, Retry, SyncTaskContext, TaskContext, task
from durable.errors import InvalidArgument
from durable.testing import AppFactory, Clock, Ran
from durable.testing.sync import Clock as SyncClock
from tests.support.wait import aeventually

DAY = timedelta(days=1)
Apps = AppFactory[Any]


def told(ran: list[Ran], clock_began: datetime) -> list[tuple[int, str, str]]:
    """Return what ran: after how many hours, which task, and at which point."""
    hour = timedelta(hours=1)
    return [((one.at - clock_began) // hour, one.task, one.state) for one in ran]


@task
async def nap(duration: float, ctx: TaskContext) -> str:
    await ctx.sleep_for("nap", duration)
    return "rested"


@task(max_attempts=3, retry=Retry.fixed(DAY))
async def stubborn(params: None, ctx: TaskContext) -> int:
    if ctx.attempt < 3:
        raise ValueError("not yet")
    return ctx.attempt


@task
async def patient(params: None, ctx: TaskContext) -> str:
    child = await ctx.spawn("child", stubborn)
    try:
        await ctx.await_event("never", timeout=5 * DAY)
    except TimeoutError:
        await ctx.step("sent a reminder", lambda: None)
    await asyncio.gather(ctx.sleep_for("a", DAY), ctx.sleep_for("b", 3 * DAY))
    return f"child {await ctx.join(child)}"


@task(execution_timeout=10 * DAY)
async def late(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


async def test_runs_a_month_in_order(durable_app: Apps, durable_clock: Clock) -> None:
    began = durable_clock.now()
    async with durable_app(tasks=[patient, stubborn, nap, late]) as app:
        waiting = await app.spawn(patient)
        await app.spawn(nap, 30 * 86_400)
        await app.spawn(late)
        started = time.monotonic()
        ran = await durable_clock.advance(days=30)
        assert time.monotonic() - started < 60  # it polls only after days
        assert await waiting.result(timeout=30) == "child 3"
    assert told(ran, began) == [
        (0, "patient", "sleeping"),
        (0, "nap", "sleeping"),
        (0, "late", "sleeping"),
        (0, "stubborn", "sleeping"),
        (24, "stubborn", "sleeping"),
        (48, "stubborn", "completed"),
        (5 * 24, "patient", "sleeping"),
        (6 * 24, "patient", "sleeping"),
        (8 * 24, "patient", "completed"),
        (10 * 24, "late", "cancelled"),
        (30 * 24, "nap", "completed"),
    ]
    assert durable_clock.now() - began >= 30 * DAY


async def test_runs_nothing_that_is_due_later(
    durable_app: Apps, durable_clock: Clock
) -> None:
    async with durable_app(tasks=[nap]) as app:
        sleeper = await app.spawn(nap, 86_400 + 60)
        (began,) = await durable_clock.advance(days=1)
        assert (began.state, await sleeper.state()) == ("sleeping", "sleeping")
        (ended,) = await durable_clock.advance(minutes=1)
        assert (ended.state, await sleeper.state()) == ("completed", "completed")


async def test_lets_a_chain_of_sleeps_end(
    durable_app: Apps, durable_clock: Clock
) -> None:
    @task
    async def daily(params: None, ctx: TaskContext) -> int:
        for _ in range(30):
            await ctx.sleep_for("day", DAY)
        return 30

    async with durable_app(tasks=[daily]) as app:
        handle = await app.spawn(daily)
        ran = await durable_clock.advance(30 * DAY)
        assert await handle.result(timeout=30) == 30
    assert len(ran) == 31


async def test_runs_a_step_beside_a_sleep_once(
    durable_app: Apps, durable_clock: Clock
) -> None:
    effects = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        effects.append("worked")

    @task
    async def both(params: None, ctx: TaskContext) -> list[datetime]:
        begun = await ctx.now()
        await asyncio.gather(ctx.sleep_for("day", DAY), ctx.step("work", work))
        return [begun, await ctx.now()]

    async with durable_app(tasks=[both]) as app:
        handle = await app.spawn(both)
        await durable_clock.advance(2 * DAY)
        begun, ended = await handle.result(timeout=30)
    assert effects == ["worked"]
    assert DAY <= ended - begun < DAY + timedelta(minutes=1)


async def test_retries_a_step_after_its_pause(
    durable_app: Apps, durable_clock: Clock
) -> None:
    tries = []

    def stumble() -> int:
        tries.append("once more")
        if len(tries) < 3:
            raise ConnectionError
        return len(tries)

    @task(max_attempts=1)
    async def trying(params: None, ctx: TaskContext) -> int:
        again = Retry.fixed(DAY)
        return await ctx.step("stumble", stumble, max_attempts=3, retry=again)

    async with durable_app(tasks=[trying]) as app:
        handle = await app.spawn(trying)
        await durable_clock.advance(2 * DAY)
        assert await handle.result(timeout=30) == 3


async def test_expires_the_lease_of_a_dead_worker(
    durable_app: Apps, durable_clock: Clock, durable_database: str
) -> None:
    async with durable_app(tasks=[stubborn]) as app:
        handle = await app.spawn(stubborn, max_attempts=5)
        with psycopg.connect(durable_database, autocommit=True) as session:
            claim = "select from durable.claim_tasks('default', 'gone', '{stubborn}')"
            session.execute(claim)
        assert await durable_clock.advance(seconds=29) == []
        (ran,) = await durable_clock.advance(seconds=2)
        assert (ran.state, ran.attempt) == ("sleeping", 3)  # the second one raised
        assert await handle.state() == "sleeping"


async def test_waits_for_a_worker_that_the_test_started(
    durable_app: Apps, durable_clock: Clock
) -> None:
    """However far the clock jumps, it expires no lease of a live worker."""
    attempts: list[int] = []
    may_end = asyncio.Event()

    async def began() -> bool:
        return bool(attempts)

    @task
    async def slow(params: None, ctx: TaskContext) -> int:
        async def work() -> int:
            attempts.append(ctx.attempt)
            await may_end.wait()
            return ctx.attempt

        return await ctx.step("work", work)

    async with durable_app(tasks=[slow]) as app, app.worker() as worker:
        handle = await app.spawn(slow)
        draining = asyncio.create_task(worker.drain())
        await aeventually(began)
        start = durable_clock.now()
        advancing = asyncio.create_task(durable_clock.advance(30 * DAY))
        await asyncio.wait({advancing}, timeout=0.5)
        assert durable_clock.now() - start < timedelta(seconds=20)  # a lease lasts 30
        may_end.set()
        await advancing
        await draining
        assert await handle.result(timeout=30) == 1
    assert attempts == [1]


async def test_says_which_tasks_do_not_end(
    durable_app: Apps, durable_clock: Clock
) -> None:
    @task
    async def stuck(params: None, ctx: TaskContext) -> None:
        await ctx.step("wait", asyncio.Event().wait, as_type=bool)

    async with durable_app(tasks=[stuck]) as app:
        handle = await app.spawn(stuck)
        with pytest.raises(TimeoutError, match=rf"running: stuck {handle.task_id}"):
            await durable_clock.advance(days=1, patience=0.2)


async def test_stands_still_when_frozen(
    durable_app: Apps, durable_clock: Clock
) -> None:
    new_year = datetime(2031, 1, 1, tzinfo=UTC)
    assert durable_clock.freeze(new_year) == new_year
    async with durable_app(tasks=[nap]) as app:
        await app.spawn(nap, 86_400)
        ran = await durable_clock.advance(days=1)
    begun, ended = [one.at for one in ran]
    assert begun == new_year
    assert DAY - timedelta(seconds=1) < ended - new_year <= DAY
    assert durable_clock.now() == new_year + DAY
    durable_clock.unfreeze()
    assert new_year + DAY < durable_clock.now() < new_year + DAY * 1.1


async def test_goes_back_only_by_a_jump(
    durable_app: Apps, durable_clock: Clock
) -> None:
    past = datetime(2001, 1, 1, tzinfo=UTC)
    with pytest.raises(InvalidArgument, match="is past, it is"):
        await durable_clock.advance_to(past)
    with pytest.raises(ValueError, match="duration"):
        await durable_clock.advance(-1)
    durable_clock.jump_to(past)
    assert durable_clock.now() - past < DAY
    await durable_clock.advance_to(past + DAY)
    assert DAY <= durable_clock.now() - past < 2 * DAY


async def test_keeps_finished_tasks(durable_app: Apps, durable_clock: Clock) -> None:
    """Otherwise moving by a year would delete them."""
    async with durable_app(tasks=[nap]) as app:
        handle = await app.spawn(nap, 1)
        await durable_clock.advance(days=365)
        await durable_clock.advance(days=365)
        assert await handle.result(timeout=30) == "rested"


def test_leaves_other_databases_alone(dsn: str, db: psycopg.Connection) -> None:
    before = db.execute("select pg_get_functiondef('durable._now'::regproc)").fetchone()
    with pytest.raises(InvalidArgument, match="is for a database that was made for te"):
        Clock(AsyncDurable(dsn))
    after = db.execute("select pg_get_functiondef('durable._now'::regproc)").fetchone()
    assert before == after


def test_runs_what_is_due_at_the_end_however_late_it_begins(
    durable_sync_app: Apps,
    durable_sync_clock: SyncClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time at which a task falls asleep is later than that of the call."""
    run = asyncio.run

    def run_late(coroutine: Any) -> Any:
        time.sleep(0.5)  # as long as a busy machine may take to start a thread
        return run(coroutine)

    monkeypatch.setattr(asyncio, "run", run_late)
    with durable_sync_app(tasks=[nap]) as app:
        handle = app.spawn(nap, DAY.total_seconds())
        durable_sync_clock.advance(days=1)
        assert handle.state() == "completed"


def test_moves_time_for_synchronous_tests(
    durable_sync_app: Apps, durable_sync_clock: SyncClock
) -> None:
    @task
    def quiet(params: None, ctx: SyncTaskContext) -> str:
        ctx.sleep_for("month", 30 * DAY)
        return "rested"

    with durable_sync_app(tasks=[quiet]) as app:
        handle = app.spawn(quiet)
        ran = durable_sync_clock.advance(days=30)
        assert handle.result(timeout=30) == "rested"
        assert [one.state for one in ran] == ["sleeping", "completed"]
        assert durable_sync_clock.advance_to(durable_sync_clock.now() + DAY) == []
