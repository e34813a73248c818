"""Wherever a process is killed, nothing is lost, and nothing saved is repeated.

The boundaries are not chosen but enumerated: before, during and after every database
call of a worker and of a client, and between the lines of a task's own code. The quick
share takes some of them, by the run's seed; the long one takes all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
import pytest

from durable import AsyncDurable, Durable
from tests.chaos.crash_points import (
    DEAD,
    Points,
    Stage,
    Story,
    enumerated,
    sessions,
)
from tests.support.crashing import (
    LEDGER,
    MORTAL,
    STEPS,
    TASKS,
    errand,
    herald,
    journey,
    journey_sync,
    ledger,
    relay,
    tour,
    tour_sync,
    vigil,
)
from tests.support.forkserver import forkserver
from tests.support.ordering import ORDERS
from tests.support.processes import Process, Processes
from tests.support.survival import Share, Survived
from tests.support.wait import eventually

STRIPES: Final = 4
AT_ITS_HOUR: Final = frozenset(
    f"{call}#1:after"
    for call in (
        "extend_leases",
        "run_maintenance",
        "list_waiting_names",
        "release_unknown",
    )
)
ARRIVED: Final = ["heard", "brought", True]
ALONE = Story(journey, "journey", ARRIVED)
TOGETHER = Story(journey, "journey", ARRIVED, ["a", "b", "c", "d", "e"], concurrency=5)
IN_THREADS = Story(journey_sync, "journey-sync", "heard")
PUBLISHING = Story(herald, "herald", "heard")
ACROSS = Story(
    relay,
    "relay",
    ["brought", True, *(f"{runner} ran" for runner in "abcd")],
    concurrency=5,
    far=True,
)
SEEN: Final = [True, "a", "did paid", "brought"]
SEEING_ALL = Story(
    tour,
    "tour",
    [*SEEN, *(f"{runner} ran" for runner in "abc"), "did arrived"],
    concurrency=5,
    far=True,
)
SEEING_ALL_IN_THREADS = Story(
    tour_sync,
    "tour-sync",
    [*SEEN, *(f"{runner} ran" for runner in "ab"), "did arrived"],
    concurrency=5,
    far=True,
)
KEEPING_WATCH = Story(
    vigil,
    "vigil",
    "relieved",
    concurrency=5,
    options={"lease": 3},
    until=AT_ITS_HOUR,
    ghost=True,
)


@pytest.fixture(autouse=True)
def effects(
    dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> psycopg.Connection:
    """The connection to a ledger, for workers in this process and in others."""
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    db.execute(LEDGER)
    db.execute(ORDERS)
    return db


@pytest.fixture
def stage(dsn: str, db: psycopg.Connection, tmp_path: Path) -> Iterator[Stage]:
    """The database on which stories run, in processes that may be killed."""
    with forkserver(tmp_path, **{MORTAL: "yes"}) as forks:
        yield Stage(dsn, db, forks)


# -- every boundary of a worker --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(STRIPES))
def test_repeats_no_saved_step_wherever_it_is_killed(
    stage: Stage, share: Share, random: Random, survived: Survived, number: int
) -> None:
    points, expected = stage.undisturbed(ALONE)
    mine = points.stripe(number, STRIPES).sample(random, share(quick=6, long=1))
    sweep(stage, ALONE, expected, mine, survived)


@pytest.mark.slow
def test_repeats_no_saved_step_of_a_sync_task_wherever_it_is_killed(
    stage: Stage, share: Share, random: Random, survived: Survived
) -> None:
    points, expected = stage.undisturbed(IN_THREADS)
    some = points.sample(random, share(quick=20, long=1))
    sweep(stage, IN_THREADS, expected, some, survived)


@pytest.mark.slow
def test_publishes_once_wherever_it_is_killed(
    stage: Stage, share: Share, random: Random, survived: Survived
) -> None:
    """Values and entries; a step's entries, once those of former tries are dropped."""
    points, expected = stage.undisturbed(PUBLISHING)
    some = points.sample(random, share(quick=20, long=1))
    sweep(stage, PUBLISHING, expected, some, survived)


@pytest.mark.slow
def test_repeats_no_saved_step_across_queues_wherever_it_is_killed(
    stage: Stage, share: Share, random: Random, survived: Survived
) -> None:
    """And every life agrees on which task was first."""
    points, expected = stage.undisturbed(ACROSS)
    assert any(point.startswith("spawn_children_in#") for point in points.certain)
    some = points.sample(random, share(quick=20, long=1))
    sweep(stage, ACROSS, expected, some, survived)


