"""The connections, batchers and pools that all runs of a worker share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from durable._core import sql
from durable._db._async import database as async_database
from durable._db._sync import database as sync_database
from durable._db.batcher import RETRY, Outcomes
from durable._db.forks import call_in_forks, mark_fork_of_worker
from durable._db.reconnecting import ReconnectingConnection, is_busy
from durable._task.branches import WaitFlusher
from durable._task.checkpoints import CheckpointFlusher
from durable._task.http_clients import Clients
from durable._task.run import Claimed
from durable._task.threads import Threads

if TYPE_CHECKING:
    from durable._db.application import Application

__all__ = ["Services"]


class Services:
    """The connections and batchers of one worker.

    Claims use one connection and flushes another. All other statements (loads, waits,
    children, events) use a third: they may wait for locked rows, and must not delay
    claims and flushes. Pools are opened on first use.
    """

    def __init__(
        self,
        application: Application,
        state: Any,
        *,
        lease: float,
        connect: Callable[[str], ReconnectingConnection],
    ) -> None:
        self.application = application
        self.state = state
        self.lease = lease
        self._is_closed = False
        call_in_forks(self._end_fork)
        # cached, because get_running_loop() costs a system call before Python 3.12
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.threads = Threads()
        self.http = Clients()
        conninfo, prepare = application.conninfo, application.prepare
        self._async_pool = async_database.own_pool(conninfo, prepare=prepare)
        self._sync_pool = sync_database.own_pool(conninfo, prepare=prepare)
        self._opening = threading.Lock()
        self.claim_connection = connect("claim")
        self.flush_connection = connect("flush")
        self.call_connection = connect("call")
        self.flusher = CheckpointFlusher(self.flush_connection)
        self.waits = WaitFlusher(self.call_connection)

    def _end_fork(self) -> None:
        """End a forked process that continues with its copy of the worker.

        A process that a step forks must end, or execute another program, before the
        step returns.
        """
        if not self._is_closed:
            mark_fork_of_worker()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon(os._exit, 1)

    async def close(self) -> None:
        """Cancel what is not committed, and close the connections."""
        self._is_closed = True
        await self.flusher.close()
        await self.waits.close()
        for connection in (
            self.claim_connection,
            self.flush_connection,
            self.call_connection,
        ):
            await connection.close()
        await self._async_pool.close()
        if not self._sync_pool.closed:
            await asyncio.to_thread(self._sync_pool.close)
        await self.http.close()

    async def async_pool(self) -> AsyncConnectionPool[Any]:
        """Return the pool of transaction steps that name no connection of their own."""
        if self._async_pool.closed:
            await self._async_pool.open()
        return self._async_pool

    def sync_pool(self) -> ConnectionPool[Any]:
        """Return the same for threads."""
        with self._opening:
            if self._sync_pool.closed:
                self._sync_pool.open()
        return self._sync_pool

    async def extend(self, claimed: Claimed) -> str:
        """Extend one lease. Returns the outcome."""
        held = [{"task_id": str(claimed.task_id), "claim": claimed.claim}]
        ((_, outcome),) = await self.call_connection.fetch(
            sql.extend_leases(claimed.queue, json.dumps(held), self.lease)
        )
        return str(outcome)

    async def release(self, claimed: Claimed, seconds: float) -> None:
        """Release a claim, and delay the next one. This uses up no attempt."""
        passed = time.monotonic() - claimed.requested_at
        available_at = claimed.claimed_at + timedelta(seconds=passed + seconds)
        held = {
            "task_id": str(claimed.task_id),
            "claim": claimed.claim,
            "available_at": available_at.isoformat(),
        }
        await self.call_connection.fetch(
            sql.release_tasks(claimed.queue, json.dumps([held]))
        )

    async def spawn(
        self, claimed: Claimed, queue: str, children: Sequence[str]
    ) -> Outcomes:
        """Spawn children of a task in a queue. Returns their checkpoints, as JSON."""
        parent = (claimed.queue, claimed.task_id, claimed.claim)
        texts, own_queue = f"[{','.join(children)}]", queue == claimed.queue
        statement = (
            sql.spawn_children(*parent, texts)
            if own_queue
            else sql.spawn_children_in(*parent, queue, texts)
        )
        try:
            rows = await self.call_connection.fetch(
                statement, retry_busy=False, own_queue=own_queue
            )
        except Exception as error:
            if is_busy(error):
                return [RETRY] * len(children)
            raise
        elsewhere = {} if own_queue else {"queue": queue}
        return [
            json.dumps(
                {
                    "task_id": str(task_id),
                    "run_id": str(run_id),
                    "attempt": attempt,
                    "created": created,
                    **elsewhere,
                }
            )
            for _, task_id, run_id, attempt, created in rows
        ]
