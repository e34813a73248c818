"""A connection of the worker that reconnects and retries.

Transient errors (a lost connection, a deadlock, a full disk) are retried without limit,
with backoff; all others are raised. A connection that is silent for long counts as
lost, and so does one to a read-only server, since the next one may reach a primary. So
a statement may run twice: every function that a worker calls is idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import psycopg
from psycopg import AsyncConnection, ConnectionInfo

from durable._core.sql import Statement
from durable._db._async.session import (
    AsyncPlainCursor,
    AsyncWatchdogConnection,
    check_session,
    fetch,
    was_closed,
)
from durable._db.conninfo import KEEPALIVE, READ_TIMEOUT, refused
from durable._db.forks import call_in_forks
from durable.errors import (
    DatabaseUnavailable,
    Forbidden,
    SchemaVersion,
    UnknownQueue,
    from_database,
)

logger = logging.getLogger("durable.worker")

# connection, resources, operator intervention, system error; deadlock, serialization,
# lock timeout, read-only (a standby that is about to be promoted)
TRANSIENT: Final = ("08", "53", "57", "58", "40", "55P03", "25006")
_MAX_BACKOFF: Final = 5.0
_CLOSING_SECONDS: Final = 5.0
_REPORT_AFTER: Final = 2.0  # seconds until missing connections are logged
_REPORT_AGAIN: Final = 60.0

T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        return isinstance(
            error, psycopg.OperationalError | psycopg.InterfaceError | OSError
        )
    return str(state).startswith(TRANSIENT)


def is_busy(error: BaseException) -> bool:
    """Whether another transaction was in the way, or the batch was too large.

    A unique violation is caused by the same call, whose answer was lost with its
    connection while it was committing. A statement that was cancelled, or that exceeded
    a limit of memory or temporary disk, may succeed with fewer items.
    """
    busy = ("55P03", "40", "23505", "57014", "53200", "53400")
    return str(getattr(error, "sqlstate", None)).startswith(busy)


def is_read_only(error: BaseException) -> bool:
    """Whether the server refuses to write: it is a standby, or no longer a primary."""
    return getattr(error, "sqlstate", None) == "25006"


def backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures in a row, with jitter."""
    longest: float = min(0.05 * 2 ** min(failures, 10), _MAX_BACKOFF)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


