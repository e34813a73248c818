"""Two sessions meet on the same rows: whoever comes second, nothing is lost or doubled.

Each test is one interleaving. Sessions hold their transactions open where it matters;
a call that has to wait runs in a thread, and the script goes on once Postgres says
that it waits. Most pairs are played in both orders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import LockNotAvailable, SerializationFailure

from tests.support.wait import eventually

QUEUE = "default"
OLD_SNAPSHOTS = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]

WAITS_FOR_A_LOCK = """
select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'
"""


class Held(NamedTuple):
    """A task and the claim on it."""

    task_id: UUID
    claim: int

    def json(self, **more: Any) -> dict[str, Any]:
        return {"task_id": str(self.task_id), "claim": self.claim, **more}


class Session:
    """A connection with an open transaction, and a thread to wait in."""

    def __init__(
        self, connection: psycopg.Connection, watch: psycopg.Connection
    ) -> None:
        self.connection = connection
        self._watch = watch
        self._thread = ThreadPoolExecutor(1)

    def rows(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, args).fetchall()

    def value(self, query: str, *args: Any) -> Any:
        rows = self.rows(query, *args)
        return rows[0][0] if rows else None

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def end(self) -> None:
        self.connection.cancel()
        self._thread.shutdown()
        self.connection.close()

    # What a client does.

    def spawn(self, name: str = "work", **options: Any) -> UUID:
        text = json.dumps(options, default=str)
        task_id: UUID = self.value(
            "select task_id from durable.spawn(%s, %s, '{}', %s)", QUEUE, name, text
        )
        return task_id

    def emit(self, event: str = "news") -> Any:
        return self.value("select durable.emit_event(%s, %s, '7')", QUEUE, event)

    def cancel(self, task_id: UUID) -> Any:
        return self.value("select durable.cancel_task(%s, %s)", QUEUE, task_id)

    def retry(self, task_id: UUID) -> Any:
        return self.value(
            "select task_id from durable.retry_task(%s, %s)", QUEUE, task_id
        )

    # What a worker does.

    def claim(
        self, name: str | None = None, quantity: int = 100, lease: float = 60
    ) -> list[Held]:
        names = None if name is None else [name]
        rows = self.rows(
            "select task_id, claim from durable.claim_tasks(%s, 'w', %s, %s, %s)",
            QUEUE,
            names,
            quantity,
            lease,
        )
        return [Held(*row) for row in rows]

    def _outcome(self, function: str, *helds: dict[str, Any]) -> Any:
        rows = self.rows(
            f"select outcome from durable.{function}(%s, %s)", QUEUE, json.dumps(helds)
        )
        outcomes = [outcome for (outcome,) in rows]
        return outcomes[0] if len(helds) == 1 else outcomes

    def complete(self, *helds: Held) -> Any:
        return self._outcome("complete_tasks", *(held.json() for held in helds))

    def fail(self, held: Held, *, retryable: bool = True) -> Any:
        error = {"type": "ValueError", "message": "no"}
        return self._outcome("fail_tasks", held.json(error=error, retryable=retryable))

    def save(self, held: Held, name: str = "step") -> Any:
        return self._outcome("save_checkpoints", held.json(name=name, value=1))

    def load(self, held: Held) -> Any:
        load = "select name, value from durable.load_checkpoints(%s, %s)"
        return self.rows(load, QUEUE, json.dumps([held.json()]))

    def extend(self, held: Held) -> Any:
        return self._outcome("extend_leases", held.json())

    def release(self, *helds: Held) -> Any:
        return self._outcome("release_tasks", *(held.json() for held in helds))

    def suspend(self, held: Held, *waits: dict[str, Any]) -> Any:
        return self._outcome("suspend_tasks", held.json(waits=waits))

    def poll(self, held: Held, *waits: dict[str, Any]) -> Any:
        return self._outcome("poll_waits", held.json(waits=waits))

    def spawn_child(self, held: Held, name: str = "child") -> UUID:
        children = json.dumps([{"name": f"${name}", "task": name}])
        spawn = "select task_id from durable.spawn_children(%s, %s, %s, %s)"
        task_id: UUID = self.value(spawn, QUEUE, *held, children)
        return task_id

    # What housekeeping does.

    def expire(self) -> Any:
        return self.value("select durable.expire_leases(%s)", QUEUE)

    def expire_deadlines(self) -> Any:
        return self.value("select durable.expire_deadlines(%s)", QUEUE)

    def cleanup(self) -> Any:
        return self.value("select durable.cleanup(%s)", QUEUE)

    def prune(self) -> Any:
        return self.value("select durable.prune_events(%s)", QUEUE)

    def drop_queue(self) -> Any:
        return self.value("select durable.drop_queue(%s)", QUEUE)

    # What a test asks.

    def state(self, task_id: UUID) -> Any:
        return self.value(
            "select state from durable.task_list where task_id = %s", task_id
        )

    def notes(self) -> Any:
        return self.value("select count(*) from durable.notes")

    def apply_notes(self) -> None:
        while self.notes():
            assert self.value("select durable.apply_notes(%s)", QUEUE) > 0

    def has_locked(self, task_id: UUID) -> bool:
        """Whether somebody else holds the task's row."""
        return not self.rows(
            "select from durable.tasks where task_id = %s for update skip locked",
            task_id,
        )

    # Waiting.

    def start(self, call: Callable[..., Any], *args: Any, **more: Any) -> Future[Any]:
        """Make a call in the thread, as long as it says `busy`."""

        def patiently() -> Any:
            while True:
                try:
                    return call(*args, **more)
                except LockNotAvailable:
                    self.rollback()

        return self._thread.submit(patiently)

    def waiting(self, call: Callable[..., Any], *args: Any, **more: Any) -> Future[Any]:
        """Make a call that has to wait for another session, and see it wait."""
        future = self.start(call, *args, **more)
        pid = self.connection.info.backend_pid

        def waits() -> bool:
            assert not future.done(), f"did not wait, but returned {future.result()!r}"
            return bool(self._watch.execute(WAITS_FOR_A_LOCK, [pid]).fetchall())

        eventually(waits, what="waiting for a lock")
        return future


