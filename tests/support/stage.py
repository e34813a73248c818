"""Sessions with open transactions, for tests of races.

A call that has to wait runs in a thread, and the script continues once Postgres reports
that it waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import IsolationLevel
from psycopg.errors import LockNotAvailable

from tests.support.wait import eventually

__all__ = [
    "OLD_SNAPSHOTS",
    "QUEUE",
    "Held",
    "Session",
    "Stage",
    "event",
    "forget_at_once",
    "join",
]

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
    """A connection with an open transaction, and a thread for calls that wait."""

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

    # Calls of a client.

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

    # Calls of a worker.

    def claim(
        self, name: str | None = None, batch_size: int = 100, lease: float = 60
    ) -> list[Held]:
        names = None if name is None else [name]
        rows = self.rows(
            "select task_id, claim from durable.claim_tasks(%s, 'w', %s, %s, %s)",
            QUEUE,
            names,
            batch_size,
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

    # Calls of maintenance.

    def expire(self) -> Any:
        return self.value("select durable.expire_leases(%s)", QUEUE)

    def expire_tasks(self) -> Any:
        return self.value("select durable.expire_tasks(%s)", QUEUE)

    def cleanup(self) -> Any:
        return self.value("select durable.cleanup(%s)", QUEUE)

    def prune(self) -> Any:
        return self.value("select durable.prune_events(%s)", QUEUE)

    def drop_queue(self) -> Any:
        return self.value("select durable.drop_queue(%s)", QUEUE)

    # Queries of a test.

    def state(self, task_id: UUID) -> Any:
        return self.value(
            "select state from durable.task_list where task_id = %s", task_id
        )

    def deferred_work(self) -> Any:
        return self.value("select count(*) from durable.deferred_work")

    def apply_deferred_work(self) -> None:
        while self.deferred_work():
            assert self.value("select durable.apply_deferred_work(%s)", QUEUE) > 0

    def has_locked(self, task_id: UUID) -> bool:
        """Whether another session holds the task's row."""
        return not self.rows(
            "select from durable.tasks where task_id = %s for update skip locked",
            task_id,
        )

    # Waiting.

    def start(self, call: Callable[..., Any], *args: Any, **more: Any) -> Future[Any]:
        """Make a call in the thread, repeating it while it returns `busy`."""

        def patiently() -> Any:
            while True:
                try:
                    return call(*args, **more)
                except LockNotAvailable:
                    self.rollback()

        return self._thread.submit(patiently)

    def waiting(self, call: Callable[..., Any], *args: Any, **more: Any) -> Future[Any]:
        """Make a call that has to wait for another session, and check that it waits."""
        future = self.start(call, *args, **more)
        pid = self.connection.info.backend_pid

        def waits() -> bool:
            assert not future.done(), f"did not wait, but returned {future.result()!r}"
            return bool(self._watch.execute(WAITS_FOR_A_LOCK, [pid]).fetchall())

        eventually(waits, what="waiting for a lock")
        return future


class Stage:
    """Creates sessions. `db` commits each call at once."""

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self._connect = connect
        self._watch = connect()
        self.sessions: list[Session] = []
        self.db = self._session(connect())

    def _session(self, connection: psycopg.Connection) -> Session:
        # A call that should not wait fails.
        connection.execute("set lock_timeout = '5s'")
        connection.commit()
        self.sessions.append(session := Session(connection, self._watch))
        return session

    def session(self, isolation: IsolationLevel | None = None) -> Session:
        """Return a session in a transaction; with a level, its snapshot is taken."""
        connection = self._connect()
        connection.autocommit = False
        connection.isolation_level = isolation
        session = self._session(connection)
        if isolation is not None:
            session.rows("select from durable.queues")
        return session

    def held(self, name: str = "work", lease: float = 60, **options: Any) -> Held:
        """Return a running task and its claim."""
        task_id = self.db.spawn(name, **options)
        (held,) = self.db.claim(name, lease=lease)
        assert held.task_id == task_id
        return held

    def lock(self, statement: str, *args: Any) -> Session:
        """Return a session that has locked the rows of a statement."""
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


JOIN = "$join"


def join(*task_ids: UUID) -> dict[str, Any]:
    return {"name": JOIN, "task_ids": [str(task_id) for task_id in task_ids]}


def event(name: str = "news", **more: Any) -> dict[str, Any]:
    return {"name": f"$event:{name}", "event": name, **more}


def forget_at_once(stage: Stage) -> None:
    keep = "select durable.create_queue(%s, '{\"keep_tasks\": 0}')"
    stage.db.rows(keep, QUEUE)
    old = "select bool_and(task_id < durable._uuid7_floor(now())) from durable.tasks"
    eventually(lambda: stage.db.value(old))
