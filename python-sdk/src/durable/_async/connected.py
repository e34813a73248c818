"""What every call of a client has in common: a database, and the application in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from durable._application import Application, Lifespan
from durable._async.database import Database
from durable._async.handle import AsyncTaskHandle
from durable._async.results import Results
from durable._connections import SILENCE, checked_conninfo
from durable._hearing import Ear
from durable._ids import as_uuid
from durable._names import check_queue_name
from durable._requests import (
    SpawnRequest,
    spawn_request,
)
from durable._sql import Statement
from durable._values import PLAIN
from durable.codecs import PayloadCodec
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["Connected"]

P = TypeVar("P")
R = TypeVar("R")


class Connected:
    """An application and its connections; what is closed may be entered again."""

    def __init__(
        self,
        database: str | AsyncConnectionPool[Any] | None = None,
        *,
        queue: str = "default",
        tasks: Iterable[AnyTask] = (),
        lifespan: Lifespan | None = None,
        prepare: bool = True,
        listen: bool = True,
        listen_url: str | None = None,
        codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
        version: str | None = None,
        keep_logs: int | None = None,
    ) -> None:
        self._database = Database(database, prepare=prepare)
        address = self._database.address
        direct = address if listen_url is None else checked_conninfo(listen_url)
        self.results = Results(self._database, direct or "", listen=listen)
        self.news = Ear(direct or "", listen=listen and direct is not None)
        self.application = Application(
            address,
            queue,
            tasks,
            lifespan,
            prepare=prepare,
            listen_conninfo=direct or "",
            codec=codec,
            version=version,
            keep_logs=keep_logs,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on queue {self.queue!r}>"

    @property
    def queue(self) -> str:
        """The queue of tasks that name none."""
        return self.application.queue

    async def __aenter__(self) -> Self:
        self.results.reopen()
        self.news.reopen()
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
        self.news.close()

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

    async def fetch(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Execute one small statement, and return its rows after the commit."""
        return await self._database.fetch(statement, silence=SILENCE)

    def _request(
        self, task: AnyTask | str, params: Any, options: Mapping[str, Any]
    ) -> SpawnRequest[Any]:
        application = self.application
        request = spawn_request(
            application.registry,
            application.queue,
            task,
            params,
            application.stamped(options),
        )
        return request.sealed(application.vault)

    def _named(self, queue: str | None) -> str:
        return self.queue if queue is None else check_queue_name(queue)

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
