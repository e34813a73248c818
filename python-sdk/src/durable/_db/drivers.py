"""Execute one statement on a connection of the application.

The statement joins the transaction that is open there. Nothing is flushed, committed or
rolled back. The row is a tuple, whichever row factory the connection has. The library
is recognised by the module of the connection's type; only psycopg is imported.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from durable._core.sql import Statement
from durable._db._async.session import AsyncPlainCursor
from durable._db._sync.session import PlainCursor
from durable.errors import InvalidArgument, from_database

Row: TypeAlias = tuple[Any, ...]
Adapter = TypeVar("Adapter")


def execute(conn: object, statement: Statement) -> Row:
    """Execute a statement on a sync connection and return its first row.

    Raises TypeError for an unsupported or async connection, InvalidArgument outside a
    transaction, and durable's errors for those of the database.
    """
    adapter = _adapter(conn, SYNC, "Durable", ASYNC, "AsyncDurable")
    with _translated():
        return adapter(conn, statement)


async def execute_async(conn: object, statement: Statement) -> Row:
    """Execute a statement on an async connection and return its first row."""
    adapter = _adapter(conn, ASYNC, "AsyncDurable", SYNC, "Durable")
    with _translated():
        return await adapter(conn, statement)


def _psycopg(session: psycopg.Connection[Any], statement: Statement) -> Row:
    if _status(session) == TransactionStatus.ACTIVE:  # a pipeline has some in flight
        with session.pipeline():
            pass  # synchronizes
    _require(not session.autocommit or _status(session) != TransactionStatus.IDLE)
    with PlainCursor(session) as cursor:
        return _row(cursor.execute(statement.text, statement.args).fetchone())


async def _psycopg_async(
    session: psycopg.AsyncConnection[Any], statement: Statement
) -> Row:
    if _status(session) == TransactionStatus.ACTIVE:
        async with session.pipeline():
            pass
    _require(not session.autocommit or _status(session) != TransactionStatus.IDLE)
    async with AsyncPlainCursor(session) as cursor:
        await cursor.execute(statement.text, statement.args)
        return _row(await cursor.fetchone())


def _status(session: psycopg.BaseConnection[Any]) -> TransactionStatus:
    return session.info.transaction_status


def _sqlalchemy(connection: Any, statement: Statement) -> Row:
    dialect = connection.dialect
    _refuse_other_than_postgres(connection, dialect.name)
    _require(not connection.connection.dbapi_connection.autocommit)
    is_numbered = dialect.paramstyle == "numeric_dollar"
    text = _numbered(statement.text) if is_numbered else statement.text
    return _row(connection.exec_driver_sql(text, statement.args).first())


def _sqlalchemy_session(session: Any, statement: Statement) -> Row:
    return _sqlalchemy(session.connection(), statement)


async def _sqlalchemy_async(connection: Any, statement: Statement) -> Row:
    return _row(await connection.run_sync(_sqlalchemy, statement))


async def _sqlalchemy_async_session(session: Any, statement: Statement) -> Row:
    return await _sqlalchemy_async(await session.connection(), statement)


async def _asyncpg(connection: Any, statement: Statement) -> Row:
    _require(connection.is_in_transaction())
    return _row(await connection.fetchrow(_numbered(statement.text), *statement.args))


def _django(connection: Any, statement: Statement) -> Row:
    _refuse_other_than_postgres(connection, connection.vendor)
    _require(not connection.get_autocommit() or connection.in_atomic_block)
    with connection.cursor() as cursor:
        cursor.execute(statement.text, statement.args)
        return _row(cursor.fetchone())


SYNC: Final[Mapping[str, Callable[[Any, Statement], Row]]] = {
    "psycopg Connection": _psycopg,
    "psycopg Cursor": lambda cursor, sql: _psycopg(cursor.connection, sql),
    "sqlalchemy Connection": _sqlalchemy,
    "sqlalchemy Session": _sqlalchemy_session,
    "sqlalchemy scoped_session": _sqlalchemy_session,
    "django ConnectionProxy": _django,
    "django BaseDatabaseWrapper": _django,
}
ASYNC: Final[Mapping[str, Callable[[Any, Statement], Awaitable[Row]]]] = {
    "psycopg AsyncConnection": _psycopg_async,
    "psycopg AsyncCursor": lambda cursor, sql: _psycopg_async(cursor.connection, sql),
    "sqlalchemy AsyncConnection": _sqlalchemy_async,
    "sqlalchemy AsyncSession": _sqlalchemy_async_session,
    "sqlalchemy async_scoped_session": _sqlalchemy_async_session,
    "asyncpg Connection": _asyncpg,
    "asyncpg PoolConnectionProxy": _asyncpg,
}


def _adapter(
    conn: object,
    adapters: Mapping[str, Adapter],
    client: str,
    other_adapters: Mapping[str, object],
    other_client: str,
) -> Adapter:
    """Return the adapter of the library that a connection comes from."""
    cls = type(conn)
    given = f"{cls.__module__}.{cls.__qualname__}"
    for base in cls.__mro__:
        name = f"{base.__module__.partition('.')[0]} {base.__name__}"
        if name in adapters:
            return adapters[name]
        if name in other_adapters:
            raise TypeError(f"{client} cannot use {given}, but {other_client} can")
    raise TypeError(
        f"{client} cannot use {given} as a connection;"
        f" it can use: {', '.join(adapters)}"
    )


def _refuse_other_than_postgres(connection: object, database: str) -> None:
    if database != "postgresql":
        name = type(connection).__name__
        raise TypeError(f"this {name} is to {database}, but durable needs Postgres")


def _require(in_transaction: object) -> None:
    if not in_transaction:
        raise InvalidArgument(
            "this connection is not in a transaction: statements would commit at once",
            hint="Begin a transaction first, or call `spawn` or `emit_event` instead.",
        )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise durable's errors in place of the database's."""
    try:
        yield
    except Exception as error:
        ours = from_database(error)
        if ours is error:
            raise
        raise ours from error


def _numbered(text: str) -> str:
    """Return SQL with `$1`, `$2` in place of `%s`."""
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", text)


def _row(row: Any) -> Row:
    return tuple(row)