@pytest.mark.slow
@pytest.mark.parametrize(
    "story", [SEEING_ALL, SEEING_ALL_IN_THREADS], ids=lambda story: story.name
)
def test_keeps_every_promise_of_a_task_that_uses_all_features_wherever_it_is_killed(
    stage: Stage, share: Share, random: Random, survived: Survived, story: Story
) -> None:
    """Messages, published values, rows written in transactions, and the result."""
    points, expected = stage.undisturbed(story)
    some = points.sample(random, share(quick=80, long=1))
    sweep(stage, story, expected, some, survived)


@pytest.mark.slow
def test_maintenance_and_leases_survive_a_kill_anywhere(
    stage: Stage, share: Share, random: Random, survived: Survived
) -> None:
    """By the clock, after a lost connection, and during shutdown."""
    points, expected = stage.undisturbed(KEEPING_WATCH)
    calls = (
        "(extend_leases|run_maintenance|list_waiting_names"
        "|release_unknown|release_tasks)#"
    )
    wanted = points.only(lambda point: re.match(calls, point) is not None)
    assert len(wanted.certain) >= 3 * 5, wanted
    some = wanted.sample(random, share(quick=5, long=1))
    sweep(stage, KEEPING_WATCH, expected, some, survived)


@pytest.mark.slow
def test_repeats_no_saved_step_of_many_tasks_wherever_they_are_killed(
    stage: Stage, share: Share, random: Random, survived: Survived
) -> None:
    """Their checkpoints are batched, in any number of calls."""
    points, expected = stage.undisturbed(TOGETHER)
    some = points.sample(random, share(quick=60, long=8))
    sweep(stage, TOGETHER, expected, some, survived)


@pytest.mark.slow
def test_repeats_no_saved_step_if_killed_while_it_recovers(
    stage: Stage, share: Share, random: Random, survived: Survived
) -> None:
    points, expected = stage.undisturbed(ALONE)
    twice = 0
    for _ in range(share(quick=3, long=60)):
        lives, _ = stage.survive(ALONE, expected, *random.choices(points.certain, k=2))
        twice += [child.exit_code for child in lives] == [DEAD, DEAD]
    survived("kills of a worker and of the one that took over", twice)


def sweep(
    stage: Stage,
    story: Story,
    expected: list[Any],
    points: Points,
    survived: Survived,
) -> None:
    """Die at each of these, recover, and count."""
    repeated: Counter[str] = Counter()

    def dies_at(point: str) -> bool:
        (child,), twice = stage.survive(story, expected, point)
        repeated["steps"] += sum(twice.values())
        assert all(times <= 1 for times in twice.values()), (point, twice)
        return child.exit_code == DEAD

    came = points.sweep(dies_at)
    in_code = sum(": " in point for point in came)
    survived("kills of a worker in a task's own code", in_code)
    survived("kills of a worker at a call's boundary", len(came) - in_code)
    survived("steps repeated since their save was on its way", repeated["steps"])


# -- every boundary of a client --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("call", ["order", "order_sync"])
def test_repeats_nothing_when_a_killed_client_calls_again(
    stage: Stage, share: Share, random: Random, survived: Survived, call: str
) -> None:
    client = f"tests.support.ordering:{call}"
    pictures = []

    def say(*orders: str) -> tuple[str, list[str], int]:
        queue = stage.new_queue()
        with stage.app as app:
            unwanted = str(app.spawn("errand", "unwanted", queue=queue).task_id)
        others = sessions(stage.db)
        child = stage.forkserver.fork(client, *orders, queue=queue, unwanted=unwanted)
        code = child.wait()
        eventually(lambda: sessions(stage.db) <= others, what="the client's sessions")
        assert_nothing_is_half_done(stage.db, queue)
        if code == DEAD:
            again = stage.forkserver.fork(client, queue=queue, unwanted=unwanted)
            code = again.wait() or DEAD
        assert code in {0, DEAD}, stage.forkserver.output()
        pictures.append(stage.picture(queue))
        assert pictures[-1] == pictures[0]
        assert orders_of(stage.db, queue) == 1
        return queue, child.passed(), code

    points = enumerated(lambda: say()[1]).sample(random, share(quick=4, long=1))
    came = points.sweep(lambda point: say(f"kill={point}")[2] == DEAD)
    survived("kills of a client at a call's boundary", len(came))