class Stage:
    """Where sessions meet. `db` commits each call at once."""

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self._connect = connect
        self._watch = connect()
        self.sessions: list[Session] = []
        self.db = self._session(connect())

    def _session(self, connection: psycopg.Connection) -> Session:
        connection.execute("set lock_timeout = '5s'")  # whoever should not wait, fails
        connection.commit()
        self.sessions.append(session := Session(connection, self._watch))
        return session

    def session(self, isolation: IsolationLevel | None = None) -> Session:
        """Return a session in a transaction; given a level, with its snapshot."""
        connection = self._connect()
        connection.autocommit = False
        connection.isolation_level = isolation
        session = self._session(connection)
        if isolation is not None:
            session.rows("select from durable.queues")
        return session

    def held(self, name: str = "work", lease: float = 60, **options: Any) -> Held:
        """Return a running task."""
        task_id = self.db.spawn(name, **options)
        (held,) = self.db.claim(name, lease=lease)
        assert held.task_id == task_id
        return held

    def lock(self, statement: str, *args: Any) -> Session:
        """Return a session that holds the rows of a statement."""
        session = self.session()
        assert session.rows(statement, *args)
        return session

    def lock_task(self, task_id: UUID) -> Session:
        return self.lock(
            "select 1 from durable.tasks where task_id = %s for update", task_id
        )

    def family(self) -> tuple[Held, Held]:
        """Return a running parent and its running child."""
        parent = self.held("parent", max_attempts=1)
        child = self.held("child", parent_task_id=parent.task_id)
        return parent, child


@pytest.fixture
def stage(connect: Callable[[], psycopg.Connection]) -> Iterator[Stage]:
    stage = Stage(connect)
    yield stage
    for session in stage.sessions:
        session.end()


JOIN = "$join"


def join(*task_ids: UUID) -> dict[str, Any]:
    return {"name": JOIN, "task_ids": [str(task_id) for task_id in task_ids]}


def event(name: str = "news", **more: Any) -> dict[str, Any]:
    return {"name": f"$event:{name}", "event": name, **more}


# A claim against another claim, and against whatever ends it.


