"""One statement on a connection that belongs to the application.

It becomes part of the transaction that is under way there. Nothing is flushed,
committed or rolled back, and the row comes back by position, whatever row factories
the connection has. Which library it is of says the module of its type: none but psycopg
is imported.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from durable._sql import Statement
from durable.errors import InvalidArgument, from_database

__all__ = ["execute", "execute_async"]

Row: TypeAlias = tuple[Any, ...]
Adapter = TypeVar("Adapter")


def execute(conn: object, statement: Statement) -> Row:
    """Return the first row of a statement that somebody's sync connection executes.

    Raises TypeError for what is no sync connection, InvalidArgument if it would commit
    by itself, and durable's own errors for what the database refuses.
    """
    adapter = _adapter(conn, SYNC, "Durable", ASYNC, "AsyncDurable")
    with _translated():
        return adapter(conn, statement)


async def execute_async(conn: object, statement: Statement) -> Row:
    """Do the same on an async connection."""
    adapter = _adapter(conn, ASYNC, "AsyncDurable", SYNC, "Durable")
    with _translated():
        return await adapter(conn, statement)


def _psycopg(session: psycopg.Connection[Any], statement: Statement) -> Row:
    if _state_is_unknown(session):
        with session.pipeline():
            pass  # synchronizes
    if session.autocommit and _is_idle(session):
        raise _no_transaction()
    with psycopg.Cursor(session, row_factory=tuple_row) as cursor:
        return _first(cursor.execute(statement.text, statement.args).fetchone())


async def _psycopg_async(
    session: psycopg.AsyncConnection[Any], statement: Statement
) -> Row:
    if _state_is_unknown(session):
        async with session.pipeline():
            pass  # synchronizes
    if session.autocommit and _is_idle(session):
        raise _no_transaction()
    async with psycopg.AsyncCursor(session, row_factory=tuple_row) as cursor:
        await cursor.execute(statement.text, statement.args)
        return _first(await cursor.fetchone())


def _state_is_unknown(session: psycopg.BaseConnection[Any]) -> bool:
    """Whether a pipeline has statements under way."""
    return session.info.transaction_status == TransactionStatus.ACTIVE


def _is_idle(session: psycopg.BaseConnection[Any]) -> bool:
    return session.info.transaction_status == TransactionStatus.IDLE


def _sqlalchemy(connection: Any, statement: Statement) -> Row:
    dialect = connection.dialect
    _refuse_other_than_postgres(connection, dialect.name)
    if connection.connection.dbapi_connection.autocommit:
        raise _no_transaction()
    text = statement.text
    if dialect.paramstyle == "numeric_dollar":
        text = _numbered(text)
    return _first(connection.exec_driver_sql(text, statement.args).first())


async def _sqlalchemy_async(connection: Any, statement: Statement) -> Row:
    return _first(await connection.run_sync(_sqlalchemy, statement))


def _sqlalchemy_session(session: Any, statement: Statement) -> Row:
    return _sqlalchemy(session.connection(), statement)


async def _sqlalchemy_async_session(session: Any, statement: Statement) -> Row:
    return await _sqlalchemy_async(await session.connection(), statement)


async def _asyncpg(connection: Any, statement: Statement) -> Row:
    if not connection.is_in_transaction():
        raise _no_transaction()
    text = _numbered(statement.text)
    return _first(await connection.fetchrow(text, *statement.args))


def _django(connection: Any, statement: Statement) -> Row:
    _refuse_other_than_postgres(connection, connection.vendor)
    if connection.get_autocommit() and not connection.in_atomic_block:
        raise _no_transaction()
    with connection.cursor() as cursor:
        cursor.execute(statement.text, statement.args)
        return _first(cursor.fetchone())


SYNC: Final[Mapping[str, Callable[[Any, Statement], Row]]] = {
    "psycopg Connection": _psycopg,
    "psycopg Cursor": lambda cursor, said: _psycopg(cursor.connection, said),
    "sqlalchemy Connection": _sqlalchemy,
    "sqlalchemy Session": _sqlalchemy_session,
    "sqlalchemy scoped_session": _sqlalchemy_session,
    "django ConnectionProxy": _django,
    "django BaseDatabaseWrapper": _django,
}
ASYNC: Final[Mapping[str, Callable[[Any, Statement], Awaitable[Row]]]] = {
    "psycopg AsyncConnection": _psycopg_async,
    "psycopg AsyncCursor": lambda cursor, said: _psycopg_async(cursor.connection, said),
    "sqlalchemy AsyncConnection": _sqlalchemy_async,
    "sqlalchemy AsyncSession": _sqlalchemy_async_session,
    "sqlalchemy async_scoped_session": _sqlalchemy_async_session,
    "asyncpg Connection": _asyncpg,
    "asyncpg PoolConnectionProxy": _asyncpg,
}


def _adapter(
    conn: object,
    ours: Mapping[str, Adapter],
    client: str,
    theirs: Mapping[str, object],
    other_client: str,
) -> Adapter:
    """Return the adapter of the library that a connection comes from."""
    cls = type(conn)
    given = f"{cls.__module__}.{cls.__qualname__}"
    for base in cls.__mro__:
        name = f"{base.__module__.partition('.')[0]} {base.__name__}"
        if name in ours:
            return ours[name]
        if name in theirs:
            raise TypeError(f"{client} cannot use {given}, but {other_client} can")
    raise TypeError(
        f"{client} cannot use {given} as a connection; it can use: {', '.join(ours)}"
    )


def _refuse_other_than_postgres(connection: object, database: str) -> None:
    if database != "postgresql":
        name = type(connection).__name__
        raise TypeError(f"this {name} is to {database}, but durable needs Postgres")


def _no_transaction() -> InvalidArgument:
    return InvalidArgument(
        "this connection is in no transaction: it would commit by itself",
        hint="Begin a transaction first. Without one, `spawn` and `emit_event` are"
        " the right calls.",
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise durable's own error for what the database refused."""
    try:
        yield
    except Exception as error:
        ours = from_database(error)
        if ours is error:
            raise
        raise ours from error


def _numbered(text: str) -> str:
    """Return SQL with `$1`, `$2` for its arguments."""
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", text)


def _first(row: Any) -> Row:
    return tuple(row)
