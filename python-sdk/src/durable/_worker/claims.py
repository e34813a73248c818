"""Takes tasks as slots are free, and rests when there are none to take."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

from durable import _sql
from durable._worker.doors import Doors
from durable._worker.link import Link
from durable._worker.run import Claimed
from durable._worker.waits import Resolved

__all__ = ["Claims", "load_checkpoints"]

_FLAPPING_SECONDS: Final = 0.05
_TAKEN_SECONDS: Final = 0.05  # something is due, but in other hands


class Claims:
    """One worker's claims on its queues.

    `free` says how many slots are free, `start` is given what was claimed. An event per
    question is set: `freed` by whoever ends a run, `heard` by whoever knows of work.
    """

    def __init__(
        self,
        link: Link,
        doors: Doors | None,
        *,
        worker_id: str,
        queues: Sequence[str],
        names: Sequence[str],
        lease: float,
        poll: float,
        free: Callable[[], int],
        start: Callable[[list[Claimed]], None],
    ) -> None:
        self._link = link
        self._doors = doors
        self._worker_id = worker_id
        self._queues = list(queues)
        self._names = list(names)
        self._lease = lease
        self._poll = poll
        self._free = free
        self._start = start
        self.freed = asyncio.Event()
        self.heard = asyncio.Event()
        self._quiet: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Claim for ever."""
        while True:
            if self._free() == 0:
                await self._until_a_slot_is_free()
            elif not await self._claim():
                await self._rest()

    async def quiet(self) -> None:
        """Return after a claim that began after this call and brought nothing."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._quiet.append(future)
        self.heard.set()
        await future

    async def _claim(self) -> bool:
        """Claim once from every queue, and start what was claimed."""
        waiting, self._quiet = self._quiet, []
        self.heard.clear()
        random.shuffle(self._queues)
        found = False
        for queue in self._queues:
            claimed = await self._claim_from(queue)
            found = found or bool(claimed)
            self._start(claimed)
        for future in waiting:
            if found:
                self._quiet.append(future)
            elif not future.done():
                future.set_result(None)
        return found

    async def _claim_from(self, queue: str) -> list[Claimed]:
        quantity = self._free()
        if quantity == 0 or not self._names:
            return []
        asked = time.monotonic()
        rows = await self._link.fetch(
            _sql.claim_tasks(queue, self._worker_id, self._names, quantity, self._lease)
        )
        return [Claimed(queue, asked, *row) for row in rows]

    async def _rest(self) -> None:
        """Wait until there may be something to claim."""
        if self._quiet or (self._doors is not None and await self._doors.take()):
            return
        longest = self._poll * random.uniform(0.8, 1)  # noqa: S311 - no secret
        for queue in self._queues:
            statement = _sql.before_rest(queue, self._names)
            ((noted, due),) = await self._link.fetch(statement)
            longest = longest if due is None else min(longest, due or _TAKEN_SECONDS)
            longest = min(longest, _TAKEN_SECONDS) if noted else longest
        await _set_within(self.heard, longest)

    async def _until_a_slot_is_free(self) -> None:
        self.freed.clear()
        if self._doors is not None and not await _set_within(
            self.freed, _FLAPPING_SECONDS
        ):
            await self._doors.leave()
        await self.freed.wait()


async def _set_within(event: asyncio.Event, timeout: float) -> bool:
    try:
        async with asyncio.timeout(timeout):
            return await event.wait()
    except TimeoutError:
        return False


async def load_checkpoints(
    link: Link, claimed: Sequence[Claimed]
) -> dict[Any, dict[str, Resolved]]:
    """Return the checkpoints of tasks by task and key; a first claim has none."""
    by_queue: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for task in claimed:
        if task.claim > 1:
            held = {"task_id": str(task.task_id), "claim": task.claim}
            by_queue[task.queue].append(held)
    loaded: defaultdict[Any, dict[str, Resolved]] = defaultdict(dict)
    for queue, tasks in by_queue.items():
        rows = await link.fetch(_sql.load_checkpoints(queue, json.dumps(tasks)))
        for task_id, key, _, _, state, value in rows:
            loaded[task_id][key] = Resolved(state, value)
    return loaded
