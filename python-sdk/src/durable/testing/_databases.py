"""Databases for tests: a template with `durable` installed, and a copy for each test.

Invariant: only a database that was made here has a schema named `durable_testing`.
Every function that fakes time or drops databases requires it. It must not be created in
a database that is used for anything else.

The names of all databases of a test run begin with the name of the run, which is also
the application_name of a session that the run keeps open. Databases whose run has no
session were left behind by a killed run, and the next run on that server drops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from durable._db import schema
from durable._db.conninfo import checked_conninfo
from durable.errors import InvalidArgument
from durable.testing._dsn import with_dbname

__all__ = ["Copies", "TestDatabases", "create_queues", "require_test_database"]

_PREFIX: Final = "durable_test_"
_RUN: Final = re.compile(rf"^{_PREFIX}[0-9a-f]+")
_MARK: Final = """
create schema durable_testing;
grant usage on schema durable_testing to public;
create table durable_testing.made (template text not null);
insert into durable_testing.made values (current_database());
grant select on durable_testing.made to public;
"""
_IS_MARKED: Final = "select to_regclass('durable_testing.made') is not null"
_NAMES: Final = "select datname from pg_database where starts_with(datname, %s)"
_LIVE_RUNS: Final = "select distinct application_name from pg_stat_activity"
_COPIES: Final = itertools.count(1)

Connection = psycopg.Connection[Any]


class TestDatabases:
    """The databases of one test run on one server.

        with TestDatabases(dsn) as databases, databases.database() as url:
            ...

    Each is a copy of a template, which takes milliseconds. The template is made with
    the first copy. All databases are dropped at the end of the block.
    """

    __test__ = False  # pytest would collect it

    def __init__(self, dsn: str) -> None:
        self._dsn = checked_conninfo(dsn)
        self._run = f"{_PREFIX}{secrets.token_hex(4)}"
        self._template: str | None = None
        self._admin: Connection | None = None

    def __enter__(self) -> Self:
        self._admin = psycopg.connect(
            self._dsn, autocommit=True, application_name=self._run
        )
        _drop_orphans(self._admin)
        return self

    def __exit__(self, *_: object) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with admin:
                for (name,) in admin.execute(_NAMES, [self._run]).fetchall():
                    drop(admin, name)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of a fresh database; it is dropped even if it is in use."""
        if self._admin is None:
            raise RuntimeError("the databases are used outside their block")
        if self._template is None:
            self._template = self._make_template(self._admin)
        name = copy_database(self._admin, self._template)
        try:
            yield with_dbname(self._dsn, name)
        finally:
            drop(self._admin, name)

    def _make_template(self, admin: Connection) -> str:
        name = f"{self._run}_template"
        with _install_lock(admin):
            execute(admin, "create database {}", name)
            url = with_dbname(self._dsn, name)
            with psycopg.connect(url, autocommit=True) as session:
                session.execute(_MARK)
                session.execute(schema.script(None))
                create_queues(session, ["default"])
        return name


class Copies:
    """Copies a database without sessions, always one copy ahead."""

    def __init__(self, admin: Connection, source: str) -> None:
        self._admin = admin
        self._source = source
        self._next: asyncio.Task[str] | None = None
        self._drops: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def copy(self) -> AsyncIterator[str]:
        """Yield the name of a copy; it is dropped in the background after the block."""
        name = await (self._next or self._copy())
        self._next = self._copy()
        try:
            yield name
        finally:
            self._drop(name)

    async def close(self) -> None:
        """Drop all copies."""
        if self._next is not None:
            self._drop(await self._next)
        await asyncio.gather(*self._drops)

    def _copy(self) -> asyncio.Task[str]:
        copying = asyncio.to_thread(copy_database, self._admin, self._source)
        return asyncio.create_task(copying)

    def _drop(self, name: str) -> None:
        dropping = asyncio.create_task(asyncio.to_thread(drop, self._admin, name))
        self._drops.add(dropping)
        dropping.add_done_callback(self._drops.discard)


def create_queues(session: Connection, queues: Iterable[str]) -> None:
    """Create queues without retention, since a clock that jumps would empty them."""
    policy = '{"keep_tasks": null, "keep_events": null}'
    for queue in queues:
        session.execute("select durable.create_queue(%s, %s::jsonb)", [queue, policy])


def require_test_database(session: Connection, what: str) -> str:
    """Return the template of a test database.

    Raises InvalidArgument, naming `what`, for a database that was not made for tests.
    """
    marked = session.execute(_IS_MARKED).fetchone()
    if marked != (True,):
        raise InvalidArgument(
            f"{what} is for a database that was made for tests, and"
            f' "{session.info.dbname}" was not',
            hint="Use the fixture `durable_database` or `durable.testing."
            "TestDatabases`.",
        )
    row = session.execute("select template from durable_testing.made").fetchone()
    assert row is not None  # noqa: S101 - a marked one has a row
    return str(row[0])


def copy_database(admin: Connection, template: str) -> str:
    """Copy a database without sessions, and return the name of the copy."""
    run = _RUN.match(template)
    name = f"{run[0] if run else template}_{secrets.token_hex(2)}_{next(_COPIES)}"
    execute(admin, "create database {} template {}", name, template)
    return name


def drop(admin: Connection, name: str) -> None:
    """Drop a database, even if it is in use."""
    execute(admin, "drop database if exists {} with (force)", name)


def execute(session: Connection, statement: str, *names: str) -> None:
    """Execute a statement with identifiers, which cannot be parameters."""
    session.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def _install_lock(admin: Connection) -> Iterator[None]:
    """Let one process at a time install: roles belong to the whole server."""
    admin.execute("select pg_advisory_lock(hashtext('durable.testing'))")
    try:
        yield
    finally:
        admin.execute("select pg_advisory_unlock(hashtext('durable.testing'))")


def _drop_orphans(admin: Connection) -> None:
    # first the names: then no database of a run that has just begun is among them
    names = admin.execute(_NAMES, [_PREFIX]).fetchall()
    live = {name for (name,) in admin.execute(_LIVE_RUNS).fetchall()}
    for (name,) in names:
        run = _RUN.match(name)
        if run is not None and run[0] not in live:
            with contextlib.suppress(psycopg.Error):  # another run is dropping it
                drop(admin, name)
