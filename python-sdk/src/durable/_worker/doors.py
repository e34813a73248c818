"""Hears of new work, on a connection of its own.

While a worker is idle it holds the doors of its queues, if nobody else does; then
whoever makes work notifies. Hearing is an optimisation: polling is the truth, and where
sessions are shared nothing is ever heard.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import psycopg
from psycopg import Notify

from durable import _sql
from durable._connections import IMPATIENCE, LISTENING_SILENCE
from durable._silence import AsyncImpatient
from durable._sql import Statement
from durable._worker.link import backoff

__all__ = ["Doors"]

logger = logging.getLogger("durable.worker")

_PROBE_SECONDS: Final = 10.0


class Doors:
    """Calls `heard` when there may be work in one of the queues."""

    def __init__(
        self, conninfo: str, queues: Collection[str], heard: Callable[[], None]
    ) -> None:
        self._conninfo = conninfo
        self._queues = set(queues)
        self._heard = heard
        self._connection: AsyncImpatient[Any] | None = None
        self._answered = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._held: set[str] = set()
        self._listening: int | None = None
        self._closing: asyncio.Future[None] | None = None

    async def take(self) -> bool:
        """Take the doors that are free. True if any is newly held: look once more.

        Now and then it makes sure that somebody is there to be heard.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            if self._held and time.monotonic() > self._answered + _PROBE_SECONDS:
                await self._ask(_sql.version())
            taken = [
                queue
                for queue in sorted(self._queues - self._held)
                if await self._ask(_sql.take_door(queue, "work"))
            ]
        except (psycopg.Error, OSError) as error:
            if self._failures == 0:
                logger.warning("doors: %s; polling until the next try", error)
            self._not_before = time.monotonic() + backoff(self._failures)
            self._failures += 1
            await self.close()
            return False
        self._failures = 0
        self._held.update(taken)
        return bool(taken)

    async def leave(self) -> None:
        """Give back all doors."""
        held, self._held = self._held, set()
        try:
            for queue in held:
                await self._ask(_sql.leave_door(queue, "work"))
        except (psycopg.Error, OSError):
            await self.close()

    async def close(self) -> None:
        """Close the connection, and with it every door it held."""
        self._pause()
        self._held.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _ask(self, statement: Statement) -> Any:
        connection = await self._open()
        self._pause()  # a statement reads from the socket itself
        try:
            cursor = await connection.execute(statement.text.encode(), statement.args)
            row = await cursor.fetchone()
            self._answered = time.monotonic()
        finally:
            self._resume(connection)
        return row and row[0]

    async def _open(self) -> AsyncImpatient[Any]:
        if self._connection is None or self._connection.closed:
            connection = await AsyncImpatient.connect(
                self._conninfo,
                autocommit=True,
                prepare_threshold=None,
                application_name="durable listen",
                **IMPATIENCE,
            )
            connection.patience = LISTENING_SILENCE
            self._connection = connection
            connection.add_notify_handler(self._notified)
            await connection.execute("listen durable_work")
        return self._connection

    def _notified(self, notify: Notify) -> None:
        if notify.payload in self._queues:
            self._heard()

    def _pause(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening = None

    def _resume(self, connection: AsyncImpatient[Any]) -> None:
        if not connection.closed:
            self._listening = connection.fileno()
            asyncio.get_running_loop().add_reader(self._listening, self._readable)

    def _readable(self) -> None:
        """Take what has arrived between statements."""
        connection = self._connection
        if connection is None:
            return
        try:
            connection.pgconn.consume_input()
        except psycopg.Error:
            self._pause()
            self._held.clear()
            self._closing = asyncio.ensure_future(self.close())
            self._heard()  # look, and connect again
            return
        while (notify := connection.pgconn.notifies()) is not None:
            if notify.extra.decode(errors="replace") in self._queues:
                self._heard()
