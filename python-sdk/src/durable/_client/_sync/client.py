# Made from _async/client.py by tools/async_to_sync.py: edit that, not this.
"""The client of an application: spawn and control tasks, manage queues, run workers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, overload
from uuid import UUID
from zoneinfo import ZoneInfo

from psycopg_pool import ConnectionPool

from durable._client._sync.handle import TaskHandle, caller
from durable._client._sync.waiters import Backend
from durable._core import sql
from durable._core.arguments import (
    as_uuid,
    check_event_name,
    check_partition_key,
    check_queue_name,
    check_schedule_name,
    check_version,
    moment,
    moment_text,
    required_seconds,
)
from durable._core.audit import (
    AuditEntry,
    AuditFilter,
    audit_entry,
    checked_audit_filter,
)
from durable._core.messages import Addressed, Recipient, message, queue_of, task_id_of
from durable._core.metrics import Depth, TaskTotal, Throughput
from durable._core.reports import (
    AnnouncedTask,
    EventInfo,
    Explanation,
    Finding,
    PartitionInfo,
    QueueStats,
    ScheduleInfo,
    ScheduleRun,
    TaskFilter,
    TaskInfo,
    TaskList,
    TaskResult,
    VersionStats,
    WorkerInfo,
    checked_filter,
    checked_limit,
    event_info,
    is_task,
    partition_info,
    queue_stats,
    schedule_info,
    task_info,
)
from durable._core.schedule_requests import schedule_request, schedules_json
from durable._core.spawn_requests import (
    UNSET,
    SpawnRequest,
    batches_by,
    check_reason,
    one_queue,
    request_by,
    requests_by,
    tasks_json,
)
from durable._core.sql import Statement
from durable._core.values import JSON, PLAIN, Codec, codec
from durable._db import drivers
from durable._db._sync.database import Database
from durable._db.application import Application, Lifespan
from durable._db.conninfo import checked_conninfo
from durable._worker.hosting import ThreadedWorker, run_until_signalled
from durable._worker.options import WorkerOptions, worker_of
from durable.codecs import PayloadCodec
from durable.errors import InvalidArgument, NotFound, QueueFull, UnknownQueue
from durable.middleware import Middleware
from durable.options import (
    OnFull,
    PartitionLimits,
    QueuePolicy,
    SpawnOptions,
    check_choice,
    limits_json,
    policy_json,
)
from durable.registry import AnyTask
from durable.schedules import Schedule
from durable.task import Task

__all__ = ["Durable"]

P = TypeVar("P")
R = TypeVar("R")


_BATCH: Final = 1000  # tasks per statement
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0


class Durable:
    """The client of an application: a database, a default queue and its tasks.

        with Durable("postgresql://localhost/shop", tasks=[Order]) as app:
            handle = app.spawn(Order, {"id": 7})

    `database` is a conninfo, or a psycopg pool, open or not, which durable never
    closes; by default DURABLE_DATABASE_URL of the environment. `queue` is for tasks
    without a queue of their own. `lifespan` is called by each worker before its first
    claim; the value that its async context manager yields is `ctx.state`.

    `prepare=False` never prepares statements, as some poolers need. Behind a pooler
    that does not keep sessions, `listen_url` is the address of the same database
    without the pooler, for notifications of work and results. `listen=False` polls for
    results instead.

    `version` is the version of your code, by default DURABLE_APP_VERSION of the
    environment, if set; it matters in queues with a policy for versions. `keep_logs`
    stores with each task the lines of all loggers from this level on, such as
    `logging.INFO`; by default, those of `ctx.logger` from INFO on. `middleware` is code
    around every spawn, run and step; the first is the outermost.

    It connects at the first call, and may be entered again after `close`.
    """

    def __init__(
        self,
        database: str | ConnectionPool[Any] | None = None,
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
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._database = Database(database, prepare=prepare)
        address = self._database.address
        direct = address if listen_url is None else checked_conninfo(listen_url)
        self._application = Application(
            address,
            queue,
            tasks,
            lifespan,
            prepare=prepare,
            listen_conninfo=direct or "",
            codec=codec,
            version=version,
            keep_logs=keep_logs,
            middleware=middleware,
        )
        self._backend = Backend(
            self._database, self._application, direct if listen else None
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on queue {self.queue!r}>"

    @property
    def queue(self) -> str:
        """The queue of tasks without a queue of their own."""
        return self._application.queue

    def __enter__(self) -> Self:
        self._backend.reopen()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a pool of the application stays open."""
        self._backend.close()

    @overload
    def handle(
        self,
        task_id: UUID | str,
        task: type[Task[P, R]] | Task[P, R],
        *,
        queue: str | None = ...,
    ) -> TaskHandle[R]: ...
    @overload
    def handle(
        self,
        task_id: UUID | str,
        task: str | None = ...,
        *,
        queue: str | None = ...,
    ) -> TaskHandle[Any]: ...
    def handle(
        self,
        task_id: UUID | str,
        task: AnyTask | str | None = None,
        *,
        queue: str | None = None,
    ) -> TaskHandle[Any]:
        """Return a handle of a task by its id, without a query."""
        kind, home = PLAIN, None
        registry = self._application.registry
        if isinstance(task, str):
            task = registry.source_of(task)
        if task is not None:
            definition = registry.definition_for(task)
            kind, home = definition.result_codec, definition.queue
        name = self._checked_queue(home if queue is None else queue)
        return TaskHandle(self._backend, name, as_uuid(task_id), kind)

    def _checked_queue(self, queue: str | None) -> str:
        return self.queue if queue is None else check_queue_name(queue)

    def _handle(self, request: SpawnRequest[R], row: tuple[Any, ...]) -> TaskHandle[R]:
        return self._spawned(request.queue, row, request.result_codec)

    def _spawned(
        self, queue: str, row: tuple[Any, ...], result_codec: Codec[R]
    ) -> TaskHandle[R]:
        task_id, run_id, attempt, created = row
        return TaskHandle(
            self._backend,
            queue,
            UUID(str(task_id)),
            result_codec,
            run_id=UUID(str(run_id)),
            attempt=attempt,
            created=created,
        )

    def _handle_of(
        self, task: TaskHandle[R] | Recipient, queue: str | None
    ) -> TaskHandle[R]:
        home = queue_of(task, queue, self.queue)
        if isinstance(task, TaskHandle):
            return task
        return self.handle(task_id_of(task), queue=home)

    # -- workers -----------------------------------------------------------------

    def register(self, *tasks: AnyTask) -> None:
        """Register tasks, for workers that are started from now on.

        Raises InvalidArgument if another task has the same name.
        """
        for task in tasks:
            self._application.registry.add(task)

    def worker(self, **options: Unpack[WorkerOptions]) -> ThreadedWorker:
        """Return a worker, to be used as a context manager; see WorkerOptions.

            with app.worker(concurrency=50) as worker:
                worker.drain()

        It does not handle signals; `run_worker` does.
        """
        return ThreadedWorker(worker_of(self._application, options))

    def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run a worker until SIGTERM, SIGINT or SIGHUP.

        A second SIGTERM or SIGINT exits at once. Raises permanent errors:
        SchemaVersion, UnknownQueue, Forbidden.
        """
        worker = worker_of(self._application, options)
        run_until_signalled(worker)

    # -- the schema and its queues -----------------------------------------------

    def migrate(self) -> None:
        """Install or upgrade the schema, and create `default` and the app's own queue.

        All or nothing; concurrent calls are safe.
        """
        self._database.migrate({"default", self.queue})

    def check_schema(self) -> str:
        """Describe what `migrate` would do; empty if it would do nothing.

        It changes nothing.
        """
        return self._database.check_schema({"default", self.queue})

    def create_queue(
        self,
        queue: str | None = None,
        *,
        identity: Mapping[str, JSON] | None = None,
        **policy: Unpack[QueuePolicy],
    ) -> bool:
        """Create a queue, or change its policy; return whether it is new.

        `identity` is as in `cancel`. Raises InvalidArgument for an invalid name or
        policy, and Forbidden if the role may not do this.
        """
        name, by = self._checked_queue(queue), caller(identity)
        statement = sql.create_queue(name, policy_json(policy), by)
        ((created,),) = self._database.fetch(statement)
        return bool(created)

    def set_partition_limit(
        self,
        partition_key: str,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
        **limits: Unpack[PartitionLimits],
    ) -> None:
        """Give the tasks with this partition_key limits of their own.

        They replace the queue's `partition_concurrency` and `partition_rate`, from the
        next claim on. Without any, the queue's apply again. `identity` is as in
        `cancel`. Raises InvalidArgument for invalid limits, and for a queue whose
        policy has neither limits nor priorities.
        """
        name = self._checked_queue(queue)
        key = check_partition_key(partition_key)
        by = caller(identity)
        statement = sql.set_partition_limit(name, key, limits_json(limits), by)
        self._database.fetch(statement)

    def list_partitions(
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        queue: str | None = None,
    ) -> list[PartitionInfo]:
        """Return at most `limit` partitions of a queue by key, those after `after`.

        These are the keys of tasks that wait to be claimed or have started and not
        ended, those with limits of their own, and for some time others.
        """
        name = self._checked_queue(queue)
        statement = sql.list_partitions(name, checked_limit(limit), after)
        rows = self._database.fetch(statement)
        return [partition_info(name, row) for row in rows]

    def drop_queue(
        self,
        queue: str | None = None,
        *,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Delete a queue and everything in it; return whether there was one.

        What `list_audit` returns stays. `identity` is as in `cancel`.
        """
        statement = sql.drop_queue(self._checked_queue(queue), caller(identity))
        ((dropped,),) = self._database.fetch(statement, slow=True)
        return bool(dropped)

    def list_queues(self) -> list[str]:
        """Return the names of all queues."""
        return [name for (name,) in self._database.fetch(sql.list_queues())]

    def queue_stats(
        self, queue: str | None = None, *, exact: bool = False
    ) -> QueueStats:
        """Return the numbers of tasks of a queue, and its pauses.

        `exact` counts all its tasks, however many: do not do that in a loop. Raises
        UnknownQueue.
        """
        name = self._checked_queue(queue)
        rows = self._database.fetch(sql.queue_stats(name, exact), slow=exact)
        if not rows:
            raise UnknownQueue(f'no queue "{name}"', hint="`create_queue` makes it.")
        return queue_stats(rows[0])

    def queue_throughput(
        self,
        queue: str | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        bucket: timedelta | float = 60,
        by_name: bool = False,
    ) -> list[Throughput]:
        """Return what happened to a queue's tasks over time, with their latencies.

        From `since`, by default a day before `until`, to `until`, by default now, for
        each `bucket` of at least a minute in which anything happened; `by_name` also
        for each task name. Numbers are those of a minute, after two days of an hour,
        and are kept for the queue's `keep_metrics`. Raises InvalidArgument and
        UnknownQueue.
        """
        statement = sql.queue_throughput(
            self._checked_queue(queue), *_buckets(since, until, bucket), by_name
        )
        return [Throughput(*row) for row in self._database.fetch(statement)]

    def queue_depth(
        self,
        queue: str | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        bucket: timedelta | float = 60,
    ) -> list[Depth]:
        """Return how many live tasks a queue had over time, in the last two days.

        As `queue_throughput`, from samples that workers take every ten seconds while
        there are live tasks; a `bucket` has at least ten seconds.
        """
        statement = sql.queue_depth(
            self._checked_queue(queue), *_buckets(since, until, bucket)
        )
        return [Depth(*row) for row in self._database.fetch(statement)]

    def task_totals(self, queue: str | None = None) -> list[TaskTotal]:
        """Return how many tasks of each name a queue has, without counting them.

        They are added up when tasks are spawned and end. Raises UnknownQueue.
        """
        rows = self._database.fetch(sql.task_totals(self._checked_queue(queue)))
        return [TaskTotal(*row) for row in rows]

    def recount_totals(self, queue: str | None = None) -> int:
        """Count all tasks of a queue, and correct its totals after a database's crash.

        Returns for how many task names they were wrong. Raises UnknownQueue.
        """
        statement = sql.recount_totals(self._checked_queue(queue))
        ((corrected,),) = self._database.fetch(statement, slow=True)
        return int(corrected)

    def pause_queue(
        self,
        queue: str | None = None,
        *,
        task: AnyTask | str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Pause a queue, or one task of it: none of its tasks is claimed any more.

        Running tasks go on; deadlines still count, and spawns are accepted. Returns
        False if it was paused already. `identity` is as in `cancel`; `queue_stats` and
        `explain` show it. Raises UnknownQueue.
        """
        target = self._queue_and_name(queue, task)
        statement = sql.pause_queue(*target, caller(identity))
        ((paused,),) = self._database.fetch(statement)
        return bool(paused)

    def resume_queue(
        self,
        queue: str | None = None,
        *,
        task: AnyTask | str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Resume a paused queue, or one paused task of it; workers are notified.

        Tasks that were paused by name stay paused when their queue is resumed. Returns
        False if it was not paused. `identity` is as in `cancel`. Raises UnknownQueue.
        """
        target = self._queue_and_name(queue, task)
        statement = sql.resume_queue(*target, caller(identity))
        ((resumed,),) = self._database.fetch(statement)
        return bool(resumed)

    def _queue_and_name(
        self, queue: str | None, task: AnyTask | str | None
    ) -> tuple[str, str | None]:
        if task is None or isinstance(task, str):
            return self._checked_queue(queue), task
        definition = self._application.registry.definition_for(task)
        home = definition.queue if queue is None else queue
        return self._checked_queue(home), definition.name

    # -- spawning, and events ----------------------------------------------------

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
        self, task: AnyTask | str, params: Any = UNSET, **options: Any
    ) -> TaskHandle[Any]:
        """Spawn a task, in a transaction of its own.

        Params are validated as the task's type; without params, it gets None if it
        takes None, else `{}`. A name that is not registered stands for a task of other
        workers. Options are `SpawnOptions`. Raises pydantic's ValidationError for
        params, InvalidArgument for options, UnknownQueue, and Conflict if the
        idempotency key belongs to a task with another name or params, or if an
        unfinished task has the key of `unique`, which rejects another; nothing has been
        written then.
        """
        application = self._application
        request = request_by(application, task, params, options)
        with application.spawning(request) as sending:
            statement = _spawn(application.prepared(request))
            (row,) = self._database.fetch(statement)
            if sending is not None:
                sending.task_ids = _ids([row])
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

        Takes one task and an iterable of params, or an iterable of (task, params) or
        (task, params, options), whose options override those given for all. All must go
        to one queue. Returns handles in the order given, and raises what `spawn` raises
        for any of them.
        """
        requests = requests_by(self._application, tasks, params, options)
        rows = self._spawn_all(requests)
        return [
            self._handle(request, row)
            for request, row in zip(requests, rows, strict=True)
        ]

    @overload
    def spawn_in_batches(
        self,
        tasks: type[Task[P, R]] | Task[P, R],
        params: Iterable[P],
        *,
        batch_size: int = ...,
        on_full: OnFull = ...,
        **options: Unpack[SpawnOptions],
    ) -> int: ...
    @overload
    def spawn_in_batches(
        self,
        tasks: str,
        params: Iterable[Any],
        *,
        batch_size: int = ...,
        on_full: OnFull = ...,
        **options: Unpack[SpawnOptions],
    ) -> int: ...
    @overload
    def spawn_in_batches(
        self,
        tasks: Iterable[tuple[Any, ...]],
        *,
        batch_size: int = ...,
        on_full: OnFull = ...,
        **options: Unpack[SpawnOptions],
    ) -> int: ...
    def spawn_in_batches(
        self,
        tasks: Any,
        params: Iterable[Any] | None = None,
        *,
        batch_size: int = 1000,
        on_full: OnFull = "raise",
        **options: Any,
    ) -> int:
        """Spawn any number of tasks, `batch_size` of them in each transaction.

        Takes what `spawn_many` takes, but reads it batch by batch, so a generator of
        millions needs little memory. While the queue is full, `on_full="wait"` waits
        until workers have made room for the next batch; "raise" raises QueueFull.
        Returns how many tasks were created. If it raises, as `spawn_many` does, earlier
        batches have been spawned: give each task an idempotency key, and call it again
        with all of them.
        """
        created = 0
        waits = check_choice(on_full, OnFull, "on_full") == "wait"
        batches = batches_by(self._application, tasks, params, options, batch_size)
        for requests in batches:
            rows = self._spawn_with_room(requests, waits=waits)
            created += sum(new for *_, new in rows)
        return created

    def _spawn_with_room(
        self, requests: Sequence[SpawnRequest[Any]], *, waits: bool
    ) -> list[tuple[Any, ...]]:
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._spawn_all(requests)
            except QueueFull:
                if not waits:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _spawn_all(
        self, requests: Sequence[SpawnRequest[Any]]
    ) -> list[tuple[Any, ...]]:
        if not requests:
            return []
        application, queue = self._application, one_queue(requests)
        with application.spawning(*requests) as sending:
            prepared = [application.prepared(request) for request in requests]
            statement = sql.spawn_many(queue, tasks_json(prepared))
            rows = self._database.fetch(statement, slow=True)
            if sending is not None:
                sending.task_ids = _ids(rows)
        return rows

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
        self, conn: object, task: AnyTask | str, params: Any = UNSET, **options: Any
    ) -> TaskHandle[Any]:
        """Spawn a task in the transaction of a connection of the application.

        `conn` is a connection of psycopg (or a cursor), SQLAlchemy (or a session),
        asyncpg or Django. The task exists if and when that transaction commits; durable
        never commits it. Raises as `spawn` does; TypeError if an async connection is
        given to a sync client or the reverse, InvalidArgument for a connection outside
        a transaction.
        """
        application = self._application
        request = request_by(application, task, params, options)
        with application.spawning(request) as sending:
            statement = _spawn(application.prepared(request))
            row = drivers.execute(conn, statement)
            if sending is not None:
                sending.task_ids = _ids([row])
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

        The first payload counts; later ones are ignored. Pydantic serializes it as
        `as_type`, by default as its class.
        """
        statement = self._emit(event, payload, queue, as_type)
        with self._application.emitting(event, queue):
            ((first,),) = self._database.fetch(statement)
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
        """Emit an event in the transaction of a connection of the application.

        As `spawn_with`: it takes effect if and when that transaction commits.
        """
        statement = self._emit(event, payload, queue, as_type)
        with self._application.emitting(event, queue):
            row = drivers.execute(conn, statement)
        return bool(row[0])

    def _emit(
        self, event: str, payload: Any, queue: str | None, as_type: Any
    ) -> Statement:
        plain = codec(as_type or type(payload)).dump(payload)
        text = self._application.payloads.encode(plain)
        return sql.emit_event(self._checked_queue(queue), check_event_name(event), text)

    # -- messages ----------------------------------------------------------------

    def send(
        self,
        task: Recipient,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send a message to an unfinished task, in a transaction of its own.

        The task receives it once, with `ctx.recv(topic)`, in the order of sending.
        Pydantic serializes the payload as `as_type`, by default as its class. Returns
        False, and sends nothing, if a message with this `dedup_key` was sent to the
        task before. Raises NotFound, UnknownQueue, and AlreadyFinished if the task has
        finished.
        """
        return self._handle_of(task, queue).send(
            topic, payload, dedup_key=dedup_key, as_type=as_type
        )

    def send_with(
        self,
        conn: object,
        task: Recipient,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send a message in the transaction of a connection of the application.

        As `spawn_with`: it is sent if and when that transaction commits. Until then,
        other sends to the task on this topic block.
        """
        home = queue_of(task, queue, self.queue)
        sent = message(task, home, topic, payload, dedup_key=dedup_key, as_type=as_type)
        sealed = sent.encoded(self._application.payloads)
        with self._application.sending(sealed):
            row = drivers.execute(conn, sql.send_message(*sealed))
        return bool(row[0])

    # -- one task ----------------------------------------------------------------

    def cancel(
        self,
        task: TaskHandle[Any] | TaskInfo | UUID | str,
        *,
        queue: str | None = None,
        reason: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Cancel a task and its descendants; return whether it was unfinished.

        It takes effect at once: later writes of their workers are refused. `identity`
        names the requester, such as {"user": "ada"}, in the task's history. Raises
        NotFound.
        """
        return self._handle_of(task, queue).cancel(reason=reason, identity=identity)

    def reschedule(
        self,
        task: TaskHandle[Any] | TaskInfo | UUID | str,
        run_at: datetime,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Let a task that has not started yet start at `run_at`, an aware datetime.

        If it has passed, the task may start at once. Its `start_timeout` counts from
        there. Returns False if it has started or ended already. `identity` is as in
        `cancel`. Raises NotFound, and InvalidArgument if the task's deadline comes
        first.
        """
        handle: TaskHandle[Any] = self._handle_of(task, queue)
        return handle.reschedule(run_at, identity=identity)

    def reprioritize(
        self,
        task: TaskHandle[Any] | TaskInfo | UUID | str,
        priority: int,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> None:
        """Give an unfinished task another priority, from its next claim on.

        Of a task that runs, it counts when it has waited. `identity` is as in `cancel`.
        Raises NotFound, AlreadyFinished, and InvalidArgument if the queue has no
        priorities.
        """
        handle: TaskHandle[Any] = self._handle_of(task, queue)
        handle.reprioritize(priority, identity=identity)

    def retry(
        self,
        task: TaskHandle[R] | TaskInfo | UUID | str,
        *,
        queue: str | None = None,
        max_attempts: int | None = None,
        params: Any = UNSET,
        spawn_new: bool = False,
        deadline: datetime | None = UNSET,
        identity: Mapping[str, JSON] | None = None,
    ) -> TaskHandle[R]:
        """Give a failed or cancelled task one more attempt, with its checkpoints.

        Descendants that were cancelled because the task ended are revived with it. A
        task that sleeps until its next attempt starts it now. `params` replace its
        params, validated if the task is registered here; its idempotency key then
        stands for the new ones. `deadline` is a new deadline, or None for none; by
        default it is kept, and InvalidArgument is raised if it has passed. `spawn_new`
        spawns a new task of the same name and params instead. `identity` is as in
        `cancel`. Raises NotFound, and AlreadyFinished for a task in any other state.
        """
        return self._handle_of(task, queue).retry(
            max_attempts=max_attempts,
            params=params,
            spawn_new=spawn_new,
            deadline=deadline,
            identity=identity,
        )

    def fork(
        self,
        task: TaskHandle[R] | TaskInfo | UUID | str,
        *,
        before: str | None = None,
        after: str | None = None,
        position: int | None = None,
        params: Any = UNSET,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[R]:
        """Spawn a copy of a task that starts with checkpoints of it, in any state.

        It has the task's name, params and options, unless others are given, and copies
        of its checkpoints: all of them; those that were complete when the call of
        checkpoint `before`, or the one at `position`, was made; or those saved up to
        checkpoint `after`. It shares the task's children. An id is looked up in
        `queue`; the fork of a handle may go to another queue. Raises NotFound,
        InvalidArgument for an unknown checkpoint, naming the known ones, and what
        `spawn` raises.
        """
        home = None if isinstance(task, Addressed) else options.get("queue")
        return self._handle_of(task, home).fork(
            before=before, after=after, position=position, params=params, **options
        )

    def explain(
        self,
        task: TaskHandle[Any] | TaskInfo | UUID | str,
        *,
        queue: str | None = None,
    ) -> list[Explanation]:
        """Return why a task has not finished, or not started; see the handle's."""
        return self._handle_of(task, queue).explain()

    def export_history(
        self,
        task: TaskHandle[Any] | TaskInfo | UUID | str,
        *,
        queue: str | None = None,
    ) -> dict[str, Any]:
        """Return a task's history as JSON; see the handle's `export_history`."""
        return self._handle_of(task, queue).export_history()

    def get_result(
        self,
        task: TaskHandle[R] | TaskInfo | UUID | str,
        *,
        queue: str | None = None,
    ) -> TaskResult[R]:
        """Return a task's state, result and error, without waiting. Raises NotFound."""
        return self._handle_of(task, queue).snapshot()

    def find_task(self, task_id: UUID | str) -> TaskHandle[Any]:
        """Return a handle of a task in any queue that your role may use.

        Raises NotFound if none of them has the task.
        """
        wanted = as_uuid(task_id)
        ((queue,),) = self._database.fetch(sql.find_task(wanted))
        if queue is None:
            raise NotFound(f"no task {wanted} in any queue that this role may use")
        return self.handle(wanted, queue=queue)

    # -- many tasks --------------------------------------------------------------

    def list_tasks(
        self,
        *,
        limit: int = 100,
        after: UUID | str | None = None,
        scan: int | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> TaskList:
        """Return at most `limit` tasks, the newest first; see TaskFilter.

        `after` is the id of the last task of the previous page. Ids, parents, failed
        and cancelled tasks, some 10,000 live ones, and times of spawning are looked up;
        otherwise all tasks are looked at, in statements of 10,000 each, but not many
        more than `scan`. The list's `next` says where to continue. Raises
        InvalidArgument and UnknownQueue.
        """
        name = self._checked_queue(queue)
        criteria = json.dumps(checked_filter(wanted, change=False))
        start = None if after is None else as_uuid(after)
        missing = checked_limit(limit)
        left = math.inf if scan is None else checked_limit(scan, "scan")
        found = TaskList()
        while True:
            look = int(min(left, sql.SCANNED_AT_ONCE))
            statement = sql.list_tasks(
                name, criteria, missing - len(found), start, look
            )
            rows = self._database.fetch(statement, slow=True)
            tasks = [row for row in rows if is_task(row)]
            found += [task_info(name, row, self._application.payloads) for row in tasks]
            if len(tasks) == len(rows):
                found.next = found[-1].task_id if len(found) == limit else None
                return found
            start, left = rows[-1][0], left - look
            if left <= 0:
                found.next, found.reached = start, rows[-1][6]
                return found

    def count_tasks(
        self,
        *,
        limit: int = 10_000,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> int:
        """Return how many tasks match, or `limit` if there are as many or more.

        They are those that `cancel_many`, `retry_many` or `delete_many` would look at.
        Looks at tasks as `list_tasks` does. Raises InvalidArgument and UnknownQueue.
        """
        name = self._checked_queue(queue)
        criteria = json.dumps(checked_filter(wanted, change=False))
        most, counted, last = checked_limit(limit), 0, None
        while True:
            statement = sql.count_tasks(name, criteria, sql.SCANNED_AT_ONCE, last)
            ((more, last),) = self._database.fetch(statement, slow=True)
            counted += int(more)
            if counted >= most or last is None:
                return min(counted, most)

    def cancel_many(
        self,
        *,
        reason: str | None = None,
        identity: Mapping[str, JSON] | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> int:
        """Cancel the unfinished tasks that match, with descendants; return how many.

        Descendants are not counted. `all=True` means every task of the queue.
        `identity` is as in `cancel`. Raises InvalidArgument and UnknownQueue.
        """
        checked = None if reason is None else check_reason(reason)
        more = [checked, caller(identity)]
        return self._change_many(sql.cancel_tasks, more, queue, wanted)

    def retry_many(
        self,
        *,
        identity: Mapping[str, JSON] | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> int:
        """Give the failed and cancelled tasks that match one more attempt.

        As `retry` does, with their checkpoints; tasks that sleep until their next
        attempt start it now. Returns how many. `all=True` means every task of the
        queue. `identity` is as in `cancel`. Raises InvalidArgument and UnknownQueue.
        """
        more = [caller(identity)]
        return self._change_many(sql.retry_tasks, more, queue, wanted)

    def delete_many(
        self,
        *,
        identity: Mapping[str, JSON] | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> int:
        """Delete the finished tasks that match, with all their rows.

        Their idempotency keys become free. A child is kept while its parent exists,
        since the parent may join it. Returns how many. `all=True` means every finished
        task of the queue. `identity` is as in `cancel`. Raises InvalidArgument and
        UnknownQueue.
        """
        more = [caller(identity)]
        return self._change_many(sql.delete_tasks, more, queue, wanted)

    def _change_many(
        self,
        call: Statement,
        more: Sequence[str | None],
        queue: str | None,
        given: Mapping[str, Any],
    ) -> int:
        """Change all matching tasks in batches; retry those whose rows were locked."""
        name, wanted = self._checked_queue(queue), checked_filter(given, change=True)
        changed, busy = self._change_each(call, more, name, wanted)
        wanted.pop("all", None)
        pause = _FIRST_PAUSE
        while busy:
            time.sleep(pause)
            batch, busy = busy[:_BATCH], busy[_BATCH:]
            wanted["task_ids"] = [str(task_id) for task_id in batch]
            again, locked = self._change_each(call, more, name, wanted)
            changed, busy = changed + again, busy + locked
            pause = _FIRST_PAUSE if again else min(2 * pause, _LONGEST_PAUSE)
        return changed

    def _change_each(
        self,
        call: Statement,
        more: Sequence[str | None],
        queue: str,
        wanted: Mapping[str, Any],
    ) -> tuple[int, list[UUID]]:
        """Return how many tasks were changed, and the ids of those that were locked."""
        criteria, changed, last = json.dumps(wanted), 0, None
        busy: list[UUID] = []
        while True:
            statement = call(queue, criteria, _BATCH, last, *more)
            rows = self._database.fetch(statement, slow=True)
            ((batch, locked, last),) = rows
            changed, busy = changed + batch, busy + locked
            if last is None:
                return changed, busy

    def list_events(
        self,
        *,
        prefix: str = "",
        limit: int = 100,
        after: str | None = None,
        waited_for: bool = False,
        queue: str | None = None,
    ) -> list[EventInfo]:
        """Return at most `limit` events of a queue by name, with their payloads.

        Those whose name begins with `prefix`, after the name `after`; with
        `waited_for`, only those that tasks are waiting for. Raises InvalidArgument and
        UnknownQueue.
        """
        page = prefix, checked_limit(limit), after, waited_for
        statement = sql.list_events(self._checked_queue(queue), *page)
        rows = self._database.fetch(statement)
        return [event_info(row, self._application.payloads) for row in rows]

    # -- audit -------------------------------------------------------------------

    def list_audit(
        self,
        *,
        limit: int = 100,
        after: UUID | str | None = None,
        queue: str | None = None,
        all_queues: bool = False,
        **wanted: Unpack[AuditFilter],
    ) -> list[AuditEntry]:
        """Return at most `limit` of the things that operators did, the latest first.

        `after` is the id of the last entry of the previous page. `all_queues` includes
        queues that were dropped. See AuditFilter. Raises InvalidArgument.
        """
        name = None if all_queues else self._checked_queue(queue)
        start = None if after is None else as_uuid(after)
        criteria = checked_audit_filter(wanted)
        statement = sql.list_audit(name, criteria, checked_limit(limit), start)
        return [audit_entry(row) for row in self._database.fetch(statement)]

    # -- schedules ---------------------------------------------------------------

    def create_schedule(
        self,
        task: AnyTask | str,
        schedule: Schedule,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Create a schedule of a task, or change the one of its name.

            app.create_schedule(Report, Schedule.cron("0 3 * * *", name="vienna"))

        Its name is by default the task's. By default it is in the task's queue. Returns
        whether it is new. `identity` is as in `cancel`. Raises InvalidArgument,
        pydantic's ValidationError for params, and UnknownQueue.
        """
        request = schedule_request(self._application, task, schedule, queue)
        statement = sql.create_schedule(
            request.queue, request.name, request.definition, caller(identity)
        )
        ((created,),) = self._database.fetch(statement)
        return bool(created)

    def apply_schedules(
        self,
        schedules: Iterable[tuple[AnyTask | str, Schedule]],
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> int:
        """Create or change all schedules of a list, and drop those no longer in it.

        They are (task, schedule) pairs, in one queue. Dropped are those that an earlier
        call has applied, not those of `create_schedule` and of tasks' code. All or
        none; returns how many were created, changed or dropped. `identity` is as in
        `cancel`. Raises as `create_schedule` does.
        """
        name = self._checked_queue(queue)
        requests = [
            schedule_request(self._application, task, schedule, name)
            for task, schedule in schedules
        ]
        statement = sql.apply_schedules(
            name, schedules_json(requests), caller(identity)
        )
        ((changed,),) = self._database.fetch(statement)
        return int(changed)

    def drop_schedule(
        self,
        schedule: str,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Delete a schedule; return whether there was one. Its tasks stay.

        `identity` is as in `cancel`.
        """
        named = self._named(schedule, queue)
        statement = sql.drop_schedule(*named, caller(identity))
        ((dropped,),) = self._database.fetch(statement)
        return bool(dropped)

    def pause_schedule(
        self,
        schedule: str,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Pause a schedule; return False if it is paused already.

        `identity` is as in `cancel`. Raises NotFound.
        """
        named = self._named(schedule, queue)
        statement = sql.pause_schedule(*named, caller(identity))
        ((paused,),) = self._database.fetch(statement)
        return bool(paused)

    def resume_schedule(
        self,
        schedule: str,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Resume a paused schedule with its next tick; False if it is not paused.

        `backfill_schedule` spawns the tasks of the pause. `identity` is as in `cancel`.
        Raises NotFound.
        """
        named = self._named(schedule, queue)
        statement = sql.resume_schedule(*named, caller(identity))
        ((resumed,),) = self._database.fetch(statement)
        return bool(resumed)

    def trigger_schedule(
        self,
        schedule: str,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> TaskHandle[Any]:
        """Spawn a task of a schedule now, also if it is paused.

        `identity` is as in `cancel`. Raises NotFound.
        """
        name, schedule = self._named(schedule, queue)
        statement = sql.trigger_schedule(name, schedule, caller(identity))
        (row,) = self._database.fetch(statement)
        return self._spawned(name, row, PLAIN)

    def backfill_schedule(
        self,
        schedule: str,
        start: datetime,
        end: datetime,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> list[TaskHandle[Any]]:
        """Spawn the tasks of the ticks from `start` on and before `end`, in the past.

        All at once, whatever the schedule's `overlap`. A tick whose task exists gets no
        other. Returns handles in the order of the ticks. `identity` is as in `cancel`.
        Raises NotFound, and InvalidArgument for more than 10,000 ticks.
        """
        name, schedule = self._named(schedule, queue)
        ticks = moment(start, "start"), moment(end, "end")
        statement = sql.backfill_schedule(name, schedule, *ticks, caller(identity))
        rows = self._database.fetch(statement, slow=True)
        return [self._spawned(name, row, PLAIN) for row in rows]

    def list_schedules(
        self,
        *,
        limit: int = 1000,
        after: str | None = None,
        queue: str | None = None,
    ) -> list[ScheduleInfo]:
        """Return at most `limit` schedules of a queue by name, those after `after`."""
        name = self._checked_queue(queue)
        statement = sql.list_schedules(name, checked_limit(limit), after)
        rows = self._database.fetch(statement)
        return [schedule_info(name, row) for row in rows]

    def list_schedule_runs(
        self,
        schedule: str,
        *,
        limit: int = 100,
        before: datetime | None = None,
        queue: str | None = None,
    ) -> list[ScheduleRun]:
        """Return at most `limit` tasks that a schedule has spawned, the latest first.

        Only those scheduled before `before`, if given, and not deleted yet.
        """
        name, schedule = self._named(schedule, queue)
        until = None if before is None else moment(before, "before")
        statement = sql.list_schedule_runs(name, schedule, checked_limit(limit), until)
        rows = self._database.fetch(statement)
        return [ScheduleRun(name, *row) for row in rows]

    def next_fires(
        self,
        cron: str,
        *,
        time_zone: str | ZoneInfo = "UTC",
        after: datetime | None = None,
        count: int = 5,
    ) -> list[datetime]:
        """Return the next times of a cron expression. Raises InvalidArgument."""
        start = None if after is None else moment(after, "after")
        statement = sql.next_fires(cron, str(time_zone), start, count)
        return [at for (at,) in self._database.fetch(statement)]

    def _named(self, schedule: str, queue: str | None) -> tuple[str, str]:
        return self._checked_queue(queue), check_schedule_name(schedule)

    # -- workers and versions ----------------------------------------------------

    def diagnose(self) -> list[Finding]:
        """Return what needs an operator, in all queues that your role may use.

        Tasks that no worker runs, maintenance that is late, sessions that keep Postgres
        from removing old rows, and the like. An empty list means that all is well.
        """
        rows = self._database.fetch(sql.diagnose, slow=True)
        return [Finding(*row) for row in rows]

    def list_workers(self, queue: str | None = None) -> list[WorkerInfo]:
        """Return the workers of a queue: live ones, idle or not, and dead ones.

        A worker that stops is no longer listed; one that has died is for an hour.
        """
        statement = sql.list_workers(self._checked_queue(queue))
        return [WorkerInfo(*row) for row in self._database.fetch(statement)]

    def list_versions(self, queue: str | None = None) -> list[VersionStats]:
        """Return the versions of a queue's workers and of its live tasks.

        A `stranded` version has live tasks and no live workers.
        """
        statement = sql.list_versions(self._checked_queue(queue))
        return [
            VersionStats(*row) for row in self._database.fetch(statement, slow=True)
        ]

    def list_definitions(self, queue: str | None = None) -> list[AnnouncedTask]:
        """Return the task definitions that workers of a queue have announced, by name.

        For each name, the definition that spawns use comes first.
        """
        statement = sql.list_definitions(self._checked_queue(queue))
        return [AnnouncedTask(*row) for row in self._database.fetch(statement)]

    def promote_version(
        self,
        version: str,
        *,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Make a version the latest of a queue, as after a rollback.

        In a queue with the policy "gate", tasks without a version go to the latest.
        Returns False for a version that no worker has announced. `identity` is as in
        `cancel`.
        """
        statement = sql.promote_version(
            self._checked_queue(queue), check_version(version), caller(identity)
        )
        ((promoted,),) = self._database.fetch(statement)
        return bool(promoted)

    def set_version(
        self,
        version: str | None,
        *,
        task: TaskHandle[Any] | TaskInfo | UUID | str | None = None,
        from_version: str | None = None,
        queue: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> int:
        """Move a task, or all live tasks of another version, to this version.

        It applies from their next claim on; None: to no version. Returns how many tasks
        were moved. Tasks of `from_version` whose rows were locked by another session
        are skipped; call it again until it returns 0. `identity` is as in `cancel`.
        Raises InvalidArgument unless exactly one of `task` and `from_version` is given.
        """
        if (task is None) == (from_version is None):
            raise InvalidArgument("set_version takes either a task or a from_version")
        wanted = None if version is None else check_version(version)
        by = caller(identity)
        if task is not None:
            home, task_id = queue_of(task, queue, self.queue), task_id_of(task)
            one = sql.set_version(home, wanted, [task_id], None, by)
            ((moved,),) = self._database.fetch(one)
            return int(moved)
        name, total, moved = self._checked_queue(queue), 0, 1
        while moved:
            batch = sql.set_version(name, wanted, None, from_version, by)
            ((moved,),) = self._database.fetch(batch)
            total += moved
        return total


def _ids(rows: Iterable[tuple[Any, ...]]) -> list[UUID]:
    return [UUID(str(row[0])) for row in rows]


def _spawn(request: SpawnRequest[Any]) -> Statement:
    return sql.spawn(request.queue, request.task, request.params, request.options)


def _buckets(
    since: datetime | None, until: datetime | None, bucket: timedelta | float
) -> tuple[str | None, str | None, timedelta]:
    """Return checked arguments of a query over time."""
    length = timedelta(seconds=required_seconds(bucket, "bucket"))
    return moment_text(since, "since"), moment_text(until, "until"), length
