"""What has happened to a task, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from durable._json import JSON
from durable._vault import Vault

__all__ = ["Actor", "HistoryEntry", "history_entry"]

_KEPT_BACK: Final = {"traceback", "args"}  # long, and to be had elsewhere
_CHILDREN: Final = {"child_spawned", "first_finished"}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who has done something to a task.

    A client: `user` is its role in the database, `identity` who asked for it, and
    `queue` and `task_id` the task whose code did it, as far as it has said so. A task
    above it, whose end or revival reached it: `queue` and `task_id` alone. One of the
    task's own limits: `limit` is max_delay, max_duration or deadline.
    """

    user: str | None = None
    identity: Mapping[str, JSON] | None = None
    queue: str | None = None
    task_id: UUID | None = None
    limit: str | None = None

    def __str__(self) -> str:
        said = [
            self.limit,
            None if self.identity is None else json.dumps(self.identity),
            None if self.task_id is None else f"task {self.task_id}",
            None if self.user is None else f"role {self.user}",
        ]
        return " ".join(part for part in said if part is not None)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that happened to a task, or, without `at`, is still going on.

    `kind` is spawned, copied (what a fork began with), started; step, step_failed,
    try_failed; slept, event, joined, first_finished, message_received, timed_out;
    child_spawned, event_emitted, message_sent, patched, recorded (whatever else is
    saved); attempt_failed, lease_lost, attempt_cancelled, retried; completed, failed,
    cancelled; or running, waiting, retrying. Where the queue's `history` is "full" it
    is also claimed, suspended, woken, released. `name` is the task's or the
    checkpoint's, also of what it was suspended for and woken by; `worker` who ran the
    attempt, `duration_ms` how long a step took. `by` is who cancelled, retried or
    forked the task; `queue` and `task_id` are the child's that was spawned, or finished
    first. `detail` has what else is known: `error` (type, message), `until`, `event`,
    `topic`, `task_ids`, `queues` and `any_of` of a wait; `waits`, the names if they are
    several; `parent_task_id`, `parent_queue`, `idempotency_key`, `forked_from`,
    `deadline`; `version`; `saved_at` of what was copied.
    """

    at: datetime | None
    kind: str
    name: str | None = None
    attempt: int | None = None
    worker: str | None = None
    duration_ms: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    by: Actor | None = None
    queue: str | None = None
    task_id: UUID | None = None

    @property
    def said(self) -> str:
        """What else is known of it, in one line."""
        said = [_said(key, value) for key, value in self.detail.items()]
        return ", ".join(said if self.by is None else [*said, f"by {self.by}"])


def history_entry(row: tuple[Any, ...], vault: Vault, queue: str) -> HistoryEntry:
    """Return a row of `durable.task_history` of a task in this queue as a value."""
    at, kind, name, attempt, worker, duration_ms, detail = row
    known = json.loads(detail or "{}")
    by = _actor(known.pop("by", None), queue)
    if "error" in known:
        error = vault.shown_error(known["error"])
        known["error"] = {k: v for k, v in error.items() if k not in _KEPT_BACK}
    entry = HistoryEntry(at, kind, name, attempt, worker, duration_ms, known, by)
    if kind not in _CHILDREN or "task_id" not in known:
        return entry
    child = known.get("queue", queue), UUID(known["task_id"])
    return replace(entry, queue=child[0], task_id=child[1])


def _actor(said: Mapping[str, Any] | None, queue: str) -> Actor | None:
    if said is None or "task_id" not in said:
        return None if said is None else Actor(**said)
    found = {"queue": queue, **said, "task_id": UUID(said["task_id"])}
    return Actor(**found)


def _said(key: str, value: Any) -> str:
    match value:
        case {"type": kind, "message": message}:
            line = " ".join(str(message).split())
            return f"{kind}: {line}" if line else str(kind)
        case {"task_id": task_id}:
            return f"{key} {task_id}"
        case str():
            return f"{key} {value}"
    return f"{key} {json.dumps(value)}"
