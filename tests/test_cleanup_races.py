"""What is tried again, cleaned up or dropped meets whoever uses it.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Stage, event, forget_at_once


def test_keeps_a_task_that_is_just_tried_again(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    forget_at_once(stage)
    client = stage.session()
    assert client.retry(task_id) == task_id
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 0
    assert stage.db.state(task_id) == "pending"


def test_does_not_try_again_what_is_just_cleaned_up(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    forget_at_once(stage)
    house, client = stage.session(), stage.session()
    assert house.cleanup() == 1
    retried = client.waiting(client.retry, task_id)
    house.commit()
    with pytest.raises(psycopg.Error) as refused:
        retried.result()
    assert refused.value.sqlstate == "WFNFD"


def test_lets_one_of_two_retries_win(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    a, b = stage.session(), stage.session()
    a.retry(task_id)
    second = b.waiting(b.retry, task_id)
    a.commit()
    with pytest.raises(psycopg.Error) as refused:
        second.result()
    assert refused.value.sqlstate == "WFFIN"


def test_keeps_a_failed_task_until_what_lives_below_it_is_cancelled(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    forget_at_once(stage)
    assert stage.db.cleanup() == 0
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "cancelled"
    assert stage.db.cleanup() == 2


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_forgets_the_wait_of_a_former_attempt_that_its_end_did_not_see(
    stage: Stage, isolation: IsolationLevel
) -> None:
    held = stage.held()
    client = stage.session(isolation)
    stage.db.poll(held, event(seconds=60))
    assert client.cancel(held.task_id) is True
    client.commit()
    stage.db.retry(held.task_id)
    assert stage.db.rows("select from durable.waits") == []


def test_does_not_wait_for_whoever_changes_the_queues_policy(stage: Stage) -> None:
    stage.db.cancel(stage.db.spawn())
    forget_at_once(stage)
    other = stage.lock("select 1 from durable.queues for update")
    stage.db.rows("select * from durable.keep_house(%s)", QUEUE)
    other.commit()


# Dropping a queue.


def test_leaves_nothing_of_a_spawn_under_way_once_the_queue_is_created_again(
    stage: Stage,
) -> None:
    client = stage.session()
    client.spawn(idempotency_key="k")
    assert stage.db.drop_queue() is True
    client.commit()
    stage.db.rows("select durable.create_queue(%s)", QUEUE)
    assert stage.db.value("select count(*) from durable.tasks") == 0


def test_refuses_a_spawn_into_a_queue_that_was_just_dropped(stage: Stage) -> None:
    operator, client = stage.session(), stage.session()
    assert operator.drop_queue() is True
    client.spawn()
    operator.commit()
    client.commit()
    with pytest.raises(psycopg.Error) as refused:
        stage.db.spawn()
    assert refused.value.sqlstate == "WFQUE"
    stage.db.rows("select durable.create_queue(%s)", QUEUE)
    assert stage.db.claim() == []


def test_drops_a_queue_while_workers_flush(stage: Stage) -> None:
    first, second = stage.held(), stage.held()
    stage.db.extend(first)  # its row now stands behind the second's
    other = stage.lock_task(first.task_id)
    operator = stage.session()
    dropped = operator.waiting(operator.drop_queue)
    assert not stage.db.has_locked(second.task_id)
    other.commit()
    assert dropped.result() is True


def test_drops_a_queue_while_a_worker_settles_its_waits(stage: Stage) -> None:
    held = stage.held()
    stage.db.poll(held, event())
    stage.db.emit()
    worker, operator = stage.session(), stage.session()
    assert worker.save(held) == "ok"
    dropped = operator.waiting(operator.drop_queue)
    load = "select state from durable.load_checkpoints(%s, %s)"
    assert worker.rows(load, QUEUE, json.dumps([held.json()])) == [("done",)] * 2
    worker.commit()
    assert dropped.result() is True


def test_drops_a_queue_while_it_is_cleaned_up(stage: Stage) -> None:
    stage.db.cancel(stage.db.spawn())
    forget_at_once(stage)
    house, operator = stage.session(), stage.session()
    assert house.prune() == 0
    assert house.cleanup() == 1
    dropped = operator.waiting(operator.drop_queue)
    house.commit()
    assert dropped.result() is True
    assert (
        stage.db.value(
            "select deadlocks from pg_stat_database where datname = current_database()"
        )
        == 0
    )
