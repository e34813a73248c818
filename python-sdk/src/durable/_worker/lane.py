"""Group commit, in general.

What is handed in while a statement is on its way goes with the next one, all of it
together. There is no timer: a lonely item waits for nobody, a hundred share one commit.
"""

from __future__ import annotations

import asyncio
import contextvars
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
    size: int
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
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._size = size
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: deque[_Entry[Item, Outcome]] = deque()
        self._waiting_bytes = 0
        self._alone: deque[_Entry[Item, Outcome]] = deque()
        self._was_alone = False  # the last one sent; in turns, however many there are
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    def submit(self, item: Item) -> asyncio.Future[Outcome]:
        """Hand in an item; the future is done once its statement has committed."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        entry = _Entry(item, future, self._size(item))
        self._waiting_bytes += entry.size
        self._enqueue(entry, self._waiting)
        return future

    async def close(self) -> None:
        """Give up what has not been sent."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender})

    def _enqueue(
        self, entry: _Entry[Item, Outcome], line: deque[_Entry[Item, Outcome]]
    ) -> None:
        if self._closed:
            entry.future.cancel()
            return
        line.append(entry)
        if self._sender is None:
            # not in the context of whoever is the first: it sends for all
            self._sender = self._loop.create_task(
                self._send_all(), context=contextvars.Context()
            )

    async def _send_all(self) -> None:
        try:
            while self._waiting or self._alone:
                await self._send_batch(self._next_batch())
        finally:
            self._sender = None
            for entry in (*self._waiting, *self._alone):
                entry.future.cancel()
            self._waiting.clear()
            self._alone.clear()

    async def _send_batch(self, batch: Sequence[_Entry[Item, Outcome]]) -> None:
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
            self._loop.call_later(pause, self._enqueue, entry, self._alone)
        elif isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)  # type: ignore[arg-type]

    def _next_batch(self) -> Sequence[_Entry[Item, Outcome]]:
        self._was_alone = bool(self._alone and not (self._was_alone and self._waiting))
        if self._was_alone:
            return [self._alone.popleft()]
        if len(self._waiting) <= self._most and self._waiting_bytes <= self._most_bytes:
            batch, self._waiting = self._waiting, deque()
            self._waiting_bytes = 0
            return batch
        return self._as_much_as_fits()

    def _as_much_as_fits(self) -> Sequence[_Entry[Item, Outcome]]:
        batch: list[_Entry[Item, Outcome]] = []
        size = 0
        while self._waiting and len(batch) < self._most:
            size += self._waiting[0].size
            if batch and size > self._most_bytes:
                break
            batch.append(self._waiting.popleft())
        self._waiting_bytes -= sum(entry.size for entry in batch)
        return batch
