"""What is done to many tasks at once, and lists of them.

A statement looks at so many tasks, and the next goes on behind them: none holds locks
for long, and what has been done stays done if one fails. Tasks that others are at are
asked for again in the end, until nobody is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, Unpack
from uuid import UUID

from durable import _sql
from durable._async.connected import Connected
from durable._callers import caller
from durable._ids import as_uuid
from durable._json import JSON
from durable._listing import (
    TaskFilter,
    TaskInfo,
    checked_filter,
    checked_limit,
    task_info,
)
from durable._requests import check_reason

__all__ = ["Many"]

AT_ONCE: Final = 1000
FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 1.0

Sweep: TypeAlias = Callable[[str, str, int, UUID | None], _sql.Statement]


class Many(Connected):
    """Tasks by a filter."""

    async def list_tasks(
        self,
        *,
        limit: int = 100,
        after: UUID | str | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> list[TaskInfo]:
        """Return at most `limit` tasks, the newest first; see TaskFilter.

        `after` is the id of the last task of the page before. Reads as much of the
        queue as it takes to find them: for people, not for loops. Raises
        InvalidArgument and UnknownQueue.
        """
        name = self._named(queue)
        said = json.dumps(checked_filter(wanted, change=False))
        start = None if after is None else as_uuid(after)
        statement = _sql.list_tasks(name, said, checked_limit(limit), start)
        rows = await self._database.fetch(statement)
        return [task_info(name, row, self.application.vault) for row in rows]

    async def cancel_many(
        self,
        *,
        reason: str | None = None,
        identity: Mapping[str, JSON] | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> int:
        """Cancel the live tasks that match, and what lives below them; return how many.

        Those below are not counted. `all=True` means every task of the queue.
        `identity` is who asks for it, as in `cancel`. Raises InvalidArgument and
        UnknownQueue.
        """
        why = None if reason is None else check_reason(reason)
        who = caller(identity)
        call = partial(_sql.cancel_tasks, reason=why, caller=who)
        return await self._sweep(call, queue, wanted)

    async def retry_many(
        self,
        *,
        identity: Mapping[str, JSON] | None = None,
        queue: str | None = None,
        **wanted: Unpack[TaskFilter],
    ) -> int:
        """Give those that failed or were cancelled, and match, one more attempt.

        As `retry` does, with their checkpoints; what sleeps until its next attempt
        starts that now. Returns how many. `all=True` means every task of the queue.
        `identity` is who asks for it, as in `cancel`. Raises InvalidArgument and
        UnknownQueue.
        """
        call = partial(_sql.retry_tasks, caller=caller(identity))
        return await self._sweep(call, queue, wanted)

    async def delete_many(
        self, *, queue: str | None = None, **wanted: Unpack[TaskFilter]
    ) -> int:
        """Delete the finished tasks that match, with all that belongs to them.

        Their idempotency keys are free then. A child stays while its parent is there,
        for the parent may join it. Returns how many. `all=True` means every finished
        task of the queue. Raises InvalidArgument and UnknownQueue.
        """
        return await self._sweep(_sql.delete_tasks, queue, wanted)

    async def _sweep(
        self,
        call: Sweep,
        queue: str | None,
        given: Mapping[str, Any],
    ) -> int:
        name, wanted = self._named(queue), checked_filter(given, change=True)
        changed, busy, last = await self._step(call, name, wanted, None)
        while last is not None:
            more, held, last = await self._step(call, name, wanted, last)
            changed, busy = changed + more, busy + held
        wanted.pop("all", None)
        pause = FIRST_PAUSE
        while busy:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            again, busy = busy, []
            for start in range(0, len(again), AT_ONCE):
                some = again[start : start + AT_ONCE]
                wanted["task_ids"] = [str(task_id) for task_id in some]
                more, held, _ = await self._step(call, name, wanted, None)
                changed, busy = changed + more, busy + held
        return changed

    async def _step(
        self,
        call: Sweep,
        queue: str,
        wanted: Mapping[str, Any],
        after: UUID | None,
    ) -> tuple[int, list[UUID], UUID | None]:
        statement = call(queue, json.dumps(wanted), AT_ONCE, after)
        ((changed, busy, last),) = await self._database.fetch(statement)
        return changed, busy, last