def test_gives_two_claims_different_tasks_without_waiting(stage: Stage) -> None:
    tasks = {stage.db.spawn() for _ in range(4)}
    a, b = stage.session(), stage.session()
    first = {held.task_id for held in a.claim(quantity=2)}
    second = {held.task_id for held in b.claim(quantity=4)}
    assert first | second == tasks
    assert not first & second


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


def test_does_not_expire_a_task_that_is_just_failing(stage: Stage) -> None:
    held = stage.held(lease=1e-6)
    worker, house = stage.session(), stage.session()
    assert worker.fail(held) == "ok"
    assert house.expire() == 0
    worker.commit()
    assert house.expire() == 0
    assert stage.db.rows("select outcome from durable.runs") == [("failed",)]


@pytest.mark.parametrize("attempts", [1, 2])
def test_says_lost_to_a_failure_that_comes_after_the_lease(
    stage: Stage, attempts: int
) -> None:
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


def test_says_busy_and_then_lost_to_an_extension_of_an_expired_lease(
    stage: Stage,
) -> None:
    held = stage.held(lease=1e-6)
    house, worker = stage.session(), stage.session()
    assert house.expire() == 1
    assert worker.extend(held) == "busy"
    house.commit()
    assert worker.extend(held) == "lost"


def test_keeps_a_takeover_off_until_a_checkpoint_has_committed(stage: Stage) -> None:
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


# Own rows are waited for in one pass, ascending.


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


# Events.


def test_wakes_a_task_that_was_falling_asleep_when_the_event_came(stage: Stage) -> None:
    held = stage.held()
    worker, emitter = stage.session(), stage.session()
    assert worker.suspend(held, event()) == "suspended"
    emitted = emitter.waiting(emitter.emit)
    worker.commit()
    assert emitted.result() is True
    emitter.commit()
    assert stage.db.state(held.task_id) == "pending"


def test_wakes_the_second_task_that_was_falling_asleep_too(stage: Stage) -> None:
    first, second = stage.held(), stage.held()
    stage.db.suspend(first, event())
    worker, emitter = stage.session(), stage.session()
    assert worker.suspend(second, event()) == "suspended"
    emitted = emitter.waiting(emitter.emit)
    worker.commit()
    assert emitted.result() is True
    emitter.commit()
    assert stage.db.state(first.task_id) == "pending"
    assert stage.db.state(second.task_id) == "pending"


def test_does_not_suspend_for_an_event_that_was_just_being_emitted(
    stage: Stage,
) -> None:
    held = stage.held()
    emitter, worker = stage.session(), stage.session()
    assert emitter.emit() is True
    outcome = worker.waiting(worker.suspend, held, event())
    emitter.commit()
    assert outcome.result() == "resolved"


def test_suspends_when_the_emitter_rolls_back(stage: Stage) -> None:
    held = stage.held()
    emitter, worker = stage.session(), stage.session()
    emitter.emit()
    outcome = worker.waiting(worker.suspend, held, event())
    emitter.rollback()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.emit() is True
    assert stage.db.state(held.task_id) == "pending"


def test_lets_the_first_of_two_emitters_win(stage: Stage) -> None:
    a, b = stage.session(), stage.session()
    assert a.emit() is True
    second = b.waiting(b.emit)
    a.commit()
    assert second.result() is False


def test_wakes_later_whom_an_emitter_finds_in_other_hands(stage: Stage) -> None:
    held = stage.held()
    stage.db.suspend(held, event())
    other = stage.lock_task(held.task_id)
    assert stage.db.emit() is True
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(held.task_id) == "pending"


def test_keeps_a_note_whose_task_is_still_in_other_hands(stage: Stage) -> None:
    held = stage.held()
    stage.db.suspend(held, event())
    other = stage.lock_task(held.task_id)
    stage.db.emit()
    stage.db.rows("select durable.apply_notes(%s)", QUEUE)
    assert stage.db.notes() == 1
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_wakes_whom_the_emitters_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.suspend(stage.held(), event())
    held = stage.held()
    emitter = stage.session(isolation)
    stage.db.suspend(held, event())
    assert emitter.emit() is True
    emitter.commit()
    stage.db.apply_notes()
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_does_not_suspend_by_a_snapshot_from_before_the_event(
    stage: Stage, isolation: IsolationLevel
) -> None:
    held = stage.held()
    stage.db.suspend(stage.held(), event())
    worker = stage.session(isolation)
    stage.db.emit()
    with pytest.raises(SerializationFailure):
        worker.suspend(held, event())


