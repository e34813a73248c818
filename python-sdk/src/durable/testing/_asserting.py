"""What a test asks of tasks: which were spawned, and what one has done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, overload
from uuid import UUID

import psycopg

from durable._async.handle import AsyncTaskHandle
from durable._requests import OMITTED
from durable._sync.handle import TaskHandle
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
    """A task that was spawned: with what, by which task, and where it stands."""

    params: P
    queue: str
    task_id: UUID
    parent_task_id: UUID | None
    state: str


@dataclass(frozen=True, slots=True)
class Step:
    """A checkpoint of a task: of a step by its name, of anything else by `$kind:name`.

    `state` is done, failed or timed_out, `attempt` the one that saved it; `value` is
    plain JSON.
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
    """Return the tasks of this kind that were spawned, by whomever, oldest first."""
    registry = app.application.registry
    definition = registry.definition_for(task)
    opened = app.application.vault.opened
    with psycopg.connect(app.application.conninfo, autocommit=True) as session:
        rows = session.execute(_SPAWNED, [definition.name]).fetchall()
    return [
        Spawned(definition.load_params(opened(params)), queue, task_id, parent, state)
        for queue, task_id, params, parent, state in rows
    ]


def assert_spawned(
    app: App,
    task: AnyTask | str,
    params: Any = OMITTED,
    *,
    times: int | None = None,
) -> None:
    """Fail unless the task was spawned, with these params if any are given.

    At least once, or exactly `times` as often: 0 is for never.
    """
    found = spawned(app, task)
    matching = [one for one in found if params is OMITTED or one.params == params]
    if len(matching) == times or (times is None and matching):
        return
    wanted = "at least once" if times is None else f"{times} times"
    what = "" if params is OMITTED else f" with {params!r}"
    name = task if isinstance(task, str) else task.name
    listed = "".join(f"\n  {one.params!r} ({one.state})" for one in found)
    raise AssertionError(
        f"{name} was to be spawned {wanted}{what}, and was {len(matching)} times;"
        f" all that were spawned: {listed or 'none'}"
    )


def steps_of(handle: AsyncTaskHandle[Any] | TaskHandle[Any]) -> list[Step]:
    """Return what a task has saved, in that order."""
    conninfo = handle._app.application.conninfo  # noqa: SLF001 - of our own
    with psycopg.connect(conninfo, autocommit=True) as session:
        rows = session.execute(_STEPS, [handle.queue, handle.task_id]).fetchall()
    opened = handle._app.application.vault.opened  # noqa: SLF001 - as above
    return [
        Step(name, state, json.loads(opened(value)), attempt)
        for name, state, value, attempt in rows
    ]
