"""Group commit of what runs have to save.

All runs' checkpoints, completions and failures that are ready go in one statement per
queue and one commit. A batch that the database refuses is divided until the element at
fault stands alone: its neighbours never notice.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg

from durable import _sql
from durable._worker.lane import AGAIN, Lane, Outcomes
from durable._worker.link import Link, is_busy
from durable.errors import DurableError

__all__ = ["Saving", "Write", "checkpoint_json"]

# An item that is itself this large travels alone.
_ALONE: Final = 4 * 1024 * 1024
_LARGE: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Write:
    """What one run saves at a time: checkpoints, and perhaps its end."""

    queue: str
    task_id: UUID
    claim: int
    checkpoints: tuple[str, ...] = ()
    result: str | None = None
    error: str | None = None
    final: bool = False

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        texts = (*self.checkpoints, self.result or "", self.error or "")
        size = sum(map(len, texts))
        return _ALONE if size > _LARGE else size


def checkpoint_json(
    task_id: UUID,
    claim: int,
    key: str,
    value: str,
    *,
    state: str,
    position: int,
    after: int,
    duration_ms: int,
) -> str:
    """Return a checkpoint as `durable.flush` takes it; `value` is JSON already."""
    return (
        f'{{"task_id":"{task_id}","claim":{claim},"name":{json.dumps(key)},'
        f'"state":"{state}","position":{position},"after":{after},'
        f'"duration_ms":{duration_ms},"value":{value}}}'
    )


class Saving:
    """Where runs hand in what they have to save.

    `submit` gives the outcome: ok, cancelled or lost. A write that the database
    refuses for what it contains raises that error.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        lane: Lane[Write, str] = Lane(self._send, size=lambda write: write.size)
        self.submit: Callable[[Write], asyncio.Future[str]] = lane.submit
        self.close = lane.close

    async def _send(self, writes: Sequence[Write]) -> Outcomes:
        by_queue: defaultdict[str, list[int]] = defaultdict(list)
        for index, write in enumerate(writes):
            by_queue[write.queue].append(index)
        outcomes: list[object] = ["ok"] * len(writes)
        for queue, indexes in by_queue.items():
            sent = await self._divide(queue, [writes[index] for index in indexes])
            for index, outcome in zip(indexes, sent, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _divide(self, queue: str, writes: Sequence[Write]) -> list[object]:
        try:
            return await self._flush(queue, writes, patient=False)
        except (psycopg.Error, DurableError) as error:
            if len(writes) == 1:
                return [AGAIN if is_busy(error) else error]
            middle = len(writes) // 2
            return [
                *await self._divide(queue, writes[:middle]),
                *await self._divide(queue, writes[middle:]),
            ]

    async def _flush(
        self, queue: str, writes: Sequence[Write], *, patient: bool
    ) -> list[object]:
        saved = [text for write in writes for text in write.checkpoints]
        done = [_completion(write) for write in writes if write.result is not None]
        failed = [_failure(write) for write in writes if write.error is not None]
        rows = await self._link.fetch(
            _sql.flush(queue, _array(saved), _array(done), _array(failed)),
            patient=patient,
        )
        refused = dict(rows)
        return [refused.get(write.task_id, "ok") for write in writes]


def _completion(write: Write) -> str:
    return (
        f'{{"task_id":"{write.task_id}","claim":{write.claim},"result":{write.result}}}'
    )


def _failure(write: Write) -> str:
    retryable = "false" if write.final else "true"
    return (
        f'{{"task_id":"{write.task_id}","claim":{write.claim},'
        f'"retryable":{retryable},"error":{write.error}}}'
    )


def _array(texts: Sequence[str]) -> str | None:
    return f"[{','.join(texts)}]" if texts else None
