"""Claims race with each other and with calls that end them: one claim has the task.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.stage import QUEUE, Session, Stage, event


def test_gives_two_claims_different_tasks_without_waiting(stage: Stage) -> None:
    tasks = {stage.db.spawn() for _ in range(4)}
    a, b = stage.session(), stage.session()
    first = {held.task_id for held in a.claim(batch_size=2)}
    second = {held.task_id for held in b.claim(batch_size=4)}
    assert first | second == tasks
    assert not first & second


def test_tells_an_idle_worker_of_a_resumed_queue(stage: Stage) -> None:
    for name in (None, "work"):
        stage.db.value("select durable.pause_queue(%s, %s)", QUEUE, name)
        idle = stage.session()
        idle.connection.autocommit = True
        idle.connection.execute("listen durable_work")
        assert idle.value("select durable.register_listener(%s)", QUEUE) is True
        stage.db.spawn()
        stage.db.value("select durable.resume_queue(%s, %s)", QUEUE, name)
        told = list(idle.connection.notifies(timeout=10, stop_after=2))
        assert [notice.payload for notice in told] == [QUEUE, QUEUE]
        idle.rows("select durable.unregister_listener(%s)", QUEUE)


def test_completes_before_a_cancel_that_comes_second(stage: Stage) -> None:
    held = stage.held()
    worker, client = stage.session(), stage.session()
    assert worker.complete(held) == "ok"
    cancelled = client.waiting(client.cancel, held.task_id)
    worker.commit()
    assert cancelled.result() is False
    client.commit()
    assert stage.db.state(held.task_id) == "completed"


def test_refuses_a_completion_that_comes_after_a_cancel(stage: Stage) -> None:
    held = stage.held()
    client, worker = stage.session(), stage.session()
    assert client.cancel(held.task_id) is True
    outcome = worker.waiting(worker.complete, held)
    client.commit()
    assert outcome.result() == "cancelled"
    worker.commit()
    assert stage.db.state(held.task_id) == "cancelled"


def test_completes_after_a_cancel_that_was_rolled_back(stage: Stage) -> None:
    held = stage.held()
    client, worker = stage.session(), stage.session()
    client.cancel(held.task_id)
    outcome = worker.waiting(worker.complete, held)
    client.rollback()
    assert outcome.result() == "ok"


def test_recovers_leases_beside_maintenance_that_does_not_commit(stage: Stage) -> None:
    """Two maintenance calls at once handle different rows, and neither waits."""
    run_maintenance = "select (durable.run_maintenance('default')).leases"
    stage.held(lease=1e-6)
    slow = stage.session()
    assert slow.value(run_maintenance) == 1
    assert stage.db.value(run_maintenance) == 0
    held = stage.held("other", lease=1e-6)
    assert stage.db.value(run_maintenance) == 1
    assert stage.db.state(held.task_id) == "pending"
    slow.commit()


def test_does_not_expire_a_task_that_is_just_failing(stage: Stage) -> None:
    held = stage.held(lease=1e-6)
    worker, house = stage.session(), stage.session()
    assert worker.fail(held) == "ok"
    assert house.expire() == 0
    worker.commit()
    assert house.expire() == 0
    assert stage.db.rows("select outcome from durable.runs") == [("failed",)]


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_failure_after_the_lease_gets_lost(stage: Stage, attempts: int) -> None:
    held = stage.held(lease=1e-6, max_attempts=attempts)
    house, worker = stage.session(), stage.session()
    assert house.expire() == 1
    outcome = worker.waiting(worker.fail, held)
    house.commit()
    assert outcome.result() == "lost"


def test_does_not_expire_a_lease_that_is_just_extended(stage: Stage) -> None:
    held = stage.held(lease=1e-6)
    worker, house = stage.session(), stage.session()
    assert worker.extend(held) == "ok"
    assert house.expire() == 0
    worker.commit()
    assert house.expire() == 0
    assert stage.db.complete(held) == "ok"


def test_an_extension_of_an_expired_lease_gets_busy_and_then_lost(
    stage: Stage,
) -> None:
    held = stage.held(lease=1e-6)
    house, worker = stage.session(), stage.session()
    assert house.expire() == 1
    assert worker.extend(held) == "busy"
    house.commit()
    assert worker.extend(held) == "lost"


def test_no_takeover_until_a_checkpoint_has_committed(stage: Stage) -> None:
    held = stage.held(lease=1e-6)
    worker = stage.session()
    assert worker.save(held) == "ok"
    assert stage.db.expire() == 0
    assert stage.db.claim() == []
    worker.commit()
    assert stage.db.expire() == 1


def test_refuses_the_checkpoint_of_a_former_claim(stage: Stage) -> None:
    held = stage.held(lease=1e-6)
    house, zombie = stage.session(), stage.session()
    assert house.expire() == 1
    outcome = zombie.waiting(zombie.save, held)
    house.commit()
    assert outcome.result() == "lost"
    zombie.commit()
    assert stage.db.rows("select from durable.checkpoints") == []


def test_loads_what_the_same_claim_is_just_loading(stage: Stage) -> None:
    held = stage.held()
    stage.db.poll(held, event())
    stage.db.emit()
    first, again = stage.session(), stage.session()
    assert first.load(held) == [("$event:news", 7)]
    second = again.waiting(again.load, held)
    first.commit()
    assert second.result() == [("$event:news", 7)]


def test_saves_only_the_holders_part_of_a_flush_with_both_claims(stage: Stage) -> None:
    zombie = stage.held(lease=1e-6)
    stage.db.expire()
    (holder,) = stage.db.claim()
    for former, latter in [("a", "b"), ("d", "c")]:
        stage.db.rows(
            "select * from durable.flush(%s, %s, null, null)",
            QUEUE,
            json.dumps(
                [
                    zombie.json(name=f"zombie-{former}", value=1),
                    holder.json(name=f"holder-{latter}", value=1),
                ]
            ),
        )
    names = stage.db.rows("select name from durable.checkpoints order by name")
    assert names == [("holder-b",), ("holder-c",)]


def test_completes_for_the_holder_in_a_flush_with_both_claims(stage: Stage) -> None:
    zombie = stage.held(lease=1e-6)
    stage.db.expire()
    (holder,) = stage.db.claim()
    stage.db.complete(zombie, holder)
    assert stage.db.state(holder.task_id) == "completed"


# A call waits for its own rows in one pass, in ascending order.


@pytest.mark.parametrize("call", [Session.complete, Session.release])
def test_waits_for_its_tasks_in_ascending_order(
    stage: Stage, call: Callable[..., Any]
) -> None:
    first, second = stage.held(), stage.held()
    other, worker = stage.lock_task(first.task_id), stage.session()
    outcome = worker.waiting(call, worker, second, first)
    assert not stage.db.has_locked(second.task_id)
    other.commit()
    assert outcome.result() == ["ok", "ok"]


def test_cancels_a_tree_in_ascending_order(stage: Stage) -> None:
    parent = stage.held("parent")
    children = sorted(stage.db.spawn(parent_task_id=parent.task_id) for _ in range(3))
    other, client = stage.lock_task(children[1]), stage.session()
    cancelled = client.waiting(client.cancel, parent.task_id)
    assert stage.db.has_locked(parent.task_id)
    assert stage.db.has_locked(children[0])
    assert not stage.db.has_locked(children[2])
    other.commit()
    assert cancelled.result() is True


def test_waits_for_events_in_name_order_before_any_task(stage: Stage) -> None:
    held = stage.held()
    stage.db.poll(stage.held(), event("a"), event("b"))
    other = stage.lock("select 1 from durable.events where name = 'a' for update")
    worker = stage.session()
    outcome = worker.waiting(worker.suspend, held, event("b"), event("a"))
    assert not stage.db.has_locked(held.task_id)
    assert stage.db.rows(
        "select 1 from durable.events where name = 'b' for update nowait"
    )
    other.commit()
    assert outcome.result() == "suspended"


def test_waits_for_keys_in_key_order(stage: Stage) -> None:
    a, b = stage.session(), stage.session()
    a.spawn(idempotency_key="a")
    tasks = [{"task": "work", "options": {"idempotency_key": key}} for key in "ba"]
    many = b.waiting(
        b.rows,
        "select created from durable.spawn_many(%s, %s)",
        QUEUE,
        json.dumps(tasks),
    )
    assert stage.db.spawn(idempotency_key="b")
    a.commit()
    assert many.result() == [(False,), (False,)]
