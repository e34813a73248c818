"""Runs one task to its end in the test's own loop, moving time and emitting events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar, Unpack, overload
from uuid import UUID

import psycopg

from durable._core import sql
from durable._core.reports import FINAL, output
from durable._core.spawn_requests import UNSET, SpawnRequest, request_by
from durable._core.sql import Statement
from durable._core.values import PLAIN
from durable._db.application import application_of
from durable.errors import InvalidArgument, from_database
from durable.options import SpawnOptions
from durable.registry import AnyTask
from durable.task import Task
from durable.testing._clock import EngineClock
from durable.testing._driving import PATIENCE, App, Driver

__all__ = ["Stuck", "request_of", "run_inline", "run_to_end", "spawn_on"]

P = TypeVar("P")
R = TypeVar("R")

_AWAITED: Final = """
select distinct waits.queue, waits.event_name
from durable.waits join durable.tasks using (queue, task_id)
where waits.event_name = any (%s) and tasks.finished_at is null
"""
_WAITING: Final = """
select task, wait from durable.waiting order by task_id, wait
"""


class Stuck(AssertionError):
    """The task cannot finish by itself; the message says what it waits for."""


@overload
async def run_inline(
    app: App,
    task: type[Task[P, R]] | Task[P, R],
    params: P = ...,
    *,
    events: Mapping[str, Any] | None = ...,
    patience: float = ...,
    **options: Unpack[SpawnOptions],
) -> R: ...
@overload
async def run_inline(
    app: App,
    task: str,
    params: Any = ...,
    *,
    events: Mapping[str, Any] | None = ...,
    patience: float = ...,
    **options: Unpack[SpawnOptions],
) -> Any: ...
async def run_inline(
    app: App,
    task: AnyTask | str,
    params: Any = UNSET,
    *,
    events: Mapping[str, Any] | None = None,
    patience: float = PATIENCE,
    **options: Any,
) -> Any:
    """Run a task to its end in the test's own loop, and return its output.

    It is spawned and run by a worker, with real checkpoints. When it waits for one of
    the `events`, that event is emitted with its payload. Otherwise the clock jumps to
    the next time at which something is due, which may be a timeout. Its children run,
    too. Raises the same errors as `result()`; Stuck, an AssertionError, if it waits for
    an event that is not among `events`; TimeoutError after `patience` seconds of real
    time without a jump. The database must have been made for tests.
    """
    request = request_of(app, task, params, options)
    with EngineClock(app) as clock:
        async with Driver([app], clock.session, patience=patience) as driver:
            task_id = spawn_on(driver.session, request)
            await run_to_end(clock, driver, request.queue, task_id, dict(events or {}))
            (row,) = fetch(driver.session, sql.get_task_result(request.queue, task_id))
    return output(row, application_of(app).payloads, request.result_codec)


def request_of(
    app: App, task: AnyTask | str, params: Any, options: Mapping[str, Any]
) -> SpawnRequest[Any]:
    """Make a spawn request. Raises InvalidArgument for a task unknown to the app."""
    application = application_of(app)
    name = task if isinstance(task, str) else task.name
    if name not in application.registry.by_name:
        raise InvalidArgument(application.registry.unknown(name))
    return application.prepared(request_by(application, task, params, options))


def spawn_on(session: psycopg.Connection[Any], request: SpawnRequest[Any]) -> UUID:
    """Spawn a task in a session, and return its id."""
    statement = sql.spawn(request.queue, request.task, request.params, request.options)
    ((task_id, *_),) = fetch(session, statement)
    return UUID(str(task_id))


async def run_to_end(
    clock: EngineClock,
    driver: Driver,
    queue: str,
    task_id: UUID,
    events: dict[str, Any],
) -> None:
    """Settle, emit events and jump until a task has finished. Raises Stuck."""
    settled_at = clock.now()
    await driver.settle(settled_at)
    while _state(driver.session, queue, task_id) not in FINAL:
        if (
            not _emit_one(driver.session, events)
            # ticks never end, so a task that waits for ever would not be noticed
            and clock.jump_to_next_due(driver, settled_at, schedules=False) is None
        ):
            raise Stuck(_stuck_message(driver.session))
        settled_at = clock.now()
        await driver.settle(settled_at)


def fetch(
    session: psycopg.Connection[Any], statement: Statement
) -> list[tuple[Any, ...]]:
    """Execute a statement. Raises durable's own errors."""
    try:
        cursor = session.execute(statement.text.encode(), statement.args)
        return cursor.fetchall()
    except psycopg.Error as error:
        raise from_database(error) from error


def _state(session: psycopg.Connection[Any], queue: str, task_id: UUID) -> str:
    (row,) = fetch(session, sql.get_task_result(queue, task_id))
    return str(row[1])


def _emit_one(session: psycopg.Connection[Any], events: dict[str, Any]) -> bool:
    """Emit the first event that is awaited, once. Returns False if there is none."""
    awaited = {name: queue for queue, name in session.execute(_AWAITED, [list(events)])}
    for name in events:
        if name in awaited:
            payload = PLAIN.dump(events.pop(name))
            fetch(session, sql.emit_event(awaited[name], name, payload))
            return True
    return False


def _stuck_message(session: psycopg.Connection[Any]) -> str:
    waits = [
        f"{task} waits for {wait}"
        for task, wait in session.execute(_WAITING).fetchall()
    ]
    return (
        "the task cannot finish by the passing of time: "
        + ("; ".join(waits) or "nothing runs it")
        + ". An event can be given in events={name: payload}"
    )
