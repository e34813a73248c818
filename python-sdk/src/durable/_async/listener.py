"""Holds doors on a connection of its own, and hears who knocks.

Hearing is an optimisation: polling is the truth. Where sessions are shared (behind a
pooler) no door is ever held and nothing is heard.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection
from typing import Any

import psycopg
from psycopg import (
    AsyncClientCursor,
    Notify,
)  # sync: from psycopg import ClientCursor, Notify

from durable import _sql
from durable._connections import IMPATIENCE, LISTENING_SILENCE
from durable._silence import AsyncImpatient
from durable._sql import Statement
from durable._worker.link import backoff

__all__ = ["Listener"]


class Listener:
    """Asks to be notified for some queues at a time; one caller at a time."""

    def __init__(self, conninfo: str, door: str, logger: logging.Logger) -> None:
        self._conninfo = conninfo
        self._door = door
        self._logger = logger
        self._connection: AsyncImpatient[Any] | None = None
        self._listening = False
        self._held: set[str] = set()
        self._heard: set[str] = set()
        self._failures = 0
        self._not_before = 0.0

    @property
    def filenos(self) -> list[int]:
        """What is readable when there may be something to hear."""
        return [] if self._connection is None else [self._connection.fileno()]

    @property
    def held(self) -> frozenset[str]:
        """The queues it is notified of."""
        return frozenset(self._held)

    async def take(self, queues: Collection[str]) -> set[str]:
        """Take the doors that are free; return those newly held: look once more.

        A connection that cannot be had is tried again later.
        """
        wanted = sorted(set(queues) - self._held)
        if not wanted or time.monotonic() < self._not_before:
            return set()
        try:
            taken = await self._execute(_sql.take_doors(wanted, self._door))
        except (psycopg.Error, OSError) as error:
            if self._failures == 0:
                self._logger.warning(
                    "not listening: %s; polling until the next try", error
                )
            self._not_before = time.monotonic() + backoff(self._failures)
            self._failures += 1
            return set()
        self._failures = 0
        self._listening = True
        newly = {queue for (queue,) in taken}
        self._held |= newly
        return newly

    async def leave(self, queues: Collection[str]) -> None:
        """Give back some doors."""
        held = sorted(self._held.intersection(queues))
        if held:
            await self._give_back(_sql.leave_doors(held, self._door))
            self._held.difference_update(held)

    async def fall_silent(self) -> None:
        """Give back all doors, and hear nothing until the next is taken."""
        if self._listening:
            await self._give_back(_sql.fall_silent(sorted(self._held), self._door))
            self._held.clear()
            self._listening = False

    async def _give_back(self, statement: Statement) -> None:
        with contextlib.suppress(psycopg.Error, OSError):  # no connection, no door
            await self._execute(statement)

    def heard(self) -> set[str]:
        """Return the queues somebody knocked for; those of a lost connection too."""
        connection = self._connection
        if connection is None:
            return set()
        heard = set(self._heard)
        self._heard.clear()
        try:
            connection.pgconn.consume_input()
            while (notify := connection.pgconn.notifies()) is not None:
                heard.add(notify.extra.decode(errors="replace"))
        except psycopg.Error:
            heard |= self._held
            self._drop()
        return heard

    def close(self) -> None:
        """Close the connection, and with it every door."""
        self._drop()

    async def _execute(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Return the rows of the last of its statements."""
        try:
            connection = await self._open()
            cursor = AsyncClientCursor(
                connection
            )  # sync: cursor = ClientCursor(connection)
            await cursor.execute(statement.text.encode(), statement.args)
            while cursor.nextset():
                pass
            return [] if cursor.description is None else await cursor.fetchall()
        except BaseException:
            self._drop()  # whether it holds a door is not known
            raise

    async def _open(self) -> AsyncImpatient[Any]:
        if self._connection is None:
            connection = await AsyncImpatient.connect(
                self._conninfo,
                autocommit=True,
                prepare_threshold=None,
                application_name=f"durable {self._door}",
                **IMPATIENCE,
            )
            connection.patience = LISTENING_SILENCE
            connection.add_notify_handler(self._notified)
            self._connection = connection
        return self._connection

    def _notified(self, notify: Notify) -> None:
        self._heard.add(notify.payload)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._held.clear()
        self._heard.clear()
        self._listening = False
        if connection is not None:
            connection.pgconn.finish()
