"""What a checkpoint means to the code that asked: a value, or an exception."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar
from uuid import UUID

from durable._values import Codec
from durable._worker.failures import mark_recorded, restore, task_error
from durable._worker.waits import Resolved
from durable.children import ChildHandle
from durable.errors import NotFound, TaskCancelled, TaskFailed

__all__ = [
    "Joinable",
    "child_of",
    "heard",
    "joined",
    "outcome_error",
    "read",
    "refuse_unless_tasks",
    "winner",
]

T = TypeVar("T")
J = TypeVar("J", bound="Joinable")


class Joinable(Protocol):
    """What may be waited for: a child, or the handle of any other task."""

    @property
    def task_id(self) -> UUID:
        """The task."""

    @property
    def queue(self) -> str:
        """Its queue."""

    @property
    def codec(self) -> Codec[Any]:
        """How its output is read."""


def read(saved: Resolved, how: Codec[T]) -> T:
    """Return the value of a checkpoint, or raise what it recorded."""
    if saved.state == "done":
        return how.load(saved.value)
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError("the wait has timed out"))
    raise restore(saved.value)


def heard(saved: Resolved, what: str, how: Codec[T]) -> T:
    """Return what was waited for; TimeoutError, with its name, if it did not come."""
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError(f"{what} did not come in time"))
    return read(saved, how)


def child_of(saved: Resolved, name: str, queue: str, how: Codec[T]) -> ChildHandle[T]:
    """Return the handle that a spawn's checkpoint stands for."""
    child = json.loads(saved.value)
    return ChildHandle(
        name,
        UUID(child["task_id"]),
        UUID(child["run_id"]),
        child.get("queue", queue),
        child["attempt"],
        child["created"],
        how,
    )


def joined(saved: Resolved, tasks: Sequence[Joinable]) -> list[Any]:
    """Return the outputs of tasks that were waited for, or raise for the first."""
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError(f"not finished in time: {_listed(tasks)}"))
    outputs = []
    for task, outcome in zip(tasks, json.loads(saved.value), strict=True):
        name = getattr(task, "name", None)
        error = outcome_error(task.task_id, outcome["state"], outcome["error"], name)
        if error is not None:
            raise mark_recorded(error)
        outputs.append(task.codec.load(json.dumps(outcome["result"])))
    return outputs


def winner(saved: Resolved, tasks: Sequence[J]) -> J:
    """Return that of several tasks which is on record as the first to finish."""
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError(f"none finished in time: {_listed(tasks)}"))
    task_id = UUID(json.loads(saved.value)["task_id"])
    for task in tasks:
        if task.task_id == task_id:
            return task
    raise RuntimeError(
        f"task {task_id} is on record as the first to finish, and is none of these:"
        " the tasks that are given have changed since"
    )


def refuse_unless_tasks(tasks: Sequence[object]) -> None:
    """Raise TypeError for what is no child's handle, nor that of any other task."""
    for task in tasks:
        if not hasattr(task, "task_id"):
            what = type(task).__name__
            raise TypeError(
                "a task waits for handles: of children, which `await ctx.spawn(…)`"
                f" returns, or `app.handle(task_id)`; this is a {what}"
            )


def _listed(tasks: Sequence[Joinable]) -> str:
    """Return the first few tasks by their names, to say what was waited for."""
    names = [str(getattr(task, "name", None) or task.task_id) for task in tasks[:4]]
    if len(tasks) > len(names):
        names[-1] = f"{len(tasks) - len(names) + 1} more"
    return ", ".join(names)


def outcome_error(
    task_id: UUID, state: str, error: dict[str, Any] | None, name: str | None = None
) -> Exception | None:
    """Return the exception a task's end stands for; None if it completed."""
    if state == "failed":
        return TaskFailed(task_error(error), task_id=task_id, name=name)
    if state == "cancelled":
        reason = (error or {}).get("message")
        return TaskCancelled(reason, task_id=task_id, name=name)
    if state == "not_found":
        return NotFound(f"task {task_id} is gone")
    return None
