"""Running one task to its end, here, with whatever time and events that takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar, Unpack, overload
from uuid import UUID

import psycopg

from durable import _sql
from durable._requests import OMITTED, SpawnRequest, spawn_request
from durable._results import FINAL, opened, output
from durable._sql import Statement
from durable._values import PLAIN
from durable.errors import InvalidArgument, from_database
from durable.options import SpawnOptions
from durable.registry import AnyTask
from durable.task import Task
from durable.testing._clock import EngineClock
from durable.testing._driving import PATIENCE, App, Driver

__all__ = ["Stuck", "bring_to_an_end", "request_of", "run_inline", "spawn_on"]

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
    """The task cannot come to its end by itself; the message says what it waits for."""


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
    params: Any = OMITTED,
    *,
    events: Mapping[str, Any] | None = None,
    patience: float = PATIENCE,
    **options: Any,
) -> Any:
    """Run a task to its end in the test's own loop, and return its output.

    It is spawned and run by a worker, with real checkpoints. When it waits, one of the
    `events` that is waited for is emitted, with its payload; else the clock jumps to
    the next moment at which something is due, be it a timeout. Its children run, too.
    Raises what its end means, as `result()` does; Stuck, an AssertionError, if it waits
    for an event that is not among these; TimeoutError after `patience` seconds at one
    moment. The database must have been made for tests.
    """
    request = request_of(app, task, params, options)
    with EngineClock(app) as clock:
        async with Driver([app], clock.session, patience=patience) as driver:
            task_id = spawn_on(driver.session, request)
            await bring_to_an_end(
                clock, driver, request.queue, task_id, dict(events or {})
            )
            (row,) = fetch(driver.session, _sql.get_task_result(request.queue, task_id))
    return output(opened(row, app.application.vault), request.result_codec)


def request_of(
    app: App, task: AnyTask | str, params: Any, options: Mapping[str, Any]
) -> SpawnRequest[Any]:
    """Check a spawn. Raises InvalidArgument for a task that the app does not run."""
    application = app.application
    name = task if isinstance(task, str) else task.name
    if name not in application.registry.by_name:
        raise InvalidArgument(application.registry.unknown(name))
    given = application.stamped(options)
    request = spawn_request(
        application.registry, application.queue, task, params, given
    )
    return request.sealed(application.vault)


def spawn_on(session: psycopg.Connection[Any], request: SpawnRequest[Any]) -> UUID:
    """Spawn a task on a session, and return its id."""
    asked = _sql.spawn(request.queue, request.task, request.params, request.options)
    ((task_id, *_),) = fetch(session, asked)
    return UUID(str(task_id))


async def bring_to_an_end(
    clock: EngineClock,
    driver: Driver,
    queue: str,
    task_id: UUID,
    events: dict[str, Any],
) -> None:
    """Settle, emit and jump until a task has finished. Raises Stuck."""
    await driver.settle(clock.now())
    while _state(driver.session, queue, task_id) not in FINAL:
        if not _emit_one(driver.session, events):
            due = clock.next_due()
            if due is None:
                raise Stuck(_why(driver.session))
            clock.jump_to(due)
        await driver.settle(clock.now())


def fetch(
    session: psycopg.Connection[Any], statement: Statement
) -> list[tuple[Any, ...]]:
    """Execute a statement of the gateway. Raises durable's own errors."""
    try:
        cursor = session.execute(statement.text.encode(), statement.args)
        return cursor.fetchall()
    except psycopg.Error as error:
        raise from_database(error) from error


def _state(session: psycopg.Connection[Any], queue: str, task_id: UUID) -> str:
    (row,) = fetch(session, _sql.get_task_result(queue, task_id))
    return str(row[1])


def _emit_one(session: psycopg.Connection[Any], events: dict[str, Any]) -> bool:
    """Emit the first event that is waited for, once; False if there is none."""
    awaited = {name: queue for queue, name in session.execute(_AWAITED, [list(events)])}
    for name in events:
        if name in awaited:
            payload = PLAIN.dump(events.pop(name))
            fetch(session, _sql.emit_event(awaited[name], name, payload))
            return True
    return False


def _why(session: psycopg.Connection[Any]) -> str:
    waits = [
        f"{task} waits for {wait}"
        for task, wait in session.execute(_WAITING).fetchall()
    ]
    return (
        "no time brings the task to its end: "
        + ("; ".join(waits) or "nothing runs it")
        + ". An event can be given in events={name: payload}"
    )