def test_wakes_ten_thousand_waiters_bit_by_bit(stage: Stage) -> None:
    stage.db.rows(
        "select durable.poll_waits(%s, %s)",
        QUEUE,
        json.dumps([stage.held().json(waits=[event()])]),
    )
    stage.db.rows(MANY_WAITERS)
    assert stage.db.emit() is True
    woken = (
        "select count(*) from durable.tasks where name = 'many' and state = 'pending'"
    )
    assert 0 < stage.db.value(woken) <= 100
    stage.db.apply_notes()
    assert stage.db.value(woken) == 10_000


MANY_WAITERS = """
with spawned as (
  insert into durable.tasks (
    task_id, spawned_at, queue, name, params, claim, state, started_at)
  select durable._uuid7(durable._id_milliseconds(now()), n), now(), 'default', 'many',
    '{}', 2, 'sleeping', now()
  from generate_series(1, 10000) as n
  returning task_id
)
insert into durable.waits (queue, task_id, name, position, after, event_name)
select 'default', task_id, '$event:news', 0, 0, 'news' from spawned
returning 1
"""


# Pruning of events.


def test_keeps_the_place_of_an_event_somebody_has_begun_to_await(stage: Stage) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    worker, house = stage.session(), stage.session()
    held = stage.held()
    assert worker.suspend(held, event()) == "suspended"
    assert house.prune() == 0
    worker.commit()
    assert house.prune() == 0
    house.commit()
    stage.db.emit()
    assert stage.db.state(held.task_id) == "pending"


def test_makes_again_the_place_of_an_event_that_goes_while_it_waits(
    stage: Stage,
) -> None:
    stage.db.poll(stage.held(), event())
    other = stage.lock("select 1 from durable.events for update")
    worker = stage.session()
    held = stage.held()
    outcome = worker.waiting(worker.suspend, held, event())
    other.connection.execute("delete from durable.events")
    other.commit()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.rows("select emitted_at from durable.events") == [(None,)]


