"""Where tasks stand, as values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from durable._values import Codec
from durable._vault import Vault
from durable._worker.failures import task_error
from durable._worker.outcomes import outcome_error
from durable.errors import NotFound, TaskError

__all__ = [
    "FINAL",
    "QueueStats",
    "TaskResult",
    "VersionStats",
    "not_found",
    "opened",
    "output",
    "task_result",
]

R = TypeVar("R")

FINAL = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[R]):
    """Where a task stands: its result once completed, else its error.

    `state` is pending, running, sleeping, completed, failed or cancelled. `error` is
    also that of the last attempt, while the task sleeps until the next one.
    """

    task_id: UUID
    state: str
    attempt: int
    result: R | None
    error: TaskError | None

    @property
    def finished(self) -> bool:
        """Whether it has reached its end."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How many tasks of a queue are in which state.

    `ready` of them are claimable now, `ready_by_name` says which; the oldest of those
    since `oldest_ready_at`. The next sleeper is due at `next_due_at`.
    """

    queue: str
    pending: int
    running: int
    sleeping: int
    completed: int
    failed: int
    cancelled: int
    ready: int
    oldest_ready_at: datetime | None
    next_due_at: datetime | None
    ready_by_name: dict[str, int]


@dataclass(frozen=True, slots=True)
class VersionStats:
    """A version of the application in a queue, and the live tasks that are its own.

    `latest`: unstamped tasks of a gated queue go to it. `alive`: a worker of it was
    seen within the last minute. `running` and `ready`, which are claimable now, are
    among the `live`; the oldest of the ready since `oldest_ready_at`. A version that no
    worker has ever announced was seen at None.
    """

    queue: str
    version: str
    latest: bool
    alive: bool
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    live: int
    running: int
    ready: int
    oldest_ready_at: datetime | None

    @property
    def stranded(self) -> bool:
        """Whether tasks wait for it, and nobody runs it."""
        return self.live > 0 and not self.alive


def opened(row: tuple[Any, ...], vault: Vault) -> tuple[Any, ...]:
    """Return a row of `durable.get_task_result`, its result and error unsealed."""
    *known, result, error = row
    return (*known, *(text and vault.opened(text) for text in (result, error)))


def task_result(row: tuple[Any, ...], how: Codec[R]) -> TaskResult[R]:
    """Return a row of `durable.get_task_result` as a value."""
    task_id, state, attempt, result, error = row
    return TaskResult(
        task_id,
        state,
        attempt,
        how.load(result) if state == "completed" else None,
        None if error is None else task_error(json.loads(error)),
    )


def output(row: tuple[Any, ...], how: Codec[R]) -> R:
    """Return the output of a task that has finished, or raise what its end means."""
    task_id, state, _, result, error = row
    failure = outcome_error(
        task_id, state, None if error is None else json.loads(error)
    )
    if failure is not None:
        raise failure
    return how.load(result)


def not_found(queue: str, task_id: UUID) -> NotFound:
    """Return what says that there is no such task, or not yet."""
    return NotFound(
        f"no task {task_id} in queue {queue!r}",
        hint="If its transaction is open, commit it first.",
    )
