"""What a checkpoint means to the code that asked: a value, or an exception."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar
from uuid import UUID

from durable._values import Codec
from durable._worker.failures import mark_recorded, restore, task_error
from durable._worker.waits import Resolved
from durable.children import ChildHandle
from durable.errors import NotFound, TaskCancelled, TaskFailed

__all__ = ["child_of", "joined", "outcome_error", "read"]

T = TypeVar("T")


def read(saved: Resolved, how: Codec[T]) -> T:
    """Return the value of a checkpoint, or raise what it recorded."""
    if saved.state == "done":
        return how.load(saved.value)
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError("the wait has timed out"))
    raise restore(saved.value)


def child_of(saved: Resolved, name: str, queue: str, how: Codec[T]) -> ChildHandle[T]:
    """Return the handle that a spawn's checkpoint stands for."""
    child = json.loads(saved.value)
    return ChildHandle(
        name,
        UUID(child["task_id"]),
        UUID(child["run_id"]),
        queue,
        child["attempt"],
        child["created"],
        how,
    )


def joined(saved: Resolved, children: Sequence[ChildHandle[T]]) -> list[T]:
    """Return the outputs of tasks that were waited for, or raise for the first."""
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError("the tasks did not finish in time"))
    outputs = []
    for child, outcome in zip(children, json.loads(saved.value), strict=True):
        error = outcome_error(child.task_id, outcome["state"], outcome["error"])
        if error is not None:
            raise mark_recorded(error)
        outputs.append(child.codec.load(json.dumps(outcome["result"])))
    return outputs


def outcome_error(
    task_id: UUID, state: str, error: dict[str, Any] | None
) -> Exception | None:
    """Return the exception a task's end stands for; None if it completed."""
    if state == "failed":
        return TaskFailed(task_error(error))
    if state == "cancelled":
        return TaskCancelled((error or {}).get("message"))
    if state == "not_found":
        return NotFound(f"task {task_id} is gone")
    return None
