"""A task leaves its worker while it waits, and its code notices only the time."""

from __future__ import annotations

import asyncio
import sys
import threading
from datetime import timedelta
from typing import Any, TypeAlias

import anyio
import psycopg
import pytest

from durable import (
    ChildHandle,
    NonRetryable,
    Retry,
    Suspended,
    SyncTaskContext,
    TaskContext,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually
from tests.support.working import DAY, outcome, through_the_night, working

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]


# -- several waits at once -------------------------------------------------------------


async def test_runs_a_step_beside_a_sleep_once(dsn: str, clock: Clock) -> None:
    effects = []

    async def work() -> None:
        await asyncio.sleep(0.05)  # longer than a run takes to resolve waits
        effects.append("worked")

    @task
    async def both(params: None, ctx: Context) -> None:
        await asyncio.gather(ctx.step("work", work), ctx.sleep_for("night", DAY))

    assert (await through_the_night(dsn, clock, both)).state == "completed"
    assert effects == ["worked"]


async def test_two_concurrent_sleeps_take_as_long_as_the_longer(
    dsn: str, clock: Clock
) -> None:
    @task
    async def both(params: None, ctx: Context) -> None:
        await asyncio.gather(
            ctx.sleep_for("night", DAY), ctx.sleep_for("weekend", 2 * DAY)
        )

    started = clock.now()
    assert (await through_the_night(dsn, clock, both)).state == "completed"
    assert clock.now() - started == timedelta(days=2)


async def test_two_sequential_sleeps_take_the_sum(dsn: str, clock: Clock) -> None:
    @task
    async def one_by_one(params: None, ctx: Context) -> None:
        await ctx.sleep_for("night", DAY)
        await ctx.sleep_for("weekend", timedelta(days=2))

    started = clock.now()
    assert (await through_the_night(dsn, clock, one_by_one)).state == "completed"
    assert clock.now() - started == timedelta(days=3)


async def test_a_chain_of_steps_continues_beside_a_long_sleep(
    dsn: str, clock: Clock
) -> None:
    effects: list[int] = []

    async def work() -> None:
        await asyncio.sleep(0.02)

    async def chain(ctx: Context) -> None:
        for number in range(5):
            await ctx.step("link", work)
            effects.append(number)
            for _ in range(10):  # between two steps a few iterations of the loop pass
                await asyncio.sleep(0)

    @task
    async def both(params: None, ctx: Context) -> None:
        await asyncio.gather(ctx.sleep_for("night", DAY), chain(ctx.scope("chain")))

    async with working(dsn, both) as (app, worker):
        handle = await app.spawn(both)
        await worker.drain()
        assert effects == list(range(5))
        assert await handle.state() == "sleeping"


@pytest.mark.parametrize("sleeps_first", [False, True])
async def test_ends_a_sleep_without_suspending_while_another_branch_is_busy(
    dsn: str, db: psycopg.Connection, *, sleeps_first: bool
) -> None:
    """The step ends only after the sleep: the run cannot suspend before that."""

    @task
    async def both(params: None, ctx: Context) -> None:
        slept = asyncio.Event()

        async def nap() -> None:
            await ctx.sleep_for("nap", 0.05)
            slept.set()

        branches = [ctx.step("work", slept.wait), nap()]
        if sleeps_first:
            branches.reverse()
        await asyncio.gather(*branches)

    async with asyncio.timeout(30):
        assert (await outcome(dsn, both)).state == "completed"
    assert claims(db) == 1


async def test_receives_an_event_without_suspending_while_another_branch_is_busy(
    dsn: str, db: psycopg.Connection
) -> None:
    async def registered() -> bool:
        return one(db, "select from durable.waits") is not None

    @task
    async def both(params: None, ctx: Context) -> Any:
        came = asyncio.Event()

        async def listen() -> Any:
            payload = await ctx.await_event("packed")
            came.set()
            return payload

        return (await asyncio.gather(ctx.step("work", came.wait), listen()))[1]

    async with working(dsn, both) as (app, _):
        handle = await app.spawn(both)
        await aeventually(registered)
        await app.emit_event("packed", 7)
        assert await handle.result(timeout=10) == 7
    assert claims(db) == 1


