"""Assertions on tasks: which were spawned, and what a task has saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, overload
from uuid import UUID

import psycopg

from durable._client._async.handle import AsyncTaskHandle
from durable._client._sync.handle import TaskHandle
from durable._core.spawn_requests import UNSET
from durable._db.application import application_of
from durable.registry import AnyTask
from durable.task import Task
from durable.testing._driving import App

__all__ = ["Spawned", "Step", "assert_spawned", "spawned", "steps_of"]

P = TypeVar("P")
R = TypeVar("R")

_SPAWNED: Final = """
select queue, task_id, params::text, parent_task_id, state
from durable.task_list where name = %s order by spawned_at, task_id
"""
_STEPS: Final = """
select name, state, value::text, attempt
from durable.history where queue = %s and task_id = %s order by saved_at, position
"""


@dataclass(frozen=True, slots=True)
class Spawned(Generic[P]):
    """A task that was spawned: its params, parent and current state."""

    params: P
    queue: str
    task_id: UUID
    parent_task_id: UUID | None
    state: str


@dataclass(frozen=True, slots=True)
class Step:
    """A checkpoint of a task.

    `name` is the step's name, or `$kind:name` for other calls; `state` is done, failed
    or timed_out; `value` is plain JSON; `attempt` is the attempt that saved it.
    """

    name: str
    state: str
    value: Any
    attempt: int


@overload
def spawned(app: App, task: type[Task[P, Any]] | Task[P, Any]) -> list[Spawned[P]]: ...
@overload
def spawned(app: App, task: str) -> list[Spawned[Any]]: ...
def spawned(app: App, task: AnyTask | str) -> list[Spawned[Any]]:
    """Return all tasks of this kind that were spawned, oldest first."""
    registry = application_of(app).registry
    definition = registry.definition_for(task)
    decode = application_of(app).payloads.decode
    with psycopg.connect(application_of(app).conninfo, autocommit=True) as session:
        rows = session.execute(_SPAWNED, [definition.name]).fetchall()
    return [
        Spawned(definition.load_params(decode(params)), queue, task_id, parent, state)
        for queue, task_id, params, parent, state in rows
    ]


def assert_spawned(
    app: App,
    task: AnyTask | str,
    params: Any = UNSET,
    *,
    times: int | None = None,
) -> None:
    """Fail unless the task was spawned, with `params` if they are given.

    It must have been spawned at least once, or exactly `times` times if that is given.
    """
    found = spawned(app, task)
    matching = [one for one in found if params is UNSET or one.params == params]
    if len(matching) == times or (times is None and matching):
        return
    wanted = "at least once" if times is None else f"{times} times"
    what = "" if params is UNSET else f" with {params!r}"
    name = task if isinstance(task, str) else task.name
    listed = "".join(f"\n  {one.params!r} ({one.state})" for one in found)
    raise AssertionError(
        f"expected {name} to be spawned {wanted}{what}, but it was spawned"
        f" {len(matching)} times; all that were spawned: {listed or 'none'}"
    )


def steps_of(handle: AsyncTaskHandle[Any] | TaskHandle[Any]) -> list[Step]:
    """Return the checkpoints of a task in the order in which they were saved."""
    conninfo = handle._backend.application.conninfo  # noqa: SLF001 - same package
    with psycopg.connect(conninfo, autocommit=True) as session:
        rows = session.execute(_STEPS, [handle.queue, handle.task_id]).fetchall()
    decode = handle._backend.application.payloads.decode  # noqa: SLF001 - as above
    return [
        Step(name, state, json.loads(decode(value)), attempt)
        for name, state, value, attempt in rows
    ]
