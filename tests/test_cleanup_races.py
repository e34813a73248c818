"""Retries, cleanup and drops race with other calls on the same task or queue.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Stage, event, forget_at_once


def test_does_not_delete_a_task_that_is_being_retried(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    forget_at_once(stage)
    client = stage.session()
    assert client.retry(task_id) == task_id
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 0
    assert stage.db.state(task_id) == "pending"


def test_does_not_retry_a_task_that_is_being_deleted(stage: Stage) -> None:
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


def test_one_of_two_concurrent_retries_wins(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    a, b = stage.session(), stage.session()
    a.retry(task_id)
    second = b.waiting(b.retry, task_id)
    a.commit()
    with pytest.raises(psycopg.Error) as refused:
        second.result()
    assert refused.value.sqlstate == "WFFIN"


def test_keeps_a_failed_task_until_its_descendants_are_cancelled(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    forget_at_once(stage)
    assert stage.db.cleanup() == 0
    other.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "cancelled"
    assert stage.db.cleanup() == 2


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_deletes_the_wait_of_a_former_attempt_that_its_end_did_not_see(
    stage: Stage, isolation: IsolationLevel
) -> None:
    held = stage.held()
    client = stage.session(isolation)
    stage.db.poll(held, event(seconds=60))
    assert client.cancel(held.task_id) is True
    client.commit()
    stage.db.retry(held.task_id)
    assert stage.db.rows("select from durable.waits") == []


def test_does_not_wait_for_a_change_of_the_queues_policy(stage: Stage) -> None:
    stage.db.cancel(stage.db.spawn())
    forget_at_once(stage)
    other = stage.lock("select 1 from durable.queues for update")
    stage.db.rows("select * from durable.run_maintenance(%s)", QUEUE)
    other.commit()


# Dropping a queue.


def test_a_concurrent_spawn_leaves_nothing_in_a_recreated_queue(
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
    stage.db.extend(first)  # its row now comes after the second's
    other = stage.lock_task(first.task_id)
    operator = stage.session()
    dropped = operator.waiting(operator.drop_queue)
    assert not stage.db.has_locked(second.task_id)
    other.commit()
    assert dropped.result() is True


def test_drops_a_queue_while_a_worker_resolves_its_waits(stage: Stage) -> None:
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