async def test_wakes_for_the_first_of_two_waits_and_keeps_the_other(
    dsn: str, clock: Clock
) -> None:
    order = []

    @task
    async def both(params: None, ctx: Context) -> None:
        async def first() -> None:
            order.append(await ctx.await_event("first"))
            await ctx.step("after first", str)

        async def second() -> None:
            order.append(await ctx.await_event("second"))

        await asyncio.gather(first(), second(), ctx.sleep_for("night", DAY))

    async with working(dsn, both) as (app, worker):
        handle = await app.spawn(both)
        await worker.drain()
        assert order == []
        await app.emit_event("second", 2)
        await worker.drain()
        assert order == [2]
        assert await handle.state() == "sleeping"
        await app.emit_event("first", 1)
        await worker.drain()
        assert set(order) == {1, 2}
        assert await handle.state() == "sleeping"
        clock.advance(DAY)
        await worker.drain()
        assert await handle.state() == "completed"


async def test_keeps_the_first_deadline_of_a_wait(dsn: str, clock: Clock) -> None:
    """However often the task wakes for another reason meanwhile."""

    @task
    async def both(params: None, ctx: Context) -> str:
        async def nap() -> None:
            for _ in range(3):
                await ctx.sleep_for("nap", DAY / 4)

        waiting = ctx.await_event("never", timeout=DAY)
        result = await asyncio.gather(waiting, nap(), return_exceptions=True)
        return type(result[0]).__name__

    started = clock.now()
    async with working(dsn, both) as (app, worker):
        handle = await app.spawn(both)
        await worker.drain()
        for quarter in range(4):
            assert await handle.state() == "sleeping", quarter
            clock.advance(DAY / 4)
            await worker.drain()
        assert await handle.result() == "TimeoutError"
    assert clock.now() - started == timedelta(days=1)


async def test_loses_no_task_whose_wait_is_cancelled_as_it_suspends(
    dsn: str,
) -> None:
    @task
    async def impatient(params: None, ctx: Context) -> str:
        async def give_up() -> str:
            try:
                async with asyncio.timeout(0.005):
                    await ctx.sleep_for("night", DAY)
            except TimeoutError:
                await asyncio.sleep(0.05)  # waits resolved meanwhile are unrelated
            return "given up"

        return (await asyncio.gather(give_up()))[0]

    assert (await outcome(dsn, impatient)).result == "given up"


# -- task groups of all kinds ----------------------------------------------------------


async def test_suspends_a_task_group(dsn: str, clock: Clock) -> None:
    effects = []

    @task
    async def grouped(params: None, ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.sleep_for("night", DAY))
            group.create_task(ctx.sleep_for("next night", 2 * DAY))
            group.create_task(ctx.step("work", lambda: effects.append("worked")))

    assert (await through_the_night(dsn, clock, grouped)).state == "completed"
    assert effects == ["worked"]


