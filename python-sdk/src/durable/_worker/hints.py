"""Where claims start, so that dead rows cost them nothing.

A snapshot that somebody holds keeps rows from being vacuumed, and they pile up in front
of every claim that starts at the beginning. So a claim starts where the last one of its
name ended. That is a hint and no more: a task may appear behind it (its transaction
committed late, its claimer rolled back), so a worker looks back again and again, as
often as it costs a twentieth of its time, and whenever it seems to have nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from durable._worker.run import Claimed

__all__ = ["Hints", "Places"]

_SHARE: Final = 20  # of its time, one part goes into looking back
_SOONEST: Final = 0.05
_LATEST: Final = 5.0

Places = tuple[list[datetime | None], list[UUID | None]]


class Hints:
    """Where the last claim of each name ended, in one queue."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._places: dict[str, tuple[datetime, UUID]] = {}
        self._look_back_at = 0.0

    def look_back(self) -> None:
        """Let the next claim start at the beginning."""
        self._look_back_at = 0.0

    def places(self) -> Places | None:
        """Return where to start for each name, None for the beginning."""
        if not self._places or time.monotonic() >= self._look_back_at:
            return None
        found = [self._places.get(name, (None, None)) for name in self._names]
        return [at for at, _ in found], [task_id for _, task_id in found]

    def looked_back(self, took: float) -> None:
        """Know that a claim started at the beginning, and how many seconds it took."""
        pause = min(max(_SHARE * took, _SOONEST), _LATEST)
        self._look_back_at = time.monotonic() + pause

    def learn(self, claimed: Sequence[Claimed]) -> None:
        """Start after these the next time; not where the clock has not come to yet."""
        if not claimed:
            return
        now = claimed[0].claimed_at
        ends: dict[str, tuple[datetime, UUID]] = {}
        for task in claimed:
            place = (task.available_at, task.task_id)
            ends[task.name] = max(place, ends.get(task.name, place))
        self._places = {
            name: place
            for name, place in (self._places | ends).items()
            if place[0] <= now
        }
