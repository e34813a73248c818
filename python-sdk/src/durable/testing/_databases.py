"""Databases for tests: one template with `durable` in it, a copy for each test.

The invariant: only a database that was made here carries the mark, a schema named
`durable_testing`, and whatever fakes time or throws databases away asks for it first.
It has no place in a database that is used for anything else.

All databases of a test run begin with its name. The run holds a session under that
name; databases whose run has none any more were left by one that was killed, and the
next run on that server drops them.
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

from durable import _schema
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

    Each is a copy of a template, in which `durable` is installed when the first copy is
    asked for: a matter of milliseconds. All are gone with the block.
    """

    __test__ = False  # pytest would collect it

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._run = f"{_PREFIX}{secrets.token_hex(4)}"
        self._template: str | None = None
        self._admin: Connection | None = None

    def __enter__(self) -> Self:
        self._admin = psycopg.connect(
            self._dsn, autocommit=True, application_name=self._run
        )
        _drop_left_over(self._admin)
        return self

    def __exit__(self, *_: object) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with admin:
                for (name,) in admin.execute(_NAMES, [self._run]).fetchall():
                    drop(admin, name)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Give the URL of a fresh database; it is dropped whoever still uses it."""
        if self._admin is None:
            raise RuntimeError("the databases are used outside their block")
        if self._template is None:
            self._template = self._make_template(self._admin)
        name = copied(self._admin, self._template)
        try:
            yield with_dbname(self._dsn, name)
        finally:
            drop(self._admin, name)

    def _make_template(self, admin: Connection) -> str:
        name = f"{self._run}_template"
        with _alone(admin):
            execute(admin, "create database {}", name)
            url = with_dbname(self._dsn, name)
            with psycopg.connect(url, autocommit=True) as session:
                session.execute(_MARK)
                session.execute(_schema.script(None))
                create_queues(session, ["default"])
        return name


class Copies:
    """Copies of a database that nobody is connected to; the next is made ahead."""

    def __init__(self, admin: Connection, source: str) -> None:
        self._admin = admin
        self._source = source
        self._next: asyncio.Task[str] | None = None
        self._drops: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[str]:
        """Give the name of a copy; it is dropped some time after the block."""
        name = await (self._next or self._copy())
        self._next = self._copy()
        try:
            yield name
        finally:
            self._drop(name)

    async def close(self) -> None:
        """Drop what there is."""
        if self._next is not None:
            self._drop(await self._next)
        await asyncio.gather(*self._drops)

    def _copy(self) -> asyncio.Task[str]:
        copying = asyncio.to_thread(copied, self._admin, self._source)
        return asyncio.create_task(copying)

    def _drop(self, name: str) -> None:
        dropping = asyncio.create_task(asyncio.to_thread(drop, self._admin, name))
        self._drops.add(dropping)
        dropping.add_done_callback(self._drops.discard)


def create_queues(session: Connection, queues: Iterable[str]) -> None:
    """Create queues that keep everything: a clock that jumps would empty them."""
    policy = '{"keep_tasks": null, "keep_events": null}'
    for queue in queues:
        session.execute("select durable.create_queue(%s, %s::jsonb)", [queue, policy])


def require_test_database(session: Connection, what: str) -> str:
    """Return the template of a database that was made here.

    Raises InvalidArgument for any other, naming `what` it is not for.
    """
    marked = session.execute(_IS_MARKED).fetchone()
    if marked != (True,):
        raise InvalidArgument(
            f"{what} is for a database that was made for tests, and"
            f' "{session.info.dbname}" was not',
            hint="Take the fixture `durable_database`, or `durable.testing."
            "TestDatabases`.",
        )
    row = session.execute("select template from durable_testing.made").fetchone()
    assert row is not None  # noqa: S101 - a marked one has its row
    return str(row[0])


def copied(admin: Connection, template: str) -> str:
    """Copy a database that nobody uses, and return the name of the copy."""
    run = _RUN.match(template)
    name = f"{run[0] if run else template}_{secrets.token_hex(2)}_{next(_COPIES)}"
    execute(admin, "create database {} template {}", name, template)
    return name


def drop(admin: Connection, name: str) -> None:
    """Drop a database, whoever uses it."""
    execute(admin, "drop database if exists {} with (force)", name)


def execute(session: Connection, statement: str, *names: str) -> None:
    """Run a statement that takes names, which can't be parameters."""
    session.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextlib.contextmanager
def _alone(admin: Connection) -> Iterator[None]:
    """Let one process at a time install: roles are the whole server's."""
    admin.execute("select pg_advisory_lock(hashtext('durable.testing'))")
    try:
        yield
    finally:
        admin.execute("select pg_advisory_unlock(hashtext('durable.testing'))")


def _drop_left_over(admin: Connection) -> None:
    names = admin.execute(_NAMES, [_PREFIX]).fetchall()  # each was made in a session
    live = {name for (name,) in admin.execute(_LIVE_RUNS).fetchall()}
    for (name,) in names:
        run = _RUN.match(name)
        if run is not None and run[0] not in live:
            with contextlib.suppress(psycopg.Error):  # another run drops it just now
                drop(admin, name)
