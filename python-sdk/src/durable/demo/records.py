"""The records of the census in Postgres, read from durable's views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg
from psycopg.rows import class_row

__all__ = ["Attempt", "Checkpoint", "Progress", "Records"]

# Children only, without the parent that waits for them.
PROGRESS: Final = """
select
  count(*) filter (where state = 'completed') as done,
  count(*) as modules,
  count(*) filter (where state = 'running') as held,
  (select count(*) from durable.history as h
    where h.queue = %(queue)s and h.name not like '$%%') as steps,
  (select count(*) from durable.history as h join durable.task_list as t
    using (queue, task_id)
    where h.queue = %(queue)s and h.name not like '$%%'
      and t.state = 'running') as midway
from durable.task_list
where queue = %(queue)s and parent_task_id is not null
"""

WAITING: Final = "select event_name from durable.waiting where queue = %s"

ATTEMPTS: Final = """
select a.task_id, a.attempt, a.outcome, a.worker, t.params ->> 'name' as module
from durable.attempts as a join durable.task_list as t using (queue, task_id)
where queue = %s
order by a.task_id, a.attempt
"""

CHECKPOINTS: Final = """
select task_id, name, attempt from durable.history where queue = %s
order by saved_at, position
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the census; `midway` counts the saved steps of running tasks."""

    done: int
    modules: int
    held: int
    steps: int
    midway: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a task, with its last worker."""

    task_id: UUID
    attempt: int
    outcome: str
    worker: str
    module: str | None  # None: the parent

    @property
    def pid(self) -> int:
        """The process of the worker, whose name is host:pid:random."""
        return int(self.worker.split(":")[-2])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint and its attempt; names of waits and spawns begin with `$`."""

    task_id: UUID
    name: str
    attempt: int


class Records:
    """Queries on one queue."""

    def __init__(self, connection: psycopg.Connection, queue: str) -> None:
        self._connection = connection
        self._queue = queue

    @property
    def server_version(self) -> str:
        """The version of Postgres."""
        return self._connection.info.parameter_status("server_version") or "unknown"

    def progress(self) -> Progress:
        """Return the progress of the census."""
        with self._connection.cursor(row_factory=class_row(Progress)) as cursor:
            (found,) = cursor.execute(PROGRESS, {"queue": self._queue})
            return found

    def waits_for(self, event: str) -> bool:
        """Return whether a task waits for an event."""
        return (event,) in self._connection.execute(WAITING, [self._queue])

    def attempts(self) -> list[Attempt]:
        """Return all attempts of all tasks."""
        with self._connection.cursor(row_factory=class_row(Attempt)) as cursor:
            return cursor.execute(ATTEMPTS, [self._queue]).fetchall()

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, oldest first."""
        with self._connection.cursor(row_factory=class_row(Checkpoint)) as cursor:
            return cursor.execute(CHECKPOINTS, [self._queue]).fetchall()
