"""durable cancels tasks that start too late or take too long."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    AsyncDurable,
    AsyncTaskHandle,
    InvalidArgument,
    Retry,
    TaskCancelled,
    TaskContext,
    task,
)
from tests.support.clock import Clock
from tests.support.wait import aeventually

HOUR = timedelta(hours=1)
SPAWN_BY = """
select durable.spawn('default', 'x', '{}', jsonb_build_object('deadline', %s::text))
"""


@task
async def quick(params: None, ctx: TaskContext) -> str:
    return "done"


@task
async def sleeper(length: float, ctx: TaskContext) -> str:
    await ctx.sleep_for("long", length)
    return "done"


@task
async def failing(params: None, ctx: TaskContext) -> None:
    raise ValueError("as always")


@task
async def parent(params: None, ctx: TaskContext) -> None:
    await ctx.join(await ctx.spawn("child", sleeper, 10 * HOUR.total_seconds()))


@task
async def ancestor(generations: int, ctx: TaskContext) -> list[str]:
    """Return the deadlines of the task and of all its descendants."""
    assert ctx.deadline is not None
    below: list[str] = []
    if generations:
        child = await ctx.spawn("child", ancestor, generations - 1)
        below = await ctx.join(child)
    return [ctx.deadline.isoformat(), *below]


@task(start_timeout=HOUR, execution_timeout=2 * HOUR)
async def limited(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    tasks: list[Any] = [quick, sleeper, failing, parent, limited, ancestor]
    async with AsyncDurable(dsn, tasks=tasks) as app:
        yield app


async def drain(app: AsyncDurable) -> int:
    async with app.worker() as worker:
        return await worker.drain()


def expire(db: psycopg.Connection) -> int:
    row = db.execute("select durable.expire_tasks('default')").fetchone()
    assert row is not None
    return int(row[0])


async def why(handle: AsyncTaskHandle[Any]) -> str:
    with pytest.raises(TaskCancelled) as cancelled:
        await handle.result(timeout=0)
    return str(cancelled.value.reason)


async def test_cancels_a_task_that_was_not_started_in_time(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(quick, start_timeout=HOUR)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1
    assert await why(handle) == "not started within start_timeout"
    assert await drain(app) == 0


async def test_ignores_the_delay_limit_of_a_started_task(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 36_000, start_timeout=HOUR)
    await drain(app)
    clock.advance(36_000)
    assert expire(db) == 0
    await drain(app)
    assert await handle.result(0) == "done"


async def test_cancels_a_task_that_takes_too_long_from_its_first_start(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 36_000, execution_timeout=HOUR)
    clock.advance(36_000)  # waiting to be started does not count
    await drain(app)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1
    assert await why(handle) == "not finished within execution_timeout"
    clock.advance(36_000)
    assert await drain(app) == 0


async def test_the_duration_includes_waits_and_all_attempts(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    retry = Retry.fixed(timedelta(minutes=25))
    handle = await app.spawn(
        failing, execution_timeout=HOUR, retry=retry, max_attempts=9
    )
    for _ in range(2):
        await drain(app)
        clock.advance(timedelta(minutes=25))
    assert await drain(app) == 1
    # attempt 4 would start after 75 minutes, too late
    assert await why(handle) == "no time left for attempt 4 within execution_timeout"
    rows = db.execute("select outcome from durable.attempts order by attempt")
    assert [outcome for (outcome,) in rows] == ["failed", "failed", "cancelled"]


async def test_ends_a_running_task_at_its_deadline(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    db.execute(
        "select durable.spawn('default', 'x', '{}', '{\"execution_timeout\": 60}')"
    )
    claim = "select task_id, claim from durable.claim_tasks('default', 'me')"
    row = db.execute(claim).fetchone()
    assert row is not None
    clock.advance(60)
    assert expire(db) == 1
    done = f'[{{"task_id": "{row[0]}", "claim": {row[1]}, "result": 1}}]'
    said = db.execute(
        "select outcome from durable.complete_tasks('default', %s)", [done]
    )
    assert said.fetchall() == [("cancelled",)]


async def test_cancels_the_children_of_a_late_task(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.spawn(parent, execution_timeout=HOUR)
    await drain(app)
    clock.advance(HOUR)
    assert expire(db) == 1
    rows = db.execute("select state::text from durable.tasks").fetchall()
    assert rows == [("cancelled",)] * 2


async def test_applies_the_limits_of_the_class_by_default(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    late = await app.spawn(limited)
    free = await app.spawn(limited, start_timeout=None, execution_timeout=None)
    clock.advance(HOUR)
    assert expire(db) == 1
    await drain(app)
    clock.advance(1_000 * HOUR)
    assert expire(db) == 0
    assert await late.state() == "cancelled"
    assert await free.state() == "sleeping"


async def test_a_manual_retry_restarts_the_duration(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 7_200, execution_timeout=HOUR)
    await drain(app)
    clock.advance(HOUR)
    expire(db)
    await app.retry(handle)
    await drain(app)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1


async def test_keeps_deadlines_while_a_worker_runs_and_is_full(
    app: AsyncDurable, clock: Clock
) -> None:
    sleeping = await app.spawn(sleeper, 36_000, execution_timeout=HOUR)
    await drain(app)
    waiting = await app.spawn(quick, queue="default", start_timeout=HOUR)
    other = AsyncDurable(app._application.conninfo)  # it knows none of these tasks
    async with other.worker(concurrency=1):
        clock.advance(2 * HOUR)

        async def both_cancelled() -> bool:
            return await sleeping.state() == await waiting.state() == "cancelled"

        await aeventually(both_cancelled)


async def test_expires_at_most_as_many_as_requested(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    await app.spawn_many(quick, [None] * 5, start_timeout=HOUR)
    clock.advance(HOUR)
    expired = "select durable.expire_tasks('default', 2)"
    assert [db.execute(expired).fetchone() for _ in range(4)] == [
        (2,),
        (2,),
        (1,),
        (0,),
    ]


async def test_cancels_a_task_not_finished_by_its_deadline(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    waiting = await app.spawn("unknown", deadline=clock.now() + HOUR)
    asleep = await app.spawn(sleeper, 36_000, deadline=clock.now() + HOUR)
    in_time = await app.spawn(quick, deadline=clock.now() + HOUR)
    await drain(app)
    clock.advance(HOUR - timedelta(seconds=1))
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 2
    assert await why(waiting) == await why(asleep) == "not finished by its deadline"
    assert await in_time.result(0) == "done"


@pytest.mark.parametrize(
    ("duration", "seconds", "reason"),
    [
        (60, 60, "not finished within execution_timeout"),
        (7200, 3600, "not finished by its deadline"),
        (None, 3600, "not finished by its deadline"),
    ],
)
async def test_names_the_earliest_limit(
    app: AsyncDurable,
    db: psycopg.Connection,
    duration: float,
    seconds: float,
    reason: str,
) -> None:
    clock = Clock(db)
    limits: Any = {"start_timeout": 30, "execution_timeout": duration}
    handle = await app.spawn(sleeper, 36_000, deadline=clock.now() + HOUR, **limits)
    await drain(app)
    clock.advance(seconds - 1)
    assert expire(db) == 0
    clock.advance(1)
    assert expire(db) == 1
    assert await why(handle) == reason


async def test_does_not_retry_beyond_the_deadline(
    app: AsyncDurable, clock: Clock
) -> None:
    deadline = clock.now() + timedelta(minutes=20)
    retry = Retry.fixed(timedelta(minutes=25))
    handle = await app.spawn(failing, deadline=deadline, retry=retry)
    await drain(app)
    assert await why(handle) == "no time left for attempt 2 before its deadline"


async def test_descendants_inherit_the_deadline(
    app: AsyncDurable, clock: Clock
) -> None:
    deadline = clock.now() + HOUR
    handle = await app.spawn(ancestor, 3, deadline=deadline)
    while await drain(app):
        pass
    said = await handle.result(0)
    assert [datetime.fromisoformat(one) for one in said] == [deadline] * 4


async def test_never_gives_a_child_more_time_than_its_parent(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    deadline = clock.now() + HOUR
    root = await app.spawn(sleeper, 1, deadline=deadline)
    below = """
