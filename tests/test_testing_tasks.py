"""A test runs tasks in its own event loop, and inspects what they did."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from typing import Any

import pytest

from durable import (
    AsyncDurable,
    Durable,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    task,
    testing,
)
from durable.errors import InvalidArgument
from durable.testing import (
    AppFactory,
    assert_spawned,
    run_inline,
    run_until_idle,
    spawned,
    steps_of,
    sync,
)
from durable.testing._clock import EngineClock
from durable.testing._driving import Driver
from durable.testing._inline import request_of, run_to_end, spawn_on
from tests.support.wait import eventually

MONTH = timedelta(days=30)
Apps = AppFactory[Any]


@task
async def ship(order: int, ctx: TaskContext) -> str:
    await ctx.step("pack", lambda: None)
    return f"parcel {order}"


@task
async def sell(order: int, ctx: TaskContext) -> dict[str, Any]:
    amount = await ctx.await_event(f"paid:{order}", as_type=int, timeout=MONTH)
    child = await ctx.spawn("ship", ship, order)
    await ctx.sleep_for("return period", MONTH)
    return {"amount": amount, "parcel": await ctx.join(child)}


@task
def file_away(order: int, ctx: SyncTaskContext) -> int:
    ctx.sleep_for("month", MONTH)
    return ctx.step("file", lambda: order)


@task(max_attempts=1)
async def fail(params: None, ctx: TaskContext) -> None:
    await ctx.sleep_for("month", MONTH)
    raise ValueError("out of stock")


async def test_runs_a_task_to_its_end(durable_app: Apps) -> None:
    async with durable_app(tasks=[sell, ship]) as app:
        sold = await run_inline(app, sell, 7, events={"paid:7": 100})
        assert sold == {"amount": 100, "parcel": "parcel 7"}
        assert [one.state for one in spawned(app, ship)] == ["completed"]


async def test_a_wait_for_a_missing_event_times_out(durable_app: Apps) -> None:
    app = durable_app(tasks=[sell, ship])
    with pytest.raises(TaskFailed, match="TimeoutError"):
        await run_inline(app, sell, 7, events={"paid:8": 100})


async def test_runs_in_the_loop_of_the_test(durable_app: Apps) -> None:
    seen: list[int] = []

    @task
    async def local(params: list[int], ctx: TaskContext) -> None:
        await ctx.step("see", lambda: seen.extend(params))

    await run_inline(durable_app(tasks=[local]), local, [1, 2])
    assert seen == [1, 2]


async def test_says_what_a_stuck_task_waits_for(durable_app: Apps) -> None:
    @task
    async def waiting(params: None, ctx: TaskContext) -> None:
        await ctx.await_event("paid")

    with pytest.raises(AssertionError, match=r"waiting waits for \$event:paid"):
        await run_inline(durable_app(tasks=[waiting]), waiting)


async def test_raises_the_error_of_the_task(durable_app: Apps) -> None:
    with pytest.raises(TaskFailed, match="out of stock"):
        await run_inline(durable_app(tasks=[fail]), fail)


async def test_refuses_a_task_that_the_app_does_not_run(durable_app: Apps) -> None:
    with pytest.raises(InvalidArgument, match='no task named "ship" is registered'):
        await run_inline(durable_app(tasks=[sell]), ship, 1)


async def test_does_not_wake_sleeping_tasks(durable_app: Apps) -> None:
    async with durable_app(tasks=[sell, ship]) as app:
        await app.spawn(sell, 7)
        await app.spawn(ship, 8)
        ran = await run_until_idle(app)
    assert [(one.task, one.state) for one in ran] == [
        ("sell", "sleeping"),
        ("ship", "completed"),
    ]


async def test_runs_until_idle_on_any_database(dsn: str) -> None:
    """It moves no time, so it needs no special database."""
    async with AsyncDurable(dsn, tasks=[ship]) as app:
        handle = await app.spawn(ship, 8)
        await run_until_idle(app)
        assert await handle.result(timeout=30) == "parcel 8"


async def test_lists_spawned_tasks(durable_app: Apps) -> None:
    async with durable_app(tasks=[sell, ship]) as app:
        handle = await app.spawn(ship, 8)
        await run_inline(app, sell, 7, events={"paid:7": 100})
        mine, childs = spawned(app, ship)
        (parent,) = spawned(app, sell)
        assert (mine.params, mine.task_id) == (8, handle.task_id)
        assert (childs.params, childs.parent_task_id) == (7, parent.task_id)
        assert_spawned(app, ship)
        assert_spawned(app, "ship", times=2)
        assert_spawned(app, ship, 7, times=1)
        assert_spawned(app, ship, 9, times=0)
        with pytest.raises(AssertionError, match=r"to be spawned at least once"):
            assert_spawned(app, ship, 9)
        with pytest.raises(
            AssertionError, match=r"3 times, but it was spawned 2 (.|\n)*\n  8"
        ):
            assert_spawned(app, ship, times=3)


async def test_shows_what_a_task_has_done(durable_app: Apps) -> None:
    async with durable_app(tasks=[sell, ship]) as app:
        await run_inline(app, sell, 7, events={"paid:7": 100})
        (sold,) = spawned(app, sell)
        steps = steps_of(app.handle(sold.task_id))
        assert [step.name for step in steps] == [
            "$event:paid:7",
            "$spawn:ship",
            "$sleep:return period",
            "$join:ship",
        ]
        assert (steps[0].state, steps[0].value, steps[0].attempt) == ("done", 100, 1)


def test_works_in_synchronous_tests(durable_sync_app: Apps) -> None:
    with durable_sync_app(tasks=[file_away, ship]) as app:
        assert sync.run_inline(app, file_away, 7) == 7
        handle = app.spawn(ship, 8)
        (ran,) = sync.run_until_idle(app)
        assert (ran.task, ran.state) == ("ship", "completed")
        assert [step.name for step in sync.steps_of(handle)] == ["pack"]
        sync.assert_spawned(app, ship, 8, times=1)


def test_everything_public_is_listed_and_documented() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        thing = getattr(testing, name)
        assert thing.__doc__, name
        assert thing.__doc__.partition("\n\n")[0].rstrip().endswith((".", ":")), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = testing.nothing
    assert set(sync.__all__) <= set(testing.__all__)


async def test_creates_a_test_application_like_the_given_one(durable_app: Apps) -> None:
    somewhere = AsyncDurable("host=nowhere", tasks=[ship], queue="shipping")
    async with durable_app(somewhere, tasks=[sell]) as app:
        assert app.queue == "shipping"
        await app.spawn(ship, 1)
        await app.spawn(sell, 1)
        assert len(await run_until_idle(app)) == 2
    assert isinstance(durable_app(Durable("host=nowhere")), AsyncDurable)
    with pytest.raises(InvalidArgument, match="is no application"):
        durable_app([ship])  # type: ignore[arg-type]


@task
async def nap(params: None, ctx: TaskContext) -> str:
    await ctx.sleep_for("nap", 0.2)
    return "rested"


class LateClock(EngineClock):
    """A clock that is asked for the next moment only after that has come by itself."""

    def next_due(self, *args: Any, **options: Any) -> datetime | None:
        asleep = "select from durable.tasks where available_at > durable._now()"
        eventually(lambda: not self.session.execute(asleep).fetchall())
        return super().next_due(*args, **options)


async def test_a_sleep_that_becomes_due_between_two_polls_is_not_stuck(
    durable_app: Apps,
) -> None:
    app = durable_app(tasks=[nap])
    request = request_of(app, nap, None, {})
    with LateClock(app) as clock:
        async with Driver([app], clock.session) as driver:
            task_id = spawn_on(driver.session, request)
            await run_to_end(clock, driver, request.queue, task_id, {})
    assert spawned(app, nap)[0].state == "completed"


async def test_an_advance_runs_a_sleep_that_becomes_due_between_two_polls(
    durable_app: Apps,
) -> None:
    app = durable_app(tasks=[nap])
    with LateClock(app) as clock:
        spawn_on(clock.session, request_of(app, nap, None, {}))
        await clock._advance(timedelta(seconds=1), patience=30)
    assert spawned(app, nap)[0].state == "completed"


async def test_the_clock_does_not_jump_while_another_process_runs_a_task(
    durable_app: Apps,
) -> None:
    app = durable_app(tasks=[nap])
    with EngineClock(app) as clock:
        spawn_on(clock.session, request_of(app, nap, None, {}))
        worker = f"{socket.gethostname()}:{os.getppid()}:other"
        claim = "select durable.claim_tasks('default', %s)"
        async with Driver([app], clock.session) as driver:
            clock.session.execute(claim, [worker])
            before = clock.now()
            clock.jump_to_next_due(driver, before)
            assert clock.now() - before < timedelta(seconds=20)  # a lease lasts 30
