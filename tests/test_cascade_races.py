"""A parent's end races with its children: it cancels all of them.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.support.stage import OLD_SNAPSHOTS, Held, Session, Stage, event, join


def test_cancels_a_parent_after_its_child_has_completed(stage: Stage) -> None:
    parent, child = stage.family()
    worker, client = stage.session(), stage.session()
    assert worker.complete(child) == "ok"
    cancelled = client.waiting(client.cancel, parent.task_id)
    worker.commit()
    assert cancelled.result() is True
    client.commit()
    assert stage.db.state(child.task_id) == "completed"


def test_refuses_the_completion_of_a_child_cancelled_with_its_parent(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    stage.db.suspend(parent, join(child.task_id))
    client, worker = stage.session(), stage.session()
    assert client.cancel(parent.task_id) is True
    outcome = worker.waiting(worker.complete, child)
    client.commit()
    assert outcome.result() == "cancelled"


def test_cancels_a_child_that_was_being_spawned_by_a_client(stage: Stage) -> None:
    parent = stage.held("parent")
    spawner, client = stage.session(), stage.session()
    child = spawner.spawn(parent_task_id=parent.task_id)
    cancelled = client.waiting(client.cancel, parent.task_id)
    spawner.commit()
    assert cancelled.result() is True
    client.commit()
    assert stage.db.state(child) == "cancelled"


def test_refuses_a_child_of_a_parent_that_was_just_cancelled(stage: Stage) -> None:
    parent = stage.held("parent")
    client, spawner = stage.session(), stage.session()
    assert client.cancel(parent.task_id) is True
    child = spawner.waiting(spawner.spawn, parent_task_id=parent.task_id)
    client.commit()
    with pytest.raises(psycopg.Error) as refused:
        child.result()
    assert refused.value.sqlstate == "WFFIN"


def test_cancels_a_child_that_its_parents_worker_was_spawning(stage: Stage) -> None:
    parent = stage.held("parent")
    worker, client = stage.session(), stage.session()
    child = worker.spawn_child(parent)
    cancelled = client.waiting(client.cancel, parent.task_id)
    worker.commit()
    assert cancelled.result() is True
    client.commit()
    assert stage.db.state(child) == "cancelled"


def test_refuses_a_workers_child_of_a_parent_that_was_just_cancelled(
    stage: Stage,
) -> None:
    parent = stage.held("parent")
    client, worker = stage.session(), stage.session()
    assert client.cancel(parent.task_id) is True
    child = worker.waiting(worker.spawn_child, parent)
    client.commit()
    with pytest.raises(psycopg.Error) as refused:
        child.result()
    assert refused.value.sqlstate == "WFCAN"
    worker.rollback()
    assert stage.db.value("select count(*) from durable.tasks") == 1


def test_refuses_children_spawned_under_a_former_claim(stage: Stage) -> None:
    zombie = stage.held(lease=1e-6)
    house, worker = stage.session(), stage.session()
    assert house.expire() == 1
    child = worker.waiting(worker.spawn_child, zombie)
    house.commit()
    with pytest.raises(psycopg.Error) as refused:
        child.result()
    assert refused.value.sqlstate == "WFLST"


def test_cancels_a_child_that_was_being_spawned_when_its_parent_failed(
    stage: Stage,
) -> None:
    parent = stage.held("parent", max_attempts=1)
    spawner, worker = stage.session(), stage.session()
    child = spawner.spawn(parent_task_id=parent.task_id)
    outcome = worker.waiting(worker.fail, parent)
    spawner.commit()
    assert outcome.result() == "ok"
    worker.commit()
    assert stage.db.state(child) == "cancelled"


def test_refuses_a_child_of_a_parent_that_just_failed(stage: Stage) -> None:
    parent = stage.held("parent", max_attempts=1)
    worker, spawner = stage.session(), stage.session()
    assert worker.fail(parent) == "ok"
    child = spawner.waiting(spawner.spawn, parent_task_id=parent.task_id)
    worker.commit()
    with pytest.raises(psycopg.Error) as refused:
        child.result()
    assert refused.value.sqlstate == "WFFIN"


def test_does_not_expire_a_parent_while_a_child_is_being_spawned(stage: Stage) -> None:
    parent = stage.held("parent", max_attempts=1, lease=1e-6)
    spawner = stage.session()
    child = spawner.spawn(parent_task_id=parent.task_id)
    assert stage.db.expire() == 0
    spawner.commit()
    assert stage.db.expire() == 1
    assert stage.db.state(child) == "cancelled"


def test_defers_the_cancellation_of_a_locked_child(stage: Stage) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    assert stage.db.state(child.task_id) == "running"
    other.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "cancelled"


def test_cancels_a_grandchild_that_was_being_spawned(stage: Stage) -> None:
    parent, child = stage.family()
    worker = stage.session()
    grandchild = worker.spawn_child(child)
    assert stage.db.fail(parent) == "ok"
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(grandchild) == "cancelled"


def a_cascade_under_way(stage: Stage) -> tuple[Session, Future[Any], Held, Session]:
    """Start maintenance, which waits after cancelling two children of a late task.

    Return it and its call, the second child, and the session that blocks it.
    """
    parent = stage.db.spawn("parent", start_timeout=0)
    first = stage.held("child", parent_task_id=parent)
    second = stage.held("child", parent_task_id=parent)
    stage.db.suspend(first, event())
    other = stage.lock("select 1 from durable.waits for update")
    house = stage.session()
    return house, house.waiting(house.expire_tasks), second, other


def test_refuses_a_grandchild_that_is_spawned_during_the_cascade(stage: Stage) -> None:
    house, expired, second, other = a_cascade_under_way(stage)
    worker = stage.session()
    grandchild = worker.waiting(worker.spawn_child, second)
    other.commit()
    assert expired.result() == 1
    house.commit()
    with pytest.raises(psycopg.Error) as refused:
        grandchild.result()
    assert refused.value.sqlstate == "WFCAN"
    assert stage.db.state(second.task_id) == "cancelled"


def test_refuses_the_completion_of_a_child_during_the_cascade(stage: Stage) -> None:
    house, expired, second, other = a_cascade_under_way(stage)
    worker = stage.session()
    outcome = worker.waiting(worker.complete, second)
    other.commit()
    assert expired.result() == 1
    house.commit()
    assert outcome.result() == "cancelled"


def test_cancels_a_grandchild_whose_parent_completes_before_it_is_unlocked(
    stage: Stage,
) -> None:
    """A locked task may have spawned and ended before its deferred work is applied."""
    parent, child = stage.family()
    worker = stage.session()
    grandchild = worker.spawn_child(child)
    assert stage.db.fail(parent) == "ok"
    assert worker.complete(child) == "ok"
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "completed"
    assert stage.db.state(grandchild) == "cancelled"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
@pytest.mark.parametrize("end", [Session.cancel, Session.fail])
def test_cancels_a_child_that_the_enders_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel, end: Callable[..., Any]
) -> None:
    parent = stage.held("parent", max_attempts=1)
    session = stage.session(isolation)
    child = stage.db.spawn(parent_task_id=parent.task_id)
    end(session, parent.task_id if end is Session.cancel else parent)
    session.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) in {"cancelled", "failed"}
    assert stage.db.state(child) == "cancelled"


def test_keeps_the_children_of_a_parent_revived_before_the_cascade(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    stage.db.fail(parent)
    other.commit()
    stage.db.retry(parent.task_id)
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "running"


def test_keeps_an_unseen_child_of_a_parent_revived_before_the_cascade(
    stage: Stage,
) -> None:
    parent = stage.held("parent", max_attempts=1)
    session = stage.session(IsolationLevel.REPEATABLE_READ)
    child = stage.db.spawn(parent_task_id=parent.task_id)
    session.fail(parent)
    session.commit()
    stage.db.retry(parent.task_id)
    stage.db.apply_deferred_work()
    assert stage.db.state(child) == "pending"
