"""A retry revives every task that the end of its target had cancelled.

Each test is one interleaving (tests/support/stage.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from psycopg import IsolationLevel

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Held, Session, Stage


def one(session: Session, parent: UUID) -> None:
    session.retry(parent)


def many(session: Session, parent: UUID) -> None:
    retry = 'select tasks from durable.retry_tasks(%s, \'{"name": "parent"}\')'
    assert session.value(retry, QUEUE) == 1


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
@pytest.mark.parametrize("retry", [one, many])
def test_revives_a_child_that_is_still_live_in_the_snapshot(
    stage: Stage,
    isolation: IsolationLevel,
    retry: Callable[[Session, UUID], None],
) -> None:
    """It was locked when its parent failed, so deferred work cancelled it later."""
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    other.commit()
    client = stage.session(isolation)
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "cancelled"
    retry(client, parent.task_id)
    client.commit()
    assert stage.db.state(parent.task_id) == "pending"
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_revives_nothing_below_a_task_that_has_ended_again(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    assert stage.db.fail(parent) == "ok"
    client = stage.session(isolation)
    client.retry(parent.task_id)
    client.commit()
    assert stage.db.cancel(parent.task_id) is True
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "cancelled"


# -- below a task that stays ended -----------------------------------------------------


def deadlines(session: Session, tasks: list[Held]) -> None:
    for task in tasks:
        change = "update durable.tasks set expires_at = 'epoch' where task_id = %s"
        session.connection.execute(change, [task.task_id])
    session.expire_tasks()


def leases(session: Session, tasks: list[Held]) -> None:
    for task in tasks:
        change = (
            "update durable.tasks set lease_expires_at = 'epoch' where task_id = %s"
        )
        session.connection.execute(change, [task.task_id])
    session.expire()


def failures(session: Session, tasks: list[Held]) -> None:
    error = {"type": "ValueError", "message": "no"}
    own = json.dumps([task.json(error=error) for task in tasks])
    session.rows("select durable.fail_tasks(%s, %s)", QUEUE, own)


def cancellations(session: Session, tasks: list[Held]) -> None:
    wanted = json.dumps({"task_ids": [str(task.task_id) for task in tasks]})
    session.rows("select durable.cancel_tasks(%s, %s)", QUEUE, wanted)


@pytest.mark.parametrize("isolation", [None, *OLD_SNAPSHOTS])
@pytest.mark.parametrize("end", [deadlines, leases, failures, cancellations])
@pytest.mark.parametrize("retry", [one, many])
def test_revives_nothing_below_a_child_that_ended_in_the_same_call(
    stage: Stage,
    isolation: IsolationLevel | None,
    end: Callable[[Session, list[Held]], None],
    retry: Callable[[Session, UUID], None],
) -> None:
    parent, child, grandchild = three_generations(stage)
    session = stage.session(isolation)
    end(session, [parent, child])
    session.commit()
    stage.db.apply_deferred_work()
    assert states(stage, parent, child, grandchild)[2] == "cancelled"
    retry(stage.db, parent.task_id)
    assert states(stage, parent, grandchild) == ["pending", "cancelled"]
    stage.db.retry(child.task_id)
    assert states(stage, child, grandchild) == ["pending", "pending"]


@pytest.mark.parametrize("end", [deadlines, leases, failures, cancellations])
def test_revives_the_descendants_of_a_child_whose_parent_had_ended_too(
    stage: Stage, end: Callable[[Session, list[Held]], None]
) -> None:
    parent, child, grandchild = three_generations(stage)
    end(stage.db, [parent, child])
    stage.db.retry(child.task_id)
    assert states(stage, parent)[0] in {"failed", "cancelled"}
    assert states(stage, child, grandchild) == ["pending", "pending"]


def test_revives_nothing_below_a_child_that_had_failed_before(stage: Stage) -> None:
    parent, child, grandchild = three_generations(stage)
    holder = stage.lock_task(grandchild.task_id)
    assert stage.db.fail(child) == "ok"
    holder.commit()
    stage.db.cancel(parent.task_id)
    stage.db.apply_deferred_work()
    stage.db.retry(parent.task_id)
    assert states(stage, child, grandchild) == ["failed", "cancelled"]
    stage.db.retry(child.task_id)
    assert states(stage, child, grandchild) == ["pending", "pending"]


def test_revives_nothing_below_a_child_that_was_retried_and_failed(
    stage: Stage,
) -> None:
    parent, child, grandchild = three_generations(stage)
    stage.db.cancel(parent.task_id)
    stage.db.retry(child.task_id)
    (again,) = stage.db.claim("child")
    assert stage.db.fail(again, retryable=False) == "ok"
    stage.db.retry(parent.task_id)
    assert states(stage, child, grandchild) == ["failed", "cancelled"]
    stage.db.retry(child.task_id)
    assert states(stage, child, grandchild) == ["pending", "pending"]


def test_revives_nothing_below_a_child_that_is_being_cancelled(stage: Stage) -> None:
    parent, child, grandchild = three_generations(stage)
    stage.db.cancel(parent.task_id)
    stage.db.retry(child.task_id)
    canceller = stage.session()
    canceller.cancel(child.task_id)
    stage.db.retry(parent.task_id)
    canceller.commit()
    stage.db.apply_deferred_work()
    assert states(stage, parent, child) == ["pending", "cancelled"]
    assert stage.db.state(grandchild.task_id) == "cancelled"
    stage.db.retry(child.task_id)
    assert states(stage, child, grandchild) == ["pending", "pending"]


def three_generations(stage: Stage) -> tuple[Held, Held, Held]:
    parent = stage.held("parent", max_attempts=1)
    child = stage.held("child", max_attempts=1, parent_task_id=parent.task_id)
    grandchild = stage.held("grandchild", parent_task_id=child.task_id)
    return parent, child, grandchild


def states(stage: Stage, *tasks: Held) -> list[str]:
    return [stage.db.state(task.task_id) for task in tasks]