async def test_suspends_an_anyio_task_group(dsn: str, clock: Clock) -> None:
    effects = []

    @task
    async def grouped(params: None, ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(ctx.sleep_for, "night", DAY)
            group.start_soon(ctx.step, "work", lambda: effects.append("worked"))
            with anyio.CancelScope():
                await ctx.sleep_for("next night", 2 * DAY)

    assert (await through_the_night(dsn, clock, grouped)).state == "completed"
    assert effects == ["worked"]


async def test_suspends_a_gather_that_returns_exceptions(
    dsn: str, clock: Clock
) -> None:
    reached: list[object] = []

    @task
    async def gathered(params: None, ctx: Context) -> None:
        waits = (ctx.sleep_for("night", DAY), ctx.sleep_for("next", 2 * DAY))
        results = await asyncio.gather(*waits, return_exceptions=True)
        reached.extend(results)

    assert (await through_the_night(dsn, clock, gathered)).state == "completed"
    assert reached == [None, None]


# -- code that catches too much --------------------------------------------------------


async def test_a_suspension_is_not_caught_by_except_exception(
    dsn: str, clock: Clock
) -> None:
    caught = []

    @task
    async def careful(params: None, ctx: Context) -> str:
        try:
            await ctx.sleep_for("night", DAY)
        except Exception as error:  # noqa: BLE001 - that is the question
            caught.append(error)
        return "slept"

    @task
    def careful_sync(params: None, ctx: SyncContext) -> str:
        try:
            ctx.sleep_for("night", DAY)
        except Exception as error:  # noqa: BLE001 - that is the question
            caught.append(error)
        return "slept"

    assert (await through_the_night(dsn, clock, careful)).result == "slept"
    assert (await through_the_night(dsn, clock, careful_sync)).result == "slept"
    assert caught == []


async def test_ignores_the_return_value_of_code_that_swallows_its_suspension(
    dsn: str, clock: Clock
) -> None:
    caught: list[BaseException] = []

    @task
    async def greedy(params: None, ctx: Context) -> str:
        try:
            await ctx.sleep_for("night", DAY)
        except BaseException as error:  # noqa: BLE001 - that is the question
            caught.append(error)
            return "swallowed"
        return "slept"

    @task
    def greedy_sync(params: None, ctx: SyncContext) -> str:
        try:
            ctx.sleep_for("night", DAY)
        except BaseException as error:
            caught.append(error)
            raise ValueError("wrapped") from error
        return "slept"

    assert (await through_the_night(dsn, clock, greedy)).result == "slept"
    assert (await through_the_night(dsn, clock, greedy_sync)).result == "slept"
    assert [type(error) for error in caught] == [Suspended, Suspended]
    assert str(caught[0]) == "waiting"


async def test_abandons_code_that_does_not_end(
    dsn: str,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable._task.run._EXIT_TIMEOUT", 0.1)
    stop = asyncio.Event()
    refused: list[BaseException] = []

    @task
    async def stubborn(params: None, ctx: Context) -> str:
        try:
            await ctx.sleep_for("night", DAY)
        except asyncio.CancelledError:
            await stop.wait()
            try:
                await ctx.step("late", str)
            except BaseException as error:  # noqa: BLE001 - that is the question
                refused.append(error)
        return "slept"

    assert (await through_the_night(dsn, clock, stubborn)).result == "slept"
    assert "left behind" in caplog.text
    assert "stop.wait()" in caplog.text
    stop.set()
    await aeventually(lambda: asyncio.sleep(0, refused))
    assert isinstance(refused[0], Suspended)


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_runs_a_step_in_a_finally_once_at_the_end(
    dsn: str, clock: Clock, colour: str
) -> None:
    effects, refused = [], []

    @task(name="async")
    async def tidy(params: None, ctx: Context) -> None:
        try:
            await ctx.sleep_for("night", DAY)
            await ctx.await_event("never", timeout=DAY)
        except TimeoutError:
            pass
        finally:
            try:
                await ctx.step("tidy", lambda: effects.append("tidied"))
            except Suspended:
                refused.append("leaving")
                raise

    @task(name="sync")
    def tidy_sync(params: None, ctx: SyncContext) -> None:
        try:
            ctx.sleep_for("night", DAY)
            ctx.await_event("never", timeout=DAY)
        except TimeoutError:
            pass
        finally:
            try:
                ctx.step("tidy", lambda: effects.append("tidied"))
            except Suspended:
                refused.append("leaving")
                raise

    chosen = tidy if colour == "async" else tidy_sync
    assert (await through_the_night(dsn, clock, chosen)).state == "completed"
    assert refused == ["leaving", "leaving"]
    assert effects == ["tidied"]


# -- how a run ends --------------------------------------------------------------------


async def test_waits_for_running_steps_when_the_code_returns(
    dsn: str, db: psycopg.Connection
) -> None:
    effects, background = [], set()

    async def work() -> None:
        await asyncio.sleep(0.05)
        effects.append("worked")

    @task
    async def hasty(params: None, ctx: Context) -> None:
        background.add(asyncio.ensure_future(ctx.step("work", work)))
        await asyncio.sleep(0)

    assert (await outcome(dsn, hasty)).state == "completed"
    assert effects == ["worked"]
    assert one(db, "select name from durable.checkpoints") == ("work",)


async def test_completes_beside_a_branch_that_still_waits(
    dsn: str, db: psycopg.Connection
) -> None:
    """It waits for the step, but not for the long sleep."""
    background: set[asyncio.Future[None]] = set()

    async def work() -> None:
        await asyncio.sleep(0.05)

    @task
    async def hasty(params: None, ctx: Context) -> str:
        for call in (ctx.step("work", work), ctx.sleep_for("night", DAY)):
            background.add(asyncio.ensure_future(call))
        await asyncio.sleep(0.005)
        return "done"

    assert (await outcome(dsn, hasty)).result == "done"
    assert claims(db) == 1
    assert sum(branch.cancelled() for branch in background) == 1


async def test_cancels_running_steps_before_it_fails_the_attempt(
    dsn: str,
) -> None:
    story: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    async def work() -> None:
        story.append("step begins")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            story.append("step ends")

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def both(params: None, ctx: Context) -> None:
        story.append(f"attempt {ctx.attempt}")
        await asyncio.gather(ctx.step("fail", fail), ctx.step("work", work))

    assert (await outcome(dsn, both)).state == "failed"
    once = ["step begins", "step ends"]
    assert story == ["attempt 1", *once, "attempt 2", *once]


async def test_no_thread_of_an_attempt_runs_beside_the_next_attempt(dsn: str) -> None:
    story: list[str] = []
    second = threading.Event()

    async def fail() -> None:
        raise ValueError

    def work() -> None:
        story.append("thread begins")
        second.wait(0.5)  # the next attempt would have begun by then
        story.append("thread ends")

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def both(params: None, ctx: Context) -> None:
        story.append(f"attempt {ctx.attempt}")
        if ctx.attempt == 2:
            second.set()
        await asyncio.gather(ctx.step("work", work), ctx.step("fail", fail))

    assert (await outcome(dsn, both)).state == "failed"
    once = ["thread begins", "thread ends"]
    assert story == ["attempt 1", *once, "attempt 2", *once]


async def test_refuses_a_stray_step_after_the_code_has_failed(dsn: str) -> None:
    effects, refused, background = [], [], set()
    started, over = asyncio.Event(), asyncio.Event()

    async def stray(ctx: Context) -> None:
        await over.wait()
        try:
            await ctx.step("stray", lambda: effects.append("happened"))
        except RuntimeError as error:
            refused.append(str(error))

    async def slow_to_cancel() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            over.set()
            await asyncio.sleep(0.05)

    @task(max_attempts=1)
    async def fail(params: None, ctx: Context) -> None:
        background.add(asyncio.ensure_future(stray(ctx)))
        background.add(asyncio.ensure_future(ctx.step("slow", slow_to_cancel)))
        await started.wait()
        raise ValueError

    assert (await outcome(dsn, fail)).state == "failed"
    await asyncio.gather(*background, return_exceptions=True)
    assert effects == []
    assert len(refused) == 1


@pytest.mark.parametrize("colour", ["async", "sync", "step", "sync step", "branch"])
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("end")])
async def test_survives_code_that_tries_to_exit_the_process(
    dsn: str, colour: str, error: BaseException
) -> None:
    def stop() -> None:
        raise error

    async def stop_async() -> None:
        if isinstance(error, SystemExit):
            sys.exit(error.code)
        raise error

    @task(name="async", max_attempts=1)
    async def in_async(params: None, ctx: Context) -> None:
        await stop_async()

    @task(name="sync", max_attempts=1)
    def in_sync(params: None, ctx: SyncContext) -> None:
        stop()

    @task(name="step", max_attempts=1)
    async def in_step(params: None, ctx: Context) -> None:
        await ctx.step("stop", stop)

    @task(name="sync step", max_attempts=1)
    def in_sync_step(params: None, ctx: SyncContext) -> None:
        ctx.step("stop", stop)

    @task(name="branch", max_attempts=1)
    async def in_branch(params: None, ctx: Context) -> None:
        await asyncio.gather(ctx.step("stop", stop_async), ctx.step("thread", stop))

    @task
    async def innocent(params: None, ctx: Context) -> str:
        return "unharmed"

    tasks = {each.name: each for each in (in_async, in_sync, in_step)}
    tasks |= {each.name: each for each in (in_sync_step, in_branch)}
    async with working(dsn, *tasks.values(), innocent) as (app, worker):
        ended = await app.spawn(tasks[colour])
        other = await app.spawn(innocent)
        await worker.drain()
        assert await ended.state() == "failed"
        assert await other.result() == "unharmed"


