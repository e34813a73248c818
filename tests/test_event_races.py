"""A wait and an event meet: whoever comes second, no wake-up is lost.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import json

import pytest
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Stage, event


def test_wakes_a_task_that_was_falling_asleep_when_the_event_came(stage: Stage) -> None:
    held = stage.held()
    worker, emitter = stage.session(), stage.session()
    assert worker.suspend(held, event()) == "suspended"
    emitted = emitter.waiting(emitter.emit)
    worker.commit()
    assert emitted.result() is True
    emitter.commit()
    assert stage.db.state(held.task_id) == "pending"


def test_wakes_the_second_task_that_was_falling_asleep_too(stage: Stage) -> None:
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


def test_lets_the_first_of_two_emitters_win(stage: Stage) -> None:
    a, b = stage.session(), stage.session()
    assert a.emit() is True
    second = b.waiting(b.emit)
    a.commit()
    assert second.result() is False


def test_wakes_later_whom_an_emitter_finds_in_other_hands(stage: Stage) -> None:
    held = stage.held()
    stage.db.suspend(held, event())
    other = stage.lock_task(held.task_id)
    assert stage.db.emit() is True
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(held.task_id) == "pending"


def test_keeps_a_note_whose_task_is_still_in_other_hands(stage: Stage) -> None:
    held = stage.held()
    stage.db.suspend(held, event())
    other = stage.lock_task(held.task_id)
    stage.db.emit()
    stage.db.rows("select durable.apply_notes(%s)", QUEUE)
    assert stage.db.notes() == 1
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_wakes_whom_the_emitters_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.suspend(stage.held(), event())
    held = stage.held()
    emitter = stage.session(isolation)
    stage.db.suspend(held, event())
    assert emitter.emit() is True
    emitter.commit()
    stage.db.apply_notes()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_does_not_suspend_by_a_snapshot_from_before_the_event(
    stage: Stage, isolation: IsolationLevel
) -> None:
    held = stage.held()
    stage.db.suspend(stage.held(), event())
    worker = stage.session(isolation)
    stage.db.emit()
    with pytest.raises(SerializationFailure):
        worker.suspend(held, event())


def test_wakes_ten_thousand_waiters_bit_by_bit(stage: Stage) -> None:
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
    stage.db.apply_notes()
    assert stage.db.value(woken) == 10_000


MANY_WAITERS = """
with spawned as (
  insert into durable.tasks (
    task_id, spawned_at, queue, name, params, claim, state, started_at)
  select durable._uuid7(durable._id_milliseconds(now()), n), now(), 'default', 'many',
    '{}', 2, 'sleeping', now()
  from generate_series(1, 10000) as n
  returning task_id
)
insert into durable.waits (queue, task_id, name, position, after, event_name)
select 'default', task_id, '$event:news', 0, 0, 'news' from spawned
returning 1
"""


# Pruning of events.


def test_keeps_the_place_of_an_event_somebody_has_begun_to_await(stage: Stage) -> None:
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


def test_makes_again_the_place_of_an_event_that_goes_while_it_waits(
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


def test_makes_again_the_place_of_an_event_that_is_just_pruned(stage: Stage) -> None:
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
def test_keeps_the_place_of_an_event_whose_waiter_the_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    house = stage.session(isolation)
    stage.db.suspend(stage.held(), event())
    assert house.prune() == 0
    house.commit()
    assert stage.db.rows("select emitted_at from durable.events") == [(None,)]
