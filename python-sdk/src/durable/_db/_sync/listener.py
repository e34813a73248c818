# Made from _async/listener.py by tools/async_to_sync.py: edit that, not this.
"""Listens for notifications of some queues, on a connection of its own.

Notifications are an optimisation: callers poll as well. Where sessions are shared, as
behind a pooler, no registration succeeds and no notification arrives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import Notify

from durable._core import sql
from durable._core.sql import Statement
from durable._db._sync.session import PlainClientCursor, WatchdogConnection
from durable._db.conninfo import LISTEN_READ_TIMEOUT, SHORT_TIMEOUTS
from durable._db.django import address_in_tests
from durable._db.reconnecting import backoff

__all__ = ["REGISTER_SECONDS", "Listener", "Registration", "Registrations"]

Registration: TypeAlias = tuple[str, str]
"""A channel and a queue."""

Registrations: TypeAlias = AbstractSet[Registration]

REGISTER_SECONDS: Final = 0.5
"""The time between two tries to get a registration that another connection has."""


class Listener:
    """A connection that is registered for the notifications of some queues.

    It is not thread-safe: one caller at a time.
    """

    def __init__(self, conninfo: str, name: str, logger: logging.Logger) -> None:
        self._conninfo = conninfo
        self._name = name
        self._logger = logger
        self._connection: WatchdogConnection[Any] | None = None
        self.registered: Registrations = frozenset()
        self._refused: Registrations = frozenset()
        self._pending: set[tuple[str, str]] = set()
        self._failures = 0
        self._retry_at = 0.0

    @property
    def filenos(self) -> list[int]:
        """The sockets that become readable when a notification arrives."""
        return [] if self._connection is None else [self._connection.fileno()]

    def register(self, wanted: Registrations) -> Registrations:
        """End other registrations, and return the new ones: poll those once more.

        Another connection may have one of them, or the database may be out of reach:
        later calls try again, after a pause.
        """
        ended, missing = self.registered - wanted, wanted - self.registered
        if time.monotonic() < self._retry_at and (
            self._failures or missing <= self._refused
        ):
            missing = frozenset()
        if not ended and not missing:
            return frozenset()
        try:
            rows = self._execute(sql.change_listeners(ended, missing, wanted))
        except Exception as error:  # noqa: BLE001 - polling finds everything
            if self._failures == 0:
                self._logger.warning(
                    "not listening: %s; polling until the next try", error
                )
            self._retry_at = time.monotonic() + backoff(self._failures)
            self._failures += 1
            return frozenset()
        self._failures = 0
        new = frozenset((channel, queue) for channel, queue in rows)
        self.registered = self.registered - ended | new
        self._refused = wanted - self.registered
        self._retry_at = time.monotonic() + REGISTER_SECONDS
        return new

    def notifications(self) -> AbstractSet[tuple[str, str]]:
        """Return the channels and payloads received since the last call.

        If the connection was lost, all its registrations are among them.
        """
        connection = self._connection
        if connection is None:
            return frozenset()
        received, self._pending = self._pending, set()
        try:
            connection.pgconn.consume_input()
            while (notify := connection.pgconn.notifies()) is not None:
                payload = notify.extra.decode(errors="replace")
                received.add((_channel(notify.relname.decode()), payload))
        except psycopg.Error:
            received |= self.registered
            self.close()
        return received

    def close(self) -> None:
        """Close the connection, and with it every registration."""
        connection, self._connection = self._connection, None
        self.registered, self._pending = frozenset(), set()
        if connection is not None:
            connection.pgconn.finish()

    def _execute(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Return the rows of the last of the statements in `statement`."""
        try:
            connection = self._open()
            cursor = PlainClientCursor(connection)
            cursor.execute(statement.text.encode(), statement.args)
            while cursor.nextset():
                pass
            return cursor.fetchall()
        except BaseException:
            self.close()  # its registrations are unknown
            raise

    def _open(self) -> WatchdogConnection[Any]:
        if self._connection is None:
            connection = WatchdogConnection.connect(
                address_in_tests(self._conninfo),
                autocommit=True,
                prepare_threshold=None,
                application_name=f"durable {self._name}",
                **SHORT_TIMEOUTS,
            )
            connection.read_timeout = LISTEN_READ_TIMEOUT
            connection.add_notify_handler(self._on_notify)
            self._connection = connection
        return self._connection

    def _on_notify(self, notify: Notify) -> None:
        self._pending.add((_channel(notify.channel), notify.payload))


def _channel(name: str) -> str:
    return name.removeprefix("durable_")
