"""durable spawns in the application's own transaction, with any database library."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

import asyncpg
import django
import django.conf
import django.db
import django.db.transaction
import psycopg
import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio as sa_async
import sqlalchemy.orm as sa_orm
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row, namedtuple_row

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    NotFound,
    SchemaVersion,
    UnknownQueue,
)
from durable.embedded import Postgres
from tests.support.databases import install

PARAMS = {"order": 7, "note": "100 %s, $1, :p0 and ß"}

# A connection to pass, and how to commit and roll back.
Opened: TypeAlias = Iterator[tuple[Any, Any]]
AsyncOpened: TypeAlias = AsyncIterator[tuple[Any, Any]]
Open: TypeAlias = Callable[[str], AbstractContextManager[tuple[Any, Any]]]
AsyncOpen: TypeAlias = Callable[[str], AbstractAsyncContextManager[tuple[Any, Any]]]


@contextlib.contextmanager
def psycopg_connection(dsn: str, **options: Any) -> Opened:
    with contextlib.closing(psycopg.connect(dsn, **options)) as connection:
        yield connection, connection


@contextlib.contextmanager
def psycopg_cursor(dsn: str, **options: Any) -> Opened:
    with psycopg_connection(dsn, **options) as (connection, _):
        yield connection.cursor(), connection


@contextlib.contextmanager
def sqlalchemy_connection(dsn: str, driver: str = "psycopg", **options: Any) -> Opened:
    pytest.importorskip(driver)
    with sa.create_engine(with_driver(dsn, driver), **options).connect() as connection:
        yield connection, connection
    connection.engine.dispose()


@contextlib.contextmanager
def sqlalchemy_session(dsn: str, *, scoped: bool = False, **options: Any) -> Opened:
    engine = sa.create_engine(with_driver(dsn, "psycopg"), **options)
    make = sa_orm.sessionmaker(engine)
    with contextlib.closing(sa_orm.scoped_session(make) if scoped else make()) as made:
        yield made, made
    engine.dispose()


@contextlib.contextmanager
def django_connection(dsn: str, *, autocommit: bool = False) -> Opened:
    """Return `django.db.connection`, as if the settings named this test's database."""
    if not django.conf.settings.configured:
        django.conf.settings.configure()
        django.setup()
    keys = {"dbname": "NAME", "user": "USER", "host": "HOST", "port": "PORT"}
    parts = conninfo_to_dict(dsn).items()
    database = {keys[key]: value for key, value in parts if key in keys}
    database |= {"ENGINE": "django.db.backends.postgresql", "AUTOCOMMIT": autocommit}
    known = django.db.connections
    known.settings = known.configure_settings({"default": database})
    yield django.db.connection, django.db.connection
    if django.db.connection.connection is not None:
        django.db.connection.close()
    del known["default"]


@contextlib.asynccontextmanager
async def psycopg_async_connection(dsn: str, **options: Any) -> AsyncOpened:
    connection = await psycopg.AsyncConnection.connect(dsn, **options)
    yield connection, connection
    await connection.close()


@contextlib.asynccontextmanager
async def psycopg_async_cursor(dsn: str, **options: Any) -> AsyncOpened:
    async with psycopg_async_connection(dsn, **options) as (connection, _):
        yield connection.cursor(), connection


@contextlib.asynccontextmanager
async def sqlalchemy_async_connection(
    dsn: str, driver: str = "asyncpg", **options: Any
) -> AsyncOpened:
    engine = sa_async.create_async_engine(with_driver(dsn, driver), **options)
    async with engine.connect() as connection:
        yield connection, connection
    await engine.dispose()


@contextlib.asynccontextmanager
async def sqlalchemy_async_session(
    dsn: str, driver: str = "asyncpg", *, scoped: bool = False, **options: Any
) -> AsyncOpened:
    engine = sa_async.create_async_engine(with_driver(dsn, driver), **options)
    make = sa_async.async_sessionmaker(engine)
    made = sa_async.async_scoped_session(make, lambda: None) if scoped else make()
    yield made, made
    await made.close()
    await engine.dispose()


@contextlib.asynccontextmanager
async def asyncpg_connection(
    dsn: str, *, autocommit: bool = False, codec: bool = False
) -> AsyncOpened:
    connection = await asyncpg.connect(dsn)
    if codec:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
            )
    transaction = connection.transaction()
    if not autocommit:
        await transaction.start()
    yield connection, transaction
    await connection.close()


