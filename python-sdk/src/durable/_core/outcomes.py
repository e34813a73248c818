"""Turns checkpoints into the values or exceptions that the task's code gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from durable._core.recorded_errors import mark_recorded, restore, task_error
from durable._core.values import Codec
from durable.children import ChildHandle, Joinable
from durable.errors import NotFound, TaskCancelled, TaskFailed

T = TypeVar("T")
J = TypeVar("J", bound=Joinable[Any])


class Resolved(NamedTuple):
    """A checkpoint: the state in which a step or a wait ended, and its value as JSON.

    `position` and `after` are set if it was loaded: see `_task/replay.py`.
    """

    state: str
    value: str
    position: int = 0
    after: int = 0


def read(saved: Resolved, how: Codec[T]) -> T:
    """Return the value of a checkpoint, or raise the recorded exception."""
    _raise_if_failed(saved)
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError("the wait has timed out"))
    return how.load(saved.value)


def _raise_if_failed(saved: Resolved) -> None:
    if saved.state == "failed":
        raise restore(saved.value)


def resolve_wait(saved: Resolved, what: str, how: Codec[T]) -> T:
    """Return the value of a wait; raise TimeoutError with its name if it timed out."""
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError(f"{what} did not come in time"))
    return read(saved, how)


def resolve_spawn(
    saved: Resolved, name: str, queue: str, how: Codec[T]
) -> ChildHandle[T]:
    """Return the handle of a spawned child, or raise the recorded exception."""
    _raise_if_failed(saved)
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


def resolve_join(saved: Resolved, tasks: Sequence[Joinable[Any]]) -> list[Any]:
    """Return the outputs of joined tasks; raise for the first that did not complete."""
    _raise_if_failed(saved)
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError(f"not finished in time: {_names(tasks)}"))
    outputs = []
    for task, outcome in zip(tasks, json.loads(saved.value), strict=True):
        name = getattr(task, "name", None)
        error = outcome_error(task.task_id, outcome["state"], outcome["error"], name)
        if error is not None:
            raise mark_recorded(error)
        outputs.append(task.codec.load(json.dumps(outcome["result"])))
    return outputs


def resolve_first(saved: Resolved, tasks: Sequence[J]) -> J:
    """Return the task that is recorded as the first to finish."""
    _raise_if_failed(saved)
    if saved.state == "timed_out":
        raise mark_recorded(TimeoutError(f"none finished in time: {_names(tasks)}"))
    task_id = UUID(json.loads(saved.value)["task_id"])
    for task in tasks:
        if task.task_id == task_id:
            return task
    raise RuntimeError(
        f"task {task_id} is recorded as the first to finish, but is not among the given"
        " tasks: they have changed since"
    )


def check_handles(tasks: Sequence[object]) -> None:
    """Raise TypeError for anything that is not the handle of a task."""
    for task in tasks:
        if not hasattr(task, "task_id"):
            raise TypeError(
                "expected a handle: of a child, as `await ctx.spawn(…)` returns it, or"
                f" `app.handle(task_id)`; got a {type(task).__name__}"
            )


def _names(tasks: Sequence[Joinable[Any]]) -> str:
    """Return the names of the first few tasks, for an error message."""
    names = [str(getattr(task, "name", None) or task.task_id) for task in tasks[:4]]
    if len(tasks) > len(names):
        names[-1] = f"{len(tasks) - len(names) + 1} more"
    return ", ".join(names)


def outcome_error(
    task_id: UUID, state: str, error: dict[str, Any] | None, name: str | None = None
) -> Exception | None:
    """Return the exception for the outcome of a task; None if it completed."""
    if state == "failed":
        return TaskFailed(task_error(error), task_id=task_id, name=name)
    if state == "cancelled":
        reason = (error or {}).get("message")
        return TaskCancelled(reason, task_id=task_id, name=name)
    if state == "not_found":
        return NotFound(f"task {task_id} is gone")
    return None
