"""What a worker holds, and how much more it may take.

A task has a slot until its code has ended, and is held until its end is committed. At
most twice as many are held as there are slots: so claims and flushes go on side by
side, and what is not saved yet stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID

__all__ = ["Held"]

Claim = tuple[UUID, int]  # a task, and the number of its claim


class Held:
    """The tasks of one worker."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._freed = asyncio.Event()
        self._held: set[Claim] = set()
        self._running: set[Claim] = set()

    @property
    def free(self) -> int:
        """How many tasks may be claimed."""
        unheld = 2 * self.slots - len(self._held)
        return min(self.slots - len(self._running), unheld)

    @property
    def task_ids(self) -> set[UUID]:
        """The tasks."""
        return {task_id for task_id, _ in self._held}

    def add(self, claim: Claim) -> None:
        """Hold a task and give it a slot."""
        self._held.add(claim)
        self._running.add(claim)

    def code_ended(self, claim: Claim) -> None:
        """Free the slot of a task whose end is not saved yet."""
        self._running.discard(claim)
        self._freed.set()

    def discard(self, claim: Claim) -> None:
        """Hold a task no longer."""
        self._held.discard(claim)
        self.code_ended(claim)

    def difference_update(self, claims: Iterable[Claim]) -> None:
        """Hold several tasks no longer."""
        for claim in claims:
            self.discard(claim)

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
