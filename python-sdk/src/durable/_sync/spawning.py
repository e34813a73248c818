# Made from _async/spawning.py by tools/async_to_sync.py: edit that, not this.
"""What a client sends into a queue: tasks and events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, Unpack, overload

from durable import _foreign, _sql
from durable._names import check_event_name
from durable._requests import (
    OMITTED,
    SpawnRequest,
    one_queue,
    spawn_requests,
    tasks_json,
)
from durable._sql import Statement
from durable._sync.connected import Connected
from durable._sync.handle import TaskHandle
from durable._values import codec
from durable.options import SpawnOptions
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["Spawning"]

P = TypeVar("P")
R = TypeVar("R")


class Spawning(Connected):
    """What comes into a queue."""

    @overload
    def spawn(
        self,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[R]: ...
    @overload
    def spawn(
        self, task: str, params: Any = ..., **options: Unpack[SpawnOptions]
    ) -> TaskHandle[Any]: ...
    def spawn(
        self, task: AnyTask | str, params: Any = OMITTED, **options: Any
    ) -> TaskHandle[Any]:
        """Spawn a task, in a transaction of its own.

        Params are what the task takes, or what can be validated as that; without any
        it gets None if it takes that, else `{}`. A name that is not registered is a
        task that others run. Options are `SpawnOptions`. Raises pydantic's
        ValidationError for params, InvalidArgument for options, UnknownQueue, and
        Conflict if the idempotency key belongs to a task with another name or params;
        nothing has been written then.
        """
        request = self._request(task, params, options)
        (row,) = self.fetch(_spawn(request))
        return self._handle(request, row)

    @overload
    def spawn_many(
        self,
        tasks: type[Task[P, R]] | Task[P, R],
        params: Iterable[P],
        **options: Unpack[SpawnOptions],
    ) -> list[TaskHandle[R]]: ...
    @overload
    def spawn_many(
        self, tasks: str, params: Iterable[Any], **options: Unpack[SpawnOptions]
    ) -> list[TaskHandle[Any]]: ...
    @overload
    def spawn_many(
        self, tasks: Iterable[tuple[Any, ...]], **options: Unpack[SpawnOptions]
    ) -> list[TaskHandle[Any]]: ...
    def spawn_many(
        self, tasks: Any, params: Iterable[Any] | None = None, **options: Any
    ) -> list[TaskHandle[Any]]:
        """Spawn many tasks in one statement, all or none.

        Either one task with an iterable of params, or an iterable of (task, params) or
        (task, params, options), whose options go before those given for all. All must
        go to one queue. Returns handles in the order
        given, and raises what `spawn` raises, for any of them.
        """
        application = self.application
        asked = spawn_requests(
            application.registry,
            application.queue,
            tasks,
            params,
            application.stamped(options),
        )
        requests = [request.sealed(application.vault) for request in asked]
        if not requests:
            return []
        statement = _sql.spawn_many(one_queue(requests), tasks_json(requests))
        rows = self._database.fetch(statement)
        return [
            self._handle(request, row)
            for request, row in zip(requests, rows, strict=True)
        ]

    @overload
    def spawn_with(
        self,
        conn: object,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[R]: ...
    @overload
    def spawn_with(
        self,
        conn: object,
        task: str,
        params: Any = ...,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[Any]: ...
    def spawn_with(
        self, conn: object, task: AnyTask | str, params: Any = OMITTED, **options: Any
    ) -> TaskHandle[Any]:
        """Spawn a task in the transaction of the application's own connection.

        `conn` is a connection of psycopg (or a cursor), SQLAlchemy (or a session),
        asyncpg or Django. The task exists if and when that transaction commits; durable
        never commits it. Raises as `spawn` does; TypeError for a connection of the
        other colour, InvalidArgument for one that would commit by itself.
        """
        request = self._request(task, params, options)
        row = _foreign.execute(conn, _spawn(request))
        return self._handle(request, row)

    def emit_event(
        self,
        event: str,
        payload: Any = None,
        *,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Emit an event, in a transaction of its own; return whether it was the first.

        The first payload counts; later ones are ignored. The payload is anything
        pydantic can serialise, as `as_type` if it is given, else as its class.
        """
        ((first,),) = self.fetch(self._emit(event, payload, queue, as_type))
        return bool(first)

    def emit_event_with(
        self,
        conn: object,
        event: str,
        payload: Any = None,
        *,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Emit an event in the transaction of the application's own connection.

        As `spawn_with`: it happens if and when that transaction commits.
        """
        statement = self._emit(event, payload, queue, as_type)
        row = _foreign.execute(conn, statement)
        return bool(row[0])

    def _emit(
        self, event: str, payload: Any, queue: str | None, as_type: Any
    ) -> Statement:
        plain = codec(as_type or type(payload)).dump(payload)
        text = self.application.vault.sealed(plain)
        return _sql.emit_event(self._named(queue), check_event_name(event), text)


def _spawn(request: SpawnRequest[Any]) -> Statement:
    return _sql.spawn(request.queue, request.task, request.params, request.options)
