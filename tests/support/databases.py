"""Databases for tests: one template with `durable` installed, a copy for each test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import psycopg
from psycopg import sql

from durable import _schema
from durable.testing._dsn import with_dbname

__all__ = ["Databases", "install"]

NUMBERS = itertools.count(1)


class Databases:
    """The databases of one test run, on one server; their names begin alike.

    One whose test has ended is dropped with the next that is made: by then its sessions
    are gone, which Postgres would otherwise wait a tenth of a second for.
    """

    def __init__(self, dsn: str, run: str) -> None:
        self._dsn = dsn
        self._prefix = f"test_{run}_"
        self._done_with: list[str] = []
        self.template = f"{self._prefix}template"

    def make_template(self, *extensions: str) -> None:
        """Install `durable` once per test run, whichever process comes first."""
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
        """Copy the template; the copy is dropped later, whoever still uses it."""
        name = f"{self._prefix}{owner}_{next(NUMBERS)}"
        with psycopg.connect(self._dsn, autocommit=True) as admin:
            while self._done_with:
                _execute(admin, "drop database {} with (force)", self._done_with.pop())
            _execute(admin, "create database {} template {}", name, self.template)
        yield with_dbname(self._dsn, name)
        self._done_with.append(name)

    def drop_all(self) -> None:
        """Drop every database of this test run."""
        ours = "select datname from pg_database where starts_with(datname, %s)"
        with psycopg.connect(self._dsn, autocommit=True) as admin:
            for (name,) in admin.execute(ours, [self._prefix]).fetchall():
                _execute(admin, "drop database {} with (force)", name)


def install(session: psycopg.Connection) -> None:
    """Install the engine and the queue "default", as `app.migrate()` does."""
    session.execute(_schema.script(None))
    session.execute("select durable.create_queue('default')")


def _execute(session: psycopg.Connection, statement: str, *names: str) -> None:
    """Run a statement that takes names, which can't be parameters."""
    query = sql.SQL(statement).format(*map(sql.Identifier, names))
    session.execute(query)
