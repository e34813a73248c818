"""Group commit, in general.

What is handed in while a statement is on its way goes with the next one, all of it
together. There is no timer: a lonely item waits for nobody, a hundred share one commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Lane"]

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Lane(Generic[Item, Outcome]):
    """One statement at a time, for all that has come meanwhile.

    `send` gets a batch and returns an outcome or an exception for each of its items.
    A batch ends at `most` items, or `most_bytes` of what `size` says of them.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | BaseException]]],
        *,
        size: Callable[[Item], int] = lambda _: 0,
        most: int = 1_000,
        most_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._send = send
        self._size = size
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> asyncio.Future[Outcome]:
        """Hand in an item; the future is done once its statement has committed."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        return future

    async def empty(self) -> None:
        """Return when nothing is waiting or on its way."""
        while self._sender is not None:
            await asyncio.wait({self._sender})

    async def close(self) -> None:
        """Give up what has not been sent."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender})

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send_batch(self._next_batch())
        finally:
            self._sender = None
            while self._waiting:
                self._waiting.popleft()[1].cancel()

    async def _send_batch(
        self, batch: list[tuple[Item, asyncio.Future[Outcome]]]
    ) -> None:
        try:
            outcomes = await self._send([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                _fail(future, error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                _fail(future, outcome)
            elif not future.done():
                future.set_result(outcome)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Outcome]]]:
        batch = [self._waiting.popleft()]
        size = self._size(batch[0][0])
        while self._waiting and len(batch) < self._most:
            size += self._size(self._waiting[0][0])
            if size > self._most_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch


def _fail(future: asyncio.Future[Outcome], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(error)