select durable.spawn('default', 'x', '{}', jsonb_build_object(
  'parent_task_id', %s::uuid, 'deadline', %s::text))
"""
    for minutes in (30, 90):
        until = deadline - HOUR + timedelta(minutes=minutes)
        db.execute(below, [root.task_id, until.isoformat()])
    many = """
select durable.spawn_many('default', jsonb_build_array(
  jsonb_build_object(
    'task', 'x', 'options', jsonb_build_object('parent_task_id', %s::uuid)),
  jsonb_build_object('task', 'y')))
"""
    db.execute(many, [root.task_id])
    found = db.execute(
        "select deadline, expires_at from durable.tasks where name <> 'sleeper'"
        " order by deadline nulls first"
    ).fetchall()
    sooner = deadline - timedelta(minutes=30)
    assert found == [(one, one) for one in (None, sooner, deadline, deadline)]


async def test_a_duration_does_not_limit_children(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    """Children of a completed parent continue."""
    await app.spawn(parent, execution_timeout=HOUR)
    await drain(app)
    child = "select deadline from durable.tasks where name = 'sleeper'"
    assert db.execute(child).fetchall() == [(None,)]


async def test_never_starts_a_task_spawned_after_its_deadline(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(quick, deadline=clock.now())
    assert await drain(app) == 0
    expire(db)
    assert await why(handle) == "not finished by its deadline"


async def test_a_retry_after_the_deadline_needs_a_new_one(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(parent, deadline=clock.now() + HOUR)
    await drain(app)
    clock.advance(HOUR)
    expire(db)
    with pytest.raises(InvalidArgument, match=r"has passed(.|\n)*later moment"):
        await app.retry(handle)
    with pytest.raises(InvalidArgument, match="has passed"):
        await app.retry(handle, spawn_new=True)
    later = clock.now() + 20 * HOUR
    await app.retry(handle, deadline=later)
    limits = "select deadline, expires_at from durable.tasks"
    assert db.execute(limits).fetchall() == [(later, later)] * 2
    while await drain(app):
        clock.advance(10 * HOUR)
    assert await handle.state() == "completed"


async def test_a_task_retried_without_a_deadline_has_none(
    app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    handle = await app.spawn(sleeper, 7_200, deadline=clock.now() + HOUR)
    await drain(app)
    clock.advance(HOUR)
    expire(db)
    again = await app.retry(handle, deadline=None, spawn_new=True)
    await app.retry(handle, deadline=None)
    await drain(app)
    clock.advance(2 * HOUR)
    assert expire(db) == 0
    await drain(app)
    assert await handle.result(0) == await again.result(0) == "done"


@pytest.mark.parametrize("wrong", [datetime(2030, 1, 1), 60, "2030-01-01T00:00:00Z"])
async def test_accepts_an_aware_datetime_as_a_deadline(
    app: AsyncDurable, wrong: Any
) -> None:
    with pytest.raises(InvalidArgument, match="deadline must be a datetime with"):
        await app.spawn(quick, deadline=wrong)


@pytest.mark.parametrize(
    "text",
    [
        *("2030-01-01", "2030-01-01T00:00:00", "tomorrow", "infinity", "now"),
        *("2030-13-01T00:00:00Z", "2030-01-01T25:00:00Z", "9999-12-31T00:00:00Z"),
        *("2030-01-01T00:00:00+99:00", "2030-01-01T00:00:00 UTC", ""),
    ],
)
def test_refuses_a_moment_without_a_time_zone(
    db: psycopg.Connection, text: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="deadline in opt"):
        db.execute(
            SPAWN_BY,
            [text],
        )


def test_reads_a_moment_the_same_under_all_settings(db: psycopg.Connection) -> None:
    db.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'SQL, DMY'")
    for text in ("2030-02-03T04:05:06Z", "2030-02-03 05:05:06.000+01"):
        db.execute(
            SPAWN_BY,
            [text],
        )
    rows = db.execute("select extract(epoch from deadline)::bigint from durable.tasks")
    moment = datetime(2030, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert rows.fetchall() == [(moment.timestamp(),)] * 2


async def test_a_retry_revives_all_tasks_that_one_deadline_ended(
    dsn: str, app: AsyncDurable, db: psycopg.Connection, clock: Clock
) -> None:
    """Also those cancelled because the child's deadline was noticed first."""
    root = await app.spawn("x", deadline=clock.now() + HOUR)
    below = root.task_id
    for deadline in (None, clock.now() + 2 * HOUR):
        options = {"parent_task_id": str(below)}
        if deadline is not None:
            options["deadline"] = deadline.isoformat()
        spawned = db.execute(
            "select task_id from durable.spawn('default', 'x', '{}', %s)",
            [json.dumps(options)],
        ).fetchone()
        assert spawned is not None
        below = spawned[0]
    clock.advance(HOUR)
    with psycopg.connect(dsn) as other:
        hold = "select from durable.tasks where task_id = %s for no key update"
        other.execute(hold, [root.task_id])
        other.execute(hold, [below])
        expire(db)
    db.execute("select durable.apply_deferred_work('default')")
    expire(db)
    await app.retry(root, deadline=None)
    rows = db.execute("select state::text, deadline from durable.tasks").fetchall()
    assert rows == [("pending", None)] * 3


