"""durable goes on after `kill -9`, and does nothing again that it had saved."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import psycopg
import pytest

from durable import AsyncDurable, Durable
from tests.support.crashing import (
    LEDGER,
    MORTAL,
    TASKS,
    errand,
    journey,
    journey_sync,
    ledger,
)
from tests.support.processes import Process, Processes
from tests.support.wait import eventually

BETWEEN = [
    "at the start",
    "before the effect of one",
    "after one",
    "before the effect of two",
    "after two",
    "after a sleep",
    "after an event",
    "after a spawn",
    "in the child",
    "before the effect of run",
    "after a join",
    "before the end",
]
INSIDE = [
    "after the effect of one",
    "after the effect of two",
    "after the effect of run",
]


@pytest.fixture(autouse=True)
def effects(
    dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> psycopg.Connection:
    """A ledger, for workers in this process and in others."""
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    db.execute(LEDGER)
    return db


@pytest.mark.parametrize("point", BETWEEN + INSIDE)
async def test_does_once_what_it_had_saved_wherever_it_is_killed(
    dsn: str, db: psycopg.Connection, processes: Processes, point: str
) -> None:
    """Killed between a step's effect and the save, that step alone is repeated."""
    async with AsyncDurable(dsn, tasks=TASKS, lifespan=ledger) as app:
        handle = await app.spawn(journey, point)
        await app.emit_event("go", "heard")
        assert mortal(processes).wait() == -9
        end_leases(db)
        async with app.worker():
            assert await handle.result(timeout=20) == ["heard", "brought", True]
    repeated = point.removeprefix("after the effect of ") if point in INSIDE else None
    assert done(db) == {
        step: 2 if step == repeated else 1 for step in ("one", "two", "run")
    }


@pytest.mark.parametrize(
    ("point", "twos"),
    [("after one", 1), ("before the effect of two", 1), ("after the effect of two", 2)],
)
async def test_does_once_what_a_sync_task_had_saved(
    dsn: str, db: psycopg.Connection, processes: Processes, point: str, twos: int
) -> None:
    async with AsyncDurable(dsn, tasks=TASKS, lifespan=ledger) as app:
        handle = await app.spawn(journey_sync, point)
        assert mortal(processes).wait() == -9
        end_leases(db)
        async with app.worker():
            assert await handle.result(timeout=20) == "arrived"
    assert done(db) == {"one": 1, "two": twos}


async def test_uses_no_attempt_when_a_worker_dies_while_its_tasks_wait(
    dsn: str, db: psycopg.Connection, processes: Processes
) -> None:
    async with AsyncDurable(dsn, tasks=TASKS, lifespan=ledger) as app:
        handle = await app.spawn(journey, "never", max_attempts=1)
        worker = mortal(processes)
        eventually(lambda: waits_for_the_event(db), deadline=20)
        worker.kill()
        await app.emit_event("go", "heard")
        async with app.worker():
            assert await handle.result(timeout=20) == ["heard", "brought", True]
    assert done(db) == {"one": 1, "two": 1, "run": 1}


async def test_fails_a_task_whose_only_attempt_was_killed(
    dsn: str, db: psycopg.Connection, processes: Processes
) -> None:
    async with AsyncDurable(dsn, tasks=TASKS, lifespan=ledger) as app:
        handle = await app.spawn(errand, "after the effect of run", max_attempts=1)
        assert mortal(processes).wait() == -9
        end_leases(db)
        async with app.worker() as worker:
            assert await worker.drain() == 0
        found = await handle.snapshot()
    assert found.state == "failed"
    assert found.error is not None
    assert found.error.type == "$LeaseExpired"
    assert done(db) == {"run": 1}


@pytest.mark.slow
def test_loses_nothing_while_workers_are_killed_over_and_over(
    dsn: str, db: psycopg.Connection, processes: Processes
) -> None:
    """Whatever was saved in one attempt has no effect in a later one."""
    tasks, kills = 150, 4
    with Durable(dsn, tasks=TASKS) as client:
        handles = client.spawn_many(journey, ["never"] * tasks, max_attempts=None)
        client.emit_event("go", "heard")
        crew = [mortal(processes, 20), mortal(processes, 20)]
        for kill in range(1, kills + 1):
            goal = kill * tasks * 3 // (kills + 2)
            eventually(partial(has_come_to, db, goal), deadline=60)
            crew.pop(0).kill()
            crew.append(mortal(processes, 20))
        arrived = [handle.result(timeout=60) for handle in handles]
    assert arrived == [["heard", "brought", True]] * tasks
    assert ledger_errors(db) == []
    assert set(done(db)) == {"one", "two", "run"}
    assert effects_so_far(db, "distinct (task_id, step)") == tasks * 3
    assert db.execute("select 1 from durable.waits").fetchall() == []
    states = db.execute("select distinct state::text from durable.tasks").fetchall()
    assert states == [("completed",)]


def mortal(processes: Processes, concurrency: int = 100) -> Process:
    """Start a worker that dies where its tasks say, or when it is killed."""
    return processes.python(
        "-m", "tests.support.crashing", str(concurrency), env={MORTAL: "yes"}
    )


def end_leases(db: psycopg.Connection) -> None:
    """Let the leases of the dead run out at once."""
    db.execute(
        "update durable.tasks set lease_expires_at = 'epoch' where claim % 2 = 1"
    )
    db.execute("select durable.expire_leases('default')")


def done(db: psycopg.Connection) -> Counter[str]:
    """How often each step had its effect."""
    steps = db.execute("select step from public.effects").fetchall()
    return Counter(step for (step,) in steps)


def effects_so_far(db: psycopg.Connection, what: str = "*") -> int:
    row = db.execute(f"select count({what}) from public.effects").fetchone()
    assert row is not None
    return int(row[0])


def has_come_to(db: psycopg.Connection, effects: int) -> bool:
    return effects_so_far(db) >= effects


def waits_for_the_event(db: psycopg.Connection) -> bool:
    query = "select from durable.tasks join durable.waits using (queue, task_id)"
    query += " where state = 'sleeping' and event_name = 'go'"
    return db.execute(query).fetchone() is not None


def ledger_errors(db: psycopg.Connection) -> list[Any]:
    """Effects of an attempt after the one in which the step was saved."""
    return db.execute(
        """
        select * from public.effects
        join durable.checkpoints using (task_id)
        where checkpoints.name = effects.step and effects.attempt > checkpoints.attempt
        """
    ).fetchall()
