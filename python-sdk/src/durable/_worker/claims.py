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
from durable._worker.held import Held
from durable._worker.hints import Hints
from durable._worker.link import Link
from durable._worker.run import Claimed
from durable._worker.waits import Resolved

__all__ = ["Claims", "load_checkpoints"]

_FLAPPING_SECONDS: Final = 0.05
_TAKEN_SECONDS: Final = 0.05  # something is due, but in other hands
_WORTH_A_CLAIM: Final = 50  # for fewer tasks, two claims cost more than they overlap


class Claims:
    """One worker's claims on its queues.

    `start` is given what was claimed, and `heard` is set by whoever knows of work. With
    many slots, one claim fills half of them: the next one is then on its way while the
    code of these tasks runs, and many slots are free again when it returns.
    """

    def __init__(
        self,
        link: Link,
        doors: Doors | None,
        held: Held,
        heard: asyncio.Event,
        *,
        worker_id: str,
        queues: Sequence[str],
        names: Sequence[str],
        version: str | None,
        lease: float,
        poll: float,
        start: Callable[[list[Claimed]], None],
    ) -> None:
        self._link = link
        self._doors = doors
        self._held = held
        self._heard = heard
        self._worker_id = worker_id
        self._queues = list(queues)
        self._names = list(names)
        self._version = version
        self._lease = lease
        self._poll = poll
        self._start = start
        self._most = max(held.slots // 2, _WORTH_A_CLAIM)
        self._rested = time.monotonic()
        self._hints = {queue: Hints(self._names) for queue in queues}
        self._quiet: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Claim for ever."""
        while True:
            while await self._claim():
                await self._until_a_slot_is_free()
            await self._rest()

    async def quiet(self) -> None:
        """Return when a claim that began after this call has left nothing to claim."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._quiet.append(future)
        self._heard.set()
        await future

    def look_back(self) -> None:
        """Let the next claims start at the beginning."""
        for hints in self._hints.values():
            hints.look_back()

    async def _claim(self) -> bool:
        """Claim once from every queue; False when all was claimed that is claimable."""
        waiting, self._quiet = self._quiet, []
        if self._heard.is_set():
            self._heard.clear()
            self.look_back()
        random.shuffle(self._queues)
        more = False
        for queue in self._queues:
            more = await self._claim_from(queue) or more
        for future in waiting:
            if more:
                self._quiet.append(future)
            elif not future.done():
                future.set_result(None)
        return more

    async def _claim_from(self, queue: str) -> bool:
        quantity = min(self._held.free, self._most)
        if quantity <= 0 or not self._names:
            return bool(self._names)
        hints = self._hints[queue]
        places = hints.places()
        asked = time.monotonic()
        rows = await self._link.fetch(
            _sql.claim_tasks(
                queue,
                self._worker_id,
                self._names,
                quantity,
                self._lease,
                places,
                self._version,
            )
        )
        took = time.monotonic() - asked
        claimed = [Claimed(queue, asked, *row) for row in rows]
        hints.learn(claimed)
        if places is None:
            hints.looked_back(took)
        elif len(claimed) < quantity:
            hints.look_back()
        self._start(claimed)
        return len(claimed) == quantity or places is not None

    async def _until_a_slot_is_free(self) -> None:
        if time.monotonic() - self._rested > _FLAPPING_SECONDS:
            await self._leave_doors()
        if not await self._held.until_free(_FLAPPING_SECONDS):
            await self._leave_doors()
            await self._held.until_free()

    async def _leave_doors(self) -> None:
        if self._doors is not None:
            await self._doors.leave()

    async def _rest(self) -> None:
        """Wait until there may be something to claim."""
        if self._quiet:
            return
        await asyncio.sleep(0)  # what was claimed starts first
        if self._doors is None or not await self._doors.take():
            longest = self._poll * random.uniform(0.8, 1)  # noqa: S311 - no secret
            for queue in self._queues:
                statement = _sql.before_rest(queue, self._names, self._version)
                ((noted, due),) = await self._link.fetch(statement)
                if noted or due is not None:
                    longest = min(longest, due or _TAKEN_SECONDS)
            await _set_within(self._heard, longest)
        self._rested = time.monotonic()
        self.look_back()


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
        for task_id, key, position, after, state, value in rows:
            loaded[task_id][key] = Resolved(state, value, position, after)
    return loaded
