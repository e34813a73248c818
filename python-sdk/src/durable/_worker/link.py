"""A connection of the worker's own that comes back.

What time can heal (a lost connection, a deadlock, a full disk) is tried again for ever,
with backoff; what it cannot is raised. A long silence is a lost connection, and so is a
server that only reads: the next connection may lead to a primary. A statement may so
run twice: every function a worker calls answers a repetition as it did the first time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, AsyncCursor

from durable import _sql
from durable._connections import KEEPALIVE, SILENCE
from durable._schema import check_version
from durable._silence import AsyncImpatient
from durable._sql import Statement
from durable.errors import SchemaVersion, UnknownQueue, from_database

__all__ = [
    "HEALING",
    "Link",
    "backoff",
    "heals",
    "is_busy",
    "is_forbidden",
    "only_reads",
]

logger = logging.getLogger("durable.worker")

# connection, resources, operator intervention, system error, and: deadlock,
# serialization, lock timeout, read-only (a standby that is about to be promoted)
HEALING: Final = ("08", "53", "57", "58", "40", "55P03", "25006")
_LONGEST: Final = 5.0
_CLOSING_SECONDS: Final = 5.0


def heals(error: BaseException) -> bool:
    """Whether the same statement may work later."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        return isinstance(
            error, psycopg.OperationalError | psycopg.InterfaceError | OSError
        )
    return str(state).startswith(HEALING)


def is_busy(error: BaseException) -> bool:
    """Whether somebody held a row, or a transaction was in the way: say it again.

    A row that is there already is that of the same call, whose answer was lost with
    its connection while it was just committing. What was cancelled took longer than a
    statement may here: less of it at a time may do.
    """
    busy = ("55P03", "40", "23505", "57014")
    return str(getattr(error, "sqlstate", None)).startswith(busy)


def only_reads(error: BaseException) -> bool:
    """Whether the server refuses to write: a standby, or one that was a primary."""
    return getattr(error, "sqlstate", None) == "25006"


def is_forbidden(error: BaseException) -> bool:
    """Whether the worker's role lacks a right."""
    return getattr(error, "sqlstate", None) == "42501"


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, with jitter."""
    longest: float = min(0.05 * 2 ** min(failures, 10), _LONGEST)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


class Link:
    """One connection, one statement at a time.

    Each connection makes sure that the engine suits this package. `reconnected` is
    called with one that replaces a lost one, before it is used; `hopeless` with an
    error that no time heals: schema, queue or grant missing.
    """

    def __init__(
        self,
        conninfo: str,
        name: str,
        *,
        prepare: bool = True,
        reconnected: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
        hopeless: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._conninfo = conninfo
        self._name = name
        self._prepare = prepare
        self._reconnected = reconnected
        self._hopeless = hopeless
        self._cursor: AsyncCursor[Any] | None = None  # one, for it learns to read
        self._busy = asyncio.Lock()
        self._opened_before = False
        self._closed = False

    async def fetch(
        self, statement: Statement, *, patient: bool = True, own: bool = True
    ) -> list[tuple[Any, ...]]:
        """Return the rows, all of them, after the commit.

        Not `patient`, an error that says the rows are in other hands is raised, for the
        caller to divide what it sent. Not `own`, it is about a queue that a task has
        named: a refusal of that is the task's, and the worker goes on.
        """
        failures = 0
        said: set[type[Exception]] = set()
        while True:
            try:
                async with self._busy:
                    if self._closed:
                        raise RuntimeError("the worker has ended")
                    return await self._fetch_once(statement)
            except SchemaVersion as error:  # upgraded while there was no connection
                self._hopeless(error)
                raise
            except (psycopg.Error, OSError) as error:
                if not heals(error) or (is_busy(error) and not patient):
                    raise self._translated(error, own=own)  # noqa: B904 - it has its cause
                if type(error) not in said:
                    said.add(type(error))
                    logger.warning("%s: %s; trying again", self._name, error)
                await asyncio.sleep(backoff(failures))
                failures += 1

    async def close(self) -> None:
        """Close the connection, for good.

        Not under a statement that somebody waits for, unless that takes for ever: its
        socket's number may be another connection's by the time it looks again.
        """
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS), self._busy:
                pass
        await self._drop()

    async def _fetch_once(self, statement: Statement) -> list[tuple[Any, ...]]:
        cursor = self._cursor
        if cursor is None or cursor.connection.closed:
            cursor = await self._connect()
        try:
            await cursor.execute(statement.text.encode(), statement.args)
            return await cursor.fetchall()
        except psycopg.Error as error:
            if only_reads(error):
                await self._drop()
            raise

    async def _connect(self) -> AsyncCursor[Any]:
        await self._drop()
        connection: AsyncImpatient[Any] = await AsyncImpatient.connect(
            self._conninfo,
            autocommit=True,
            prepare_threshold=5 if self._prepare else None,
            application_name=f"durable {self._name}",
            **KEEPALIVE,
        )
        connection.patience = SILENCE
        try:
            await _check_version(connection)
            if self._opened_before and self._reconnected is not None:
                await self._reconnected(connection)
        except BaseException:
            await connection.close()
            raise
        self._opened_before = True
        # binary: a session's date style has no say in how moments are read
        self._cursor = connection.cursor(binary=True)
        return self._cursor

    def _translated(self, error: Exception, *, own: bool) -> Exception:
        """Return durable's own error, telling the worker if it cannot go on."""
        ours = from_database(error)
        refused = isinstance(ours, UnknownQueue) or is_forbidden(error)
        if isinstance(ours, SchemaVersion) or (refused and own):
            self._hopeless(ours)
        return ours

    async def _drop(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()


async def _check_version(connection: AsyncConnection[Any]) -> None:
    cursor = await connection.execute(_sql.version().text.encode())
    ((found,),) = await cursor.fetchall()
    check_version(found)