@contextlib.asynccontextmanager
async def asyncpg_pool(dsn: str) -> AsyncOpened:
    async with asyncpg.create_pool(dsn, min_size=1) as pool, pool.acquire() as lent:
        transaction = lent.transaction()
        await transaction.start()
        yield lent, transaction


def with_driver(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://", 1)


RAW: Any = {"cursor_factory": psycopg.RawCursor}
ASYNC_RAW: Any = {"cursor_factory": psycopg.AsyncRawCursor}
ALONE: Any = {"isolation_level": "AUTOCOMMIT"}

SYNC: dict[str, Open] = {
    "psycopg": psycopg_connection,
    "psycopg-dict_row": partial(psycopg_connection, row_factory=dict_row),
    "psycopg-raw": partial(psycopg_connection, **RAW),
    "psycopg-cursor": partial(psycopg_cursor, row_factory=namedtuple_row),
    "sqlalchemy": sqlalchemy_connection,
    "sqlalchemy-psycopg2": partial(sqlalchemy_connection, driver="psycopg2"),
    "sqlalchemy-session": sqlalchemy_session,
    "sqlalchemy-scoped": partial(sqlalchemy_session, scoped=True),
    "django": django_connection,
}
SYNC_ALONE: dict[str, Open] = {
    "psycopg": partial(psycopg_connection, autocommit=True),
    "psycopg-cursor": partial(psycopg_cursor, autocommit=True),
    "sqlalchemy": partial(sqlalchemy_connection, **ALONE),
    "sqlalchemy-psycopg2": partial(sqlalchemy_connection, driver="psycopg2", **ALONE),
    "sqlalchemy-session": partial(sqlalchemy_session, **ALONE),
    "django": partial(django_connection, autocommit=True),
}
ASYNC: dict[str, AsyncOpen] = {
    "psycopg": psycopg_async_connection,
    "psycopg-dict_row": partial(psycopg_async_connection, row_factory=dict_row),
    "psycopg-raw": partial(psycopg_async_connection, **ASYNC_RAW),
    "psycopg-cursor": partial(psycopg_async_cursor, row_factory=namedtuple_row),
    "sqlalchemy-asyncpg": sqlalchemy_async_connection,
    "sqlalchemy-psycopg": partial(sqlalchemy_async_connection, driver="psycopg"),
    "sqlalchemy-session": sqlalchemy_async_session,
    "sqlalchemy-session-psycopg": partial(sqlalchemy_async_session, driver="psycopg"),
    "sqlalchemy-scoped": partial(sqlalchemy_async_session, scoped=True),
    "asyncpg": asyncpg_connection,
    "asyncpg-codec": partial(asyncpg_connection, codec=True),
    "asyncpg-pool": asyncpg_pool,
}
ASYNC_ALONE: dict[str, AsyncOpen] = {
    "psycopg": partial(psycopg_async_connection, autocommit=True),
    "psycopg-cursor": partial(psycopg_async_cursor, autocommit=True),
    "sqlalchemy-asyncpg": partial(sqlalchemy_async_connection, **ALONE),
    "sqlalchemy-psycopg": partial(
        sqlalchemy_async_connection, driver="psycopg", **ALONE
    ),
    "sqlalchemy-session": partial(sqlalchemy_async_session, **ALONE),
    "asyncpg": partial(asyncpg_connection, autocommit=True),
}


@pytest.fixture
def app(dsn: str) -> Durable:
    """A client that was not opened."""
    return Durable(dsn, queue="default")


@pytest.fixture
def async_app(dsn: str) -> AsyncDurable:
    """An async client that was not opened."""
    return AsyncDurable(dsn, queue="default")


def tasks(db: psycopg.Connection) -> list[tuple[Any, ...]]:
    return db.execute("select task_id, params from durable.tasks").fetchall()


@pytest.mark.parametrize("library", SYNC)
def test_commits_with_the_transaction(
    app: Durable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    with SYNC[library](dsn) as (conn, transaction):
        handle = app.spawn_with(conn, "pack", PARAMS)
        assert (handle.attempt, handle.created) == (1, True)
        assert tasks(db) == []
        transaction.commit()
    assert tasks(db) == [(handle.task_id, PARAMS)]


@pytest.mark.parametrize("library", ASYNC)
async def test_commits_with_the_transaction_async(
    async_app: AsyncDurable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    async with ASYNC[library](dsn) as (conn, transaction):
        handle = await async_app.spawn_with(conn, "pack", PARAMS)
        assert (handle.attempt, handle.created) == (1, True)
        assert tasks(db) == []
        await transaction.commit()
    assert tasks(db) == [(handle.task_id, PARAMS)]


@pytest.mark.parametrize("library", SYNC)
def test_leaves_nothing_after_a_rollback(
    app: Durable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    with SYNC[library](dsn) as (conn, transaction):
        app.spawn_with(conn, "pack", PARAMS)
        assert app.emit_event_with(conn, "packed", PARAMS) is True
        assert app.emit_event_with(conn, "packed") is False
        transaction.rollback()
    assert tasks(db) == []
    assert db.execute("select from durable.events").fetchall() == []


@pytest.mark.parametrize("library", ASYNC)
async def test_leaves_nothing_after_a_rollback_async(
    async_app: AsyncDurable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    async with ASYNC[library](dsn) as (conn, transaction):
        await async_app.spawn_with(conn, "pack", PARAMS)
        assert await async_app.emit_event_with(conn, "packed", PARAMS) is True
        assert await async_app.emit_event_with(conn, "packed") is False
        await transaction.rollback()
    assert tasks(db) == []
    assert db.execute("select from durable.events").fetchall() == []


@pytest.mark.parametrize("library", SYNC_ALONE)
def test_refuses_an_autocommit_connection(
    app: Durable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    opened, refused = SYNC_ALONE[library](dsn), pytest.raises(InvalidArgument)
    with opened as (conn, _), refused as error:
        app.spawn_with(conn, "pack")
    assert "`spawn`" in str(error.value)
    assert tasks(db) == []


@pytest.mark.parametrize("library", ASYNC_ALONE)
async def test_refuses_an_autocommit_connection_async(
    async_app: AsyncDurable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    async with ASYNC_ALONE[library](dsn) as (conn, _):
        with pytest.raises(InvalidArgument) as error:
            await async_app.spawn_with(conn, "pack")
    assert "`spawn`" in str(error.value)
    assert tasks(db) == []


@pytest.mark.parametrize("mode", ["pipeline", "one by one"])
def test_joins_a_block_of_an_autocommit_connection(
    app: Durable, db: psycopg.Connection, connect: Any, mode: str
) -> None:
    conn = connect()
    with conn.pipeline() if mode == "pipeline" else contextlib.nullcontext():
        with conn.transaction(force_rollback=True):
            conn.execute("create table orders ()")
            app.spawn_with(conn, "pack")
        with pytest.raises(InvalidArgument):
            app.spawn_with(conn, "pack")
    assert tasks(db) == []


async def test_joins_a_block_of_an_autocommit_connection_async(
    async_app: AsyncDurable, db: psycopg.Connection, adb: psycopg.AsyncConnection
) -> None:
    async with adb.pipeline():
        async with adb.transaction(force_rollback=True):
            await adb.execute("create table orders ()")
            await async_app.spawn_with(adb, "pack")
        with pytest.raises(InvalidArgument):
            await async_app.spawn_with(adb, "pack")
    assert tasks(db) == []


def test_joins_djangos_atomic(app: Durable, dsn: str, db: psycopg.Connection) -> None:
    with django_connection(dsn, autocommit=True) as (conn, _):
        with django.db.transaction.atomic():
            app.spawn_with(conn, "pack")
            django.db.transaction.set_rollback(True)
        assert tasks(db) == []
        with django.db.transaction.atomic():
            app.spawn_with(django.db.connections["default"], "pack")
    assert len(tasks(db)) == 1


@pytest.mark.parametrize("library", SYNC)
def test_raises_durables_own_errors(app: Durable, dsn: str, library: str) -> None:
    with SYNC[library](dsn) as (conn, _):
        with pytest.raises(UnknownQueue, match="nowhere") as refused:
            app.spawn_with(conn, "pack", queue="nowhere")
        assert type(refused.value.__cause__).__module__.partition(".")[0] != "durable"


@pytest.mark.parametrize("library", ASYNC)
async def test_raises_durables_own_errors_async(
    async_app: AsyncDurable, dsn: str, library: str
) -> None:
    async with ASYNC[library](dsn) as (conn, _):
        with pytest.raises(UnknownQueue, match="nowhere") as refused:
            await async_app.spawn_with(conn, "pack", queue="nowhere")
        assert type(refused.value.__cause__).__module__.partition(".")[0] != "durable"


@pytest.mark.parametrize("library", SYNC)
def test_says_how_to_install_into_an_empty_database(
    app: Durable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    db.execute("drop schema durable cascade")
    lacking = pytest.raises(SchemaVersion, match="durable migrate")
    with SYNC[library](dsn) as (conn, _), lacking:
        app.spawn_with(conn, "pack")


@pytest.mark.parametrize("library", ASYNC)
async def test_says_how_to_install_into_an_empty_database_async(
    async_app: AsyncDurable, dsn: str, db: psycopg.Connection, library: str
) -> None:
    db.execute("drop schema durable cascade")
    async with ASYNC[library](dsn) as (conn, _):
        with pytest.raises(SchemaVersion, match="durable migrate"):
            await async_app.spawn_with(conn, "pack")


@pytest.mark.parametrize("library", SYNC)
async def test_names_the_client_that_takes_a_sync_connection(
    async_app: AsyncDurable, dsn: str, library: str
) -> None:
    refused = pytest.raises(TypeError, match="but Durable can")
    with SYNC[library](dsn) as (conn, _), refused:
        await async_app.spawn_with(conn, "pack")


@pytest.mark.parametrize("library", ASYNC)
async def test_names_the_client_that_takes_an_async_connection(
    app: Durable, dsn: str, library: str
) -> None:
    async with ASYNC[library](dsn) as (conn, _):
        with pytest.raises(TypeError, match="but AsyncDurable can"):
            app.spawn_with(conn, "pack")


async def test_lists_the_connections_it_accepts(
    app: Durable, async_app: AsyncDurable, dsn: str
) -> None:
    with pytest.raises(TypeError, match=r"use builtins\.str .* django Connection"):
        app.spawn_with(dsn, "pack")
    with pytest.raises(TypeError, match=r"use builtins\.str .* asyncpg Connection"):
        await async_app.spawn_with(dsn, "pack")


def test_refuses_another_database(app: Durable) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as conn, pytest.raises(TypeError, match="needs Postgres"):
        app.spawn_with(conn, "pack")
    engine.dispose()


def test_has_no_result_before_the_commit(app: Durable, dsn: str) -> None:
    with app, psycopg_connection(dsn) as (conn, transaction):
        handle = app.spawn_with(conn, "pack")
        with pytest.raises(NotFound):
            handle.result(timeout=10)
        transaction.commit()
        assert handle.state() == "pending"


async def test_has_no_result_after_a_rollback_async(
    async_app: AsyncDurable, dsn: str
) -> None:
    async with async_app, psycopg_async_connection(dsn) as (conn, transaction):
        handle = await async_app.spawn_with(conn, "pack")
        await transaction.rollback()
        with pytest.raises(NotFound):
            await handle.result(timeout=10)


def test_does_not_flush_the_applications_session(app: Durable, dsn: str) -> None:
    class Base(sa_orm.DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"  # there is no such table: a flush would fail
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)

    with sqlalchemy_session(dsn) as (session, _):
        session.add(order := Order(id=1))
        app.spawn_with(session, "pack")
        assert list(session.new) == [order]
        assert session.in_transaction()


# -- two-phase commit ------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["default", "listed"])
def test_spawns_in_a_prepared_transaction(queue: str) -> None:
    """Also while a worker idles, in a session that listens, for a queue with roles."""
    binaries = os.environ.get("DURABLE_TEST_PG_BIN")
    settings = {"max_prepared_transactions": "2"}
    with (
        Postgres.start(binaries=binaries, fast=True, settings=settings) as server,
        psycopg.connect(server.conninfo(), autocommit=True) as idle,
        psycopg.connect(server.conninfo(), autocommit=True) as conn,
    ):
        install(idle)
        roles = '{"roles": ["postgres"]}'
        idle.execute("select durable.create_queue('listed', %s)", [roles])
        for channel in ("work", "results", "published"):
            idle.execute("select durable.register_listener(%s, %s)", [queue, channel])
        conn.execute("listen durable_results")
        conn.execute("set durable.notify = off")
        conn.execute("begin")
        conn.execute("select durable.spawn(%s, 'pack')", [queue])
        conn.execute("prepare transaction 'order 7'")
        claim = "select name from durable.claim_tasks(%s, 'w')"
        assert idle.execute(claim, [queue]).fetchall() == []
        conn.execute("commit prepared 'order 7'")
        assert idle.execute(claim, [queue]).fetchall() == [("pack",)]
