"""A schedule spawns one task at each tick, however many workers there are."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast
from zoneinfo import ZoneInfo

import psycopg
import pytest
from typer.testing import CliRunner

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    NotFound,
    Schedule,
    ScheduleInfo,
    SyncTaskContext,
    Task,
    TaskContext,
    cli,
    task,
)
from durable.encryption import AESGCMCodec
from durable.testing import AppFactory, Clock, run_inline
from durable.testing._inline import Stuck
from tests.support.clock import Clock as EngineClock
from tests.support.roles import Roles
from tests.support.stage import Stage
from tests.support.wait import aeventually

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
FIRE = "select durable.fire_schedules('default')"
HOURLY: dict[str, Any] = {"task": "job", "every": 3600, "overlap": "allow"}


def create(session: Any, schedule: str, **definition: Any) -> None:
    create = "select durable.create_schedule('default', %s, %s)"
    session.execute(create, [schedule, json.dumps(HOURLY | definition)])


def runs(db: psycopg.Connection, schedule: str) -> list[datetime]:
    """Return the ticks of the tasks that a schedule has spawned, the latest first."""
    listed = "select scheduled_at from durable.list_schedule_runs('default', %s, 10000)"
    return [at.astimezone(UTC) for (at,) in db.execute(listed, [schedule])]


# -- concurrency -----------------------------------------------------------------------


def test_spawns_one_task_at_each_tick_with_many_sessions(
    dsn: str, db: psycopg.Connection, clock: EngineClock
) -> None:
    """Each session runs maintenance at its own pace, while the clock moves on."""
    names = [f"s{number}" for number in range(5)]
    for name in names:
        create(db, name)
    began = clock.now()

    def maintain() -> int:
        fired = 0
        with psycopg.connect(dsn, autocommit=True) as session:
            while clock_is_running:
                row = session.execute(FIRE).fetchone()
                assert row is not None
                fired += row[0]
        return fired

    clock_is_running = True
    with ThreadPoolExecutor() as pool:
        sessions = [pool.submit(maintain) for _ in range(6)]
        for hour in range(1, 25):
            clock.set(began + hour * HOUR)
            while any(len(runs(db, name)) < hour for name in names):
                assert not any(session.done() for session in sessions)
        clock_is_running = False
        assert sum(session.result() for session in sessions) == 5 * 24
    ticks = [runs(db, name) for name in names]
    assert all(one == ticks[0] for one in ticks)
    assert {later - earlier for later, earlier in pairwise(ticks[0])} == {HOUR}
    assert db.execute("select from durable.tasks").rowcount == 5 * 24


def test_waits_for_no_session_that_handles_a_tick(
    stage: Stage, db: psycopg.Connection, clock: EngineClock
) -> None:
    """Whether it commits or not, the tick is handled once."""
    create(db, "s")
    clock.advance(HOUR)
    first = stage.session()
    assert first.value(FIRE) == 1
    assert stage.db.value(FIRE) == 0
    first.rollback()
    assert runs(db, "s") == []
    assert stage.db.value(FIRE) == 1
    clock.advance(HOUR)
    assert first.value(FIRE) == 1
    first.commit()
    assert stage.db.value(FIRE) == 0
    assert len(runs(db, "s")) == 2


def test_leaves_a_tick_due_while_the_task_to_cancel_is_locked(
    stage: Stage, db: psycopg.Connection, clock: EngineClock
) -> None:
    create(db, "s", overlap="cancel")
    clock.advance(HOUR)
    stage.db.value(FIRE)
    (last,) = stage.db.claim("job")
    clock.advance(HOUR)
    holder = stage.lock_task(last.task_id)
    create(db, "other")
    assert stage.db.value(FIRE) == 0
    assert stage.db.value("select durable.get_next_due('default')") == 1
    assert len(runs(db, "s")) == 1
    holder.commit()
    assert stage.db.value(FIRE) == 1
    assert stage.db.state(last.task_id) == "cancelled"
    assert len(runs(db, "s")) == 2


def test_changes_a_schedule_after_the_tick_that_is_being_handled(
    stage: Stage, db: psycopg.Connection, clock: EngineClock
) -> None:
    create(db, "s")
    clock.advance(HOUR)
    first, second = stage.session(), stage.session()
    first.value(FIRE)
    pause = "select durable.pause_schedule('default', 's')"
    paused = second.waiting(second.value, pause)
    first.commit()
    assert paused.result() is True
    second.commit()
    clock.advance(HOUR)
    assert stage.db.value(FIRE) == 0
    assert len(runs(db, "s")) == 1


# -- in code ---------------------------------------------------------------------------


@task(schedule=Schedule.cron("30 2 * * *", time_zone="Europe/Vienna"))
async def nightly(params: None, ctx: TaskContext) -> str:
    assert ctx.scheduled_at is not None
    assert ctx.headers == {}
    return str(ctx.scheduled_at.astimezone(ZoneInfo("Europe/Vienna")))


async def test_runs_a_nightly_job_in_local_time(
    durable_app: AppFactory[Any], durable_clock: Clock
) -> None:
    """Also in the night in which 2:30 is skipped, and in which it comes twice."""
    durable_clock.freeze(datetime(2026, 3, 27, 12, tzinfo=UTC))
    async with durable_app(tasks=[nightly]) as app:
        ran = await durable_clock.advance(days=3)
        assert [(one.task, one.state) for one in ran] == [("nightly", "completed")] * 3
        durable_clock.jump_to(datetime(2026, 10, 23, 12, tzinfo=UTC))
        await durable_clock.advance(days=3)
        found = await app.list_schedule_runs("nightly")
        told = [(await app.get_result(run.task_id)).result for run in reversed(found)]
        assert told == [
            "2026-03-28 02:30:00+01:00",
            "2026-03-29 03:00:00+02:00",
            "2026-03-30 02:30:00+02:00",
            "2026-10-23 02:30:00+02:00",  # the last one missed
            "2026-10-24 02:30:00+02:00",
            "2026-10-25 02:30:00+02:00",
            "2026-10-26 02:30:00+01:00",
        ]


class Report(Task[str, str]):
    schedule = (
        Schedule.every(DAY, name="report-a", params="a", catch_up="all"),
        Schedule.cron("@daily", name="report-b", params="b", overlap="allow"),
    )

    def run(self, name: str, ctx: SyncTaskContext) -> str:
        child = ctx.spawn("child", scheduled_when, None)
        return f"{name} {ctx.join(child)}"


@task
async def scheduled_when(params: None, ctx: TaskContext) -> str:
    return f"{ctx.scheduled_at:%m-%d}"


async def test_catches_up_after_days_without_a_worker(
    durable_app: AppFactory[Any], durable_clock: Clock
) -> None:
    """A worker that declares its schedules again keeps the ticks that are due."""
    durable_clock.freeze(datetime(2026, 5, 1, 12, tzinfo=UTC))
    async with durable_app(tasks=[Report, scheduled_when]) as app:
        assert await durable_clock.advance(hours=1) == []
        durable_clock.jump_to(datetime(2026, 5, 4, 12, tzinfo=UTC))
        await durable_clock.advance(hours=1)
        told = {}
        for name in ("report-a", "report-b"):
            found = await app.list_schedule_runs(name)
            told[name] = [(await app.get_result(run.task_id)).result for run in found]
    assert told == {"report-a": ["a 05-02"], "report-b": ["b 05-04"]}, (
        "a second task of report-a would overlap the first"
    )


@task(schedule=Schedule.every(HOUR, overlap="buffer_one"))
async def slow(params: None, ctx: TaskContext) -> None:
    await ctx.sleep_for("145 minutes", timedelta(minutes=145))


async def test_starts_a_tick_that_waited_when_the_last_task_has_ended(
    durable_app: AppFactory[Any], durable_clock: Clock
) -> None:
    durable_clock.freeze(datetime(2026, 5, 1, 0, 30, tzinfo=UTC))
    async with durable_app(tasks=[slow]) as app:
        await durable_clock.advance(hours=9)
        found = await app.list_schedule_runs("slow")
    minutes = [
        (run.scheduled_at.hour, round((run.started_at - run.scheduled_at) / MINUTE))
        for run in reversed(found)
        if run.started_at is not None
    ]
    assert minutes == [(1, 0), (2, 85), (4, 110), (6, 135)]


async def test_creates_changes_and_drops_what_the_code_of_a_task_declares(
    dsn: str,
) -> None:
    def declared(*schedules: Schedule) -> Any:
        @task(name="job", schedule=schedules)
        async def job(params: None, ctx: TaskContext) -> None:
            pass

        return job

    async def deploy(*schedules: Schedule) -> dict[str, ScheduleInfo]:
        async with AsyncDurable(dsn, tasks=[declared(*schedules)]) as app:
            async with app.worker():
                pass
            return {one.name: one for one in await app.list_schedules()}

    async with AsyncDurable(dsn) as app:
        await app.create_schedule("other", Schedule.every(60))
    first = await deploy(Schedule.every(60), Schedule.every(90, name="more", jitter=5))
    assert {name: one.source for name, one in first.items()} == {
        "job": "declared",
        "more": "declared",
        "other": None,
    }
    assert (first["more"].every, first["more"].jitter) == (90, 5)
    second = await deploy(Schedule.cron("@yearly"))
    assert second.keys() == {"job", "other"}
    assert (second["job"].cron, second["job"].every) == ("@yearly", None)
    assert (await deploy()).keys() == {"other"}


async def test_creates_declared_schedules_in_the_queue_of_their_task(dsn: str) -> None:
    @task(queue="reports", schedule=Schedule.every(60))
    async def job(params: None, ctx: TaskContext) -> None:
        pass

    async with AsyncDurable(dsn, tasks=[job, nightly]) as app:
        await app.create_queue("reports")
        async with app.worker(queues=["reports"]):
            pass
        assert [one.name for one in await app.list_schedules(queue="reports")] == [
            "job"
        ]
        assert await app.list_schedules() == []


async def test_refuses_to_start_a_worker_with_a_bad_declaration(dsn: str) -> None:
    for schedule, said in [
        (Schedule.cron("0 0 30 2 *"), "no date matches"),
        (Schedule.cron("@daily", time_zone="Mars/Base1"), "no time zone"),
        ((Schedule.every(1), Schedule.every(2)), "two schedules are named"),
    ]:

        @task(name="job", schedule=cast("Any", schedule))
        async def job(params: None, ctx: TaskContext) -> None:
            pass

        async with AsyncDurable(dsn, tasks=[job]) as app:
            with pytest.raises(InvalidArgument, match=said):
                async with app.worker():
                    pass


async def test_warns_if_the_worker_may_not_create_them(
    dsn: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    roles = Roles(db, dsn)
    role = roles.make("worker", "durable_worker")
    db.execute("revoke execute on function durable.announce_schedules from public")
    db.execute(
        "revoke execute on function durable.announce_schedules from durable_worker"
    )
    try:
        address = f"{dsn}{'&' if '?' in dsn else '?'}options=-crole%3D{role}"
        async with AsyncDurable(address, tasks=[nightly]) as app:
            with caplog.at_level(logging.WARNING):
                async with app.worker():
                    pass
        assert "schedules of tasks in queue 'default' are not created" in caplog.text
    finally:
        roles.drop_all()


async def test_wakes_a_worker_for_a_tick(dsn: str) -> None:
    """Without notifications, and long before its next poll."""

    @task(schedule=Schedule.every(1, overlap="allow"))
    async def tick(params: None, ctx: TaskContext) -> None:
        pass

    async with AsyncDurable(dsn, tasks=[tick], listen=False) as app:
        started = time.monotonic()
        async with app.worker(listen=False, poll=600):

            async def have_run() -> bool:
                found = await app.list_schedule_runs("tick")
                return len([run for run in found if run.state == "completed"]) >= 3

            await aeventually(have_run, deadline=60)
        assert time.monotonic() - started < 60


async def test_notices_a_task_that_waits_for_ever_beside_a_schedule(
    durable_app: AppFactory[Any],
) -> None:
    @task
    async def waits(params: None, ctx: TaskContext) -> None:
        await ctx.await_event("never")

    async with durable_app(tasks=[waits, nightly]) as app:
        with pytest.raises(Stuck):
            await run_inline(app, waits)


# -- from a client ---------------------------------------------------------------------


@task
def report(number: int, ctx: SyncTaskContext) -> int:
    return number


def test_manages_schedules_from_a_client(dsn: str, clock: EngineClock) -> None:
    clock.set(datetime(2026, 7, 1, 12, tzinfo=UTC))
    weekly = Schedule.cron("0 9 * * mon", name="weekly", params=7, max_attempts=1)
    with Durable(dsn, tasks=[report]) as app:
        assert app.create_schedule(report, weekly) is True
        assert app.create_schedule("elsewhere", Schedule.every(60)) is True
        assert app.create_schedule(report, weekly) is False
        other, listed = app.list_schedules()
        assert (other.name, other.task, other.every) == ("elsewhere", "elsewhere", 60)
        assert listed == ScheduleInfo(
            *("default", "weekly", "report", "0 9 * * mon", None, "UTC", "last"),
            *("skip", None, None, clock.now(), None),
            *(datetime(2026, 7, 6, 9, tzinfo=UTC), None, None, None, None),
        )
        assert [one.name for one in app.list_schedules(limit=1)] == ["elsewhere"]
        assert [one.name for one in app.list_schedules(after="f")] == ["weekly"]

        assert app.pause_schedule("weekly") is True
        assert app.pause_schedule("weekly") is False
        handle = app.trigger_schedule("weekly")
        assert app.list_schedules(after="f")[0].last_task_id == handle.task_id
        assert app.resume_schedule("weekly") is True
        assert app.resume_schedule("weekly") is False
        start = datetime(2026, 6, 1, tzinfo=UTC)
        spawned = app.backfill_schedule("weekly", start, start + 15 * DAY)
        again = app.backfill_schedule("weekly", start, start + 22 * DAY)
        assert [one.created for one in spawned] == [True, True, True]
        assert [one.created for one in again] == [False, False, False, True]
        found = app.list_schedule_runs("weekly")
        assert [(f"{run.scheduled_at:%m-%d %H}", run.triggered) for run in found] == [
            ("07-01 12", True),
            ("06-22 09", False),
            ("06-15 09", False),
            ("06-08 09", False),
            ("06-01 09", False),
        ]
        assert (
            app.list_schedule_runs("weekly", before=found[1].scheduled_at)
            == (found[2:])
        )
        with app.worker() as worker:
            worker.drain()
        assert (handle.result(timeout=30), handle.history()[0].name) == (7, "report")

        applied = [(report, Schedule.every(60, name=name, params=1)) for name in "ab"]
        assert app.apply_schedules(applied) == 2
        assert app.apply_schedules(applied) == 0
        assert app.apply_schedules(applied[1:]) == 1
        names = [one.name for one in app.list_schedules()]
        assert names == ["b", "elsewhere", "weekly"]
        assert app.drop_schedule("weekly") is True
        assert app.drop_schedule("weekly") is False
        fires = app.next_fires("@daily", time_zone=ZoneInfo("Asia/Tokyo"), count=2)
        assert [f"{fire:%d %H}" for fire in fires] == ["01 15", "02 15"]
        with pytest.raises(NotFound):
            app.pause_schedule("weekly")
        with pytest.raises(InvalidArgument):
            app.next_fires("0 0 L * *")


def test_stores_params_encrypted(dsn: str, db: psycopg.Connection) -> None:
    codec = AESGCMCodec({"1": bytes(32)})
    with Durable(dsn, tasks=[report], codec=codec) as app:
        app.create_schedule(report, Schedule.every(3600, params=4711))
        handle = app.trigger_schedule("report")
        with app.worker() as worker:
            worker.drain()
        assert handle.result(timeout=30) == 4711
    for query in (
        "select params from durable.schedules",
        "select * from durable.tasks",
    ):
        assert "4711" not in str(db.execute(query).fetchall())


def test_refuses_options_that_are_none() -> None:
    makers: list[Callable[[], Schedule]] = [
        lambda: Schedule.every(0),
        lambda: Schedule.every(1.5),
        lambda: Schedule.every(1e12),
        lambda: Schedule.cron(cast("Any", 5)),
        lambda: Schedule.every(1, name=""),
        lambda: Schedule.every(1, catch_up=0),
        lambda: Schedule.every(1, catch_up=True),
        lambda: Schedule.every(1, catch_up=cast("Any", "first")),
        lambda: Schedule.every(1, overlap=cast("Any", "queue")),
        lambda: Schedule.every(1, jitter=-1),
        lambda: Schedule.every(1, max_attempts=0),
        lambda: Schedule.every(1, **cast("Any", {"idempotency_key": "k"})),
        lambda: Schedule.every(1, **cast("Any", {"retries": 5})),
    ]
    for make in makers:
        with pytest.raises(InvalidArgument):
            make()
    with pytest.raises(InvalidArgument, match="schedule must be a Schedule"):

        @task(schedule=cast("Any", "@daily"))
        async def job(params: None, ctx: TaskContext) -> None:
            pass


def test_manages_schedules_from_the_command_line(dsn: str, clock: EngineClock) -> None:
    clock.set(datetime(2026, 7, 1, 12, tzinfo=UTC))

    def durable(*arguments: str) -> list[str]:
        done = CliRunner().invoke(cli.app, ["schedules", *arguments, "--dsn", dsn])
        assert done.exit_code == 0, done.output
        return [" ".join(line.split()) for line in done.output.splitlines()]

    with Durable(dsn) as app:
        schedule = Schedule.cron("0 3 * * *", time_zone="Europe/Vienna", name="nightly")
        app.create_schedule("clean", schedule)
    assert durable("list", "default") == [
        "schedule task when next",
        "nightly clean 0 3 * * * Europe/Vienna 2026-07-02 01:00:00",
    ]
    assert durable("pause", "default", "nightly") == ["paused"]
    assert durable("pause", "default", "nightly") == ["already paused"]
    assert durable("list", "default")[1].endswith("paused")
    assert durable("resume", "default", "nightly") == ["resumed"]
    (triggered,) = durable("trigger", "default", "nightly")
    period = ("2026-06-28", "2026-06-30T03:00:00+02:00")
    spawned = durable("backfill", "default", "nightly", *period)
    assert durable("backfill", "default", "nightly", *period) == []
    listed = durable("runs", "default", "nightly")
    assert [line.split()[2] for line in listed[1:]] == [triggered, *reversed(spawned)]
    assert len(json.loads("".join(durable("list", "default", "--json")))) == 1
    fires = durable(
        "next", "30 2 * * *", "--time-zone", "Europe/Vienna", "--count", "1"
    )
    assert fires == ["2026-07-02 02:30:00+02:00"]
    assert durable("drop", "default", "nightly") == ["dropped"]
