"""A wait and an event race: in either order, no wake-up is lost.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Held, Stage, event, join


def test_wakes_a_task_that_was_suspending_when_the_event_came(stage: Stage) -> None:
    held = stage.held()
    worker, emitter = stage.session(), stage.session()
    assert worker.suspend(held, event()) == "suspended"
    emitted = emitter.waiting(emitter.emit)
    worker.commit()
    assert emitted.result() is True
    emitter.commit()
    assert stage.db.state(held.task_id) == "pending"


def test_wakes_both_of_two_tasks_that_were_suspending(stage: Stage) -> None:
    first, second = stage.held(), stage.held()
    stage.db.suspend(first, event())
    worker, emitter = stage.session(), stage.session()
    assert worker.suspend(second, event()) == "suspended"
    emitted = emitter.waiting(emitter.emit)
    worker.commit()
    assert emitted.result() is True
    emitter.commit()
    assert stage.db.state(first.task_id) == "pending"
    assert stage.db.state(second.task_id) == "pending"


def test_does_not_suspend_for_an_event_that_was_just_being_emitted(
    stage: Stage,
) -> None:
    held = stage.held()
    emitter, worker = stage.session(), stage.session()
    assert emitter.emit() is True
    outcome = worker.waiting(worker.suspend, held, event())
    emitter.commit()
    assert outcome.result() == "resolved"


def test_suspends_when_the_emitter_rolls_back(stage: Stage) -> None:
    held = stage.held()
    emitter, worker = stage.session(), stage.session()
    emitter.emit()
    outcome = worker.waiting(worker.suspend, held, event())
    emitter.rollback()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.emit() is True
    assert stage.db.state(held.task_id) == "pending"


def test_the_first_of_two_emitters_wins(stage: Stage) -> None:
    a, b = stage.session(), stage.session()
    assert a.emit() is True
    second = b.waiting(b.emit)
    a.commit()
    assert second.result() is False


def test_defers_the_wake_up_of_a_locked_waiter(stage: Stage) -> None:
    held = stage.held()
    stage.db.suspend(held, event())
    other = stage.lock_task(held.task_id)
    assert stage.db.emit() is True
    other.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(held.task_id) == "pending"


def test_keeps_deferred_work_for_a_task_that_is_still_locked(stage: Stage) -> None:
    held = stage.held()
    stage.db.suspend(held, event())
    other = stage.lock_task(held.task_id)
    stage.db.emit()
    stage.db.rows("select durable.apply_deferred_work(%s)", QUEUE)
    assert stage.db.deferred_work() == 1
    other.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_wakes_a_task_that_the_emitters_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.suspend(stage.held(), event())
    held = stage.held()
    emitter = stage.session(isolation)
    stage.db.suspend(held, event())
    assert emitter.emit() is True
    emitter.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_a_snapshot_from_before_the_event_does_not_suspend(
    stage: Stage, isolation: IsolationLevel
) -> None:
    held = stage.held()
    stage.db.suspend(stage.held(), event())
    worker = stage.session(isolation)
    stage.db.emit()
    with pytest.raises(SerializationFailure):
        worker.suspend(held, event())


def test_wakes_ten_thousand_waiters_in_batches(stage: Stage) -> None:
    stage.db.rows(
        "select durable.poll_waits(%s, %s)",
        QUEUE,
        json.dumps([stage.held().json(waits=[event()])]),
    )
    stage.db.rows(MANY_WAITERS)
    assert stage.db.emit() is True
    woken = (
        "select count(*) from durable.tasks where name = 'many' and state = 'pending'"
    )
    assert 0 < stage.db.value(woken) <= 100
    stage.db.apply_deferred_work()
    assert stage.db.value(woken) == 10_000


MANY_WAITERS = """
with spawned as (
  insert into durable.tasks (
    task_id, spawned_at, queue, name, params, claim, state, started_at)
  select durable._uuid7(durable._id_microseconds(now()), n), now(), 'default', 'many',
    '{}', 2, 'sleeping', now()
  from generate_series(1, 10000) as n
  returning task_id
)
insert into durable.waits (queue, task_id, name, position, after, event_name)
select 'default', task_id, '$event:news', 0, 0, 'news' from spawned
returning 1
"""


# Pruning of events.


def test_keeps_the_row_of_an_event_with_a_new_waiter(stage: Stage) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    worker, house = stage.session(), stage.session()
    held = stage.held()
    assert worker.suspend(held, event()) == "suspended"
    assert house.prune() == 0
    worker.commit()
    assert house.prune() == 0
    house.commit()
    stage.db.emit()
    assert stage.db.state(held.task_id) == "pending"


def test_recreates_the_row_of_an_event_that_is_deleted_while_it_waits(
    stage: Stage,
) -> None:
    stage.db.poll(stage.held(), event())
    other = stage.lock("select 1 from durable.events for update")
    worker = stage.session()
    held = stage.held()
    outcome = worker.waiting(worker.suspend, held, event())
    other.connection.execute("delete from durable.events")
    other.commit()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.rows("select emitted_at from durable.events") == [(None,)]


def test_recreates_the_row_of_an_event_that_was_just_pruned(stage: Stage) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    house, worker = stage.session(), stage.session()
    held = stage.held()
    assert house.prune() == 1
    outcome = worker.waiting(worker.suspend, held, event())
    house.commit()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.emit() is True
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_keeps_the_row_of_an_event_whose_waiter_the_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    house = stage.session(isolation)
    stage.db.suspend(stage.held(), event())
    with pytest.raises(psycopg.Error, match="cannot see") as refused:
        house.prune()
    assert refused.value.sqlstate == "WFISO"
    house.rollback()
    assert stage.db.rows("select emitted_at from durable.events") == [(None,)]


def a_wait_that_is_not_named(stage: Stage) -> Held:
    """Return a task that has waited for a and b, and was woken by b."""
    held = stage.held()
    assert stage.db.suspend(held, event("a"), event("b")) == "suspended"
    stage.db.emit("b")
    (held,) = stage.db.claim()
    assert [name for name, _ in stage.db.load(held)] == ["$event:b"]
    return held


def test_continues_with_a_resolved_wait_that_it_no_longer_names(
    stage: Stage,
) -> None:
    held = a_wait_that_is_not_named(stage)
    stage.db.emit("a")
    assert stage.db.suspend(held, event("c")) == "suspended"
    (held,) = stage.db.claim()
    saved = {name for name, _ in stage.db.load(held)}
    assert saved == {"$event:a", "$event:b"}
    assert stage.db.suspend(held, event("c")) == "suspended"
    assert stage.db.claim() == []


def test_continues_with_a_wait_that_it_no_longer_names_and_that_is_just_resolved(
    stage: Stage,
) -> None:
    held = a_wait_that_is_not_named(stage)
    emitter, worker = stage.session(), stage.session()
    emitter.emit("a")
    outcome = worker.waiting(worker.suspend, held, event("c"))
    emitter.commit()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.state(held.task_id) == "pending"


def test_wakes_for_a_wait_that_it_no_longer_names(stage: Stage) -> None:
    held = a_wait_that_is_not_named(stage)
    worker, emitter = stage.session(), stage.session()
    assert worker.suspend(held, event("c")) == "suspended"
    emitted = emitter.waiting(emitter.emit, "a")
    worker.commit()
    assert emitted.result() is True
    emitter.commit()
    assert stage.db.state(held.task_id) == "pending"


def test_ignores_a_wait_that_it_cancels(stage: Stage) -> None:
    held = a_wait_that_is_not_named(stage)
    stage.db.emit("a")
    given_up = {"withdrawn": [{"name": "$event:a", "position": 1}]}
    suspend = "select outcome from durable.suspend_tasks(%s, %s)"
    said = json.dumps([held.json(waits=[event("c")], **given_up)])
    assert stage.db.value(suspend, QUEUE, said) == "suspended"


def test_reports_the_outcome_of_a_wait_that_is_not_named(stage: Stage) -> None:
    """Messages and joins, too.

    A polling task gets the outcome, a suspending one is woken.
    """
    held, other = stage.held(), stage.held("other")
    told = {"name": "$recv", "topic": "t"}
    assert stage.db.suspend(held, told, join(other.task_id), event()) == "suspended"
    stage.db.emit()
    (held,) = stage.db.claim("work")
    stage.db.load(held)
    stage.db.complete(other)
    stage.db.rows("select durable.send_message(%s, %s, 't')", QUEUE, held.task_id)
    suspending = stage.session()
    assert suspending.suspend(held, event("c")) == "suspended"
    assert suspending.state(held.task_id) == "pending"
    suspending.rollback()
    poll = "select name, outcome from durable.poll_waits(%s, %s)"
    said = json.dumps([held.json(waits=[event("c")])])
    assert sorted(stage.db.rows(poll, QUEUE, said)) == [
        ("$join", "resolved"),
        ("$recv", "resolved"),
    ]
