"""The client: an application's queue, its tasks, and its workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from durable import _foreign, _sql
from durable._application import Application, Lifespan
from durable._async.database import Database
from durable._async.handle import AsyncTaskHandle
from durable._async.results import Results
from durable._connections import SILENCE
from durable._ids import as_uuid
from durable._names import check_event_name, check_queue_name
from durable._policy import QueuePolicy, checked
from durable._requests import (
    OMITTED,
    SpawnRequest,
    check_reason,
    one_queue,
    spawn_request,
    spawn_requests,
    tasks_json,
)
from durable._results import QueueStats, TaskResult
from durable._sql import Statement
from durable._values import PLAIN, codec

# sync: from durable._worker.hosting import ThreadedWorker, run_until_signalled
from durable._worker.hosting import until_signalled
from durable._worker.options import WorkerOptions, worker_of
from durable._worker.worker import Worker
from durable.errors import UnknownQueue
from durable.options import SpawnOptions
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["AsyncDurable"]

P = TypeVar("P")
R = TypeVar("R")


class AsyncDurable:
    """An application: where its tasks are kept, and what they are.

        async with AsyncDurable("postgresql://localhost/shop", tasks=[Order]) as app:
            handle = await app.spawn(Order, {"id": 7})

    `database` is a conninfo, or an open or unopened psycopg pool, which stays yours;
    without one, DURABLE_DATABASE_URL says where. `queue` is where tasks go that name
    none. `lifespan` is called by each worker before its first claim; what its async
    context manager yields is `ctx.state`. `prepare=False` never prepares statements,
    as some poolers need; `listen=False` polls for results, where a session is not kept.
    Nothing is connected before the first call, and what was
    closed may be entered again.
    """

    def __init__(
        self,
        database: str | AsyncConnectionPool[Any] | None = None,
        *,
        queue: str = "default",
        tasks: Iterable[AnyTask] = (),
        lifespan: Lifespan | None = None,
        prepare: bool = True,
        listen: bool = True,
    ) -> None:
        self._database = Database(database, prepare=prepare)
        self.results = Results(self._database, listen=listen)
        self.application = Application(
            self._database.conninfo, queue, tasks, lifespan, prepare=prepare
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on queue {self.queue!r}>"

    @property
    def queue(self) -> str:
        """The queue of tasks that name none."""
        return self.application.queue

    async def __aenter__(self) -> Self:
        self.results.reopen()
        await self._database.reopen()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a pool that was given stays open."""
        await self._database.close()
        self.results.close()

    def register(self, *tasks: AnyTask) -> None:
        """Add tasks that workers started from now on know.

        Raises InvalidArgument if another task has the same name.
        """
        for task in tasks:
            self.application.registry.add(task)

    # -- the schema and its queues -------------------------------------------------

    async def migrate(self) -> None:
        """Install or upgrade the schema, and create `default` and the app's own queue.

        All or nothing, whoever else does the same at the same time.
        """
        await self._database.migrate({"default", self.queue})

    async def create_queue(
        self, queue: str | None = None, **policy: Unpack[QueuePolicy]
    ) -> bool:
        """Create a queue, or change the policy of one; return whether it is new.

        Raises InvalidArgument for a name or a policy it cannot have, and Forbidden
        where the role has no right to this.
        """
        statement = _sql.create_queue(self._named(queue), checked(policy))
        ((created,),) = await self.fetch(statement)
        return bool(created)

    async def drop_queue(self, queue: str | None = None) -> bool:
        """Delete a queue and everything in it; return whether there was one."""
        statement = _sql.drop_queue(self._named(queue))
        ((dropped,),) = await self._database.fetch(statement)
        return bool(dropped)

    async def list_queues(self) -> list[str]:
        """Return the names of all queues."""
        return [name for (name,) in await self.fetch(_sql.list_queues())]

    async def queue_stats(self, queue: str | None = None) -> QueueStats:
        """Count what a queue holds. Reads all of it: for people, not for loops.

        Raises UnknownQueue.
        """
        name = self._named(queue)
        rows = await self._database.fetch(_sql.queue_stats(name))
        if not rows:
            raise UnknownQueue(f'no queue "{name}"', hint="`create_queue` makes it.")
        return QueueStats(*rows[0])

    # -- tasks ---------------------------------------------------------------------

    @overload
    async def spawn(
        self,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[R]: ...
    @overload
    async def spawn(
        self, task: str, params: Any = ..., **options: Unpack[SpawnOptions]
    ) -> AsyncTaskHandle[Any]: ...
    async def spawn(
        self, task: AnyTask | str, params: Any = OMITTED, **options: Any
    ) -> AsyncTaskHandle[Any]:
        """Spawn a task, in a transaction of its own.

        Params are what the task takes, or what can be validated as that; without any
        it gets None if it takes that, else `{}`. A name that is not registered is a
        task that others run. Options are `SpawnOptions`. Raises pydantic's
        ValidationError for params, InvalidArgument for options, UnknownQueue, and
        Conflict if the idempotency key belongs to a task with another name or params;
        nothing has been written then.
        """
        request = self._request(task, params, options)
        (row,) = await self.fetch(_spawn(request))
        return self._handle(request, row)

    @overload
    async def spawn_many(
        self,
        tasks: type[Task[P, R]] | Task[P, R],
        params: Iterable[P],
        **options: Unpack[SpawnOptions],
    ) -> list[AsyncTaskHandle[R]]: ...
    @overload
    async def spawn_many(
        self, tasks: str, params: Iterable[Any], **options: Unpack[SpawnOptions]
    ) -> list[AsyncTaskHandle[Any]]: ...
    @overload
    async def spawn_many(
        self, tasks: Iterable[tuple[Any, ...]], **options: Unpack[SpawnOptions]
    ) -> list[AsyncTaskHandle[Any]]: ...
    async def spawn_many(
        self, tasks: Any, params: Iterable[Any] | None = None, **options: Any
    ) -> list[AsyncTaskHandle[Any]]:
        """Spawn many tasks in one statement, all or none.

        Either one task with an iterable of params, or an iterable of (task, params) or
        (task, params, options), whose options go before those given for all. All must
        go to one queue. Returns handles in the order
        given, and raises what `spawn` raises, for any of them.
        """
        application = self.application
        requests = spawn_requests(
            application.registry, application.queue, tasks, params, options
        )
        if not requests:
            return []
        statement = _sql.spawn_many(one_queue(requests), tasks_json(requests))
        rows = await self._database.fetch(statement)
        return [
            self._handle(request, row)
            for request, row in zip(requests, rows, strict=True)
        ]

    @overload
    async def spawn_with(
        self,
        conn: object,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[R]: ...
    @overload
    async def spawn_with(
        self,
        conn: object,
        task: str,
        params: Any = ...,
        **options: Unpack[SpawnOptions],
    ) -> AsyncTaskHandle[Any]: ...
    async def spawn_with(
        self, conn: object, task: AnyTask | str, params: Any = OMITTED, **options: Any
    ) -> AsyncTaskHandle[Any]:
        """Spawn a task in the transaction of the application's own connection.

        `conn` is a connection of psycopg (or a cursor), SQLAlchemy (or a session),
        asyncpg or Django. The task exists if and when that transaction commits; durable
        never commits it. Raises as `spawn` does; TypeError for a connection of the
        other colour, InvalidArgument for one that would commit by itself.
        """
        request = self._request(task, params, options)
        row = await _foreign.execute_async(conn, _spawn(request))
        return self._handle(request, row)

    async def emit_event(
        self, event: str, payload: Any = None, *, queue: str | None = None
    ) -> bool:
        """Emit an event, in a transaction of its own; return whether it was the first.

        The first payload counts; later ones are ignored. The payload is anything
        pydantic can serialise.
        """
        ((first,),) = await self.fetch(self._emit(event, payload, queue))
        return bool(first)

    async def emit_event_with(
        self,
        conn: object,
        event: str,
        payload: Any = None,
        *,
        queue: str | None = None,
    ) -> bool:
        """Emit an event in the transaction of the application's own connection.

        As `spawn_with`: it happens if and when that transaction commits.
        """
        row = await _foreign.execute_async(conn, self._emit(event, payload, queue))
        return bool(row[0])

    async def cancel(
        self,
        task: AsyncTaskHandle[Any] | UUID | str,
        *,
        queue: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Cancel a task and all that lives below it; return whether it was live.

        At once: what their workers write from now on is refused. Raises NotFound.
        """
        found = self._found(task, queue)
        why = None if reason is None else check_reason(reason)
        statement = _sql.cancel_task(found.queue, found.task_id, why)
        ((cancelled,),) = await self.fetch(statement)
        return bool(cancelled)

    async def retry(
        self,
        task: AsyncTaskHandle[R] | UUID | str,
        *,
        queue: str | None = None,
        max_attempts: int | None = None,
        spawn_new: bool = False,
    ) -> AsyncTaskHandle[R]:
        """Give a failed or cancelled task one more attempt, with its checkpoints.

        Tasks below it that its end had cancelled are revived with it. `spawn_new` makes
        a new task of the same name and params instead. Raises NotFound, and
        AlreadyFinished for a task in any other state.
        """
        found = self._found(task, queue)
        options: dict[str, Any] = {"spawn_new": spawn_new}
        if max_attempts is not None:
            options["max_attempts"] = max_attempts
        statement = _sql.retry_task(found.queue, found.task_id, options)
        ((task_id, run_id, attempt, created),) = await self.fetch(statement)
        return AsyncTaskHandle(
            self,
            found.queue,
            task_id,
            found.codec,
            run_id=run_id,
            attempt=attempt,
            created=created,
        )

    async def get_result(
        self, task: AsyncTaskHandle[R] | UUID | str, *, queue: str | None = None
    ) -> TaskResult[R]:
        """Return where a task stands, without waiting. Raises NotFound."""
        return await self._found(task, queue).snapshot()

    @overload
    def handle(
        self,
        task_id: UUID | str,
        task: type[Task[P, R]] | Task[P, R],
        *,
        queue: str | None = ...,
    ) -> AsyncTaskHandle[R]: ...
    @overload
    def handle(
        self,
        task_id: UUID | str,
        task: str | None = ...,
        *,
        queue: str | None = ...,
    ) -> AsyncTaskHandle[Any]: ...
    def handle(
        self,
        task_id: UUID | str,
        task: AnyTask | str | None = None,
        *,
        queue: str | None = None,
    ) -> AsyncTaskHandle[Any]:
        """Return a handle to a task by its id, without asking the database."""
        kind, home = PLAIN, None
        registry = self.application.registry
        if isinstance(task, str):
            task = registry.source_of(task)
        if task is not None:
            definition = registry.definition_for(task)
            kind, home = definition.result_codec, definition.queue
        name = self._named(home if queue is None else queue)
        return AsyncTaskHandle(self, name, as_uuid(task_id), kind)

    # -- workers -------------------------------------------------------------------

    def worker(
        self, **options: Unpack[WorkerOptions]
    ) -> (
        Worker
    ):  # sync: def worker(self, **options: Unpack[WorkerOptions]) -> ThreadedWorker:
        """Return a worker, to be used as a context manager; see WorkerOptions.

            async with app.worker(concurrency=50) as worker:
                await worker.drain()

        Signals are the host's business: `run_worker` handles them.
        """
        return worker_of(
            self.application, options
        )  # sync: return ThreadedWorker(worker_of(self.application, options))

    async def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run a worker until SIGTERM or SIGINT; a second signal ends it at once.

        Raises what no time heals: SchemaVersion, UnknownQueue, a missing right.
        """
        worker = worker_of(self.application, options)
        await until_signalled(worker)  # sync: run_until_signalled(worker)

    # -- inside --------------------------------------------------------------------

    async def fetch(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Execute one small statement, and return its rows after the commit."""
        return await self._database.fetch(statement, silence=SILENCE)

    def _request(
        self, task: AnyTask | str, params: Any, options: Mapping[str, Any]
    ) -> SpawnRequest[Any]:
        application = self.application
        return spawn_request(
            application.registry, application.queue, task, params, options
        )

    def _named(self, queue: str | None) -> str:
        return self.queue if queue is None else check_queue_name(queue)

    def _emit(self, event: str, payload: Any, queue: str | None) -> Statement:
        text = codec(type(payload)).dump(payload)
        return _sql.emit_event(self._named(queue), check_event_name(event), text)

    def _handle(
        self, request: SpawnRequest[R], row: tuple[Any, ...]
    ) -> AsyncTaskHandle[R]:
        task_id, run_id, attempt, created = row
        return AsyncTaskHandle(
            self,
            request.queue,
            UUID(str(task_id)),
            request.result_codec,
            run_id=UUID(str(run_id)),
            attempt=attempt,
            created=created,
        )

    def _found(
        self, task: AsyncTaskHandle[R] | UUID | str, queue: str | None
    ) -> AsyncTaskHandle[R]:
        if isinstance(task, AsyncTaskHandle):
            return task
        return self.handle(task, queue=queue)


def _spawn(request: SpawnRequest[Any]) -> Statement:
    return _sql.spawn(request.queue, request.task, request.params, request.options)