async def test_fails_an_attempt_whose_code_cancels_itself(dsn: str) -> None:
    @task(max_attempts=1)
    async def cancel(params: None, ctx: Context) -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    @task(max_attempts=1)
    async def cancel_step(params: None, ctx: Context) -> None:
        never = asyncio.get_running_loop().create_future()
        never.cancel()

        async def wait() -> None:
            await never

        await ctx.step("wait", wait)

    for each in (cancel, cancel_step):
        ended = await outcome(dsn, each)
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error.type == "CancelledError"


async def test_one_non_retryable_error_in_a_group_fails_the_task_at_once(
    dsn: str,
) -> None:
    @task(max_attempts=5)
    async def grouped(params: None, ctx: Context) -> None:
        raise ExceptionGroup("two", [ValueError(), NonRetryable("the card is stolen")])

    ended = await outcome(dsn, grouped)
    assert (ended.state, ended.attempt) == ("failed", 1)
    assert ended.error is not None
    assert ended.error.type == "ExceptionGroup"


@pytest.mark.parametrize("caught", [True, False])
async def test_an_uncaught_timeout_uses_one_attempt(
    dsn: str, clock: Clock, *, caught: bool
) -> None:
    runs = []

    @task(max_attempts=5, retry=Retry.fixed(0))
    async def impatient(params: None, ctx: Context) -> str:
        runs.append(ctx.attempt)
        try:
            await ctx.await_event("never", timeout=DAY)
        except TimeoutError:
            if not caught:
                raise
            await ctx.sleep_for("night", DAY)
        return "went on"

    ended = await through_the_night(dsn, clock, impatient)
    assert ended.state == ("completed" if caught else "failed")
    assert ended.attempt == 1
    assert set(runs) == {1}


