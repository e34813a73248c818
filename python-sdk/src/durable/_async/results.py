"""Waits for tasks to finish: one loop for all handles of a client.

Of those who wait one leads: it asks for everybody's tasks in one statement, and hands
over when its own has come. So there is no thread and no background task, and nothing
outlives the calls that need it. Polling is the truth; being told when to look is an
optimisation, on a connection outside the pool.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from psycopg_pool import PoolClosed, PoolTimeout

from durable import _sql
from durable._async.database import Database
from durable._async.listener import Listener
from durable._crowds import LAST_LOOK_SECONDS, Crowd, Row, Waiter, pause_after
from durable._readiness import (
    Bell,
    readable_async,
    set_within_async,
)  # sync: from durable._readiness import Bell, readable, set_within
from durable._sql import Statement
from durable._worker.link import heals

__all__ = ["Results"]

logger = logging.getLogger("durable.client")

# A look takes milliseconds, and a timeout is a promise.
_SILENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """One statement for some who wait for tasks of one queue."""

    queue: str
    waiters: list[Waiter]
    everybody: bool
    told: bool = True
    knocks: int = 0

    def statement(self) -> Statement:
        """Ask for the fresh in full, of everybody only for those that have ended."""
        task_ids = list(dict.fromkeys(waiter.task_id for waiter in self.waiters))
        ask = _sql.get_endings if self.everybody else _sql.get_task_results
        return ask(self.queue, task_ids)


class Results:
    """Everybody who waits for a task through one client."""

    def __init__(self, database: Database, conninfo: str, *, listen: bool) -> None:
        self._database = database
        self._listen = listen
        self._closed = False
        self._listener = Listener(conninfo, "results", logger)
        self._lock = threading.Lock()
        self._crowds: dict[str, Crowd] = {}
        self._leader: Waiter | None = None
        self._bell: Bell | None = None
        self._resting = False
        self._failures = 0
        self._not_before = 0.0

    def reopen(self) -> None:
        """Listen again."""
        self._closed = False

    def close(self) -> None:
        """Listen no longer; who still waits is told by the next look."""
        with self._lock:
            self._closed = True
            for crowd in self._crowds.values():
                crowd.heard()
            self._ring()
            if self._leader is None:
                self._listener.close()

    async def wait(self, queue: str, task_id: UUID, timeout: float | None) -> Row:
        """Return the row of a task that has finished.

        Raises NotFound, or the builtin TimeoutError after so many seconds and one more
        look.
        """
        await self._database.open()
        waiter = Waiter(queue, task_id, timeout, asyncio.Event())
        self._join(waiter)
        try:
            while not waiter.served:
                if waiter.left == 0:
                    self._hurry(waiter)
                elif self._leader is waiter:
                    await self._turn(waiter)
                else:
                    await set_within_async(
                        waiter.event, waiter.left
                    )  # sync: set_within(waiter.event, waiter.left)
        finally:
            await self._part(waiter)
        return waiter.answer()

    # -- coming and going ----------------------------------------------------------

    def _join(self, waiter: Waiter) -> None:
        with self._lock:
            self._crowds.setdefault(waiter.queue, Crowd()).add(waiter)
            if self._leader is None:
                self._leader = waiter
            self._ring()

    def _hurry(self, waiter: Waiter) -> None:
        """Ask for one last look; after that, give up."""
        with self._lock:
            if waiter.hurries:
                waiter.serve()
            elif not waiter.served:
                waiter.hurries = True
                self._crowds[waiter.queue].add(waiter)
                self._ring()

    async def _part(self, waiter: Waiter) -> None:
        with self._lock:
            self._forget(waiter)
            alone = self._leader is waiter and not self._crowds
        if self._leader is not waiter:
            return
        try:
            if alone and not self._closed:
                await self._listener.fall_silent()
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            self._leader = next((c.last() for c in self._crowds.values()), None)
            if self._leader is not None:
                self._leader.event.set()
                return
            if self._bell is not None:
                self._bell.close()
                self._bell = None
            if self._closed:
                self._listener.close()

    def _forget(self, waiter: Waiter) -> None:
        crowd = self._crowds.get(waiter.queue)
        if crowd is not None:
            crowd.discard(waiter)
            if not crowd:
                del self._crowds[waiter.queue]

    def _ring(self) -> None:
        if self._resting and self._bell is not None:
            self._bell.ring()

    # -- leading -------------------------------------------------------------------

    async def _turn(self, leader: Waiter) -> None:
        """Look where it is time to, else rest until it may be."""
        self._knocked(self._listener.heard())
        look = self._next_look()
        if look is None:
            await self._rest(leader)
        else:
            await self._look(look, leader)

    def _next_look(self) -> Look | None:
        now = time.monotonic()
        with self._lock:
            if now >= self._not_before:
                for queue, crowd in self._crowds.items():
                    if now >= crowd.due:
                        return Look(
                            queue,
                            crowd.everybody(),
                            everybody=True,
                            told=crowd.told,
                            knocks=crowd.knocks,
                        )
                for queue, crowd in self._crowds.items():
                    if fresh := crowd.fresh():
                        return Look(queue, fresh, everybody=False)
            self._resting = True
            return None

    async def _look(self, look: Look, leader: Waiter) -> None:
        left = leader.left
        within = None if left is None else max(left, LAST_LOOK_SECONDS)
        try:
            rows = await self._database.fetch(
                look.statement(), within=within, silence=_SILENCE
            )
        except Exception as error:  # noqa: BLE001 - those who wait are told
            self._failed(look, error)
        else:
            self._answer(look, rows)

    def _answer(self, look: Look, rows: list[Row]) -> None:
        found = {row[0]: row for row in rows}
        hearing = look.queue in self._listener.held
        if hearing and not look.told and any(state for _, state, *_ in rows):
            self._listener.close()  # it has gone deaf
        with self._lock:
            self._failures = 0
            crowd = self._crowds.get(look.queue, Crowd())
            if look.everybody:
                crowd.looked_for_all(look.waiters, look.knocks, hearing=hearing)
            else:
                crowd.looked_for_fresh(look.waiters, hearing=hearing)
            for waiter in look.waiters:
                if not look.everybody or waiter.task_id in found:
                    waiter.saw(found.get(waiter.task_id))
                if waiter.served:
                    self._forget(waiter)

    def _failed(self, look: Look, error: Exception) -> None:
        """Look again after a pause, unless no time heals it."""
        fatal = isinstance(error, PoolClosed) or not heals(error)
        with self._lock:
            self._failures += 1
            self._not_before = time.monotonic() + pause_after(self._failures)
            for waiter in look.waiters:
                if fatal or (isinstance(error, PoolTimeout) and self._despairs(waiter)):
                    waiter.fail(error)
                elif waiter.hurries:
                    waiter.serve()
                if waiter.served:
                    self._forget(waiter)

    def _despairs(self, waiter: Waiter) -> bool:
        """Whether it has waited in vain for as long as any call waits to connect."""
        waited = time.monotonic() - waiter.since
        patient = not waiter.hurries and waited < self._database.patience
        return waiter.row is None and not patient

    # -- resting -------------------------------------------------------------------

    async def _rest(self, leader: Waiter) -> None:
        """Wait until somebody comes or knocks, or it is time to look."""
        bell = self._bell = self._bell or Bell()
        try:
            if await self._take_doors():
                return
            filenos = [bell.fileno(), *self._listener.filenos]
            await readable_async(
                filenos, self._spare_time(leader)
            )  # sync: readable(filenos, self._spare_time(leader))
            bell.hush()
        finally:
            self._resting = False

    async def _take_doors(self) -> bool:
        """Take doors that are wanted; true if it is time for one look more."""
        if self._closed or not self._listen:
            self._listener.close()
            return False
        with self._lock:
            queues = set(self._crowds)
            wanted = {q for q, crowd in self._crowds.items() if crowd.wants_door()}
        await self._listener.leave(self._listener.held - queues)
        newly = await self._listener.take(wanted)
        self._knocked(newly)
        return bool(newly)

    def _knocked(self, queues: set[str]) -> None:
        with self._lock:
            for queue in queues & self._crowds.keys():
                self._crowds[queue].heard()

    def _spare_time(self, leader: Waiter) -> float:
        """Return the seconds until the next look, or until the leader must hurry."""
        with self._lock:
            crowds = self._crowds.values()
            fresh = any(crowd.fresh() for crowd in crowds)
            due = 0.0 if fresh else min(crowd.due for crowd in crowds)
        left = leader.left
        spare = max(due, self._not_before) - time.monotonic()
        return spare if left is None else min(spare, left)