def test_makes_again_the_place_of_an_event_that_is_just_pruned(stage: Stage) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    house, worker = stage.session(), stage.session()
    held = stage.held()
    assert house.prune() == 1
    outcome = worker.waiting(worker.suspend, held, event())
    house.commit()
    assert outcome.result() == "suspended"
    worker.commit()
    assert stage.db.emit() is True
    assert stage.db.state(held.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_keeps_the_place_of_an_event_whose_waiter_the_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    stage.db.poll(stage.held(), event())
    stage.db.rows("delete from durable.waits returning 1")
    house = stage.session(isolation)
    stage.db.suspend(stage.held(), event())
    assert house.prune() == 0
    house.commit()
    assert stage.db.rows("select emitted_at from durable.events") == [(None,)]


# Joins.


def test_wakes_a_parent_that_was_falling_asleep_when_the_child_finished(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    falling, worker = stage.session(), stage.session()
    assert falling.suspend(parent, join(child.task_id)) == "suspended"
    outcome = worker.waiting(worker.complete, child)
    falling.commit()
    assert outcome.result() == "ok"
    worker.commit()
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_a_parent_that_joined_while_the_child_was_finishing(stage: Stage) -> None:
    parent, child = stage.family()
    worker, falling = stage.session(), stage.session()
    assert worker.complete(child) == "ok"
    assert falling.suspend(parent, join(child.task_id)) == "suspended"
    falling.commit()
    worker.commit()
    stage.db.apply_notes()
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
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_who_falls_asleep_again_while_the_first_is_finishing(
    stage: Stage,
) -> None:
    """Watched since an earlier sleep: awake, it was passed over by who finishes."""
    parent, child = stage.family()
    first = {**join(child.task_id), "any_of": True}
    stage.db.suspend(parent, first, event())
    stage.db.emit()
    (parent,) = stage.db.claim("parent")
    worker = stage.session()
    assert worker.complete(child) == "ok"
    assert stage.db.suspend(parent, first) == "suspended"
    worker.commit()
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_a_parent_of_a_child_that_was_tried_again(stage: Stage) -> None:
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
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "sleeping"
    (last,) = stage.db.claim("child")
    stage.db.complete(last)
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


def test_wakes_later_a_parent_that_is_in_other_hands(stage: Stage) -> None:
    parent, child = stage.family()
    stage.db.suspend(parent, join(child.task_id))
    other = stage.lock_task(parent.task_id)
    assert stage.db.complete(child) == "ok"
    other.commit()
    stage.db.apply_notes()
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
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


def test_watches_on_past_children_that_are_in_other_hands(stage: Stage) -> None:
    parent = stage.held("parent")
    children = [stage.held("child", parent_task_id=parent.task_id) for _ in range(3)]
    stage.db.suspend(parent, join(*(child.task_id for child in children)))
    other = stage.lock_task(children[1].task_id)
    assert stage.db.complete(children[2]) == "ok"
    other.commit()
    assert stage.db.complete(children[0]) == "ok"
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "sleeping"
    assert stage.db.complete(children[1]) == "ok"
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_wakes_a_parent_whom_the_childs_snapshot_does_not_show(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    worker = stage.session(isolation)
    stage.db.suspend(parent, join(child.task_id))
    assert worker.complete(child) == "ok"
    worker.commit()
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) == "pending"


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_does_not_join_by_a_snapshot_from_before_the_childs_end(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    worker = stage.session(isolation)
    stage.db.complete(child)
    with pytest.raises(SerializationFailure):
        worker.suspend(parent, join(child.task_id))


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_does_not_rejoin_by_a_snapshot_from_before_the_childs_end(
    stage: Stage, isolation: IsolationLevel
) -> None:
    parent, child = stage.family()
    stage.db.poll(parent, join(child.task_id))
    worker = stage.session(isolation)
    stage.db.complete(child)
    with pytest.raises(SerializationFailure):
        worker.suspend(parent, join(child.task_id))


# A parent's end takes its children with it.


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


def test_refuses_a_worker_the_child_of_a_parent_that_was_just_cancelled(
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


def test_refuses_a_former_claim_the_children_it_spawns(stage: Stage) -> None:
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


def test_cancels_later_a_child_that_is_in_other_hands(stage: Stage) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    assert stage.db.state(child.task_id) == "running"
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "cancelled"


def test_cancels_a_grandchild_that_was_being_spawned(stage: Stage) -> None:
    parent, child = stage.family()
    worker = stage.session()
    grandchild = worker.spawn_child(child)
    assert stage.db.fail(parent) == "ok"
    worker.commit()
    stage.db.apply_notes()
    assert stage.db.state(grandchild) == "cancelled"


def test_cancels_a_grandchild_that_was_spawned_during_the_cascade(stage: Stage) -> None:
    parent = stage.db.spawn("parent", max_delay=0)
    first = stage.held("child", parent_task_id=parent)
    second = stage.held("child", parent_task_id=parent)
    stage.db.suspend(first, event())
    other = stage.lock("select 1 from durable.waits for update")
    house = stage.session()
    expired = house.waiting(house.expire_deadlines)
    grandchild = stage.db.spawn_child(second)
    other.commit()
    assert expired.result() == 1
    house.commit()
    stage.db.apply_notes()
    assert stage.db.state(second.task_id) == "cancelled"
    assert stage.db.state(grandchild) == "cancelled"


def test_cancels_a_grandchild_whose_parent_completed_during_the_cascade(
    stage: Stage,
) -> None:
    parent = stage.db.spawn("parent", max_delay=0)
    first = stage.held("child", parent_task_id=parent)
    second = stage.held("child", parent_task_id=parent)
    stage.db.suspend(first, event())
    other = stage.lock("select 1 from durable.waits for update")
    house = stage.session()
    expired = house.waiting(house.expire_deadlines)
    grandchild = stage.db.spawn_child(second)
    stage.db.complete(second)
    other.commit()
    assert expired.result() == 1
    house.commit()
    stage.db.apply_notes()
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
    stage.db.apply_notes()
    assert stage.db.state(parent.task_id) in {"cancelled", "failed"}
    assert stage.db.state(child) == "cancelled"


def test_leaves_alone_the_children_of_a_parent_revived_before_the_note(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    stage.db.fail(parent)
    other.commit()
    stage.db.retry(parent.task_id)
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "running"


# Idempotency keys.


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
def test_does_not_take_a_key_by_a_snapshot_from_before_its_task(
    stage: Stage, isolation: IsolationLevel
) -> None:
    session = stage.session(isolation)
    stage.db.spawn(idempotency_key="k")
    with pytest.raises(SerializationFailure):
        session.spawn(idempotency_key="k")


def test_keeps_a_task_whose_key_somebody_has_just_been_told(stage: Stage) -> None:
    task_id = stage.db.spawn(idempotency_key="k")
    stage.db.cancel(task_id)
    forget_at_once(stage)
    client = stage.session()
    assert client.spawn(idempotency_key="k") == task_id
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 1


def test_gives_out_afresh_the_key_of_a_task_that_is_just_cleaned_up(
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


def forget_at_once(stage: Stage) -> None:
    keep = "select durable.create_queue(%s, '{\"keep_tasks\": 0}')"
    stage.db.rows(keep, QUEUE)
    old = "select bool_and(task_id < durable._uuid7_floor(now())) from durable.tasks"
    eventually(lambda: stage.db.value(old))


# Trying again, and cleaning up.


def test_keeps_a_task_that_is_just_tried_again(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    forget_at_once(stage)
    client = stage.session()
    assert client.retry(task_id) == task_id
    assert stage.db.cleanup() == 0
    client.commit()
    assert stage.db.cleanup() == 0
    assert stage.db.state(task_id) == "pending"


def test_does_not_try_again_what_is_just_cleaned_up(stage: Stage) -> None:
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


def test_lets_one_of_two_retries_win(stage: Stage) -> None:
    task_id = stage.db.spawn()
    stage.db.cancel(task_id)
    a, b = stage.session(), stage.session()
    a.retry(task_id)
    second = b.waiting(b.retry, task_id)
    a.commit()
    with pytest.raises(psycopg.Error) as refused:
        second.result()
    assert refused.value.sqlstate == "WFFIN"


def test_keeps_a_failed_task_until_what_lives_below_it_is_cancelled(
    stage: Stage,
) -> None:
    parent, child = stage.family()
    other = stage.lock_task(child.task_id)
    assert stage.db.fail(parent) == "ok"
    forget_at_once(stage)
    assert stage.db.cleanup() == 0
    other.commit()
    stage.db.apply_notes()
    assert stage.db.state(child.task_id) == "cancelled"
    assert stage.db.cleanup() == 2


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_forgets_the_wait_of_a_former_attempt_that_its_end_did_not_see(
    stage: Stage, isolation: IsolationLevel
) -> None:
    held = stage.held()
    client = stage.session(isolation)
    stage.db.poll(held, event(seconds=60))
    assert client.cancel(held.task_id) is True
    client.commit()
    stage.db.retry(held.task_id)
    assert stage.db.rows("select from durable.waits") == []


def test_does_not_wait_for_whoever_changes_the_queues_policy(stage: Stage) -> None:
    stage.db.cancel(stage.db.spawn())
    forget_at_once(stage)
    other = stage.lock("select 1 from durable.queues for update")
    stage.db.rows("select * from durable.keep_house(%s)", QUEUE)
    other.commit()


# Dropping a queue.


def test_leaves_nothing_of_a_spawn_under_way_once_the_queue_is_created_again(
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
    stage.db.extend(first)  # its row now stands behind the second's
    other = stage.lock_task(first.task_id)
    operator = stage.session()
    dropped = operator.waiting(operator.drop_queue)
    assert not stage.db.has_locked(second.task_id)
    other.commit()
    assert dropped.result() is True


def test_drops_a_queue_while_a_worker_settles_its_waits(stage: Stage) -> None:
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
