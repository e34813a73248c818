"""Where a client's statements go: its pool, and the schema that must be there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from durable import _schema, _sql
from durable._async.migration import migrate
from durable._async.reaching import explained, reach
from durable._connections import (
    KEEPALIVE,
    conninfo_of_pool,
    conninfo_or_environment,
    has_something_to_say,
    known_conninfo,
)
from durable._silence import AsyncImpatient, impatient
from durable._sql import Statement
from durable._worker.link import only_reads
from durable.errors import from_database

__all__ = ["Database", "own_pool"]


class Database:
    """A pool of its own, or one that was given and stays its owner's.

    Nothing is connected before the first statement, and what was closed may be opened
    again.
    """

    def __init__(
        self, given: str | AsyncConnectionPool[Any] | None, *, prepare: bool
    ) -> None:
        self._prepare = prepare
        self._owns_pool = not isinstance(given, AsyncConnectionPool)
        if isinstance(given, AsyncConnectionPool):
            self._pool = given
            self.address: str | None = conninfo_of_pool(given.conninfo, given.kwargs)
        else:
            self.address = conninfo_or_environment(given)
            self._pool = own_pool(self.address or "", prepare=prepare)
        self._version_checked = False
        self._closed = False
        self._pid = os.getpid()

    @property
    def conninfo(self) -> str:
        """Where it is. Raises InvalidArgument if nobody has said it."""
        return known_conninfo(self.address)

    @property
    def patience(self) -> float:
        """The seconds a connection of the pool is waited for."""
        return self._pool.timeout

    async def reopen(self) -> None:
        """Open it, also after it was closed."""
        if self._closed:
            self._pool = own_pool(self.conninfo, prepare=self._prepare)
            self._closed = False
        await self.open()

    async def open(self) -> None:
        """Open it if need be; InvalidArgument if no database was given.

        Raises RuntimeError in a fork, and once it is closed.
        """
        known_conninfo(self.address)
        if self._pid != os.getpid():
            raise RuntimeError("connections do not survive a fork: make a new client")
        if self._closed:
            raise RuntimeError("the client is closed: enter it again")
        if self._pool.closed:
            await self._pool.open()

    async def close(self) -> None:
        """Close the connections; a pool that was given stays open."""
        if self._owns_pool:
            self._closed = True
            await self._pool.close()

    async def fetch(
        self,
        statement: Statement,
        *,
        within: float | None = None,
        silence: float | None = None,
    ) -> list[tuple[Any, ...]]:
        """Execute one statement, and return its rows after the commit.

        A connection is waited for `within` so many seconds, else as the pool has it;
        an answer as long as the server has not been silent for `silence` seconds, on a
        connection of its own pool. Raises DatabaseUnavailable, and PoolTimeout if all
        connections are in use.
        """
        await self.open()
        if not self._version_checked:
            await reach(self._pool, self.conninfo, within)
        try:
            async with self._pool.connection(timeout=within) as connection:
                return await self._fetch_on(connection, statement, silence)
        except PoolTimeout as error:
            if within is None:
                raise await explained(error, self._pool, self.conninfo)  # noqa: B904 - it has its cause
            raise  # who has so little time is not kept waiting for an explanation
        except psycopg.Error as error:
            raise from_database(error)  # noqa: B904 - it has its cause

    async def _fetch_on(
        self,
        connection: AsyncConnection[Any],
        statement: Statement,
        silence: float | None,
    ) -> list[tuple[Any, ...]]:
        try:
            with impatient(connection, silence):
                if not self._version_checked:
                    await self._check_version(connection)
                cursor = connection.cursor(row_factory=tuple_row)
                # binary: a session's date style has no say in how moments are read
                await cursor.execute(
                    statement.text.encode(), statement.args, binary=True
                )
                rows: list[tuple[Any, ...]] = await cursor.fetchall()
                return rows
        except psycopg.Error as error:
            if only_reads(error):
                await connection.close()  # the pool's next may lead to a primary
            raise

    async def migrate(self, queues: Iterable[str]) -> None:
        """Install or upgrade the schema and create queues."""
        await self.open()
        await reach(self._pool, self.conninfo, None)
        async with self._pool.connection() as connection:
            await migrate(connection, queues)
        self._version_checked = True

    async def _check_version(self, connection: AsyncConnection[Any]) -> None:
        cursor = connection.cursor(row_factory=tuple_row)
        await cursor.execute(_sql.version().text.encode())
        row = await cursor.fetchone()
        _schema.check_version(row[0] if row else "")
        self._version_checked = True


def own_pool(conninfo: str, *, prepare: bool) -> AsyncConnectionPool[Any]:
    """Return a pool that is not open yet, and keeps no connection it does not need."""
    return AsyncConnectionPool(
        conninfo,
        connection_class=AsyncImpatient,
        min_size=0,
        max_size=10,
        open=False,
        check=_check,
        kwargs={
            "autocommit": True,
            "prepare_threshold": 5 if prepare else None,
            **KEEPALIVE,
        },
    )


async def _check(connection: AsyncConnection[Any]) -> None:
    """Refuse a pooled connection that died while it was idle, without a round trip."""
    if has_something_to_say(connection.fileno()):
        await AsyncConnectionPool.check_connection(connection)
