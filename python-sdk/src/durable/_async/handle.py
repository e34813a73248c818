"""A client's reference to a spawned task."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from durable import _sql
from durable._results import FINAL, TaskResult, output, task_result
from durable._time import seconds
from durable._values import Codec
from durable._worker.link import heals
from durable.errors import NotFound

if TYPE_CHECKING:
    from durable._async.client import AsyncDurable

__all__ = ["AsyncTaskHandle"]

R_co = TypeVar("R_co", covariant=True)

_SHORTEST = 0.005
_LONGEST = 0.25
_TO_CONNECT = 1.0


class AsyncTaskHandle(Generic[R_co]):
    """A task that was spawned. Made again from its id: `app.handle(id, Task)`.

    `created` is false if the idempotency key belonged to a task that was there already.
    `run_id`, `attempt` and `created` are None on a handle made from an id.
    """

    def __init__(
        self,
        app: AsyncDurable,
        queue: str,
        task_id: UUID,
        codec: Codec[R_co],
        *,
        run_id: UUID | None = None,
        attempt: int | None = None,
        created: bool | None = None,
    ) -> None:
        self._app = app
        self.codec = codec
        self.queue = queue
        self.task_id = task_id
        self.run_id = run_id
        self.attempt = attempt
        self.created = created

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id} in {self.queue!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return (self.queue, self.task_id) == (other.queue, other.task_id)

    def __hash__(self) -> int:
        return hash((self.queue, self.task_id))

    async def state(self) -> str:
        """Return pending, running, sleeping, completed, failed or cancelled.

        Raises NotFound if there is no such task, or not yet.
        """
        row = await self._row()
        return str(row[1])

    async def snapshot(self) -> TaskResult[R_co]:
        """Return where the task stands. Raises NotFound as `state` does."""
        return task_result(await self._row(), self.codec)

    async def result(self, timeout: timedelta | float | None = None) -> R_co:
        """Wait until the task has finished, and return its output.

        Raises TaskFailed with its error, TaskCancelled, or the builtin TimeoutError
        after `timeout`, a timedelta or seconds; NotFound at once if there is no such
        task, or not yet: before the commit of a `spawn_with`. A connection that is lost
        meanwhile is made again.
        """
        limit = seconds(timeout, "timeout")
        until = None if limit is None else time.monotonic() + limit
        pause = _SHORTEST
        row: tuple[Any, ...] | None = None
        while True:
            left = None if until is None else until - time.monotonic()
            row = await self._row_or_last(row, left)
            if row is not None and row[1] in FINAL:
                return output(row, self.codec)
            left = pause if until is None else min(pause, until - time.monotonic())
            if left <= 0:
                state = "out of reach" if row is None else f"still {row[1]}"
                raise TimeoutError(f"task {self.task_id} is {state}")
            await asyncio.sleep(left)
            pause = min(pause * 1.5, _LONGEST)

    async def _row_or_last(
        self, last: tuple[Any, ...] | None, within: float | None
    ) -> tuple[Any, ...] | None:
        """Return the task's row; the last one, if the connection was lost."""
        try:
            return await self._row(None if within is None else max(within, _TO_CONNECT))
        except PoolClosed:
            raise
        except psycopg.OperationalError as error:
            unreachable = last is None and isinstance(error, PoolTimeout)
            if unreachable or not heals(error):
                raise
            return last

    async def _row(self, within: float | None = None) -> tuple[Any, ...]:
        statement = _sql.get_task_result(self.queue, self.task_id)
        rows = await self._app.fetch(statement, within=within)
        if not rows:
            raise NotFound(
                f"no task {self.task_id} in queue {self.queue!r}",
                hint="If its transaction is open, commit it first.",
            )
        return rows[0]
