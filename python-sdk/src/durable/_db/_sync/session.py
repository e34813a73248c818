# Made from _async/session.py by tools/async_to_sync.py: edit that, not this.
"""Execute statements independently of a session's settings and of the application's.

A database, a role, an address or a pool may set a stricter isolation level than READ
COMMITTED, at which the engine cannot see recent commits, or another encoding than
UTF-8, which lacks most characters. Behind a pooler, settings of a session do not last.
So in such a session each statement gets a transaction of its own with the settings it
needs. In all other sessions, it is sent alone.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

import psycopg
from psycopg import (
    ClientCursor,
    Connection,
    Cursor,
    IsolationLevel,
    Pipeline,
)
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from durable._core import sql
from durable._core.sql import Statement
from durable._core.values import UnsavableValue
from durable._db._async.session import ADAPTERS
from durable._db.schema import check_version

Row = TypeVar("Row")
Value = TypeVar("Value")

_UTF8: Final = "utf-8"


class _ReadTimeout(psycopg.OperationalError):
    """The server has sent nothing within the read timeout."""


class WatchdogConnection(Connection[Row]):
    """A connection with a read timeout of `read_timeout` seconds; None: no timeout.

    Keepalives detect a peer that is gone, but not one that is connected and silent: a
    frozen pooler, a proxy that lost its server, a server whose disk hangs. A statement
    that receives nothing for so long fails as on a broken connection, which is closed.
    Whether the statement took effect is then unknown.
    """

    read_timeout: float | None = None

    def wait(self, gen: PQGen[Value], *args: Any, **options: Any) -> Value:
        """Wait as psycopg does, and fail after the read timeout."""
        try:
            return super().wait(_timed(gen, self.read_timeout), *args, **options)
        except _ReadTimeout:
            self.pgconn.finish()
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


class PlainCursor(Cursor[TupleRow]):
    """A cursor with psycopg's default adapters and tuple rows.

    An application may register loaders and dumpers, globally or on a connection, and
    set row and cursor factories. durable's own statements do not depend on them.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    @property
    def adapters(self) -> AdaptersMap:
        """Psycopg's default adapters, for every connection."""
        return ADAPTERS


class PlainClientCursor(PlainCursor, ClientCursor[TupleRow]):
    """An PlainCursor that binds on the client, for several statements."""


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


def check_session(cursor: PlainCursor) -> bool:
    """Return whether a session's transactions are stricter than READ COMMITTED.

    Raises SchemaVersion unless this package works with the engine in its database.
    """
    cursor.execute(sql.session.text.encode())
    version, isolation = map(_text, (cursor.fetchall())[0])
    check_version(version)
    # PostgreSQL treats READ UNCOMMITTED as READ COMMITTED
    return isolation not in ("read committed", "read uncommitted")


def fetch(
    cursor: PlainCursor,
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
        _execute(cursor, statement, prepare=prepare)
        return cursor.fetchall()
    if connection.info.transaction_status != TransactionStatus.IDLE:
        connection.commit()  # ends the transaction of `check_session`
    with read_committed(connection):
        if is_utf8:
            return _fetch_in_one_trip(cursor, statement, prepare=prepare)
        with connection.transaction():
            # psycopg encodes arguments in UTF-8 only after this round trip
            connection.execute("set local client_encoding to 'UTF8'")
            return fetch(cursor, statement, strict=False, prepare=prepare)


def _text(value: object) -> str:
    """Decode text that psycopg leaves as bytes in a session with SQL_ASCII."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _fetch_in_one_trip(
    cursor: PlainCursor, statement: Statement, *, prepare: bool | None
) -> list[tuple[Any, ...]]:
    connection = cursor.connection
    pipeline: AbstractContextManager[Any] = contextlib.nullcontext()
    if Pipeline.is_supported():
        pipeline = connection.pipeline()
    try:
        with pipeline, connection.transaction():
            _execute(cursor, statement, prepare=prepare)
        return cursor.fetchall()
    except psycopg.Error:
        if not connection.closed:  # the pipeline has skipped the end of the transaction
            connection.rollback()
        raise


def _execute(
    cursor: PlainCursor, statement: Statement, *, prepare: bool | None
) -> None:
    text = statement.text.encode()
    try:
        cursor.execute(text, statement.args, binary=True, prepare=prepare)
    except (ValueError, TypeError, OverflowError) as error:
        # psycopg could not encode an argument, and has sent nothing
        raise UnsavableValue(
            f"a value cannot be sent to the database: {error}"
        ) from error


@contextlib.contextmanager
def read_committed(connection: Connection[Any]) -> Iterator[None]:
    """Set the level at which psycopg begins transactions. Sends nothing."""
    before = connection.isolation_level
    connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
    try:
        yield
    finally:
        if connection.info.transaction_status == TransactionStatus.IDLE:
            connection.set_isolation_level(before)
