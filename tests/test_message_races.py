"""A sender and a receiver race: no message is lost or doubled.

Each test is one interleaving. Most pairs are played in both orders.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Held, Session, Stage, event

SEND = "select durable.send_message(%s, %s, 't', %s::text::jsonb, %s)"
SEND_FROM = "select durable.send_from_task(%s, %s, %s, '$send:t', %s, %s, 't', '8', %s)"
RECEIVED = """
select value from durable.checkpoints where starts_with(name, '$recv') order by name
"""
SENT = "select coalesce(sum(sent), 0)::integer from durable.mailboxes"


def send(
    session: Session, task_id: UUID, payload: str = "7", key: str | None = None
) -> Any:
    return session.value(SEND, QUEUE, task_id, payload, key)


def send_from(session: Session, held: Held, to: UUID, key: str | None = None) -> Any:
    return session.value(SEND_FROM, QUEUE, *held, QUEUE, to, key)


def message(name: str = "", **more: Any) -> dict[str, Any]:
    return {"name": f"$recv:{name}t", "topic": "t", **more}


def test_receives_a_message_whose_sender_is_about_to_commit(stage: Stage) -> None:
    held = stage.held()
    client, worker = stage.session(), stage.session()
    assert send(client, held.task_id) is True
    outcome = worker.waiting(worker.suspend, held, message())
    client.commit()
    assert outcome.result() == "resolved"
    worker.commit()
    assert stage.db.state(held.task_id) == "running"
    assert stage.db.rows(RECEIVED) == [(7,)]


@pytest.mark.parametrize("before", [1, 0])
def test_wakes_a_receiver_that_is_suspending(stage: Stage, before: int) -> None:
    """Whether there was a message before, or there is no mailbox yet."""
    held = stage.held()
    if before:
        send(stage.db, held.task_id)
        assert stage.db.poll(held, message("a")) == "resolved"
    client, worker = stage.session(), stage.session()
    assert worker.suspend(held, message("b")) == "suspended"
    sent = client.waiting(send, client, held.task_id)
    worker.commit()
    assert sent.result() is True
    client.commit()
    assert stage.db.state(held.task_id) == "pending"


def test_puts_back_a_message_while_another_is_being_sent(stage: Stage) -> None:
    """Including what it has read before that message exists."""
    held, given_up = stage.held(), message("a")
    send(stage.db, held.task_id, "1")
    assert stage.db.poll(held, given_up) == "resolved"
    client, worker = stage.session(), stage.session()
    send(client, held.task_id, "2")
    client.connection.execute("lock table durable.mailboxes in access exclusive mode")
    asked = held.json(waits=[event()], withdrawn=[given_up])
    outcome = worker.waiting(worker._outcome, "poll_waits", asked)
    client.commit()
    assert outcome.result() == "waiting"
    worker.commit()
    both = [message(name, position=n) for n, name in enumerate("bc")]
    stage.db._outcome("poll_waits", held.json(waits=both))
    assert stage.db.rows(RECEIVED) == [(1,), (2,)]


def test_receives_in_the_order_in_which_senders_commit(stage: Stage) -> None:
    held = stage.held()
    first, second = stage.session(), stage.session()
    send(first, held.task_id, "1")
    sent = second.waiting(send, second, held.task_id, "2")
    send(first, held.task_id, "3")
    first.commit()
    sent.result()
    second.commit()
    both = [message(name, position=n) for n, name in enumerate("abc")]
    assert stage.db._outcome("suspend_tasks", held.json(waits=both)) == "resolved"
    assert stage.db.rows(RECEIVED) == [(1,), (3,), (2,)]


def test_sends_when_the_sender_with_the_same_key_rolled_back(
    stage: Stage,
) -> None:
    held = stage.held()
    first, second = stage.session(), stage.session()
    assert send(first, held.task_id, "1", "k") is True
    sent = second.waiting(send, second, held.task_id, "2", "k")
    first.rollback()
    assert sent.result() is True
    second.commit()
    assert send(stage.db, held.task_id, "3", "k") is False
    assert stage.db.rows("select number, payload from durable.messages") == [(1, 2)]
    assert stage.db.value(SENT) == 1


def test_blocks_only_senders_and_receivers_of_the_topic(stage: Stage) -> None:
    """An application's transaction may be long: the task's worker continues."""
    held, idle = stage.held(), stage.db.spawn("idle")
    other, own = message(), {"name": "$other", "topic": "other", "seconds": 0}
    client = stage.session()
    for task_id in (held.task_id, idle):
        send(client, task_id)
    assert [held.task_id for held in stage.db.claim("idle")] == [idle]
    assert stage.db.extend(held) == stage.db.save(held) == "ok"
    assert stage.db.poll(held, own) == "resolved"
    with pytest.raises(psycopg.errors.LockNotAvailable):
        stage.db.poll(held, other)
    assert stage.db.complete(held) == "ok"
    client.commit()


def test_receives_once_on_two_connections_of_one_claim(stage: Stage) -> None:
    held = stage.held()
    both = [message(name, position=n) for n, name in enumerate("ab")]
    assert stage.db.poll(held, *both) == "waiting"
    for payload in "123":
        send(stage.db, held.task_id, payload)
    first, again = stage.session(), stage.session()
    found = first.load(held)
    second = again.waiting(again.load, held)
    first.commit()
    assert second.result() == found == [("$recv:at", 1), ("$recv:bt", 2)]
    again.commit()
    assert stage.db.rows("select payload from durable.messages") == [(3,)]


def test_a_lost_connection_with_older_data_receives_no_second_message(
    stage: Stage,
) -> None:
    """A wait that began earlier takes the message; a late call takes no more."""
    held = stage.held()
    assert stage.db.poll(held, message("b/", position=2)) == "waiting"
    send(stage.db, held.task_id, "1")
    late = stage.lock_task(held.task_id)
    lost = stage.session()
    loaded = lost.waiting(lost.load, held)  # it has seen one wait, and one message
    stage.db.rows(
        "insert into durable.waits (queue, task_id, name, position, after, topic)"
        " values (%s, %s, '$recv:a/t', 1, 0, 't') returning 1",
        QUEUE,
        held.task_id,
    )
    late.commit()
    assert loaded.result() == [("$recv:a/t", 1)]
    lost.commit()
    assert stage.db.rows("select name from durable.waits") == [("$recv:b/t",)]


@pytest.mark.parametrize("key", [None, "k"])
def test_sends_once_on_two_connections_of_one_claim(
    stage: Stage, key: str | None
) -> None:
    held, to = stage.held(), stage.db.spawn("to")
    first, again = stage.session(), stage.session()
    assert send_from(first, held, to, key) is True
    second = again.waiting(send_from, again, held, to, key)
    first.commit()
    assert second.result() is True
    again.commit()
    assert stage.db.rows("select number from durable.messages") == [(1,)]
    assert stage.db.value(SENT) == 1


def test_keeps_a_message_that_came_too_late_for_the_next_wait(stage: Stage) -> None:
    held = stage.held()
    assert stage.db.poll(held, message("a", seconds=1e-6)) == "waiting"
    client = stage.session()
    send(client, held.task_id)
    assert stage.db.load(held) == [("$recv:at", None)]
    client.commit()
    assert stage.db.poll(held, message("b")) == "resolved"
    assert stage.db.rows(RECEIVED) == [(None,), (7,)]


@pytest.mark.parametrize("level", OLD_SNAPSHOTS)
def test_wakes_a_receiver_that_an_old_snapshot_does_not_show(
    stage: Stage, level: IsolationLevel
) -> None:
    held = stage.held()
    send(stage.db, held.task_id, "1")
    stage.db.suspend(held, message("a"))
    client = stage.session(level)
    assert stage.db.suspend(held, message("b")) == "suspended"
    assert send(client, held.task_id, "2") is True
    client.commit()
    assert stage.db.state(held.task_id) == "sleeping"
    stage.db.apply_deferred_work()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("level", OLD_SNAPSHOTS)
def test_refuses_a_sequence_number_that_an_old_snapshot_would_repeat(
    stage: Stage, level: IsolationLevel
) -> None:
    task_id = stage.db.spawn()
    send(stage.db, task_id, "1")
    client = stage.session(level)
    send(stage.db, task_id, "2")
    with pytest.raises(SerializationFailure):
        send(client, task_id, "3")


def test_does_not_delete_a_task_while_a_message_is_being_sent_to_it(
    stage: Stage,
) -> None:
    stage.db.rows("select durable.create_queue(%s, '{\"keep_tasks\": 0}')", QUEUE)
    task_id = stage.db.spawn()
    client = stage.session()
    send(client, task_id)
    assert stage.db.cancel(task_id) is True
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 1
    assert stage.db.rows("select from durable.messages") == []
    assert stage.db.rows("select from durable.mailboxes") == []


def test_leaves_no_mailbox_of_a_task_that_is_being_deleted(stage: Stage) -> None:
    stage.db.rows("select durable.create_queue(%s, '{\"keep_tasks\": 0}')", QUEUE)
    held = stage.held()
    assert stage.db.cancel(held.task_id) is True
    house, worker = stage.session(), stage.session()
    assert house.cleanup() == 1
    outcome = worker.waiting(worker.suspend, held, message())
    house.commit()
    assert outcome.result() == "lost"
    worker.commit()
    assert stage.db.rows("select from durable.mailboxes") == []
