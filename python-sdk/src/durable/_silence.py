"""Connections that take a long silence for a loss.

Keepalives notice a peer that is gone, but not one that is there and says nothing: a
frozen pooler, a proxy that lost its other side, a server whose disk hangs. A statement
that hears nothing for `patience` seconds fails as on a broken connection, and the
connection is closed. Whether the statement happened is unknown, as it is then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.abc import PQGen

__all__ = ["AsyncImpatient", "Impatient", "impatient"]

Row = TypeVar("Row")
Value = TypeVar("Value")


class _Silence(psycopg.OperationalError):
    """No answer has come for so long that none is expected any more."""


class AsyncImpatient(AsyncConnection[Row]):
    """Waits for a sign of life at most `patience` seconds; None: for ever."""

    patience: float | None = None

    async def wait(self, gen: PQGen[Value], *args: Any, **options: Any) -> Value:
        """Do what psycopg does, but not through a long silence."""
        try:
            return await super().wait(_listen(gen, self.patience), *args, **options)
        except _Silence as silence:
            self.pgconn.finish()
            if isinstance(silence.__context__, asyncio.CancelledError):
                raise silence.__context__ from None  # its statement was not to go on
            raise


class Impatient(Connection[Row]):
    """Waits for a sign of life at most `patience` seconds; None: for ever."""

    patience: float | None = None

    def wait(self, gen: PQGen[Value], *args: Any, **options: Any) -> Value:
        """Do what psycopg does, but not through a long silence."""
        try:
            return super().wait(_listen(gen, self.patience), *args, **options)
        except _Silence:
            self.pgconn.finish()
            raise


@contextlib.contextmanager
def impatient(connection: object, patience: float | None) -> Iterator[None]:
    """Be impatient for a while, on a connection of ours; others are as they are."""
    if not isinstance(connection, AsyncImpatient | Impatient):
        yield
        return
    connection.patience = patience
    try:
        yield
    finally:
        connection.patience = None


def _listen(gen: PQGen[Value], patience: float | None) -> PQGen[Value]:
    """Pass on what psycopg and its generator have to say to each other.

    It is resumed several times a second, with nothing while the socket is silent. What
    has arrived is read first: a process that was stopped does not mistake its own
    silence for the server's.
    """
    heard = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            wanted = gen.send(ready)
            if ready:
                heard = time.monotonic()
            elif patience is not None and time.monotonic() - heard > patience:
                raise _Silence(f"the server has said nothing for {patience:g} s")
    except StopIteration as end:
        value: Value = end.value
        return value
