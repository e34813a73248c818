"""Databases for tests: one template with `durable` installed, a copy for each test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import psycopg
from psycopg import sql

from durable._db import schema
from durable.testing._dsn import with_dbname

__all__ = ["Databases", "install"]

NUMBERS = itertools.count(1)


class Databases:
    """The databases of one test run, on one server, with a common prefix.

    One whose test has ended is dropped when the next one is created: by then its
    sessions have ended, for which Postgres would otherwise wait a tenth of a second.
    """

    def __init__(self, dsn: str, run: str) -> None:
        self._dsn = dsn
        self._prefix = f"test_{run}_"
        self._done_with: list[str] = []
        self.template = f"{self._prefix}template"

    def make_template(self, *extensions: str) -> None:
        """Install `durable` once per test run, in whichever process comes first."""
        known = "select from pg_database where datname = %s"
        making = f"{self.template}_in_the_making"
        with psycopg.connect(self._dsn, autocommit=True) as admin:
            admin.execute("select pg_advisory_lock(hashtext(%s))", [self.template])
            if admin.execute(known, [self.template]).fetchone() is not None:
                return
            _execute(admin, "create database {}", making)
            with psycopg.connect(with_dbname(self._dsn, making), autocommit=True) as db:
                for extension in extensions:
                    _execute(db, "create extension {}", extension)
                install(db)
            _execute(admin, "alter database {} rename to {}", making, self.template)

    @contextlib.contextmanager
    def database(self, owner: str = "main") -> Iterator[str]:
        """Copy the template; drop the copy later, even if sessions still use it."""
        name = f"{self._prefix}{owner}_{next(NUMBERS)}"
        with psycopg.connect(self._dsn, autocommit=True) as admin:
            while self._done_with:
                _execute(admin, "drop database {} with (force)", self._done_with.pop())
            _execute(admin, self._copy_statement(admin), name, self.template)
        yield with_dbname(self._dsn, name)
        self._done_with.append(name)

    def _copy_statement(self, admin: psycopg.Connection) -> str:
        """Copy files where checkpoints need not reach a disk: it is quicker there."""
        copy = "create database {} template {}"
        fsync = admin.execute("show fsync").fetchone()
        return f"{copy} strategy file_copy" if fsync == ("off",) else copy

    def drop_all(self) -> None:
        """Drop every database of this test run."""
        ours = "select datname from pg_database where starts_with(datname, %s)"
        with psycopg.connect(self._dsn, autocommit=True) as admin:
            for (name,) in admin.execute(ours, [self._prefix]).fetchall():
                _execute(admin, "drop database {} with (force)", name)


def install(session: psycopg.Connection) -> None:
    """Install the engine and the queue "default", as `app.migrate()` does."""
    session.execute(schema.script(None))
    session.execute("select durable.create_queue('default')")


def _execute(session: psycopg.Connection, statement: str, *names: str) -> None:
    """Run a statement that takes names, which can't be parameters."""
    query = sql.SQL(statement).format(*map(sql.Identifier, names))
    session.execute(query)