def assert_nothing_is_half_done(db: psycopg.Connection, queue: str) -> None:
    """Check that each statement or transaction was applied completely or not."""
    keys = db.execute(
        "select key from durable.idempotency_keys join durable.tasks using (task_id)"
        " where tasks.queue = %s",
        [queue],
    ).fetchall()
    assert ("two",) in keys or ("three",) not in keys
    assert ("three",) in keys or ("two",) not in keys
    emitted = "select from durable.events where queue = %s and name = 'ordered'"
    ordered = orders_of(db, queue)
    assert db.execute(emitted, [queue]).rowcount == ordered
    assert keys.count(("order",)) == ordered


def orders_of(db: psycopg.Connection, queue: str) -> int:
    return db.execute("select from public.orders where queue = %s", [queue]).rowcount


# -- the cost of a crash ---------------------------------------------------------------


async def test_uses_no_attempt_when_a_worker_dies_while_its_tasks_wait(
    dsn: str, db: psycopg.Connection, processes: Processes
) -> None:
    async with AsyncDurable(dsn, tasks=TASKS, lifespan=ledger) as app:
        handle = await app.spawn(journey_sync, "a", max_attempts=1)
        worker = mortal(processes)
        eventually(partial(waits_for_the_event, db), deadline=20)
        worker.kill()
        await app.emit_event("go", "heard")
        async with app.worker():
            assert await handle.result(timeout=20) == "heard"
    assert done(db) == {"one": 1, "two": 1, "run": 1}


async def test_fails_a_task_whose_only_attempt_was_killed(
    dsn: str, db: psycopg.Connection, processes: Processes
) -> None:
    async with AsyncDurable(dsn, tasks=TASKS, lifespan=ledger) as app:
        handle = await app.spawn(errand, "a", max_attempts=1)
        worker = mortal(processes, orders="kill=flush#1:before")
        assert worker.wait() == DEAD
        end_leases(db)
        async with app.worker() as recovering:
            assert await recovering.drain() == 0
        found = await handle.snapshot()
    assert found.state == "failed"
    assert found.error is not None
    assert found.error.type == "$LeaseExpired"
    assert done(db) == {"run": 1}


@pytest.mark.slow
def test_loses_nothing_while_workers_are_killed_repeatedly(
    dsn: str, db: psycopg.Connection, processes: Processes, survived: Survived
) -> None:
    """A step saved in one attempt has no effect in a later one."""
    tasks, kills = 100, 4
    steps = len(STEPS["journey"] + STEPS["errand"])
    labels = [str(number) for number in range(tasks)]
    with Durable(dsn, tasks=TASKS) as client:
        handles = client.spawn_many(journey, labels)
        client.emit_event("go", "heard")
        crew = [mortal(processes), mortal(processes)]
        for kill in range(1, kills + 1):
            goal = kill * tasks * steps // (kills + 2)
            eventually(partial(has_come_to, db, goal), deadline=60)
            crew.pop(0).kill()
            crew.append(mortal(processes))
        arrived = [handle.result(timeout=60) for handle in handles]
    assert arrived == [ARRIVED] * tasks
    assert ledger_errors(db) == []
    assert effects_so_far(db, "distinct (task_id, step)") == tasks * steps
    assert db.execute("select 1 from durable.waits").fetchall() == []
    states = db.execute("select distinct state::text from durable.tasks").fetchall()
    assert states == [("completed",)]
    survived("kills of a busy worker", kills)


def mortal(processes: Processes, orders: str = "") -> Process:
    """Start a worker that dies where it is told, or when it is killed."""
    return processes.python(
        "-m", "tests.support.crashing", "20", env={"DURABLE_FAILPOINT": orders}
    )


def end_leases(db: psycopg.Connection) -> None:
    """Expire the leases of dead workers at once."""
    db.execute(
        "update durable.tasks set lease_expires_at = 'epoch' where claim % 2 = 1"
    )
    db.execute("select durable.expire_leases('default')")


def done(db: psycopg.Connection) -> Counter[str]:
    """Return how often each step had its effect."""
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
    """Return effects of attempts after the one in which the step was saved."""
    return db.execute(
        """
        select * from public.effects
        join durable.checkpoints using (task_id)
        where checkpoints.name = effects.step and effects.attempt > checkpoints.attempt
        """
    ).fetchall()