CROWD = """
insert into durable.tasks (
  queue, task_id, spawned_at, params, name, state, version, available_at, expires_at)
select %(queue)s, durable._uuid7(durable._id_microseconds(now()), n), now(), '{}', 'x',
  'pending', %(version)s, now() - interval '1 hour',
  case when n <= 20000 then now() - interval '1 minute' end
from generate_series(1, 21000) as n
"""
CLAIM = """
select task_id from durable.claim_tasks(%s, 'w', %s, 100, version => 'v')
"""


@pytest.mark.parametrize("names", [None, ["x"]], ids=["of any name", "of a name"])
@pytest.mark.parametrize(
    ("policy", "version"),
    [
        ({}, ""),
        ({"history": "full"}, ""),
        ({"versions": "pin"}, ""),
        ({"versions": "pin"}, "v"),
    ],
    ids=str,
)
def test_claims_tasks_behind_a_crowd_past_its_deadline(
    db: psycopg.Connection,
    policy: dict[str, str],
    version: str,
    names: list[str] | None,
) -> None:
    create, due = "durable.create_queue(%s, %s)", "durable.get_next_due(%s, %s, 'v')"
    db.execute(f"select {create}", ["q", json.dumps(policy)])
    db.execute(CROWD, {"queue": "q", "version": version})
    for _ in range(10):
        assert db.execute(f"select {due}", ["q", names]).fetchone() == (0,)
        assert len(db.execute(CLAIM, ["q", names]).fetchall()) == 100
    assert db.execute(f"select {due}", ["q", names]).fetchone() == (None,)
    assert db.execute(CLAIM, ["q", names]).fetchall() == []


def test_a_task_is_not_due_if_its_deadline_comes_first(db: psycopg.Connection) -> None:
    db.execute("select durable.spawn('default', 'x', '{}', '{\"start_timeout\": 60}')")
    late = "update durable.tasks set available_at = now() + interval '1 hour'"
    db.execute(late)
    due = "select durable.get_next_due('default')"
    assert db.execute(due).fetchone() == (None,)


def test_cancels_a_thousand_late_tasks_at_a_time(db: psycopg.Connection) -> None:
    db.execute(CROWD, {"queue": "default", "version": ""})
    house = "select deadlines from durable.run_maintenance('default')"
    for _ in range(20):
        assert db.execute(house).fetchone() == (1000,)
    assert db.execute(house).fetchone() == (0,)
