"""Calls race for one unique key: at most one task of the key counts.

Each test is one interleaving. An index, which the engine does without, refuses a second
unfinished task with a key by `unique`, so that no test can miss one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import DeadlockDetected, UniqueViolation

from durable import Durable
from tests.support.clock import Clock
from tests.support.stage import (
    OLD_SNAPSHOTS,
    QUEUE,
    Held,
    Session,
    Stage,
    forget_at_once,
)
from tests.support.survival import Share

ONE_UNFINISHED = """
create unique index one_unfinished on durable.tasks (queue, name, unique_key)
where unique_kind = 'unique' and finished_at is null
"""
UNIQUE: dict[str, Any] = {"unique": {"key": "k"}}
REPLACE: dict[str, Any] = {"unique": {"key": "k", "on_conflict": "replace"}}
REJECT: dict[str, Any] = {"unique": {"key": "k", "on_conflict": "reject"}}
THROTTLE: dict[str, Any] = {"throttle": {"key": "k", "period": 3600}}
DEBOUNCE: dict[str, Any] = {"debounce": {"key": "k", "delay": 0}}
EVERY = [UNIQUE, REPLACE, THROTTLE, DEBOUNCE]
REPLACING = [REPLACE, DEBOUNCE]


@pytest.fixture(autouse=True)
def one_unfinished(db: psycopg.Connection) -> None:
    db.execute(ONE_UNFINISHED)


def spawn(session: Session, options: dict[str, Any], params: int = 0) -> UUID:
    task_id: UUID = session.value(
        "select task_id from durable.spawn(%s, 'work', %s, %s)",
        QUEUE,
        str(params),
        json.dumps(options),
    )
    return task_id


def params(stage: Stage, task_id: UUID) -> Any:
    return stage.db.value(
        "select params from durable.tasks where task_id = %s", task_id
    )


def refusal(call: Callable[[], Any]) -> str | None:
    """Return the SQLSTATE of the error that a call raises, or None."""
    try:
        call()
    except psycopg.Error as error:
        return error.sqlstate
    return None


@pytest.mark.parametrize("options", EVERY, ids=str)
@pytest.mark.parametrize("end", ["commit", "end"])
def test_gives_two_spawns_one_task(
    stage: Stage, options: dict[str, Any], end: str
) -> None:
    a, b = stage.session(), stage.session()
    first = spawn(a, options)
    second = b.waiting(spawn, b, options)
    getattr(a, end)()  # the end of its session is a crash of the client
    assert (second.result() == first) == (end == "commit")
    b.commit()
    assert stage.db.value("select count(*) from durable.tasks") == 1


@pytest.mark.parametrize("options", [UNIQUE, REPLACE, DEBOUNCE], ids=str)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_gives_the_key_of_a_finished_task_to_one_of_two_spawns(
    stage: Stage, options: dict[str, Any], end: str
) -> None:
    old = spawn(stage.db, options)
    stage.db.cancel(old)
    a, b = stage.session(), stage.session()
    first = spawn(a, options)
    second = b.waiting(spawn, b, options)
    getattr(a, end)()
    assert (second.result() == first) == (end == "commit")
    b.commit()
    assert stage.db.value("select count(*) from durable.tasks") == 2


@pytest.mark.parametrize("options", [UNIQUE, THROTTLE], ids=str)
def test_does_not_wait_for_a_spawn_that_returned_the_task(
    stage: Stage, options: dict[str, Any]
) -> None:
    task_id = spawn(stage.db, options)
    a, b = stage.session(), stage.session()
    assert spawn(a, options) == task_id
    assert spawn(b, options) == task_id


def test_counts_a_task_until_its_end_is_committed(stage: Stage) -> None:
    held = stage.held(**UNIQUE)
    worker = stage.session()
    assert worker.complete(held) == "ok"
    assert spawn(stage.db, UNIQUE) == held.task_id
    assert refusal(lambda: spawn(stage.db, REJECT)) == "WFCON"
    worker.commit()
    assert spawn(stage.db, REJECT) != held.task_id


def test_counts_a_task_whose_worker_was_lost(stage: Stage, clock: Clock) -> None:
    """Neither the lost lease nor a late write of the former worker frees the key."""
    held = stage.held(lease=10, **UNIQUE)
    clock.advance(11)
    assert spawn(stage.db, UNIQUE) == held.task_id
    assert stage.db.expire() == 1
    assert spawn(stage.db, UNIQUE) == held.task_id
    (again,) = stage.db.claim()
    assert stage.db.complete(held) == "lost"
    assert spawn(stage.db, UNIQUE) == held.task_id
    assert stage.db.complete(again) == "ok"
    assert spawn(stage.db, UNIQUE) != held.task_id


# -- a task that is to be replaced -----------------------------------------------------


@pytest.mark.parametrize("options", REPLACING, ids=str)
def test_does_not_start_a_task_while_it_is_replaced(
    stage: Stage, options: dict[str, Any]
) -> None:
    task_id = spawn(stage.db, options, 1)
    client = stage.session()
    assert spawn(client, options, 2) == task_id
    assert stage.db.claim() == []
    client.commit()
    (held,) = stage.db.claim()
    assert (held.task_id, params(stage, task_id)) == (task_id, 2)


@pytest.mark.parametrize("options", REPLACING, ids=str)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_waits_for_the_claim_of_the_task_that_it_would_replace(
    stage: Stage, options: dict[str, Any], end: str
) -> None:
    task_id = spawn(stage.db, options, 1)
    worker, client = stage.session(), stage.session()
    assert len(worker.claim()) == 1
    second = client.waiting(spawn, client, options, 2)
    getattr(worker, end)()
    has_started = end == "commit"
    is_new = has_started and options is DEBOUNCE
    assert (second.result() != task_id) == is_new
    client.commit()
    assert params(stage, task_id) == (1 if has_started else 2)
    assert params(stage, second.result()) == (1 if has_started and not is_new else 2)


@pytest.mark.parametrize("options", REPLACING, ids=str)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_waits_for_the_cancellation_of_the_task_that_it_would_replace(
    stage: Stage, options: dict[str, Any], end: str
) -> None:
    task_id = spawn(stage.db, options, 1)
    other, client = stage.session(), stage.session()
    assert other.cancel(task_id)
    second = client.waiting(spawn, client, options, 2)
    getattr(other, end)()
    assert (second.result() != task_id) == (end == "commit")
    client.commit()
    assert params(stage, second.result()) == 2


def test_the_last_of_two_replacements_counts(stage: Stage) -> None:
    task_id = spawn(stage.db, REPLACE, 1)
    a, b = stage.session(), stage.session()
    assert spawn(a, REPLACE, 2) == task_id
    second = b.waiting(spawn, b, REPLACE, 3)
    a.commit()
    assert second.result() == task_id
    b.commit()
    assert params(stage, task_id) == 3


def test_replaces_many_in_any_order_without_a_deadlock(stage: Stage) -> None:
    """Also while the queue is dropped: locks are taken key by key."""
    many = "select count(*) from durable.spawn_many(%s, %s)"
    keys = [f"key {number}" for number in range(20)]

    def tasks(keys: list[str]) -> str:
        options = [{"unique": {"key": key, "on_conflict": "replace"}} for key in keys]
        return json.dumps([{"task": "work", "options": one} for one in options])

    stage.db.value(many, QUEUE, tasks(keys[::-1]))  # so that ids descend with keys
    a, b, dropping = stage.session(), stage.session(), stage.session()
    lock = stage.lock_task(
        stage.db.value("select task_id from durable.tasks where unique_key = 'key 7'")
    )
    first = a.waiting(a.value, many, QUEUE, tasks(keys))
    second = b.waiting(b.value, many, QUEUE, tasks(keys[::-1]))
    dropped = dropping.waiting(dropping.drop_queue)
    lock.rollback()
    assert first.result() == 20
    a.commit()
    assert second.result() == 20
    b.commit()
    assert dropped.result()
    dropping.commit()
    assert stage.db.value("select count(*) from durable.tasks") == 0


# -- retries ---------------------------------------------------------------------------


def failed(stage: Stage) -> Held:
    held = stage.held(**UNIQUE)
    assert stage.db.fail(held, retryable=False) == "ok"
    return held


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_spawn_waits_for_a_retry_of_the_task_that_had_the_key(
    stage: Stage, end: str
) -> None:
    old = failed(stage)
    operator, client = stage.session(), stage.session()
    operator.retry(old.task_id)
    second = client.waiting(spawn, client, UNIQUE)
    getattr(operator, end)()
    assert (second.result() == old.task_id) == (end == "commit")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_retry_waits_for_a_spawn_that_takes_the_key(stage: Stage, end: str) -> None:
    old = failed(stage)
    operator, client = stage.session(), stage.session()
    spawn(client, UNIQUE)
    retried = operator.waiting(operator.retry, old.task_id)
    getattr(client, end)()
    assert refusal(retried.result) == ("WFCON" if end == "commit" else None)


def test_a_retry_keeps_the_key_of_a_task_that_fails_meanwhile(stage: Stage) -> None:
    """It locks the key also if the task counts, since it may end before its lock."""
    held = stage.held(**UNIQUE)
    worker, operator, client = (stage.session() for _ in range(3))
    assert worker.fail(held, retryable=False) == "ok"
    retried = operator.waiting(operator.retry, held.task_id)
    worker.commit()
    assert retried.result() == held.task_id
    second = client.waiting(spawn, client, UNIQUE)
    operator.commit()
    assert second.result() == held.task_id


def test_a_bulk_retry_tries_the_key(stage: Stage) -> None:
    """It waits neither for a spawn that takes a key nor to take one itself."""
    old = failed(stage)
    bulk = "select tasks, busy from durable.retry_tasks(%s, '{\"all\": true}')"
    client, operator = stage.session(), stage.session()
    spawn(client, UNIQUE)
    assert operator.rows(bulk, QUEUE) == [(0, [old.task_id])]
    operator.commit()
    client.rollback()
    assert operator.rows(bulk, QUEUE) == [(1, [])]
    second = client.waiting(spawn, client, UNIQUE)
    operator.commit()
    assert second.result() == old.task_id


# -- snapshots from before, and deletion -----------------------------------------------


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
@pytest.mark.parametrize("how", ["many", "one"])
def test_does_not_take_a_key_in_a_snapshot_from_before_a_retry(
    stage: Stage, isolation: IsolationLevel, how: str
) -> None:
    old = failed(stage)
    session = stage.session(isolation)
    if how == "many":
        stage.db.rows("select durable.retry_tasks(%s, '{\"all\": true}')", QUEUE)
    else:
        stage.db.retry(old.task_id)
    assert refusal(lambda: spawn(session, UNIQUE)) == "40001"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
@pytest.mark.parametrize("options", EVERY, ids=str)
def test_does_not_take_a_key_in_a_snapshot_from_before_its_task(
    stage: Stage, isolation: IsolationLevel, options: dict[str, Any]
) -> None:
    session = stage.session(isolation)
    spawn(stage.db, options)
    assert refusal(lambda: spawn(session, options)) == "40001"


@pytest.mark.parametrize("options", [UNIQUE, THROTTLE], ids=str)
def test_does_not_delete_a_task_that_was_just_returned(
    stage: Stage, options: dict[str, Any]
) -> None:
    task_id = spawn(stage.db, options)
    client = stage.session()
    assert spawn(client, options) == task_id
    stage.db.cancel(task_id)
    forget_at_once(stage)
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 1
    assert stage.db.value("select count(*) from durable.unique_keys") == 0


def test_takes_the_key_of_a_task_that_is_being_deleted(stage: Stage) -> None:
    task_id = spawn(stage.db, UNIQUE)
    stage.db.cancel(task_id)
    forget_at_once(stage)
    house, client = stage.session(), stage.session()
    assert house.cleanup() == 1
    second = client.waiting(spawn, client, UNIQUE)
    house.commit()
    assert second.result() != task_id


# -- crowds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [UNIQUE, REPLACE, THROTTLE, {"debounce": {"key": "k", "delay": 3600}}],
    ids=str,
)
def test_concurrent_spawns_create_one_task(dsn: str, options: dict[str, Any]) -> None:
    sessions, rounds = 8, 20
    start = threading.Barrier(sessions)
    found: list[tuple[int, UUID, bool]] = []

    def ask() -> None:
        with Durable(dsn) as app:
            app.list_queues()  # connected
            for number in range(rounds):
                ((option, value),) = options.items()
                given: Any = {option: {**value, "key": f"key {number}"}}
                start.wait()
                handle = app.spawn("work", number, **given)
                found.append((number, handle.task_id, bool(handle.created)))

    threads = [threading.Thread(target=ask) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == sessions * rounds
    assert len({task_id for _, task_id, _ in found}) == rounds
    assert sum(created for _, _, created in found) == rounds


def test_no_mix_of_calls_leaves_two_unfinished_tasks(
    dsn: str, random: Random, share: Share
) -> None:
    """Spawns, ends, cancellations, retries and deletions, without a deadlock."""
    calls, seeds = share(quick=120, long=2_000), [random.random() for _ in range(6)]
    created, problems = [], []

    def play(seed: float) -> None:
        dice = Random(seed)
        with psycopg.connect(dsn) as connection:
            for _ in range(calls):
                connection.isolation_level = dice.choice([None, None, *OLD_SNAPSHOTS])
                try:
                    rows = connection.execute(*drawn(dice)).fetchall()
                    if dice.random() < 0.9:
                        connection.commit()
                        created.append(rows)
                except (DeadlockDetected, UniqueViolation) as problem:
                    problems.append(problem)
                except psycopg.Error:
                    pass  # refused, as it may be
                connection.rollback()

    threads = [threading.Thread(target=play, args=[seed]) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(created) > calls


ONE = "(select task_id from durable.tasks order by random() limit 1)"
MIX = [
    f"select durable.cancel_task('default', {ONE})",
    f"select durable.retry_task('default', {ONE})",
    """select durable.retry_tasks('default', '{"all": true}', 5)""",
    """select durable.delete_tasks('default', '{"all": true}', 5)""",
    """select durable.fail_tasks('default', (select json_agg(json_build_object(
      'task_id', task_id, 'claim', claim, 'retryable', false))
      from durable.claim_tasks('default', 'w', null, 2)))""",
    """select durable.complete_tasks('default', (select json_agg(json_build_object(
      'task_id', task_id, 'claim', claim))
      from durable.claim_tasks('default', 'w', null, 1)))""",
]


def drawn(dice: Random) -> tuple[str, list[str]]:
    if dice.random() < 0.4:
        return dice.choice(MIX), []
    tasks = []
    for key in dice.choices("abc", k=dice.randint(1, 4)):
        ((option, value),) = dice.choice([*EVERY, UNIQUE, REPLACE]).items()
        tasks.append({"task": "work", "options": {option: {**value, "key": key}}})
    return "select durable.spawn_many('default', %s)", [json.dumps(tasks)]
