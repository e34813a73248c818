"""Group commit, in general.

What is handed in while a statement is on its way goes with the next one, all of it
together. There is no timer: a lonely item waits for nobody, a hundred share one commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

__all__ = ["AGAIN", "Lane", "Outcomes"]

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Outcomes = Sequence[object]


class _Again:
    """What is returned for an item whose rows somebody else held."""


AGAIN: Final = _Again()
_LONGEST_PAUSE: Final = 2.0


@dataclass(slots=True)
class _Entry(Generic[Item, Outcome]):
    item: Item
    future: asyncio.Future[Outcome]
    failures: int = 0


class Lane(Generic[Item, Outcome]):
    """One statement at a time, for all that has come meanwhile.

    `send` gets a batch, and returns for each of its items an outcome, an exception, or
    AGAIN: then the item is sent once more, later and alone, so that it holds up nobody.
    A batch ends at `most` items, or at `most_bytes` of what `size` says of them.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Outcomes]],
        *,
        size: Callable[[Item], int] = lambda _: 0,
        most: int = 1_000,
        most_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._send = send
        self._size = size
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: deque[_Entry[Item, Outcome]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    def submit(self, item: Item) -> asyncio.Future[Outcome]:
        """Hand in an item; the future is done once its statement has committed."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._enqueue(_Entry(item, future))
        return future

    async def close(self) -> None:
        """Give up what has not been sent."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender})

    def _enqueue(self, entry: _Entry[Item, Outcome]) -> None:
        if self._closed:
            entry.future.cancel()
            return
        self._waiting.append(entry)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send_batch(self._next_batch())
        finally:
            self._sender = None
            while self._waiting:
                self._waiting.popleft().future.cancel()

    async def _send_batch(self, batch: list[_Entry[Item, Outcome]]) -> None:
        try:
            outcomes = await self._send([entry.item for entry in batch])
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            outcomes = [error] * len(batch)
        for entry, outcome in zip(batch, outcomes, strict=True):
            self._tell(entry, outcome)

    def _tell(self, entry: _Entry[Item, Outcome], outcome: object) -> None:
        if entry.future.done():
            return
        if outcome is AGAIN:
            entry.failures += 1
            pause = min(0.05 * 2**entry.failures, _LONGEST_PAUSE)
            asyncio.get_running_loop().call_later(pause, self._enqueue, entry)
        elif isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)  # type: ignore[arg-type]

    def _next_batch(self) -> list[_Entry[Item, Outcome]]:
        batch = [self._waiting.popleft()]
        size = self._size(batch[0].item)
        while self._waiting and len(batch) < self._most:
            size += self._size(self._waiting[0].item)
            alone = batch[0].failures or self._waiting[0].failures
            if alone or size > self._most_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch
