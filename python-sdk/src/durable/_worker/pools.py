"""A worker's own connections for the transactions of its tasks, in either colour.

Each pool is opened when a task first asks for it; a worker without transaction steps
opens none.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from durable._async import database as async_database
from durable._sync import database as sync_database

__all__ = ["Pools"]


class Pools:
    """Where transactions are begun that name no place of their own."""

    def __init__(self, conninfo: str, *, prepare: bool) -> None:
        self._async = async_database.own_pool(conninfo, prepare=prepare)
        self._sync = sync_database.own_pool(conninfo, prepare=prepare)
        self._opening = threading.Lock()

    async def asynchronous(self) -> AsyncConnectionPool[Any]:
        """Return the pool for coroutines."""
        if self._async.closed:
            await self._async.open()
        return self._async

    def synchronous(self) -> ConnectionPool[Any]:
        """Return the pool for threads."""
        with self._opening:
            if self._sync.closed:
                self._sync.open()
        return self._sync

    async def close(self) -> None:
        """Close the connections."""
        await self._async.close()
        if not self._sync.closed:
            await asyncio.to_thread(self._sync.close)
