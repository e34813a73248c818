"""What is tried again comes back with all that its end took along, whoever ended that.

Each test is one interleaving (tests/support/stage.py).
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from psycopg import IsolationLevel

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Session, Stage


def one(session: Session, parent: UUID) -> None:
    session.retry(parent)


def many(session: Session, parent: UUID) -> None:
    retry = 'select tasks from durable.retry_tasks(%s, \'{"name": "parent"}\')'
    assert session.value(retry, QUEUE) == 1


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
@pytest.mark.parametrize("retry", [one, many])
def test_revives_a_child_that_a_snapshot_shows_alive(
    stage: Stage,
    isolation: IsolationLevel,
    retry: Callable[[Session, UUID], None],
) -> None:
    """It was locked when its parent failed, so a note has ended it, later."""
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    other.commit()
    client = stage.session(isolation)
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "cancelled"
    retry(client, parent.task_id)
    client.commit()
    assert stage.db.state(parent.task_id) == "pending"
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_revives_nothing_below_what_has_ended_again(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    assert stage.db.fail(parent) == "ok"
    client = stage.session(isolation)
    client.retry(parent.task_id)
    client.commit()
    assert stage.db.cancel(parent.task_id) is True
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "cancelled"
