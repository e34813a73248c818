"""Which tasks are meant, and what a list says of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args
from uuid import UUID

from durable._ids import as_uuid
from durable._json import JSON
from durable._time import moment
from durable._values import PLAIN
from durable._vault import Vault
from durable._worker.failures import task_error
from durable.errors import InvalidArgument, TaskError
from durable.options import unknown_option

__all__ = [
    "TaskFilter",
    "TaskInfo",
    "TaskState",
    "checked_filter",
    "checked_limit",
    "task_info",
]

TaskState: TypeAlias = Literal[
    "pending", "running", "sleeping", "completed", "failed", "cancelled"
]
"""Where a task stands; the last three are final."""

_MOST: Final = 100_000
_COLUMNS: Final = (
    *("task_id", "parent_task_id", "name", "state", "attempt", "worker"),
    *("spawned_at", "started_at", "available_at", "finished_at"),
)


class TaskFilter(TypedDict, total=False):
    """Which tasks of a queue are meant: all that is given must hold.

    name: the task's name.
    states: one of these.
    task_ids: one of these; UUIDs or their text.
    parent_task_id: the task that spawned it.
    worker: who holds it, or held it last.
    error_type: the type of the error it ended with, or that its last attempt did:
        the class's name, `$Cancelled`, `$LeaseExpired`, `$DeadlineExceeded`.
    headers: what its headers contain, whatever else is in them.
    params: the same for its params.
    spawned_after, spawned_before, finished_after, finished_before: aware datetimes;
        the earlier one is within, the later is not.
    all: True, alone: every task of the queue.
    """

    name: str
    states: Sequence[TaskState]
    task_ids: Iterable[UUID | str]
    parent_task_id: UUID | str
    worker: str
    error_type: str
    headers: Mapping[str, JSON]
    params: JSON
    spawned_after: datetime
    spawned_before: datetime
    finished_after: datetime
    finished_before: datetime
    all: bool


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task in a list.

    `error` is what it ended with, or what its last attempt did while it sleeps until
    the next one, at `available_at`.
    """

    queue: str
    task_id: UUID
    parent_task_id: UUID | None
    name: str
    state: TaskState
    attempt: int
    worker: str | None
    spawned_at: datetime
    started_at: datetime | None
    available_at: datetime | None
    finished_at: datetime | None
    error: TaskError | None


def checked_filter(given: Mapping[str, Any], *, change: bool) -> dict[str, Any]:
    """Return a filter as `durable.list_tasks` takes it.

    `change` says that tasks are to be changed: then a filter must say something. Raises
    InvalidArgument for a key there is not, naming the nearest, and for a value that it
    cannot have.
    """
    for key in given:
        if key not in _CHECKS:
            message = unknown_option(key, list(_CHECKS))
            raise InvalidArgument(message.replace("option", "filter", 1))
    if change and not given:
        raise InvalidArgument(
            "which tasks are meant is not said", hint="all=True means all of the queue."
        )
    if "all" in given and (len(given) > 1 or given["all"] is not True):
        raise InvalidArgument("all=True stands alone; else leave it out")
    return {key: _CHECKS[key](value) for key, value in given.items()}


def checked_limit(limit: object) -> int:
    """Return how many are to be listed at most; InvalidArgument for anything else."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST:
        raise InvalidArgument(f"limit must be an int from 1 to {_MOST}, not {limit!r}")
    return limit


def task_info(queue: str, row: tuple[Any, ...], vault: Vault) -> TaskInfo:
    """Return a row of `durable.list_tasks` as a value."""
    known = dict(zip(_COLUMNS, row[:-1], strict=True))
    error = None
    if row[-1] is not None:
        error = task_error(vault.shown_error(json.loads(row[-1])))
    return TaskInfo(queue, **known, error=error)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"a filter by text is a str, not {type(value).__name__}")
    PLAIN.dump(value)
    return value


def _states(value: object) -> list[str]:
    known = get_args(TaskState)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidArgument(f"states must be a list of states, not {value!r:.100}")
    states = list(value)
    for state in states:
        if state not in known:
            raise InvalidArgument(
                f"there is no state {state!r:.100}: there are {', '.join(known)}"
            )
    return states


def _ids(value: object) -> list[str]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise InvalidArgument(f"task_ids must be a list of ids, not {value!r:.100}")
    return [str(as_uuid(task_id)) for task_id in value]


def _headers(value: object) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"headers must be a mapping, not {type(value).__name__}")
    return _plain(dict(value))


def _plain(value: Any) -> Any:
    return json.loads(PLAIN.dump(value))


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "name": _text,
    "states": _states,
    "task_ids": _ids,
    "parent_task_id": lambda value: str(as_uuid(value)),
    "worker": _text,
    "error_type": _text,
    "headers": _headers,
    "params": _plain,
    "spawned_after": lambda value: moment(value, "spawned_after").isoformat(),
    "spawned_before": lambda value: moment(value, "spawned_before").isoformat(),
    "finished_after": lambda value: moment(value, "finished_after").isoformat(),
    "finished_before": lambda value: moment(value, "finished_before").isoformat(),
    "all": bool,
}