async def test_ends_the_code_of_a_cancelled_task(dsn: str) -> None:
    reasons: list[str] = []
    started = asyncio.Event()

    @task
    async def endless(params: None, ctx: Context) -> None:
        started.set()
        try:
            while True:
                await ctx.step("turn", lambda: None)
        except Suspended as suspended:
            reasons.append(suspended.reason)
            with pytest.raises(Suspended):
                await ctx.step("late", str)
            raise

    async with working(dsn, endless) as (app, worker):
        handle = await app.spawn(endless)
        await started.wait()
        assert await app.cancel(handle)
        await worker.drain()
        assert await handle.state() == "cancelled"
    assert reasons == ["cancelled"]


async def test_spawns_the_children_that_a_crash_prevented(
    dsn: str, db: psycopg.Connection, clock: Clock
) -> None:
    """Large families take several statements; a crash may come between two."""
    spawned: list[list[ChildHandle[None]]] = []

    @task
    async def child(number: int, ctx: Context) -> None:
        pass

    @task
    async def parent(params: None, ctx: Context) -> None:
        spawned.append(await ctx.spawn_many("child", child, range(3)))
        await ctx.sleep_for("night", DAY)

    async with working(dsn, parent, child) as (app, worker):
        handle = await app.spawn(parent)
        await worker.drain()
        db.execute("delete from durable.checkpoints where name = '$spawn:child:1'")
        clock.advance(DAY)
        await worker.drain()
        assert await handle.state() == "completed"
    first, again = spawned
    assert [a.task_id == b.task_id for a, b in zip(first, again, strict=True)] == [
        True,
        False,
        True,
    ]


def claims(db: psycopg.Connection) -> int:
    """Return how often the one task of this test was claimed."""
    row = one(db, "select coalesce(times_claimed, 1) from durable.tasks")
    assert row is not None
    return int(row[0])


def one(db: psycopg.Connection, query: str) -> Any:
    return db.execute(query).fetchone()
