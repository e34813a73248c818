"""What has happened to a task, as values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from durable._vault import Vault

__all__ = ["HistoryEntry", "history_entry"]

_KEPT_BACK: Final = {"traceback", "args"}  # long, and to be had elsewhere


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that happened to a task, or, without `at`, is still going on.

    `kind` is spawned, copied (what a fork began with), started; step, step_failed,
    try_failed; slept, event, joined, first_finished, message_received, timed_out;
    child_spawned, event_emitted, message_sent, patched, recorded (whatever else is
    saved); attempt_failed, lease_lost, attempt_cancelled; completed, failed, cancelled;
    or running, waiting, retrying. `name` is the task's or the
    checkpoint's, `worker` who ran the attempt, `duration_ms` how long a step took.
    `detail` has what else is known: `error` (type, message), `until`, `event`, `topic`,
    `task_ids`, `queues` and `any_of` of a wait; `task_id` of a child, and its `queue`
    if it is another; `parent_task_id`, `parent_queue`, `idempotency_key`, `forked_from`,
    `deadline`; `version`; `saved_at` of what was copied.
    """

    at: datetime | None
    kind: str
    name: str | None = None
    attempt: int | None = None
    worker: str | None = None
    duration_ms: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """What else is known of it, in one line."""
        return ", ".join(_said(key, value) for key, value in self.detail.items())


def history_entry(row: tuple[Any, ...], vault: Vault) -> HistoryEntry:
    """Return a row of `durable.task_history` as a value."""
    at, kind, name, attempt, worker, duration_ms, detail = row
    known = json.loads(detail or "{}")
    if "error" in known:
        error = vault.shown_error(known["error"])
        known["error"] = {k: v for k, v in error.items() if k not in _KEPT_BACK}
    return HistoryEntry(at, kind, name, attempt, worker, duration_ms, known)


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
