"""What a worker holds, and how much more it may take.

A task has a slot until its code has ended, and is held until its end is committed. At
most twice as many are held as there are slots: so claims and flushes go on side by
side, and what is not saved yet stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from durable._worker.run import Claimed

__all__ = ["Held"]


class Held:
    """The tasks of one worker."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._freed = asyncio.Event()
        # by id(): one claim is not another, and to hash a UUID costs a call of Python
        self._held: dict[int, Claimed] = {}
        self._running: set[int] = set()

    @property
    def free(self) -> int:
        """How many tasks may be claimed."""
        unheld = 2 * self.slots - len(self._held)
        return min(self.slots - len(self._running), unheld)

    @property
    def task_ids(self) -> set[UUID]:
        """The tasks."""
        return {claimed.task_id for claimed in self._held.values()}

    def add(self, claimed: Claimed) -> None:
        """Hold a task and give it a slot."""
        self._held[id(claimed)] = claimed
        self._running.add(id(claimed))

    def code_ended(self, claimed: Claimed) -> None:
        """Free the slot of a task whose end is not saved yet."""
        self._running.discard(id(claimed))
        self._freed.set()

    def discard(self, claimed: Claimed) -> None:
        """Hold a task no longer."""
        self._held.pop(id(claimed), None)
        self.code_ended(claimed)

    def difference_update(self, several: Iterable[Claimed]) -> None:
        """Hold several tasks no longer."""
        for claimed in several:
            self.discard(claimed)

    async def until_free(self, timeout: float | None = None) -> bool:
        """Return True once a slot is free, or False after so many seconds."""
        if self.free > 0:
            return True
        try:
            async with asyncio.timeout(timeout):
                while self.free <= 0:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            return False
        return True
