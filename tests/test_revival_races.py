"""What is tried again comes back with all that its end took along, whoever ended that.

Each test is one interleaving, as in test_races.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.test_races import OLD_SNAPSHOTS, QUEUE, Session, Stage


@pytest.fixture
def stage(connect: Callable[[], psycopg.Connection]) -> Iterator[Stage]:
    stage = Stage(connect)
    yield stage
    for session in stage.sessions:
        session.end()


def retry_many(session: Session) -> int:
    retry = 'select tasks from durable.retry_tasks(%s, \'{"name": "parent"}\')'
    tried: int = session.value(retry, QUEUE)
    return tried


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
@pytest.mark.parametrize("many", [False, True])
def test_revives_a_child_that_a_snapshot_shows_alive(
    stage: Stage, isolation: IsolationLevel, *, many: bool
) -> None:
    """It was locked when its parent failed, so a note has ended it, later."""
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    other.commit()
    client = stage.session(isolation)
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "cancelled"
    assert retry_many(client) == 1 if many else client.retry(parent.task_id)
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
