"""The worker that an application starts, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import logging
import os
import secrets
import socket
import threading
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
)
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, ConnectionInfo

from durable._core import sql
from durable._core.outcomes import Resolved
from durable._core.schedule_requests import declared_schedules
from durable._db.application import Application
from durable._db.django import close_shared_connections
from durable._db.reconnecting import (
    NeededConnection,
    ReconnectingConnection,
    wait_until_open,
)
from durable._task.current import start_task_function
from durable._task.publisher import kept_logs
from durable._task.run import Claimed, Run
from durable._task.services import Services
from durable._worker.claims import Claims, load_checkpoints
from durable._worker.leases import Leases, announcement, session
from durable._worker.signals import reset_in_forks
from durable.errors import Forbidden

if TYPE_CHECKING:
    from durable._worker.options import Settings

__all__ = ["Worker", "WorkerHealth"]

logger = logging.getLogger("durable.worker")

_EXIT_SECONDS: Final = 10.0
_SHOWN_TASKS: Final = 10
_YOUNG_OBJECTS: Final = 10_000  # until a garbage collection; Python's default is 700


HealthState: TypeAlias = Literal[
    "starting", "working", "no database", "draining", "stopped"
]


class WorkerHealth(NamedTuple):
    """The health of a worker.

    `state` is "starting" until it has connected and claims tasks, "working",
    "no database" while a connection is missing that it needs to claim more, "draining"
    while it lets its tasks finish, or "stopped". It holds `running` tasks, of at most
    `concurrency` at once.
    """

    state: HealthState
    running: int
    concurrency: int


class Worker:
    """Claims tasks and runs them for the duration of its `async with` block.

        async with app.worker(concurrency=50) as worker:
            await worker.drain()

    Leaving the block stops claiming, gives running tasks `shutdown_timeout` seconds to
    finish, and releases the others without using up an attempt. An error that retrying
    cannot fix (a missing schema, queue or privilege) cancels the block and is raised by
    it.
    """

    def __init__(self, application: Application, settings: Settings) -> None:
        self._application = application
        self._settings = settings
        self._pid: int | None = None  # of the process in which it was entered
        self._is_entered = False
        self._reset()

    def _reset(self) -> None:
        """Set the state of a worker that is about to start, perhaps once more."""
        self.worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()  # may be set although a task has started since
        self._exited: list[Run] = []
        self._ended = 0
        self._stopping = False
        self._exits = contextlib.AsyncExitStack()
        self._host_task: asyncio.Task[Any] | None = None
        self._fatal: Exception | None = None
        self._drains: set[asyncio.Task[int]] = set()
        self.has_started = False

    async def __aenter__(self) -> Self:
        if self._is_entered and self._pid == os.getpid():
            raise RuntimeError("the worker is already running: make another one")
        self._reset()
        self._pid = os.getpid()
        self._is_entered = True
        reset_in_forks()
        try:
            await self._start()
        except BaseException:
            try:
                await self._exits.aclose()
            finally:
                self._is_entered = False
            raise
        self._host_task = asyncio.current_task()  # cancelled by a fatal error
        self.has_started = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid():
            return  # a forked process, which must not touch the worker
        host_task, self._host_task = self._host_task, None
        if self._fatal is not None and host_task is not None:
            # the cancellation by the fatal error may not have arrived yet
            if not isinstance(exc, asyncio.CancelledError):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            host_task.uncancel()
        try:
            await self._stop()
        finally:
            self._is_entered = False
        logger.info("worker %s has stopped", self.worker_id)
        if self._fatal is not None and (
            exc is None or isinstance(exc, asyncio.CancelledError)
        ):
            raise self._fatal

    def health(self) -> WorkerHealth:
        """Return the worker's state, without asking the database."""
        state: HealthState = "working"
        if not self._is_entered:
            state = "stopped"
        elif not self.has_started:
            state = "starting"
        elif self._host_task is None or self._stopping:
            state = "draining"
        elif not all(connection.is_open for connection in self._needed):
            state = "no database"
        return WorkerHealth(state, len(self._runs), self._settings.concurrency)

    async def drain(self) -> int:
        """Work until no task is claimable or running here; waiting tasks don't count.

        Returns the number of runs that have ended meanwhile. Raises RuntimeError if the
        worker's block is left meanwhile; or the fatal error, if there is one.
        """
        if self._is_entered and self._pid != os.getpid():
            raise RuntimeError("a worker does not survive a fork: make a new one")
        if self._host_task is None:
            raise self._fatal or RuntimeError("the worker is not running")
        draining = asyncio.create_task(self._drain(), name="durable drain")
        self._drains.add(draining)
        try:
            await asyncio.wait({draining})
        finally:
            self._drains.discard(draining)
            draining.cancel()
        if draining.cancelled():
            raise self._fatal or RuntimeError("the worker has stopped during drain()")
        return draining.result()

    async def _drain(self) -> int:
        before = self._ended
        while True:
            seen = self._ended
            # the thread itself: rows that another session has locked are skipped
            await self._leases.run_maintenance()
            await self._claims.wait_until_drained()
            await self._wait_until_idle()
            if self._ended == seen and not self._tasks:
                return self._ended - before

    # -- starting ------------------------------------------------------------------

    async def _start(self) -> None:
        application, settings = self._application, self._settings
        self._context = contextvars.copy_context()
        self._exits.enter_context(_rare_collections)
        self._exits.enter_context(kept_logs(application.keep_logs))
        state = None
        if application.lifespan is not None:
            state = await self._exits.enter_async_context(application.lifespan())
        self._services = services = Services(
            application, state, lease=settings.lease, connect=self._connect
        )
        self._exits.push_async_callback(services.close)
        leases = Leases(
            application,
            settings,
            self.worker_id,
            self._runs,
            on_fatal=self._on_fatal,
        )
        self._leases = leases
        self._exits.push_async_callback(leases.stop)
        claiming = services.claim_connection
        needed = (claiming, services.flush_connection, services.call_connection, leases)
        self._needed: Sequence[NeededConnection] = needed
        self._claims = Claims(application, settings, self.worker_id, claiming, needed)
        self._exits.callback(self._claims.close)
        await wait_until_open(needed)
        for queue in settings.queues:
            # fails if the schema, a queue or a privilege is missing
            await claiming.fetch(
                sql.claim_tasks(queue, self.worker_id, [], 0, settings.lease)
            )
            await self._announce(queue)
            await self._announce_schedules(queue)
        ((engine,),) = await claiming.fetch(sql.version())
        self._claiming = asyncio.create_task(self._work(), name="durable claims")
        self._log_start(engine)

    def _connect(self, name: str) -> ReconnectingConnection:
        return ReconnectingConnection(
            self._application.conninfo,
            name,
            prepare=self._application.prepare,
            on_reconnect=self._release_lost if name == "claim" else None,
            on_fatal=self._on_fatal,
        )

    async def _release_lost(self, connection: AsyncConnection[Any]) -> None:
        await self._claims.release_lost(connection)

    async def _announce(self, queue: str) -> None:
        """Announce the worker and its tasks, before the first of them is claimed.

        A spawn in SQL takes omitted options from the definitions of tasks.
        """
        about = session(self._application, self._settings, draining=False)
        missing_worker = "list_workers does not show this worker of queue %r"
        missing_tasks = (
            "tasks that SQL spawns in queue %r do not get their class's options"
        )
        for statement, consequence in (
            (sql.announce_worker(queue, self.worker_id, about), missing_worker),
            (announcement(queue, self._application, starts=True), missing_tasks),
        ):
            try:
                await self._services.claim_connection.fetch(statement, own_queue=False)
            except Forbidden as error:
                logger.warning(f"%s: {consequence}", error, queue)  # noqa: G004

    async def _announce_schedules(self, queue: str) -> None:
        """Create the schedules that the application's tasks declare."""
        schedules, tasks = declared_schedules(self._application, queue)
        if not tasks:
            return
        statement = sql.announce_schedules(queue, schedules, tasks)
        try:
            await self._services.claim_connection.fetch(statement, own_queue=False)
        except Forbidden as error:
            if schedules != "[]":
                logger.warning(
                    "%s: the schedules of tasks in queue %r are not created",
                    error,
                    queue,
                )

    def _log_start(self, engine: str) -> None:
        application = self._application
        tasks = sorted(application.registry.by_name)
        shown = ", ".join(tasks[:_SHOWN_TASKS])
        more = len(tasks) - _SHOWN_TASKS
        logger.info(
            "worker %s has started: %s, engine %s; queues: %s; tasks: %s%s;"
            " concurrency: %d%s",
            self.worker_id,
            _describe(self._services.claim_connection.info),
            engine,
            ", ".join(self._settings.queues),
            shown or "none",
            f" and {more} more" if more > 0 else "",
            self._settings.concurrency,
            f"; version: {application.version}" if application.version else "",
        )

    # -- stopping ------------------------------------------------------------------

    def _on_fatal(self, error: Exception) -> None:
        if self._fatal is None:
            self._fatal = error
            self._cancel_drains()
            if self._host_task is not None:
                self._host_task.cancel()

    def _cancel_drains(self) -> None:
        """Cancel all calls of `drain`."""
        for draining in self._drains:
            draining.cancel()

    async def _stop(self) -> None:
        if self._fatal is not None:
            kind = type(self._fatal).__name__  # the exception itself is raised
            logger.error(
                "worker %s stops because of a fatal error: %s", self.worker_id, kind
            )
        else:
            logger.info(
                "worker %s is stopping: it runs %d tasks, which have %g s to finish",
                self.worker_id,
                len(self._runs),
                self._settings.shutdown_timeout,
            )
        try:
            self._leases.drain()
            self._cancel_drains()
            self._claiming.cancel()
            await asyncio.wait({self._claiming}, timeout=_EXIT_SECONDS)
            if self._fatal is None:
                await self._wait_idle_for(self._settings.shutdown_timeout)
            self._stopping = True
            for run in list(self._runs.values()):
                run.exit("shutdown")
            await self._wait_idle_for(_EXIT_SECONDS)
            if self._fatal is None:
                await self._release_runs([*self._exited, *self._runs.values()])
        finally:
            for task in self._tasks:
                task.cancel()
            await self._exits.aclose()

    async def _wait_idle_for(self, timeout: float) -> None:
        """Wait until nothing runs here, for at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wait_until_idle()

    async def _wait_until_idle(self) -> None:
        while self._tasks:
            self._idle.clear()
            await self._idle.wait()

    async def _release_runs(self, runs: Sequence[Run]) -> None:
        """Release the claims of runs that have not ended, with their place in line."""
        held: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in runs:
            if run.exit_reason is not None and run.exit_reason.reason == "shutdown":
                claimed = run.claimed
                held[claimed.queue].append(
                    {
                        "task_id": str(claimed.task_id),
                        "claim": claimed.claim,
                        "available_at": claimed.available_at.isoformat(),
                    }
                )
        fetch = self._services.call_connection.fetch
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                for queue in self._settings.queues:
                    if queue in held:
                        await fetch(sql.release_tasks(queue, json.dumps(held[queue])))
                    # the answer of a cancelled claim may have been lost
                    await fetch(sql.release_unknown(queue, self.worker_id, ()))
        except TimeoutError:
            logger.warning("no database: tasks can be claimed when leases expire")

    # -- running -------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            async for claimed in self._claims.batches():
                self._start_runs(claimed)
        except Exception as error:  # noqa: BLE001 - raised by the block
            self._on_fatal(error)

    def _start_runs(self, claimed: list[Claimed]) -> None:
        known: list[Claimed] = []
        for task in claimed:
            if task.is_first_claim:
                self._start_run(task, {})
            else:
                known.append(task)
        if known:
            loading = self._create_task(self._load_and_start(known), "durable load")
            loading.add_done_callback(self._forget)

    async def _load_and_start(self, claimed: list[Claimed]) -> None:
        """Load the checkpoints of tasks, and start them."""
        try:
            loaded = await load_checkpoints(self._services.call_connection, claimed)
        except BaseException:
            for task in claimed:
                self._claims.discard(task)
            raise
        for task in claimed:
            self._start_run(task, loaded[task.task_id])

    def _start_run(
        self, claimed: Claimed, loaded: dict[str, Resolved] | Exception
    ) -> None:
        """Start a task with its checkpoints, or fail it with the error of loading."""
        error = loaded if isinstance(loaded, Exception) else None
        run = Run(
            claimed,
            self._application.registry.by_name[claimed.name],
            {} if isinstance(loaded, Exception) else loaded,
            self._services,
            code_ended=partial(self._claims.code_ended, claimed),
            ended=self._run_ended,
        )
        again = "taken over" if claimed.attempt > 1 else "resumed"
        run.log_debug("started" if claimed.is_first_claim else again)
        previous = self._runs.get(claimed.task_id)
        if previous is not None:  # only one run of a task has its lease extended
            previous.exit("lease lost")
        self._runs[claimed.task_id] = run
        if self._stopping:
            run.exit("shutdown")
            self._run_ended(run)
        else:
            work = run.execute(start_task_function, error)
            run.task = self._create_task(work, f"durable {claimed.name}")

    def _create_task(
        self, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = self._services.loop.create_task(
            work, name=name, context=self._context.copy()
        )
        self._tasks.add(task)
        return task

    def _run_ended(self, run: Run) -> None:
        if run.services is not self._services:
            return  # code from before a restart, which did not end in time
        claimed = run.claimed
        if self._runs.get(claimed.task_id) is run:
            del self._runs[claimed.task_id]
        self._claims.discard(claimed)
        if self._stopping:
            self._exited.append(run)
        self._ended += 1
        if run.exit_reason is not None:
            run.log_debug(f"exited: {run.exit_reason.reason}")
            if run.exit_reason.reason == "waiting":
                self._claims.wake()  # it may be due before the next poll
        if run.task is not None:
            self._forget(run.task)
        if run.definition.is_async and (closing := close_shared_connections()):
            # not awaited: the thread that closes them may be busy for long
            self._create_task(closing, "durable django").add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()


def _describe(info: ConnectionInfo | None) -> str:
    """Describe the database of a connection, without the password."""
    with contextlib.suppress(psycopg.OperationalError):  # the connection was lost
        if info is not None:
            major, minor = divmod(info.server_version, 10_000)
            return (
                f"database {info.dbname!r} of {info.user} at {info.host}:{info.port},"
                f" PostgreSQL {major}.{minor}"
            )
    return "connection lost already"


class _RareCollections:
    """Makes garbage collections rarer while any worker of the process runs.

    The tasks in progress are thousands of objects, nearly all of them freed without the
    collector. With Python's default it would start several times for each batch of
    tasks, and scan the whole process at every 120th start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers = 0
        self._before = self._during = (0, 0, 0)

    def __enter__(self) -> None:
        with self._lock:
            self._workers += 1
            if self._workers > 1:
                return
            self._before = self._during = gc.get_threshold()
            if 0 < self._before[0] < _YOUNG_OBJECTS:  # 0: it was turned off
                self._during = (_YOUNG_OBJECTS, *self._before[1:])
                gc.set_threshold(*self._during)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._workers -= 1
            # else the application has changed it meanwhile
            if not self._workers and gc.get_threshold() == self._during:
                gc.set_threshold(*self._before)


_rare_collections: Final = _RareCollections()
