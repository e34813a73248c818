"""Two callers race for one idempotency key: it leads to one task.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import pytest
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure

from tests.support.stage import OLD_SNAPSHOTS, Stage, forget_at_once


def test_gives_two_spawns_with_one_key_the_same_task(stage: Stage) -> None:
    a, b = stage.session(), stage.session()
    first = a.spawn(idempotency_key="k")
    second = b.waiting(b.spawn, idempotency_key="k")
    a.commit()
    assert second.result() == first


def test_gives_a_key_to_the_second_spawn_when_the_first_rolls_back(
    stage: Stage,
) -> None:
    a, b = stage.session(), stage.session()
    first = a.spawn(idempotency_key="k")
    second = b.waiting(b.spawn, idempotency_key="k")
    a.rollback()
    assert second.result() != first
    b.commit()
    assert stage.db.value("select count(*) from durable.tasks") == 1


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_does_not_take_a_key_in_a_snapshot_from_before_its_task(
    stage: Stage, isolation: IsolationLevel
) -> None:
    session = stage.session(isolation)
    stage.db.spawn(idempotency_key="k")
    with pytest.raises(SerializationFailure):
        session.spawn(idempotency_key="k")


def test_does_not_delete_a_task_whose_key_was_just_returned(stage: Stage) -> None:
    task_id = stage.db.spawn(idempotency_key="k")
    stage.db.cancel(task_id)
    forget_at_once(stage)
    client = stage.session()
    assert client.spawn(idempotency_key="k") == task_id
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 1


def test_reuses_the_key_of_a_task_that_is_being_deleted(
    stage: Stage,
) -> None:
    task_id = stage.db.spawn(idempotency_key="k")
    stage.db.cancel(task_id)
    forget_at_once(stage)
    house, client = stage.session(), stage.session()
    assert house.cleanup() == 1
    second = client.waiting(client.spawn, idempotency_key="k")
    house.commit()
    assert second.result() != task_id
