"""Group commit of what runs have to save.

All runs' checkpoints, completions and failures that are ready go in one statement per
queue and one commit. A batch that the database refuses is divided until the element at
fault stands alone; of one that met a row in other hands each is sent alone, later. The
neighbours hardly notice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

import psycopg

from durable import _sql
from durable._worker.lane import AGAIN, Lane, Outcomes
from durable._worker.link import Link, is_busy
from durable.errors import DurableError

__all__ = ["Saving", "Write"]

# An item that is itself this large travels alone.
_ALONE: Final = 4 * 1024 * 1024
_LARGE: Final = 256 * 1024


class Write(NamedTuple):
    """What one run saves at a time: checkpoints, what it publishes, perhaps its end.

    Each as `durable.flush` takes it, several divided by commas, empty if there is none;
    what it publishes is one element as `durable.publish` takes it.
    """

    queue: str
    task_id: UUID
    checkpoints: str
    completion: str = ""
    failure: str = ""
    published: str = ""


class Saving:
    """Where runs hand in what they have to save.

    `submit` gives the outcome: ok, cancelled or lost. A write that the database
    refuses for what it contains raises that error.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lanes: dict[str, Lane[Write, str]] = {}

    def submit(self, write: Write) -> asyncio.Future[str]:
        """Hand in a write; the future is done once it is committed, or refused."""
        lane = self._lanes.get(write.queue)
        if lane is None:
            lane = Lane(partial(self._divide, write.queue), size=_size)
            self._lanes[write.queue] = lane
        return lane.submit(write)

    async def close(self) -> None:
        """Give up what has not been sent."""
        for lane in self._lanes.values():
            await lane.close()

    async def _divide(self, queue: str, writes: Sequence[Write]) -> Outcomes:
        try:
            return await self._flush(queue, writes)
        except (psycopg.Error, DurableError) as error:
            if is_busy(error):  # it took its time, and so would every half
                return [AGAIN] * len(writes)
            if len(writes) == 1:
                return [error]
            middle = len(writes) // 2
            return [
                *await self._divide(queue, writes[:middle]),
                *await self._divide(queue, writes[middle:]),
            ]

    async def _flush(self, queue: str, writes: Sequence[Write]) -> Outcomes:
        parts = (
            _array([write.checkpoints for write in writes]),
            _array([write.completion for write in writes]),
            _array([write.failure for write in writes]),
        )
        published = _array([write.published for write in writes])
        statement = (
            _sql.flush(queue, *parts)
            if published is None
            else _sql.publish(queue, published, *parts)
        )
        rows = await self._link.fetch(statement, patient=False)
        refused = dict(rows)
        if not refused:
            return ["ok"] * len(writes)
        times = Counter(write.task_id for write in writes)
        if max(times[task_id] for task_id in refused) > 1:
            return await self._ask_each(queue, writes)
        return [refused.get(write.task_id, "ok") for write in writes]

    async def _ask_each(self, queue: str, writes: Sequence[Write]) -> Outcomes:
        """Say each write again, since the answer does not say which was refused.

        A former run of a task may still write beside the present one. What was saved
        already is ok again.
        """
        return [
            outcome
            for write in writes
            for outcome in await self._divide(queue, [write])
        ]


def _size(write: Write) -> int:
    """Return its bytes, roughly."""
    size = len(write.checkpoints) + len(write.completion) + len(write.failure)
    size += len(write.published)
    return _ALONE if size > _LARGE else size


def _array(texts: Sequence[str]) -> str | None:
    elements = ",".join(filter(None, texts))
    return f"[{elements}]" if elements else None
