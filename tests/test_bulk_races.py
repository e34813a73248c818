"""Bulk calls skip tasks that another session has locked, and report them.

Each test is one interleaving (tests/support/stage.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from tests.support.stage import QUEUE, Session, Stage

ALL: Final = {"all": True}


def sweep(
    session: Session, function: str, wanted: Mapping[str, Any] = ALL
) -> tuple[int, list[UUID]]:
    """Cancel, retry or delete many; return how many, and which were busy."""
    query = f"select tasks, busy from durable.{function}(%s, %s)"
    ((tasks, busy),) = session.rows(query, QUEUE, json.dumps(wanted))
    return tasks, busy


def once_more(busy: list[UUID]) -> dict[str, Any]:
    return {"task_ids": [str(task_id) for task_id in busy]}


def test_reports_tasks_it_could_not_cancel_as_busy(stage: Stage) -> None:
    over, at_it, free = stage.db.spawn(), stage.db.spawn(), stage.db.spawn()
    stage.db.cancel(over)
    holder = stage.lock_task(at_it)
    assert sweep(stage.db, "cancel_tasks") == (1, [at_it])
    assert [stage.db.state(task) for task in (at_it, free)] == ["pending", "cancelled"]
    holder.rollback()
    assert sweep(stage.db, "cancel_tasks", once_more([at_it])) == (1, [])
    assert stage.db.state(at_it) == "cancelled"


def test_defers_the_cancellation_of_locked_descendants(stage: Stage) -> None:
    """Only tasks that match are reported, to be requested again."""
    parent, child = stage.family()
    holder = stage.lock_task(child.task_id)
    assert sweep(stage.db, "cancel_tasks", {"name": "parent"}) == (1, [])
    holder.rollback()
    stage.db.apply_deferred_work()
    assert stage.db.state(parent.task_id) == "cancelled"
    assert stage.db.state(child.task_id) == "cancelled"


def test_reports_tasks_it_could_not_retry_as_busy(stage: Stage) -> None:
    at_it, alive, free = stage.db.spawn(), stage.db.spawn(), stage.db.spawn()
    for task in (at_it, free):
        stage.db.cancel(task)
    holder = stage.lock_task(at_it)
    assert sweep(stage.db, "retry_tasks") == (1, [at_it])
    assert stage.db.state(free) == "pending"
    holder.rollback()
    assert sweep(stage.db, "retry_tasks", once_more([at_it, alive])) == (1, [])
    assert stage.db.state(at_it) == "pending"


def test_reports_the_child_of_a_locked_parent_as_busy(stage: Stage) -> None:
    parent, child = stage.family()
    stage.db.cancel(child.task_id)
    holder = stage.lock_task(parent.task_id)
    busy = [child.task_id]
    assert sweep(stage.db, "retry_tasks", {"name": "child"}) == (0, busy)
    holder.rollback()
    assert sweep(stage.db, "retry_tasks", once_more(busy)) == (1, [])


def test_defers_the_revival_of_locked_descendants(stage: Stage) -> None:
    parent, child = stage.family()
    stage.db.cancel(parent.task_id)
    holder = stage.lock_task(child.task_id)
    assert sweep(stage.db, "retry_tasks", {"name": "parent"}) == (1, [])
    assert stage.db.state(parent.task_id) == "pending"
    holder.rollback()
    stage.db.apply_deferred_work()
    assert stage.db.state(child.task_id) == "pending"


def test_deletes_no_locked_task(stage: Stage) -> None:
    at_it, free = stage.db.spawn(), stage.db.spawn()
    sweep(stage.db, "cancel_tasks")
    holder = stage.lock_task(at_it)
    assert sweep(stage.db, "delete_tasks") == (1, [])
    assert stage.db.state(free) is None
    holder.rollback()
    assert sweep(stage.db, "delete_tasks") == (1, [])