class ReconnectingConnection:
    """One connection, one statement at a time.

    Each new connection checks that the schema's version is supported. `on_reconnect` is
    called with a connection that replaces a lost one, before it is used. `on_fatal` is
    called with an error that retrying cannot fix: a missing schema, queue or grant.
    """

    def __init__(
        self,
        conninfo: str,
        name: str,
        *,
        prepare: bool = True,
        on_reconnect: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
        on_fatal: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._conninfo = conninfo
        self._name = name
        self._prepare = prepare
        self._on_reconnect = on_reconnect
        self._on_fatal = on_fatal
        self._cursor: AsyncPlainCursor | None = None  # reused: it caches loaders
        self._strict = False
        self._busy = asyncio.Lock()
        self._opened_before = False
        self._closed = False
        self.failure: Exception | None = None  # the last transient one
        call_in_forks(self._forget_in_fork)

    def _forget_in_fork(self) -> None:  # the parent uses the connection
        self._closed, self._cursor = True, None

    @property
    def info(self) -> ConnectionInfo | None:
        """The connection's address and server version, if it is open."""
        return None if self._cursor is None else self._cursor.connection.info

    async def fetch(
        self, statement: Statement, *, retry_busy: bool = True, own_queue: bool = True
    ) -> list[tuple[Any, ...]]:
        """Execute a statement, and return all rows after the commit.

        With `retry_busy=False`, an error that `is_busy` is raised, so that the caller
        can divide its batch. `own_queue=False` says that a task has named the queue: if
        that queue is refused, the task fails and the worker continues.
        """
        fetch = partial(self._fetch_once, statement)
        return await self._retry(fetch, retry_busy=retry_busy, own_queue=own_queue)

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as this side can tell."""
        if self._cursor is None or self._cursor.connection.closed:
            return False
        return self._busy.locked() or not was_closed(self._cursor.connection)

    async def open(self) -> None:
        """Connect if necessary; retries without limit."""
        await self._retry(self._connected)

    async def _retry(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        retry_busy: bool = True,
        own_queue: bool = True,
    ) -> T:
        failures = 0
        logged: set[type[Exception]] = set()
        while True:
            try:
                async with self._busy:
                    if self._closed:
                        raise RuntimeError("the worker has ended")
                    return await work()
            except SchemaVersion as error:  # upgraded while disconnected
                self._on_fatal(error)
                raise
            except (psycopg.Error, OSError) as error:
                if not is_transient(error) or (is_busy(error) and not retry_busy):
                    raise self._translated(error, own_queue=own_queue)  # noqa: B904 - it has its cause
                self.failure = error
                if type(error) not in logged:
                    logged.add(type(error))
                    logger.warning("%s: %s; trying again", self._name, error)
                await asyncio.sleep(backoff(failures))
                failures += 1

    async def close(self) -> None:
        """Close the connection permanently.

        Waits a limited time for a statement in progress: otherwise it could read from
        another connection that has reused the number of the closed socket.
        """
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS), self._busy:
                pass
        await self._drop()

    async def _fetch_once(self, statement: Statement) -> list[tuple[Any, ...]]:
        cursor = await self._connected()
        try:
            return await fetch(cursor, statement, strict=self._strict)
        except psycopg.Error as error:
            if is_read_only(error):
                await self._drop()
            raise

    async def _connected(self) -> AsyncPlainCursor:
        if self._cursor is not None and not was_closed(self._cursor.connection):
            return self._cursor
        await self._drop()
        options: dict[str, Any] = KEEPALIVE | {
            "autocommit": True,
            "prepare_threshold": 5 if self._prepare else None,
            "application_name": f"durable {self._name}",
        }
        connection: AsyncWatchdogConnection[Any]
        try:
            connection = await AsyncWatchdogConnection.connect(
                self._conninfo, **options
            )
        except psycopg.OperationalError as error:
            refusal = await asyncio.to_thread(refused, error, self._conninfo)
            if refusal.sqlstate is not None:
                raise refusal from error
            raise
        connection.read_timeout = READ_TIMEOUT
        try:
            cursor = AsyncPlainCursor(connection)
            self._strict = await check_session(cursor)
            if self._opened_before and self._on_reconnect is not None:
                await self._on_reconnect(connection)
        except BaseException:
            await connection.close()
            raise
        self._opened_before = True
        self._cursor = cursor
        return cursor

    def _translated(self, error: Exception, *, own_queue: bool) -> Exception:
        """Return durable's own error. Report it to the worker if it is fatal."""
        translated = from_database(error)
        refused_queue = isinstance(translated, UnknownQueue | Forbidden)
        unreachable = isinstance(error, DatabaseUnavailable)
        if (
            unreachable
            or isinstance(translated, SchemaVersion)
            or (refused_queue and own_queue)
        ):
            self._on_fatal(translated)
        return translated

    async def _drop(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()


class NeededConnection(Protocol):
    """A connection without which a worker claims no tasks."""

    failure: Exception | None

    @property
    def is_open(self) -> bool: ...

    async def open(self) -> None: ...


async def wait_until_open(needed: Sequence[NeededConnection]) -> None:
    """Wait until a worker has all the connections that it needs.

    Without all of them, it could claim tasks but not save their work or extend their
    leases. So it logs how many are missing and waits: the server may accept them later.
    """
    if all(connection.is_open for connection in needed):
        return
    opening = asyncio.ensure_future(_open_each(*needed))
    report_after = _REPORT_AFTER
    try:
        while not (await asyncio.wait({opening}, timeout=report_after))[0]:
            closed = [connection for connection in needed if not connection.is_open]
            logger.warning(
                "a worker needs %d connections to the database and has %d;"
                " until it has all it claims no task: %s",
                len(needed),
                len(needed) - len(closed),
                next(
                    (each.failure for each in closed if each.failure), "no answer yet"
                ),
            )
            report_after = _REPORT_AGAIN
        opening.result()
    finally:
        opening.cancel()


async def _open_each(first: NeededConnection, *others: NeededConnection) -> None:
    await first.open()  # alone, so that its errors are logged only once
    await asyncio.gather(*(connection.open() for connection in others))
