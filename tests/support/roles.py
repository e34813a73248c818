"""Roles of one test, with unique names: a server's roles are shared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import psycopg
from psycopg import sql

__all__ = ["BECOMING", "Become", "Roles"]

Become: TypeAlias = Callable[[psycopg.Connection, str], object]


def _set_role(session: psycopg.Connection, role: str) -> None:
    session.execute(sql.SQL("set role {}").format(sql.Identifier(role)))


def _log_in(session: psycopg.Connection, role: str) -> None:
    """Set the session to the role as if it had logged in."""
    statement = sql.SQL("set session authorization {}")
    session.execute(statement.format(sql.Identifier(role)))


BECOMING: tuple[Become, ...] = (_set_role, _log_in)


class Roles:
    """Creates roles in a test's database, each with a schema, and drops them all."""

    def __init__(self, db: psycopg.Connection, dsn: str) -> None:
        self._db = db
        self._dsn = dsn
        self._made: list[str] = []

    def make(self, role: str, *grants: str) -> str:
        """Create a role with these grants, such as `durable_client`.

        Return its name.
        """
        name = f"{role}_of_{self._db.info.dbname}"
        self._db.execute(f"create role {name}")
        self._made.append(name)
        self._db.execute(f"create schema {name} authorization {name}")
        for grant in grants:
            self._db.execute(f"grant {grant} to {name}")
        return name

    @contextlib.contextmanager
    def session(
        self, role: str, become: Become = _log_in
    ) -> Iterator[psycopg.Connection]:
        """Return a session of the role."""
        with psycopg.connect(self._dsn, autocommit=True) as session:
            become(session, role)
            yield session

    def drop_all(self) -> None:
        """Drop the roles, with their objects and grants."""
        for name in self._made:
            self._db.execute(f"drop owned by {name} cascade")
            self._db.execute(f"drop role {name}")
