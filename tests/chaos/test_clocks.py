"""durable uses only the database's clock, and tolerates wrong ones.

Processes run with a wall clock that is shifted below Python, in libc. The database's
clock is shifted in `durable._now()`, the single source of time; a check of the sources
shows that no other code reads one.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
import pytest

from durable import (
    AsyncDurable,
    NotFound,
    Retry,
    TaskCancelled,
    TaskContext,
    task,
)
from durable._core.arguments import moment
from durable.errors import InvalidArgument
from tests.support.clock import Clock, RunningClock, WallClock
from tests.support.crashing import LEDGER, STEPS, TASKS, journey, ledger
from tests.support.processes import ROOT, Process, Processes
from tests.support.rolling import EFFECTS
from tests.support.survival import Share, Survived
from tests.support.wait import aeventually, eventually
from tests.support.working import working

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)
DEADLINE: Final = 60

ZONES: Final = [
    "Pacific/Kiritimati",  # 14 hours ahead
    "Asia/Kathmandu",  # 5:45 ahead
    "America/St_Johns",  # 3:30 behind, an hour less in summer
    "Etc/GMT+12",  # 12 hours behind
]
DATE_STYLES: Final = ["SQL, DMY", "German", "Postgres, MDY"]
INTERVAL_STYLES: Final = ["sql_standard", "iso_8601", "postgres_verbose"]
BERLIN: Final = ZoneInfo("Europe/Berlin")

READS_A_CLOCK: Final = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
}
HIDES_A_CLOCK: Final = re.compile(
    r"^\s*(from time import|import time as|import datetime)\b", re.MULTILINE
)
SQL_CLOCK: Final = re.compile(
    r"\b(clock_timestamp|statement_timestamp|transaction_timestamp|timeofday"
    r"|current_timestamp|current_date|current_time|localtimestamp|localtime)\b"
    r"|(?<![_\w])now\(|'(now|today|tomorrow|yesterday)'",
    re.IGNORECASE,
)


@task
async def until(then: datetime, ctx: TaskContext) -> datetime:
    await ctx.sleep_until("then", then)
    return await ctx.now()


@task
async def nap(seconds: float, ctx: TaskContext) -> str:
    await ctx.sleep_for("nap", seconds)
    return "awake"


@task(max_attempts=4, retry=Retry.exponential(10 * DAY, jitter=False))
async def stubborn(params: None, ctx: TaskContext) -> int:
    await ctx.sleep_for("quarter", 90 * DAY)
    if ctx.attempt < 3:
        raise ConnectionError
    return ctx.attempt


@task
async def year(params: None, ctx: TaskContext) -> list[Any]:
    """Use every kind of wait."""
    begun = await ctx.now()
    child = await ctx.spawn("child", stubborn)
    with contextlib.suppress(TimeoutError):
        await ctx.await_event("never", timeout=60 * DAY)
    waited = await ctx.now() - begun
    attempts = await ctx.join(child)
    return [round(waited / DAY), attempts, round((await ctx.now() - begun) / DAY)]


@task(execution_timeout=200 * DAY)
async def limited(params: None, ctx: TaskContext) -> None:
    await ctx.await_event("never")


def test_reads_no_wall_clock_outside_the_database() -> None:
    found = []
    for file in (ROOT / "python-sdk" / "src").rglob("*.py"):
        source = file.read_text()
        assert not HIDES_A_CLOCK.search(source), f"{file} hides what it calls"
        found += [
            f"{file}:{node.lineno}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in READS_A_CLOCK
        ]
    assert found == []


def test_reads_the_databases_clock_in_one_place() -> None:
    """Except for the time at which the engine was installed."""
    found = {
        (file.name, line.strip())
        for file in (ROOT / "sql").rglob("*.sql")
        for line in file.read_text().splitlines()
        if SQL_CLOCK.search(line.partition("--")[0])
    }
    assert found == {
        ("clock.sql", "select clock_timestamp();"),
        ("tables.sql", "applied_at timestamptz not null default clock_timestamp()"),
        ("tables.sql", "values ('default', clock_timestamp(), 2592000, 2592000);"),
    }


@pytest.mark.slow
def test_works_under_any_wall_clock(
    db: psycopg.Connection,
    processes: Processes,
    tmp_path: Path,
    random: Random,
    *,
    share: Share,
    survived: Survived,
) -> None:
    """Workers and clients wrong by an hour, or years, and differently later."""
    db.execute(EFFECTS)
    ways = [HOUR, -HOUR, 3650 * DAY, -3650 * DAY]
    clocks = [WallClock(tmp_path, name) for name in ("ahead", "behind", "client")]
    for clock, ahead in zip(clocks, (HOUR, -HOUR, HOUR), strict=True):
        clock.jump_to(ahead)

    def start(clock: WallClock, *arguments: str) -> Process:
        command = ["-m", "tests.support.rolling", *arguments]
        return processes.python(*command, env=clock.env)

    def effects() -> int:
        row = db.execute("select count(*) from public.effects").fetchone()
        assert row is not None
        return int(row[0])

    workers = [start(clocks[0], "worker"), start(clocks[1], "worker")]
    client = start(clocks[2], "client", "shifted")
    for process, ahead in zip([*workers, client], (HOUR, -HOUR, HOUR), strict=True):
        output = process.wait_for("durable is new", deadline=DEADLINE)
        said = datetime.fromisoformat(re.findall(r", at (\S+)", output)[0])
        assert abs(datetime.now(UTC) + ahead - said) < HOUR / 2
    for _ in range(share(quick=3, long=60)):
        seen = effects()
        eventually(lambda seen=seen: effects() > seen + 20, deadline=DEADLINE)  # type: ignore[misc]
        random.choice(clocks).jump_to(random.choice(ways))
        survived("jumps of a process's wall clock")
    for process in [client, *workers]:
        process.terminate()
        assert process.wait(deadline=DEADLINE) == 0, process.output()
    assert "REFUSED" not in client.output()
    assert "WARNING" not in "".join(worker.output() for worker in workers)
    states = "select distinct state::text, attempt from durable.tasks"
    assert db.execute(states).fetchall() == [("completed", 1)]
    (tasks,) = re.findall(r"ARRIVED (\d+)", client.output())
    assert effects() == 3 * int(tasks)


@pytest.mark.slow
async def test_loses_and_delays_nothing_when_the_databases_clock_jumps(
    dsn: str,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    random: Random,
    *,
    share: Share,
    survived: Survived,
) -> None:
    """As at a failover to a server whose clock differs, an hour either way.

    An hour ahead, leases expire: unsaved work is repeated, saved work is not. What was
    ready before a jump back is ready again when the clock has come there; new tasks
    start at once.
    """
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    db.execute(LEDGER)
    clock = RunningClock(db)
    app = AsyncDurable(dsn, tasks=[*TASKS, nap], lifespan=ledger)
    handles = []
    async with app, app.worker(concurrency=20, poll=0.1):
        await app.emit_event("go", "heard")
        for _ in range(share(quick=6, long=60)):
            handles += await app.spawn_many(journey, ["never"] * 10, max_attempts=None)
            clock.jump_to(random.choice([-2, -1, 1, 2]) * random.random() * HOUR)
            fresh = await app.spawn(nap, 0.01, max_attempts=None)
            assert await fresh.result(timeout=DEADLINE) == "awake"
            survived("jumps of the database's clock")
        clock.jump_to(3 * HOUR)
        results = [handle.result(timeout=DEADLINE) for handle in handles]
        assert await asyncio.gather(*results) == [["heard", "brought", True]] * len(
            results
        )
    assert (
        db.execute(
            """
            select * from public.effects
            join durable.checkpoints using (task_id)
            where checkpoints.name = effects.step
              and effects.attempt > checkpoints.attempt
            """
        ).fetchall()
        == []
    )
    row = db.execute("select count(distinct (task_id, step)) from public.effects")
    steps = len(STEPS["journey"] + STEPS["errand"])
    assert row.fetchone() == (steps * len(handles),)
    assert db.execute("select from durable.waits").fetchall() == []
    survived("tasks through jumps of the database's clock", len(handles))


async def test_claims_new_tasks_after_the_clock_was_set_back(
    dsn: str, db: psycopg.Connection
) -> None:
    """The place where the last claim ended is no place to start from then."""
    clock = RunningClock(db)
    clock.jump_to(HOUR)
    async with working(dsn, nap, concurrency=2) as (app, worker):
        early = await app.spawn_many(nap, [0] * 50)
        for handle in early:
            await handle.result(timeout=DEADLINE)
        ahead = await app.spawn(nap, 60)
        await aeventually(partial(is_in, ahead, "sleeping"))
        clock.jump_to(-HOUR)
        late = await app.spawn_many(nap, [0] * 50)
        for handle in late:
            assert await handle.result(timeout=DEADLINE) == "awake"
        await worker.drain()  # it may count the last of these
        assert await ahead.state() == "sleeping"
        clock.jump_to(HOUR + timedelta(minutes=2))
        assert await ahead.result(timeout=DEADLINE) == "awake"


def test_keeps_a_lease_when_the_clock_is_set_back(
    db: psycopg.Connection, clock: Clock
) -> None:
    """It lasts longer by the jump; so does the wait to take over from a dead worker."""
    db.execute("select durable.spawn('default', 'x')")
    row = db.execute("select task_id, claim from durable.claim_tasks('default', 'w')")
    task_id, claim = row.fetchall()[0]
    extend = "select outcome from durable.extend_leases('default', %s)"
    held = f'[{{"task_id": "{task_id}", "claim": {claim}}}]'
    expire = "select durable.expire_leases('default')"
    clock.advance(-HOUR)
    assert db.execute(extend, [held]).fetchone() == ("ok",)
    assert db.execute(expire).fetchone() == (0,)
    clock.advance(HOUR)
    assert db.execute(expire).fetchone() == (0,)
    clock.advance(HOUR)
    assert db.execute(expire).fetchone() == (1,)


async def is_in(handle: Any, state: str) -> bool:
    return bool(await handle.state() == state)


async def test_survives_years_simulated_within_seconds(
    dsn: str, clock: Clock, survived: Survived
) -> None:
    """Sleeps, timeouts, joins, backoff, deadlines and retention, by the day."""
    start = clock.now()
    async with working(dsn, year, stubborn, limited) as (app, worker):
        slow, cut = await app.spawn(year), await app.spawn(limited)
        await worker.drain()
        while await slow.state() == "sleeping":
            clock.advance(5 * DAY)
            await worker.drain()
            assert clock.now() - start < 1000 * DAY
        assert await slow.result(0) == [60, 3, 120]
        assert await cut.state() == "sleeping"
        clock.set(start + 200 * DAY)
        await aeventually(partial(is_in, cut, "cancelled"), deadline=DEADLINE)
        with pytest.raises(TaskCancelled, match="execution_timeout"):
            await cut.result(0)
        clock.set(start + 260 * DAY)
        await aeventually(partial(is_gone, slow), deadline=DEADLINE)
        await aeventually(partial(is_gone, cut), deadline=DEADLINE)
    survived("days waited through", 260)


async def is_gone(handle: Any) -> bool:
    try:
        await handle.state()
    except NotFound:
        return True
    return False


async def test_a_moment_is_the_same_in_every_time_zone(
    dsn: str,
    db: psycopg.Connection,
    clock: Clock,
    random: Random,
    *,
    share: Share,
    survived: Survived,
) -> None:
    """For any time zone of the database, the client, the worker or the session."""
    tongues = list(product(ZONES, DATE_STYLES, INTERVAL_STYLES))
    then = datetime(2032, 3, 1, 0, 30, tzinfo=ZoneInfo("Asia/Kathmandu"))
    name = db.info.dbname
    for tongue in random.sample(tongues, share(quick=4, long=len(tongues))):
        for setting, value in zip(
            ("TimeZone", "DateStyle", "IntervalStyle"), tongue, strict=True
        ):
            db.execute(
                psycopg.sql.SQL("alter database {} set {} to {}").format(
                    psycopg.sql.Identifier(name),
                    psycopg.sql.Identifier(setting.lower()),
                    psycopg.sql.Literal(value),
                )
            )
        clock.set(then - DAY)
        async with working(dsn, until) as (app, worker):
            handle = await app.spawn(until, then, execution_timeout=2 * DAY)
            await worker.drain()
            due = (await app.queue_stats()).next_due_at
            assert due == then, tongue
            clock.set(then - SECOND)
            assert await worker.drain() == 0
            clock.set(then)
            await worker.drain()
            woken = await handle.result(0)
        assert timedelta(0) <= woken - then < HOUR, tongue
        survived("time zones and date styles")


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        (datetime(2030, 3, 31, 2, 30), "01:30"),  # skipped: read as winter time
        (datetime(2030, 3, 31, 2, 30, fold=1), "00:30"),  # or as summer time
        (datetime(2030, 10, 27, 2, 30), "00:30"),  # the first of two
        (datetime(2030, 10, 27, 2, 30, fold=1), "01:30"),  # the second
        (datetime(2032, 2, 29, 23, 59, 59), "22:59:59"),  # a leap day
    ],
)
async def test_handles_the_hours_that_a_time_zone_skips_or_repeats(
    dsn: str, clock: Clock, local: datetime, utc: str
) -> None:
    then = datetime.fromisoformat(f"{local.date()}T{utc}+00:00")
    clock.set(then - HOUR)
    async with working(dsn, nap, at_a_wall_clock) as (app, worker):
        when = {"at": local.isoformat(), "fold": local.fold}
        handle = await app.spawn(at_a_wall_clock, when)
        await worker.drain()
        clock.set(then - SECOND)
        assert await worker.drain() == 0
        clock.set(then)
        await worker.drain()
        assert await handle.result(0) == "awake"


@task
async def at_a_wall_clock(when: dict[str, Any], ctx: TaskContext) -> str:
    local = datetime.fromisoformat(when["at"])
    await ctx.sleep_until("then", local.replace(tzinfo=BERLIN, fold=when["fold"]))
    return "awake"


@pytest.mark.parametrize("fold", [0, 1])
def test_refuses_a_moment_without_a_time_zone(fold: int) -> None:
    with pytest.raises(InvalidArgument, match="a datetime with a time zone"):
        moment(datetime(2030, 10, 27, 2, 30, fold=fold), "until")


@pytest.mark.parametrize("zone", ["UTC", *ZONES])
async def test_sleeps_until_the_latest_datetime_and_not_at_all_until_the_earliest(
    dsn: str, db: psycopg.Connection, zone: str
) -> None:
    """As far as a datetime reaches, and beyond it in another time zone."""
    database, setting = (
        psycopg.sql.Identifier(db.info.dbname),
        psycopg.sql.Literal(zone),
    )
    db.execute(
        psycopg.sql.SQL("alter database {} set timezone to {}").format(
            database, setting
        )
    )
    west, east = timezone(-12 * HOUR), timezone(14 * HOUR)
    async with working(dsn, until) as (app, worker):
        ends = [datetime.max.replace(tzinfo=where) for where in (UTC, west)]
        begins = [datetime.min.replace(tzinfo=where) for where in (UTC, west, east)]
        asleep = await app.spawn_many(until, ends)
        awake = await app.spawn_many(until, begins)
        await worker.drain()
        assert [await handle.state() for handle in asleep] == ["sleeping"] * 2
        assert [await handle.state() for handle in awake] == ["completed"] * 3
        stats = await app.queue_stats()
        assert stats.next_due_at is not None
        assert stats.next_due_at.year == 9999
        for handle in asleep:
            assert await app.cancel(handle)
