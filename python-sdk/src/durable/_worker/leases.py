"""Extends leases, in a thread with a connection of its own.

So code that blocks the event loop adds latency but does not lose leases. The thread
logs a warning with the stack of the blocking code, and stops extending leases once the
loop has been blocked for a minute. It also runs maintenance about once a second, even
while all slots are full, announces that the worker is alive, and detects an upgrade to
a schema that the worker does not support.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg

from durable._core import sql
from durable._core.sql import Statement
from durable._core.values import json_text
from durable._db._sync.session import (
    PlainCursor,
    WatchdogConnection,
    check_session,
    fetch,
    is_readable,
    was_closed,
)
from durable._db.application import Application
from durable._db.conninfo import KEEPALIVE, READ_TIMEOUT
from durable._db.reconnecting import backoff, is_busy
from durable._db.schema import check_version
from durable._task.run import Run
from durable.errors import SchemaVersion
from durable.registry import TaskDefinition

if TYPE_CHECKING:
    from durable._worker.options import Settings

__all__ = ["Leases", "announcement", "session"]

logger = logging.getLogger("durable.worker")

_TICK: Final = 1.0
_BLOCKED_SECONDS: Final = 1.0
_GIVE_UP_SECONDS: Final = 60.0
_CONNECTING_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 10.0
_ANNOUNCE_SECONDS: Final = 3600.0
_LARGEST_SCHEMA: Final = 65_536
_SHORTEST_PATIENCE: Final = 5.0
_PURGE_REST: Final = 4  # pause between two rounds of deleting, in lengths of a round


class Leases:
    """The lease thread of one worker. `runs` are those that it currently has.

    `on_fatal` is called with an error that retrying cannot fix.
    """

    def __init__(
        self,
        application: Application,
        settings: Settings,
        worker_id: str,
        runs: Mapping[UUID, Run],
        *,
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self._application = application
        self._conninfo = application.conninfo  # asked here: it may raise
        self._settings = settings
        self._worker_id = worker_id
        self._queues = settings.queues
        self._lease = settings.lease
        self._runs_by_id = runs
        self._on_fatal = on_fatal
        self._reported: set[tuple[object, ...]] = set()  # what was logged already
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._woken = threading.Event()  # ends the pause between rounds
        self._is_idle = False
        self._is_draining = self._was_draining = False
        self._ended = asyncio.Event()
        self._opened = asyncio.Event()
        self._requests: deque[asyncio.Event] = deque()  # for a round of maintenance
        self.failure: Exception | None = None  # the last one
        self._cursor: PlainCursor | None = None
        self._strict = False
        self._probed_at: float | None = None  # when the loop was last asked to answer
        self._warned = False
        now = time.monotonic()
        self._extend_at = now + self._lease / 3
        self._check_at = now + _CHECK_SECONDS / 10
        self._announce_at = now + _ANNOUNCE_SECONDS
        self._thread = threading.Thread(
            target=self._work, name="durable leases", daemon=True
        )

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as this side can tell."""
        return self._opened.is_set() and not (self._is_idle and self._was_closed())

    async def open(self) -> None:
        """Start the thread if necessary, and wait until it is connected."""
        if self._thread.ident is None:
            self._thread.start()
        elif self._opened.is_set() and not self.is_open:
            self._opened.clear()
            self._woken.set()
        await self._opened.wait()

    async def run_maintenance(self) -> None:
        """Wait until a round of maintenance that began after this call has ended."""
        request = asyncio.Event()
        self._requests.append(request)
        self._woken.set()
        await request.wait()

    def drain(self) -> None:
        """Announce at once that the worker claims no more."""
        self._is_draining = True
        self._woken.set()

    def _was_closed(self) -> bool:
        """Whether the idle connection has unread data, normally its end."""
        try:
            return self._cursor is None or is_readable(self._cursor.connection.fileno())
        except psycopg.Error:  # the thread has just closed it
            return True

    async def stop(self) -> None:
        """Stop the thread without blocking the loop."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is None:
            return
        if self._opened.is_set():
            await self._ended.wait()
            return
        with contextlib.suppress(TimeoutError):  # it may be stuck connecting
            async with asyncio.timeout(_CONNECTING_SECONDS):
                await self._ended.wait()

    def _work(self) -> None:
        failures = 0
        regular = min(_TICK, self._lease / 3)
        pause = 0.0  # none at first: no task is claimed before it has connected
        while not self._has_stopped(pause):
            started = time.monotonic()
            self._check_loop()
            try:
                self._tick()
                failures = 0
            except Exception as error:
                if failures == 0:
                    known = isinstance(error, psycopg.Error | OSError | SchemaVersion)
                    shown = None if known else error
                    logger.warning("leases: %s; trying again", error, exc_info=shown)
                failures += 1
                self.failure = error
                self._close()
            self._exit_expired(started)
            pause = backoff(failures) if failures else regular
        self._remove_sessions()
        self._close()
        self._call_in_loop(self._ended.set)

    def _has_stopped(self, pause: float) -> bool:
        """Wait until the next round. Returns True if the thread must stop."""
        self._is_idle = True
        self._woken.wait(pause)
        self._is_idle = False
        self._woken.clear()
        return self._stopping.is_set()

    def _tick(self) -> None:
        self._open()  # may take long, so read the clock after it
        self._call_in_loop(self._opened.set)
        requests = len(self._requests)
        now = time.monotonic()
        if now >= self._extend_at and not self._has_given_up():
            self._extend()
            self._extend_at = now + self._lease / 3
        self._for_queues(self._run_maintenance)
        if time.monotonic() < self._extend_at:  # no round was cut short
            for _ in range(requests):
                self._call_in_loop(self._requests.popleft().set)
        is_due = now >= self._check_at
        if is_due:
            self._check_at = now + _CHECK_SECONDS
            self._check_version()
            self._for_queues(self._report_unknown_names)
        if is_due or self._is_draining != self._was_draining:
            self._was_draining = self._is_draining
            self._for_queues(self._announce_session)
        if now >= self._announce_at:
            self._announce_at = now + _ANNOUNCE_SECONDS
            self._for_queues(self._refresh_definitions)

    def _for_queues(self, work: Callable[[str], None]) -> None:
        for queue in self._queues:
            self._for_queue(queue, work)

    def _for_queue(self, queue: str, work: Callable[[str], None]) -> None:
        """Do work for one queue; log an error, so that other queues are served."""
        try:
            work(queue)
        except psycopg.Error as error:
            if self._cursor is None or self._cursor.connection.closed:
                raise
            if self._is_news("error", queue, error.sqlstate):
                logger.warning("leases: queue %r: %s", queue, error)

    def _is_news(self, *what: object) -> bool:
        """Whether this was not reported before; from now on, it was."""
        is_news = what not in self._reported
        self._reported.add(what)
        return is_news

    def _has_given_up(self) -> bool:
        """Whether the loop has been blocked for too long to extend its leases."""
        return self._loop_silence() >= _GIVE_UP_SECONDS

    def _run_maintenance(self, queue: str) -> None:
        """Run maintenance in small batches until nothing more is due.

        Leases, deadlines and deferred work are processed at once. Deleting old rows
        takes at most a fifth of the time: that keeps up with a busy worker without
        slowing it.

        Maintenance stops while this worker's own leases are due to be extended: a
        process that was suspended and resumes here would expire them itself.
        """
        while not self._stopping.is_set() and (
            time.monotonic() < self._extend_at or self._has_given_up()
        ):
            started = time.monotonic()
            ((*urgent, tasks, events),) = self._fetch(sql.run_maintenance(queue))
            if urgent[0]:
                logger.debug("queue %r: %d leases have expired", queue, urgent[0])
            if max(done or 0 for done in urgent) >= sql.MAINTENANCE_BATCH:
                continue
            if max(tasks or 0, events or 0) < sql.MAINTENANCE_BATCH * 10:
                return
            self._stopping.wait(_PURGE_REST * (time.monotonic() - started))

    def _extend(self) -> None:
        held: defaultdict[str, list[Run]] = defaultdict(list)
        for run in self._runs():
            if not run.lease_pauses:
                held[run.claimed.queue].append(run)
        for queue, runs in held.items():
            self._for_queue(queue, partial(self._extend_in, runs))

    def _extend_in(self, runs: Sequence[Run], queue: str) -> None:
        """Extend leases in one queue. Halve a batch that is too large or busy."""
        sent_at = time.monotonic()
        by_id = {run.claimed.task_id: run for run in runs}
        tasks = [
            {"task_id": str(task_id), "claim": run.claimed.claim}
            for task_id, run in by_id.items()
        ]
        statement = sql.extend_leases(queue, json.dumps(tasks), self._lease)
        try:
            rows = self._fetch(statement)
        except psycopg.Error as error:
            if len(runs) == 1 or not is_busy(error):
                raise
            middle = len(runs) // 2
            self._for_queue(queue, partial(self._extend_in, runs[:middle]))
            self._for_queue(queue, partial(self._extend_in, runs[middle:]))
            return
        for task_id, outcome in rows:
            if outcome == "ok":
                by_id[task_id].lease_until = sent_at + self._lease
            elif outcome != "busy":
                reason = "cancelled" if outcome == "cancelled" else "lease lost"
                self._call_in_loop(by_id[task_id].exit, reason)

    def _exit_expired(self, started: float) -> None:
        """Exit the runs whose leases could not be extended in time.

        A lease that expired during the current round is tried once more: the process
        may have been suspended just now, and the task may not be claimed by another
        worker yet.
        """
        for run in self._runs():
            if started >= run.lease_until:
                self._call_in_loop(run.exit, "lease lost")

    def _runs(self) -> list[Run]:
        return list(self._runs_by_id.values())

    def _check_loop(self) -> None:
        silence = self._loop_silence()
        if silence < _BLOCKED_SECONDS:
            self._warned = False
        elif not self._warned:
            self._warned = True
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way
            logger.warning(
                "the worker's loop has been blocked for %.1f s, running %s; "
                "blocking code belongs in a sync step or a sync task\n%s",
                silence,
                sorted({run.claimed.name for run in self._runs()}),
                "".join(traceback.format_stack(frame)),
            )
        if self._probed_at is None:
            self._probed_at = time.monotonic()
            self._call_in_loop(self._loop_answered)

    def _loop_answered(self) -> None:
        self._probed_at = None

    def _loop_silence(self) -> float:
        """Return for how many seconds the loop has not answered."""
        sent_at = self._probed_at
        return 0.0 if sent_at is None else time.monotonic() - sent_at

    def _check_version(self) -> None:
        ((found,),) = self._fetch(sql.version())
        try:
            check_version(found)
        except SchemaVersion as error:
            self._call_in_loop(self._on_fatal, error)

    def _report_unknown_names(self, queue: str) -> None:
        known = self._application.registry.by_name
        for (name,) in self._fetch(sql.list_waiting_names(queue)):
            if name not in known and self._is_news("name", name):
                logger.warning(
                    "tasks named %r wait in queue %r, but this worker does not "
                    "know them",
                    name,
                    queue,
                )

    def _announce_session(self, queue: str) -> None:
        """Announce that the worker is alive, and log versions that no worker runs."""
        if self._has_given_up():
            return
        about = session(self._application, self._settings, draining=self._was_draining)
        for (other,) in self._fetch(sql.announce_worker(queue, self._worker_id, about)):
            if self._is_news("version", queue, other):
                logger.warning(
                    "tasks wait in queue %r for version %r, which no worker runs; "
                    "set_version moves them",
                    queue,
                    other,
                )

    def _remove_sessions(self) -> None:
        """Remove the worker's sessions, unless the connection is lost."""
        if self._cursor is None:
            return
        with contextlib.suppress(psycopg.Error, OSError):
            for queue in self._queues:
                statement = sql.remove_worker(queue, self._worker_id)
                fetch(self._cursor, statement, strict=self._strict)

    def _refresh_definitions(self, queue: str) -> None:
        """Announce the definitions again, so that they are not pruned as stale."""
        self._fetch(announcement(queue, self._application, starts=False))

    def _fetch(self, statement: Statement) -> list[tuple[Any, ...]]:
        return fetch(self._open(), statement, strict=self._strict)

    def _open(self) -> PlainCursor:
        if self._cursor is not None and was_closed(self._cursor.connection):
            self._close()
        if self._cursor is None:
            connection: WatchdogConnection[Any] = WatchdogConnection.connect(
                self._conninfo,
                autocommit=True,
                prepare_threshold=None,
                application_name="durable leases",
                **KEEPALIVE,
            )
            # shorter than the lease: a thread that waits cannot exit expired runs
            patience = max(self._lease / 3, _SHORTEST_PATIENCE)
            connection.read_timeout = min(patience, READ_TIMEOUT)
            self._cursor = PlainCursor(connection)
            try:
                self._strict = check_session(self._cursor)
            except SchemaVersion as error:
                self._call_in_loop(self._on_fatal, error)
                raise
        return self._cursor

    def _close(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            self._call_in_loop(self._opened.clear)
            cursor.connection.close()

    def _call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            self._stopping.set()  # the loop is closed


def session(application: Application, settings: Settings, *, draining: bool) -> str:
    """Return what a worker announces about itself, as JSON."""
    about = {
        "version": application.version,
        "names": list(application.registry.by_name),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slots": settings.concurrency,
        "draining": draining,
    }
    return json.dumps(about)


def announcement(queue: str, application: Application, *, starts: bool) -> Statement:
    """Return the statement that announces all tasks of an application in a queue."""
    definitions = [_announced(one) for one in application.registry.by_name.values()]
    return sql.announce_definitions(
        queue, json_text(definitions), application.version, starts=starts
    )


def _announced(definition: TaskDefinition[Any, Any]) -> dict[str, Any]:
    announced: dict[str, Any] = {"task": definition.name}
    options = dict(definition.options)
    options |= options.pop("defaults", {})
    if options:
        announced["options"] = options
    schema = definition.params_codec.json_schema()
    if schema is not None and len(json_text(schema)) <= _LARGEST_SCHEMA:
        announced["params_schema"] = schema
    return announced
