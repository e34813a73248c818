"""Claims tasks while slots are free, and waits when there are none to claim.

A task occupies a slot until its code has ended, and is held until its outcome is
committed. At most twice as many tasks are held as there are slots. So claims and
flushes overlap, and the amount of unsaved work stays bounded.

A long-lived snapshot keeps dead rows from being vacuumed, and they accumulate at the
beginning of the index that claims read. So a claim starts where the last claim of the
same task name ended. The position is only a hint: a task may appear at an earlier
position (its transaction committed late, or another claim rolled back). So the worker
rewinds to the beginning regularly, spending a twentieth of its time on that, and
whenever it seems to have nothing to do.

While a worker is idle, it registers as the listener of its queues, one worker per
queue. Sessions that create work for a queue with a listener send a notification.
Listening is an optimization: work is always found by polling, and behind a pooler that
shares sessions no notification arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import AsyncConnection

from durable._core import sql
from durable._core.outcomes import Resolved
from durable._db._async.listener import REGISTER_SECONDS, Listener
from durable._db._async.session import AsyncPlainCursor
from durable._db.application import Application
from durable._db.reconnecting import (
    NeededConnection,
    ReconnectingConnection,
    wait_until_open,
)
from durable._task.run import Claimed

if TYPE_CHECKING:
    from durable._worker.options import Settings

__all__ = ["Claims", "load_checkpoints"]

logger = logging.getLogger("durable.worker")

_FLAPPING_SECONDS: Final = 0.05
_LOCKED_SECONDS: Final = 0.05  # a task is due, but locked by another session
_MIN_BATCH: Final = 50  # with fewer tasks, overlapping claims do not pay
_REGISTRATION_SECONDS: Final = 10.0  # then it is renewed: the connection may be dead
_REWIND_SHARE: Final = 20  # one part in 20 of its time
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0


class Claims:
    """The tasks that one worker claims and holds.

    No task is claimed while one of the connections `needed` to save it is missing. One
    claim fills at most half of the slots, if there are many: then the next claim runs
    while the code of these tasks does, and many slots are free again when it returns.
    """

    def __init__(
        self,
        application: Application,
        settings: Settings,
        worker_id: str,
        connection: ReconnectingConnection,
        needed: Sequence[NeededConnection],
    ) -> None:
        self._connection = connection
        self._needed = needed
        self._names = list(application.registry.by_name)
        self._version = application.version
        self._settings = settings
        self._worker_id = worker_id
        self._queues = [_Queue(name, self._names) for name in settings.queues]
        self._batch_size = max(settings.concurrency // 2, _MIN_BATCH)
        # by id(): a task may be held twice, and hashing a UUID costs a Python call
        self._held: dict[int, Claimed] = {}
        self._running: set[int] = set()
        self._slot_freed = asyncio.Event()
        self._work_event = asyncio.Event()  # there may be something to claim
        self._drains: list[asyncio.Future[None]] = []
        self._rested_at = time.monotonic()
        self._registered_at = 0.0
        self._is_refused = False
        self._wanted = frozenset(("work", name) for name in settings.queues)
        self._listener = Listener(application.listen_conninfo, "work", logger)

    async def batches(self) -> AsyncIterator[list[Claimed]]:
        """Yield the tasks of each claim, without end."""
        while True:
            drains, self._drains = self._drains, []
            if self._work_event.is_set():
                self._work_event.clear()
                self._rewind()
            random.shuffle(self._queues)
            for queue in self._queues:
                yield await self._claim(queue)
            if any(queue.may_have_more for queue in self._queues):
                self._drains += drains
                await self._wait_for_slot()
                continue
            for drain in drains:
                if not drain.done():
                    drain.set_result(None)
            await self._rest()

    async def _claim(self, queue: _Queue) -> list[Claimed]:
        await wait_until_open(self._needed)
        limit = min(self._free_slots, self._batch_size)
        if limit <= 0 or not self._names:
            queue.may_have_more = bool(self._names)
            return []
        start = queue.start()
        requested_at = time.monotonic()
        rows = await self._connection.fetch(
            sql.claim_tasks(
                queue.name,
                self._worker_id,
                self._names,
                limit,
                self._settings.lease,
                start,
                self._version,
            )
        )
        claimed = [Claimed(queue.name, requested_at, *row) for row in rows]
        for task in claimed:
            self._held[id(task)] = task
            self._running.add(id(task))
        queue.advance(claimed)
        queue.may_have_more = len(claimed) == limit or start is not None
        if start is None:
            queue.schedule_rewind(time.monotonic() - requested_at)
        elif len(claimed) < limit:
            queue.rewind()
        return claimed

    def wake(self) -> None:
        """Look for work from the beginning, without waiting for the next poll."""
        self._work_event.set()

    async def wait_until_drained(self) -> None:
        """Wait until a claim that began after this call has left nothing to claim."""
        drain: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drains.append(drain)
        self.wake()
        await drain

    def _rewind(self) -> None:
        for queue in self._queues:
            queue.rewind()

    # -- slots ---------------------------------------------------------------------

    @property
    def _free_slots(self) -> int:
        slots = self._settings.concurrency
        return min(slots - len(self._running), 2 * slots - len(self._held))

    def code_ended(self, claimed: Claimed) -> None:
        """Free the slot of a task whose outcome is not saved yet."""
        self._running.discard(id(claimed))
        self._slot_freed.set()

    def discard(self, claimed: Claimed) -> None:
        """Stop holding a task."""
        self._held.pop(id(claimed), None)
        self.code_ended(claimed)

    async def _wait_for_slot(self) -> None:
        """Wait until a slot is free, and stop listening if the worker stays busy."""
        if time.monotonic() - self._rested_at > _FLAPPING_SECONDS:
            await self._listener.register(frozenset())
        timeout: float | None = _FLAPPING_SECONDS
        while self._free_slots <= 0:
            self._slot_freed.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._slot_freed.wait()
            except TimeoutError:
                timeout = None
                await self._listener.register(frozenset())

    async def release_lost(self, connection: AsyncConnection[Any]) -> None:
        """Release claims whose answer was lost with the previous connection."""
        held = {claimed.task_id for claimed in self._held.values()}
        for queue in self._settings.queues:
            statement = sql.release_unknown(queue, self._worker_id, held)
            await AsyncPlainCursor(connection).execute(
                statement.text.encode(), statement.args
            )
        self.wake()

    # -- waiting for work ----------------------------------------------------------

    async def _rest(self) -> None:
        """Wait until there may be something to claim."""
        if self._drains:
            return
        await asyncio.sleep(0)  # claimed tasks start first
        if not await self._register():
            longest = self._settings.poll * random.uniform(0.8, 1)  # noqa: S311 - no secret
            for queue in self._settings.queues:
                statement = sql.before_idle(queue, self._names, self._version)
                ((noted, fired, due),) = await self._connection.fetch(statement)
                if noted or fired or due is not None:
                    longest = min(longest, due or _LOCKED_SECONDS)
            await self._wait_for_work(self._until_registered(longest))
        self._rested_at = time.monotonic()
        self._rewind()

    async def _register(self) -> bool:
        """Register as the listener of queues without one.

        Returns True if work may have come meanwhile: then look once more.
        """
        if not self._settings.listen:
            return False
        now = time.monotonic()
        if now > self._registered_at + _REGISTRATION_SECONDS:
            self._registered_at = now
            await self._listener.register(frozenset())
        newly = await self._listener.register(self._wanted)
        self._read_notifications()
        return bool(newly) or self._work_event.is_set()

    def _until_registered(self, longest: float) -> float:
        """Return how long to wait for work: only briefly after a first refusal.

        A registration is refused while another worker has it, but also while a spawn is
        about to commit. That spawn saw no listener, so it notifies nobody.
        """
        was_refused = self._is_refused
        is_registered = self._wanted <= self._listener.registered
        self._is_refused = self._settings.listen and not is_registered
        if self._is_refused and not was_refused:
            return min(longest, REGISTER_SECONDS)
        return longest

    async def _wait_for_work(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        for socket in self._listener.filenos:
            loop.add_reader(socket, self._on_readable, socket)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._work_event.wait()
        finally:
            for socket in self._listener.filenos:
                loop.remove_reader(socket)

    def _on_readable(self, socket: int) -> None:
        self._read_notifications()
        if socket not in self._listener.filenos:  # the connection was lost
            asyncio.get_running_loop().remove_reader(socket)
            self._work_event.set()  # look for work, and connect again

    def _read_notifications(self) -> None:
        # a notification for any other queue is not for this worker
        if not self._listener.notifications().isdisjoint(self._wanted):
            self._work_event.set()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


class _Queue:
    """A queue, and the position at which the last claim of each name ended in it."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self.name = name
        self.may_have_more = False
        self._names = names
        self._positions: dict[str, tuple[datetime, UUID]] = {}
        self._rewind_at = 0.0

    def rewind(self) -> None:
        """Make the next claim start at the beginning."""
        self._rewind_at = 0.0

    def schedule_rewind(self, took: float) -> None:
        """Schedule the next rewind after a claim from the beginning took so long."""
        pause = min(max(_REWIND_SHARE * took, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._rewind_at = time.monotonic() + pause

    def start(self) -> tuple[list[datetime | None], list[UUID | None]] | None:
        """Return the start positions of all names; None to start at the beginning."""
        if not self._positions or time.monotonic() >= self._rewind_at:
            return None
        found = [self._positions.get(name, (None, None)) for name in self._names]
        return [at for at, _ in found], [task_id for _, task_id in found]

    def advance(self, claimed: Sequence[Claimed]) -> None:
        """Start after these tasks next time, but never at a time in the future."""
        if not claimed:
            return
        now = claimed[0].claimed_at
        ends: dict[str, tuple[datetime, UUID]] = {}
        for task in claimed:
            position = (task.available_at, task.task_id)
            ends[task.name] = max(position, ends.get(task.name, position))
        self._positions = {
            name: position
            for name, position in (self._positions | ends).items()
            if position[0] <= now
        }


async def load_checkpoints(
    connection: ReconnectingConnection, claimed: Sequence[Claimed]
) -> dict[UUID, dict[str, Resolved] | Exception]:
    """Load the checkpoints of tasks of one queue, by task and key.

    If that fails, the tasks are divided to find the one at fault; it gets the error.
    """
    held = [{"task_id": str(task.task_id), "claim": task.claim} for task in claimed]
    statement = sql.load_checkpoints(claimed[0].queue, json.dumps(held))
    try:
        rows = await connection.fetch(statement, retry_busy=len(claimed) == 1)
    except Exception as error:  # noqa: BLE001 - the task at fault fails with it
        if len(claimed) == 1:
            return {claimed[0].task_id: error}
        middle = len(claimed) // 2
        return await load_checkpoints(
            connection, claimed[:middle]
        ) | await load_checkpoints(connection, claimed[middle:])
    loaded: dict[UUID, dict[str, Resolved]] = {task.task_id: {} for task in claimed}
    for task_id, key, position, after, state, value in rows:
        loaded[task_id][key] = Resolved(state, value, position, after)
    return dict(loaded)
