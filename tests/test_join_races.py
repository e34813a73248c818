"""A parent races with a child it waits for: no wake-up is lost.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import pytest
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure

from tests.support.stage import OLD_SNAPSHOTS, Stage, event, join


def test_wakes_a_parent_that_was_suspending_when_the_child_finished(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    falling, worker = stage.session(), stage.session()
    assert falling.suspend(parent, join(child.task_id)) == "suspended"
    outcome = worker.waiting(worker.complete, child)
    falling.commit()
    assert outcome.result() == "ok"
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_a_parent_that_joined_while_the_child_was_finishing(stage: Stage) -> None:
    parent, child = stage.family()
    worker, falling = stage.session(), stage.session()
    assert worker.complete(child) == "ok"
    assert falling.suspend(parent, join(child.task_id)) == "suspended"
    falling.commit()
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_a_parent_that_joins_again_while_the_child_is_finishing(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    stage.db.suspend(parent, join(child.task_id), event())
    stage.db.emit()
    (parent,) = stage.db.claim("parent")
    worker = stage.session()
    assert worker.complete(child) == "ok"
    assert stage.db.suspend(parent, join(child.task_id)) == "suspended"
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_a_parent_that_suspends_again_while_the_first_child_finishes(
    stage: Stage,
) -> None:
    """It has watched the child since an earlier sleep: awake, it was skipped."""
    parent, child = stage.family()
    first = {**join(child.task_id), "any_of": True}
    stage.db.suspend(parent, first, event())
    stage.db.emit()
    (parent,) = stage.db.claim("parent")
    stage.db.load(parent)  # the event is a checkpoint, and wakes no task again
    worker = stage.session()
    assert worker.complete(child) == "ok"
    assert stage.db.suspend(parent, first) == "suspended"
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_the_parent_of_a_retried_child(stage: Stage) -> None:
    parent = stage.held("parent")
    first = stage.held("child", parent_task_id=parent.task_id)
    last = stage.held("child", parent_task_id=parent.task_id)
    both = join(first.task_id, last.task_id)
    assert stage.db.suspend(parent, both) == "suspended"
    stage.db.fail(last, retryable=False)
    stage.db.retry(last.task_id)
    stage.db.complete(first)
    for again in stage.db.claim("parent"):
        stage.db.suspend(again, both)
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "sleeping"
    (last,) = stage.db.claim("child")
    stage.db.complete(last)
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_defers_the_wake_up_of_a_locked_parent(stage: Stage) -> None:
    parent, child = stage.family()
    stage.db.suspend(parent, join(child.task_id))
    other = stage.lock_task(parent.task_id)
    assert stage.db.complete(child) == "ok"
    other.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_a_parent_once_all_its_children_have_finished(stage: Stage) -> None:
    parent = stage.held("parent")
    children = [stage.held("child", parent_task_id=parent.task_id) for _ in range(4)]
    stage.db.suspend(parent, join(*(child.task_id for child in children)))
    others = [stage.session() for _ in children]
    for other, child in zip(others, children, strict=True):
        assert other.complete(child) == "ok"
    for other in others:
        assert stage.db.state(parent.task_id) == "sleeping"
        other.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


def test_watches_past_locked_children(stage: Stage) -> None:
    parent = stage.held("parent")
    children = [stage.held("child", parent_task_id=parent.task_id) for _ in range(3)]
    stage.db.suspend(parent, join(*(child.task_id for child in children)))
    other = stage.lock_task(children[1].task_id)
    assert stage.db.complete(children[2]) == "ok"
    other.commit()
    assert stage.db.complete(children[0]) == "ok"
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "sleeping"
    assert stage.db.complete(children[1]) == "ok"
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_wakes_a_parent_that_the_childs_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    worker = stage.session(isolation)
    stage.db.suspend(parent, join(child.task_id))
    assert worker.complete(child) == "ok"
    worker.commit()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_refuses_a_join_in_a_snapshot_from_before_the_childs_end(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    worker = stage.session(isolation)
    stage.db.complete(child)
    with pytest.raises(SerializationFailure):
        worker.suspend(parent, join(child.task_id))


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_refuses_a_repeated_join_in_a_snapshot_from_before_the_childs_end(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    stage.db.poll(parent, join(child.task_id))
    worker = stage.session(isolation)
    stage.db.complete(child)
    with pytest.raises(SerializationFailure):
        worker.suspend(parent, join(child.task_id))
