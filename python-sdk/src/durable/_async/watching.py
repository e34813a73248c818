"""Looking at a task again, whenever it may have published something."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from psycopg_pool import PoolClosed, PoolTimeout

from durable._crowds import pause_after
from durable._readiness import (
    set_within_async,
)  # sync: from durable._readiness import set_within
from durable._results import not_found
from durable._sql import Statement
from durable._worker.link import backoff, heals

if TYPE_CHECKING:
    from durable._async.connected import Connected

__all__ = ["Watching"]

_HEARING_SECONDS: Final = 1.0  # between two looks while it is told when to look


class Watching:
    """One who follows a task, for so many seconds if there is a timeout.

    It listens from its first rest on: who finds at once what it wants does not.
    """

    def __init__(
        self, app: Connected, queue: str, task_id: UUID, timeout: float | None = None
    ) -> None:
        self._app = app
        self._queue = queue
        self._task_id = task_id
        self._until = None if timeout is None else time.monotonic() + timeout
        self._event = asyncio.Event()
        self._exits = contextlib.ExitStack()
        self._listens = False
        self._found = False
        self._looks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    async def look(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Return the rows. Raises NotFound if there are none: no such task.

        A connection that is lost is made again, for as long as it takes once there was
        an answer.
        """
        self._event.clear()
        failures = 0
        while True:
            try:
                rows = await self._app.fetch(statement)
            except Exception as error:
                despairs = isinstance(error, PoolTimeout) and not self._found
                if despairs or isinstance(error, PoolClosed) or not heals(error):
                    raise
                self._left()
                await asyncio.sleep(backoff(failures))
                failures += 1
                continue
            if not rows:
                raise not_found(self._queue, self._task_id)
            self._found = True
            return rows

    async def rest(self, *, anew: bool) -> None:
        """Wait until it is time for the next look; `anew`, the last one brought news.

        Raises the builtin TimeoutError once the time is over.
        """
        left = self._left()
        ear = self._app.news
        if not self._listens:
            self._listens = True
            loop = asyncio.get_running_loop()  # async only
            wake = partial(
                loop.call_soon_threadsafe, self._event.set
            )  # sync: wake = self._event.set
            self._exits.enter_context(ear.watching(self._queue, self._task_id, wake))
            if ear.hears(self._queue):
                return  # something may have come before
        self._looks = 0 if anew else self._looks + 1
        hearing = ear.hears(self._queue)
        pause = _HEARING_SECONDS if hearing else pause_after(self._looks)
        await set_within_async(
            self._event, pause if left is None else min(pause, left)
        )  # sync: set_within(self._event, pause if left is None else min(pause, left))

    def _left(self) -> float | None:
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"task {self._task_id} has not said so in time")
        return left
