"""Execute statements independently of a session's settings and of the application's.

A database, a role, an address or a pool may set a stricter isolation level than READ
COMMITTED, at which the engine cannot see recent commits, or another encoding than
UTF-8, which lacks most characters. Behind a pooler, settings of a session do not last.
So in such a session each statement gets a transaction of its own with the settings it
needs. In all other sessions, it is sent alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

import psycopg
from psycopg import (
    AsyncClientCursor,
    AsyncConnection,
    AsyncCursor,
    AsyncPipeline,
    IsolationLevel,
    postgres,
)
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

# sync: from durable._db._async.session import ADAPTERS
from psycopg.types import TypesRegistry, array

from durable._core import sql
from durable._core.sql import Statement
from durable._core.values import UnsavableValue
from durable._db.schema import check_version

Row = TypeVar("Row")
Value = TypeVar("Value")

_UTF8: Final = "utf-8"


# async only
def _psycopg_defaults() -> AdaptersMap:
    types = TypesRegistry()
    postgres.register_default_types(types)
    adapters = AdaptersMap(types=types)
    postgres.register_default_adapters(adapters)
    array.register_all_arrays(adapters)
    return adapters


# as they are before an application registers its own
# async only
ADAPTERS: Final = _psycopg_defaults()


class _ReadTimeout(psycopg.OperationalError):
    """The server has sent nothing within the read timeout."""


class AsyncWatchdogConnection(AsyncConnection[Row]):
    """A connection with a read timeout of `read_timeout` seconds; None: no timeout.

    Keepalives detect a peer that is gone, but not one that is connected and silent: a
    frozen pooler, a proxy that lost its server, a server whose disk hangs. A statement
    that receives nothing for so long fails as on a broken connection, which is closed.
    Whether the statement took effect is then unknown.
    """

    read_timeout: float | None = None

    async def wait(self, gen: PQGen[Value], *args: Any, **options: Any) -> Value:
        """Wait as psycopg does, and fail after the read timeout."""
        try:
            return await super().wait(_timed(gen, self.read_timeout), *args, **options)
        except _ReadTimeout as timeout:
            self.pgconn.finish()
            # async only
            if isinstance(timeout.__context__, asyncio.CancelledError):
                raise timeout.__context__ from None  # the statement was cancelled
            raise


def _timed(gen: PQGen[Value], timeout: float | None) -> PQGen[Value]:
    """Run psycopg's generator with a read timeout.

    psycopg resumes it several times a second, with a false value while the socket is
    silent. Data that has arrived is read before the timeout is checked, so a process
    that was stopped for a while does not blame the server.
    """
    last_read = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            wanted = gen.send(ready)
            if ready:
                last_read = time.monotonic()
            elif timeout is not None and time.monotonic() - last_read > timeout:
                raise _ReadTimeout(f"the server has sent nothing for {timeout:g} s")
    except StopIteration as end:
        value: Value = end.value
        return value


class AsyncPlainCursor(AsyncCursor[TupleRow]):
    """A cursor with psycopg's default adapters and tuple rows.

    An application may register loaders and dumpers, globally or on a connection, and
    set row and cursor factories. durable's own statements do not depend on them.
    """

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    @property
    def adapters(self) -> AdaptersMap:
        """Psycopg's default adapters, for every connection."""
        return ADAPTERS


class AsyncPlainClientCursor(AsyncPlainCursor, AsyncClientCursor[TupleRow]):
    """An AsyncPlainCursor that binds on the client, for several statements."""


def was_closed(connection: psycopg.BaseConnection[Any]) -> bool:
    """Whether an idle connection was closed from either end. Sends nothing."""
    try:
        while not connection.closed and is_readable(connection.fileno()):
            connection.pgconn.consume_input()
    except psycopg.Error:
        return True
    return connection.closed


def is_readable(fileno: int) -> bool:
    """Whether a socket is readable now; if its connection is idle, it was closed."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


async def check_session(cursor: AsyncPlainCursor) -> bool:
    """Return whether a session's transactions are stricter than READ COMMITTED.

    Raises SchemaVersion unless this package works with the engine in its database.
    """
    await cursor.execute(sql.session.text.encode())
    version, isolation = map(_text, (await cursor.fetchall())[0])
    check_version(version)
    # PostgreSQL treats READ UNCOMMITTED as READ COMMITTED
    return isolation not in ("read committed", "read uncommitted")


async def fetch(
    cursor: AsyncPlainCursor,
    statement: Statement,
    *,
    strict: bool,
    prepare: bool | None = None,
) -> list[tuple[Any, ...]]:
    """Execute a statement at READ COMMITTED and return its rows.

    `strict` is the result of `check_session`. Values are transferred in binary, since
    their text depends on the session's date style.
    """
    connection = cursor.connection
    is_utf8 = connection.info.encoding == _UTF8
    if is_utf8 and not strict:
        await _execute(cursor, statement, prepare=prepare)
        return await cursor.fetchall()
    if connection.info.transaction_status != TransactionStatus.IDLE:
        await connection.commit()  # ends the transaction of `check_session`
    async with read_committed(connection):
        if is_utf8:
            return await _fetch_in_one_trip(cursor, statement, prepare=prepare)
        async with connection.transaction():
            # psycopg encodes arguments in UTF-8 only after this round trip
            await connection.execute("set local client_encoding to 'UTF8'")
            return await fetch(cursor, statement, strict=False, prepare=prepare)


def _text(value: object) -> str:
    """Decode text that psycopg leaves as bytes in a session with SQL_ASCII."""
    return value.decode() if isinstance(value, bytes) else str(value)


async def _fetch_in_one_trip(
    cursor: AsyncPlainCursor, statement: Statement, *, prepare: bool | None
) -> list[tuple[Any, ...]]:
    connection = cursor.connection
    pipeline: AbstractAsyncContextManager[Any] = contextlib.nullcontext()
    if AsyncPipeline.is_supported():
        pipeline = connection.pipeline()
    try:
        async with pipeline, connection.transaction():
            await _execute(cursor, statement, prepare=prepare)
        return await cursor.fetchall()
    except psycopg.Error:
        if not connection.closed:  # the pipeline has skipped the end of the transaction
            await connection.rollback()
        raise


async def _execute(
    cursor: AsyncPlainCursor, statement: Statement, *, prepare: bool | None
) -> None:
    text = statement.text.encode()
    try:
        await cursor.execute(text, statement.args, binary=True, prepare=prepare)
    except (ValueError, TypeError, OverflowError) as error:
        # psycopg could not encode an argument, and has sent nothing
        raise UnsavableValue(
            f"a value cannot be sent to the database: {error}"
        ) from error


@contextlib.asynccontextmanager
async def read_committed(connection: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Set the level at which psycopg begins transactions. Sends nothing."""
    before = connection.isolation_level
    await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
    try:
        yield
    finally:
        if connection.info.transaction_status == TransactionStatus.IDLE:
            await connection.set_isolation_level(before)
